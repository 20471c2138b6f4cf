"""The image encoder outside torch: compiled once per input size, held against torch by tests.

Shapes are static, the batch too: with a free batch OpenVINO was seen to give wrong outputs, without
an error, when it changed from one call to the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from persam_video.types import Float32Array

Shape = tuple[int, ...]
Run = Callable[[Float32Array], list[Float32Array]]
"""Contiguous array of the shape compiled for -> outputs in memory that no later call touches."""

_SHAPES_KEPT = 16  # whole frames, their padded square, the windows of close-ups


class Engine(Protocol):
    """A network's file, opened by a runtime."""

    def compile(self, shape: Shape) -> Run:
        """Make it ready for an input of this shape."""


class CompiledBackbone:
    """The image encoder, as ``image_encoder.Backbone``; may be called from several threads.

    Args:
        engine: Of the encoder.
        identity: Text that differs wherever weights, code or precision do, for caches of its maps.
    """

    def __init__(self, engine: Engine, identity: str) -> None:
        self._engine = engine
        self.identity = identity
        self._compiled: OrderedDict[Shape, Run] = OrderedDict()  # the latest used one last
        # One thread of its own: callers take turns, as there is one set of buffers per shape; and
        # a Ctrl-C that reached a thread which had computed with AMX in OpenVINO ended the process.
        self._thread = ThreadPoolExecutor(1, "compiled-backbone")

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(1, 3, H, W) float32 on the CPU -> embedding and maps, the caller's own."""
        array = np.ascontiguousarray(x.numpy(), np.float32)
        outputs = self._thread.submit(self._run, array).result()
        neck, *stages = (torch.from_numpy(output) for output in outputs)
        return neck, tuple(stages)

    def _run(self, array: Float32Array) -> list[Float32Array]:
        if array.shape not in self._compiled:
            self._compiled[array.shape] = self._engine.compile(array.shape)
        self._compiled.move_to_end(array.shape)
        while len(self._compiled) > _SHAPES_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[array.shape](array)
