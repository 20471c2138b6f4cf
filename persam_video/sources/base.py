"""What every source is, and the one place where frames are chosen and shrunk.

A reader knows one kind of input and hands out lazy pictures, all of them, at full size.
``ClipSource`` wraps a reader and applies ``start``, ``end``, ``stride`` and ``max_size`` in the
same way for every kind of input; a picture that is skipped is never converted to RGB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self

import cv2
import numpy as np

from persam_video.config import SourceConfig
from persam_video.errors import ConfigError, SourceError
from persam_video.geometry import fit_longest_side
from persam_video.types import Frame, UInt8Array, VideoInfo

NOMINAL_RATE = Fraction(24)
"""Frames per second taken for inputs that carry no time of their own; DAVIS's usual rate."""

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Frames, one pass, in order; a context manager.

    Iterating twice goes on where the first pass stopped, as with an open file. All methods belong
    on one thread: a decoder must not be closed while another thread reads from it.
    """

    @property
    def info(self) -> VideoInfo:
        """What is known about the frames that will come out."""

    def __iter__(self) -> Iterator[Frame]:
        """The source itself."""

    def __next__(self) -> Frame:
        """Next frame.

        Raises:
            SourceError: The input is damaged here, changes its size, or the source is closed.
        """

    def close(self) -> None:
        """Release the input, read to its end or not; a second call does nothing."""

    def __enter__(self) -> Self:
        """The source itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the source."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of a reader, not converted yet.

    Attributes:
        index: 0-based position in the input.
        time_s: Presentation time in seconds.
        load: Gives the upright (H, W, 3) uint8 RGB image; called at most once, and before the
            next picture is asked for. Raises SourceError.
        name: Stem of the picture's own file, or None.
        path: The picture's own file for messages, or None when it has none.
    """

    index: int
    time_s: float
    load: Callable[[], UInt8Array]
    name: str | None = None
    path: str | None = None


class Reader(Protocol):
    """One kind of input: all of its pictures in order, at full size."""

    @property
    def info(self) -> VideoInfo:
        """Facts of the whole input: no slicing, full size."""

    def pictures(self) -> Iterator[Picture]:
        """All pictures in order, once. Raises SourceError where the input is damaged."""

    def close(self) -> None:
        """Release the input; a second call does nothing."""


class ClipSource:
    """A reader seen through the source settings; the one implementation of ``Source``."""

    def __init__(self, reader: Reader, config: SourceConfig) -> None:
        self._reader = reader
        self._config = config
        self._closed = False
        try:
            self._info = _info_after(reader.info, config)
        except BaseException:
            reader.close()
            raise
        self._frames = self._read()

    @property
    def info(self) -> VideoInfo:
        """What is known about the frames that will come out."""
        return self._info

    def __iter__(self) -> Iterator[Frame]:
        """The source itself."""
        return self

    def __next__(self) -> Frame:
        """Next frame; see ``Source``."""
        if self._closed:
            raise SourceError("the source is closed; open it again to read", path=self._info.spec)
        return next(self._frames)

    def close(self) -> None:
        """Release the input; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._frames.close()
            self._reader.close()

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the source."""
        self.close()

    def _read(self) -> Generator[Frame, None, None]:
        config, total = self._config, 0
        for picture in self._reader.pictures():
            total = picture.index + 1
            if picture.index < config.start or (picture.index - config.start) % config.stride:
                continue
            yield self._frame(picture)
            # Do not ask for a picture nobody wants: on a camera or a pipe that would wait.
            if config.end is not None and picture.index + config.stride >= config.end:
                return
        self._check_end(total)

    def _frame(self, picture: Picture) -> Frame:
        image = np.require(picture.load(), np.uint8, ["C", "W"])
        height, width = self._reader.info.size_hw
        if image.shape[:2] != (height, width):
            raise SourceError(
                f"{picture.path or 'this frame'} is {image.shape[1]}x{image.shape[0]}, but the "
                f"first frame is {width}x{height}; all frames must have the same size",
                path=picture.path or self._info.spec,
                frame_index=picture.index,
            )
        target = _shrunk((height, width), self._config.max_size)
        if target != (height, width):
            resized = cv2.resize(image, (target[1], target[0]), interpolation=cv2.INTER_AREA)
            image = np.require(resized, np.uint8, ["C", "W"])
        return Frame(picture.index, picture.time_s, image, picture.name)

    def _check_end(self, total: int) -> None:
        if total == 0:
            raise SourceError("it ended before its first frame", path=self._info.spec)
        if total <= self._config.start:
            raise _start_beyond(self._config.start, total, self._info.spec)
        announced = self._reader.info.frame_count
        if announced is not None and total < announced:
            _log.warning(
                "%s: it announces %d frames, but only %d came out; the file may be cut off",
                self._info.spec,
                announced,
                total,
            )


def check_window(config: SourceConfig) -> None:
    """Raise ConfigError when ``end`` leaves no frame after ``start``."""
    if config.end is not None and config.end <= config.start:
        raise ConfigError(
            f"end must lie after start, got start {config.start} and end {config.end}"
        )


def _shrunk(size_hw: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """Size after ``max_size``; a frame is never enlarged."""
    if max_size is None or max(size_hw) <= max_size:
        return size_hw
    return fit_longest_side(size_hw, max_size)


def _start_beyond(start: int, count: int, spec: str) -> SourceError:
    return SourceError(
        f"start {start} lies beyond the end: there are {count} frames, so 0 to {count - 1} is "
        "legal",
        path=spec,
    )


def _info_after(info: VideoInfo, config: SourceConfig) -> VideoInfo:
    """The reader's facts as they are after slicing and shrinking."""
    count = info.frame_count
    if count is not None:
        if count <= config.start:
            raise _start_beyond(config.start, count, info.spec)
        end = count if config.end is None else min(config.end, count)
        count = len(range(config.start, end, config.stride))
    return replace(
        info,
        size_hw=_shrunk(info.size_hw, config.max_size),
        rate=None if info.rate is None else info.rate / config.stride,
        frame_count=count,
    )
