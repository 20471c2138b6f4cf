"""From what the user wrote to an open source."""

from __future__ import annotations

from pathlib import Path

from persam_video.config import SourceConfig
from persam_video.errors import ConfigError, SourceError
from persam_video.sources.base import ClipSource, Reader, Source, check_window
from persam_video.sources.camera import CameraReader
from persam_video.sources.container import NETWORK_SCHEMES, open_file, open_pipe, open_url
from persam_video.sources.decord_file import DecordReader
from persam_video.sources.images import IMAGE_SUFFIXES, ImageReader
from persam_video.sources.raw import RawReader

_LEGAL = (
    "legal are an image folder, an image or video file, camera:N, a stream address "
    f"({', '.join(scheme + '://' for scheme in NETWORK_SCHEMES)}), - for a video on standard "
    "input, raw:WIDTHxHEIGHT@RATE for raw RGB frames on standard input"
)


def open_source(spec: str | Path, config: SourceConfig | None = None) -> Source:
    """Open anything that gives frames.

    =========================  =====================================================================
    ``spec``                   what is read
    =========================  =====================================================================
    folder                     its jpg, jpeg, png, webp and bmp images in natural order, all of one
                               size; 24 frames per second are taken, as images carry no time
    image file                 a clip of one frame
    video file                 with PyAV, or as ``config.backend`` says
    ``camera:N``               camera N of this machine, through OpenCV
    ``rtsp://`` ``rtmp://``    a network stream, through PyAV; 10 seconds without data are an
    ``http://`` ``udp://`` ... error
    ``-``                      a video file on standard input; on a pipe it must be one that can be
                               read from front to end (Matroska, MPEG-TS, mp4 with faststart)
    ``raw:WIDTHxHEIGHT@RATE``  raw RGB frames on standard input (``ffmpeg -f rawvideo -pix_fmt
                               rgb24``), e.g. ``raw:640x480@30000/1001``
    =========================  =====================================================================

    A ``Path`` is always a file or a folder, whatever its name looks like. Frames are upright (EXIF
    and container rotation applied), RGB, without alpha; pixels are taken as square. The first
    frame is read here, so that ``info`` is certain and a hopeless input fails at once.

    A damaged video gives the frames before the damage, then SourceError with ``frame_index``; a
    GPU's decoder (``cuda``) does not tell of damage inside a picture, though, and shows it. A video
    that ends cleanly but too early for what its container announces gives a logged warning.

    Args:
        spec: What to open.
        config: Which frames, how large, which decoder; default: all, as they are, PyAV.

    Raises:
        SourceError: Nothing is there, it cannot be read, or it has no frame at ``config.start``.
        ConfigError: ``end`` does not lie after ``start``, or decord is asked for something that is
            no file.
    """
    config = config or SourceConfig()
    check_window(config)
    return ClipSource(_open_reader(spec, config), config)


def _open_reader(spec: str | Path, config: SourceConfig) -> Reader:
    if isinstance(spec, Path):
        return _open_path(spec, config)
    if spec.startswith("camera:"):
        return CameraReader(spec)
    if spec.startswith("raw:"):
        return RawReader(spec)
    if spec == "-":
        _check_streams(spec, config)
        return open_pipe(config.backend)
    scheme, found, _ = spec.partition("://")
    if found:
        if scheme.lower() not in NETWORK_SCHEMES:
            raise SourceError(f"{spec!r} is no source: unknown address {scheme}://; {_LEGAL}")
        _check_streams(spec, config)
        return open_url(spec, config.backend)
    if not spec:
        raise SourceError(f"the source is empty text; {_LEGAL}")
    return _open_path(Path(spec), config)


def _open_path(path: Path, config: SourceConfig) -> Reader:
    try:
        path.stat()
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"cannot open {str(path)!r}: {reason}; {_LEGAL}", path=path) from error
    if is_folder or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageReader(path)
    return DecordReader(path) if config.backend == "decord" else open_file(path, config.backend)


def _check_streams(spec: str, config: SourceConfig) -> None:
    if config.backend == "decord":
        raise ConfigError(f"decord reads video files only, got {spec!r}; legal here: pyav, cuda")
