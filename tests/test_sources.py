"""What single kinds of source do on their own: names, odd files, messages, refusals."""

from __future__ import annotations

import gc
import io
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from source_clips import (
    RATE,
    Clip,
    assert_shows,
    damage_video,
    pattern,
    stored,
    write_images,
    write_video,
)

from persam_video.config import SourceConfig
from persam_video.errors import ConfigError, SourceError
from persam_video.sources import container, open_source
from persam_video.sources.container import ContainerReader
from persam_video.sources.images import load_image

DECORD = SourceConfig(backend="decord")


def save(path: Path, index: int = 0, size_hw: tuple[int, int] = (48, 64)) -> Path:
    Image.fromarray(pattern(index, size_hw)).save(path)
    return path


def refusal(spec: str | Path, config: SourceConfig | None = None) -> SourceError:
    """The error that opening, or else reading to the end, raises."""
    with pytest.raises(SourceError) as caught, open_source(spec, config) as source:
        for _ in source:
            pass
    return caught.value


# Specs


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no/such/clip.mp4", "No such file or directory"),
        ("", "empty"),
        ("ftp://host/clip.mp4", "unknown address ftp://"),
        ("camera:front", "camera:N"),
        ("camera:-1", "camera:N"),
        ("raw:64x48", "raw:640x480@30"),
        ("raw:0x48@30", "raw:640x480@30"),
        ("raw:64x48@0", "raw:640x480@30"),
        ("raw:64x48@30/0", "raw:640x480@30"),
        ("raw:64x48@-5", "raw:640x480@30"),
        ("a\0b.mp4", "null byte"),
    ],
)
def test_open_source_unusable_spec_is_refused_with_the_legal_forms(spec: str, says: str) -> None:
    assert says in str(refusal(spec))


def test_open_source_empty_window_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start 5 and end 5"):
        open_source(tmp_path, SourceConfig(start=5, end=5))


@pytest.mark.parametrize("spec", ["-", "http://127.0.0.1/clip.mp4"])
def test_open_source_decord_for_a_stream_is_refused_not_replaced(spec: str) -> None:
    with pytest.raises(ConfigError, match="decord reads video files only"):
        open_source(spec, DECORD)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_open_source_cuda_without_a_gpu_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip(count=2))
    error = refusal(path, SourceConfig(backend="cuda"))
    assert "needs an NVIDIA GPU" in str(error) and error.path == str(path)


def test_open_source_cuda_of_a_codec_that_no_gpu_decodes_is_refused_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_missing_for_cuda", lambda: None)
    path = write_video(tmp_path / "clip.mkv", Clip(count=2), codec="ffv1")
    error = refusal(path, SourceConfig(backend="cuda"))
    assert "the GPU does not decode this video" in str(error) and error.path == str(path)


@pytest.mark.parametrize("live", [False, True])
def test_video_that_the_gpu_refuses_with_its_first_picture_is_an_error(
    tmp_path: Path, live: bool
) -> None:
    """The driver is asked about profile and size no sooner; a live stream would be waited for."""

    class Refused:
        is_keyframe = True

        def decode(self) -> None:
            raise av.error.ExternalError(0, "no decoder")

    reader = ContainerReader(
        av.open(str(write_video(tmp_path / "clip.mp4", Clip()))), "x", live=live
    )
    reader._backend, reader._decoded = "cuda", 0
    with pytest.raises(SourceError, match="the GPU does not decode this video"):
        next(reader._decode_packet(Refused()))  # type: ignore[arg-type]
    reader.close()


def test_video_that_is_closed_early_is_let_go_of(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip())
    reader = container.open_file(path)
    next(reader.pictures())
    gone = weakref.ref(reader)
    reader.close()
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


def test_open_source_backend_decord_leaves_images_alone(tmp_path: Path) -> None:
    with open_source(save(tmp_path / "photo.png"), DECORD) as source:
        assert source.info.backend == "images"
        assert [frame.name for frame in source] == ["photo"]


def test_open_source_name_with_colon_and_percent_is_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "http:clip %03d.mp4", Clip(count=2))
    for config in (SourceConfig(), DECORD):
        with open_source(path, config) as source:
            assert [frame.index for frame in source] == [0, 1]


# Images


def test_image_folder_names_sort_naturally_and_other_files_are_ignored(tmp_path: Path) -> None:
    for index, name in enumerate(("2.png", "10.JPG", "a9.bmp", "a10.jpeg")):
        save(tmp_path / name, index)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._2.jpg").write_text("what a Mac leaves behind")
    (tmp_path / "folder.png").mkdir()
    with open_source(str(tmp_path)) as source:
        assert [(f.name, f.index) for f in source] == [("2", 0), ("10", 1), ("a9", 2), ("a10", 3)]


