"""What stands still: a picture of the background that moves along with the camera.

An object that folds, opens or turns looks unlike its reference, and then no model of its looks
finds all of it. But where a camera's motion is accounted for, a place that looks as it did a moment
ago is still background, and one that does not has been entered by something that moves: background
subtraction, with one adapting mean and spread per pixel (Wren et al., "Pfinder", 1997, section 3)
behind a homography between frames. What comes out from behind the object has not been seen before,
so nothing is said about it; and where places change far and wide (smoke, water, parallax, a crowd),
a change says nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persam_video.tracking.camera import LEAST_SHARE, Camera
from persam_video.tracking.grid import over_square
from persam_video.tracking.passing import Passing
from persam_video.types import BoolArray, Embedding, Float32Array, UInt8Array

_LONGEST = 512
"""``Background.longest`` for which lengths in pixels are given here and below; they go with it."""
_LIGHTNESS = 0.6
"""Weight of a difference in lightness against one in colour: a shadow is no object."""
_FROM_BYTES = np.array(
    [[_LIGHTNESS * 100 / 255, 0, 0, 0], [0, 1, 0, -128], [0, 0, 1, -128]], np.float32
)
"""CIELAB as OpenCV has it in bytes -> units, lightness weighted."""
_SUM = np.ones((1, 3), np.float32)
"""Of three colours, as a matrix."""
_NOISE = 3.0
"""CIELAB units; a pixel that differs by less spreads no further."""
_STILL, _CHANGING, _CHANGED = 1.5, 2.0, 5.0
"""Spreads by which a pixel differs: below the first it is the same to some degree, from the second
to the third it has changed more and more."""
_EDGE = 0.3, 0.6
"""Share of the largest difference nearby that is the blur of an edge, and that is not."""
_LEARNT = 0.5
"""Share of a new frame in the background's mean."""
_SPREAD_LEARNT = 0.2
"""Share of a new frame in its spread."""
_AROUND_MASK = 2
"""Pixels beside a mask that are not learnt as background, and inside it that may be background."""
_NEARBY = 40
"""Pixels around a mask in which changes of the background are counted."""
_FALSE_ALARMS = 0.01, 0.04
"""Share of changed background there up to which changes are believed, and from which not."""
_DISTRUST = 0.05
"""Share that a new background starts with: its first frames have to earn belief."""
_ALARMS_LEARNT = 0.3
"""Share of a new frame in the share of false alarms."""
_ALARM = 3.5
"""Spreads by which a background pixel differs that counts as a false alarm."""
_AS_FAR_AS = 12
"""Pixels that an object moves or grows by from one frame to the next."""
_STRANGE = 0.05, 0.15
"""Changed area farther off, in areas of the object, up to which changes are believed, and from
which not: it may be of the object, but is more than could be told from smoke."""
_ONE_PLANE = LEAST_SHARE, 0.6
"""Share of the corners, of those found there and back, that move with the homography at which it is
not believed, and is."""
_EDGE_RADIUS = 3
"""Pixels around one that are its nearby."""
_BLUR = 1.0
"""Pixels, standard deviation of the smoothing before and after the comparison."""
_FEWEST_PIXELS = 50
"""Background around the objects, in pixels, of which a share means something."""
_WHOLLY, _HALF = 252, 127
"""Of 255, what a pixel of a moved mask has more of when nearly all of it is inside, and half."""
_EVERY = 4
"""Of the rows and columns one in so many is enough for how much pixels usually differ."""
_THUMBNAIL = 32, 18
"""Width and height to which pictures are reduced where only their whole counts."""
_CUT = 3.0
"""Times that two pictures differ as much as the ones before did, from which on it is a cut. On real
clips without one, frames that no homography carries over reach 1.7 times."""
_CUT_NOISE = 0.5
"""CIELAB units; less than this a thumbnail is never taken to differ by."""
_CUT_LEARNT = 0.3
"""Share of a new frame in how much pictures differ."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """A frame as it is compared.

    Attributes:
        gray: (h, w) uint8.
        colours: (h, w, 3) float32, smoothed CIELAB, lightness weighted.
        thumbnail: The same, very small.
    """

    gray: UInt8Array
    colours: Float32Array
    thumbnail: Float32Array


@dataclass(frozen=True, slots=True)
class Change:
    """What the background says about a frame.

    Attributes:
        votes: (h, w) float32 in [-1, 1]: +1 where something has come, -1 where all is as it was, 0
            where nothing is known.
        empty: (h, w) float32 in [0, 1]: 1 where all is as it was when all objects were tracked
            and none of them was there, so that none that is lost is there now.
    """

    votes: Tensor
    empty: Tensor

    def without_what_has_come(self) -> Change:
        """As long as nobody knows which object it is."""
        return replace(self, votes=self.votes.clamp_max(0))

    def over_square(self, embedding: Embedding, *, lost: bool) -> Change:
        """Both as (4h, 4w) over the padded square of the frame's embedding.

        Without a ``lost`` object nobody asks where it cannot be: ``empty`` is 0 then.
        """
        votes = over_square(self.votes, embedding)
        empty = over_square(self.empty, embedding) if lost else torch.zeros_like(votes)
        return Change(votes, empty)


class Background:
    """The background of one clip, seen from the latest frame.

    Call ``look`` with a frame, then ``learn`` with what was found in it. Its size does not depend
    on the clip's length.

    Args:
        longest: Longer side in pixels at which pictures are compared, at most.
    """

    def __init__(self, longest: int = _LONGEST) -> None:
        self._longest = longest
        self._scale = longest / _LONGEST
        self._view: _View | None = None
        self._mean: Float32Array = np.zeros((0, 0, 3), np.float32)
        self._spread: Float32Array = np.zeros((0, 0), np.float32)
        self._known: BoolArray = np.zeros((0, 0), np.bool_)
        self._objects: BoolArray = np.zeros((0, 0), np.bool_)
        self._inside: BoolArray = np.zeros((0, 0), np.bool_)
        self._empty: BoolArray = np.zeros((0, 0), np.bool_)
        self._camera = Camera(self._scale)
        self._passing = Passing()
        self._false_alarms = _DISTRUST
        self._restless: float | None = None
        self.cut = False
        """Whether the latest frame is from another scene or viewpoint than the one before."""

    def twin(self) -> Background:
        """The same background, to look at the next frame without this one knowing of it.

        Of the two only one may be told anything from then on.
        """
        twin = copy.copy(self)
        twin._camera = copy.deepcopy(self._camera)
        return twin

    def reduced(self, image_rgb: UInt8Array) -> Reduced:
        """What ``look`` makes of a (H, W, 3) uint8 RGB picture alone, whatever was seen before."""
        return _reduced(image_rgb, self._longest, _BLUR * self._scale)

    def look(self, image_rgb: UInt8Array) -> Change:
        """Compare a new frame with the background; ``cut`` is about this frame then.

        Args:
            image_rgb: (H, W, 3) uint8 RGB.

        Returns:
            Over the whole frame, h, w <= ``longest``.
        """
        return self.look_at(self.reduced(image_rgb))

    def look_at(self, picture: Reduced) -> Change:
        """``look`` at what is made of a frame."""
        camera, one_plane = self._motion_to(picture)
        stayed = self._carried_to(picture, camera)
        difference = _difference(picture.colours, self._mean)
        sampled = difference[::_EVERY, ::_EVERY][self._known[::_EVERY, ::_EVERY]]
        usual = float(np.percentile(sampled, 70)) if sampled.size else 0.0
        floor = max(usual, _NOISE)
        spreads = np.asarray(difference / np.maximum(self._spread, floor), np.float32)
        self._view = _View(picture, difference, spreads, stayed, camera)
        seen = _ramp(one_plane, *_ONE_PLANE)
        trust = seen * (1 - _ramp(self._false_alarms, *_FALSE_ALARMS))
        trust *= 1 - _ramp(self._strange(spreads), *_STRANGE)
        largest = cv2.dilate(difference, _square(self._scale * _EDGE_RADIUS))
        edge = _ramp(np.asarray(difference / np.maximum(largest, 1e-3), np.float32), *_EDGE)
        come = trust * _ramp(spreads, _CHANGING, _CHANGED) * edge
        # Smoke and crowds make changes mean nothing, but not that something looks as it did.
        still = trust * np.clip(_STILL - spreads, 0, 1)
        still = np.maximum(still, seen * np.clip(_STILL - difference / floor, 0, 1))
        maps = (come - still) * self._known, still * self._empty
        return Change(*(torch.from_numpy(_smoothed(m, _BLUR * self._scale)) for m in maps))

    def _motion_to(self, picture: Reduced) -> tuple[NDArray[np.float64] | None, float]:
        """The camera's to a new frame, as of ``Camera.motion``; sets ``cut``."""
        self.cut = False
        if self._view is None:
            return None, 0.0
        before = self._view.picture
        if before.gray.shape != picture.gray.shape:
            self._camera.forget()
            return None, 0.0
        camera, one_plane = self._camera.motion(before.gray, picture.gray, ~self._objects)
        # By how much two pictures differ as a whole, in CIELAB units.
        apart = float(cv2.absdiff(before.thumbnail, picture.thumbnail).mean())
        of_late = apart if self._restless is None else self._restless
        self.cut = apart > _CUT * max(of_late, _CUT_NOISE) and not self._camera.same_place
        self._restless = of_late + _CUT_LEARNT * (apart - of_late)
        if self.cut:
            self._camera.forget()
        return camera, one_plane

    def _carried_to(self, picture: Reduced, camera: NDArray[np.float64] | None) -> BoolArray:
        """Lay what is known of each pixel over a new frame, or start anew.

        Returns:
            (h, w) bool, where that frame looks like the one before.
        """
        shape, view = picture.gray.shape, self._view
        if camera is None or view is None:
            self._mean, self._spread = picture.colours.copy(), np.full(shape, _NOISE, np.float32)
            self._known, self._objects = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
            self._inside, self._empty = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
            self._false_alarms = _DISTRUST
            return np.ones(shape, np.bool_)
        self._mean = _warped(self._mean, camera)
        self._spread = _warped(self._spread, camera)
        masks = self._known, self._objects, self._inside, self._empty
        known, objects, inside, empty = cv2.split(_warped(_in_bytes(masks), camera))
        # Interpolation takes a rim off what is known with every motion, and with it what has been
        # behind the object for so long that its place is no longer certain.
        self._known, self._empty = known > _WHOLLY, empty > _WHOLLY
        self._objects, self._inside = objects > _HALF, inside > _HALF
        before = _warped(view.picture.colours, camera)
        return _nearer_than(_CHANGING * _NOISE, picture.colours, before)

    def learn(self, labels: UInt8Array, *, all_tracked: bool = True) -> None:
        """Take what is not an object in the frame just looked at as background.

        Args:
            labels: (H, W) uint8 label map of all objects in it; void is no background.
            all_tracked: None of the objects is lost or uncertain.
        """
        view = self._view
        assert view is not None
        self._objects, inside = _taken(labels > 0, view, self._scale * _AROUND_MASK)
        small = cv2.resize(labels, view.picture.gray.shape[::-1], interpolation=cv2.INTER_NEAREST)
        passed = self._passing.learn(np.asarray(small, np.uint8), view.stayed, view.camera)
        self._objects &= ~passed
        # What was well inside an object and has stayed as it was is still that object, found or
        # not. Learnt as background, what is missed once would be missed for good.
        self._inside = (inside | (self._inside & view.stayed)) & ~passed
        free = ~(self._objects | self._inside)
        known, new = self._known & free, free & ~self._known
        nearby = known & _grown(self._objects, self._scale * _NEARBY)
        if nearby.sum() > self._scale**2 * _FEWEST_PIXELS:
            alarms = float((view.spreads[nearby] > _ALARM).mean())
            self._false_alarms += _ALARMS_LEARNT * (alarms - self._false_alarms)
        old = known.astype(np.uint8)
        cv2.accumulateWeighted(view.picture.colours, self._mean, _LEARNT, mask=old)
        cv2.accumulateWeighted(view.difference, self._spread, _SPREAD_LEARNT, mask=old)
        cv2.copyTo(view.picture.colours, new.view(np.uint8), self._mean)
        self._spread[new] = _NOISE
        self._known |= free
        # What has changed may be an object that was missed, and has been learnt as background.
        unlike = free & (view.spreads > _ALARM)
        self._empty = (self._known if all_tracked else self._empty) & ~unlike

    def _strange(self, spreads: Float32Array) -> float:
        """Changed area near the objects that they cannot have moved to, in areas of the objects."""
        reached, nearby = (
            _grown(self._objects, self._scale * _AS_FAR_AS),
            _grown(self._objects, self._scale * _NEARBY),
        )
        changed = self._known & (spreads > _ALARM) & nearby & ~reached
        return float(changed.sum() / max(1, self._objects.sum()))

    def forget(self, objects: BoolArray) -> None:
        """These are objects for certain in the latest frame, whatever was learnt there before.

        Args:
            objects: (H, W) bool, up to their edges.
        """
        assert self._view is not None
        taken, _ = _taken(objects, self._view, self._scale * _AROUND_MASK)
        self._objects |= taken
        self._inside |= taken
        self._known &= ~taken
        self._empty &= ~taken

    def release(self, places: BoolArray) -> None:
        """These were taken for objects in the latest frame, and are none for certain.

        Args:
            places: (H, W) bool.
        """
        assert self._view is not None
        wrong, _ = _taken(places, self._view, self._scale * _AROUND_MASK)
        self._objects &= ~wrong
        self._inside &= ~wrong


