"""What one object learns from a frame: which cells, and for how many each of them counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.tracking.features import FrameFeatures, Sums

_TOUCHED = 0.05
"""Share of a cell from which on some of the object is in it."""
_NEAR = 1.5
"""Cells of the embedding around the object within which every cell is learnt."""
_EVERY = 4
"""Of the cells farther off, and of those of other objects there, every fourth is learnt and counts
for four: neighbours are much alike."""
_MOST_CELLS = 2048
"""Most cells learnt of each of these kinds; of more so many, evenly spread."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Cells of one frame's feature grid for one object.

    Attributes:
        mask: (h, w) float32 in [0, 1], share of each cell that is the object.
        region: (h, w) bool, cells near it; outside them there is none of it.
        cells: (M,) indices of cells of the object and around it, row after row.
        counts: (M,) float32, for how many cells each of them counts.
        rivals: (R,) indices of cells of other objects, away from this one.
        rival_counts: (R,) float32, for how many these count.
        rival_sums: Over all cells of the other objects; None: there are none.
    """

    mask: Tensor
    region: Tensor
    cells: Tensor
    counts: Tensor
    rivals: Tensor
    rival_counts: Tensor
    rival_sums: Sums | None

    @classmethod
    def around(
        cls,
        mask: Tensor,
        region: Tensor,
        frame: FrameFeatures,
        rivals: Tensor | None = None,
        rival_sums: Sums | None = None,
    ) -> Lesson:
        """Choose the cells.

        Args:
            mask: (h, w) float32 in [0, 1], share of each cell that is the object.
            region: (h, w) bool, cells near it; outside them there is none of it.
            frame: Features of the frame.
            rivals: (h, w) bool, cells of other objects, or None.
            rival_sums: Over these; None = they are summed here.
        """
        if rivals is None:
            rivals = torch.zeros_like(region)
        if rival_sums is None and rivals.any():
            rival_sums = Sums.over(frame.cells[rivals])
        touched = (mask > _TOUCHED).float()[None, None]
        reach = round(_NEAR * frame.step)
        near = F.max_pool2d(touched, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
        kinds = _spread(region & near, 1), _spread(region & ~near, _EVERY)
        cells, counts = (torch.cat(parts) for parts in zip(*kinds, strict=True))
        return cls(mask, region, cells, counts, *_spread(rivals & ~region, _EVERY), rival_sums)


def _spread(place: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Some of the cells of a (h, w) bool place: (M,) indices, and for how many each counts."""
    cells = place.flatten().nonzero()[:, 0]
    kept = min(-(-len(cells) // every), _MOST_CELLS)
    # Not a fixed step: in a grid of rows it can miss a thin object altogether.
    some = cells[torch.arange(kept, device=cells.device) * len(cells) // max(1, kept)]
    return some, torch.full((kept,), len(cells) / max(1, kept), device=place.device)
