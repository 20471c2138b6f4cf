"""Video files through decord, for those who ask for it; never a silent stand-in for PyAV.

PyAV reads the container first: decord does not tell about sound, exact rates or exact times, and
files that PyAV refuses never reach decord's native code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from persam_video.errors import SourceError
from persam_video.sources.base import Picture
from persam_video.sources.container import open_file, packet_times_s, warn_if_cut_off
from persam_video.types import UInt8Array, VideoInfo

# decord replaces frames it cannot decode by neighbours; any share above this one is an error.
_TOLERATED_SHARE = 1e-9


class DecordReader:
    """Frames of a video file, decoded by decord, with PyAV's timestamps.

    Raises:
        SourceError: No video, decord is not installed, or decord sees other frames than the
            container shows (it ignores edit lists and mirroring).
    """

    def __init__(self, path: Path) -> None:
        self._spec = str(path)
        self._probe = open_file(path)
        self._probe.close()
        if self._probe.is_mirrored:
            raise SourceError("decord does not mirror pictures; use the pyav backend", path=path)
        self._times_s = packet_times_s(path)
        self._reader: Any = _open_decord(path)
        if len(self._reader) != len(self._times_s):
            raise SourceError(
                f"decord sees {len(self._reader)} frames where the container shows "
                f"{len(self._times_s)}; use the pyav backend",
                path=path,
            )
        self._position = 0
        self._first = self._load(0)
        count = self._probe.info.frame_count or len(self._times_s)
        self._info = replace(self._probe.info, frame_count=count, backend="decord")

    @property
    def info(self) -> VideoInfo:
        """Facts of the whole file."""
        return self._info

    def pictures(self) -> Iterator[Picture]:
        """Frames in presentation order.

        Raises:
            SourceError: decord cannot decode this frame.
        """
        yield Picture(0, self._times_s[0], lambda: self._first)
        for index, time_s in enumerate(self._times_s[1:], 1):
            yield Picture(index, time_s, partial(self._load, index))
        warn_if_cut_off(self._probe.info, self._probe.announced_end_s, self._times_s[-1])

    def close(self) -> None:
        """Release the decoder; a second call does nothing."""
        self._reader = None

    def _load(self, index: int) -> UInt8Array:
        """Frame ``index``, which must not lie before the last one loaded."""
        try:
            if index > self._position:
                self._reader.skip_frames(index - self._position)
            picture = self._reader.next()
            self._position = index + 1
            # Under a bridge that the user has set, decord gives that library's tensor.
            array = picture.asnumpy() if hasattr(picture, "asnumpy") else picture
            return np.asarray(array, np.uint8)
        except Exception as error:  # decord's errors derive from Exception, and its end of file too
            raise SourceError(
                f"decord cannot decode this frame: {_first_line(error)}; try the pyav backend",
                path=self._spec,
                frame_index=index,
            ) from error


def _open_decord(path: Path) -> Any:
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise SourceError(
            f"decord cannot be loaded: {error}; install decord2, or use the pyav backend", path=path
        ) from error
    try:
        # The absolute path keeps FFmpeg from taking a colon in the name for a protocol.
        return decord.VideoReader(
            str(path.absolute()), ctx=decord.cpu(0), fault_tol=_TOLERATED_SHARE
        )
    except Exception as error:  # decord raises RuntimeError, AssertionError and its own errors
        raise SourceError(
            f"decord cannot open {path}: {_first_line(error)}; try the pyav backend", path=path
        ) from error


def _first_line(error: BaseException) -> str:
    """First line of what decord says; after it comes a native stack trace."""
    return (str(error) or type(error).__name__).splitlines()[0]
