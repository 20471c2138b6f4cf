"""benchmark/ and tools/bench.py: what is summed up, scored, cut, resized and told."""

from __future__ import annotations

import json
import re
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_tracker import FakeTracker
from PIL import Image

from persam_video.benchmark.parts import timed_parts
from persam_video.benchmark.stages import StageBench
from persam_video.benchmark.truth import Truth
from persam_video.config import EncoderConfig
from persam_video.errors import DatasetError, PromptError
from persam_video.evaluation.metrics import region_similarity
from persam_video.label_maps import write_label_map
from persam_video.sam.models import load_sam
from persam_video.sources import open_source
from persam_video.tracking.tracker import Tracker
from persam_video.types import Reference


class Machine:
    """Two calls, one inside the other."""

    def outer(self) -> str:
        time.sleep(0.01)
        return self.inner() + "!"

    def inner(self) -> str:
        time.sleep(0.02)
        return "done"


def test_timed_parts_inner_call_is_taken_off_the_outer_one_and_all_is_put_back() -> None:
    originals = Machine.outer, Machine.inner
    begun = time.perf_counter()
    with timed_parts({"a": ((Machine, "outer"),), "b": ((Machine, "inner"),)}) as seconds:
        assert Machine().outer() == "done!"
        whole = time.perf_counter() - begun
        assert Machine.outer is not originals[0]
    assert (Machine.outer, Machine.inner) == originals
    assert seconds["a"] >= 0.01
    assert seconds["b"] >= 0.02
    assert seconds["a"] + seconds["b"] <= whole


def test_timed_parts_failing_call_still_ends_and_unknown_name_changes_nothing() -> None:
    broken = SimpleNamespace(call=lambda: 1 / 0)
    original = broken.call
    with timed_parts({"a": ((broken, "call"),)}) as seconds:
        with pytest.raises(ZeroDivisionError):
            broken.call()
        assert seconds["a"] > 0
    assert broken.call is original
    with pytest.raises(AttributeError), timed_parts({"a": ((broken, "call"), (broken, "no"))}):
        pass
    assert broken.call is original


def test_truth_black_and_white_map_is_scaled_and_its_255_is_the_object(tmp_path: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:4] = 255
    write_label_map(tmp_path / "00007.png", labels)
    truth = Truth(tmp_path).labels("00007", (8, 12))
    assert truth.shape == (8, 12)
    assert truth[2:6, 4:8].all()
    assert truth.sum() == 16


def test_truth_ids_that_nobody_follows_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:4] = 3
    write_label_map(tmp_path / "00001.png", labels)
    with pytest.raises(DatasetError, match=r"has objects \[3\], followed are \[1\]"):
        Truth(tmp_path).score((1,), [("00001", labels)])
    assert Truth(tmp_path, merge_objects=True).score((1,), [("00001", labels)]).j_and_f == 1


# --- tools/bench.py ---------------------------------------------------------------------------

TOOLS = Path(__file__).parent.parent / "tools"
FRAMES = 8


