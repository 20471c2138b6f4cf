"""The image encoder by ``torch.compile``: on any device, after a warm-up for each size of input."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import torch
from torch import Tensor, nn

from persam_video.errors import ConfigError
from persam_video.sam.machine import processor_threads, threads_taken

logger = logging.getLogger(__name__)

_MOST_SIZES = 64  # in one process; torch's own limit is eight, and it says little about it
_LONGEST_REASON = 300  # characters of what a compiler says


class TorchCompiled:
    """The image encoder, as ``image_encoder.Backbone``; may be called from several threads.

    Sizes are static: each one is compiled when it first comes.

    Args:
        backbone: Of this room, on its device and in its number format.
        backend: Of ``torch.compile``.

    Attributes:
        module: The same network, not compiled.
    """

    def __init__(self, backbone: nn.Module, backend: Any = "inductor") -> None:
        self.module = backbone
        self._backend = backend
        self._network: Any = None
        # Compiled code is for one number of threads, and threads of the pipeline differ in theirs.
        self._threads = processor_threads()
        self._seen: set[torch.Size] = set()
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, H, W) -> embedding and maps.

        Raises:
            ConfigError: It cannot be compiled here, for want of a C++ compiler, for example.
        """
        x = x.contiguous(memory_format=torch.channels_last)  # other strides are compiled anew
        with threads_taken(self._threads):
            with self._lock:
                if x.shape not in self._seen:
                    self._warm_up(x)
                    self._seen.add(x.shape)
            neck, stages = self._network(x)
        return neck, tuple(stages)

    def _warm_up(self, x: Tensor) -> None:
        height, width = x.shape[2:]
        # A warning, as nothing else tells why the first frame takes so long.
        logger.warning("torch.compile: compiling for inputs of %dx%d, once per run", width, height)
        begun = time.perf_counter()
        try:
            if self._network is None:
                _allow_sizes()
                self._network = torch.compile(self.module, dynamic=False, backend=self._backend)
            self._network(x)
        except Exception as error:  # whatever a compiler may raise
            what = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
            raise ConfigError(
                f"runtime torch_compile does not work here ({what}); runtime torch does"
            ) from error
        logger.warning("torch.compile: that took %.0f s", time.perf_counter() - begun)


def _allow_sizes() -> None:
    """Let torch compile for more sizes than it does by itself."""
    import torch._dynamo.config as limits  # a second to import

    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    setattr(limits, name, max(_MOST_SIZES, getattr(limits, name)))
