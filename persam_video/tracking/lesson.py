"""What one object learns from a frame: which cells, and for how many each of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.tracking.features import FrameFeatures
from persam_video.tracking.grid import cells_in, rectangle_of
from persam_video.tracking.sums import Sums

_TOUCHED = 0.05
"""Share of a cell from which on some of the object is in it."""
_NEAR = 1.5
"""Cells of the embedding around the object within which every cell is learnt."""
_EVERY = 8
"""Of the cells farther off, and of those of other objects there, every eighth is learnt and counts
for eight: neighbours are much alike."""
_MOST = 1024
"""Most cells learnt of each kind; of more so many, evenly spread."""

_OTHERS = 1 / 3
"""Most weight of others in that of the background."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Cells of one frame's feature grid for one object.

    Features and sums are on the network's device, all else is on the processor.

    Attributes:
        mask: (h, w) float32 in [0, 1], share of each cell that is the object.
        region: (h, w) bool, cells near it; outside them there is none of it.
        itself: (h, w) bool, those that are the object.
        cells: (M,) indices of cells of the region.
        features: (M, C) float32, the features of these.
        counts: (M,) float32, for how many cells each of them counts.
        shares: (M,) float32 in [0, 1], of the object in each of them; 1 in the fullest.
        own: Sums over those that are the object.
        beside: Sums over those that are not.
        others: (R, C) float32, features of what is away from it and could be mistaken for it.
        other_counts: (R,) float32, for how many cells these count.
        other_sums: Over all of that, and other objects that are near; None: there is nothing.
        other_weight: Of these in the background, whose weight is 1.
    """

    mask: Tensor
    region: Tensor
    itself: Tensor
    cells: Tensor
    features: Tensor
    counts: Tensor
    shares: Tensor
    own: Sums
    beside: Sums
    others: Tensor
    other_counts: Tensor
    other_sums: Sums | None = None
    other_weight: float = 0.0

    @classmethod
    def around(cls, mask: Tensor, region: Tensor, frame: FrameFeatures) -> Lesson:
        """Choose the cells, with nothing but the object and what is beside it.

        Args:
            mask: (h, w) float32 in [0, 1], share of each cell that is the object.
            region: (h, w) bool, cells near it; outside them there is none of it.
            frame: Features of the frame.
        """
        return cls.around_each([mask], [region], frame)[0]

    @classmethod
    def around_each(
        cls, masks: Sequence[Tensor], regions: Sequence[Tensor], frame: FrameFeatures
    ) -> list[Lesson]:
        """The same of several objects, whose regions may overlap."""
        chosen = [_chosen(*both, frame.step) for both in zip(masks, regions, strict=True)]
        features = frame.at_each([cells for cells, _ in chosen])
        return [
            cls._of(mask, region, *choice, made)
            for mask, region, choice, made in zip(masks, regions, chosen, features, strict=True)
        ]

    @classmethod
    def _of(
        cls,
        mask: Tensor,
        region: Tensor,
        cells: Tensor,
        counts: Tensor,
        features: Tensor,
    ) -> Lesson:
        shares = mask.flatten().index_select(0, cells)
        # A thin object fills no cell; its fullest cells are what there is of it.
        fullest = shares.max().clamp_min(1e-3)
        shares, itself = shares / fullest, region & (mask / fullest > 0.5)
        inside = shares > 0.5
        own, beside = (_summed(features, counts, some) for some in (inside, ~inside))
        nothing = features[:0], counts[:0]
        return cls(mask, region, itself, cells, features, counts, shares, own, beside, *nothing)

    def against(
        self,
        frame: FrameFeatures,
        *,
        rivals: Tensor | None = None,
        rival_sums: Sums | None = None,
        alike: Tensor | None = None,
    ) -> Lesson:
        """The same with what could be mistaken for the object.

        Other objects have a third of the background's weight, however small they are; what merely
        looks like the object has it as far as it is as large as the object.

        Args:
            frame: Features of the frame.
            rivals: (h, w) bool, cells of other objects, or None.
            rival_sums: Over these, or over the cells learnt of them; None = they are summed here.
            alike: (n, C) samples of the frame from outside the region that look like the object.
        """
        others, other_counts = self.others, self.other_counts
        sums, weight = None, 0.0
        if rivals is not None and rivals.any():
            sums, weight = rival_sums or Sums.over(frame.at(cells_in(rivals))), _OTHERS
            away, other_counts = _spread(rivals & ~self.region, _EVERY)
            others = frame.at(away)
        if alike is not None and len(alike):
            alike_sums = frame.sum_sampled(alike)
            sums = alike_sums if sums is None else sums + alike_sums
            size = float(self.mask.sum().clamp_min(1))
            weight = max(weight, _OTHERS * min(1.0, alike_sums.count / size))
            others = torch.cat([others, alike])
            each = alike_sums.count / len(alike)
            other_counts = F.pad(other_counts, (0, len(alike)), value=each)
        return replace(
            self, others=others, other_counts=other_counts, other_sums=sums, other_weight=weight
        )


def _summed(features: Tensor, counts: Tensor, some: Tensor) -> Sums:
    """Over the features of some of (M,) cells, which stand for so many each."""
    places = cells_in(some)
    chosen = features.index_select(0, places.to(features.device))
    return Sums.over(chosen, counts.index_select(0, places))


def _chosen(mask: Tensor, region: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Cells of a region: (M,) indices, and for how many each counts."""
    place = rectangle_of(region.numpy())
    # Of an object smaller than a cell its fullest cells count as touched.
    least = (mask[place].max() / 2).clamp_max(_TOUCHED)
    touched = (mask[place] > least).numpy().view(np.uint8)
    # OpenCV takes a tenth of torch's time for this.
    square = np.ones((2 * round(_NEAR * step) + 1,) * 2, np.uint8)
    near = torch.zeros_like(region)
    near[place] = torch.from_numpy(cv2.dilate(touched, square) > 0)
    kinds = _spread(region & near, 1), _spread(region & ~near, _EVERY)
    cells, counts = (torch.cat(parts) for parts in zip(*kinds, strict=True))
    return cells, counts


def _spread(place: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Some of the cells of a (h, w) bool place: (M,) indices, and for how many each counts."""
    cells = cells_in(place)
    kept = min(-(-len(cells) // every), _MOST)
    # Not a fixed step: in a grid of rows it can miss a thin object altogether.
    some = cells.index_select(0, torch.arange(kept) * len(cells) // max(1, kept))
    return some, torch.full((kept,), len(cells) / max(1, kept))
