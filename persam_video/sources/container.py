"""Video containers through PyAV: files, network streams, and pipes; decoded on the GPU if asked."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec import Codec
from av.codec.context import ThreadType
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from persam_video.errors import SourceError
from persam_video.sources.base import NOMINAL_RATE, Picture
from persam_video.sources.orientation import orientation_of, upright
from persam_video.sources.standard_input import standard_input
from persam_video.types import UInt8Array, VideoInfo

NETWORK_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp")

LIBRARY_ERRORS = (av.FFmpegError, OSError, ValueError)
"""What PyAV raises: FFmpeg's errors, and those of the file object it reads from."""

_TIMEOUT_S = 10.0
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp")
_OPTIONS = {
    "rtsp": {"rtsp_transport": "tcp"},  # UDP loses packets, and a lost packet smears many frames
    "rtsps": {"rtsp_transport": "tcp"},
    "udp": {"overrun_nonfatal": "1"},
    "http": {"reconnect": "1", "reconnect_delay_max": "5"},
    "https": {"reconnect": "1", "reconnect_delay_max": "5"},
}

_log = logging.getLogger(__name__)


def open_file(path: Path, backend: str = "pyav") -> ContainerReader:
    """A video file. Raises SourceError."""
    # "file:" keeps FFmpeg from taking a colon in the name for a protocol.
    container = _open(f"file:{path}", str(path), backend)
    return ContainerReader(container, str(path), backend)


def open_url(url: str, backend: str = "pyav") -> ContainerReader:
    """A network stream; http is read like a file, the rest as live. Raises SourceError."""
    scheme = url.partition("://")[0].lower()
    options = _OPTIONS.get(scheme, {})
    container = _open(url, url, backend, options=options, timeout=_TIMEOUT_S)
    return ContainerReader(container, url, backend, live=scheme in _LIVE_SCHEMES)


def open_pipe(backend: str = "pyav") -> ContainerReader:
    """A video on standard input. Raises SourceError."""
    return ContainerReader(_open(_Pipe(standard_input("-")), "-", backend), "-", backend)


