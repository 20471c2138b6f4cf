"""A network outside torch: compiled once per shape of its inputs, held against torch by tests.

Shapes are static, the batch too: with a free batch OpenVINO was seen to give wrong masks, without
an error, when it changed from one call to the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from persam_video.types import Float32Array

Shapes = tuple[tuple[int, ...], ...]
Run = Callable[[Sequence[Float32Array]], list[Float32Array]]
"""Contiguous arrays of the shapes compiled for -> outputs in memory that no later call touches."""

_ENCODERS_KEPT = 4  # whole frames, their padded square, the windows of close-ups
_DECODERS_KEPT = 8
_LARGEST_BATCH = 4  # of the decoder: as fast per object as more, and few shapes to compile


class Engine(Protocol):
    """A network's file, opened by a runtime."""

    def compile(self, shapes: Shapes) -> Run:
        """Make it ready for inputs of these shapes."""


class CompiledNetwork:
    """Float32 tensors on the CPU in and out; may be called from several threads.

    Args:
        engine: The network.
        kept: So many compiled shapes are kept, the latest used ones.
    """

    def __init__(self, engine: Engine, kept: int) -> None:
        self._engine = engine
        self._kept = kept
        self._compiled: OrderedDict[Shapes, Run] = OrderedDict()
        # One thread of its own: callers take turns, as there is one set of buffers per shape; and
        # a Ctrl-C that reached a thread which had computed with AMX in OpenVINO ended the process.
        self._thread = ThreadPoolExecutor(1, "compiled-network")

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run the network; the tensors returned are the caller's own."""
        arrays = [np.ascontiguousarray(x.numpy(), np.float32) for x in inputs]
        outputs = self._thread.submit(self._run, arrays).result()
        return [torch.from_numpy(output) for output in outputs]

    def _run(self, arrays: list[Float32Array]) -> list[Float32Array]:
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._compiled:
            self._compiled[shapes] = self._engine.compile(shapes)
        self._compiled.move_to_end(shapes)
        while len(self._compiled) > self._kept:
            self._compiled.popitem(last=False)
        return self._compiled[shapes](arrays)


class CompiledBackbone:
    """The image encoder, as ``image_encoder.Backbone``.

    Args:
        engine: Of the encoder.
        identity: Text that differs wherever weights, code or precision do, for caches of its maps.
    """

    def __init__(self, engine: Engine, identity: str) -> None:
        self._network = CompiledNetwork(engine, _ENCODERS_KEPT)
        self.identity = identity

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(1, 3, H, W) float32 -> embedding and maps, see ``Backbone``."""
        neck, *stages = self._network(x)
        return neck, tuple(stages)


class CompiledMaskNetwork:
    """``decoder.MaskNetwork`` without guidance.

    Args:
        engine: Of the decoder.
    """

    def __init__(self, engine: Engine) -> None:
        self._network = CompiledNetwork(engine, _DECODERS_KEPT)

    def __call__(self, tokens: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """As ``MaskNetwork.forward``, a few objects at a time."""
        starts = range(0, len(tokens), _LARGEST_BATCH)
        batches = [slice(start, start + _LARGEST_BATCH) for start in starts]
        parts = [self._network(tokens[batch], source[batch]) for batch in batches]
        logits, predicted_iou = (torch.cat(part) for part in zip(*parts, strict=True))
        return logits, predicted_iou
