"""J, F and IoU of masks, as the official evaluation code of DAVIS-2017 defines them.

Sources of the definitions: F. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for
Video Object Segmentation", CVPR 2016 (J, F, recall, decay); D. Martin's ``seg2bmap`` of the
Berkeley segmentation benchmark (boundary map); https://github.com/davisvideochallenge
/davis2017-evaluation (tolerance, disk, corner cases).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from persam_video.errors import PersamError
from persam_video.geometry import mask_to_box
from persam_video.types import BoolArray, UInt8Array

BOUNDARY_TOLERANCE = 0.008
"""Distance within which two boundaries match, as a share of the picture's diagonal."""

RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per-frame values of one object in three figures.

    Attributes:
        mean: Mean over the frames, in [0, 1].
        recall: Share of the frames whose value exceeds 0.5, in [0, 1].
        decay: Mean of the first quarter of the frames minus that of the last, in [-1, 1].
    """

    mean: float
    recall: float
    decay: float


def region_similarity(
    prediction: BoolArray, truth: BoolArray, void: BoolArray | None = None
) -> float:
    """J: intersection over union of two (H, W) bool masks, in [0, 1]; two empty masks give 1.

    Args:
        prediction: The mask to judge.
        truth: The mask that is right.
        void: (H, W) bool, pixels that do not count, or None.

    Raises:
        PersamError: The shapes differ.
    """
    prediction, truth = _without_void(prediction, truth, void)
    intersection, union = intersection_and_union(prediction, truth)
    return intersection / union if union else 1.0


def intersection_and_union(prediction: BoolArray, truth: BoolArray) -> tuple[int, int]:
    """Number of pixels in both, and in either, of two (H, W) bool masks."""
    return int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth))


def contour_accuracy(
    prediction: BoolArray,
    truth: BoolArray,
    void: BoolArray | None = None,
    tolerance: float = BOUNDARY_TOLERANCE,
) -> float:
    """F: harmonic mean of boundary precision and boundary recall, in [0, 1].

    A boundary pixel counts as matched when the other boundary comes within
    ``ceil(tolerance * diagonal)`` pixels (Euclidean) of it. Two masks without a boundary (both
    empty, or both covering everything) give 1; only one without gives 0.

    Args:
        prediction: (H, W) bool, the mask to judge.
        truth: (H, W) bool, the mask that is right.
        void: (H, W) bool, pixels emptied in both masks before the boundaries are drawn, or None.
        tolerance: Share of the picture's diagonal, > 0.

    Raises:
        PersamError: The shapes differ.
    """
    prediction, truth = _without_void(prediction, truth, void)
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    predicted, true = boundary_map(prediction), boundary_map(truth)
    box = mask_to_box((predicted | true).view(np.bool_))
    if box is None:
        return 1.0
    # Nothing outside the boundaries' common box can match: a small object costs little.
    x1, y1, x2, y2 = box.astype(int).tolist()
    predicted, true = (np.ascontiguousarray(b[y1:y2, x1:x2]) for b in (predicted, true))
    count_predicted, count_true = cv2.countNonZero(predicted), cv2.countNonZero(true)
    if count_predicted == 0 or count_true == 0:
        return 0.0
    precision = _count_within(predicted, true, radius) / count_predicted
    recall = _count_within(true, predicted, radius) / count_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_map(mask: BoolArray) -> UInt8Array:
    """One-pixel-wide boundary of a (H, W) bool mask as (H, W) uint8 of 0 and 1.

    A pixel is on it when its right, lower or lower-right neighbour differs, so the boundary lies
    half a pixel towards the origin. The picture's edge is no boundary; its last row looks to the
    right only, its last column downwards only.
    """
    pixels = mask.view(np.uint8) if mask.dtype == np.bool_ else (mask != 0).view(np.uint8)
    boundary = np.zeros_like(pixels)
    here, right, below, across = pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1], pixels[1:, 1:]
    boundary[:-1, :-1] = (here ^ right) | (here ^ below) | (here ^ across)
    boundary[-1, :-1] = pixels[-1, :-1] ^ pixels[-1, 1:]
    boundary[:-1, -1] = pixels[:-1, -1] ^ pixels[1:, -1]
    return boundary


def summarize(values: NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay of (T,) per-frame values, as the official code's ``db_statistics``.

    A NaN is left out of the mean and of the decay, but counts as a frame below the threshold in
    the recall. The four bins of the decay share their border frames. The official code keeps the
    bins' borders in 8 bits and gives a wrong decay beyond 256 frames; this one does not.

    Raises:
        PersamError: There is no value.
    """
    if values.ndim != 1 or values.size == 0:
        raise PersamError(f"per-frame values must be (T,) with T >= 1, got shape {values.shape}")
    borders = np.round(np.linspace(1, len(values), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[borders[0] : borders[1] + 1], values[borders[-2] : borders[-1] + 1]
    return Statistics(
        mean=_mean_without_nan(values),
        recall=float(np.mean(values > RECALL_THRESHOLD)),
        decay=_mean_without_nan(first) - _mean_without_nan(last),
    )


def average(statistics: list[Statistics]) -> Statistics:
    """Mean of every figure over several objects; the official total of a data set.

    Raises:
        PersamError: The list is empty.
    """
    if not statistics:
        raise PersamError("an average needs the statistics of one object at least, got none")
    table = np.array([[s.mean, s.recall, s.decay] for s in statistics])
    mean, recall, decay = table.mean(axis=0).tolist()
    return Statistics(mean, recall, decay)


def _mean_without_nan(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _without_void(
    prediction: BoolArray, truth: BoolArray, void: BoolArray | None
) -> tuple[BoolArray, BoolArray]:
    masks = [prediction, truth] if void is None else [prediction, truth, void]
    if prediction.ndim != 2 or len({mask.shape for mask in masks}) > 1:
        shapes = ", ".join(str(mask.shape) for mask in masks)
        raise PersamError(f"masks to compare must be (H, W) of one size, got {shapes}")
    prediction, truth = prediction.astype(np.bool_, copy=False), truth.astype(np.bool_, copy=False)
    if void is None:
        return prediction, truth
    return prediction & ~void, truth & ~void


def _count_within(boundary: UInt8Array, other: UInt8Array, radius: int) -> int:
    """How many pixels of ``boundary`` have a pixel of ``other`` within ``radius``, both 0 and 1."""
    reach = cv2.dilate(other, _disk(radius))
    return int(cv2.countNonZero(cv2.bitwise_and(reach, boundary)))


def _disk(radius: int) -> UInt8Array:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
