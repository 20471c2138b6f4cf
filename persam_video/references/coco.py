"""Masks of one picture from COCO run-length JSON.

Three forms are read: one mask (``{"size", "counts"}``), a list of masks or annotations, and a whole
file ``{"images", "annotations"}`` of which the first picture is taken. ``category_id`` is the
object id, as the RLE sink of this package writes it; without it the masks count 1, 2, 3, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persam_video.errors import DatasetError, PromptError
from persam_video.rle import Rle, decode_rle
from persam_video.types import BoolArray, check_object_id


def read_coco_masks(path: Path) -> list[tuple[int, BoolArray]]:
    """Object ids and their (H, W) bool masks in the order of the file, all of one size.

    Raises:
        PromptError: The file cannot be read, has another form, holds polygons, an id twice or an
            illegal one, masks of several sizes or pictures, or none at all.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"not a readable JSON file: {error}") from error
    objects: dict[int, BoolArray] = {}
    for position, entry in enumerate(_entries(data), start=1):
        object_id = _object_id(entry, position)
        if object_id in objects:
            raise PromptError(
                f"two masks with category_id {object_id}, which is the object id here; legal is "
                "one mask per object"
            )
        objects[object_id] = _mask(entry, position)
    if not objects:
        raise PromptError("no mask in this file; legal is one or more COCO RLE masks")
    if len(shapes := sorted({mask.shape for mask in objects.values()})) > 1:
        raise PromptError(f"masks of several sizes (height, width): {shapes}; legal is one")
    return list(objects.items())


def _entries(data: object) -> list[Any]:
    """The masks or annotations of one picture."""
    if isinstance(data, Mapping) and "annotations" in data:
        annotations, images = data["annotations"], data.get("images")
        if not isinstance(annotations, list):
            raise PromptError(f'"annotations" must be a list, got {_short(annotations)}')
        if isinstance(images, list) and images and isinstance(images[0], Mapping):
            first = images[0].get("id")
            return [a for a in annotations if isinstance(a, Mapping) and a.get("image_id") == first]
        return _of_one_picture(annotations)
    if isinstance(data, list):
        return _of_one_picture(data)
    return [data]


def _of_one_picture(entries: list[Any]) -> list[Any]:
    pictures = {repr(e["image_id"]) for e in entries if isinstance(e, Mapping) and "image_id" in e}
    if len(pictures) > 1:
        raise PromptError(
            f"annotations of several pictures, image_id {', '.join(sorted(pictures)[:10])}; legal "
            'is one picture, or a file whose "images" tells the first'
        )
    return entries


def _object_id(entry: object, position: int) -> int:
    value = entry.get("category_id", position) if isinstance(entry, Mapping) else position
    if not isinstance(value, int) or isinstance(value, bool):
        raise PromptError(f"mask {position}: category_id must be an object id, got {value!r}")
    check_object_id(value)
    return value


def _mask(entry: object, position: int) -> BoolArray:
    code = (
        entry["segmentation"] if isinstance(entry, Mapping) and "segmentation" in entry else entry
    )
    if isinstance(code, list):
        raise PromptError(
            f"mask {position} is a polygon; legal is run-length code "
            '{"size": [h, w], "counts": ...} (pycocotools: annToRLE)'
        )
    try:
        return decode_rle(Rle.from_json(code))
    except DatasetError as error:
        raise PromptError(f"mask {position}: {error.message}") from error


def _short(value: object) -> str:
    return repr(value)[:80]