def test_image_folder_sizes_that_differ_are_refused_with_both(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.png", size_hw=(50, 60))
    error = refusal(tmp_path)
    assert error.frame_index == 1
    for part in ("2.png", "60x50", "64x48"):
        assert part in str(error)


def test_image_folder_shared_stem_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "00000.jpg")
    save(tmp_path / "00000.png")
    assert "00000.jpg and 00000.png" in str(refusal(tmp_path))


def test_image_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    assert "holds no image; got 0 other files" in str(refusal(tmp_path))
    (tmp_path / "bear").mkdir()
    assert "got folders bear" in str(refusal(tmp_path))


def test_image_folder_first_file_unreadable_is_frame_0(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    assert refusal(tmp_path).frame_index == 0


def test_load_image_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (48, 1))).save(tmp_path / "deep.png")
    image = load_image(tmp_path / "deep.png", 0)
    assert image.shape == (48, 64, 3)
    assert np.array_equal(image[0, :, 1], np.round(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK"])
def test_load_image_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (64, 48), "white").convert(mode).save(path)
    assert (load_image(path, 0) >= 253).all()


def test_load_image_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(0, (48, 64))).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert_shows(load_image(tmp_path / "palette.png", 0), 0, tolerance=26)  # 216 web colours


def test_load_image_animation_is_refused(tmp_path: Path) -> None:
    pictures = [Image.fromarray(pattern(index, (48, 64))) for index in range(3)]
    pictures[0].save(tmp_path / "moving.webp", save_all=True, append_images=pictures[1:])
    assert "animation of 3 pictures" in str(refusal(tmp_path / "moving.webp"))


def test_load_image_mpo_of_a_phone_gives_the_photo(tmp_path: Path) -> None:
    pictures = [Image.fromarray(pattern(index, (48, 64))) for index in (4, 0)]
    pictures[0].save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert_shows(load_image(tmp_path / "photo.jpg", 0), 4)


# Videos


def no_video(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.mp4"
    if kind == "sound":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=44100)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
            samples.rate = 44100
            out.mux(stream.encode(samples))
            out.mux(stream.encode())
        return path
    contents = {"empty": b"", "junk": bytes(range(256)) * 40, "text": b"not a video\n" * 400}
    if kind == "index_lost":
        write_video(path, Clip(), options={"movflags": "0"})
        data = path.read_bytes()
        contents[kind] = data[: data.index(b"moov") + 100]
    path = path.with_suffix(".txt") if kind == "text" else path
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sound", "no video stream"),
        ("empty", "cannot be opened"),
        ("junk", "cannot be opened"),
        ("text", "got text"),
        ("index_lost", "no video stream"),
    ],
)
def test_video_that_is_none_is_refused(tmp_path: Path, backend: str, kind: str, says: str) -> None:
    assert says in str(refusal(no_video(tmp_path, kind), SourceConfig(backend=backend)))


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_video_with_sound_says_so(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip(count=2), sound=True)
    with open_source(path, SourceConfig(backend=backend)) as source:
        assert source.info.has_audio and source.info.rate == RATE


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_video_cut_off_cleanly_gives_its_frames_and_a_warning(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "clip.mkv", Clip(), codec_options={"crf": "4", "bf": "0"})
    with open_source(path) as source:
        assert source.info.frame_count is None and len(list(source)) == 8
    assert not caplog.records
    whole = path.read_bytes()
    with av.open(str(path)) as opened:
        fourth = [packet.pos for packet in opened.demux(video=0) if packet.size][4]
    path.write_bytes(whole[:fourth])
    with caplog.at_level(logging.WARNING), open_source(path, SourceConfig(backend=backend)) as cut:
        frames = list(cut)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert "the file may be cut off" in caplog.text


def test_video_fewer_frames_than_announced_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "clip.avi", Clip(), codec="mpeg4")
    with av.open(str(path)) as opened:
        last = [packet.pos for packet in opened.demux(video=0) if packet.size][-1]
    path.write_bytes(path.read_bytes()[:last])
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        assert len(list(source)) == 7
    assert "it announces 8 frames, but only 7 came out" in caplog.text


def test_video_cut_inside_a_frame_gives_every_whole_frame_before_it(tmp_path: Path) -> None:
    options = {"crf": "4", "bf": "2", "b_strategy": "0", "sc_threshold": "0"}
    path = write_video(tmp_path / "clip.mp4", Clip(), codec_options=options)
    with av.open(str(path)) as opened:
        order = [p.pts for p in opened.demux(video=0) if p.pts is not None]
    damage_video(path, "truncated")  # inside the sixth packet
    whole = set(order[:5])
    count = next(n for n, pts in enumerate(sorted(order)) if pts not in whole)
    assert order != sorted(order) and 2 <= count <= 5
    with open_source(path) as source:
        for index in range(count):
            assert_shows(next(source).image_rgb, index)
        with pytest.raises(SourceError, match="cut off") as caught:
            next(source)
    assert caught.value.frame_index == count


