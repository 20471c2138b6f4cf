"""The contract of every sink, and what the plain ones put into their files."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from sink_samples import SIZE_HW, make_frame, make_result, write_frames

from persam_video.errors import SinkError
from persam_video.label_maps import read_label_map
from persam_video.sinks import (
    ContactSheetSink,
    CutoutPngSink,
    MultiSink,
    ObjectPngSink,
    OverlayVideoSink,
    PalettePngSink,
    RleJsonSink,
    Sink,
)
from persam_video.types import Frame, TrackResult


def video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def whole_png_frames(folder: Path) -> int:
    files = sorted(folder.glob("*.png"))
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert image.size == SIZE_HW[::-1]
    return len(files)


def sheet_frames(path: Path) -> int:
    """Tiles of a contact sheet, counted by the caption strips' bright letters in each row."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    tile_height, tile_width = 300 + 26 + 6, 400 + 6
    rows, columns = pixels.shape[0] // tile_height, pixels.shape[1] // tile_width
    tiles = (
        pixels[6 + r * tile_height + 300 :, 6 + c * tile_width :][:26, :400]
        for r in range(rows)
        for c in range(columns)
    )
    return sum(1 for tile in tiles if tile.max() > 150)


@dataclass(frozen=True)
class Case:
    """One kind of sink: how it is made, and how many whole frames its output holds."""

    name: str
    make: Callable[..., Sink]
    output: str
    count: Callable[[Path], int]
    one_file: bool = True

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("palette", PalettePngSink, "masks", whole_png_frames, one_file=False),
    Case("objects", ObjectPngSink, "objects", lambda p: whole_png_frames(p / "3"), one_file=False),
    Case("cutout", CutoutPngSink, "cutout", whole_png_frames, one_file=False),
    Case(
        "video",
        lambda path, **options: OverlayVideoSink(path, Fraction(10), **options),
        "overlay.mp4",
        video_frames,
    ),
    Case("sheet", ContactSheetSink, "sheet.jpg", sheet_frames),
    Case("rle", RleJsonSink, "masks.json", lambda p: len(json.loads(p.read_text())["images"])),
]
every_sink = pytest.mark.parametrize("case", CASES, ids=str)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow: what a full disk does to every writer, C libraries included."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_sink
def test_sink_closed_leaves_every_frame_and_nothing_else(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / case.output
    with case.make(output) as sink:
        write_frames(sink, 7)
    assert case.count(output) == 7
    assert not [name for name in files_in(tmp_path) if "partial" in name]


@every_sink
def test_sink_closed_twice_changes_nothing_and_takes_no_more(case: Case, tmp_path: Path) -> None:
    output = tmp_path / case.output
    sink = case.make(output)
    write_frames(sink, 2)
    sink.close()
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    sink.close()
    with pytest.raises(SinkError, match="closed"):
        write_frames(sink, 1, start=2)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


@every_sink
def test_sink_without_frames_writes_no_file(case: Case, tmp_path: Path) -> None:
    with case.make(tmp_path / case.output):
        pass
    assert files_in(tmp_path) == []


@every_sink
def test_sink_with_existing_output_is_refused_unless_overwrite(case: Case, tmp_path: Path) -> None:
    output = tmp_path / case.output
    keepsake = output if case.one_file else output / "keepsake.txt"
    keepsake.parent.mkdir(exist_ok=True)
    keepsake.write_text("mine")
    with pytest.raises(SinkError, match="overwriting") as caught:
        case.make(output)
    assert caught.value.path == str(output)
    assert keepsake.read_text() == "mine"
    with case.make(output, overwrite=True) as sink:
        write_frames(sink, 3)
    assert case.count(output) == 3
    if not case.one_file:
        assert keepsake.read_text() == "mine"


@every_sink
def test_sink_on_a_full_disk_raises_and_leaves_nothing_half_written(
    case: Case, tmp_path: Path
) -> None:
    output = tmp_path / case.output
    sink = case.make(output)
    write_frames(sink, 3)
    with pytest.raises(SinkError, match="cannot write: ") as caught, full_disk():
        write_frames(sink, 3, start=3)
        sink.close()
    assert caught.value.path == str(output)
    sink.close()
    if case.one_file:
        assert files_in(tmp_path) == []
    else:
        assert case.count(output) == 3
        assert all(Path(name).stem in ("00000", "00001", "00002") for name in files_in(tmp_path))


@every_sink
def test_sink_that_fails_keeps_the_file_it_was_to_replace(case: Case, tmp_path: Path) -> None:
    output = tmp_path / case.output
    with case.make(output) as sink:
        write_frames(sink, 2)
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    sink = case.make(output, overwrite=True)
    with pytest.raises(SinkError), full_disk():
        write_frames(sink, 2)
        sink.close()
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


@every_sink
def test_sink_interrupted_by_ctrl_c_leaves_whole_files(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / case.output
    with pytest.raises(KeyboardInterrupt), case.make(output) as sink:
        write_frames(sink, 3)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(sink, "_write", interrupted)
        write_frames(sink, 1, start=3)
    assert case.count(output) == 3
    assert not [name for name in files_in(tmp_path) if "partial" in name]


@every_sink
def test_sink_below_a_file_or_on_a_read_only_disk_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SinkError, match="cannot write: ") as caught:
        case.make(tmp_path / "file" / "below" / case.output)
    assert caught.value.path == str(tmp_path / "file" / "below" / case.output)

    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(SinkError, match="Read-only file system"):
        case.make(tmp_path / case.output)


@every_sink
def test_sink_with_a_file_for_a_folder_or_the_reverse_is_refused(
    case: Case, tmp_path: Path
) -> None:
    output = tmp_path / case.output
    if case.one_file:
        output.mkdir()
    else:
        output.write_text("mine")
    with pytest.raises(SinkError, match="this is a f"):
        case.make(output, overwrite=True)


@every_sink
def test_sink_given_a_map_of_another_size_says_both_sizes(case: Case, tmp_path: Path) -> None:
    with (
        case.make(tmp_path / case.output) as sink,
        pytest.raises(SinkError, match="label map is 50x40, its frame 64x48") as caught,
    ):
        sink.write(make_frame(4), make_result(4, (40, 50)))
    assert caught.value.frame_index == 4


@pytest.mark.parametrize("case", [case for case in CASES if case.one_file], ids=str)
def test_sink_with_an_ending_it_cannot_write_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"must end in \.\w+.*, got '\.xyz'"):
        case.make(tmp_path / "out.xyz")


