"""The image encoder by ``torch.compile``: on any device, after a warm-up for each size of input."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import torch
from torch import Tensor, nn

from persam_video.errors import ConfigError

logger = logging.getLogger(__name__)


class TorchCompiled:
    """The image encoder, as ``image_encoder.Backbone``; may be called from several threads.

    Sizes are static: each one is compiled when it first comes, which can take minutes on a
    processor. torch goes on uncompiled, with a warning, after eight of them.

    Args:
        backbone: Of this room, on its device and in its number format.
        backend: Of ``torch.compile``.

    Attributes:
        module: The same network, not compiled.
    """

    def __init__(self, backbone: nn.Module, backend: Any = "inductor") -> None:
        self.module = backbone
        self._network = torch.compile(backbone, dynamic=False, backend=backend)
        self._seen: set[torch.Size] = set()
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, H, W) -> embedding and maps.

        Raises:
            ConfigError: It cannot be compiled here, for want of a C++ compiler, for example.
        """
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
            self._network(x)
        except Exception as error:  # whatever a compiler may raise
            what = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise ConfigError(
                f"runtime torch_compile does not work here ({what}); runtime torch does"
            ) from error
        logger.warning("torch.compile: that took %.0f s", time.perf_counter() - begun)
