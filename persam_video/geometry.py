"""Every change of coordinates: source pixels <-> network input, boxes, mask -> box.

Points and boxes are x right, y down. Boxes are half-open: (x2, y2) is the first pixel outside.
"""

from __future__ import annotations

import numpy as np

from persam_video.types import BoolArray, Float32Array, Window


def window_around(box_xyxy: Float32Array, side: int, size_hw: tuple[int, int]) -> Window:
    """The square of ``side`` pixels centred on a box, pushed and cut to lie inside a picture."""
    starts, lengths = [], []
    for low, high, length in zip(box_xyxy[:2], box_xyxy[2:], size_hw[::-1], strict=True):
        span = max(1, min(side, length))
        start = round((float(low) + float(high) - span) / 2)
        starts.append(max(0, min(start, length - span)))
        lengths.append(span)
    return Window(starts[0], starts[1], lengths[0], lengths[1])


def fit_longest_side(size_hw: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """Height and width scaled so that the longer one equals ``longest_side``, rounded half up.

    The rounding is that of segment_anything's ``ResizeLongestSide``, so that inputs agree.
    """
    height, width = size_hw
    scale = longest_side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def scale_points(
    points_xy: Float32Array, from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> Float32Array:
    """(..., 2) float32 points of a picture of ``from_hw`` in a picture of ``to_hw``."""
    factor = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]], np.float32)
    return np.asarray(points_xy, np.float32) * factor


def scale_box(
    box_xyxy: Float32Array, from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> Float32Array:
    """(4,) float32 box of a picture of ``from_hw`` in a picture of ``to_hw``."""
    return scale_points(box_xyxy.reshape(2, 2), from_hw, to_hw).reshape(4)


def box_to_sam(box_xyxy: Float32Array) -> Float32Array:
    """Half-open box (x2, y2 exclusive) -> SAM's convention (x2, y2 the last pixel inside).

    This is the one place where the +-1 lives.
    """
    x1, y1, x2, y2 = np.asarray(box_xyxy, np.float32).tolist()
    return np.array([x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)], np.float32)


def mask_to_box(mask: BoolArray) -> Float32Array | None:
    """Tight half-open box (4,) float32 of a (H, W) bool mask, or None for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def pad_box(box_xyxy: Float32Array, padding: float, size_hw: tuple[int, int]) -> Float32Array:
    """Box grown by ``padding`` pixels on every side, clipped to a picture of ``size_hw``."""
    x1, y1, x2, y2 = np.asarray(box_xyxy, np.float32).tolist()
    height, width = size_hw
    return np.array(
        [
            max(0.0, x1 - padding),
            max(0.0, y1 - padding),
            min(float(width), x2 + padding),
            min(float(height), y2 + padding),
        ],
        np.float32,
    )


def box_iou(a_xyxy: Float32Array, b_xyxy: Float32Array) -> float:
    """Intersection over union of two half-open boxes, in [0, 1]."""
    width = min(a_xyxy[2], b_xyxy[2]) - max(a_xyxy[0], b_xyxy[0])
    height = min(a_xyxy[3], b_xyxy[3]) - max(a_xyxy[1], b_xyxy[1])
    intersection = max(0.0, float(width)) * max(0.0, float(height))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a_xyxy, b_xyxy)]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0
