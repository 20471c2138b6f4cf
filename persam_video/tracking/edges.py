"""Masks drawn along the edges of the picture, pixel by pixel.

The network's cells are some pixels wide, so the outline of a mask wavers about the object's. Near
it the picture itself tells on which side a pixel is: the guided filter (He, Sun and Tang, "Guided
Image Filtering", 2010) takes a mask for a straight function of the brightness in every small window
and averages what the windows around a pixel say. So an edge of the picture draws the outline to it,
a little farther with every pass.

Where the windows show no edge that the mask could follow, all that is left of the filter is a blur,
which makes round things smaller; and what is thinner than the windows, a rope, a spoke or the gap
between two legs, would be averaged away. There the mask stays as the network has it, and so does a
mask of which the filter leaves little.

Several objects are one mask to begin with, so that where two touch the background gains nothing
from their sharing a pixel; between them they compete for it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from persam_video.references.masks import check_mask_size
from persam_video.types import VOID, BoolArray, Float32Array, UInt8Array, object_ids

_RADIUS = 4 / 854
"""From a window's middle to its side, as a share of the picture's longer side: four pixels at 480p,
one cell and a half of the masks."""
_SMALL_RADIUS = 2
"""The same in pixels of the smaller picture that the filter is made in."""
_EPSILON = 1e-4
"""Variance of brightness in [0, 1] below which a window counts as flat."""
_EXPLAINED = 0.1
"""Share of the mask's variance that brightness has to explain in the windows around a pixel."""
_LEAST = 0.75
"""Share of an object's pixels that has to be left. Of right masks a sixth goes at most; a ball as
small as the windows, on something that shades off, could go altogether."""


def along_edges(labels: UInt8Array, image_rgb: UInt8Array, passes: int) -> UInt8Array:
    """Move the outlines of objects to the edges of the picture that are near them.

    Args:
        labels: (H, W) uint8 label map.
        image_rgb: (H, W, 3) uint8 RGB picture that it belongs to.
        passes: How often; each reaches at most two radii of a window farther. 0 = leave it be.

    Returns:
        (H, W) uint8 label map, which is ``labels`` itself where there is nothing to do. Every
        object is still there, and void stays void.

    Raises:
        PromptError: Map and picture differ in size.
    """
    check_mask_size(labels, (image_rgb.shape[0], image_rgb.shape[1]), of="its picture")
    radius = max(1, round(_RADIUS * max(labels.shape)))
    # All is done where something is: in a large picture the rest takes longer than the objects.
    everywhere = _around(labels, 4 * radius)
    before, picture = labels[everywhere], image_rgb[everywhere]
    ids = object_ids(before)
    if passes < 1 or not ids:
        return labels
    masks = {object_id: (before == object_id).view(np.uint8) for object_id in ids}
    places = {object_id: _around(mask, 4 * radius) for object_id, mask in masks.items()}
    void = before == VOID
    spared = void | _thin_parts((before == 0).view(np.uint8), radius)
    for object_id, place in places.items():
        spared[place] |= _thin_parts(masks[object_id][place], radius)
    whole, each = _Filter(picture, radius), {}
    if len(ids) > 1:  # a single one has no rival
        each = {i: _Filter(picture[place], radius) for i, place in places.items()}
    after = before
    for _ in range(passes):
        drawn = _competed(after, places, each) if each else np.full(after.shape, ids[0], np.uint8)
        drawn *= whole.filtered((after > 0) & ~void) > 0.5
        after = _laid_over(drawn, before, spared)
    after = _laid_over(_without_specks(after, ids), before, spared)
    for object_id, mask in masks.items():
        if np.count_nonzero(after == object_id) < _LEAST * np.count_nonzero(mask):
            after[mask > 0] = object_id
    refined = labels.copy()
    refined[everywhere] = after
    return refined


def _competed(
    labels: UInt8Array, places: dict[int, tuple[slice, slice]], filters: dict[int, _Filter]
) -> UInt8Array:
    """(h, w) uint8, of each pixel the object whose filtered mask is the largest there."""
    winners = np.zeros(labels.shape, np.uint8)
    largest = np.zeros(labels.shape, np.float32)
    for object_id, place in places.items():
        share, most = filters[object_id].filtered(labels[place] == object_id), largest[place]
        np.copyto(winners[place], object_id, where=share > most)
        np.maximum(most, share, out=most)
    return winners


