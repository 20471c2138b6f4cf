"""Masks that are on disk already, ours or anybody's, paired with the frames of their source.

Three forms are read: a folder of label maps (``<stem>.png``), a folder of masks per object
(``<id>/<stem>.png``), and the COCO JSON of ``RleJsonSink``. Files are read when their frame comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from persam_video.errors import DatasetError
from persam_video.label_maps import read_label_map
from persam_video.rle import Rle, decode_rle
from persam_video.types import (
    MAX_OBJECT_ID,
    VOID,
    Frame,
    ObjectState,
    TrackResult,
    UInt8Array,
    object_ids,
)


@dataclass(frozen=True, slots=True)
class StoredMask:
    """The masks of one frame.

    Attributes:
        labels: (H, W) uint8 label map, VOID removed.
        scores: Object id -> confidence in [0, 1] as stored; empty where the form has none.
        states: Object id -> state, same keys as ``scores``.
    """

    labels: UInt8Array
    scores: Mapping[int, float]
    states: Mapping[int, ObjectState]


@dataclass(frozen=True, slots=True)
class StoredMasks:
    """The masks of a clip, one per frame, in the frames' order.

    Attributes:
        path: Folder or file they were found in.
        names: Stem of each frame's mask, all different.
        load: Reads the mask of one of the ``names``. Raises DatasetError.
    """

    path: Path
    names: tuple[str, ...]
    load: Callable[[str], StoredMask]


def open_masks(path: Path) -> StoredMasks:
    """Find the masks of a clip in a folder of PNG files or in a COCO JSON file.

    A PNG that holds only 0 and 255 is taken as the mask of object 1; elsewhere 255 is DAVIS void
    and becomes background.

    Raises:
        DatasetError: Nothing is there, or it has none of the three forms.
    """
    if path.is_file():
        return _open_json(path)
    if not path.is_dir():
        raise DatasetError("there are no masks here: neither a folder nor a file", path=path)
    files = {file.stem: file for file in _png_files(path)}
    if files:
        return StoredMasks(path, tuple(files), lambda name: _load_labels(files[name]))
    folders = {
        int(folder.name): folder
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder.name.isdecimal() and 1 <= int(folder.name) <= MAX_OBJECT_ID
    }
    stems = {file.stem for folder in folders.values() for file in _png_files(folder)}
    if not stems:
        raise DatasetError(
            "no masks in this folder; legal are <stem>.png label maps, or <id>/<stem>.png with one "
            f"mask per object, ids 1 to {MAX_OBJECT_ID}",
            path=path,
        )
    names = tuple(sorted(stems, key=_natural_key))
    return StoredMasks(path, names, lambda name: _load_objects(folders, name))


def pair_masks(
    frames: Iterable[Frame], masks: StoredMasks, frame_count: int | None = None
) -> Iterator[tuple[Frame, TrackResult]]:
    """Each frame with its mask, as a tracker would have given it.

    Masks are found by the frame's stem if the first frame's mask has it, else by order. An object
    whose mask is empty is lost from the frame after its first one; scores that are not stored are
    1, and 0 when lost.

    Args:
        frames: Frames of the source, in order.
        masks: Masks on disk.
        frame_count: Number of frames that will come if it is known, so that a wrong number of
            masks is told before the first one.

    Raises:
        DatasetError: A frame has no mask, masks are left over, or a mask is damaged or of another
            size than its frame.
    """
    stems = frozenset(masks.names)
    by_stem: bool | None = None
    known: set[int] = set()
    position = 0
    for position, frame in enumerate(frames, 1):
        if by_stem is None:
            by_stem = frame.stem in stems
            if not by_stem and frame_count is not None and frame_count != len(masks.names):
                raise _wrong_count(masks, f"{frame_count} frames")
        name = frame.stem if by_stem else _name_by_order(position, masks)
        if name not in stems:
            raise DatasetError(
                f"there is no mask {name!r}, though the first frame has one of its name; there "
                f"are {len(stems)}, {masks.names[0]!r} to {masks.names[-1]!r}",
                path=masks.path,
                frame_index=frame.index,
            )
        mask = masks.load(name)
        if mask.labels.shape != frame.size_hw:
            raise DatasetError(
                f"mask {name!r} is {mask.labels.shape[1]}x{mask.labels.shape[0]}, its frame "
                f"{frame.size_hw[1]}x{frame.size_hw[0]}; both must be equal (frames can be made "
                "smaller when the source is opened)",
                path=masks.path,
                frame_index=frame.index,
            )
        known.update(object_ids(mask.labels))
        yield frame, _result(frame, mask, known)
    if by_stem is False and position < len(masks.names):
        raise _wrong_count(masks, f"{position} frames")


def _name_by_order(position: int, masks: StoredMasks) -> str:
    if position > len(masks.names):
        raise _wrong_count(masks, f"at least {position} frames")
    return masks.names[position - 1]


def _wrong_count(masks: StoredMasks, frames: str) -> DatasetError:
    return DatasetError(
        f"{len(masks.names)} masks for {frames}; as their names are not those of the frames, each "
        "frame needs exactly one",
        path=masks.path,
    )


def _result(frame: Frame, mask: StoredMask, known: set[int]) -> TrackResult:
    visible = set(object_ids(mask.labels))
    # A stored result names all its objects; without one, an object seen before is lost.
    ids = visible if mask.states else visible | known
    scores = {n: float(n in visible) for n in ids} | dict(mask.scores)
    states = {n: ObjectState.TRACKED if n in visible else ObjectState.LOST for n in ids}
    return TrackResult(frame.index, frame.time_s, mask.labels, scores, states | dict(mask.states))


def _load_labels(file: Path) -> StoredMask:
    labels = read_label_map(file)
    values = set(np.unique(labels).tolist())
    # DAVIS-2016 and most tools write a single object as 255.
    labels[labels == VOID] = 1 if values <= {0, VOID} else 0
    return StoredMask(labels, {}, {})


def _load_objects(folders: Mapping[int, Path], name: str) -> StoredMask:
    labels: UInt8Array | None = None
    for object_id, folder in folders.items():
        file = folder / f"{name}.png"
        if not file.is_file():
            continue  # an object that was added later has no masks before
        mask = read_label_map(file) > 0
        if labels is None:
            labels = np.zeros(mask.shape, np.uint8)
        if labels.shape != mask.shape:
            raise DatasetError(
                f"this mask is {mask.shape[1]}x{mask.shape[0]}, other objects' masks of the frame "
                f"are {labels.shape[1]}x{labels.shape[0]}",
                path=file,
            )
        labels[mask & (labels == 0)] = object_id
    assert labels is not None  # the name came from one of the folders
    return StoredMask(labels, {}, {})


def _open_json(path: Path) -> StoredMasks:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        images = sorted(data["images"], key=lambda image: int(image["id"]))
        annotations: dict[int, list[Any]] = {int(image["id"]): [] for image in images}
        for annotation in data["annotations"]:
            annotations[int(annotation["image_id"])].append(annotation)
        by_name = {PurePath(image["file_name"]).stem: image for image in images}
    except OSError as error:
        raise DatasetError(f"cannot read the masks: {error.strerror}", path=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"no COCO JSON with images and annotations: {type(error).__name__} {error}", path=path
        ) from error
    if len(by_name) < len(images) or not images:
        raise DatasetError(
            f"{len(images)} images with {len(by_name)} different names; each frame needs its own",
            path=path,
        )
    return StoredMasks(
        path,
        tuple(by_name),
        lambda name: _load_image(path, by_name[name], annotations[int(by_name[name]["id"])]),
    )


def _load_image(path: Path, image: Any, annotations: list[Any]) -> StoredMask:
    try:
        size_hw = (int(image["height"]), int(image["width"]))
        labels = np.zeros(size_hw, np.uint8)
        scores: dict[int, float] = {}
        for annotation in annotations:
            object_id = _checked_id(int(annotation["category_id"]))
            mask = decode_rle(Rle.from_json(annotation["segmentation"]))
            if mask.shape != size_hw:
                raise ValueError(f"a mask of {mask.shape} in an image of {size_hw}")
            labels[mask & (labels == 0)] = object_id
        states: dict[int, ObjectState] = {}
        for entry in image.get("objects", ()):
            object_id = _checked_id(int(entry["id"]))
            scores[object_id] = float(entry["score"])
            states[object_id] = ObjectState(entry["state"])
    except (ValueError, KeyError, TypeError, AttributeError, DatasetError) as error:
        raise DatasetError(
            f"image {image.get('file_name')!r} is malformed: {type(error).__name__} {error}",
            path=path,
        ) from error
    return StoredMask(labels, scores, states)


def _checked_id(object_id: int) -> int:
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise ValueError(f"object ids run from 1 to {MAX_OBJECT_ID}, got {object_id}")
    return object_id


def _png_files(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() == ".png" and p.name[0] != ".")
    return sorted(found, key=lambda file: _natural_key(file.stem))


def _natural_key(name: str) -> list[tuple[str, int]]:
    """Order in which 2 comes before 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]
