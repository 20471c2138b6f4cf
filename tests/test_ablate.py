"""tools/ablate.py: its arithmetic, its cache, and a whole small run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import persam_video as pv
from persam_video.evaluation.davis import DavisClip, evaluate

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def test_bootstrap_interval_holds_the_mean_and_widens_with_the_spread() -> None:
    from ablation_report import bootstrap_interval

    narrow = bootstrap_interval(np.array([1.0, 1.1, 0.9, 1.0]))
    wide = bootstrap_interval(np.array([-9.0, 11.0, -4.0, 6.0]))
    assert 0.9 <= narrow[0] < 1.0 < narrow[1] <= 1.1
    assert wide[0] < 0 < 1 < wide[1]


def test_middle_of_is_far_from_the_edge_and_inside() -> None:
    from ablate import middle_of

    mask = np.zeros((20, 30), bool)
    mask[2:13, 5:16] = True
    mask[:, 25] = True
    assert middle_of(mask) == (10, 7)


def test_read_variants_unknown_setting_is_named(tmp_path: Path) -> None:
    from ablate import read_variants

    path = tmp_path / "v.toml"
    path.write_text('[worse]\n"track.grain" = 1.0\n')
    with pytest.raises(pv.ConfigError, match="worse: unknown key grain"):
        read_variants(path, None)
    path.write_text('[fine]\n"track.gain" = 1.0\nreference = "click"\n')
    default, fine = read_variants(path, None)
    assert (default.name, default.config) == ("default", pv.Config())
    assert (fine.config.track.gain, fine.click) == (1.0, True)
    with pytest.raises(SystemExit, match="no variant"):
        read_variants(path, "coarse")


def test_read_variants_shipped_file_is_legal() -> None:
    from ablate import read_variants

    variants = {v.name: v for v in read_variants(TOOLS / "ablation.toml", None)}
    assert variants["close_up"].config.track.close_up
    assert variants["one_click"].click
    assert variants["later_mask_look_back"].later_mask
    assert variants["later_mask_look_back"].config.track.look_back == 128


def test_backwards_clip_begins_with_the_last_frame_that_has_a_mask(tmp_path: Path) -> None:
    from ablate import read_variants

    default, backwards = read_variants(TOOLS / "ablation.toml", "default,backwards")
    frames = [pv.Frame(i, i / 24, np.full((4, 4, 3), i, np.uint8), f"{i}.png") for i in range(4)]
    paths = tuple(tmp_path / f"{i}.png" for i in range(4))
    for i, path in enumerate(paths):
        pv.write_label_map(path, np.full((4, 4), 2 * (i < 3), np.uint8))
    clip = DavisClip("clip", tmp_path, paths, paths)
    for variant, values in ((default, [0, 1, 2, 3]), (backwards, [2, 1, 0])):
        ordered = variant.order(clip)
        assert [int(path.stem) for path in ordered.frames] == values
        assert ordered.annotations == ordered.frames
        given = list(variant.frames(iter(frames), ordered))
        assert [frame.index for frame in given] == list(range(len(values)))
        assert [frame.image_rgb[0, 0, 0] for frame in given] == values


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sheets", "sharp"], "--sheets: sharp is none of default"),
        (["--baseline", "sharp"], "--baseline: sharp"),
        (["--clips", "lucia,lucy"], "--clips: lucy is none of"),
        (["--clips", "lucia", "--halves"], "at least two clips"),
    ],
)
@pytest.mark.needs_davis
def test_ablate_wrong_name_stops_before_the_work(
    arguments: list[str], told: str, davis_root: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(TOOLS / "ablate.py"), str(davis_root), *arguments]
    command += ["--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs_weights
def test_cached_encoder_gives_the_same_maps_and_encodes_once(
    tmp_path: Path, vit_t_weights: Path
) -> None:
    from map_cache import CachedEncoder

    encoder, _ = pv.load_sam(pv.EncoderConfig(input_size=256), progress=False)
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    exact = encoder.encode(image)
    for attempt in range(2):
        cached = CachedEncoder(encoder, tmp_path)
        embedding = cached.encode(image)
        assert (cached.use.calls, cached.use.misses) == (1, 1 if attempt == 0 else 0)
        assert (embedding.source_hw, embedding.input_hw) == (exact.source_hw, exact.input_hw)
        torch.testing.assert_close(embedding.neck, exact.neck, rtol=1e-2, atol=1e-3)
        for kept, stage in zip(embedding.stages, exact.stages, strict=True):
            assert kept.shape == stage.shape
            rows = -(-embedding.input_hw[0] * stage.shape[2] // 256)
            true = stage[:, :, :rows].float()  # what is kept comes back in float32
            torch.testing.assert_close(kept[:, :, :rows], true, rtol=1e-2, atol=2e-3)
    padded = cached.with_padding().encode(image)
    assert padded.padding and not embedding.padding
    assert (cached.use.calls, cached.use.misses) == (2, 1)


@pytest.mark.needs_weights
def test_cached_encoder_keeps_nothing_on_a_disk_that_is_nearly_full(
    tmp_path: Path, vit_t_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from map_cache import CachedEncoder

    encoder, _ = pv.load_sam(pv.EncoderConfig(input_size=256), progress=False)
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    kept = CachedEncoder(encoder, tmp_path / "room").encode(image)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**30))
    cached = CachedEncoder(encoder, tmp_path / "full")
    for _ in range(2):
        torch.testing.assert_close(cached.encode(image).neck, kept.neck)
    assert cached.use.misses == 2
    assert len(list(tmp_path.glob("room/*/*.pt"))) == 1
    assert not list(tmp_path.glob("full/*/*"))


@pytest.mark.slow
@pytest.mark.needs_weights
@pytest.mark.needs_davis
def test_ablate_scores_as_the_evaluation_does_and_reuses_what_is_done(
    tmp_path: Path, davis_root: Path, vit_t_weights: Path
) -> None:
    root = tmp_path / "mini"
    for clip in ("lucia", "surf"):
        for kind, end in (("JPEGImages", "jpg"), ("Annotations", "png")):
            folder = root / kind / "480p" / clip
            folder.mkdir(parents=True)
            for index in range(4):
                name = f"{index:05d}.{end}"
                (folder / name).write_bytes((davis_root / kind / "480p" / clip / name).read_bytes())
    (root / "ImageSets/2016").mkdir(parents=True)
    (root / "ImageSets/2016/mini.txt").write_text("lucia\nsurf\n")
    variants = tmp_path / "variants.toml"
    variants.write_text(
        '[small]\n"encoder.input_size" = 256\n"track.crop_padding" = 0\n'
        '[no_sam]\n"encoder.input_size" = 256\n"track.agreement_slope" = 0.0\n'
        '[given]\n"encoder.input_size" = 256\n"track.look_back" = 2\nlater_mask = "middle"\n'
    )
    command = [
        *(sys.executable, str(TOOLS / "ablate.py"), str(root), "--split", "2016/mini"),
        *("--merge-objects", "--variants", str(variants), "--only", "small,no_sam,given"),
        *("--baseline", "small", "--oracles", "--halves", "--sheets", "small"),
        *("--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")),
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    score = evaluate(out / "small", root, "2016/mini", merge_objects=True)
    assert report["variants"]["small"]["J&F"] == pytest.approx(100 * score.j_and_f, abs=1e-6)
    assert report["variants"]["small"]["ms"]["all"] > 0
    assert report["variants"]["small"]["encoder_runs"] == 1
    assert report["variants"]["no_sam"]["encoder_runs"] < 1  # parts count for what they are
    truth = pv.read_label_map(root / "Annotations/480p/lucia/00002.png") > 0
    assert np.array_equal(pv.read_label_map(out / "given/lucia/00002.png") > 0, truth)
    assert 0.5 < report["variants"]["given"]["J&F"] / 100 < 1  # the given frame does not count
    assert "best on the 2nd, 4th, ... clips" in first.stdout
    assert report["variants"]["oracle_grid"]["J&F"] > 85
    with (out / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * (3 + 4)
    assert "small says tracked in 100.0 % of the frames: J " in first.stdout
    assert (out / "states.png").exists() is (find_spec("matplotlib") is not None)
    with Image.open(out / "sheets/small.png") as sheet:
        assert sheet.width > 600
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "small lucia" in first.stderr
    assert "small lucia" not in again.stderr
    assert again.stdout == first.stdout
