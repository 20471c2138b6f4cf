"""Every kind of source x every kind of clip: count, order, colours, times, damage, early close."""

from __future__ import annotations

import functools
import http.server
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from source_clips import (
    RATE,
    Clip,
    assert_shows,
    expected_times,
    pattern,
    raw_bytes,
    write_images,
    write_video,
)

from persam_video.config import SourceConfig
from persam_video.errors import SourceError
from persam_video.sources import Source, open_source

CLIPS = {
    "plain": Clip(),
    "odd": Clip(size_hw=(121, 161)),
    "rotated_90": Clip(rotation=90),
    "rotated_180": Clip(rotation=180),
    "rotated_270": Clip(rotation=270),
    "variable_rate": Clip(variable_rate=True),
    "one_frame": Clip(count=1),
    "grey": Clip(mode="L"),
    "alpha": Clip(mode="RGBA"),
    "truncated": Clip(damage="truncated"),
    "corrupt": Clip(damage="corrupt"),
}
IMAGES = ("images_jpg", "images_png", "images_webp", "images_bmp")
CONTAINERS = ("pyav_file", "decord_file", "pyav_pipe", "pyav_http")
SOURCES = (*IMAGES, *CONTAINERS, "raw_pipe", "camera")
ROTATED = ("rotated_90", "rotated_180", "rotated_270")

# Combinations that cannot exist, and why.
IMPOSSIBLE = {
    **{(name, "variable_rate"): "images carry no time" for name in IMAGES},
    **{("images_bmp", clip): "BMP has no EXIF" for clip in ROTATED},
    ("images_jpg", "alpha"): "JPEG has no alpha",
    **{("raw_pipe", clip): "raw frames carry no rotation" for clip in ROTATED},
    ("raw_pipe", "variable_rate"): "raw frames carry no time",
    ("raw_pipe", "grey"): "raw frames are RGB",
    ("raw_pipe", "alpha"): "raw frames are RGB",
    ("raw_pipe", "corrupt"): "any bytes are legal raw pixels",
    **{("camera", clip): "cameras carry no rotation" for clip in ROTATED},
    ("camera", "variable_rate"): "a camera's time is the clock's",
    ("camera", "alpha"): "OpenCV's cameras give no alpha",
    ("camera", "truncated"): "a camera has no end",
}
PAIRS = [(source, clip) for source in SOURCES for clip in CLIPS if (source, clip) not in IMPOSSIBLE]

OpenClip = Callable[..., Source]


