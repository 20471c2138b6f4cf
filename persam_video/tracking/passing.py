"""What an object has left behind: it has moved on by half its length, a part of the mask stayed.

What comes out from behind an object has not been seen before, and may look more like it than like
the background that is known: a mask can keep it when the object moves on. Something that belongs to
the object does not stay where it is for that long with nothing that ties it to the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from persam_video.geometry import box_iou
from persam_video.types import VOID, BoolArray, Float32Array, UInt8Array

_LENGTH_DECAY = 0.95
"""Of an object's length that is partly hidden, per frame."""
_PASSED = 0.5
"""Of its length that an object moves by until it has left something behind."""
_LEAST_SHIFT = 0.99
"""Pixels that a corner of the picture moves by before anything is carried."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """An object's main part in pixels, and the ways that its edges have gone.

    Attributes:
        low: (2,) float64, left and top.
        high: (2,) float64, right and bottom, outside.
        length: (2,) float64, by x and y, largest of late.
        ways: (4,) float64, of left, top, right and bottom, relative to the background.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    length: NDArray[np.float64]
    ways: NDArray[np.float64]


class Passing:
    """Tells for one clip which pixels of its objects' masks the objects have passed."""

    def __init__(self) -> None:
        self._start((0, 0))

    def _start(self, shape: tuple[int, ...]) -> None:
        self._extents: dict[int, _Extent] = {}
        self._owner: UInt8Array = np.zeros(shape, np.uint8)
        self._since: Float32Array = np.zeros((*shape, 4), np.float32)
        self._uncarried = np.eye(3)

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
            (h, w) bool, parts of masks that have stayed while the rest of their object moved on.
        """
        if camera is None or self._owner.shape != labels.shape:
            self._start(labels.shape)
            camera = np.eye(3)
        self._carry(camera)
        passed, before, self._extents = np.zeros(labels.shape, np.bool_), self._extents, {}
        # Of each label up to the largest the rectangle that it is in, if it is anywhere.
        for object_id, place in enumerate(ndimage.find_objects(labels), 1):
            if place is None or object_id == VOID:
                continue
            mask = labels[place] == object_id
            _, parts, boxes, _ = cv2.connectedComponentsWithStats(
                mask.astype(np.uint8), connectivity=4
            )
            boxes[:, :2] += place[1].start, place[0].start
            now, main, goes_on = _extent(boxes, labels.shape, before.get(object_id), camera)
            apart = np.where(parts == main, 0, parts)
            since = self._since[place]
            old = (self._owner[place] == object_id) & stayed[place] & goes_on
            since[mask & ~old] = now.ways
            gone = now.ways.astype(np.float32) - since
            # Only where both edges have gone the same way has the object itself.
            low, high = gone[..., :2], gone[..., 2:]
            moved = np.where(low * high > 0, np.abs(low + high) / 2, 0)
            # A part of one colour that goes along seems to stay until it has gone its own length.
            enough = np.maximum(_PASSED * now.length, boxes[:, 2:4])[apart]
            passed[place] |= _mostly(np.asarray((moved >= enough).any(axis=2)), apart)
            self._extents[object_id] = now
        self._owner = np.where(labels == VOID, 0, labels).astype(np.uint8)
        return passed

    def _carry(self, camera: NDArray[np.float64]) -> None:
        """Lay what is known of each pixel over the new frame.

        By whole pixels, as numbers of objects cannot be mixed; what is less waits, so that it is
        not lost frame by frame.
        """
        height, width = self._owner.shape
        self._uncarried = camera @ self._uncarried
        middle = np.array([[width / 2, height / 2]])
        rest = _shifts(self._uncarried, middle)[0]
        rest -= np.rint(rest)
        whole = _translation(-rest) @ self._uncarried
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
        if np.abs(_shifts(whole, corners)).max() < _LEAST_SHIFT:
            return
        size, nearest = (width, height), cv2.INTER_NEAREST
        owner = cv2.warpPerspective(self._owner, whole, size, flags=nearest)
        since = cv2.warpPerspective(self._since, whole, size, flags=nearest)
        self._owner, self._since = np.asarray(owner, np.uint8), np.asarray(since, np.float32)
        self._uncarried = _translation(rest)


def _extent(
    boxes: NDArray[np.int32],
    shape: tuple[int, ...],
    before: _Extent | None,
    camera: NDArray[np.float64],
) -> tuple[_Extent, int, bool]:
    """Of an object's main part, after where that was a frame before.

    Args:
        boxes: (n, 5) left, top, width, height and area of its numbered parts; 0 is none.
        shape: (h, w) of the picture.
        before: A frame before, or None.
        camera: (3, 3) homography from there to this one.

    Returns:
        The extent, the main part's number, and whether it goes on from the one before: not where
        its main part has gone.
    """
    lows, lengths = boxes[1:, :2].astype(np.float64), boxes[1:, 2:4].astype(np.float64)
    best = boxes[1:, cv2.CC_STAT_AREA].astype(np.float64)
    by_camera = np.zeros(2)
    if before is not None:
        by_camera = _shifts(camera, (before.low + before.high)[None] / 2)[0]
        # The part that was the main one, even where another one is the largest now.
        expected = np.concatenate([before.low + by_camera, before.high + by_camera])
        corners = np.concatenate([lows, lows + lengths], axis=1)
        alike = np.array([box_iou(part, expected) for part in corners])
        before, best = (before, alike) if alike.any() else (None, best)
    at = int(best.argmax())
    low, length = lows[at], lengths[at]
    high = low + length
    if before is None:
        return _Extent(low, high, length, np.zeros(4)), at + 1, False
    steps = np.stack([low - before.low, high - before.high]) - by_camera
    # An edge that the picture cuts off does not move with the object.
    inside = np.stack([low > 0, high < shape[::-1]])
    steps[~inside] = steps[::-1][~inside]
    steps[:, ~inside.any(axis=0)] = 0
    length = np.maximum(length, _LENGTH_DECAY * before.length)
    return _Extent(low, high, length, before.ways + steps.ravel()), at + 1, True


def _mostly(mask: BoolArray, parts: NDArray[Any]) -> BoolArray:
    """(h, w) bool, of some numbered parts (0 is none) those that are mostly in a mask."""
    inside = np.bincount(parts[mask], minlength=parts.max() + 1)
    most = 2 * inside > np.bincount(parts.ravel())
    most[0] = False
    whole: BoolArray = most[parts]
    return whole


def _shifts(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x, y -> (n, 2) by how much they are moved."""
    moved = np.c_[points, np.ones(len(points))] @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:] - points)


def _translation(shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,) x, y -> (3, 3) homography."""
    matrix = np.eye(3)
    matrix[:2, 2] = shift
    return matrix