class ContainerReader:
    """Frames of the best video stream of a container.

    A live stream is read with little delay, and a packet that does not decode is logged and
    passed over, as loss is normal there; anywhere else it is an error.

    Args:
        container: Opened by one of the functions above; closed by this object.
        spec: What the user wrote.
        backend: "pyav", or "cuda" for a container that was opened to be decoded on the GPU.
        live: Whether the stream is live.

    Attributes:
        announced_end_s: When the video ends by the container's own word, in seconds, or None.
        is_mirrored: Whether the container asks for a mirrored picture.
    """

    def __init__(
        self, container: InputContainer, spec: str, backend: str = "pyav", *, live: bool = False
    ) -> None:
        self._container, self._spec, self._live = container, spec, live
        self._backend = backend
        self._reformatter = VideoReformatter()
        self._decoded = 0
        try:
            self._stream = _video_stream(container, spec)
            codec = self._stream.codec_context
            if backend == "cuda" and not codec.is_hwaccel:  # another stream is decoded there
                raise _no_gpu_decoder(spec)
            # MPEG-TS flags the last packet before every splice, whole as it is.
            spliced = container.format.name in ("mpegts", "hls")
            self._trusts_packet_flags = not (live or spliced)
            # Frame threads also make FFmpeg flag damaged frames, but hold several frames back; a
            # GPU's decoder gains nothing by them, and its pictures are few.
            by_slices = live or backend == "cuda"
            self._stream.thread_type = ThreadType.SLICE if by_slices else ThreadType.AUTO
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise SourceError("it holds no frame that can be decoded", path=spec)
            self._first: VideoFrame | None = first
            self._info = self._facts(first)
            self.announced_end_s = None if live else _announced_end_s(container, self._stream)
            transpose, flip_x, flip_y = orientation_of(first)
            self.is_mirrored = transpose ^ flip_x ^ flip_y
        except BaseException:
            container.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """Facts of the whole stream."""
        return self._info

    def pictures(self) -> Iterator[Picture]:
        """Frames in presentation order, with the container's own timestamps.

        Raises:
            SourceError: The stream is damaged here, or no data came in time.
        """
        last, index = self._first, 0
        self._first = None
        while last is not None:
            yield Picture(index, self._time_s(last, index), partial(self._image, last, index))
            frame = next(self._frames, None)
            if frame is None:
                warn_if_cut_off(self._info, self.announced_end_s, self._time_s(last, index))
            last, index = frame, index + 1

    def close(self) -> None:
        """Close the container; a second call does nothing."""
        self._frames.close()  # it holds on to this object, and with it to the GPU's decoder
        self._container.close()

    def _facts(self, first: VideoFrame) -> VideoInfo:
        stream = self._stream
        height, width = first.height, first.width
        transposed = orientation_of(first)[0]
        return VideoInfo(
            spec=self._spec,
            size_hw=(width, height) if transposed else (height, width),
            rate=stream.average_rate or stream.guessed_rate or None,
            frame_count=None if self._live else _announced_count(self._container, stream),
            backend=self._backend,
            has_audio=bool(self._container.streams.audio),
        )

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """Frames up to the damage, if there is one; then SourceError."""
        packets = self._container.demux(self._stream)
        waiting: list[int] = []  # heap: pts of packets whose frames have not come out yet
        while True:
            try:
                packet = next(packets, None)
            except LIBRARY_ERRORS as error:
                yield from self._held_back(waiting)
                raise self._damage(error_text(error)) from error
            if packet is None:
                return
            if packet.pts is not None and not packet.is_discard:
                heapq.heappush(waiting, packet.pts)
            if packet.is_corrupt and self._trusts_packet_flags:
                yield from self._held_back(waiting)
                raise self._damage("the file is cut off or has a hole")
            for frame in self._decode_packet(packet):
                while waiting and frame.pts is not None and waiting[0] <= frame.pts:
                    heapq.heappop(waiting)
                yield frame

    def _decode_packet(self, packet: Packet[VideoStream]) -> Iterator[VideoFrame]:
        try:
            frames = packet.decode()
        except LIBRARY_ERRORS as error:
            if self._backend == "cuda" and packet.is_keyframe and self._decoded == 0:
                # The driver is asked about the picture here, and never will decode one.
                raise _no_gpu_decoder(self._spec) from error
            if not self._live:
                # What the decoder still holds may refer to the damaged picture: it is not shown.
                raise self._damage(error_text(error)) from error
            _log.warning("%s: a packet is passed over: %s", self._spec, error_text(error))
            return
        for frame in frames:
            if frame.is_corrupt and not self._live:
                raise self._damage("its data are damaged")
            self._decoded += 1
            yield frame

    def _held_back(self, waiting: list[int]) -> Iterator[VideoFrame]:
        """Frames that wait inside the decoder, up to the first one that is missing."""
        try:
            frames = self._stream.decode(None)
        except LIBRARY_ERRORS as error:
            _log.debug("%s: nothing more to save: %s", self._spec, error_text(error))
            return
        for frame in frames:
            if frame.is_corrupt or not waiting or frame.pts != heapq.heappop(waiting):
                return
            self._decoded += 1
            yield frame

    def _damage(self, reason: str) -> SourceError:
        return SourceError(
            f"cannot decode the video from here on: {reason}; whole frames before: {self._decoded}",
            path=self._spec,
            frame_index=self._decoded,
        )

    def _time_s(self, frame: VideoFrame, index: int) -> float:
        if frame.time is not None:
            return float(frame.time)
        return float(index / (self._info.rate or NOMINAL_RATE))

    def _image(self, frame: VideoFrame, index: int) -> UInt8Array:
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        except LIBRARY_ERRORS as error:
            raise SourceError(
                f"cannot convert a {frame.format.name} frame to RGB: {error_text(error)}",
                path=self._spec,
                frame_index=index,
            ) from error
        return upright(np.asarray(rgb, np.uint8), orientation_of(frame))


class _Pipe:
    """Standard input for PyAV: no close, and no seek unless it is a redirected file."""

    def __init__(self, stream: BinaryIO) -> None:
        # read1 hands on what has arrived; read would wait until FFmpeg's buffer is full.
        self.read = getattr(stream, "read1", stream.read)
        if stream.seekable():
            self.seek, self.tell = stream.seek, stream.tell


def warn_if_cut_off(info: VideoInfo, announced_end_s: float | None, last_time_s: float) -> None:
    """Log a warning when a video of unknown frame count ends before its announced end."""
    if announced_end_s is None or info.frame_count is not None:
        return  # where frames are counted, the count is compared instead
    period_s = float(1 / (info.rate or NOMINAL_RATE))
    if announced_end_s - last_time_s > 2.5 * period_s:
        _log.warning(
            "%s: it announces %.2f s, but its last frame comes at %.2f s; the file may be cut off",
            info.spec,
            announced_end_s,
            last_time_s,
        )


