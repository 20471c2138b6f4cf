"""What single cells of the object and of its surroundings look like, copied and not summed up.

The target model is linear: a thin part that looks like the background elsewhere is outvoted in it.
Here every cell of a new frame takes its label from the most similar cells of the reference and of
the latest frame (label propagation, as in Jabri et al., "Space-Time Correspondence as a Contrastive
Random Walk", 2020, section 3.3, with SAM's features and without their choice of the k nearest,
which costs more than it changes), so that an ear remains an ear as long as something looks more
like it than like anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TEMPERATURE = 0.03
"""Cosine by which a remembered cell is more similar to weigh e times as much."""
_MOST_CELLS = 3072
"""Remembered cells per frame; of a larger region so many, evenly spread, are remembered."""
_CHUNK = 256
"""Cells asked about at once, so that what they are compared with stays in the processor's cache."""


class AppearanceMemory:
    """Labelled cells of the reference frame and of the latest frame of one object."""

    def __init__(self) -> None:
        self._reference: tuple[Tensor, Tensor] | None = None
        self._latest: tuple[Tensor, Tensor] | None = None

    def fit(self, looks: Tensor, mask: Tensor, region: Tensor) -> None:
        """Remember the reference; what was remembered before is forgotten.

        Args:
            looks: (D, h, w) float32 features of unit length.
            mask: (h, w) float32 in [0, 1], share of the cell that is object.
            region: (h, w) bool, cells to be remembered.
        """
        self._reference, self._latest = _entry(looks, mask, region), None

    def update(self, looks: Tensor, mask: Tensor, region: Tensor) -> None:
        """Remember another frame in the place of the latest one; arguments as for ``fit``."""
        self._latest = _entry(looks, mask, region)

    def score(self, looks: Tensor) -> Tensor:
        """The label of each cell by its most similar remembered cells.

        Args:
            looks: (D, n) float32 features of unit length.

        Returns:
            (n,) float32 in [-1, 1], +1 = object.
        """
        entries = [e for e in (self._reference, self._latest) if e is not None]
        cells = torch.cat([e[0] for e in entries], dim=1)
        shares = torch.cat([e[1] for e in entries])
        asked = looks.T.contiguous()
        buffer = looks.new_empty(min(_CHUNK, len(asked)), len(shares))
        scores = []
        for start in range(0, len(asked), _CHUNK):
            chunk = asked[start : start + _CHUNK]
            weights = torch.mm(chunk, cells, out=buffer[: len(chunk)])
            # Cosines reach 1 and no more, so the exponential cannot overflow; the best is > e^-67.
            weights.sub_(1).div_(_TEMPERATURE).exp_()
            scores.append(2 * (weights @ shares) / weights.sum(dim=1) - 1)
        return torch.cat(scores)


def _entry(looks: Tensor, mask: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """(D, M) features and (M,) shares of the region's cells."""
    cells = region.flatten().nonzero()[:, 0]
    kept = min(len(cells), _MOST_CELLS)
    # Not every second or third: in a grid of rows such steps can miss a thin object altogether.
    cells = cells[torch.arange(kept, device=cells.device) * len(cells) // max(1, kept)]
    return looks.flatten(1)[:, cells], mask.flatten()[cells]
