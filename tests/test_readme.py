"""What README.md shows is run: its Python, its command lines, its list of public names.

The files that it names (clip.mp4, dog.png, DAVIS/, ...) are tiny ones made here.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fake_tracker import FakeTracker
from PIL import Image

import persam_video
import persam_video.sam.models
import persam_video.tracking.tracker
from persam_video.cli.main import build_parser, main
from persam_video.config import EncoderConfig
from persam_video.label_maps import read_label_map, write_label_map
from persam_video.sam.models import load_sam
from persam_video.sinks import OverlayVideoSink
from persam_video.sources import open_source
from persam_video.tracking.tracker import Tracker
from persam_video.types import Frame, TrackResult

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIZE_HW = (120, 160)
FRAMES = 7
INPUT_SIZE = 256  # of the network: a sixteenth of the work

SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(match, comments=True)
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for match in re.findall(r"persam-video (.*)", block)
]
NOT_RUN = {
    "rtsp://camera.example/front": "needs a network",
    "vit_b": "fetches 375 MB",
    "export": "needs weights and minutes; see test_export.py",
}


def labels_at(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    labels = np.zeros(SIZE_HW, np.uint8)
    for object_id, (x1, y1, x2, y2) in enumerate(boxes, 1):
        labels[y1:y2, x1:x2] = object_id
    return labels


def picture(index: int) -> np.ndarray:
    """A bright disc that drifts, and a dark square, over a slanted grey."""
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    image = np.repeat(((rows + columns) // 3 + 40)[..., None], 3, axis=2).astype(np.uint8)
    cv2.circle(image, (116 + 2 * index, 78), 24, (250, 210, 60), -1)
    cv2.rectangle(image, (24, 44), (54, 74), (20, 30, 90), -1)
    return image


DISC, SQUARE, BOTTOM = (92, 54, 141, 103), (24, 44, 55, 75), (60, 106, 80, 116)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with every file that the README names, and a camera."""
    frames = [Frame(i, i / 25, picture(i)) for i in range(FRAMES)]
    davis = tmp_path / "DAVIS"
    folders = [tmp_path / "frames", davis / "JPEGImages/480p/bear", davis / "Annotations/480p/bear"]
    for folder in folders:
        folder.mkdir(parents=True)
    with OverlayVideoSink(tmp_path / "clip.mp4", None, fill_alpha=0.0) as video:
        for frame in frames:
            empty = np.zeros(SIZE_HW, np.uint8)
            video.write(frame, TrackResult(frame.index, frame.time_s, empty, {}, {}))
            for folder in folders[:2]:
                Image.fromarray(frame.image_rgb).save(folder / f"{frame.index:05d}.jpg")
            write_label_map(folders[2] / f"{frame.index:05d}.png", labels_at(DISC, SQUARE))
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/val.txt").write_text("bear\n", encoding="ascii")
    Image.fromarray(picture(3)).save(tmp_path / "dog.jpg")
    write_label_map(tmp_path / "first.png", labels_at(DISC, SQUARE))
    for name, box in (
        *(("dog", DISC), ("dog4", DISC), ("dog_mask", DISC)),
        *(("hat", SQUARE), ("ball", BOTTOM)),
    ):
        write_label_map(tmp_path / f"{name}.png", labels_at(box))
    monkeypatch.chdir(tmp_path)
    install_camera(monkeypatch)
    return tmp_path


def install_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera on which Ctrl-C is pressed after some frames."""
    shown = iter(picture(i)[..., ::-1].copy() for i in range(FRAMES))

    def retrieve() -> tuple[bool, np.ndarray]:
        image = next(shown, None)
        if image is None:
            raise KeyboardInterrupt
        return True, image

    camera = SimpleNamespace(
        isOpened=lambda: True,
        get=lambda _: 25.0,
        grab=lambda: True,
        retrieve=retrieve,
        release=lambda: None,
    )
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: camera)


@cache
def small_sam() -> tuple[object, object]:
    return load_sam(EncoderConfig(device="cpu", input_size=INPUT_SIZE), progress=False)


@pytest.fixture
def real_weights(vit_t_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real network at a small input size, loaded once for all tests."""

    def load(config: EncoderConfig, *, progress: bool = True) -> tuple[object, object]:
        assert config.model == "vit_t"
        return small_sam()

    monkeypatch.setattr(persam_video.tracking.tracker, "load_sam", load)
    monkeypatch.setattr(persam_video.sam.models, "load_sam", load)