def packet_times_s(path: Path) -> list[float]:
    """Presentation times in seconds, ascending, of all frames of a video file; nothing is decoded.

    Raises:
        SourceError: The file cannot be read to its end.
    """
    with _open(f"file:{path}", str(path), "pyav") as container:
        stream = _video_stream(container, str(path))
        try:
            ticks = [
                p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard
            ]
        except LIBRARY_ERRORS as error:
            raise SourceError(f"cannot read the video: {error_text(error)}", path=path) from error
        return [float(tick * (stream.time_base or Fraction(1))) for tick in sorted(ticks)]


def error_text(error: BaseException) -> str:
    """What an error of PyAV says, without its number and its call."""
    if isinstance(error, av.error.ExitError):
        return f"no data came for {_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _open(file: str | _Pipe, spec: str, backend: str, **arguments: Any) -> InputContainer:
    errors: tuple[type[Exception], ...] = LIBRARY_ERRORS
    if backend == "cuda":
        arguments["hwaccel"] = HWAccel("cuda", allow_software_fallback=False)
        errors = (*errors, RuntimeError)  # when no stream can be decoded there
    try:
        # metadata_errors: a title in a strange encoding is no reason to refuse the pictures.
        container: InputContainer = av.open(file, mode="r", metadata_errors="replace", **arguments)
    except errors as error:
        if backend == "cuda" and (missing := _missing_for_cuda()):
            raise SourceError(f"{missing}; use the pyav backend", path=spec) from error
        if isinstance(error, RuntimeError):
            raise _no_gpu_decoder(spec) from error
        hint = "; is it a video, and whole?" if isinstance(error, av.InvalidDataError) else ""
        if spec == "-":
            hint += " On a pipe an mp4 must have its index in front (faststart)"
        raise SourceError(
            f"{spec!r} cannot be opened as a video: {error_text(error)}{hint}", path=spec
        ) from error
    return container


def _missing_for_cuda() -> str | None:
    """What is missing here for a video to be decoded on an NVIDIA GPU; None = nothing is known."""
    try:
        HWAccel("cuda").create(Codec("h264", "r"))
    except NotImplementedError:
        return (
            "the cuda backend needs a PyAV that was built with NVIDIA's decoders; this one was not"
        )
    except LIBRARY_ERRORS:
        return "the cuda backend needs an NVIDIA GPU and its driver; none was found"
    return None


def _no_gpu_decoder(spec: str) -> SourceError:
    return SourceError(
        "the GPU does not decode this video: its driver lacks the video decoder (libnvcuvid), or "
        "knows no such codec, profile or size; most have H.264 and HEVC of 4:2:0; use the pyav "
        "backend",
        path=spec,
    )


def _video_stream(container: InputContainer, spec: str) -> VideoStream:
    """The best video stream; not a cover picture, and not FFmpeg's rendering of a text file."""
    stream = container.streams.best("video")
    is_cover = stream is not None and stream.disposition & Disposition.attached_pic
    if not isinstance(stream, VideoStream) or is_cover or container.format.name == "tty":
        kinds = ", ".join(sorted({other.type for other in container.streams}))
        found = "text" if container.format.name == "tty" else kinds or "nothing"
        raise SourceError(f"there is no video stream in {spec!r}; got {found}", path=spec)
    return stream


def _announced_count(container: InputContainer, stream: VideoStream) -> int | None:
    """Number of frames by the container's own word, or None."""
    if stream.frames <= 0:
        return None
    # An mp4 also counts the frames that its edit list cuts away; its index knows better.
    is_mp4 = "mp4" in container.format.name
    entries = getattr(stream, "index_entries", ()) if is_mp4 else ()
    shown = sum(not entry.is_discard for entry in entries)
    return min(shown, stream.frames) or stream.frames


def _announced_end_s(container: InputContainer, stream: VideoStream) -> float | None:
    """When the video stream ends by the container's own word, in seconds, or None."""
    tag = stream.metadata.get("DURATION", "")  # Matroska: "00:00:10.034000000"
    try:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        alone = len(container.streams) == 1 and container.duration is not None
        return float(container.duration or 0) / av.time_base if alone else None
