"""Masks on the feature grid: from the decoder's square and back, and the region around one."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.sam.enlarging import to_square
from persam_video.tracking.features import grid_slices
from persam_video.types import BoolArray, Embedding


def on_grid(square: Tensor, embedding: Embedding, stride: int) -> Tensor:
    """(N, 4h, 4w) over the padded square -> (N, rows, columns), averaged over cells."""
    cells = embedding.input_size // stride
    if cells != square.shape[-1]:
        square = F.adaptive_avg_pool2d(square, cells)
    return square[(..., *grid_slices(embedding, stride))]


def on_square(grid: Tensor, embedding: Embedding, stride: int) -> Tensor:
    """(N, rows, columns) of the feature grid -> (N, 4h, 4w) over the padded square.

    Where nothing was encoded it has the lowest value.
    """
    cells, side = embedding.input_size // stride, embedding.input_size // 4
    rows, columns = (-(-length // stride) for length in embedding.input_hw)
    picture = grid.new_full((len(grid), 1, rows, columns), float(grid.min()))
    picture[(..., *grid_slices(embedding, stride))] = grid[:, None]
    padded = to_square(picture, cells)
    if cells != side:
        padded = F.interpolate(padded, (side, side), mode="bilinear")
    return padded[:, 0]


def over_square(picture: Tensor, embedding: Embedding) -> Tensor:
    """(h', w') over the whole frame, of any size -> (4h, 4w) over the square, padded by 0."""
    side = embedding.input_size // 4
    height, width = (max(1, round(length / 4)) for length in embedding.input_hw)
    square = picture.new_zeros(side, side)
    resized = F.interpolate(
        picture[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    square[:height, :width] = resized[0, 0]
    return square


def cells_of(length: float, embedding: Embedding, stride: int) -> int:
    """A length in 128ths of the input's side, in cells of the feature grid, at least one."""
    return max(1, round(length * embedding.input_size / (128 * stride)))


def cells_in(place: Tensor) -> Tensor:
    """Bool of any shape, on the processor -> (n,) indices of the cells in it, row after row."""
    return torch.from_numpy(np.flatnonzero(place.numpy()))


def region_around(mask: Tensor, padding: int) -> Tensor:
    """(h, w) share of each cell -> bool cells of the mask's box grown by ``padding`` cells."""
    inside = mask > 0.5
    if not inside.any():
        inside = mask >= mask.max()
    region = torch.zeros_like(inside)
    rows, columns = rectangle_of(inside.numpy())
    top, left = max(0, rows.start - padding), max(0, columns.start - padding)
    region[top : rows.stop + padding, left : columns.stop + padding] = True
    return region


def rectangle_of(place: BoolArray) -> tuple[slice, slice]:
    """Rows and columns from the first to the last with anything of a (h, w) place.

    Of an empty one both are empty.
    """
    left, top, width, height = cv2.boundingRect(place.view(np.uint8))
    return slice(top, top + height), slice(left, left + width)
