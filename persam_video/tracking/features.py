"""Embedding -> one feature vector per fine grid cell, for the target model.

Each map of the encoder, averaged down to the feature grid where it is finer, is standardised per
channel with the statistics of the reference frame, brought to unit length per cell, so that no map
outweighs another, and resized to the feature grid. Only the cells of the frame are kept; the
network's padding is left out. Here a cell's channels lie side by side, (h, w, C): single cells are
taken out of the grid all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import TrackConfig
from persam_video.types import Embedding

Place = tuple[slice, slice]
"""Some rows and columns of a grid; both slices have a start and a stop."""

_LOOKS = 96
"""Of the components, the first that cells are compared in; more change nothing and cost time."""


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
        cells: (h, w, C) float32; the last channel is 1, for the intercept. Outside ``known`` there
            is anything.
        known: Rows and columns that were asked for.
        step: Of every so many rows and columns one is sampled: neighbours are much alike.
        samples: (h', w', C) float32, these cells, from everywhere.
        sums: Over these, which stand for all cells, and over others that are background too.
    """

    cells: Tensor
    known: Place
    step: int
    samples: Tensor
    sums: Sums

    @classmethod
    def of(cls, cells: Tensor) -> FrameFeatures:
        """Of (h, w, C) cells that are all known and summed."""
        return cls(cells, _everything(*cells.shape[:2]), 1, cells, Sums.over(cells.flatten(0, 1)))

    def looks(self, where: Tensor) -> Tensor:
        """What some cells are compared by, their first components: (n, D) float32 of unit length.

        Args:
            where: (h, w) bool, or (n,) indices into all cells, row after row.
        """
        return looks_of(self.cells.flatten(0, 1)[where.flatten()])

    def sampled(self, where: Tensor) -> Tensor:
        """(n, C) samples that are in a (h, w) bool region."""
        return self.samples[where[:: self.step, :: self.step]]

    def sum_sampled(self, cells: Tensor) -> Sums:
        """The share of the frame's sums that some (n, C) samples have."""
        return Sums.over(cells, _weight(self.cells.shape[:2], self.step))


