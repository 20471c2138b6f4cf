"""The command line: flags, layers of settings, exit codes, every command with a fake tracker."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from fake_tracker import FakeTracker
from PIL import Image

from persam_video.cli import settings
from persam_video.cli.main import build_parser, main
from persam_video.cli.track import default_output
from persam_video.config import Config, EncoderConfig, TrackConfig, load_config
from persam_video.label_maps import read_label_map, write_label_map
from persam_video.tracking.tracker import Tracker
from persam_video.types import Frame

PROJECT_ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("track", "davis", "eval", "render", "bench", "export", "info", "weights")
FRAMES = 6


def make_labels() -> np.ndarray:
    labels = np.zeros((32, 48), np.uint8)
    labels[4:14, 6:20] = 1
    labels[18:28, 26:40] = 2
    return labels


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images; the working directory is beside it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(FRAMES):
        Image.fromarray(np.full((32, 48, 3), 30 * index, np.uint8)).save(
            folder / f"shot{index}.png"
        )
    write_label_map(tmp_path / "mask.png", make_labels())
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Config]]:
    """Put a FakeTracker in the place of the real one; gives the settings it was asked for."""

    def install(on_step: Callable[[Frame], None] | None = None) -> list[Config]:
        asked: list[Config] = []

        def from_config(config: Config, *, progress: bool = True) -> FakeTracker:
            asked.append(config)
            return FakeTracker(on_step)

        monkeypatch.setattr(Tracker, "from_config", from_config)
        return asked

    return install


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def config_of(*arguments: str) -> Config:
    return settings.resolve_config(build_parser().parse_args(["track", "x.mp4", *arguments]))


# --- help and flags ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_main_help_of_every_command_teaches_by_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: persam-video {command}")
    assert f"persam-video {command} " in text.partition("examples:")[2]
    assert max(map(len, text.splitlines())) <= 100


def test_main_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from persam_video.cli.main import build_parser; build_parser().format_help();"
        "print([m for m in ('torch', 'scipy', 'cv2', 'av', 'PIL', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_version_is_told() -> None:
    command = [sys.executable, "-m", "persam_video", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"persam-video \d+\.\d+\.\d+\S*\n", done.stdout)


def test_settings_every_field_has_a_flag_with_help_and_default() -> None:
    parser = argparse.ArgumentParser()
    settings.add_settings(parser)
    flags = {action.dest: action for action in parser._actions}
    words = {"True": "on", "False": "off", "None": "none"}
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            flag = flags.pop(f"{section.name}.{field.name}")
            assert f"--{field.name.replace('_', '-')}" in flag.option_strings
            default = words.get(str(field.default), str(field.default))
            assert str(flag.help).startswith(
                f"{field.metadata['help']} (default: {default}".replace("%", "%%")
            )
    assert not [dest for dest in flags if "." in dest]


def test_resolve_config_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[source]\nstride = 3\nmax_size = 640\n[encoder]\ninput_size = 512\ndtype = "bfloat16"\n'
    )
    config = config_of("--config", str(file), "--stride", "5", "--max-size", "none")
    assert config.source.stride == 5
    assert config.source.max_size is None
    assert config.source.start == 0
    assert config.encoder.input_size == 512
    assert config.encoder.dtype == "bfloat16"


def test_resolve_config_switch_can_be_turned_off_and_on(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[personalize]\nattention = 0\nsemantic = false\n")
    config = config_of("--config", str(file), "--semantic").personalize
    assert (config.attention, config.semantic) == (0.0, True)
    assert config_of("--no-semantic").personalize.semantic is False


def test_shipped_configs_hold_the_defaults() -> None:
    stale = (
        "configs/default.toml differs from the defaults in config.py; the text of "
        "Config().to_toml() is what it should say"
    )
    default = PROJECT_ROOT / "configs/default.toml"
    assert load_config(default) == Config(), stale
    lines = default.read_text().splitlines()
    assert set(Config().to_toml().splitlines()) <= {*lines, ""}, stale
    pinned = EncoderConfig(device="cpu", dtype="float32", runtime="torch")
    assert load_config(PROJECT_ROOT / "configs/davis.toml") == Config(encoder=pinned)
    accurate = load_config(PROJECT_ROOT / "configs/accurate.toml")
    assert accurate == Config(track=TrackConfig(close_up=True))
    fast = load_config(PROJECT_ROOT / "configs/fast.toml")
    coarser = TrackConfig(background_size=333, keyframe_interval=2)
    assert fast == Config(encoder=EncoderConfig(input_size=832), track=coarser)


# --- exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["clip", "--mask", "mask.png", "--stride", "0"], 2, "stride must be in 1 to inf, got 0"),
        (["clip", "--mask", "mask.png", "--config", "bad.toml"], 2, "unknown key speed in"),
        (["clip", "--mask", "mask.png", "--config", "no.toml"], 2, "cannot read the configuration"),
        (["clip"], 2, "nothing says what to follow"),
        (["clip", "--points", "9,9", "--threshold", "3"], 2, "there is no --mask"),
        (["clip", "--mask", "mask.png", "--preview-only"], 2, "needs --preview"),
        (["clip", "--mask", "none.png"], 1, "there is no such mask file"),
        (["clip", "--points", "9;9"], 1, "'9;9' is no point"),
        (["clip", "--points", "99,9"], 1, "lies outside the frame"),
        (["nowhere", "--mask", "mask.png"], 1, "nowhere"),
        (["clip", "--mask", "mask.png", "--max-size", "24"], 1, "the mask has 48 x 32 pixels"),
        (["clip", "--mask", "mask.png", "--reference-image", "no.jpg"], 1, "no.jpg"),
    ],
)
def test_track_wrong_input_is_one_clear_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    told: str,
    clip: Path,
    fake: Callable[..., list[Config]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake()
    Path("bad.toml").write_text("[track]\nspeed = 3\n")
    assert main(["track", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"persam-video: error: .*{re.escape(told)}.*\n", captured.err)


def test_track_network_that_cannot_run_leaves_nothing_behind(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    network = ["--model", "vit_b", "--input-size", "1280"]
    assert main(["track", "clip", "--mask", "mask.png", *network, "-o", "out"]) == 2
    assert "vit_b runs at input_size 1024 only" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["follow"],
        ["track"],
        ["track", "clip", "--method", "magic"],
        ["track", "clip", "--stride", "many"],
        ["track", "clip", "--save", "masks,film"],
        ["track", "clip", "--ma", "mask.png"],
        ["davis", "root"],
    ],
)
def test_main_wrong_usage_leaves_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: persam-video" in capsys.readouterr().err


def test_main_log_is_shown_as_asked_and_taken_down_afterwards(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("persam_video")
    before = list(logger.handlers), logger.level

    def warn(frame: Frame) -> None:
        logging.getLogger("persam_video.test").warning("frame %d is odd", frame.index)
        logging.getLogger("persam_video.test").info("frame %d is here", frame.index)

    fake(warn)
    shown = {}
    for flags in ([], ["-v"], ["--quiet"]):
        main(["track", "clip", "--mask", "mask.png", "--save", "masks", "--overwrite", *flags])
        shown[" ".join(flags)] = capsys.readouterr()
    assert "persam-video: warning: frame 3 is odd\n" in shown[""].err
    assert "info" not in shown[""].err
    assert "persam-video: info: frame 3 is here\n" in shown["-v"].err
    assert shown["--quiet"] == ("", "")
    assert (list(logger.handlers), logger.level) == before


# --- track ------------------------------------------------------------------------------------


def test_track_mask_writes_the_default_outputs_and_its_settings(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake()
    assert main(["track", "clip", "--mask", "mask.png", "--end", "5", "--dtype", "float32"]) == 0
    out = Path("clip_tracked")
    stems = [f"shot{index}.png" for index in range(5)]
    assert sorted(p.name for p in (out / "masks").iterdir()) == stems
    assert np.array_equal(read_label_map(out / "masks/shot4.png"), make_labels())
    with av.open(str(out / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == 5
    assert size_of(out / "contact_sheet.jpg")[0] > 400
    assert sorted(p.name for p in out.iterdir()) == [
        "config.toml",
        "contact_sheet.jpg",
        "masks",
        "overlay.mp4",
    ]
    assert load_config(out / "config.toml") == asked[0] == config_of("--end=5", "--dtype=float32")
    text, error = capsys.readouterr()
    assert re.match(r"5 frames in \d+\.\d s, \d+\.\d\d frames/s, peak memory \d+ MiB\n", text)
    assert "object 1: tracked 5\nobject 2: tracked 5\n" in text
    assert text.splitlines()[-1] == str(out / "config.toml")
    assert error == ""  # no bar where nobody looks


def test_track_all_outputs_land_in_their_places(
    clip: Path, fake: Callable[..., list[Config]]
) -> None:
    fake()
    saved = "objects,cutout,rle,overlay"
    command = ["track", "clip", "--mask", "mask.png", "-o", "out/a", "--save", saved]
    assert main([*command, "--side-by-side"]) == 0
    out = Path("out/a")
    assert len(list((out / "objects/2").glob("*.png"))) == FRAMES
    assert size_of(out / "cutout/shot0.png") == (48, 32)
    assert len(json.loads((out / "masks.json").read_text())["images"]) == FRAMES
    with av.open(str(out / "overlay.mp4")) as video:
        assert video.streams.video[0].width == 96


def test_track_existing_outputs_are_kept_unless_overwriting(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    command = ["track", "clip", "--mask", "mask.png", "--save", "masks"]
    assert main(command) == 0
    assert main(command) == 1
    assert "not empty" in capsys.readouterr().err
    assert main([*command[:-1], "sheet", "--end", "3"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--end", "3"]) == 0
    assert load_config(Path("clip_tracked/config.toml")).source.end == 3


def test_track_after_a_failed_start_is_not_refused(
    clip: Path, fake: Callable[..., list[Config]]
) -> None:
    fake()
    assert main(["track", "clip", "--points", "99,9"]) == 1
    assert main(["track", "clip", "--points", "9,9", "--stride", "2"]) == 0


def test_track_preview_shows_the_first_mask_and_goes_on(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    command = ["track", "clip", "--points", "9,9 3=30,20", "--save", "masks"]
    assert main([*command, "--preview", "p.png", "--preview-only"]) == 0
    assert capsys.readouterr().out == "p.png\n"
    assert not Path("clip_tracked").exists()
    with Image.open("p.png") as picture:
        drawn = np.asarray(picture)
    assert drawn.shape == (32, 48, 3)
    assert drawn[9, 9].any()  # the frame itself is black
    assert main([*command, "--preview", "q.png"]) == 0
    assert Path("p.png").read_bytes() == Path("q.png").read_bytes()
    labels = read_label_map(Path("clip_tracked/masks/shot0.png"))
    assert (labels[9, 9], labels[20, 30]) == (1, 3)
    assert len(list(Path("clip_tracked/masks").iterdir())) == FRAMES
    assert main([*command, "--preview", "p.png", "--preview-only"]) == 1


def test_track_reference_image_takes_mask_and_preview_of_the_photo(
    clip: Path, fake: Callable[..., list[Config]]
) -> None:
    fake()
    photo = np.full((20, 10, 3), 200, np.uint8)
    Image.fromarray(photo).save("photo.png")
    mask = np.zeros((20, 10), np.uint8)
    mask[5:9, 2:7] = 255
    Image.fromarray(mask).save("photo_mask.png")
    command = ["track", "clip", "--reference-image", "photo.png", "--mask", "4=photo_mask.png"]
    assert main([*command, "--preview", "p.png", "--save", "rle"]) == 0
    assert size_of(Path("p.png")) == (10, 20)
    objects = json.loads(Path("clip_tracked/masks.json").read_text())["images"][0]["objects"]
    assert [entry["id"] for entry in objects] == [4]


def test_track_later_masks_are_put_in_their_frames(
    clip: Path, fake: Callable[..., list[Config]]
) -> None:
    fake()
    moved = np.roll(make_labels(), 3, axis=1)
    write_label_map(Path("moved.png"), np.where(moved == 1, 1, 0).astype(np.uint8))
    write_label_map(Path("other.png"), np.where(moved == 2, 1, 0).astype(np.uint8))
    later = ["--later-mask", "4=moved.png", "--later-mask", "4=7=other.png"]
    assert main(["track", "clip", "--mask", "1=moved.png", *later, "--start", "2", "-q"]) == 0
    before, after = (read_label_map(Path(f"clip_tracked/masks/shot{i}.png")) for i in (3, 4))
    assert np.unique(before).tolist() == [0, 1]
    assert np.array_equal(after == 1, moved == 1) and np.array_equal(after == 7, moved == 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mask.png", "FRAME=FILE or FRAME=ID=FILE, like 57=mask.png, got 'mask.png'"),
        ("-1=mask.png", "FRAME=FILE"),
        ("1=mask.png", "'1=mask.png': that frame is not read after the first one; legal are 3, 5"),
        ("4=mask.png", "legal are 3, 5"),
        ("6=mask.png", "legal are 3, 5"),
        ("3=none.png", "none.png: there is no such mask file"),
        ("3=small.png", "the mask has 5 x 4 pixels (width x height), frame 3 has 48 x 32"),
    ],
)
def test_track_later_mask_that_makes_no_sense_is_told_before_anything_is_written(
    given: str,
    message: str,
    clip: Path,
    fake: Callable[..., list[Config]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake()
    write_label_map(Path("small.png"), np.eye(4, 5, dtype=np.uint8))
    options = ["--mask", "mask.png", f"--later-mask={given}", "--start", "1", "--stride", "2"]
    assert main(["track", "clip", *options, "-q"]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not Path("clip_tracked").exists()


@pytest.mark.usefixtures("hears_ctrl_c")
def test_track_ctrl_c_leaves_whole_files_and_exit_code_130(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(lambda frame: signal.raise_signal(signal.SIGINT) if frame.index == 4 else None)
    assert main(["track", "clip", "--mask", "mask.png"]) == 130
    assert capsys.readouterr().err == "persam-video: interrupted; files written so far are whole\n"
    out = Path("clip_tracked")
    assert len([read_label_map(path) for path in (out / "masks").iterdir()]) == 4
    with av.open(str(out / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == 4
    assert not list(out.rglob(".*"))


def test_track_on_a_terminal_shows_a_bar_unless_quiet(
    clip: Path,
    fake: Callable[..., list[Config]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    command = ["track", "clip", "--mask", "mask.png", "--save", "masks", "--overwrite"]
    assert main(command) == 0
    assert f"{FRAMES}/{FRAMES}" in capsys.readouterr().err
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("films/a clip.v2.mp4", "a clip.v2_tracked"),
        ("camera:0", "camera-0_tracked"),
        ("rtsp://host:554/live/1?x=2", "host-554-live-1-x-2_tracked"),
        ("-", "stdin_tracked"),
    ],
)
def test_default_output_is_named_after_the_source(
    source: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    Path("films/a clip.v2.mp4").touch()
    assert default_output(source) == Path(folder)


# --- the other commands -----------------------------------------------------------------------


def test_render_makes_outputs_from_masks_on_disk(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    main(["track", "clip", "--mask", "mask.png", "--save", "masks"])
    masks = "clip_tracked/masks"
    capsys.readouterr()
    assert main(["render", "clip", masks, "-o", "again.mkv", "--side-by-side"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "again.mkv"
    with av.open("again.mkv") as video:
        assert len(list(video.decode(video=0))) == FRAMES
    assert main(["render", "clip", masks, "-o", "again.json"]) == 0
    assert main(["render", "clip", masks, "-o", "again.jpg"]) == 0
    assert main(["render", "clip", "again.json", "-o", "folder", "--save", "masks,objects"]) == 0
    assert np.array_equal(read_label_map(Path("folder/masks/shot5.png")), make_labels())
    assert main(["render", "clip", masks, "-o", "again.mp4", "--save", "masks"]) == 2
    assert main(["render", "clip", masks, "-o", "again.avi"]) == 1
    assert main(["render", "clip", "nothing", "-o", "more.mp4"]) == 1


@pytest.fixture
def davis_like(clip: Path) -> Path:
    """The clip as a data set whose objects do not move."""
    root = Path("davis")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/tiny.txt").write_text("one\ntwo\n")
    for name in ("one", "two"):
        images, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(np.full((32, 48, 3), 99, np.uint8)).save(images / f"{index:05d}.jpg")
            write_label_map(masks / f"{index:05d}.png", make_labels())
    return root


def test_davis_and_eval_follow_each_other(
    davis_like: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    command = ["davis", "davis", "--split", "2017/tiny", "-o", "pred"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["one: done", "two: done"]
    assert main(command) == 0
    assert "two: skipped, it is complete" in capsys.readouterr().out
    assert main([*command, "--method", "persam"]) == 1  # other masks in the same folder
    assert main([*command, "--merge-objects"]) == 1
    assert "other settings" in capsys.readouterr().err

    evaluation = ["eval", "pred", "davis", "--split", "2017/tiny"]
    assert main([*evaluation, "--csv", "s.csv", "--json", "s.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["total", "all", "100.0"]
    assert Path("s.csv").read_text().splitlines()[-1].startswith("total,all,1.0,")
    assert json.loads(Path("s.json").read_text())["rows"][-1]["J&F-Mean"] == 1.0
    Path("pred/two/00001.png").unlink()
    assert main(evaluation) == 1
    assert "two: 1 of 4 frames missing: 00001" in capsys.readouterr().err


def test_davis_failing_clip_ends_with_one_and_names_it(
    davis_like: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    (davis_like / "Annotations/480p/one/00000.png").write_bytes(b"no picture")
    assert main(["davis", "davis", "--split", "2017/tiny", "-o", "pred"]) == 1
    text, error = capsys.readouterr()
    assert text.startswith("one: failed: ")
    assert "two: done" in text
    assert error == "persam-video: error: 1 of 2 clips failed: one\n"
    assert sorted(path.name for path in Path("pred").iterdir()) == ["config.toml", "two"]


def test_davis_source_settings_have_no_place(
    davis_like: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    Path("half.toml").write_text("[source]\nstride = 2\n")
    command = ["davis", "davis", "--split", "2017/tiny", "-o", "pred", "--config", "half.toml"]
    assert main(command) == 2
    assert "[source]" in capsys.readouterr().err


def test_eval_perseg_and_split_exclude_each_other(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("Images", "Annotations"):
        Path("perseg", kind, "hat").mkdir(parents=True)
    for stem in ("00", "01"):
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(f"perseg/Images/hat/{stem}.jpg")
        write_label_map(Path(f"perseg/Annotations/hat/{stem}.png"), make_labels())
    assert main(["eval", "perseg/Annotations", "perseg", "--perseg"]) == 0
    assert "total" in capsys.readouterr().out
    assert main(["eval", "perseg/Annotations", "perseg"]) == 2
    assert main(["eval", "perseg/Annotations", "perseg", "--perseg", "--split", "a/b"]) == 2


def test_bench_times_every_stage(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    command = ["bench", "clip", "--mask", "mask.png", "--rounds", "2", "--json", "b.json"]
    assert main([*command, "--frames", "3"]) == 0
    report = json.loads(Path("b.json").read_text())
    assert report["objects"] == 2
    assert report["size_wh"] == [48, 32]
    for stage in ("decode", "encode", "track", "write", "latency", "queued_latency"):
        spread = report[stage]
        assert spread["samples"] == 2 * 3  # two of the five frames after the first warm up
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert list(report["parts"]) == ["other"]  # the fake tracker has none of the parts
    assert report["ratio"] == pytest.approx(report["track"]["median"] / report["encode"]["median"])
    assert len(report["round_ratios"]) == len(report["round_fps"]) == 2
    assert report["fps"] == pytest.approx(sum(report["round_fps"]) / 2)
    assert report["slowest"] in ("decode", "encode", "follow", "write")
    assert report["score"] is None
    text = capsys.readouterr().out
    assert "track / encode: " in text
    assert "end to end: " in text
    assert main([*command, "--end", "3"]) == 1
    assert "at least 4 frames" in capsys.readouterr().err
    assert main([*command, "--frames", "0"]) == 2
    assert main([*command, "--reference-image", "mask.png"]) == 2
    assert main([*command, "--merge-objects"]) == 2


def test_bench_truth_scores_the_timed_masks(
    clip: Path, fake: Callable[..., list[Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    Path("truth").mkdir()
    wrong = make_labels()
    wrong[wrong == 2] = 0
    for index in range(FRAMES):
        write_label_map(Path(f"truth/shot{index}.png"), make_labels() if index < 3 else wrong)
    command = ["bench", "clip", "--mask", "mask.png", "--frames", "2", "--rounds", "1"]
    assert main([*command, "--truth", "truth", "--json", "b.json"]) == 0
    score = json.loads(Path("b.json").read_text())["score"]
    # four tracked frames: object 1 right in all, object 2 in two of them
    assert score == {"j": 0.75, "f": 0.75, "frames": 4}
    assert "J&F 75.0" in capsys.readouterr().out
    assert main([*command, "--truth", "truth", "--merge-objects", "--json", "b.json"]) == 0
    merged = json.loads(Path("b.json").read_text())["score"]
    assert merged["j"] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    Path("truth/shot4.png").unlink()
    assert main([*command, "--truth", "truth"]) == 1
    assert "shot4.png: there is no such label map" in capsys.readouterr().err
    assert main([*command, "--truth", "clip/none"]) == 1
    assert "no ground truth" in capsys.readouterr().err


def test_info_source_tells_what_track_would_get(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "clip", "--stride", "2", "--max-size", "24"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["size"] == "24 x 16"
    assert rows["rate"] == "12 frames/s (12)"
    assert rows["frames"] == "3 (0.25 s)"
    assert rows["sound"] == "no"


def test_info_installation_names_versions_device_and_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSAM_CACHE", str(tmp_path))
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for expected in (r"torch +\d+\.", r"device +(cpu|cuda|mps)", rf"cache +{tmp_path}"):
        assert re.search(expected, text)
    assert text.count("missing") == 4


def test_weights_empty_cache_is_listed_and_a_named_model_fails_to_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSAM_CACHE", str(tmp_path))
    assert main(["weights", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["vit_t", "vit_b", "vit_l", "vit_h"]
    assert main(["weights", "path", "vit_b"]) == 0
    assert Path(capsys.readouterr().out.strip()).parent == tmp_path
    assert main(["weights", "verify"]) == 0
    assert main(["weights", "verify", "vit_b"]) == 1
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"half")
    assert main(["weights", "verify"]) == 1
    assert "vit_b is damaged" in capsys.readouterr().err
    assert main(["weights", "path", "vit_x"]) == 1
    assert "legal: vit_t, vit_b, vit_l, vit_h" in capsys.readouterr().err