class FakeCapture:
    """cv2.VideoCapture over a clip's frames; fails after them, or at frame 4 of a corrupt one."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._index, self.released = clip, -1, 0

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, _: int) -> float:
        return float(RATE)

    def grab(self) -> bool:
        self._index += 1
        return self._index < self._clip.count

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        if self._clip.damage == "corrupt" and self._index == 4:
            return False, None
        frame = pattern(self._index, self._clip.size_hw, self._clip.mode)
        return True, np.ascontiguousarray(frame[:, :, ::-1]) if frame.ndim == 3 else frame

    def release(self) -> None:
        self.released += 1


@contextmanager
def piped(data: bytes) -> Iterator[None]:
    """Standard input is a pipe that gives ``data``."""
    reading, writing = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(data)
        except BrokenPipeError:
            return  # the reader had enough

    feeder = threading.Thread(target=feed)
    feeder.start()
    before = sys.stdin
    stream = os.fdopen(reading, "rb")
    sys.stdin = SimpleNamespace(buffer=stream)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdin = before
        stream.close()
        feeder.join()


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        assert isinstance(sys.exception(), ConnectionError)  # the reader closed before the end


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def server(clip_folder: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(clip_folder))
    with QuietServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def clip_file(clip_folder: Path) -> Callable[[str, str], Path]:
    """(kind, clip name) -> the file or folder, written when it is first asked for."""

    @functools.cache
    def write(kind: str, name: str) -> Path:
        clip = CLIPS[name]
        if kind.startswith("images"):
            return write_images(clip_folder / f"{kind}_{name}", clip, kind.removeprefix("images_"))
        return write_video(clip_folder / f"{name}.{'mp4' if clip.mode == 'RGB' else 'mov'}", clip)

    return write


@pytest.fixture
def open_clip(
    clip_file: Callable[[str, str], Path], server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenClip]:
    """(kind, clip name, **settings) -> the open source; everything is closed after the test."""
    with ExitStack() as stack:

        def open_it(kind: str, name: str, **settings: object) -> Source:
            clip = CLIPS[name]
            if kind == "camera":
                monkeypatch.setattr(cv2, "VideoCapture", lambda number: FakeCapture(clip))
                settings = {"end": clip.count} | settings  # a camera never ends by itself
                spec: str | Path = "camera:0"
            elif kind == "raw_pipe":
                stack.enter_context(piped(raw_bytes(clip)))
                spec = f"raw:{clip.size_hw[1]}x{clip.size_hw[0]}@{RATE}"
            elif kind.startswith("images"):
                spec = clip_file(kind, name)
            else:
                spec = clip_file("video", name)
            if kind == "pyav_pipe":
                stack.enter_context(piped(Path(spec).read_bytes()))
                spec = "-"
            if kind == "pyav_http":
                spec = f"{server}/{Path(spec).name}"
            backend = "decord" if kind == "decord_file" else "pyav"
            return stack.enter_context(open_source(spec, SourceConfig(backend=backend, **settings)))

        yield open_it


def lossy(kind: str) -> float:
    return 0 if kind in ("images_png", "images_webp", "images_bmp", "raw_pipe", "camera") else 9


@pytest.mark.parametrize(("kind", "name"), [p for p in PAIRS if not CLIPS[p[1]].damage])
def test_source_whole_clip_gives_every_frame_in_order(
    open_clip: OpenClip, kind: str, name: str
) -> None:
    clip = CLIPS[name]
    source = open_clip(kind, name)
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(clip.count))
    assert {frame.size_hw for frame in frames} == {clip.size_hw} == {source.info.size_hw}
    for frame in frames:
        assert_shows(frame.image_rgb, frame.index, clip.mode, lossy(kind))
    assert list(source) == []  # one pass

    times = [frame.time_s for frame in frames]
    if kind == "camera":
        assert times[0] == 0 and times == sorted(times) and times[-1] < 10
    else:
        rate = Fraction(24) if kind in IMAGES else RATE
        assert times == pytest.approx(list(expected_times(clip, rate)), abs=1e-6)
    names = [str(index + 1) if kind in IMAGES else None for index in range(clip.count)]
    assert [frame.name for frame in frames] == names


@pytest.mark.parametrize("kind", SOURCES)
def test_source_info_before_reading_states_the_facts(open_clip: OpenClip, kind: str) -> None:
    info = open_clip(kind, "odd").info
    backends = {"raw_pipe": "raw", "camera": "opencv", "decord_file": "decord"}
    assert info.backend == ("images" if kind in IMAGES else backends.get(kind, "pyav"))
    assert info.size_hw == (121, 161)
    assert info.rate == (24 if kind in IMAGES else RATE)
    assert info.frame_count == (None if kind in ("raw_pipe", "camera") else 8)
    assert not info.has_audio


@pytest.mark.parametrize("kind", SOURCES)
def test_source_start_end_stride_and_max_size_are_applied(open_clip: OpenClip, kind: str) -> None:
    source = open_clip(kind, "odd", start=1, end=7, stride=3, max_size=80)
    frames = list(source)
    assert [frame.index for frame in frames] == [1, 4]
    assert [frame.size_hw for frame in frames] == [(60, 80), (60, 80)]
    for frame in frames:
        assert_shows(frame.image_rgb, frame.index)
    rate = Fraction(24) if kind in IMAGES else RATE
    assert source.info.size_hw == (60, 80)
    assert source.info.rate == rate / 3
    assert source.info.frame_count == (None if kind in ("raw_pipe", "camera") else 2)
    if kind != "camera":
        assert [f.time_s for f in frames] == pytest.approx([1 / float(rate), 4 / float(rate)])


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "camera"])
def test_source_start_beyond_end_is_refused_with_the_count(open_clip: OpenClip, kind: str) -> None:
    with pytest.raises(SourceError, match="start 8 lies beyond the end: there are 8 frames"):
        next(iter(open_clip(kind, "plain", start=8)))


@pytest.mark.parametrize("kind", SOURCES)
def test_source_closed_early_stays_closed(open_clip: OpenClip, kind: str) -> None:
    source = open_clip(kind, "plain")
    assert_shows(next(source).image_rgb, 0)
    assert_shows(next(iter(source)).image_rgb, 1)
    source.close()
    source.close()
    with pytest.raises(SourceError, match="closed"):
        next(source)


@pytest.mark.parametrize(("kind", "name"), [p for p in PAIRS if CLIPS[p[1]].damage])
def test_source_damaged_clip_gives_the_frames_before_and_the_place(
    open_clip: OpenClip, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = []
    with caplog.at_level(logging.WARNING), pytest.raises(SourceError) as caught:
        for frame in open_clip(kind, name):
            frames.append(frame)
    assert caught.value.frame_index == len(frames)
    for index, frame in enumerate(frames):
        assert frame.index == index
        assert_shows(frame.image_rgb, index)
    if kind in (*IMAGES, "raw_pipe", "camera"):
        last = 5 if kind == "raw_pipe" else 7
        assert len(frames) == (4 if name == "corrupt" else last)
    else:  # how many come out before is the decoder's affair; the damage lies at frame 4 or 5
        assert len(frames) <= 5 and (frames or kind == "decord_file")
