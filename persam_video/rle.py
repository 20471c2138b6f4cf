"""Run-length coding of masks as COCO writes it.

Runs go down the columns, the first run counts background. The compressed text packs each run into
characters of five bits plus a continuation bit, offset by 48; from the fourth run on it stores the
difference to the run two before (pycocotools, ``rleToString``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from persam_video.errors import DatasetError, PersamError
from persam_video.types import BoolArray

_MAX_PIXELS = 2**32 - 1  # runs are 32-bit in COCO's own code


@dataclass(frozen=True, slots=True)
class Rle:
    """One mask in COCO's compressed run-length code.

    Attributes:
        size_hw: Height and width of the mask in pixels.
        counts: The compressed runs.
    """

    size_hw: tuple[int, int]
    counts: str

    def __post_init__(self) -> None:
        """Check the size."""
        height, width = self.size_hw
        if height < 1 or width < 1 or height * width > _MAX_PIXELS:
            raise DatasetError(
                f"an RLE mask must be at least 1 x 1 and at most {_MAX_PIXELS} pixels, "
                f"got height {height} and width {width}"
            )

    def to_json(self) -> dict[str, object]:
        """``{"size": [h, w], "counts": "..."}``, as COCO files hold it."""
        return {"size": list(self.size_hw), "counts": self.counts}

    @classmethod
    def from_json(cls, data: object) -> Rle:
        """Read ``{"size": [h, w], "counts": ...}``, with compressed text or a list of runs.

        Raises:
            DatasetError: ``data`` is no COCO RLE; the message shows what was got.
        """
        if not isinstance(data, Mapping) or not {"size", "counts"} <= set(data):
            got = f"keys {sorted(map(str, data))}" if isinstance(data, Mapping) else repr(data)[:80]
            raise DatasetError(f'an RLE mask needs the keys "size" and "counts", got {got}')
        size, counts = data["size"], data["counts"]
        if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_int, size))):
            raise DatasetError(f'"size" of an RLE mask must be [height, width], got {size!r}')
        size_hw = (int(size[0]), int(size[1]))
        if isinstance(counts, bytes):
            counts = counts.decode("ascii", errors="replace")
        if isinstance(counts, str):
            return cls(size_hw, counts)
        if isinstance(counts, list) and all(_is_int(run) and run >= 0 for run in counts):
            empty = cls(size_hw, "")
            return encode_rle(_paint(np.array(counts, np.float64), empty))
        raise DatasetError(
            f'"counts" of an RLE mask must be text or a list of runs, got {repr(counts)[:80]}'
        )


def encode_rle(mask: BoolArray) -> Rle:
    """Run-length code of a (H, W) bool mask.

    Raises:
        PersamError: ``mask`` is no (H, W) bool array with at least one pixel.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise PersamError(f"a mask must be (H, W) bool, got {mask.shape} {mask.dtype}")
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    height, width = mask.shape
    return Rle((height, width), code["counts"].decode("ascii"))


def decode_rle(rle: Rle) -> BoolArray:
    """(H, W) bool mask of a run-length code.

    Raises:
        DatasetError: The code is damaged or its runs do not add up to the size.
    """
    # Not pycocotools: its older versions write past the mask when the runs are too long.
    return _paint(_runs(rle.counts), rle)


def _runs(counts: str) -> NDArray[np.float64]:
    """(R,) run lengths of the compressed text."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise DatasetError(f"damaged RLE mask: illegal character {character!r} in its counts")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # the sign bit of the last group
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DatasetError("damaged RLE mask: its counts end in the middle of a number")
    return np.array(runs, np.float64)


def _paint(runs: NDArray[np.float64], rle: Rle) -> BoolArray:
    """(H, W) bool mask of (R,) runs; float64 so that absurd runs cannot wrap around."""
    height, width = rle.size_hw
    if runs.size and runs.min() < 0:
        raise DatasetError(f"damaged RLE mask: a run of {int(runs.min())} pixels")
    if (total := float(runs.sum())) != height * width:
        raise DatasetError(
            f"damaged RLE mask: its runs add up to {total:.0f} pixels, its size "
            f"{height} x {width} needs {height * width}"
        )
    inside = np.arange(runs.size) % 2 == 1
    return np.repeat(inside, runs.astype(np.int64)).reshape((height, width), order="F")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
