"""Which part of a frame is encoded: what lies around the places where the objects are expected."""

from __future__ import annotations

import numpy as np
import torch

from persam_video.geometry import mask_to_box
from persam_video.tracking.objects import TrackedObject
from persam_video.types import BoolArray, Box, Embedding


def box_around(mask: BoolArray, padding: float) -> Box:
    """Box of a mask and what is around it.

    Args:
        mask: (H, W) bool.
        padding: In 128ths of the longer side of the picture.

    Returns:
        (4,) float32 x1, y1, x2, y2 in pixels, perhaps beyond the picture; None: the mask is empty.
    """
    return _padded(mask_to_box(mask), padding, max(mask.shape))


def box_ahead(
    objects: list[TrackedObject],
    frames: int,
    size_hw: tuple[int, int],
    input_size: int,
    padding: float,
) -> Box:
    """Box around the places where the objects will be so many frames later.

    Args:
        objects: All that are followed.
        frames: How many frames ahead.
        size_hw: Of the frames, in pixels.
        input_size: Of the embeddings; the objects' logits have a cell for 4 pixels of it.
        padding: As for ``box_around``.

    Returns:
        As ``box_around``; None while an object may be anywhere.
    """
    if not objects or _may_be_anywhere(objects):
        return None
    expected = [(obj.motion.moved(obj.logits, frames) > 0).numpy() for obj in objects]
    box = mask_to_box(np.logical_or.reduce(expected))
    if box is None:
        return None
    longest = max(size_hw)
    return _padded(box * (longest * 4 / input_size), padding, longest)


def shows_expected_places(objects: list[TrackedObject], embedding: Embedding) -> bool:
    """Whether the part of the frame that was encoded has every place where an object may be."""
    if embedding.window is None or not objects:
        return True
    if _may_be_anywhere(objects):
        return False
    outside = torch.ones(objects[0].logits.shape, dtype=torch.bool)
    outside[embedding.window.scaled(4).slices] = False
    rows, columns = (-(-length // 4) for length in embedding.input_hw)
    outside = outside[:rows, :columns]
    return not any(
        ((obj.expected_logits()[:rows, :columns] > 0) & outside).any() for obj in objects
    )


def _may_be_anywhere(objects: list[TrackedObject]) -> bool:
    return any(obj.frames_lost > 0 or obj.model is None for obj in objects)


def _padded(box_xyxy: Box, padding: float, longest: int) -> Box:
    if box_xyxy is None:
        return None
    pixels = padding / 128 * longest
    return box_xyxy + np.array([-pixels, -pixels, pixels, pixels], np.float32)