def looks_of(cells: Tensor) -> Tensor:
    """(n, C) features -> (n, D) float32 of unit length, their first components."""
    return F.normalize(cells[:, : min(_LOOKS, cells.shape[1] - 1)], dim=1)


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
        place = _everything(*grid_size(embedding, stride))
        means, deviations, cells = [], [], []
        for m, coarser in _maps(embedding, stride):
            means.append(m.mean(dim=(0, 1)))
            deviations.append(m.flatten(0, 1).std(dim=0).clamp_min(1e-6))
            unit = F.normalize((m - means[-1]) / deviations[-1], dim=2)
            cells.append(_enlarged(unit, coarser // stride, place))
        flat = torch.cat(cells, dim=2).flatten(0, 1)
        axes = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :components].T
        lengths = [len(mean) for mean in means]
        return cls(stride, tuple(means), tuple(deviations), axes.split(lengths, dim=1))

    def features(self, embedding: Embedding, known: Place | None = None) -> FrameFeatures:
        """What is learnt from or scored in one frame, on the grid of ``grid_size``.

        Args:
            embedding: Of the frame.
            known: Rows and columns in which single cells are needed; None = everywhere.
        """
        size_hw = grid_size(embedding, self.stride)
        known = known or _everything(*size_hw)
        fine, coarse, factor = self._components(embedding)
        # Not initialised: memory that nothing is written to costs nothing.
        cells = coarse.new_empty(*size_hw, coarse.shape[2] + 1)
        inside = cells[known]
        inside[..., :-1] = _enlarged(coarse, factor, known)
        inside[..., -1] = 1.0
        for i, m in fine:
            inside[..., :-1] += self._projected(i, m[known])
        step = self._step(embedding)
        samples = self._samples(fine, coarse, factor, step)
        sums = Sums.over(samples.flatten(0, 1), _weight(size_hw, step))
        return FrameFeatures(cells, known, step, samples, sums)

    def sums(self, embedding: Embedding, where: Tensor) -> Sums:
        """Over a part of a frame.

        Args:
            embedding: Of the frame.
            where: (h, w) bool over the embedding's own cells that show anything.
        """
        step = self._step(embedding)
        samples = self._samples(*self._components(embedding), step)
        return Sums.over(samples[where], step**2)

    def _step(self, embedding: Embedding) -> int:
        """Cells of the feature grid, across, of which one is summed: one per embedded cell."""
        return embedding.input_size // max(embedding.neck.shape[2:]) // self.stride

    def _components(self, embedding: Embedding) -> tuple[list[tuple[int, Tensor]], Tensor, int]:
        """Components of all cells, but for the last step to the feature grid.

        Returns:
            Number and (h, w, C_i) of the maps that are as fine as that grid, not projected yet; the
            (h', w', D) sum of all others; and the factor by which this one is coarser.
        """
        maps = _maps(embedding, self.stride)
        # Projected and summed before they are enlarged, which is the same and less work; and from
        # the coarsest map to the finest, each enlarged by no more than to the next.
        total, stride = None, 0
        for finer in sorted({s for _, s in maps if s > self.stride}, reverse=True):
            parts = [self._projected(i, m) for i, (m, s) in enumerate(maps) if s == finer]
            if total is not None:
                place = _everything(*grid_size(embedding, finer))
                parts.append(_enlarged(total, stride // finer, place))
            total, stride = sum(parts[1:], start=parts[0]), finer
        assert total is not None  # the neck is coarser than any feature grid
        fine = [(i, m) for i, (m, s) in enumerate(maps) if s == self.stride]
        return fine, total, stride // self.stride

    def _projected(self, i: int, m: Tensor) -> Tensor:
        """Map i or a part of it: (h, w, C_i) -> its (h, w, D) share of the components."""
        unit = (m - self.means[i]).div_(self.deviations[i])
        length = torch.linalg.vector_norm(unit, dim=2, keepdim=True).clamp_min(1e-12)
        return (unit @ self.axes[i].T).div_(length)

    def _samples(
        self, fine: list[tuple[int, Tensor]], coarse: Tensor, factor: int, step: int
    ) -> Tensor:
        """(h', w', C), one of every ``step`` rows and columns, of what ``_components`` returns."""
        samples = _enlarged_every(coarse, factor, step)
        for i, m in fine:
            samples += self._projected(i, m[::step, ::step])
        return F.pad(samples, (0, 1), value=1.0)


def _everything(height: int, width: int) -> Place:
    return slice(0, height), slice(0, width)


def _weight(size_hw: Sequence[int], step: int) -> float:
    """For how many cells of a grid each one stands that is summed."""
    height, width = size_hw
    return height * width / (-(-height // step) * -(-width // step))


def _enlarged(m: Tensor, factor: int, place: Place) -> Tensor:
    """Some rows and columns of a (h, w, C) map that is enlarged bilinearly: (rows, columns, C)."""
    if factor == 1:
        return m[place]
    seen, kept = [], []
    for length, wanted in zip(m.shape[:2], place, strict=True):
        first = max(0, wanted.start // factor - 1)
        seen.append(slice(first, min(length, -(-wanted.stop // factor) + 1)))
        kept.append(slice(wanted.start - first * factor, wanted.stop - first * factor))
    planes = m[tuple(seen)].permute(2, 0, 1)[None]
    large = F.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
    return large[0].permute(1, 2, 0)[tuple(kept)]


def _enlarged_every(m: Tensor, factor: int, step: int) -> Tensor:
    """One of every ``step`` rows and columns of an enlarged map; ``step`` is a multiple."""
    # The first of the cells that one becomes lies before its middle.
    before = 0.5 - 0.5 / factor
    for dim in (0, 1):
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
            m, stride = F.avg_pool2d(m, finest // stride), finest
        rows, columns = grid_size(embedding, stride)
        maps.append((m[0, :, :rows, :columns].permute(1, 2, 0), stride))
    neck = embedding.neck[(0, slice(None), *grid_slices(embedding, coarsest))]
    return [*maps, (neck.permute(1, 2, 0), coarsest)]