def run_snippet(wanted: str) -> dict[str, object]:
    """Execute the one snippet that holds this text; its names afterwards."""
    (code,) = (snippet for snippet in SNIPPETS if wanted in snippet)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.needs_weights
@pytest.mark.usefixtures("real_weights")
def test_snippet_davis_clip_writes_label_maps_named_as_its_frames(workplace: Path) -> None:
    names = run_snippet("DAVIS")
    written = sorted((workplace / "pred/bear").glob("*.png"))
    assert [path.stem for path in written] == [f"{i:05d}" for i in range(FRAMES)]
    assert names["summary"].frames == FRAMES
    truth = labels_at(DISC, SQUARE)
    np.testing.assert_array_equal(read_label_map(written[0]), truth)
    assert (read_label_map(written[1])[truth == 1] == 1).mean() > 0.6


@pytest.mark.needs_weights
@pytest.mark.usefixtures("real_weights")
def test_snippet_video_file_writes_overlay_of_every_frame(workplace: Path) -> None:
    run_snippet("OverlayVideoSink")
    with open_source(workplace / "overlay.mp4") as overlay, open_source("clip.mp4") as clip:
        changes = [
            float(np.abs(drawn.image_rgb.astype(int) - plain.image_rgb).mean())
            for drawn, plain in zip(overlay, clip, strict=True)
        ]
    assert len(changes) == FRAMES
    assert min(changes) > 1


@pytest.mark.needs_weights
@pytest.mark.usefixtures("real_weights", "workplace")
def test_snippet_webcam_shows_frames_until_q(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 3 else -1)
    result = run_snippet("camera:0")["result"]
    assert [image.shape for image in shown] == [(*SIZE_HW, 3)] * 3
    assert result.frame_index == 3


@pytest.mark.needs_weights
@pytest.mark.usefixtures("real_weights", "workplace")
def test_snippet_several_objects_removes_and_adds_one(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_snippet("tracker.add")["result"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == FRAMES
    assert "{1: " in lines[4] and "{2: " in lines[5]
    assert result.object_ids == (2, 3)


@pytest.mark.needs_weights
@pytest.mark.usefixtures("real_weights", "workplace")
def test_snippet_own_encoder_sees_each_picture_once() -> None:
    names = run_snippet("RememberingEncoder")
    assert len(names["remembering"].seen) == FRAMES
    assert names["tracker"].encoder is names["remembering"]


def test_snippets_are_the_five_that_tests_run() -> None:
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_line_is_understood(arguments: list[str]) -> None:
    assert callable(build_parser().parse_args(arguments).execute)


def test_command_lines_run_in_order_of_the_readme(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERSAM_CACHE", str(workplace / "cache"))
    monkeypatch.setattr(Tracker, "from_config", lambda config, progress=True: FakeTracker())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=(workplace / "clip.mp4").open("rb")))
    for arguments in COMMANDS:
        if NOT_RUN.keys().isdisjoint(arguments):
            expected = 130 if "camera:0" in arguments else 0
            assert main(arguments) == expected, (arguments, capsys.readouterr().err)
    sys.stdin.buffer.close()
    made = ("out/masks/00006.png", "cutouts/masks.json", "first.jpg", "webcam/overlay.mp4")
    made += ("found/masks/00000.png", "scores.csv", "scores.json", "side.mp4", "sheet.jpg")
    assert [name for name in made if not (workplace / name).is_file()] == []


def test_public_names_are_those_of_the_readme() -> None:
    section = README.split("### Public names")[1].split("\n#")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")]
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted(persam_video.__all__)
    assert sorted(persam_video.__all__) == persam_video.__all__


def test_public_names_are_all_there_and_listed() -> None:
    for name in persam_video.__all__:
        assert getattr(persam_video, name) is not None
    assert set(persam_video.__all__) <= set(dir(persam_video))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        persam_video.nothing  # noqa: B018 (the access is the test)


def test_import_of_the_package_does_not_import_torch_or_video_libraries() -> None:
    heavy = "{'torch', 'cv2', 'av', 'PIL', 'scipy', 'onnx'}"
    code = f"import sys, persam_video; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_links_and_pictures_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`(tools/[\w.]+)`", README)
    local = [target for target in targets if "://" not in target]
    assert "docs/demo_contact_sheet.jpg" in local
    assert [target for target in local if not (ROOT / target).is_file()] == []


@pytest.mark.parametrize("name", ["demo_contact_sheet.jpg", "demo_failures.jpg"])
def test_pictures_of_the_demo_are_small(name: str) -> None:
    assert (ROOT / "docs" / name).stat().st_size < 200_000
