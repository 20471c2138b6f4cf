"""An encoder that keeps what it made on disk, so that the next experiment need not wait for it."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import persam_video as pv
from persam_video.sam.compiled import CompiledBackbone
from persam_video.sam.decoder import cells_of_picture
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.torch_compile import TorchCompiled
from persam_video.types import Embedding, Float32Array, UInt8Array

_CELL = 16
"""Input pixels per cell of the coarsest map."""
_LEFT_FREE = 8 * 2**30
"""Bytes of the disk that the cache leaves to others."""


def code_version(*rooms: str) -> str:
    """Hash of some of the package's folders and files; without arguments of all its source."""
    root = Path(pv.__file__).parent
    places = [root / room for room in rooms] or [root]
    files = [f for place in places for f in (place.rglob("*.py") if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(slots=True)
class Use:
    """Of a cache: seconds spent in it, pictures asked for, pictures that had to be encoded.

    Of the second a part counts as its share of the picture.
    """

    seconds: float = 0.0
    calls: float = 0.0
    misses: int = 0


class CachedEncoder:
    """Encodes each picture once per model, input size and version of the encoder's code.

    A picture is known by its pixels, so windows cut from frames are kept like frames. Maps are kept
    as float16, those inside the encoder without the padding: about 20 MB for a 480p frame at an
    input of 1280. Nothing is ever deleted, and nothing kept once the disk is nearly full.

    Args:
        encoder: The encoder.
        folder: Where the maps are kept.
    """

    def __init__(self, encoder: SamImageEncoder, folder: Path) -> None:
        self._encoder = encoder
        code = code_version("sam/image_encoder.py", "sam/tiny_vit.py", "sam/vit.py", "geometry.py")
        key = hashlib.sha256(code.encode())
        backbone = encoder.backbone
        if isinstance(backbone, CompiledBackbone):
            key.update(backbone.identity.encode())
        else:
            if isinstance(backbone, TorchCompiled):
                key.update(b"torch_compile")
                backbone = backbone.module
            assert isinstance(backbone, nn.Module)
            for parameter in backbone.parameters():
                key.update(parameter.detach().float().cpu().numpy().tobytes())
        self._folder = folder / key.hexdigest()[:12]
        self._folder.mkdir(parents=True, exist_ok=True)
        self.use = Use()

    def with_padding(self) -> CachedEncoder:
        """The same cache for ``SamImageEncoder.with_padding``; both count together."""
        return self._of(self._encoder.with_padding())

    def for_prompts(self) -> CachedEncoder:
        """The same cache for ``SamImageEncoder.for_prompts``; all count together."""
        return self._of(self._encoder.for_prompts())

    def _of(self, encoder: SamImageEncoder) -> CachedEncoder:
        other = copy.copy(self)
        other._encoder = encoder
        return other

    @property
    def encodes_parts(self) -> bool:
        """As of the encoder."""
        return self._encoder.encodes_parts

    def encode_part(self, image_rgb: UInt8Array, box_xyxy: Float32Array) -> Embedding:
        """As ``SamImageEncoder.encode_part``; not kept, since every variant cuts its own parts."""
        begin = time.perf_counter()
        embedding = self._encoder.encode_part(image_rgb, box_xyxy)
        window, (rows, columns) = embedding.window, cells_of_picture(embedding)
        self.use.calls += 1 if window is None else window.width * window.height / (rows * columns)
        self.use.misses += 1
        self.use.seconds += time.perf_counter() - begin
        return embedding

    def encode(self, image_rgb: UInt8Array) -> Embedding:
        """As ``Encoder.encode``, but for the rounding to float16."""
        begin = time.perf_counter()
        self.use.calls += 1
        asked = f"{image_rgb.shape} {self._encoder.padding} {self._encoder.input_size}"
        digest = hashlib.sha256(image_rgb.tobytes() + asked.encode()).hexdigest()
        path = self._folder / f"{digest[:32]}.pt"
        if path.exists():
            parts = torch.load(path, weights_only=True)
        else:
            self.use.misses += 1
            parts = _packed(self._encoder.encode(image_rgb))
            if shutil.disk_usage(self._folder).free > _LEFT_FREE:
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                torch.save(parts, temporary)
                temporary.replace(path)
        embedding = _unpacked(parts, self._encoder.device)
        self.use.seconds += time.perf_counter() - begin
        return embedding


def _packed(embedding: Embedding) -> dict[str, Any]:
    height, width = embedding.input_hw
    stages = []
    for stage in embedding.stages:
        stride = embedding.input_size // max(stage.shape[2:])
        # Whole cells of the coarsest map, so that pooling finds all that it averages.
        rows, columns = (-(-length // _CELL) * _CELL // stride for length in (height, width))
        stages.append(stage[..., :rows, :columns].half().cpu().clone())
    return {
        "neck": embedding.neck.half().cpu(),
        "stages": stages,
        "source_hw": embedding.source_hw,
        "input_hw": embedding.input_hw,
        "input_size": embedding.input_size,
        "padding": embedding.padding,
    }


def _unpacked(parts: dict[str, Any], device: torch.device) -> Embedding:
    return Embedding(
        neck=parts["neck"].float().to(device),
        stages=tuple(stage.float().to(device) for stage in parts["stages"]),
        source_hw=tuple(parts["source_hw"]),
        input_hw=tuple(parts["input_hw"]),
        input_size=parts["input_size"],
        padding=parts["padding"],
    )
