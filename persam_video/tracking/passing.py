"""Where an object cannot be any more: it has moved on by its own length, and the place stayed.

What comes out from behind an object has not been seen before, and may look more like it than like
the background that is known: a mask can keep it when the object moves on. But no point of a rigid
object is still under it when it has moved by as much as it is long.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from persam_video.types import VOID, BoolArray, Float32Array, UInt8Array, object_ids

_LENGTH_DECAY = 0.95
"""Of an object's length that is partly hidden, per frame."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """An object's largest part: edges and lengths by x and y, in pixels, and the way it has gone.

    Attributes:
        low: (2,) float64, left and top.
        high: (2,) float64, right and bottom, outside.
        length: (2,) float64, largest of late.
        travelled: (2,) float64, relative to the background.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    length: NDArray[np.float64]
    travelled: NDArray[np.float64]


class Passing:
    """Tells for one clip which pixels of its objects' masks the objects have passed."""

    def __init__(self) -> None:
        self._extents: dict[int, _Extent] = {}
        self._owner: UInt8Array = np.zeros((0, 0), np.uint8)
        self._since: Float32Array = np.zeros((0, 0, 2), np.float32)

    def learn(
        self, labels: UInt8Array, stayed: BoolArray, camera: NDArray[np.float64] | None
    ) -> BoolArray:
        """Take the masks of a new frame.

        Args:
            labels: (h, w) uint8 label map.
            stayed: (h, w) bool, where the frame looks as the one before, the camera's motion
                accounted for.
            camera: (3, 3) homography from the frame before to this one; None = another view.

        Returns:
            (h, w) bool, pixels of masks that have stayed while their object moved by its length.
        """
        if camera is None or self._owner.shape != labels.shape:
            self._extents = {}
            self._owner = np.zeros_like(labels)
            self._since = np.zeros((*labels.shape, 2), np.float32)
            camera = np.eye(3)
        size, nearest = labels.shape[::-1], cv2.INTER_NEAREST
        owner = cv2.warpPerspective(self._owner, camera, size, flags=nearest)
        since = cv2.warpPerspective(self._since, camera, size, flags=nearest)
        passed = np.zeros(labels.shape, np.bool_)
        extents, places = {}, ndimage.find_objects(labels)
        for object_id in object_ids(labels):
            place = places[object_id - 1]  # the rectangle that it is in
            mask = labels[place] == object_id
            before = self._extents.get(object_id)
            now = extents[object_id] = _extent(mask, place, labels.shape, before, camera)
            since[place][mask & ~((owner[place] == object_id) & stayed[place])] = now.travelled
            gone = np.abs(now.travelled.astype(np.float32) - since[place]) >= now.length
            passed[place] |= mask & (gone[..., 0] | gone[..., 1])
        self._extents, self._since = extents, np.asarray(since, np.float32)
        self._owner = np.where(labels == VOID, 0, labels).astype(np.uint8)
        return passed


def _extent(
    mask: BoolArray,
    place: tuple[slice, ...],
    shape: tuple[int, ...],
    before: _Extent | None,
    camera: NDArray[np.float64],
) -> _Extent:
    """Of an object's mask in its rectangle of a picture, after where it was a frame before."""
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    left, top, width, height, _ = boxes[1 + boxes[1:, cv2.CC_STAT_AREA].argmax()]
    low = np.array([place[1].start + left, place[0].start + top], np.float64)
    length = np.array([width, height], np.float64)
    high = low + length
    if before is None:
        return _Extent(low, high, length, np.zeros(2))
    middle = (before.low + before.high) / 2
    x, y, scale = camera @ [*middle, 1.0]
    by_camera = np.array([x, y]) / scale - middle
    steps = np.stack([low - before.low, high - before.high]) - by_camera
    # An edge that the picture cuts off does not move with the object; nor does one that is hidden.
    inside = np.stack([low > 0, high < shape[::-1]])
    steps[~inside] = steps[::-1][~inside]
    steps[:, ~inside.any(axis=0)] = 0
    together = np.where(np.abs(steps[0]) < np.abs(steps[1]), steps[0], steps[1])
    together[steps[0] * steps[1] <= 0] = 0
    length = np.maximum(length, _LENGTH_DECAY * before.length)
    return _Extent(low, high, length, before.travelled + together)
