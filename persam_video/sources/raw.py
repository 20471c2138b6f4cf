"""Raw frames on standard input: ``raw:WIDTHxHEIGHT@RATE``.

Every frame is WIDTH x HEIGHT x 3 bytes, RGB, row by row, with nothing in between; what
``ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 -`` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import numpy as np

from persam_video.errors import SourceError
from persam_video.sources.base import Picture
from persam_video.sources.standard_input import standard_input
from persam_video.types import UInt8Array, VideoInfo

_RAW_SPEC = re.compile(r"raw:(\d{1,5})x(\d{1,5})@(\d+(?:\.\d+)?(?:/\d+)?)")


class RawReader:
    """Frames of a fixed size and rate from a pipe; their number is unknown."""

    def __init__(self, spec: str) -> None:
        size_hw, rate = parse_raw_spec(spec)
        self._stream = standard_input(spec)
        self._rate = rate
        self._info = VideoInfo(spec, size_hw, rate, None, backend="raw")

    @property
    def info(self) -> VideoInfo:
        """Facts as the spec states them."""
        return self._info

    def pictures(self) -> Iterator[Picture]:
        """Frames until the pipe closes.

        Raises:
            SourceError: The pipe closed inside a frame, or cannot be read.
        """
        height, width = self._info.size_hw
        wanted, index = height * width * 3, 0
        while data := self._read(wanted, index):
            if len(data) < wanted:
                raise SourceError(
                    f"the pipe closed inside a frame: got {len(data)} of {wanted} bytes for "
                    f"{width}x{height} RGB; is the size right?",
                    path=self._info.spec,
                    frame_index=index,
                )
            # A bytearray, because frames made from bytes could not be written to.
            image: UInt8Array = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            yield Picture(index, float(index / self._rate), partial(_given, image))
            index += 1

    def close(self) -> None:
        """Standard input is not ours to close."""

    def _read(self, wanted: int, index: int) -> bytearray:
        """Up to ``wanted`` bytes; fewer only at the end of the pipe."""
        data = bytearray()
        try:
            while len(data) < wanted and (part := self._stream.read(wanted - len(data))):
                data += part
        except (OSError, ValueError) as error:
            raise SourceError(
                f"cannot read standard input: {error}", path=self._info.spec, frame_index=index
            ) from error
        return data


def _given(image: UInt8Array) -> UInt8Array:
    return image


def parse_raw_spec(spec: str) -> tuple[tuple[int, int], Fraction]:
    """``raw:640x480@30000/1001`` -> ((480, 640), Fraction(30000, 1001)).

    Raises:
        SourceError: The text has another form, or a number in it is 0.
    """
    match = _RAW_SPEC.fullmatch(spec)
    try:
        if match is None:
            raise ValueError
        width, height = int(match[1]), int(match[2])
        numerator, _, denominator = match[3].partition("/")
        rate = Fraction(numerator) / Fraction(denominator or 1)
        if width * height == 0 or rate == 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise SourceError(
            f"raw frames need raw:WIDTHxHEIGHT@RATE with numbers above 0, e.g. raw:640x480@30 or "
            f"raw:640x480@30000/1001, got {spec!r}"
        ) from None
    return (height, width), rate
