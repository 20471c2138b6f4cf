"""Label maps on disk: palette PNG in the form of DAVIS, and the colours of its objects.

A label map is (H, W) uint8, value = object id. Pillow reads it because OpenCV replaces palette
indices by colours.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from persam_video.errors import DatasetError, PersamError
from persam_video.files import atomic_path
from persam_video.types import UInt8Array

# Pillow stretches grey PNGs of 2 and 4 bits to 0..255; dividing gives the stored values back.
_GREY_STRETCH = {"L;2": 85, "L;4": 17}

_RUN_LENGTHS = 3
"""zlib's number for looking for runs of one value only (Z_RLE)."""


def read_label_map(path: Path) -> UInt8Array:
    """(H, W) uint8 label map of a palette PNG (its indices) or of a grey PNG (its values).

    Raises:
        DatasetError: The file cannot be read, is no PNG, has colour instead of labels, or holds
            values above 255.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            rawmode = str(image.tile[0][3]) if image.tile else image.mode
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise DatasetError("there is no such label map", path=path) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports damaged PNG chunks as SyntaxError.
        raise DatasetError(f"not a readable PNG label map: {error}", path=path) from error
    if values.ndim != 2:
        raise DatasetError(
            f"a label map must be a palette or grey PNG, got a colour picture (mode {mode}); "
            "labels cannot be told from colours",
            path=path,
        )
    if values.size and int(values.max()) > 255:
        raise DatasetError(
            f"label values must be in 0..255, got a 16-bit PNG with {int(values.max())}", path=path
        )
    return values.astype(np.uint8) // np.uint8(_GREY_STRETCH.get(rawmode, 1))


def write_label_map(path: Path, labels: UInt8Array) -> None:
    """Write a (H, W) uint8 label map as palette PNG with the palette of DAVIS, atomically.

    Raises:
        PersamError: ``labels`` is no (H, W) uint8 array.
        OSError: The file cannot be written; nothing half-written is left.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise PersamError(f"a label map must be (H, W) uint8, got {labels.shape} {labels.dtype}")
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(davis_palette().tobytes())
    with atomic_path(path) as temporary:
        # Rows have few runs: looking for these alone takes half of the time, and no more room.
        image.save(temporary, format="PNG", compress_type=_RUN_LENGTHS)


@cache
def davis_palette() -> UInt8Array:
    """(256, 3) uint8 RGB palette of DAVIS, which is the colour map of PASCAL VOC; not writable.

    Bits 0, 1 and 2 of the index become the highest bits of red, green and blue, bits 3, 4 and 5
    the second highest, and so on.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(3):
            bit = (index >> (3 * place + channel)) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    palette.flags.writeable = False  # everybody gets the same array
    return palette


@cache
def object_color(object_id: int) -> tuple[int, int, int]:
    """RGB colour, 0..255, in which an object is drawn over a picture.

    The hue is that of the DAVIS palette, but bright enough to be seen on dark and light footage:
    pure half-strength red or blue is hard to tell from shadow. The objects 1 to 7, by far the most
    frequent, get the strongest colours.

    Raises:
        PersamError: ``object_id`` is not in 0..255.
    """
    if not 0 <= object_id <= 255:
        raise PersamError(f"an object id must be in 0..255, got {object_id}")
    entry = davis_palette()[object_id]
    color = np.interp(entry, (0, 64, 128, 192, 255), (32, 140, 255, 200, 230))
    luma = float(color @ (0.299, 0.587, 0.114))
    lift = (96.0 - luma) / (255.0 - luma) if luma < 96.0 else 0.0
    red, green, blue = np.rint(color + lift * (255.0 - color)).astype(int).tolist()
    return red, green, blue