def test_video_pixels_that_do_not_decode_are_refused_not_guessed(tmp_path: Path) -> None:
    options = {"crf": "4", "bf": "0"}
    path = write_video(tmp_path / "clip.mp4", Clip(size_hw=(120, 160)), codec_options=options)
    with av.open(str(path)) as opened:
        packets = [(p.pos, p.size) for p in opened.demux(video=0) if p.size]
    data, noise = bytearray(path.read_bytes()), np.random.default_rng(0)
    position, size = packets[4]  # a key frame: FFmpeg conceals the lower half of its picture
    data[position + size // 2 : position + size] = noise.bytes(size - size // 2)
    path.write_bytes(data)
    assert refusal(path).frame_index == 4


def cut_by_edit_list(tmp_path: Path, hidden: int) -> Path:
    """An mp4 whose edit list hides its first frames, as a lossless cut leaves it."""
    options = {"crf": "4", "bf": "0", "sc_threshold": "0"}  # key frames: 0 and 4
    source = write_video(tmp_path / "long.mp4", Clip(), codec_options=options)
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                shift = int(hidden / (RATE * packet.time_base))
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                out.mux(packet)
    return path


@pytest.mark.parametrize("hidden", [3, 4])
def test_video_edit_list_hidden_frames_are_neither_shown_nor_counted(
    tmp_path: Path, hidden: int, caplog: pytest.LogCaptureFixture
) -> None:
    with open_source(cut_by_edit_list(tmp_path, hidden)) as source:
        frames = list(source)
        assert source.info.frame_count == len(frames) == 8 - hidden
    for frame in frames:
        assert_shows(frame.image_rgb, frame.index + hidden)
    assert frames[0].time_s == 0 and not caplog.records


def test_decord_where_it_would_show_wrong_frames_is_refused(tmp_path: Path) -> None:
    error = refusal(cut_by_edit_list(tmp_path, 3), DECORD)
    assert "decord sees 8 frames where the container shows 5; use the pyav backend" in str(error)


def mirrored(tmp_path: Path) -> Path:
    path = tmp_path / "mirrored.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        stream.set_display_rotation(0, hflip=True)
        picture = np.ascontiguousarray(pattern(2, (48, 64))[:, ::-1])
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    return path


def test_video_mirrored_by_its_matrix_is_mirrored_back(tmp_path: Path) -> None:
    with open_source(mirrored(tmp_path)) as source:
        assert_shows(next(source).image_rgb, 2)
    assert "decord does not mirror" in str(refusal(mirrored(tmp_path), DECORD))


@pytest.mark.parametrize(("matrix", "colour_range"), [(1, 1), (1, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_video_colours_follow_the_streams_matrix_and_range(
    tmp_path: Path, backend: str, matrix: int, colour_range: int
) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, colour_range
        frame = av.VideoFrame.from_ndarray(pattern(3, (48, 64)), "rgb24").reformat(
            format="yuv444p", dst_colorspace=matrix, dst_color_range=colour_range
        )
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with open_source(path, SourceConfig(backend=backend)) as source:
        assert_shows(next(source).image_rgb, 3, tolerance=4)


def test_video_size_that_changes_midway_is_refused_with_both(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.ts", Clip(count=3))
    large = write_video(tmp_path / "large.ts", Clip(count=3, size_hw=(96, 128)))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    error = refusal(both)
    assert "128x96" in str(error) and "64x48" in str(error) and error.frame_index == 3


def test_video_without_timestamps_gets_them_from_the_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.h264", Clip(count=4), codec_options={"bf": "0"})
    with open_source(path) as source:
        rate = source.info.rate
        assert rate is not None
        times = [frame.time_s for frame in source]
    assert times == pytest.approx([index / float(rate) for index in range(4)])


def test_video_bug_in_one_place_of_a_live_stream_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip(damage="corrupt"))
    reader = ContainerReader(av.open(str(path)), "rtsp://camera", live=True)
    with caplog.at_level(logging.WARNING):
        count = sum(1 for _ in reader.pictures())
    reader.close()
    assert 4 <= count < 8 and "a packet is passed over" in caplog.text
    assert reader.info.frame_count is None


def test_decord_not_installed_is_said_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip(count=1))
    monkeypatch.setitem(sys.modules, "decord", None)
    assert "decord cannot be loaded" in str(refusal(path, DECORD))


def test_decord_format_it_fails_on_is_refused_at_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", Clip(count=1))  # decord 3.4 needs two frames in mkv
    with pytest.raises(SourceError, match="try the pyav backend"):
        open_source(path, DECORD)


# Network


def test_network_nobody_there_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for scheme in ("http", "rtsp"):
        assert "refused" in str(refusal(f"{scheme}://127.0.0.1:{port}/clip.mp4"))


def test_network_silence_ends_in_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/clip.mp4"
        assert "no data came for 0.3 s" in str(refusal(address))


# Standard input


def use_stdin(monkeypatch: pytest.MonkeyPatch, stream: object) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))


def test_standard_input_redirected_file_may_have_its_index_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", Clip(count=3), options={"movflags": "0"})
    with path.open("rb") as stream:
        use_stdin(monkeypatch, stream)
        with open_source("-") as source:
            assert len(list(source)) == 3
        assert not stream.closed


def test_standard_input_first_frames_come_before_the_pipe_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mkv", Clip(count=120), codec_options={"bf": "0"})
    data, seen = path.read_bytes(), threading.Event()
    reading, writing = os.pipe()
    in_time = []

    def feed() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(data[:-20])
            in_time.append(seen.wait(timeout=3))
            pipe.write(data[-20:])

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(reading, "rb") as stream:
        use_stdin(monkeypatch, stream)
        with open_source("-") as source:
            next(source)
            seen.set()
            count = 1 + len(list(source))
    feeder.join()
    assert (in_time, count) == ([True], 120)


@pytest.mark.parametrize("spec", ["-", "raw:64x48@25"])
def test_standard_input_missing_or_terminal_is_refused(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "there is none" in str(refusal(spec))
    controller, terminal = os.openpty()
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "rb") as stream:
        use_stdin(monkeypatch, stream)
        assert "is a terminal" in str(refusal(spec))


@pytest.mark.parametrize("spec", ["-", "raw:64x48@25"])
def test_standard_input_without_a_byte_is_refused(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stdin(monkeypatch, io.BytesIO(b""))
    assert spec in str(refusal(spec))


def test_raw_rate_and_partial_frame_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stdin(monkeypatch, io.BytesIO(bytes(4 * 2 * 3) + b"half"))
    with open_source("raw:4x2@30000/1001") as source:
        assert source.info.rate == Fraction(30000, 1001)
        next(source)
        with pytest.raises(SourceError, match="got 4 of 24 bytes") as caught:
            next(source)
    assert caught.value.frame_index == 1


# Camera


@pytest.fixture
def fake_camera(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """(**answers) -> a stand-in for cv2.VideoCapture that gives them."""

    def install(**answers: object) -> SimpleNamespace:
        frame = np.ascontiguousarray(pattern(0, (48, 64))[:, :, ::-1])
        given: dict[str, object] = {"opened": True, "grabs": True, "rate": 29.97002997} | answers
        log = SimpleNamespace(number=None, released=0)

        def release() -> None:
            log.released += 1

        def grab() -> object:
            if isinstance(given["grabs"], Exception):
                raise given["grabs"]
            return given["grabs"]

        def capture(number: int) -> SimpleNamespace:
            log.number = number
            return SimpleNamespace(
                isOpened=lambda: given["opened"],
                get=lambda _: given["rate"],
                grab=grab,
                retrieve=lambda: (True, frame),
                release=release,
            )

        monkeypatch.setattr(cv2, "VideoCapture", capture)
        return log

    return install


def test_camera_number_rate_and_release(fake_camera: Callable[..., SimpleNamespace]) -> None:
    camera = fake_camera()
    with open_source("camera:3", SourceConfig(end=2)) as source:
        assert source.info.rate == Fraction(30000, 1001)
        assert len(list(source)) == 2
    assert (camera.number, camera.released) == (3, 1)


def test_camera_that_does_not_know_its_rate_has_none(
    fake_camera: Callable[..., SimpleNamespace],
) -> None:
    fake_camera(rate=0.0)
    with open_source("camera:0") as source:
        assert source.info.rate is None


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"opened": False}, "there is no camera 7"),
        ({"grabs": False}, "delivers no picture"),
        ({"grabs": cv2.error("driver")}, "delivers no picture"),
    ],
)
def test_camera_that_fails_is_refused_and_released(
    fake_camera: Callable[..., SimpleNamespace], answers: dict[str, object], says: str
) -> None:
    camera = fake_camera(**answers)
    assert says in str(refusal("camera:7"))
    assert camera.released == 1


# The test clips themselves


def test_clips_rotated_are_stored_turned(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "plain", Clip(), "png")
    clip = Clip(rotation=90)
    assert stored(0, clip).shape[:2] == (64, 48)
    with pytest.raises(AssertionError):
        assert_shows(np.ascontiguousarray(stored(0, clip)), 0)
    assert_shows(load_image(folder / "1.png", 0), 0)
