"""Frame -> Embedding: resize, normalise, pad, run the frozen image encoder."""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.errors import ConfigError
from persam_video.geometry import fit_longest_side, scale_box
from persam_video.sam.cuda_graphs import Replayed
from persam_video.sam.machine import processor_threads
from persam_video.sam.resizing import resized
from persam_video.types import Embedding, Float32Array, UInt8Array, Window

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_CELL = 16
"""Input pixels per cell of the embedding."""
_STEP = 14
"""Cells that the sides of a part are multiples of, as far as the picture goes: TinyViT's attention
windows are 7 and 14. What torch makes ready for a size it keeps: of few sizes that is little."""
_PART = 0.9
"""Share of the picture from which on all of it is encoded."""

TRAINED_INPUT_SIZE = 1024
"""Side of the square that SAM was trained with, and the only one that ViT-B, -L and -H take."""


class Encoder(Protocol):
    """What the tracker needs from an image encoder; bring your own by having this method.

    ``persam_video.track`` and ``run`` call it on a thread of its own, one frame ahead, or on two of
    them (``ParallelEncoder``), while the tracker's thread may call it too (clicks, close-ups); an
    Embedding must outlive the next calls.
    """

    def encode(self, image_rgb: UInt8Array) -> Embedding:
        """Embed one (H, W, 3) uint8 RGB picture."""


@runtime_checkable
class PartEncoder(Encoder, Protocol):
    """An encoder that need not encode all of a picture."""

    @property
    def encodes_parts(self) -> bool:
        """Whether ``encode_part`` saves anything."""

    def encode_part(self, image_rgb: UInt8Array, box_xyxy: Float32Array) -> Embedding:
        """Embed a (H, W, 3) uint8 RGB picture in a box of source pixels and no less."""


@runtime_checkable
class ParallelEncoder(Encoder, Protocol):
    """An encoder that is faster when two threads call it at once, each for a frame of its own."""

    @property
    def encode_at_once(self) -> int:
        """How many threads, 1 or 2; they share the processor's."""


@runtime_checkable
class PaddingEncoder(Encoder, Protocol):
    """An encoder that can leave the padding out, and can do with it what SAM does."""

    def with_padding(self) -> Encoder:
        """The same encoder, exactly as SAM was trained; one that has the padding is itself."""

    def for_prompts(self) -> Encoder:
        """The same encoder, as SAM's decoder needs it to answer a click or a box alone."""


