"""Embedding -> one feature vector per fine grid cell, for the target model.

Each map of the encoder is standardised per channel with the statistics of the reference frame,
brought to unit length per cell, so that no map outweighs another, and resized to the feature grid.
Only the cells of the frame are kept; the network's padding is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Channel statistics of the reference frame.

    Attributes:
        means: One (C_i, 1, 1) float32 per map.
        deviations: One (C_i, 1, 1) float32 per map, > 0.
    """

    means: tuple[Tensor, ...]
    deviations: tuple[Tensor, ...]

    @classmethod
    def fit(cls, embedding: Embedding) -> FeatureSpace:
        """Statistics over the cells of the reference frame."""
        maps = [_crop_padding(m, embedding)[0] for m in _maps(embedding)]
        return cls(
            tuple(m.mean(dim=(1, 2), keepdim=True) for m in maps),
            tuple(m.std(dim=(1, 2), keepdim=True).clamp_min(1e-6) for m in maps),
        )

    def features(self, embedding: Embedding) -> Tensor:
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
    """The maps that tell objects apart: strides 8 and 16, and the neck.

    The stride-4 map is left out: mostly edges and colours, on a grid finer than the one scored.
    """
    coarse = tuple(
        stage for stage in embedding.stages if embedding.input_size // stage.shape[3] >= GRID_STRIDE
    )
    return (*coarse, embedding.neck)


def _crop_padding(m: Tensor, embedding: Embedding) -> tuple[Tensor, int]:
    """(1, C, h, w) over the square -> (C, h', w') over the frame, and the map's stride."""
    stride = embedding.input_size // m.shape[3]
    height, width = embedding.input_hw
    return m[0, :, : -(-height // stride), : -(-width // stride)], stride
