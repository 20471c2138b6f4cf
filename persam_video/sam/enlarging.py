"""From the decoder's logits, four of them to a cell across, to the pixels of the source."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.types import Embedding

_SUPPORT = 2
"""Cells on either side of its own that a pixel of the source is made of."""


def to_square(logits: Tensor, side: int) -> Tensor:
    """(N, M, h, w) logits over a picture -> (N, M, side, side), no object in the padding.

    The last row and column go on for one cell, so that an object cut by the picture's edge reaches
    that edge when its logits are enlarged.
    """
    rows, columns = side - logits.shape[2], side - logits.shape[3]
    edge = F.pad(logits, (0, min(1, columns), 0, min(1, rows)), mode="replicate")
    empty = (0, max(0, columns - 1), 0, max(0, rows - 1))
    return F.pad(edge, empty, value=min(float(logits.min()), -1.0))


def upscale_logits(logits: Tensor, embedding: Embedding) -> Tensor:
    """Logits over the padded square -> logits in source pixels, as SAM's post-processing does.

    Args:
        logits: (N, M, 4h, 4w) float32.
        embedding: The frame's embedding; it knows the sizes.

    Returns:
        (N, M, H, W) float32.
    """
    stride = embedding.input_size // max(logits.shape[2:])
    height, width = embedding.input_hw
    # One cell beyond the picture, which its last pixels are interpolated with.
    cells = logits[..., : -(-height // stride) + 1, : -(-width // stride) + 1]
    pixels = F.interpolate(cells, scale_factor=stride, mode="bilinear", align_corners=False)
    return F.interpolate(
        pixels[..., :height, :width], embedding.source_hw, mode="bilinear", align_corners=False
    )


def upscale_inside(logits: Tensor, embedding: Embedding) -> tuple[tuple[slice, slice], Tensor]:
    """``upscale_logits`` of one mask, of the rectangle alone outside of which all is negative.

    Args:
        logits: (4h, 4w) float32 over the padded square.
        embedding: The frame's embedding; it knows the sizes.

    Returns:
        Rows and columns in source pixels, and float32 logits of these; of an empty mask a few.
    """
    side = logits.shape[-1]
    sizes = zip(embedding.input_hw, embedding.source_hw, strict=True)
    cells, pixels, enlarging = [], [], []
    for dim, (length, source) in enumerate(sizes):
        matrix = _enlarging(side, embedding.input_size // side, length, source)
        places = (logits.amax(dim=1 - dim) > 0).nonzero()[:, 0].tolist() or [0]
        around = slice(max(0, places[0] - _SUPPORT), places[-1] + 1 + _SUPPORT)
        touched = (matrix[:, places[0] : places[-1] + 1].amax(dim=1) > 0).nonzero()[:, 0].tolist()
        inside = slice(touched[0], touched[-1] + 1) if touched else slice(0)  # only padding
        cells.append(around)
        pixels.append(inside)
        enlarging.append(matrix[inside, around])
    down, across = enlarging
    return (pixels[0], pixels[1]), down @ (logits[cells[0], cells[1]] @ across.T)


@lru_cache(maxsize=8)
def _enlarging(side: int, stride: int, length: int, source: int) -> Tensor:
    """(source, side) float32: what ``upscale_logits`` does along one axis.

    Args:
        side: Cells.
        stride: Pixels of the network's input to a cell.
        length: Of these pixels show the picture.
        source: Pixels of the source.
    """
    one_each = torch.eye(side)[None]
    pixels = F.interpolate(one_each, scale_factor=stride, mode="linear", align_corners=False)
    pixels = F.interpolate(pixels[..., :length], source, mode="linear", align_corners=False)
    return pixels[0].T.contiguous()
