"""A picture at the size that the network takes, or a part of it.

SAM was trained and released with Pillow's antialiased bilinear filter, across first and then down,
with whole grey values between. torch's does the same on an NVIDIA GPU in a hundredth of the time.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.types import UInt8Array, Window


def resized(
    image_rgb: UInt8Array, size_hw: tuple[int, int], part: Window | None, device: torch.device
) -> Tensor:
    """Resize a picture with SAM's filter.

    Args:
        image_rgb: (H, W, 3) uint8 RGB.
        size_hw: Rows and columns of the picture when it is resized.
        part: In pixels of the resized picture, what is wanted of it; it may end beyond the picture.
        device: Where the result is to be.

    Returns:
        (1, 3, h, w) float32 grey values from 0 to 255, of as much of the part as there is.
    """
    height, width = size_hw
    part = part or Window(0, 0, width, height)
    inside = Window(
        part.left,
        part.top,
        min(part.width, width - part.left),
        min(part.height, height - part.top),
    )
    if device.type == "cuda":
        return _by_torch(_sent(image_rgb, device), size_hw)[(..., *inside.slices)]
    return torch.from_numpy(_by_pillow(image_rgb, size_hw, inside)).to(device).float()


def _by_pillow(image_rgb: UInt8Array, size_hw: tuple[int, int], part: Window) -> UInt8Array:
    """(1, 3, h, w) uint8, a view."""
    picture = Image.fromarray(image_rgb)
    down, across = picture.height / size_hw[0], picture.width / size_hw[1]
    left, top = part.left * across, part.top * down
    box = left, top, left + part.width * across, top + part.height * down
    small = picture.resize((part.width, part.height), Image.Resampling.BILINEAR, box)
    return np.asarray(np.array(small).transpose(2, 0, 1)[None], np.uint8)


def _sent(image_rgb: UInt8Array, device: torch.device) -> Tensor:
    """(1, 3, H, W) uint8 on a GPU, without waiting for it: from pinned memory it fetches itself."""
    pinned = torch.empty(image_rgb.shape, dtype=torch.uint8, pin_memory=True)
    np.copyto(pinned.numpy(), image_rgb)
    return pinned.to(device, non_blocking=True).permute(2, 0, 1)[None]


def _by_torch(pixels: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) uint8 -> (1, 3, h, w) float32 whole grey values, rounded as Pillow does."""
    height, width = size_hw
    return _rounded(_rounded(pixels.float(), (pixels.shape[2], width)), (height, width))


def _rounded(pixels: Tensor, size_hw: tuple[int, int]) -> Tensor:
    large = F.interpolate(pixels, size_hw, mode="bilinear", align_corners=False, antialias=True)
    return large.add_(0.5).floor_()
