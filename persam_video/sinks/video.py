"""Overlay video: H.264 with the source's own times and sound."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.container import OutputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from persam_video.errors import SinkError
from persam_video.files import atomic_path
from persam_video.sinks.audio import AudioCarrier
from persam_video.sinks.base import SinkLifeCycle, claim_file
from persam_video.sinks.overlay import FILL_ALPHA, draw_overlay
from persam_video.types import Frame, TrackResult, UInt8Array

_SUFFIXES = (".mp4", ".mov", ".mkv")
_MIN_TICKS_PER_S = 90_000  # finest common clock of containers; times are off by 6 us at most
_NOMINAL_RATE = Fraction(30)  # only for players' information when the source knows no rate
_ENCODER = "libx264"
_ENCODER_OPTIONS: dict[str, object] = {
    "crf": "20",
    "preset": "superfast",
    "mbtree": "1",
    "rc-lookahead": "10",
}
"""Half of the work of ``veryfast``, up to a tenth more room: finding objects needs the cores."""
_THREADS = 4
"""However many cores there are, so that the same frames make the same file. The encoder's each have
a frame: PyAV's default, slices of one frame, takes more time and more room."""
_BT709 = 1  # FFmpeg's number for matrix, primaries and transfer alike
_STUDIO_RANGE = 1


