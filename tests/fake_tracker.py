"""A tracker without a network: every frame gets the reference's masks again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import torch

from persam_video.errors import PromptError
from persam_video.types import (
    Box,
    Frame,
    ObjectState,
    Prompt,
    TrackResult,
    UInt8Array,
    object_ids,
)


class FakeEncoder:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, image_rgb: UInt8Array) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(neck=np.zeros((1, 1), np.float32))


class FakeTracker:
    """Has the methods of ``Tracker`` that the pipeline calls; ``calls`` tells which, in order.

    Args:
        on_step: Called with the frame at the beginning of every ``step``; may raise.
    """

    device = torch.device("cpu")
    encode_at_once = 1
    look_back = 0
    keyframe_interval = 1

    def __init__(self, on_step: Callable[[Frame], None] | None = None) -> None:
        self.encoder = FakeEncoder()
        self.calls: list[tuple[str, int | None]] = []
        self.drawn: list[UInt8Array] = []
        self.object_ids: tuple[int, ...] = ()
        self._on_step = on_step
        self._labels = np.zeros((1, 1), np.uint8)

    def reset(self) -> None:
        self.object_ids = ()

    def encode(self, image_rgb: UInt8Array, box_xyxy: Box = None) -> SimpleNamespace:
        return self.encoder.encode(image_rgb)

    @property
    def planned(self) -> tuple[Box, ...]:
        return None, None, None

    def box_around(self, labels: UInt8Array) -> Box:
        return None

    def wait(self) -> None:
        pass

    def along_edges(self, labels: UInt8Array, image_rgb: UInt8Array) -> UInt8Array:
        self.drawn.append(image_rgb)
        return labels

    def start(
        self, frame: Frame, labels: UInt8Array, embedding: SimpleNamespace | None = None
    ) -> TrackResult:
        self.calls.append(("start", frame.index))
        self._labels, self.object_ids = labels, object_ids(labels)
        return self._result(frame)

    def start_from_photo(self, image_rgb: UInt8Array, labels: UInt8Array) -> None:
        assert image_rgb.shape[:2] == labels.shape
        self.calls.append(("photo", None))
        self._labels, self.object_ids = labels, object_ids(labels)

    def step(self, frame: Frame, embedding: SimpleNamespace | None = None) -> TrackResult:
        if self._on_step is not None:
            self._on_step(frame)
        self.calls.append(("step", frame.index))
        return self._result(frame)

    def correct(self, labels: UInt8Array) -> None:
        assert set(object_ids(labels)) <= set(self.object_ids)
        self.calls.append(("correct", None))
        self._take(labels)

    def add(self, labels: UInt8Array) -> None:
        assert not set(object_ids(labels)) & set(self.object_ids)
        self.calls.append(("add", None))
        self._take(labels)

    def _take(self, labels: UInt8Array) -> None:
        if labels.shape != self._labels.shape:
            raise PromptError("another size")
        ids = object_ids(labels)
        others = np.where(np.isin(self._labels, ids), 0, self._labels)
        self._labels = np.where(np.isin(labels, ids), labels, others)
        self.object_ids = tuple(sorted({*self.object_ids, *ids}))

    def labels_from_prompts(
        self, image_rgb: UInt8Array, prompts: Mapping[int, Prompt]
    ) -> UInt8Array:
        """3 x 3 pixels around each object's first point, or its box."""
        labels = np.zeros(image_rgb.shape[:2], np.uint8)
        for object_id, prompt in prompts.items():
            if prompt.box_xyxy is not None:
                x1, y1, x2, y2 = prompt.box_xyxy.astype(int).tolist()
            else:
                x, y = prompt.points_xy[0].astype(int).tolist()
                x1, y1, x2, y2 = max(0, x - 1), max(0, y - 1), x + 2, y + 2
            labels[y1:y2, x1:x2] = object_id
        return labels

    def _result(self, frame: Frame) -> TrackResult:
        labels = np.zeros(frame.size_hw, np.uint8)
        if self._labels.shape == frame.size_hw:
            labels = np.where(np.isin(self._labels, self.object_ids), self._labels, 0)
        ids = self.object_ids
        return TrackResult(
            frame.index,
            frame.time_s,
            labels.astype(np.uint8),
            dict.fromkeys(ids, 1.0),
            dict.fromkeys(ids, ObjectState.TRACKED),
        )
