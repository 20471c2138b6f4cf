"""Embedding -> one feature vector per fine grid cell, for the target model.

Each map of the encoder, averaged down to the feature grid where it is finer, is standardised per
channel with the statistics of the reference frame, brought to unit length per cell, so that no map
outweighs another, and resized to the feature grid. Only the cells of the frame are kept; the
network's padding is left out. Here a cell's channels lie side by side, (h, w, C): single cells are
taken out of the grid all the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import TrackConfig
from persam_video.types import Embedding

_FINE_UP_TO = 768
"""Input size up to which the grid is as fine as the encoder's finest map."""


def grid_stride(config: TrackConfig, embedding: Embedding) -> int:
    """Input pixels per cell of the feature grid.

    A small input keeps about as many cells as a large one has: what is thin would be lost in cells
    that show more of the frame.
    """
    if config.grid_stride is not None:
        return config.grid_stride
    return 4 if embedding.input_size <= _FINE_UP_TO else 8


def grid_size(embedding: Embedding, stride: int) -> tuple[int, int]:
    """Rows and columns of the feature grid, which is over what was encoded, without padding."""
    top, left, bottom, right = _edges(embedding, stride)
    return bottom - top, right - left


def grid_slices(embedding: Embedding, stride: int) -> tuple[slice, slice]:
    """The rows and columns that the feature grid has of one over the whole padded square."""
    top, left, bottom, right = _edges(embedding, stride)
    return slice(top, bottom), slice(left, right)