@pytest.mark.parametrize("case", [case for case in CASES if not case.one_file], ids=str)
def test_folder_sink_given_two_frames_of_one_name_refuses_the_second(
    case: Case, tmp_path: Path
) -> None:
    with (
        case.make(tmp_path / case.output) as sink,
        pytest.raises(SinkError, match="two frames are named 'cat'"),
    ):
        sink.write(make_frame(0, name="cat"), make_result(0))
        sink.write(make_frame(1, name="cat"), make_result(1))
    assert case.count(tmp_path / case.output) == 1


def test_multi_sink_when_one_fails_closes_all_others(tmp_path: Path) -> None:
    outputs = {case.name: tmp_path / case.name / case.output for case in CASES}
    sinks = [case.make(outputs[case.name]) for case in CASES]

    class Broken(RleJsonSink):
        def _write(self, frame: Frame, result: TrackResult) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def _finish(self) -> None:
            raise AssertionError("a sink that failed must not finish")

    with (
        pytest.raises(SinkError, match="No space left"),
        MultiSink([*sinks, Broken(tmp_path / "broken.json")]) as both,
    ):
        write_frames(both, 1)
    assert {case.name: case.count(outputs[case.name]) for case in CASES} == dict.fromkeys(
        outputs, 1
    )
    assert not (tmp_path / "broken.json").exists()


