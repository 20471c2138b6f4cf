"""The overlay video read back: times, sizes, colours, and the sound that came along."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from sink_samples import SIZE_HW, make_frame, make_result, write_frames

from persam_video.errors import SinkError
from persam_video.label_maps import object_color
from persam_video.sinks import OverlayVideoSink, audio
from persam_video.sinks import video as video_module
from persam_video.types import Frame, ObjectState, TrackResult

SOUND_RATE = 48_000
TONE_STARTS_S = 1.0


def plain(
    index: int, time_s: float, size_hw: tuple[int, int] = SIZE_HW
) -> tuple[Frame, TrackResult]:
    """A frame of one colour without any object."""
    image = np.full((*size_hw, 3), (200, 60, 30), np.uint8)
    return Frame(index, time_s, image), TrackResult(
        index, time_s, np.zeros(size_hw, np.uint8), {}, {}
    )


def write_plain(path: Path, times_s: list[float], rate: Fraction | None, **options: object) -> None:
    with OverlayVideoSink(path, rate, **options) as sink:  # type: ignore[arg-type]
        for index, time_s in enumerate(times_s):
            sink.write(*plain(index, time_s))


def read_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.pts * frame.time_base for frame in frames]


def read_sound(path: Path) -> tuple[str, float, np.ndarray]:
    """Codec, time of the first sample in seconds, and (S,) float32 samples of the first channel."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", "mono", SOUND_RATE)
        frames = list(container.decode(stream))
        blocks = [b.to_ndarray() for f in [*frames, None] for b in resampler.resample(f)]
        return stream.codec_context.name, float(frames[0].time), np.concatenate(blocks, axis=1)[0]


def tone_start_s(path: Path) -> float:
    """When the sound gets loud, on the clock of the file."""
    _, start_s, samples = read_sound(path)
    return start_s + int(np.argmax(np.abs(samples) > 0.1)) / SOUND_RATE


