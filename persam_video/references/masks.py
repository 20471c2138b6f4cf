"""Mask files of every common kind as one label map.

    palette PNG          its indices are object ids, 255 is void
    grey picture, .npy   ids as well; with one value beside 0 that is 1 or white: one object
    .json                COCO run-length masks, see ``coco.py``

A file with one object takes any id the user names; a file with several brings its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persam_video.errors import DatasetError, PromptError
from persam_video.label_maps import read_label_map
from persam_video.references.coco import read_coco_masks
from persam_video.references.mask_values import labels_from_grey, labels_from_ids
from persam_video.types import (
    VOID,
    BoolArray,
    UInt8Array,
    check_label_map,
    check_object_id,
    object_ids,
)

_log = logging.getLogger(__name__)

_SPEC = re.compile(r"(?P<id>[+-]?\d{1,9})=(?P<path>.+)", re.ASCII | re.DOTALL)


def read_masks(specs: Sequence[str], *, threshold: float | None = None) -> UInt8Array:
    """(H, W) uint8 label map of one or several mask files.

    Where objects of different files overlap, the later one is kept, and a warning with the number
    of pixels is logged. Void stays where no object is.

    Args:
        specs: ``PATH`` or ``ID=PATH`` each; the id is for a file with one object.
        threshold: See ``read_mask_file``.

    Raises:
        PromptError: As ``read_mask_file`` does; no file is given, two files hold the same object,
            sizes differ, or later objects hide one completely.
    """
    if not specs:
        raise PromptError("a mask file is expected, got none")
    label_maps: list[UInt8Array] = []
    owners: dict[int, Path] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        path = Path(match["path"] if match else spec)
        object_id = int(match["id"]) if match else None
        label_maps.append(read_mask_file(path, object_id=object_id, threshold=threshold))
        for found in object_ids(label_maps[-1]):
            if found in owners:
                raise PromptError(
                    f"both {owners[found]} and {path} hold object {found}; legal are different "
                    f"objects (a mask with one object takes another id: {found + 1}={path})"
                )
            owners[found] = path
    return _merged(label_maps)


def read_mask_file(
    path: Path, *, object_id: int | None = None, threshold: float | None = None
) -> UInt8Array:
    """(H, W) uint8 label map of one mask file.

    Args:
        path: A palette or grey picture, an ``.npy`` array, or COCO run-length ``.json``.
        object_id: Id for the object of a file that holds only one; default: its own value, or 1
            when that is 1 or white.
        threshold: Makes a grey picture or array one object, values >= threshold, in the file's own
            units: 0..255 for 8 bits, often 0..1 for floats.

    Raises:
        PromptError: The file is missing, unreadable, coloured, soft-edged without a threshold,
            empty, covers everything, holds illegal ids, or holds several objects although
            ``object_id`` is given. The message says what was found and what is legal.
    """
    if object_id is not None:
        check_object_id(object_id)
    try:
        labels = _renamed(_read(path, threshold), object_id)
        check_label_map(labels)
    except (PromptError, DatasetError) as error:
        raise PromptError(error.message, path=path) from error
    return labels


def check_mask_size(labels: UInt8Array, size_hw: tuple[int, int], *, of: str = "the frame") -> None:
    """Raise PromptError unless a (H, W) label map has the size of the picture it is meant for."""
    if labels.shape != size_hw:
        raise PromptError(
            f"the mask has {labels.shape[1]} x {labels.shape[0]} pixels (width x height), {of} has "
            f"{size_hw[1]} x {size_hw[0]}; legal is the same size"
        )


def _read(path: Path, threshold: float | None) -> UInt8Array:
    if not path.is_file():
        raise PromptError("there is no such mask file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return labels_from_grey(_read_npy(path), threshold)
    if suffix != ".json":
        values, are_ids = _read_picture(path)
        if not are_ids:
            return labels_from_grey(values, threshold)
    if threshold is not None:
        raise PromptError(f"a threshold ({threshold:g}) is for grey masks; this file holds ids")
    return _painted(read_coco_masks(path)) if suffix == ".json" else labels_from_ids(values)


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PromptError(f"not a readable .npy file: {error}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0:
        shape = values.shape if isinstance(values, np.ndarray) else type(values).__name__
        raise PromptError(f"a mask array must be (H, W), got {shape}")
    return values


def _read_picture(path: Path) -> tuple[NDArray[Any], bool]:
    """(H, W) values of a picture, and whether they are palette indices, that is ids for sure."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            if image.format == "PNG" and mode in ("1", "L", "P"):
                return read_label_map(path), mode == "P"
            if mode == "P" or len(image.getbands()) == 1:
                return np.asarray(image), mode == "P"
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PromptError(f"not a readable picture: {error}") from error
    if (rgba[..., 3] != 255).any():
        raise PromptError(
            "a mask picture must be opaque, got transparent pixels; legal is a palette PNG, or a "
            "grey picture with the object in white"
        )
    if (rgba[..., :3] != rgba[..., :1]).any():
        colors = len(np.unique(rgba.reshape(-1, 4), axis=0))
        raise PromptError(
            f"a mask picture must be palette or grey, got {colors} colours (mode {mode}), and "
            "colours are not object ids; save it as palette PNG (ids as indices) or one grey "
            "picture per object"
        )
    return rgba[..., 0], False


def _renamed(labels: UInt8Array, object_id: int | None) -> UInt8Array:
    ids = object_ids(labels)
    if object_id is None or not ids:
        return labels
    if len(ids) > 1:
        raise PromptError(
            f"id {object_id} is given for a file with several objects, {list(ids)}; legal is a "
            "file with one, or no id"
        )
    return np.where(labels == ids[0], np.uint8(object_id), labels)


def _merged(label_maps: Sequence[UInt8Array]) -> UInt8Array:
    """Label maps of different objects as one; void stays where no object is."""
    height, width = label_maps[0].shape
    for labels in label_maps[1:]:
        check_mask_size(labels, (height, width), of="the first mask")
    merged = _painted([(i, labels == i) for labels in label_maps for i in object_ids(labels)])
    for labels in label_maps:
        merged[(labels == VOID) & (merged == 0)] = VOID
    return merged


def _painted(objects: Sequence[tuple[int, BoolArray]]) -> UInt8Array:
    """(H, W) uint8 label map of one or more (H, W) bool masks of one size, later ones on top."""
    labels = np.zeros(objects[0][1].shape, np.uint8)
    for object_id, mask in objects:
        for other in object_ids(labels[mask]):
            _log.warning(
                "objects %d and %d overlap in %d pixels; these go to object %d, the later one",
                other,
                object_id,
                np.count_nonzero(labels[mask] == other),
                object_id,
            )
        labels[mask] = object_id
    left = object_ids(labels)
    for object_id, mask in objects:
        if object_id not in left:
            why = "later masks hide it completely" if mask.any() else "its mask is empty"
            raise PromptError(f"object {object_id} has no pixel: {why}")
    return labels
