"""How the camera has moved from one frame to the next, by corners off the objects.

Corners are followed forwards and back, each way from where the last motion takes them: in a fast
pan many are far off their old places, and end on something else. Where few come back, they are
followed from where they were, too, as the pan may have stopped. What is drawn over the picture (a
station's logo, a score, a watermark) stays where it is while the camera moves, and when everything
else is blurred it is all that can still be followed; so what has stayed in a pan is left out for a
while. For the same reason a sudden change of the motion takes many corners to be believed.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from persam_video.types import BoolArray, UInt8Array

LEAST_SHARE = 0.3
"""Of the corners found there and back, those that move with one homography if there is one."""
_CORNERS, _FEWEST = 120, 12
"""Corners followed, and the fewest that have to move with a homography: between pictures of two
places five or six of those found there and back do by chance."""
_BETWEEN, _OFF_HOMOGRAPHY, _OFF_BACK = 7.0, 1.5, 1.0
"""Pixels between two corners at least, that one may be off the homography by, and off its place
after it was followed there and back."""
_MANY = 0.5
"""Share of the corners found there and back with which they need not be followed once more."""
_SINGULAR = 1e-6
"""Determinant below which a homography cannot be undone."""
_QUALITY = 0.005
"""Of the best corner's strength, that one has at least."""
_FLOW_RADIUS, _PYRAMID = 10, 4
"""Pixels around a corner by which it is found again, and how often the picture is halved."""
_STAYED, _MOVED = 0.5, 3.0
"""Pixels that a corner of something drawn over the picture moves by at most, and the camera there
at least, so that it is seen."""
_SURPRISE, _SURE = 10.0, 0.5
"""Pixels by which a motion differs from the one before, per frame since, and the share of all
corners that has to move with it when it differs by more: a few can be of an object whose mask lacks
them, where the background is too blurred to be followed."""
_DRAWN_RADIUS, _DRAWN_FRAMES = 10, 100
"""Pixels around such a corner that are left out, and for how many frames."""


class Camera:
    """Follows the camera of one clip.

    Args:
        scale: What lengths in pixels are multiplied by.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.forget()

    def forget(self) -> None:
        """Another scene begins."""
        self._latest: NDArray[np.float64] = np.eye(3)
        self._since = math.inf  # frames since that motion; at any time before the first one
        self._drawn: UInt8Array = np.zeros((0, 0), np.uint8)  # frames for which it is left out
        self.same_place = False
        """Whether the latest two frames show one place, even if the motion is not believed."""

    def motion(
        self, before: UInt8Array, after: UInt8Array, background: BoolArray
    ) -> tuple[NDArray[np.float64] | None, float]:
        """Compare two frames.

        Args:
            before: (h, w) uint8 grey values.
            after: (h, w) uint8 of the next frame.
            background: (h, w) bool, what is no object in the first one.

        Returns:
            (3, 3) homography from the first to the next, and the share of the corners found there
            and back that move with it. None and 0 where the two do not show the same place from
            nearby, or too few corners say so.
        """
        self._since += 1
        self.same_place = False
        if self._drawn.shape != before.shape:
            self._drawn = np.zeros(before.shape, np.uint8)
        free = background & (self._drawn == 0)
        corners = cv2.goodFeaturesToTrack(
            before, _CORNERS, _QUALITY, self._scale * _BETWEEN, mask=free.astype(np.uint8)
        )
        self._drawn -= self._drawn > 0
        if corners is None or len(corners) < _FEWEST:
            return None, 0.0
        tried = len(corners)
        kept, found = _there_and_back(before, after, corners, self._latest, self._scale)
        if len(kept) < _MANY * tried:
            others = _there_and_back(before, after, corners, np.eye(3), self._scale)
            kept, found = max((kept, found), others, key=lambda pair: len(pair[0]))
        moved, share = self._fitted(kept, found, tried)
        if moved is not None:
            self._latest, self._since = moved, 0
            self._leave_out(kept, found)
        return moved, share

    def _fitted(
        self, corners: NDArray[Any], found: NDArray[Any], tried: int
    ) -> tuple[NDArray[np.float64] | None, float]:
        """The homography from (n, 1, 2) corners to where they are found, see ``motion``."""
        if len(corners) < _FEWEST:
            return None, 0.0
        moved, fits = cv2.findHomography(corners, found, cv2.RANSAC, self._scale * _OFF_HOMOGRAPHY)
        if moved is None or abs(np.linalg.det(moved)) < _SINGULAR:
            return None, 0.0
        share, count = float(fits.mean()), int(fits.sum())
        self.same_place = share >= LEAST_SHARE and count >= _FEWEST
        expected = cv2.perspectiveTransform(corners, self._latest)
        surprise = np.median(np.linalg.norm(found - expected, axis=2)[fits > 0])
        sudden = surprise > self._scale * _SURPRISE * self._since
        if not self.same_place or (sudden and count < _SURE * tried):
            return None, 0.0
        return np.asarray(moved, np.float64), share

    def _leave_out(self, corners: NDArray[Any], found: NDArray[Any]) -> None:
        """Remember which corners have stayed where they were although the camera has moved."""
        by_camera = cv2.perspectiveTransform(corners, self._latest)
        stayed = np.linalg.norm(found - corners, axis=2) < self._scale * _STAYED
        moved = np.linalg.norm(by_camera - corners, axis=2) > self._scale * _MOVED
        for x, y in corners[stayed & moved].round().astype(int).tolist():
            radius = max(1, round(self._scale * _DRAWN_RADIUS))
            cv2.circle(self._drawn, (x, y), radius, _DRAWN_FRAMES, cv2.FILLED)


def _there_and_back(
    before: UInt8Array,
    after: UInt8Array,
    corners: NDArray[Any],
    expected: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of (n, 1, 2) corners those that are found again, and where; arguments as for ``_flow``."""
    back = np.asarray(np.linalg.inv(expected), np.float64)
    found, seen = _flow(before, after, corners, expected, scale)
    again, seen_again = _flow(after, before, found, back, scale)
    off = np.linalg.norm(again - corners, axis=2)[:, 0]
    kept = seen & seen_again & (off < scale * _OFF_BACK)
    return corners[kept], found[kept]


def _flow(
    before: UInt8Array,
    after: UInt8Array,
    points: NDArray[Any],
    expected: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[Any], BoolArray]:
    """Where (n, 1, 2) points of one picture are in the next, and which of the n are found.

    By the pyramid of Lucas and Kanade's method (Bouguet, 2000), from where a (3, 3) homography is
    expected to take them.
    """
    side = 2 * round(scale * _FLOW_RADIUS) + 1
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        points,
        cv2.perspectiveTransform(points, expected),
        winSize=(side, side),
        maxLevel=_PYRAMID,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return found, status[:, 0] > 0
