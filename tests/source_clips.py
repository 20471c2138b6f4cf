"""Tiny clips for the source tests: every frame says its own number in its colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATE = Fraction(30000, 1001)
BLOCKS = {(0, 0): (210, 40, 40), (0, 1): (40, 190, 40), (1, 0): (40, 40, 210)}
FIRST_GREY, GREY_STEP = 50, 20
VARIABLE_TIMES_MS = (0, 40, 140, 150, 400, 410, 500, 900)


@dataclass(frozen=True)
class Clip:
    """What a test clip shows once it is upright, and what is wrong with it."""

    size_hw: tuple[int, int] = (48, 64)
    count: int = 8
    rotation: int = 0  # degrees counter-clockwise that a player must turn the stored picture
    variable_rate: bool = False
    mode: str = "RGB"  # RGB, L or RGBA
    damage: str = ""  # "", "truncated" or "corrupt"


def pattern(index: int, size_hw: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    """Red, green and blue quarters, and a fourth one whose grey is the frame's number."""
    height, width = size_hw
    image = np.empty((height, width, 3), np.uint8)
    rows, columns = (slice(0, height // 2), slice(height // 2, None)), None
    columns = (slice(0, width // 2), slice(width // 2, None))
    for (row, column), colour in BLOCKS.items():
        image[rows[row], columns[column]] = colour
    image[rows[1], columns[1]] = FIRST_GREY + GREY_STEP * (index % 10)
    if mode == "L":
        return np.asarray(Image.fromarray(image).convert("L"))
    if mode == "RGBA":
        return np.dstack([image, np.full((height, width), 90, np.uint8)])
    return image


def stored(index: int, clip: Clip) -> np.ndarray:
    """The picture as it lies in the file, before the rotation that the file asks for."""
    picture = pattern(index, clip.size_hw, clip.mode)
    return np.ascontiguousarray(np.rot90(picture, -clip.rotation // 90))


def block_means(image: np.ndarray) -> np.ndarray:
    """(4, 3) mean colour of the middle of each quarter: top row, then bottom row."""
    height, width = image.shape[:2]
    ys, xs = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    spots = [image[y - 2 : y + 3, x - 2 : x + 3] for y in ys for x in xs]
    return np.array([spot.reshape(-1, 3).mean(axis=0) for spot in spots])


def assert_shows(image: np.ndarray, index: int, mode: str = "RGB", tolerance: float = 9) -> None:
    """The image is RGB, upright, and frame number ``index`` (numbers are 20 grey levels apart)."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert image.flags["C_CONTIGUOUS"] and image.flags["WRITEABLE"]
    shown = pattern(index, (48, 64), mode)
    wanted = np.repeat(shown[:, :, None], 3, axis=2) if mode == "L" else shown[:, :, :3]
    assert np.abs(block_means(image) - block_means(wanted)).max() <= tolerance


def write_video(
    path: Path,
    clip: Clip,
    *,
    codec: str = "",
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    sound: bool = False,
    pixels: str = "",
) -> Path:
    """Write the clip with a key frame every four frames; the mp4's index stands in front."""
    is_grey_or_alpha = clip.mode != "RGB"
    codec = codec or ("png" if is_grey_or_alpha else "libx264")
    usual = {"L": "gray", "RGBA": "rgba"}.get(clip.mode, "yuv444p")
    pixels = pixels or (usual if codec in ("libx264", "png") else "yuv420p")
    mux = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=mux | (options or {})) as container:
        stream = container.add_stream(
            codec, rate=RATE, options=codec_options or {"crf": "4"} if codec == "libx264" else {}
        )
        first = stored(0, clip)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
        stream.gop_size = 4
        if clip.rotation:
            stream.set_display_rotation(clip.rotation)
        if clip.variable_rate:
            stream.codec_context.time_base = Fraction(1, 1000)
        tone = container.add_stream("aac", rate=44100) if sound else None
        for index in range(clip.count):
            picture = stored(index, clip)
            name = {2: "gray"}.get(picture.ndim) or ("rgba" if picture.shape[2] == 4 else "rgb24")
            frame = av.VideoFrame.from_ndarray(picture, name)
            if clip.variable_rate:
                frame.pts, frame.time_base = VARIABLE_TIMES_MS[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
            samples.rate = 44100
            container.mux(tone.encode(samples))
            container.mux(tone.encode())
    if clip.damage:
        damage_video(path, clip.damage)
    return path


def damage_video(path: Path, damage: str) -> None:
    """Cut the file inside its sixth packet, or fill its fifth packet (a key frame) with zeros."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        position, size = packets[5]
        del data[position + size // 2 :]
    else:
        position, size = packets[4]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)


EXIF_ORIENTATION = {0: 1, 90: 8, 180: 3, 270: 6}


def write_images(folder: Path, clip: Clip, suffix: str) -> Path:
    """Write the clip as 1.suffix, 2.suffix, ...; the last file is cut off, or number 4 is junk."""
    folder.mkdir()
    for index in range(clip.count):
        image = Image.fromarray(stored(index, clip))
        exif = Image.Exif()
        exif[0x0112] = EXIF_ORIENTATION[clip.rotation]
        buffer = io.BytesIO()
        options = {"exif": exif} if clip.rotation else {}
        options |= {"lossless": True} if suffix == "webp" else {"quality": 95}
        image.save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **options)
        data = buffer.getvalue()
        if clip.damage == "truncated" and index == clip.count - 1:
            data = data[: len(data) // 2]
        if clip.damage == "corrupt" and index == 4:
            data = b"this is no picture" * 9
        (folder / f"{index + 1}.{suffix}").write_bytes(data)
    return folder


def raw_bytes(clip: Clip) -> bytes:
    """The clip as raw RGB frames; truncated means cut inside the sixth frame."""
    frames = [pattern(index, clip.size_hw).tobytes() for index in range(clip.count)]
    data = b"".join(frames)
    return data[: 5 * len(frames[0]) + 1000] if clip.damage else data


def expected_times(clip: Clip, rate: Fraction = RATE) -> Sequence[float]:
    """Presentation times in seconds."""
    if clip.variable_rate:
        return [ms / 1000 for ms in VARIABLE_TIMES_MS[: clip.count]]
    return [float(index / rate) for index in range(clip.count)]