@dataclass(frozen=True, slots=True)
class _View:
    """What is kept of the latest frame: all (h, w).

    ``difference`` is the one to the background's mean, ``spreads`` the same in spreads; ``stayed``
    says where the frame looks like the one before, and ``camera`` is the homography from there.
    """

    picture: Reduced
    difference: Float32Array
    spreads: Float32Array
    stayed: BoolArray
    camera: NDArray[np.float64] | None


def _reduced(image_rgb: UInt8Array, longest: int, blur: float) -> Reduced:
    """A picture whose longer side is no more than ``longest``."""
    height, width = image_rgb.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small: NDArray[Any] = image_rgb
    while min(small.shape[1] / size[0], small.shape[0] / size[1]) >= 2:
        half = small.shape[1] // 2, small.shape[0] // 2
        small = cv2.resize(small, half, interpolation=cv2.INTER_AREA)
    small = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
    # Its steps of 1, of lightness 0.4, are far below the noise, and smoothed away besides.
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    colours = cv2.GaussianBlur(cv2.transform(lab, _FROM_BYTES), (0, 0), blur)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(colours, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    maps = np.asarray(colours, np.float32), np.asarray(thumbnail, np.float32)
    return Reduced(np.asarray(gray, np.uint8), *maps)


def _difference(colours: Float32Array, mean: Float32Array) -> Float32Array:
    """(h, w) float32 distance of each pixel to the most similar one within one pixel."""
    height, width = colours.shape[:2]
    padded = cv2.copyMakeBorder(mean, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    nearest = np.full((height, width), np.inf, np.float32)
    # Buffers for all: fresh memory for pictures of this size takes longer than the sums.
    apart, squared = np.empty_like(colours), np.empty_like(nearest)
    for row in range(3):
        for column in range(3):
            cv2.subtract(colours, padded[row : row + height, column : column + width], apart)
            cv2.multiply(apart, apart, apart)
            cv2.transform(apart, _SUM, squared)
            cv2.min(nearest, squared, nearest)
    return np.sqrt(nearest, out=nearest)


def _nearer_than(distance: float, a: Float32Array, b: Float32Array) -> BoolArray:
    """(h, w) bool, where the colours of two pictures differ by less."""
    apart = cv2.absdiff(a, b)
    cv2.multiply(apart, apart, apart)
    return np.asarray(cv2.transform(apart, _SUM) < distance**2)


def _warped(picture: NDArray[Any], moved: NDArray[np.float64]) -> NDArray[Any]:
    """A picture as seen after the camera's motion; 0 where it had not been seen."""
    height, width = picture.shape[:2]
    return cv2.warpPerspective(picture, moved, (width, height), flags=cv2.INTER_LINEAR)


def _in_bytes(masks: Sequence[BoolArray]) -> UInt8Array:
    """(h, w) bool masks -> (h, w, n) uint8, 255 where one is true."""
    return np.asarray(cv2.merge([255 * mask.view(np.uint8) for mask in masks]), np.uint8)


def _taken(mask: BoolArray, view: _View, around: float) -> tuple[BoolArray, BoolArray]:
    """(H, W) mask -> (h, w) bool, with what lies beside it, and without its edge."""
    size = view.picture.gray.shape[1], view.picture.gray.shape[0]
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    return _grown(small, around), ~_grown(~small, around)


def _grown(mask: BoolArray, pixels: float) -> BoolArray:
    return cv2.dilate(mask.astype(np.uint8), _square(pixels)) > 0


def _square(radius: float) -> UInt8Array:
    """So many pixels around one, at least one."""
    side = 2 * max(1, round(radius)) + 1
    return np.ones((side, side), np.uint8)


def _smoothed(picture: NDArray[Any], blur: float) -> Float32Array:
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), blur), np.float32)


def _ramp(values: Float32Array | float, low: float, high: float) -> Float32Array:
    """0 up to ``low``, 1 from ``high`` on, linear between."""
    ramp: Float32Array = np.clip((np.asarray(values, np.float32) - low) / (high - low), 0, 1)
    return ramp