def _without_specks(labels: UInt8Array, ids: tuple[int, ...]) -> UInt8Array:
    """(h, w) uint8, each pixel goes with most of the nine around it, if these are of one label."""
    smooth = labels.copy()
    for label in (0, *ids):
        most = cv2.medianBlur((labels == label).view(np.uint8), 3)
        cv2.copyTo(np.full_like(labels, label), most, smooth)
    return smooth


def _laid_over(labels: UInt8Array, others: UInt8Array, where: BoolArray) -> UInt8Array:
    """The first label map, changed to the other one in some places."""
    cv2.copyTo(others, where.view(np.uint8), labels)
    return labels


class _Filter:
    """The guided filter of a picture, or of the part of it around an object.

    What the windows say varies slowly, so it is found out in a smaller picture, in windows of two
    pixels' radius, and only applied to this one (He and Sun, "Fast Guided Filter", 2015).

    Args:
        image_rgb: (h, w, 3) uint8 RGB.
        radius: Of the windows, in its pixels.
    """

    def __init__(self, image_rgb: UInt8Array, radius: int) -> None:
        gray = np.asarray(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), np.float32)
        self._guide: Float32Array = gray / np.float32(255)
        step = max(1, radius // _SMALL_RADIUS)
        self._radius = round(radius / step)
        self._size_wh = tuple(-(-length // step) for length in gray.shape[::-1])
        self._small = self._reduced(self._guide)
        self._mean = self._averaged(self._small)
        self._spread = self._averaged(self._small**2) - self._mean**2 + _EPSILON

    def filtered(self, inside: BoolArray) -> Float32Array:
        """(h, w) bool mask -> (h, w) float32 in about [0, 1], its share of each pixel."""
        mask = inside.astype(np.float32)
        small = self._reduced(mask)
        mean = self._averaged(small)
        covariance = self._averaged(self._small * small) - self._mean * mean
        slope = covariance / self._spread
        offset = mean - slope * self._mean
        explained = self._averaged(slope * covariance)
        untold = explained <= _EXPLAINED * self._averaged(mean - mean**2)
        filtered = self._enlarged(self._averaged(slope))
        cv2.multiply(filtered, self._guide, filtered)
        cv2.add(filtered, self._enlarged(self._averaged(offset)), filtered)
        cv2.copyTo(mask, self._enlarged(untold.view(np.uint8), cv2.INTER_NEAREST), filtered)
        return filtered

    def _reduced(self, pixels: Float32Array) -> Float32Array:
        return np.asarray(cv2.resize(pixels, self._size_wh, interpolation=cv2.INTER_AREA))

    def _enlarged(self, small: NDArray[Any], method: int = cv2.INTER_LINEAR) -> NDArray[Any]:
        return np.asarray(cv2.resize(small, self._guide.shape[::-1], interpolation=method))

    def _averaged(self, pixels: NDArray[Any]) -> Float32Array:
        side = 2 * self._radius + 1
        return np.asarray(cv2.blur(pixels, (side, side)), np.float32)


def _around(mask: UInt8Array, margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is not 0 and a margin around it."""
    left, top, width, height = cv2.boundingRect(mask)
    rows = slice(max(0, top - margin), top + height + margin)
    return rows, slice(max(0, left - margin), left + width + margin)


def _thin_parts(mask: UInt8Array, radius: int) -> BoolArray:
    """(h, w) uint8 0 or 1 -> (h, w) bool, its parts that no disk of that radius fits into.

    Corners are such parts, too; no farther than half of a radius from a disk, they do not count.
    """
    shallow, inside = _distance(mask) <= radius, mask.view(np.bool_)
    if shallow.all():
        return inside
    beyond = _distance(shallow.view(np.uint8)) - radius
    far = inside & (beyond > radius / 2)
    if not far.any():
        return far
    parts = cv2.connectedComponents((inside & (beyond > 0)).view(np.uint8))[1]
    long = np.zeros(parts.max() + 1, np.bool_)
    long[parts[far]] = True
    thin: BoolArray = np.take(long, np.asarray(parts, np.intp))
    return thin


def _distance(mask: UInt8Array) -> Float32Array:
    """(h, w) float32, pixels to the nearest one that is 0; without any, more than any radius."""
    return np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32)