def make_clip(path: Path, sound_codec: str | None, seconds: float = 2.5) -> Path:
    """A clip at 10 frames per second whose sound is silent, then a tone from TONE_STARTS_S on."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(sound_codec, rate=SOUND_RATE) if sound_codec else None
        for index in range(round(seconds * 10)):
            picture = av.VideoFrame.from_ndarray(plain(index, 0)[0].image_rgb, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 10)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if sound is not None:
            for block in _tone(seconds):
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def _tone(seconds: float) -> Iterator[av.AudioFrame]:
    time_s = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    wave = 0.5 * np.sin(2 * math.pi * 440 * time_s) * (time_s >= TONE_STARTS_S)
    pcm = (wave * 32767).astype(np.int16)
    for start in range(0, len(pcm), 1024):
        samples = np.repeat(pcm[None, start : start + 1024], 2, axis=1)  # two channels, packed
        samples[0, 0::2] = samples[0, 1::2] = pcm[start : start + 1024]
        block = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        block.sample_rate, block.pts, block.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        yield block


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(25)])
@pytest.mark.parametrize("start_s", [0.0, 41.7])
def test_overlay_video_of_constant_rate_has_exact_times(
    tmp_path: Path, rate: Fraction, start_s: float
) -> None:
    path = tmp_path / "o.mp4"
    write_plain(path, [start_s + float(k / rate) for k in range(40)], rate)
    assert read_times(path) == [k / rate for k in range(40)]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == rate


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 1e-5), (".mov", 1e-5), (".mkv", 6e-4)])
def test_overlay_video_of_variable_rate_keeps_every_time(
    tmp_path: Path, suffix: str, tolerance: float
) -> None:
    times = [0.5, 0.533, 0.6, 1.1, 1.1001, 1.35, 3.0, 3.04]
    if suffix == ".mkv":
        times.remove(1.1001)  # closer than its milliseconds
    write_plain(tmp_path / f"o{suffix}", times, None)
    got = [float(time) for time in read_times(tmp_path / f"o{suffix}")]
    assert got == pytest.approx([time - 0.5 for time in times], abs=tolerance)


def test_overlay_video_of_repeated_and_falling_times_keeps_all_frames_in_order(
    tmp_path: Path,
) -> None:
    write_plain(tmp_path / "o.mp4", [0.0, 0.1, 0.1, 0.05, 0.3], None)
    times = read_times(tmp_path / "o.mp4")
    assert times == sorted(set(times))
    assert len(times) == 5
    assert float(times[-1]) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("size_hw", [(47, 63), (48, 63), (1, 1), (17, 200)])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_overlay_video_of_odd_size_is_padded_to_even(
    tmp_path: Path, size_hw: tuple[int, int], side_by_side: bool
) -> None:
    path = tmp_path / "o.mp4"
    with OverlayVideoSink(path, Fraction(10), side_by_side=side_by_side) as sink:
        for index in range(2):
            sink.write(*plain(index, index / 10, size_hw))
    height, width = size_hw[0], size_hw[1] * (2 if side_by_side else 1)
    even_hw = (height + height % 2, width + width % 2)
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [picture.shape for picture in pictures] == 2 * [(*even_hw, 3)]


def test_overlay_video_keeps_colours_and_says_which_matrix(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    state = ObjectState.TRACKED
    with OverlayVideoSink(path, Fraction(10), side_by_side=True, fill_alpha=1.0) as sink:
        image = np.full((64, 64, 3), (30, 160, 220), np.uint8)
        sink.write(Frame(0, 0.0, image), TrackResult(0, 0.0, labels, {1: 1.0}, {1: state}))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)
    rgb = frame.to_ndarray(format="rgb24", src_colorspace="ITU709").astype(int)
    assert np.abs(rgb[32, 48] - (30, 160, 220)).max() <= 6  # left: the untouched picture
    assert np.abs(rgb[32, 80] - (30, 160, 220)).max() <= 6
    assert np.abs(rgb[50, 112] - object_color(1)).max() <= 8


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("first", [0, 5, 7])
def test_overlay_video_carries_aac_packets_over_in_sync_and_cut(
    tmp_path: Path, suffix: str, first: int
) -> None:
    clip, path = make_clip(tmp_path / "clip.mp4", "aac"), tmp_path / f"o{suffix}"
    write_plain(path, [k / 10 for k in range(first, 18)], Fraction(10), audio_from=clip)
    with av.open(str(clip)) as source, av.open(str(path)) as result:
        known = {bytes(packet) for packet in source.demux(audio=0)}
        carried = [bytes(packet) for packet in result.demux(audio=0) if packet.size]
    assert carried
    assert set(carried) <= known
    assert tone_start_s(path) == pytest.approx(TONE_STARTS_S - first / 10, abs=0.005)
    _, start_s, samples = read_sound(path)
    assert start_s + len(samples) / SOUND_RATE == pytest.approx((18 - first) / 10, abs=0.03)
    tolerance = 1e-3 if suffix == ".mkv" else 1e-5
    expected = [k / 10 for k in range(18 - first)]
    assert [float(time) for time in read_times(path)] == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("sound_codec", "clip", "output", "expected"),
    [
        ("libmp3lame", "clip.mp4", "o.mp4", "mp3float"),
        ("libopus", "clip.mkv", "o.mp4", "opus"),
        ("libopus", "clip.mkv", "o.mov", "aac"),  # MOV has no place for Opus
        ("pcm_s16le", "clip.mov", "o.mp4", "aac"),
    ],
)
@pytest.mark.parametrize("first", [0, 5])
def test_overlay_video_copies_or_encodes_other_sound_in_sync_and_cut(
    tmp_path: Path, sound_codec: str, clip: str, output: str, expected: str, first: int
) -> None:
    source, path = make_clip(tmp_path / clip, sound_codec), tmp_path / output
    write_plain(path, [k / 10 for k in range(first, 18)], Fraction(10), audio_from=source)
    codec, start_s, samples = read_sound(path)
    assert codec == expected
    assert tone_start_s(path) == pytest.approx(tone_start_s(source) - first / 10, abs=0.01)
    assert start_s + len(samples) / SOUND_RATE == pytest.approx((18 - first) / 10, abs=0.05)
    assert read_times(path) == [Fraction(k, 10) for k in range(18 - first)]


def test_overlay_video_of_a_transport_stream_carries_its_sound(tmp_path: Path) -> None:
    clip, path = make_clip(tmp_path / "clip.ts", "aac"), tmp_path / "o.mp4"
    with av.open(str(clip)) as container:
        begin_s = float(next(container.decode(video=0)).time)
    assert begin_s > 0.1  # such streams do not begin at 0
    write_plain(path, [begin_s + k / 10 for k in range(18)], Fraction(10), audio_from=clip)
    assert tone_start_s(path) == pytest.approx(TONE_STARTS_S, abs=0.03)


def test_overlay_video_interrupted_has_sound_to_its_end_only(tmp_path: Path) -> None:
    clip, path = make_clip(tmp_path / "clip.mp4", "aac"), tmp_path / "o.mp4"
    with (
        pytest.raises(KeyboardInterrupt),
        OverlayVideoSink(path, Fraction(10), audio_from=clip) as sink,
    ):
        write_frames(sink, 8)
        raise KeyboardInterrupt
    assert len(read_times(path)) == 8
    assert len(read_sound(path)[2]) / SOUND_RATE == pytest.approx(0.8, abs=0.03)


def test_overlay_video_from_a_clip_without_sound_is_silent(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", None)
    write_plain(tmp_path / "o.mp4", [0.0, 0.1], Fraction(10), audio_from=clip)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_overlay_video_with_damaged_sound_warns_and_keeps_its_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, path = make_clip(tmp_path / "clip.mp4", "aac"), tmp_path / "o.mp4"

    def damaged(
        container: object, source: object, target: object, *rest: object
    ) -> Iterator[object]:
        packets = original(container, source, target, *rest)
        yield from (next(packets) for _ in range(10))
        raise av.error.InvalidDataError(1, "Invalid data found when processing input")

    original = audio._copied
    monkeypatch.setattr(audio, "_copied", damaged)
    write_plain(path, [k / 10 for k in range(10)], Fraction(10), audio_from=clip)
    assert len(read_times(path)) == 10
    assert len(read_sound(path)[2]) / SOUND_RATE == pytest.approx(10 * 1024 / SOUND_RATE, abs=0.03)
    assert "the sound ends early" in caplog.text


def test_overlay_video_whose_sound_file_is_no_clip_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    with pytest.raises(SinkError, match="cannot write: Invalid data"):
        write_plain(tmp_path / "o.mp4", [0.0], Fraction(10), audio_from=tmp_path / "text.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]
    with pytest.raises(SinkError, match=r"no file .*gone\.mp4 to take the sound from"):
        OverlayVideoSink(tmp_path / "o.mp4", None, audio_from=tmp_path / "gone.mp4")


def test_overlay_video_over_its_own_source_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", "aac", seconds=0.2)
    with pytest.raises(SinkError, match="replace its own source"):
        OverlayVideoSink(clip, Fraction(10), audio_from=clip, overwrite=True)


def test_overlay_video_given_a_frame_of_another_size_says_both_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(SinkError, match="now 70x48, the video 64x48") as caught,
        OverlayVideoSink(tmp_path / "o.mp4", None) as sink,
    ):
        write_frames(sink, 2)
        sink.write(make_frame(2, (48, 70)), make_result(2, (48, 70)))
    assert caught.value.frame_index == 2
    assert list(tmp_path.iterdir()) == []


def test_overlay_video_of_no_rate_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="above 0, got 0"):
        OverlayVideoSink(tmp_path / "o.mp4", Fraction(0))


def test_overlay_video_without_an_encoder_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_module, "_ENCODER", "absent")
    with pytest.raises(SinkError, match=r"no H\.264 encoder \(absent\)"):
        OverlayVideoSink(tmp_path / "o.mp4", Fraction(10))


def test_overlay_video_has_every_picture_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    with OverlayVideoSink(path, Fraction(10)) as sink:
        for index in range(4):
            sink.write(*plain(index, index / 10, (480, 64)))
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    assert [_slices(packet) for packet in packets] == [1] * 4


def _slices(packet: bytes) -> int:
    """Coded slices in a packet of H.264 in MP4: units after their lengths (ISO 14496-15)."""
    count, start = 0, 0
    while start < len(packet):
        length = int.from_bytes(packet[start : start + 4])
        count += packet[start + 4] & 31 in (1, 5)  # of a picture that refers to others, and not
        start += 4 + length
    return count