class OverlayVideoSink(SinkLifeCycle):
    """The source with its masks drawn over it, as H.264 video.

    Every frame keeps its time relative to the first one, so that variable frame rates survive; with
    a constant ``rate`` the times are exact multiples of 1 / ``rate``. A picture of odd size gets
    its last row or column doubled, as H.264 in yuv420p needs even sizes. Colours are BT.709.
    Matroska (.mkv) keeps times only to the millisecond.

    Args:
        path: File to write: .mp4, .mov or .mkv.
        rate: Frames per second of the frames that will come, or None when unknown.
        audio_from: File whose sound is carried over, cut to the time from the first to the end of
            the last frame; its clock must be that of the frames' ``time_s``. A file without sound
            gives a silent video.
        side_by_side: Put the untouched picture to the left of the overlay.
        fill_alpha: Share of an object's colour inside its mask, in [0, 1].
        overwrite: Allow replacing an existing file.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction | None,
        *,
        audio_from: Path | None = None,
        side_by_side: bool = False,
        fill_alpha: float = FILL_ALPHA,
        overwrite: bool = False,
    ) -> None:
        super().__init__(path)
        claim_file(path, _SUFFIXES, overwrite)
        if rate is not None and rate <= 0:
            raise SinkError(f"the frame rate must be above 0, got {rate}", path=path)
        if audio_from is not None and not audio_from.is_file():
            raise SinkError(f"there is no file {audio_from} to take the sound from", path=path)
        if audio_from is not None and path.exists() and path.samefile(audio_from):
            raise SinkError("the output would replace its own source", path=path)
        _check_encoder(path)
        self._rate = rate
        self._tick_s = Fraction(1, _ticks_per_s(rate))
        self._audio_from = audio_from
        self._side_by_side = side_by_side
        self._fill_alpha = fill_alpha
        self._reformatter = VideoReformatter()  # one for all frames: it takes long to make
        self._open = ExitStack()
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._audio: AudioCarrier | None = None
        self._size_hw = (0, 0)
        self._start_s = 0.0
        self._pts: list[int] = []  # of the last two frames

    def _write(self, frame: Frame, result: TrackResult) -> None:
        image = draw_overlay(
            frame.image_rgb,
            result.labels,
            result.scores,
            result.states,
            fill_alpha=self._fill_alpha,
        )
        if self._side_by_side:
            image = np.hstack([frame.image_rgb, image])
        container, stream = self._output(frame, image)
        if image.shape[:2] != self._size_hw:
            raise SinkError(
                f"the picture is now {image.shape[1]}x{image.shape[0]}, the video "
                f"{self._size_hw[1]}x{self._size_hw[0]}; all frames must have one size",
                path=self.path,
                frame_index=frame.index,
            )
        picture = self._yuv_picture(image)
        picture.pts, picture.time_base = self._next_pts(frame.time_s), self._tick_s
        container.mux(stream.encode(picture))
        if self._audio is not None:
            self._audio.advance(frame.time_s - self._start_s)

    def _output(self, frame: Frame, image: UInt8Array) -> tuple[OutputContainer, VideoStream]:
        """The container and its video stream, opened with the first frame's size and time."""
        if self._container is None or self._stream is None:
            self._size_hw, self._start_s = image.shape[:2], frame.time_s
            temporary = self._open.enter_context(atomic_path(self.path))
            options = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
            self._container = av.open(str(temporary), "w", options=options)
            self._open.callback(self._container.close)
            self._stream = self._add_video_stream(self._container)
            if self._audio_from is not None:
                self._audio = AudioCarrier(self._audio_from, self._container, frame.time_s)
                self._open.callback(self._audio.close)
        return self._container, self._stream

    def _add_video_stream(self, container: OutputContainer) -> VideoStream:
        height, width = (size + size % 2 for size in self._size_hw)
        stream = container.add_stream(_ENCODER, rate=self._rate or _NOMINAL_RATE)
        assert isinstance(stream, VideoStream)  # PyAV's stubs know only common codec names
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = _ENCODER_OPTIONS
        context = stream.codec_context
        context.thread_type, context.thread_count = ThreadType.FRAME, _THREADS
        context.time_base = stream.time_base = self._tick_s
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _STUDIO_RANGE
        return stream

    def _yuv_picture(self, image_rgb: UInt8Array) -> av.VideoFrame:
        height, width = image_rgb.shape[:2]
        if height % 2 or width % 2:
            image_rgb = np.asarray(
                cv2.copyMakeBorder(image_rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE),
                np.uint8,
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_rgb), format="rgb24")
        return self._reformatter.reformat(
            picture, format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=_THREADS
        )

    def _next_pts(self, time_s: float) -> int:
        pts = math.floor((time_s - self._start_s) / self._tick_s + 0.5)
        # Broken recordings repeat times or step back; a container cannot, and sorts by time.
        pts = max(pts, self._pts[-1] + 1) if self._pts else pts
        self._pts = [*self._pts[-1:], pts]
        return pts

    def _end_s(self) -> float:
        """End of the last frame on the output's clock."""
        if self._rate is not None:
            last_s = 1 / self._rate
        elif len(self._pts) == 2:
            last_s = (self._pts[1] - self._pts[0]) * self._tick_s
        else:
            last_s = 1 / _NOMINAL_RATE
        return float(self._pts[-1] * self._tick_s + last_s)

    def _finish(self) -> None:
        if self._container is None or self._stream is None or not self._pts:
            self._discard(SinkError("no frame was written", path=self.path))
            return
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.advance(self._end_s())
        self._open.close()

    def _discard(self, error: BaseException) -> None:
        # Closing writes the rest, which fails again on a full disk; the first error is told.
        with suppress(OSError, av.error.FFmpegError):
            self._open.__exit__(type(error), error, error.__traceback__)


def _ticks_per_s(rate: Fraction | None) -> int:
    """Clock in which a frame of ``rate`` lasts a whole number of ticks."""
    if rate is None or rate.numerator > 10 * _MIN_TICKS_PER_S:
        return _MIN_TICKS_PER_S
    return rate.numerator * math.ceil(_MIN_TICKS_PER_S / rate.numerator)


def _check_encoder(path: Path) -> None:
    try:
        av.Codec(_ENCODER, "w")
    except ValueError as error:  # PyAV's UnknownCodecError
        raise SinkError(
            f"this build of PyAV has no H.264 encoder ({_ENCODER}); the wheels on PyPI have it",
            path=path,
        ) from error
