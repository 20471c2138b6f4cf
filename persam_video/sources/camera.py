"""A camera of this machine, through OpenCV: ``camera:N``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import cv2
import numpy as np

from persam_video.errors import SourceError
from persam_video.sources.base import Picture
from persam_video.types import UInt8Array, VideoInfo


class CameraReader:
    """Frames of camera N; time is the clock's, from the first frame on; never ends by itself."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        number = _camera_number(spec)
        try:
            self._capture = cv2.VideoCapture(number)
        except cv2.error as error:
            raise SourceError(f"{spec}: the camera cannot be opened: {error}") from error
        try:
            if not self._capture.isOpened():
                raise SourceError(f"{spec}: there is no camera {number}, or another program has it")
            self._grab(0)
            self._first = self._retrieve(0)
            rate = _nearest_rate(self._capture.get(cv2.CAP_PROP_FPS))
        except BaseException:
            self.close()
            raise
        height, width = self._first.shape[:2]
        self._info = VideoInfo(spec, (height, width), rate, None, backend="opencv")

    @property
    def info(self) -> VideoInfo:
        """Facts of the camera; the rate is what the driver claims."""
        return self._info

    def pictures(self) -> Iterator[Picture]:
        """Frames as they come, for ever.

        Raises:
            SourceError: The camera stopped.
        """
        started = time.monotonic()
        yield Picture(0, 0.0, lambda: self._first)
        index = 1
        while True:
            self._grab(index)
            elapsed = time.monotonic() - started
            yield Picture(index, elapsed, partial(self._retrieve, index))
            index += 1

    def close(self) -> None:
        """Give the camera back; a second call does nothing."""
        self._capture.release()

    def _grab(self, index: int) -> None:
        try:
            grabbed = self._capture.grab()
        except cv2.error as error:
            raise self._stopped(index) from error
        if not grabbed:
            raise self._stopped(index)

    def _retrieve(self, index: int) -> UInt8Array:
        try:
            ok, image = self._capture.retrieve()
            if not ok or image is None:
                raise self._stopped(index)
            code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
            return np.asarray(cv2.cvtColor(image, code), np.uint8)
        except cv2.error as error:
            raise self._stopped(index) from error

    def _stopped(self, index: int) -> SourceError:
        return SourceError("the camera delivers no picture", path=self._spec, frame_index=index)


def _camera_number(spec: str) -> int:
    number = spec.removeprefix("camera:")
    if not (number.isascii() and number.isdigit()):
        raise SourceError(f"a camera is camera:N with N = 0, 1, 2, ..., got {spec!r}")
    return int(number)


def _nearest_rate(claimed: float) -> Fraction | None:
    """29.97003 -> 30000/1001; None when the driver does not know (0, negative, not a number)."""
    if not 0 < claimed < 10_000:
        return None
    return Fraction(claimed).limit_denominator(1001)