def _edges(embedding: Embedding, stride: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what was encoded, in cells of a map; the last two outside."""
    height, width = embedding.input_hw
    bottom, right = -(-height // stride), -(-width // stride)
    if embedding.window is None:
        return 0, 0, bottom, right
    cells = embedding.window.scaled(embedding.input_size // max(embedding.neck.shape[2:]))
    top, left = cells.top // stride, cells.left // stride
    return (
        top,
        left,
        min(bottom, (cells.top + cells.height) // stride),
        min(right, (cells.left + cells.width) // stride),
    )


_LOOKS = 96
"""Of these, the first that cells are compared in; more change nothing and cost time."""
_COUNTED = 2
"""Of the rows and columns of a frame every so many are summed: neighbours are much alike."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over cells, which serve every object.

    Attributes:
        gram: (C, C) float32, sum of f f^T.
        total: (C,) float32, sum of f.
        count: Number of cells.
    """

    gram: Tensor
    total: Tensor
    count: float

    @classmethod
    def over(cls, cells: Tensor, weight: float = 1.0) -> Sums:
        """Of (n, C) features that count ``weight`` times each."""
        return cls(weight * (cells.T @ cells), weight * cells.sum(dim=0), weight * len(cells))

    def __add__(self, other: Sums) -> Sums:
        """Over the cells of both."""
        return Sums(self.gram + other.gram, self.total + other.total, self.count + other.count)

    def __sub__(self, other: Sums) -> Sums:
        """Without the cells of another, which are among these."""
        return Sums(self.gram - other.gram, self.total - other.total, self.count - other.count)


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """The features of one frame and their sums, shared by all of its objects.

    Attributes:
        cells: (h, w, C) float32; the last channel is 1, for the intercept.
        looks: (h, w, D) float32, their first components brought to unit length.
        counted: (h, w) float32, how often a cell counts in the sums; its mean is 1.
        sums: Over all cells, and over others that are background too.
    """

    cells: Tensor
    looks: Tensor
    counted: Tensor
    sums: Sums

    @classmethod
    def of(cls, cells: Tensor, looks: Tensor) -> FrameFeatures:
        """With the sums over some of the cells, which stand for all."""
        counted = torch.zeros(cells.shape[:2], device=cells.device)
        some = cells[::_COUNTED, ::_COUNTED].flatten(0, 1)
        weight = counted.numel() / len(some)
        counted[::_COUNTED, ::_COUNTED] = weight
        return cls(cells, looks, counted, Sums.over(some, weight))


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Channel statistics and principal axes of the reference frame.

    Attributes:
        stride: Input pixels per cell of the feature grid.
        means: One (C_i,) float32 per map.
        deviations: One (C_i,) float32 per map, > 0.
        axes: One (D, C_i) float32 per map; stacked along C_i they are the principal axes of the
            cells, the one with the largest variance first.
    """

    stride: int
    means: tuple[Tensor, ...]
    deviations: tuple[Tensor, ...]
    axes: tuple[Tensor, ...]

    @classmethod
    def fit(cls, embedding: Embedding, stride: int, components: int = 256) -> FeatureSpace:
        """Statistics over the cells of the reference frame, and so many axes or all there are."""
        maps = [m.flatten(0, 1) for m, _ in _maps(embedding, stride)]
        means = tuple(m.mean(dim=0) for m in maps)
        deviations = tuple(m.std(dim=0).clamp_min(1e-6) for m in maps)
        whole = cls(stride, means, deviations, ())
        cells = torch.cat(
            [
                _resized(F.normalize(m, dim=2), s, stride, embedding)
                for m, s in whole._standardised(embedding)
            ],
            dim=2,
        )
        flat = cells.flatten(0, 1)
        axes = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :components].T
        return cls(stride, means, deviations, axes.split([m.shape[1] for m in maps], dim=1))

    def features(self, embedding: Embedding) -> FrameFeatures:
        """All that is learnt from or scored in one frame, on the grid of ``grid_size``."""
        # Projected and summed before they are resized, which is the same and less work.
        projected: dict[int, Tensor] = {}
        for (m, stride), axes in zip(self._standardised(embedding), self.axes, strict=True):
            length = torch.linalg.vector_norm(m, dim=2, keepdim=True).clamp_min(1e-12)
            part = (m @ axes.T).div_(length)
            projected[stride] = projected[stride].add_(part) if stride in projected else part
        # From the coarsest map to the finest: each is enlarged by no more than to the next.
        components, coarser = None, 0
        for stride in sorted(projected, reverse=True):
            part = projected[stride]
            if components is not None:
                part += _resized(components, coarser, stride, embedding)
            components, coarser = part, stride
        assert components is not None
        components = _resized(components, coarser, self.stride, embedding)
        cells = F.pad(components, (0, 1), value=1.0)
        return FrameFeatures.of(cells, F.normalize(components[..., :_LOOKS], dim=2))

    def _standardised(self, embedding: Embedding) -> list[tuple[Tensor, int]]:
        """Per map (h_i, w_i, C_i) float32 without padding, and its stride."""
        maps = _maps(embedding, self.stride)
        return [
            ((m - mean).div_(deviation), stride)
            for (m, stride), mean, deviation in zip(maps, self.means, self.deviations, strict=True)
        ]


def _resized(m: Tensor, stride: int, to: int, embedding: Embedding) -> Tensor:
    """(h', w', C) at a stride -> (h, w, C) over ``grid_size`` at another."""
    height, width = grid_size(embedding, to)
    if stride != to:
        planes = m.permute(2, 0, 1)[None]
        planes = F.interpolate(
            planes, scale_factor=stride / to, mode="bilinear", align_corners=False
        )
        m = planes[0].permute(1, 2, 0)
    return m[:height, :width]


def _maps(embedding: Embedding, finest: int) -> list[tuple[Tensor, int]]:
    """All maps of the encoder and the neck over what was encoded: (h_i, w_i, C_i) and stride.

    Those of strides below ``finest`` are averaged down to it.
    """
    coarsest = embedding.input_size // max(embedding.neck.shape[2:])
    window = embedding.window
    longest = coarsest * max(window.width, window.height) if window else embedding.input_size
    maps = []
    for m in embedding.stages:
        stride = longest // max(m.shape[2:])
        if stride < finest:
            m, stride = F.avg_pool2d(m, finest // stride), finest
        rows, columns = grid_size(embedding, stride)
        maps.append((m[0, :, :rows, :columns].permute(1, 2, 0), stride))
    neck = embedding.neck[(0, slice(None), *grid_slices(embedding, coarsest))]
    return [*maps, (neck.permute(1, 2, 0), coarsest)]
