"""CUDA graphs: many small steps that are asked for once and then done in one go.

Python asks an NVIDIA GPU for a small step in about the time of ten such steps on it. A network that
is run on one shape again and again is recorded the second time, and replayed from the third on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST = 16
"""Shapes that are kept; an object that grows comes through a few of them."""

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors, or None in the place of some, -> tensors that depend on nothing else."""


class Replayed:
    """A function of tensors that is replayed where the tensors are on an NVIDIA GPU.

    Elsewhere, and outside of torch's inference mode, it is the function itself. Threads may call it
    at once; each stream of the GPU has recordings of its own.

    Args:
        function: Takes tensors or None, and returns a tuple of tensors. It waits for nothing, and
            each of its steps depends on the inputs' shapes alone.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._recordings: OrderedDict[tuple[object, ...], _Recording | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """What the function returns, in memory of its own."""
        on_gpu = all(x is None or x.device.type == "cuda" for x in inputs)
        if not on_gpu or not torch.is_inference_mode_enabled():
            return self._function(*inputs)
        shapes = (
            torch.cuda.current_stream(),
            *(None if x is None else (x.shape, x.dtype) for x in inputs),
        )
        with self._lock:
            known = shapes in self._recordings
            recording = self._recordings.setdefault(shapes, None)
            self._recordings.move_to_end(shapes)
            if len(self._recordings) > _MOST:
                self._recordings.popitem(last=False)
            if not known:  # perhaps it never comes again
                return self._function(*inputs)
            if recording is None:
                recording = self._recordings[shapes] = _Recording.of(self._function, inputs)
            return recording.replay(inputs)


@dataclass(frozen=True, slots=True)
class _Recording:
    """A function's steps for one shape, and the memory that they read and write."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, function: Function, inputs: tuple[Tensor | None, ...]) -> _Recording:
        own = tuple(None if x is None else x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on working on the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = function(*own)
        return cls(graph, own, outputs)

    def replay(self, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
