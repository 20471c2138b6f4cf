"""Embedding -> one feature vector per fine grid cell, for the target model.

Each map of the encoder, averaged down to the feature grid where it is finer, is standardised per
channel with the statistics of the reference frame, brought to unit length per cell, so that no map
outweighs another, and resized to the feature grid. Only the cells of the frame are kept; the
network's padding is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.types import Embedding

GRID_STRIDE = 8
"""Input pixels per cell of the feature grid."""


def grid_size(embedding: Embedding) -> tuple[int, int]:
    """Rows and columns of the feature grid over the frame, without padding."""
    height, width = embedding.input_hw
    return -(-height // GRID_STRIDE), -(-width // GRID_STRIDE)


_LOOKS = 96
"""Channels that cells are compared in; more change nothing and cost time."""


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """The features of one frame and their sums, shared by all of its objects.

    Attributes:
        cells: (C, h, w) float32; the last channel is 1, for the intercept.
        looks: (D, h, w) float32, their principal components brought to unit length.
        gram: (C, C) float32, sum of f f^T over all cells.
        total: (C,) float32, sum of f over all cells.
    """

    cells: Tensor
    looks: Tensor
    gram: Tensor
    total: Tensor


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Channel statistics of the reference frame.

    Attributes:
        means: One (C_i, 1, 1) float32 per map.
        deviations: One (C_i, 1, 1) float32 per map, > 0.
        axes: (C - 1, D) float32, principal axes of the cells, without the intercept.
    """

    means: tuple[Tensor, ...]
    deviations: tuple[Tensor, ...]
    axes: Tensor

    @classmethod
    def fit(cls, embedding: Embedding) -> FeatureSpace:
        """Statistics over the cells of the reference frame."""
        maps = [_crop_padding(m, embedding)[0] for m in _maps(embedding)]
        space = cls(
            tuple(m.mean(dim=(1, 2), keepdim=True) for m in maps),
            tuple(m.std(dim=(1, 2), keepdim=True).clamp_min(1e-6) for m in maps),
            torch.empty(0),
        )
        cells = space._cells(embedding)[:-1].flatten(1)
        return replace(space, axes=torch.linalg.eigh(cells @ cells.T)[1][:, -_LOOKS:])

    def features(self, embedding: Embedding) -> FrameFeatures:
        """All that is learnt from or scored in one frame, on the grid of ``grid_size``."""
        cells = self._cells(embedding)
        flat = cells.flatten(1)
        looks = F.normalize(torch.einsum("cd,chw->dhw", self.axes, cells[:-1]), dim=0)
        return FrameFeatures(cells, looks, flat @ flat.T, flat.sum(dim=1))

    def _cells(self, embedding: Embedding) -> Tensor:
        """(C + 1, h, w) float32 over ``grid_size``; the last channel is 1, for the intercept."""
        height, width = grid_size(embedding)
        layers = []
        for m, mean, deviation in zip(_maps(embedding), self.means, self.deviations, strict=True):
            cropped, stride = _crop_padding(m, embedding)
            unit = F.normalize((cropped - mean) / deviation, dim=0)
            if stride != GRID_STRIDE:
                unit = F.interpolate(
                    unit[None],
                    scale_factor=stride / GRID_STRIDE,
                    mode="bilinear",
                    align_corners=False,
                )[0]
            layers.append(unit[:, :height, :width])
        ones = torch.ones((1, height, width), device=embedding.neck.device)
        return torch.cat([*layers, ones])


def _maps(embedding: Embedding) -> tuple[Tensor, ...]:
    """All maps of the encoder, none finer than the feature grid, and the neck."""
    finest = embedding.input_size // GRID_STRIDE
    stages = (F.avg_pool2d(m, max(1, m.shape[3] // finest)) for m in embedding.stages)
    return (*stages, embedding.neck)


def _crop_padding(m: Tensor, embedding: Embedding) -> tuple[Tensor, int]:
    """(1, C, h, w) over the square -> (C, h', w') over the frame, and the map's stride."""
    stride = embedding.input_size // m.shape[3]
    height, width = embedding.input_hw
    return m[0, :, : -(-height // stride), : -(-width // stride)], stride
