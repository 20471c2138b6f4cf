"""CUDA graphs: many small steps that are asked for once and then done in one go.

Python asks an NVIDIA GPU for a small step in about the time of ten such steps on it. A function
that is called with the same shapes again and again is recorded, and replayed from then on.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_OFTEN = 3
"""Calls with the same shapes after which these are recorded. That takes as long as some calls that
are not replayed; what comes once or twice, as an object grows or turns, is not worth it."""
_MOST = 32
"""Shapes that are known at once."""

_recording = threading.Lock()
"""torch records one thing at a time."""

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors, or None in the place of some, -> tensors that depend on nothing else."""
Inputs = tuple[Tensor | None, ...]
Pool = Any
"""torch's name for memory that recordings have among them."""


class Replayed:
    """A function of tensors that is replayed where the tensors are on an NVIDIA GPU.

    Elsewhere, and outside of torch's inference mode, it is the function itself. Threads may call it
    at once; each stream of the GPU has recordings of its own.

    Args:
        function: Takes tensors or None, and returns a tuple of tensors. It waits for nothing, and
            which steps it takes depends on the inputs' shapes alone.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """What the function returns, in memory of its own."""
        key = _key(inputs)
        if key is None:
            return self._function(*inputs)
        with self._lock:
            known = self._known.setdefault(key, _Known())
            self._known.move_to_end(key)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
            known.calls += 1
            if known.calls > _OFTEN and not known.too_large:
                if known.recording is None:
                    self._record(known, key, inputs)
                if known.recording is not None:
                    return known.recording.replay(inputs)
        return self._function(*inputs)

    def _record(self, known: _Known, key: _Key, inputs: Inputs) -> None:
        """Record the function, or find out that the GPU has no room for that."""
        with _recording:
            pool = self._pool(key.stream)
            if pool is None:  # as once in every clip
                torch.cuda.empty_cache()  # gives back what recordings that are gone have left
            for _ in range(2):
                try:
                    known.recording = Recording.of(self._function, inputs, pool)
                    return
                except torch.cuda.OutOfMemoryError:
                    # While recording, torch does not use again what it keeps for other steps.
                    torch.cuda.empty_cache()
        known.too_large = True

    def _pool(self, stream: object) -> Pool | None:
        """The memory of the stream's recordings, if there are any: no two of them run at once."""
        made = (known.recording for key, known in self._known.items() if key.stream == stream)
        return next((recording.graph.pool() for recording in made if recording), None)


def _key(inputs: Inputs) -> _Key | None:
    """None where nothing can be recorded."""
    devices = {x.device.type for x in inputs if x is not None}
    if devices != {"cuda"} or not torch.is_inference_mode_enabled():
        return None
    shapes = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
    return _Key(torch.cuda.current_stream(), shapes)


class _Key(NamedTuple):
    """What a recording is good for."""

    stream: object
    shapes: object


@dataclass(slots=True)
class _Known:
    """How often some shapes came, and their recording, if they have one or can."""

    calls: int = 0
    recording: Recording | None = None
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """A function's steps for some shapes, and the memory that they read and write."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, function: Function, inputs: Inputs, pool: Pool | None) -> Recording:
        """Record it; it has been called with these shapes before, which makes libraries ready.

        Args:
            function: What is recorded.
            inputs: For their shapes.
            pool: Memory that it may write to, as other recordings do; None = memory of its own.
        """
        own = tuple(None if x is None else x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would first give back all the memory that torch keeps for its next steps.
        torch.cuda.synchronize()
        aside = torch.cuda.stream(_aside(torch.cuda.current_device()))
        with _nothing_collected(), _own_workspace(), aside:
            # Other threads go on asking the GPU for work meanwhile.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                outputs = function(*own)
            finally:
                graph.capture_end()
        return cls(graph, own, outputs)

    def replay(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What the function returns for other inputs of the same shapes."""
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Let Python look for unused things later: among them could be a recording.

    While this thread records, giving that up would end in an error.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _own_workspace() -> Iterator[None]:
    """Give what is recorded a workspace for matrix products of its own, in its pool.

    torch has one for each stream to record on, kept in the pool of whatever came first. Others
    would write to it at the same time, and after that pool has gone.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@cache
def _aside(device: int) -> torch.cuda.Stream:
    """The stream to record on: a GPU's usual one cannot be."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
