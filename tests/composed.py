"""Short clips with exact masks, composed at test time from photos that have masks.

The cut-outs are moved over a still background, so every frame's truth is known, and an object can
leave, return or cross another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.tracking.features import FrameFeatures
from persam_video.types import BoolArray, Embedding, Float32Array, Frame, UInt8Array

SIZE_HW = (240, 426)
Encode = Callable[[], Embedding]


@dataclass(frozen=True)
class Cutout:
    """A picture of one object and its mask, both cropped to the object."""

    image_rgb: UInt8Array
    mask: BoolArray


def read_photo(perseg: Path, subject: str, number: str) -> tuple[UInt8Array, UInt8Array]:
    """(H, W, 3) RGB photo of a PerSeg subject and its (H, W) label map with object 1."""
    image = cv2.imread(str(perseg / "Images" / subject / f"{number}.jpg"))[:, :, ::-1].copy()
    mask = cv2.imread(str(perseg / "Annotations" / subject / f"{number}.png"), cv2.IMREAD_UNCHANGED)
    mask = mask.max(axis=2) if mask.ndim == 3 else mask
    return image, (mask > 0).astype(np.uint8)


def read_cutout(perseg: Path, subject: str, height: int) -> Cutout:
    """The object of a subject's reference photo, scaled to ``height`` pixels."""
    image, labels = read_photo(perseg, subject, "00")
    x, y, w, h = cv2.boundingRect(labels)
    size = (round(w * height / h), height)
    crop = cv2.resize(image[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    return Cutout(crop, cv2.resize(labels[y : y + h, x : x + w], size) > 0)


def compose(
    background_rgb: UInt8Array,
    cutouts: Sequence[Cutout],
    places: Sequence[Sequence[tuple[int, int] | None]],
) -> list[tuple[Frame, UInt8Array]]:
    """Paste the cut-outs, later ones in front.

    Args:
        background_rgb: Any picture; it is scaled to SIZE_HW.
        cutouts: Object 1, object 2, ...
        places: Per frame, per object, the top left corner (x, y), or None while it is away.

    Returns:
        Frame and (H, W) uint8 truth for every entry of ``places``.
    """
    canvas = cv2.resize(background_rgb, SIZE_HW[::-1], interpolation=cv2.INTER_AREA)
    clip = []
    for index, corners in enumerate(places):
        image, labels = canvas.copy(), np.zeros(SIZE_HW, np.uint8)
        for object_id, (cutout, corner) in enumerate(zip(cutouts, corners, strict=True), 1):
            if corner is None:
                continue
            x, y = corner
            h, w = cutout.mask.shape
            image[y : y + h, x : x + w][cutout.mask] = cutout.image_rgb[cutout.mask]
            labels[y : y + h, x : x + w][cutout.mask] = object_id
        clip.append((Frame(index, index / 24, image), labels))
    return clip


class CachingEncoder:
    """Encodes every picture once per test session, and counts how often it is asked."""

    def __init__(self, encoder: SamImageEncoder) -> None:
        self.encoder = encoder
        self.calls = 0
        self._known: dict[str, Embedding] = {}

    @property
    def encodes_parts(self) -> bool:
        return self.encoder.encodes_parts

    def encode(self, image_rgb: UInt8Array) -> Embedding:
        return self._once(image_rgb, b"", lambda: self.encoder.encode(image_rgb))

    def encode_part(self, image_rgb: UInt8Array, box_xyxy: Float32Array) -> Embedding:
        part = box_xyxy.tobytes()
        return self._once(image_rgb, part, lambda: self.encoder.encode_part(image_rgb, box_xyxy))

    def _once(self, image_rgb: UInt8Array, part: bytes, encode: Encode) -> Embedding:
        self.calls += 1
        key = hashlib.sha256(image_rgb.tobytes() + part).hexdigest()
        if key not in self._known:
            self._known[key] = encode()
        return self._known[key]


def every_cell(frame: FrameFeatures) -> Tensor:
    """(h, w, C) features of all cells."""
    height, width = frame.size_hw
    return frame.at(torch.arange(height * width)).view(height, width, -1)
