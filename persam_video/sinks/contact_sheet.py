"""One picture that shows a whole run: a grid of overlays spread evenly over its frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from persam_video.errors import SinkError
from persam_video.files import atomic_path
from persam_video.geometry import fit_longest_side
from persam_video.sinks.base import SinkLifeCycle, claim_file
from persam_video.sinks.overlay import draw_overlay
from persam_video.types import Frame, TrackResult, UInt8Array

_THUMB_SIDE = 400  # pixels of a thumbnail's longer side
_CAPTION_HEIGHT = 26
_GAP = 6
_BACKGROUND = 24
_FULL = 4  # the store is full at this many times the wanted frames; more means a more even choice


@dataclass(frozen=True, slots=True)
class _Thumb:
    position: int  # how many frames came before it
    image_rgb: UInt8Array


class ContactSheetSink(SinkLifeCycle):
    """A JPEG or PNG grid of overlays with their times, first and last frame always among them.

    The length of the run need not be known and memory stays bounded: every ``stride``-th frame is
    kept as a thumbnail, and when the store is full every second one is dropped and the stride
    doubled.

    Args:
        path: File to write, .jpg, .jpeg or .png.
        frames: Number of overlays in the grid, at least 2; a shorter run shows all its frames.
        overwrite: Allow replacing an existing file.
    """

    def __init__(self, path: Path, *, frames: int = 12, overwrite: bool = False) -> None:
        super().__init__(path)
        if frames < 2:
            raise SinkError(f"a contact sheet needs at least 2 frames, got {frames}", path=path)
        claim_file(path, (".jpg", ".jpeg", ".png"), overwrite)
        self._wanted = frames
        self._stride = 1
        self._count = 0
        self._kept: list[_Thumb] = []
        self._last: tuple[Frame, TrackResult] | None = None

    def _write(self, frame: Frame, result: TrackResult) -> None:
        if self._count % self._stride == 0:
            self._kept.append(_Thumb(self._count, _thumbnail(frame, result)))
        if len(self._kept) >= _FULL * self._wanted:
            self._kept = self._kept[::2]
            self._stride *= 2
        self._last = (frame, result)
        self._count += 1

    def _finish(self) -> None:
        if self._last is None:
            return
        thumbs = self._kept
        if thumbs[-1].position != self._count - 1:
            thumbs = [*thumbs, _Thumb(self._count - 1, _thumbnail(*self._last))]
        self._kept, self._last = [], None
        sheet = _grid([thumb.image_rgb for thumb in _spread(thumbs, self._wanted)])
        with atomic_path(self.path) as temporary:
            Image.fromarray(sheet).save(temporary, quality=90)


def _spread(thumbs: list[_Thumb], wanted: int) -> list[_Thumb]:
    """At most ``wanted`` of the thumbs, first and last included, at nearly even positions."""
    if len(thumbs) <= wanted:
        return thumbs
    picks = np.linspace(0, len(thumbs) - 1, wanted).round().astype(int)
    return [thumbs[pick] for pick in picks.tolist()]


def _thumbnail(frame: Frame, result: TrackResult) -> UInt8Array:
    """Small overlay with a caption strip below it; drawn small, so that its tags stay legible."""
    height, width = fit_longest_side(frame.size_hw, _THUMB_SIDE)
    image = cv2.resize(frame.image_rgb, (width, height), interpolation=cv2.INTER_AREA)
    labels = cv2.resize(result.labels, (width, height), interpolation=cv2.INTER_NEAREST)
    overlay = draw_overlay(
        np.asarray(image, np.uint8), np.asarray(labels, np.uint8), result.scores, result.states
    )
    strip = np.full((_CAPTION_HEIGHT, width, 3), _BACKGROUND, np.uint8)
    caption = f"{_clock(frame.time_s)}  frame {frame.index}"
    font, place = cv2.FONT_HERSHEY_SIMPLEX, (4, _CAPTION_HEIGHT - 8)
    cv2.putText(strip, caption, place, font, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([overlay, strip])


def _clock(time_s: float) -> str:
    """``-1:02.50`` style: minutes, seconds, hundredths."""
    hundredths = round(abs(time_s) * 100)
    sign = "-" if time_s < 0 and hundredths else ""
    return f"{sign}{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


def _grid(tiles: list[UInt8Array]) -> UInt8Array:
    """Equal tiles in rows; about as many columns as make the sheet a little wider than high."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), max(1, math.ceil(math.sqrt(len(tiles) * 1.3 * height / width))))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _BACKGROUND, np.uint8
    )
    for number, tile in enumerate(tiles):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
