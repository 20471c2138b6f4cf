"""Frames and results that the tests of the sinks write."""

from __future__ import annotations

import numpy as np

from persam_video.sinks import (
    Sink,
)
from persam_video.types import Frame, ObjectState, TrackResult

SIZE_HW = (48, 64)
TRACKED, UNCERTAIN, LOST = ObjectState.TRACKED, ObjectState.UNCERTAIN, ObjectState.LOST


def make_frame(index: int, size_hw: tuple[int, int] = SIZE_HW, name: str | None = None) -> Frame:
    image = np.full((*size_hw, 3), (20 + 7 * index % 200, 90, 140), np.uint8)
    return Frame(index, index / 10, image, name)


def make_result(index: int, size_hw: tuple[int, int] = SIZE_HW) -> TrackResult:
    """Object 1 moves right, object 3 is lost in odd frames."""
    labels = np.zeros(size_hw, np.uint8)
    labels[10:30, 5 + index : 20 + index] = 1
    lost = index % 2 == 1
    if not lost:
        labels[35:45, 30:60] = 3
    scores = {1: 0.75, 3: 0.0 if lost else 0.5}
    return TrackResult(
        index, index / 10, labels, scores, {1: TRACKED, 3: LOST if lost else UNCERTAIN}
    )


def write_frames(sink: Sink, count: int, start: int = 0) -> None:
    for index in range(start, start + count):
        sink.write(make_frame(index), make_result(index))
