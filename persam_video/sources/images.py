"""Folders of images, and single images as clips of one frame.

Images carry no time, so frames are ``NOMINAL_RATE`` apart (24 per second, as in DAVIS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from persam_video.errors import SourceError
from persam_video.sources.base import NOMINAL_RATE, Picture
from persam_video.types import UInt8Array, VideoInfo

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageReader:
    """The images of a folder in natural order ("2.png" before "10.png"), or one image file."""

    def __init__(self, path: Path) -> None:
        self._files = _image_files(path) if path.is_dir() else [path]
        height, width = load_image(self._files[0], 0).shape[:2]
        self._info = VideoInfo(
            str(path), (height, width), NOMINAL_RATE, len(self._files), backend="images"
        )

    @property
    def info(self) -> VideoInfo:
        """Facts of the whole folder."""
        return self._info

    def pictures(self) -> Iterator[Picture]:
        """One picture per file; a file is read only when it is wanted."""
        for index, path in enumerate(self._files):
            load = partial(load_image, path, index)
            yield Picture(index, index / float(NOMINAL_RATE), load, path.stem, str(path))

    def close(self) -> None:
        """Nothing is held open."""


def load_image(path: Path, index: int) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Grey becomes RGB, 16-bit grey is scaled from 0..65535 to 0..255, alpha is dropped (the colours
    stored under transparent pixels show).

    Args:
        path: The file.
        index: Number of its frame, for the error.

    Raises:
        SourceError: The file is unreadable, no image, cut off, or an animation.
    """
    try:
        with Image.open(path) as image:
            # Phones write MPO: a JPEG with further views behind the first one, which is the photo.
            pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if pictures == 1:
                return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's format plug-ins raise nearly anything on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"cannot read the image {path}: {reason}", path=path, frame_index=index
        ) from error
    raise SourceError(
        f"{path} is an animation of {pictures} pictures, legal is one picture per image file; "
        "convert it to a video",
        path=path,
        frame_index=index,
    )


def _to_rgb(image: Image.Image) -> UInt8Array:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in image.info:  # straight to RGB, Pillow warns about palette transparency
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _image_files(folder: Path) -> list[Path]:
    """Image files of a folder in natural order; hidden files are left out."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        files = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and e.is_file()]
    except OSError as error:
        raise SourceError(
            f"cannot list the folder {folder}: {error.strerror}", path=folder
        ) from error
    if not files:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        inside = f"folders {', '.join(folders[:5])}" if folders else f"{len(entries)} other files"
        raise SourceError(
            f"the folder {folder} holds no image; got {inside}, legal are files with "
            f"{', '.join(IMAGE_SUFFIXES)}",
            path=folder,
        )
    files.sort(key=_natural_key)
    _check_stems(files, folder)
    return files


def _natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Digits compare as numbers, the rest as text; equal keys fall back to the plain name."""
    parts = re.split(r"(\d+)", path.name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
    return key, path.name


def _check_stems(files: list[Path], folder: Path) -> None:
    """Raise SourceError when two files share a stem: their results would overwrite each other."""
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen:
            raise SourceError(
                f"{seen[path.stem].name} and {path.name} in {folder} share the name "
                f"{path.stem!r}; every frame needs a name of its own",
                path=folder,
            )
        seen[path.stem] = path
