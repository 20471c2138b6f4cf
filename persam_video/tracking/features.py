"""Embedding -> one feature vector per fine grid cell, for the target model.

Each map of the encoder, averaged down to the feature grid where it is finer, is standardised per
channel with the statistics of the reference frame, brought to unit length per cell, so that no map
outweighs another, and resized to the feature grid. Only the cells of the frame are kept; the
network's padding is left out. Here a cell's channels lie side by side, (h, w, C): single cells are
taken out of the grid all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import TrackConfig
from persam_video.sam.cuda_graphs import Replayed
from persam_video.tracking.sums import Sums, gram
from persam_video.types import Embedding

_LOOKS = 48
"""Of the components, the first that cells are compared in; twice as many change nothing."""
_ACROSS = 2
"""Of a row of embedded cells one in so many is sampled: neighbours are much alike."""
_ROUND = 256
"""Rows that a matrix product has a multiple of."""


def filled_up(rows: int) -> int:
    """So many rows at least, as products in bfloat16 have them.

    oneDNN makes a product of a new shape ready first, and keeps it, half a megabyte. So there are
    few: multiples of 256 up to 2048, and four per doubling above.
    """
    step = max(_ROUND, 1 << max(0, rows.bit_length() - 3))
    return -(-rows // step) * step


def grid_stride(config: TrackConfig, embedding: Embedding) -> int:
    """Input pixels per cell of the feature grid, which is at most twice as fine as the maps."""
    return max(config.grid_stride, min(stride for _, stride in _maps(embedding)) // 2)


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


@dataclass(frozen=True, slots=True)
class Projection:
    """What one map of the encoder adds to the components of a cell.

    Attributes:
        mean: (C_i,) float32, of the reference frame's cells.
        deviation: (C_i,) float32, > 0.
        axes: (C, C_i) float32, this map's part of the principal axes, and a row of zeros for the
            intercept.
        dtype: Number format that cells are projected in.
    """

    mean: Tensor
    deviation: Tensor
    axes: Tensor
    dtype: torch.dtype = torch.float32

    def components(self, m: Tensor, first: int | None = None) -> Tensor:
        """(..., C_i) cells of the map -> (..., C) float32 features, or the first so many."""
        if self.dtype is torch.float32 and first is None:
            # The intercept's zeros come after the product: with their odd column, made for it, that
            # takes half as long again.
            return F.pad(self._unit(m) @ self.axes[:-1].T, (0, 1))
        axes = self.axes[:first].T
        if self.dtype is torch.float32:
            return self._unit(m) @ axes
        cells = m.flatten(0, -2)
        unit = cells.new_zeros((filled_up(len(cells)), cells.shape[1]), dtype=self.dtype)
        unit[: len(cells)] = self._unit(cells)
        features = (unit @ axes.to(self.dtype))[: len(cells)].float()
        return features.view(*m.shape[:-1], axes.shape[1])

    def scores(self, m: Tensor, weights: Tensor) -> Tensor:
        """(..., C_i) cells of the map -> (...) their features weighted by (C,)."""
        return self._unit(m) @ (weights @ self.axes)

    def _unit(self, m: Tensor) -> Tensor:
        """Standardised and of unit length, so that no map outweighs another."""
        unit = (m - self.mean).div_(self.deviation)
        return unit.div_(torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(1e-12))


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """The features of one frame and their sums, shared by all of its objects.

    A cell has C features, its components and a 1 for the intercept. They are made of those cells
    only that somebody asks for: of a fine grid that is a small part.

    Attributes:
        size_hw: Rows and columns of the feature grid.
        coarse: (h', w', C) float32, what all maps add that are coarser than the grid, and the 1.
        factor: By which these are.
        fine: The maps that are as fine as the grid, (h * w, C_i), and what they add.
        step: How many of these cells, across, are one of the embedding's.
        every: Of so many rows, and of so many columns, one is sampled.
        samples: (h'', w'', C) float32, these cells, from everywhere.
        sums: Over these, which stand for all cells, and over others that are background too.
    """

    size_hw: tuple[int, int]
    coarse: Tensor
    factor: int
    fine: tuple[tuple[Projection, Tensor], ...]
    step: int
    every: tuple[int, int]
    samples: Tensor
    sums: Sums

    @classmethod
    def of(cls, components: Tensor) -> FrameFeatures:
        """Of (h, w, C - 1) components that are known already; all cells are summed."""
        cells = F.pad(components, (0, 1), value=1.0)
        height, width = cells.shape[:2]
        sums = Sums.over(cells.flatten(0, 1))
        return cls((height, width), cells, 1, (), 1, (1, 1), cells, sums)

    def at(self, cells: Tensor) -> Tensor:
        """(n,) indices of cells, row after row -> (n, C) float32."""
        return self._features(cells, None)

    def at_each(self, places: Sequence[Tensor]) -> list[Tensor]:
        """``at`` of several places, of cells that are in more than one of them made once."""
        if len(places) == 1:
            return [self.at(places[0])]
        wanted = torch.zeros(self.size_hw[0] * self.size_hw[1], dtype=torch.bool)
        for cells in places:
            wanted[cells] = True
        features, row = self.at(wanted.nonzero()[:, 0]), wanted.cumsum(0) - 1
        rows = [row.index_select(0, cells).to(features.device) for cells in places]
        return [features.index_select(0, some) for some in rows]

    def looks(self, cells: Tensor) -> Tensor:
        """(n,) indices of cells -> (n, D') float32 of unit length, what they are compared by."""
        return F.normalize(self._features(cells, _looks(self.coarse)), dim=1)

    def scores(self, cells: Tensor, weights: Tensor) -> Tensor:
        """(n,) indices of cells -> (n,) float32, their features weighted by (C,).

        The same as ``at(cells) @ weights`` but for rounding, without making any of them.
        """
        places, factor = self._rows_and_columns(cells), self.factor
        # Of the coarse cells those that the asked ones lie in, and one on either side.
        top, left = (max(0, int(place.min()) // factor - 1) for place in places)
        bottom, right = (int(place.max()) // factor + 2 for place in places)
        along = (self.coarse[top:bottom, left:right] @ weights)[..., None]
        large = _enlarged(along, factor, self.size_hw)[..., 0]
        rows, columns = places
        asked = (rows - top * factor) * large.shape[1] + columns - left * factor
        score = large.flatten().index_select(0, asked.to(large.device))
        cells = cells.to(large.device)
        for projection, m in self.fine:
            score += projection.scores(m.index_select(0, cells), weights)
        return score.cpu()

    def sampled(self, where: Tensor) -> Tensor:
        """(n, C) samples that are in a (h, w) bool region."""
        down, across = self.every
        some = where[::down, ::across].flatten().nonzero()[:, 0]
        return self.samples.flatten(0, 1).index_select(0, some.to(self.samples.device))

    def sum_sampled(self, cells: Tensor) -> Sums:
        """The share of the frame's sums that some (n, C) samples have."""
        return Sums.over(cells).times(_weight(self.size_hw, self.every))

    def _features(self, cells: Tensor, first: int | None) -> Tensor:
        cells = cells.to(self.coarse.device)
        rows, columns = self._rows_and_columns(cells)
        total = _enlarged_at(self.coarse[..., :first], self.factor, rows, columns)
        for projection, m in self.fine:
            total += projection.components(m.index_select(0, cells), first)
        return total

    def _rows_and_columns(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        return cells // self.size_hw[1], cells % self.size_hw[1]


def looks_of(cells: Tensor) -> Tensor:
    """(n, C) features -> (n, D') float32 of unit length, what they are compared by."""
    return F.normalize(cells[:, : _looks(cells)], dim=1)


def _looks(cells: Tensor) -> int:
    """How many of (..., C) features cells are compared by."""
    return min(_LOOKS, cells.shape[-1] - 1)


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Channel statistics and principal axes of the reference frame.

    Attributes:
        stride: Input pixels per cell of the feature grid.
        projections: One per map; their axes, side by side, are the principal axes of the cells, the
            one with the largest variance first, and the row of zeros.
    """

    stride: int
    projections: tuple[Projection, ...]
    _recorded: dict[object, Replayed] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def fit(
        cls,
        embedding: Embedding,
        stride: int,
        components: int = 256,
        dtype: torch.dtype = torch.float32,
    ) -> FeatureSpace:
        """Statistics over the cells of the reference frame, and so many axes or all there are.

        Args:
            embedding: Of the reference frame.
            stride: Input pixels per cell of the feature grid.
            components: How many axes.
            dtype: Number format that cells are projected in; axes and features are float32.
        """
        size_hw = grid_size(embedding, stride)
        means, deviations, cells = [], [], []
        for m, coarser in _maps(embedding, stride):
            means.append(m.float().mean(dim=(0, 1)))
            deviations.append(m.float().flatten(0, 1).std(dim=0).clamp_min(1e-6))
            unit = F.normalize((m - means[-1]) / deviations[-1], dim=2)
            cells.append(_enlarged(unit, coarser // stride, size_hw))
        flat = torch.cat(cells, dim=2).flatten(0, 1)
        axes = torch.linalg.eigh(gram(flat, flat))[1].flip(1)[:, :components].T
        axes = torch.cat([axes, torch.zeros_like(axes[:1])])
        parts = torch.split(axes, [len(mean) for mean in means], dim=1)
        own = zip(means, deviations, parts, strict=True)
        return cls(stride, tuple(Projection(*each, dtype) for each in own))

    def features(self, embedding: Embedding) -> FrameFeatures:
        """What is learnt from or scored in one frame, on the grid of ``grid_size``."""
        size_hw, step = grid_size(embedding, self.stride), self._step(embedding)
        every = step, _ACROSS * step
        maps = _maps(embedding, self.stride)
        strides = tuple(stride for _, stride in maps)
        if (strides, every) not in self._recorded:
            # Of this object it holds the parts alone: what holds itself is let go of much later.
            made = partial(_coarse_and_samples, self.stride, self.projections, strides, every)
            self._recorded[strides, every] = Replayed(made)
        coarse, samples, products, total = self._recorded[strides, every](*(m for m, _ in maps))
        sums = Sums(products, total, samples[..., 0].numel()).times(_weight(size_hw, every))
        fine, _, factor = _split(self.stride, self.projections, maps)
        rows = tuple((projection, m.flatten(0, 1)) for projection, m in fine)
        return FrameFeatures(size_hw, coarse, factor, rows, step, every, samples, sums)

    def sums(self, embedding: Embedding, where: Tensor) -> Sums:
        """Over a part of a frame.

        Args:
            embedding: Of the frame.
            where: (h, w) bool over the embedding's own cells that show anything.
        """
        step = self._step(embedding)
        fine, coarser, factor = _split(self.stride, self.projections, _maps(embedding, self.stride))
        samples = _samples(fine, _coarse(coarser), factor, (step, _ACROSS * step))
        some = samples[where[:, ::_ACROSS].to(samples.device)]
        return Sums.over(some).times(float(where.sum()) * step**2 / max(1, len(some)))

    def _step(self, embedding: Embedding) -> int:
        """How many cells of the feature grid, across, are one of the embedding's."""
        return embedding.input_size // max(embedding.neck.shape[2:]) // self.stride


_Maps = Sequence[tuple[Tensor, int]]
"""Of the encoder, (h_i, w_i, C_i), and how many input pixels a cell of each has across."""
_Fine = tuple[tuple[Projection, Tensor], ...]
_Coarser = Sequence[tuple[Projection, Tensor, int]]


def _coarse_and_samples(
    stride: int,
    projections: tuple[Projection, ...],
    strides: tuple[int, ...],
    every: tuple[int, int],
    *maps: Tensor,
) -> tuple[Tensor, ...]:
    """``coarse`` and ``samples`` of ``FrameFeatures``, and the latter's sums.

    Args:
        stride: Of the feature grid.
        projections: One for each map.
        strides: Of the maps.
        every: As of ``FrameFeatures``.
        maps: (h_i, w_i, C_i).
    """
    fine, coarser, factor = _split(stride, projections, [*zip(maps, strides, strict=True)])
    coarse = _coarse(coarser)
    samples = _samples(fine, coarse, factor, every)
    sums = Sums.over(samples.flatten(0, 1))
    return coarse, samples, sums.gram, sums.total


def _split(
    stride: int, projections: tuple[Projection, ...], maps: _Maps
) -> tuple[_Fine, _Coarser, int]:
    """The maps that are as fine as a feature grid, those that are not, and the latter's factor."""
    own = [(p, m, s) for p, (m, s) in zip(projections, maps, strict=True)]
    coarser = [(p, m, s) for p, m, s in own if s > stride]
    # The neck is coarser than any feature grid.
    factor = min(s for _, _, s in coarser) // stride
    return tuple((p, m) for p, m, s in own if s == stride), coarser, factor


def _coarse(maps: _Coarser) -> Tensor:
    """``coarse`` of ``FrameFeatures``."""
    # Projected and summed before they are enlarged, which is the same and less work; and from the
    # coarsest map to the finest, each enlarged by no more than to the next.
    total, stride = None, 0
    for finer in sorted({s for _, _, s in maps}, reverse=True):
        first, *others = (projection.components(m) for projection, m, s in maps if s == finer)
        for share in others:
            first += share
        if total is not None:
            height, width = first.shape[:2]
            first += _enlarged(total, stride // finer, (height, width))
        total, stride = first, finer
    assert total is not None
    total[..., -1] = 1.0
    return total


def _samples(fine: _Fine, coarse: Tensor, factor: int, every: tuple[int, int]) -> Tensor:
    """(h'', w'', C), one of so many rows and columns, of the parts of ``FrameFeatures``."""
    down, across = every
    samples = _enlarged_every(coarse, factor, every)
    for projection, m in fine:
        samples += projection.components(m[::down, ::across])
    return samples


def _weight(size_hw: tuple[int, int], every: tuple[int, int]) -> float:
    """For how many cells of a grid each one stands that is summed."""
    (height, width), (down, across) = size_hw, every
    return height * width / (-(-height // down) * -(-width // across))


def _enlarged(m: Tensor, factor: int, size_hw: tuple[int, int]) -> Tensor:
    """(h, w, C) -> (H, W, C), enlarged bilinearly; what is beyond that size is left out."""
    if factor == 1:
        return m
    # In this order: of permute(2, 0, 1)[None] torch does not see that channels lie side by side.
    planes = m[None].permute(0, 3, 1, 2)
    large = F.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
    return large[0].permute(1, 2, 0)[: size_hw[0], : size_hw[1]]


def _enlarged_at(m: Tensor, factor: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Single cells of an enlarged (h, w, C) map: (n, C)."""
    if factor == 1:
        return m[rows, columns]
    sides = []
    for place, length in ((rows, m.shape[0]), (columns, m.shape[1])):
        middle = ((place + 0.5) / factor - 0.5).clamp(0, length - 1)
        first = middle.long()
        second = middle - first
        both = torch.stack([first, (first + 1).clamp_max(length - 1)], dim=1)
        sides.append((both, torch.stack([1 - second, second], dim=1)))
    (down, down_shares), (across, across_shares) = sides
    corners = (down[:, :, None] * m.shape[1] + across[:, None, :]).flatten(1)
    shares = (down_shares[:, :, None] * across_shares[:, None, :]).flatten(1)
    # Made for words of a text, it weighs and sums rows of a matrix without copying them first.
    cells = m.flatten(0, 1).contiguous()
    return F.embedding_bag(corners, cells, mode="sum", per_sample_weights=shares)


def _enlarged_every(m: Tensor, factor: int, every: tuple[int, int]) -> Tensor:
    """One of so many rows and columns of an enlarged map, which are multiples of ``factor``."""
    # The first of the cells that one becomes lies before its middle.
    before = 0.5 - 0.5 / factor
    for dim, step in enumerate(every):
        here = torch.arange(0, m.shape[dim], step // factor, device=m.device)
        there = (here - 1).clamp_min(0)
        m = torch.lerp(m.index_select(dim, here), m.index_select(dim, there), before)
    return m


def _maps(embedding: Embedding, finest: int = 1) -> list[tuple[Tensor, int]]:
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
            m, stride = F.avg_pool2d(m.float(), finest // stride), finest
        rows, columns = grid_size(embedding, stride)
        maps.append((m[0, :, :rows, :columns].permute(1, 2, 0), stride))
    neck = embedding.neck[(0, slice(None), *grid_slices(embedding, coarsest))]
    return [*maps, (neck.permute(1, 2, 0), coarsest)]