def test_multi_sink_when_closing_fails_closes_the_rest_and_notes_all(tmp_path: Path) -> None:
    class Stuck(RleJsonSink):
        def _finish(self) -> None:
            raise OSError(errno.EIO, f"{self.path.stem} is stuck")

    masks = PalettePngSink(tmp_path / "masks")
    rle = RleJsonSink(tmp_path / "rle.json")
    with (
        pytest.raises(SinkError, match="one is stuck") as caught,
        MultiSink([Stuck(tmp_path / "one.json"), masks, Stuck(tmp_path / "two.json"), rle]) as sink,
    ):
        write_frames(sink, 2)
    assert "two is stuck" in caught.value.__notes__[0]
    assert files_in(tmp_path) == ["masks/00000.png", "masks/00001.png", "rle.json"]


def test_palette_sink_names_files_after_the_source_and_keeps_indices(tmp_path: Path) -> None:
    with PalettePngSink(tmp_path / "masks") as sink:
        sink.write(make_frame(0, name="IMG_7"), make_result(0))
        sink.write(make_frame(12), make_result(12))
    assert files_in(tmp_path) == ["masks/00012.png", "masks/IMG_7.png"]
    assert np.array_equal(read_label_map(tmp_path / "masks/00012.png"), make_result(12).labels)


def test_object_sink_gives_a_lost_object_an_empty_mask(tmp_path: Path) -> None:
    with ObjectPngSink(tmp_path / "out") as sink:
        write_frames(sink, 2)
    with Image.open(tmp_path / "out/1/00001.png") as image:
        seen = np.asarray(image)
    assert np.array_equal(seen, make_result(1).mask(1) * np.uint8(255))
    with Image.open(tmp_path / "out/3/00001.png") as image:
        assert image.mode == "L"
        assert not np.asarray(image).any()


def test_cutout_sink_keeps_colour_inside_and_nothing_outside(tmp_path: Path) -> None:
    with (
        CutoutPngSink(tmp_path / "all") as both,
        CutoutPngSink(tmp_path / "each", per_object=True) as each,
    ):
        write_frames(both, 1)
        write_frames(each, 1)
    pixels = {name: np.asarray(Image.open(tmp_path / name)) for name in files_in(tmp_path)}
    assert sorted(pixels) == ["all/00000.png", "each/1/00000.png", "each/3/00000.png"]
    everything = pixels["all/00000.png"]
    inside = cv2.erode((make_result(0).labels > 0).astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert np.array_equal(everything[inside][:, :3], make_frame(0).image_rgb[inside])
    assert (everything[inside][:, 3] == 255).all()
    assert 0 < everything[10, 12, 3] < 255  # on the edge
    assert not everything[0:8].any()
    assert pixels["each/1/00000.png"][40, 45, 3] == 0
    assert pixels["each/3/00000.png"][40, 45, 3] == 255


# pycocotools' own decoder, used only here to compare, is not quite ready for numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_rle_sink_writes_coco_that_pycocotools_reads(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    with RleJsonSink(path) as sink:
        write_frames(sink, 3)
    data: dict[str, Any] = json.loads(path.read_text())
    assert [c["id"] for c in data["categories"]] == [1, 3]
    assert [(i["id"], i["width"], i["height"], i["frame_index"]) for i in data["images"]] == [
        *[(1, 64, 48, 0), (2, 64, 48, 1), (3, 64, 48, 2)]
    ]
    assert data["images"][1]["objects"][1] == {"id": 3, "score": 0.0, "state": "lost"}
    annotations = data["annotations"]
    assert [a["id"] for a in annotations] == [1, 2, 3, 4, 5]
    assert [(a["image_id"], a["category_id"]) for a in annotations] == [
        *[(1, 1), (1, 3), (2, 1), (3, 1), (3, 3)]
    ]
    for entry in annotations:
        mask = make_result(entry["image_id"] - 1).mask(entry["category_id"])
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), mask)
        assert entry["area"] == coco_mask.area(entry["segmentation"]) == mask.sum()
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()
        assert entry["score"] == {1: 0.75, 3: 0.5}[entry["category_id"]]