class Backbone(Protocol):
    """A network of this room: normalised batch -> embedding and finer maps."""

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, H, W) -> (B, 256, H/16, W/16) and maps (B, C_i, h_i, w_i), finest first."""


class SamImageEncoder:
    """SAM's pre-processing and image encoder.

    Args:
        backbone: The network, already on ``device``.
        input_size: Side of the network's square input in pixels.
        device: Where to run.
        dtype: Number format that the network takes; the image embedding is float32 in any case.
        padding: Encode the padding too, as SAM does. A network of windows and convolutions does
            without; ViT-B, -L and -H have a position embedding of the whole square.
        prompt_input_size: ``input_size`` for the pictures of clicks and boxes.
    """

    def __init__(
        self,
        backbone: Backbone,
        input_size: int = 1024,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        padding: bool = True,
        prompt_input_size: int = TRAINED_INPUT_SIZE,
    ) -> None:
        self.backbone = backbone
        self.input_size = input_size
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.padding = padding
        self._prompt_input_size = prompt_input_size
        mean = torch.tensor(PIXEL_MEAN, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=self.device).view(1, 3, 1, 1)
        self._mean, self._std = mean, std
        self._network = Replayed(partial(_maps, backbone))

    def encode(self, image_rgb: UInt8Array) -> Embedding:
        """Embed one (H, W, 3) uint8 RGB picture."""
        return self._encode(image_rgb, None)

    @property
    def encodes_parts(self) -> bool:
        """Whether ``encode_part`` leaves anything out.

        Networks of other runtimes do not: they are made ready for a shape when it first comes,
        which takes longer than it saves. So is one on an NVIDIA GPU, where whole frames take hardly
        longer than parts.
        """
        in_torch = isinstance(self.backbone, nn.Module)
        return not self.padding and in_torch and self.device.type != "cuda"

    @property
    def encode_at_once(self) -> int:
        """Two where torch runs it on a processor.

        Half of the threads each leave fewer of them waiting for each other at every step of the
        network. A GPU is kept busy by one; other runtimes have threads of their own.
        """
        torch_on_cpu = self.device.type == "cpu" and isinstance(self.backbone, nn.Module)
        return 2 if torch_on_cpu and processor_threads() > 1 else 1

    def encode_part(self, image_rgb: UInt8Array, box_xyxy: Float32Array) -> Embedding:
        """Embed what is in a box, and little else.

        The network sees nothing outside, which changes what it makes of the inside, most near the
        edges: parts of one clip should be cut alike around what they are compared by.

        Args:
            image_rgb: (H, W, 3) uint8 RGB.
            box_xyxy: (4,) float32, in pixels of the picture; it may reach beyond it.

        Returns:
            ``Embedding.window`` says what was encoded: the box's cells and those that fill it up to
            one of few sizes; None where that is nearly everything.
        """
        window = self._window(box_xyxy, image_rgb) if self.encodes_parts else None
        return self._encode(image_rgb, window)

    def _window(self, box_xyxy: Float32Array, image_rgb: UInt8Array) -> Window | None:
        """The box in cells, or None when it is empty or most of the picture."""
        source_hw = (int(image_rgb.shape[0]), int(image_rgb.shape[1]))
        input_hw = fit_longest_side(source_hw, self.input_size)
        box = scale_box(np.asarray(box_xyxy, np.float32), source_hw, input_hw) / _CELL
        rows, columns = (-(-length // _CELL) for length in input_hw)
        left, right = _filled_up(float(box[0]), float(box[2]), columns)
        top, bottom = _filled_up(float(box[1]), float(box[3]), rows)
        area = (right - left) * (bottom - top)
        if not 0 < area <= _PART * rows * columns:
            return None
        return Window(left, top, right - left, bottom - top)

    @torch.inference_mode()
    def _encode(self, image_rgb: UInt8Array, window: Window | None) -> Embedding:
        source_hw = (int(image_rgb.shape[0]), int(image_rgb.shape[1]))
        input_hw = fit_longest_side(source_hw, self.input_size)
        x = self.preprocess(image_rgb, input_hw, window).to(self.dtype)
        neck, *stages = self._network(x)
        side = self.input_size // _CELL
        left, top = (0, 0) if window is None else (window.left, window.top)
        missing = (left, side - left - neck.shape[3], top, side - top - neck.shape[2])
        return Embedding(
            neck=F.pad(neck.float(), missing),
            stages=tuple(stages),
            source_hw=source_hw,
            input_hw=input_hw,
            input_size=self.input_size,
            padding=self.padding,
            window=window,
        )

    @property
    def torch_backbone(self) -> nn.Module:
        """The network as a module of torch.

        Raises:
            ConfigError: It runs in another runtime.
        """
        if not isinstance(self.backbone, nn.Module):
            raise ConfigError("the encoder is no module of torch; load it with runtime torch")
        return self.backbone

    def with_padding(self) -> SamImageEncoder:
        """The same network with the padding encoded too, at no more than SAM's own size."""
        return self._padded(min(self.input_size, TRAINED_INPUT_SIZE))

    def for_prompts(self) -> SamImageEncoder:
        """The same network with the padding encoded too, at ``prompt_input_size``."""
        return self._padded(self._prompt_input_size)

    def _padded(self, input_size: int) -> SamImageEncoder:
        if self.padding and input_size == self.input_size:
            return self
        return SamImageEncoder(self.backbone, input_size, self.device, self.dtype)

    def preprocess(
        self, image_rgb: UInt8Array, input_hw: tuple[int, int], window: Window | None = None
    ) -> Tensor:
        """(H, W, 3) uint8 RGB -> (1, 3, h, w) float32: resized, normalised, zero-padded.

        h and w are S with padding, else the next multiples of 16. A window, in cells of 16 pixels,
        is cut out of that.
        """
        part = None if window is None else window.scaled(_CELL)
        x = resized(image_rgb, input_hw, part, self.device).sub_(self._mean).div_(self._std)
        height, width = x.shape[2:]
        if self.padding:
            return F.pad(x, (0, self.input_size - width, 0, self.input_size - height))
        return F.pad(x, (0, -width % _CELL, 0, -height % _CELL))


def _maps(backbone: Backbone, x: Tensor) -> tuple[Tensor, ...]:
    """What a network makes of (1, 3, h, w): the embedding, then the finer maps."""
    neck, stages = backbone(x)
    return neck, *stages


def _filled_up(low: float, high: float, end: int) -> tuple[int, int]:
    """The first cell of a side of a part, and the one after its last, of ``end`` cells.

    Those that fill it up lie on both sides of what is asked for, which may reach beyond the picture
    or be outside altogether: then there are none.
    """
    first, last = max(0, math.floor(low)), min(end, math.ceil(high))
    if first >= last:
        return 0, 0
    length = min(end, -(-(last - first) // _STEP) * _STEP)
    start = max(0, min((first + last - length) // 2, end - length))
    return start, start + length
