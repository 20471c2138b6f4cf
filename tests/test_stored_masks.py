"""Masks on disk, ours and others', paired with frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sink_samples import LOST, TRACKED, make_frame, make_result, write_frames

from persam_video.errors import DatasetError
from persam_video.label_maps import write_label_map
from persam_video.sinks import (
    ObjectPngSink,
    PalettePngSink,
    RleJsonSink,
    Sink,
    open_masks,
    pair_masks,
)
from persam_video.types import UInt8Array


@pytest.mark.parametrize(
    ("make", "output"), [(PalettePngSink, "m"), (ObjectPngSink, "o"), (RleJsonSink, "r.json")]
)
def test_stored_masks_of_our_own_sinks_come_back(
    tmp_path: Path, make: Callable[[Path], Sink], output: str
) -> None:
    with make(tmp_path / output) as sink:
        write_frames(sink, 12)
    pairs = list(pair_masks(map(make_frame, range(3, 12)), open_masks(tmp_path / output)))
    assert [frame.index for frame, _ in pairs] == list(range(3, 12))
    for frame, result in pairs:
        expected = make_result(frame.index)
        assert np.array_equal(result.labels, expected.labels)
        assert (result.frame_index, result.time_s) == (frame.index, frame.time_s)
        if make is RleJsonSink:
            assert (result.scores, result.states) == (expected.scores, expected.states)
        elif frame.index > 3:
            assert result.states[3] is (LOST if frame.index % 2 else TRACKED)
            assert result.scores[3] == float(frame.index % 2 == 0)


def store_maps(folder: Path, maps: dict[str, UInt8Array]) -> Path:
    folder.mkdir()
    for name, labels in maps.items():
        write_label_map(folder / f"{name}.png", labels)
    return folder


def test_stored_masks_of_other_names_are_paired_in_natural_order(tmp_path: Path) -> None:
    folder = store_maps(tmp_path / "m", {f"mask {n}": make_result(n).labels for n in (10, 2, 0)})
    pairs = pair_masks([make_frame(n) for n in (5, 6, 7)], open_masks(folder), frame_count=3)
    for (_, result), expected in zip(pairs, (0, 2, 10), strict=True):
        assert np.array_equal(result.labels, make_result(expected).labels)


def test_stored_masks_of_0_and_255_are_one_object_else_255_is_void(tmp_path: Path) -> None:
    binary = make_result(0).mask(1) * np.uint8(255)
    folder = store_maps(tmp_path / "m", {"00000": binary, "00001": np.maximum(binary, 2)})
    (_, first), (_, second) = pair_masks(map(make_frame, range(2)), open_masks(folder))
    assert np.unique(first.labels).tolist() == [0, 1]
    assert np.unique(second.labels).tolist() == [0, 2]


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("told", [True, False])
def test_stored_masks_in_another_number_than_the_frames_are_refused(
    tmp_path: Path, frames: int, told: bool
) -> None:
    folder = store_maps(tmp_path / "m", {f"m{n}": make_result(n).labels for n in range(3)})
    pairs = pair_masks(map(make_frame, range(frames)), open_masks(folder), frames if told else None)
    with pytest.raises(DatasetError, match=f"3 masks for .*{frames} frames"):
        if told:
            next(pairs)
        list(pairs)


def test_stored_masks_without_the_one_of_a_frame_name_it(tmp_path: Path) -> None:
    folder = store_maps(tmp_path / "m", {f"0000{n}": make_result(n).labels for n in (0, 2)})
    with pytest.raises(DatasetError, match="no mask '00001'") as caught:
        list(pair_masks(map(make_frame, range(3)), open_masks(folder)))
    assert caught.value.frame_index == 1


def test_stored_masks_of_another_size_say_both_sizes(tmp_path: Path) -> None:
    folder = store_maps(tmp_path / "m", {"00000": np.zeros((24, 32), np.uint8)})
    with pytest.raises(DatasetError, match="'00000' is 32x24, its frame 64x48"):
        list(pair_masks([make_frame(0)], open_masks(folder)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "neither a folder nor a file"),
        ("empty folder", "no masks in this folder"),
        ("no json", "no COCO JSON"),
        ("other json", "no COCO JSON.*images"),
        ("orphan", "no COCO JSON"),
        ("no images", "0 images"),
        ("same names", "2 images with 1 different names"),
    ],
)
def test_stored_masks_that_are_none_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "masks"
    image = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}
    texts = {
        "no json": "{",
        "other json": '{"info": 1}',
        "orphan": json.dumps({"images": [image], "annotations": [{"image_id": 7}]}),
        "no images": '{"images": [], "annotations": []}',
        "same names": json.dumps({"images": [image, image | {"id": 2}], "annotations": []}),
    }
    if kind == "empty folder":
        path.mkdir()
    elif kind in texts:
        path.write_text(texts[kind])
    with pytest.raises(DatasetError, match=message):
        open_masks(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 255}, "ids run from 1 to 254, got 255"),
        (
            {"segmentation": {"size": [2, 2], "counts": "4"}},
            "mask of .2, 2. in an image of .48, 64.",
        ),
        ({"segmentation": [[1, 2, 3, 4]]}, '"size" and "counts"'),
    ],
)
def test_stored_json_with_a_malformed_annotation_names_its_image(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "masks.json"
    with RleJsonSink(path) as sink:
        write_frames(sink, 1)
    data = json.loads(path.read_text())
    data["annotations"][0].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=rf"image '00000.jpg' is malformed: .*{message}"):
        list(pair_masks([make_frame(0)], open_masks(path)))


def test_stored_masks_per_object_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for object_id, size in ((1, (4, 4)), (2, (4, 5))):
        (tmp_path / str(object_id)).mkdir()
        write_label_map(tmp_path / str(object_id) / "00000.png", np.ones(size, np.uint8))
    with pytest.raises(DatasetError, match=r"this mask is 5x4, other objects' masks .* are 4x4"):
        open_masks(tmp_path).load("00000")