@pytest.fixture
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def picture(index: int) -> np.ndarray:
    """(60, 80, 3) with a bright disc that drifts over a slanted grey."""
    rows, columns = np.mgrid[:60, :80]
    image = np.repeat(((rows + columns) // 2 + 20)[..., None], 3, axis=2).astype(np.uint8)
    image[disc(index) > 0] = (250, 210, 60)
    return image


def disc(index: int) -> np.ndarray:
    rows, columns = np.mgrid[:60, :80]
    return ((rows - 30) ** 2 + (columns - 30 - index) ** 2 < 15**2).astype(np.uint8)


@pytest.fixture
def workplace(tmp_path: Path, tools_on_path: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip of eight frames with ground truth, and a tracker without a network."""
    for folder in ("clip", "truth"):
        (tmp_path / folder).mkdir()
    for index in range(FRAMES):
        Image.fromarray(picture(index)).save(tmp_path / f"clip/{index:05d}.png")
        write_label_map(tmp_path / f"truth/{index:05d}.png", disc(index))
    write_label_map(tmp_path / "first.png", disc(0))
    monkeypatch.setattr(Tracker, "from_config", lambda _config: FakeTracker())
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["clip", "--mask", "first.png", "-o", "out", "--frames", "2", "--rounds", "2"]


def test_bench_tool_writes_all_sections_with_scores_ratios_and_a_plot(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import main
    from memory import allocated_bytes

    sections = ["--sections", "stages,objects,sizes,lengths", "--objects", "3,1"]
    others = ["--truth", "truth", "--sizes", "40,120", "--lengths", "12,104"]
    Path("slow.toml").write_text("[track]\nclose_up = true\n", encoding="utf-8")
    assert main([*COMMAND, *sections, *others, "--against", "slow.toml"]) == 0
    results = json.loads(Path("out/bench.json").read_text(encoding="utf-8"))
    compared, objects, sizes, windows = results["sections"].values()
    assert list(compared) == ["default", "slow"]
    assert not results["settings"]["track"]["close_up"]
    assert compared["slow"]["settings"]["track"]["close_up"]
    assert compared["default"]["score"]["frames"] == 4
    assert 0 < compared["default"]["score"]["j_and_f"] < 1
    assert [row["objects"] for row in objects.values()] == [1, 3]
    assert all(len(row["round_fps"]) == 2 for row in objects.values())
    # the parts together are the disc, so that their union scores as the one object does
    assert objects["3"]["score"] == objects["1"]["score"]
    assert [row["size_wh"] for row in sizes.values()] == [[54, 40], [160, 120]]
    assert all(len(row["round_fps"]) == 2 for row in sizes.values())
    assert [window["frame"] for window in windows] == [12, 100, 104]
    assert all(window["peak_memory"] > 2**20 for window in windows)
    told = allocated_bytes() is not None
    assert all((window["allocated"] is not None) == told for window in windows)
    assert all(window["allocated"] > 2**20 for window in windows if told)
    assert set(results["ratios"]) == {
        "default_over_slow",
        "end_to_end_over_slowest_stage",
        "besides_encoder",
        "objects_3_over_1",
        "objects_3_over_1_end_to_end",
        "frame_104_over_100_time",
        "frame_104_over_100_memory",
        *(["frame_104_over_100_allocated"] if allocated_bytes() else []),
    }
    assert all(ratio["value"] > -1 and ratio["means"] for ratio in results["ratios"].values())
    with Image.open("out/bench.png") as image:
        assert image.width > 500
    captured = capsys.readouterr()
    assert "objects_3_over_1" in captured.out
    assert "objects: 3, round 2 of 2" in captured.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["bench.json", "bench.png"]


def test_bench_tool_parts_of_the_first_mask_are_objects(workplace: Path) -> None:
    from bench import main

    wanted = ["--sections", "stages", "--parts", "3", "--truth", "truth", "--merge-objects"]
    Path("slow.toml").write_text("[track]\nclose_up = true\n", encoding="utf-8")
    assert main([*COMMAND, *wanted, "--against", "slow.toml"]) == 0
    compared = json.loads(Path("out/bench.json").read_text(encoding="utf-8"))["sections"]["compare"]
    assert {name: row["objects"] for name, row in compared.items()} == {"default": 3, "slow": 3}
    assert 0 < compared["default"]["score"]["j_and_f"] < 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--objects", "1,none"], 2, "--objects takes whole numbers from 1 to 254"),
        (["--lengths", "5"], 2, "--lengths takes whole numbers from 11"),
        (["--sections", "stages,speed"], 2, "speed is none of stages"),
        (["--frames", "0"], 2, "must be at least 1, got 0 and 2"),
        (["--merge-objects"], 2, "there is no --truth"),
        (["--parts", "0"], 2, "--parts must be from 1 to 254, got 0"),
        (["--parts", "2", "--truth", "truth"], 2, "legal is --merge-objects"),
        (["--parts", "200"], 1, "too few to cut it into 200 objects"),
        (["--video-models", "edgetam,sam9"], 2, "sam9 is none of edgetam, sam2.1_tiny"),
        (["--against", "none.toml"], 2, "none.toml"),
        (["--against", "default.toml"], 2, "default is the name of something else"),
        (["--reference-image", "first.png"], 2, "--reference-image"),
        (["--frames", "20"], 1, "the clip has 8 frames, 23 are needed"),
        (["--truth", "clip/none"], 1, "no ground truth"),
        (["--objects", "200"], 1, "too few to cut it into 200 objects"),
        (["-o", "first.png"], 1, "first.png"),
    ],
)
def test_bench_tool_bad_input_is_told_before_the_work(
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    from bench import main

    assert main([*COMMAND, *arguments]) == code
    captured = capsys.readouterr()
    assert ", round " not in captured.err
    assert re.fullmatch(rf"bench.py: error: .*{re.escape(told)}.*\n", captured.err)


def test_parts_of_cuts_equal_disjoint_parts_that_make_up_the_mask(tools_on_path: None) -> None:
    from bench_sweeps import parts_of

    labels = disc(0) * 7
    for count in (1, 2, 5, 10):
        cut = parts_of(labels, count)
        np.testing.assert_array_equal(cut > 0, labels > 0)
        areas = np.bincount(cut.ravel())[1:]
        assert len(areas) == count
        assert areas.max() - areas.min() <= count


def test_boxes_in_are_as_many_as_asked_and_apart(tools_on_path: None) -> None:
    from bench_sweeps import boxes_in
    from scipy import ndimage

    for count in (1, 2, 5, 20):
        labels = boxes_in((60, 80), count)
        assert np.unique(labels).tolist() == list(range(count + 1))
        assert ndimage.label(labels > 0)[1] == count


def test_resized_labels_object_that_vanishes_is_refused(tools_on_path: None) -> None:
    from bench_sweeps import resized_hw, resized_labels

    labels = disc(0)
    labels[3, 3] = 2
    assert resized_hw((480, 854), 240) == (240, 428)
    assert resized_labels(labels, (120, 160)).sum() == 4 * labels.sum()
    with pytest.raises(PromptError, match=r"nothing is left of objects \[2\]"):
        resized_labels(labels, (15, 20))


@pytest.mark.needs_weights
def test_first_way_follows_an_object_and_keeps_memory_contiguous(
    workplace: Path, vit_t_weights: Path
) -> None:
    from first_way import FirstWay, run_in_turn

    way = FirstWay(EncoderConfig(input_size=512, device="cpu"))
    layouts = []
    for layer in way.encoder.predictor.model.image_encoder.network.layers:
        layer.register_forward_hook(lambda *call: layouts.append(call[2][1].is_contiguous()))
    found = []
    with open_source("clip") as source:
        summary = run_in_turn(islice(source, 4), way, Reference(disc(0)), (), found.append)
    assert summary.frames == len(found) == 4
    assert layouts == [True] * 16
    for index, result in enumerate(found):
        assert region_similarity(result.labels == 1, disc(index) == 1) > 0.8


@pytest.mark.needs_weights
def test_stage_bench_parts_add_up_to_the_step_and_name_what_ran(
    workplace: Path, vit_t_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoder = load_sam(EncoderConfig(input_size=256, device="cpu"), progress=False)
    tracker = Tracker(encoder, decoder)
    bench = StageBench(lambda: open_source("clip"), tracker, Reference(disc(0)), frames=1)
    bench.round()
    report = bench.report()
    names = ["preprocess", "encoder", "prior", "decoder", "merge", "learn", "outlines", "other"]
    if torch.get_num_threads() > 1:
        names.insert(-1, "waiting")
    assert list(report.parts) == names
    assert sum(part.median for part in report.parts.values()) == pytest.approx(report.track.median)
    assert report.found == 1.0 and report.fps == report.round_fps[0] > 0


@pytest.mark.needs_weights
def test_limits_tool_counts_the_encoders_operations(
    workplace: Path,
    vit_t_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from limits import main

    # Of one round alone, as what is in a median of several hangs by what else the machine does.
    sizes = ["--sizes", "256,512", "--threads", str(torch.get_num_threads()), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["limits.py", "clip/00000.png", *sizes])
    monkeypatch.setattr("limits._SIDE", 128)
    main()
    small, large = json.loads(capsys.readouterr().out)["sizes"]
    # So many operations per cell of 16 pixels, and more of them in windows at the border at 256.
    assert 3.5 < large["operations"] / small["operations"] < 4
    cells = 512 * 384 / 16**2
    assert 1e7 < large["operations"] / cells < 3e7
    assert large["share_of_peak"] == pytest.approx(
        large["operations_per_s"] / large["peak_operations_per_s"]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["clip/00000.png", "--sizes", "256,x"], 2, "a whole number from 1 on is needed, got 'x'"),
        (["clip/00000.png", "--rounds", "0"], 2, "a whole number from 1 on is needed, got '0'"),
        (["none.png"], "limits.py: error: ", "none.png"),
        (["clip/00000.png", "--model", "vit_x"], "limits.py: error: ", "vit_x"),
    ],
)
def test_limits_tool_bad_input_is_told(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int | str,
    told: str,
) -> None:
    from limits import main

    monkeypatch.setattr("sys.argv", ["limits.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    if isinstance(code, int):
        assert stopped.value.code == code
        assert told in capsys.readouterr().err
    else:
        assert str(stopped.value.code).startswith(code) and told in str(stopped.value.code)
