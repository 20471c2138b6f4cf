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
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

_TEMPERATURE = 0.03
"""Cosine by which a remembered cell is more similar to weigh e times as much."""
_TOUCHED = 0.05
"""Share of a cell from which on some of the object is in it."""
_NEAR = 3
"""Cells around the object of which each one is remembered."""
_EVERY = 4
"""Of the cells farther off, and of those of other objects there, every fourth is remembered and
counts for four."""
_MOST_CELLS = 1024
"""Most cells remembered of each of these kinds; of more so many, evenly spread."""
_CHUNK = 192
"""Cells asked about at once, so that what they are compared with stays in the processor's cache."""


class AppearanceMemory:
    """Labelled cells of the reference frame and of the latest frame of one object."""

    def __init__(self) -> None:
        self._reference: tuple[Tensor, Tensor] | None = None
        self._latest: tuple[Tensor, Tensor] | None = None

    def fit(
        self, looks: Tensor, mask: Tensor, region: Tensor, rivals: Tensor | None = None
    ) -> None:
        """Remember the reference; what was remembered before is forgotten.

        Args:
            looks: (h, w, D) float32 features of unit length.
            mask: (h, w) float32 in [0, 1], share of the cell that is object.
            region: (h, w) bool, cells in and around it.
            rivals: (h, w) bool, cells of other objects, or None.
        """
        self._reference, self._latest = _entry(looks, mask, region, rivals), None

    def update(
        self, looks: Tensor, mask: Tensor, region: Tensor, rivals: Tensor | None = None
    ) -> None:
        """Remember another frame in the place of the latest one; arguments as for ``fit``."""
        self._latest = _entry(looks, mask, region, rivals)

    def score(self, looks: Tensor) -> Tensor:
        """The label of each cell by its most similar remembered cells.

        Args:
            looks: (n, D) float32 features of unit length.

        Returns:
            (n,) float32 in [-1, 1], +1 = object.
        """
        entries = [e for e in (self._reference, self._latest) if e is not None]
        cells = torch.cat([e[0] for e in entries]).T
        counts = torch.cat([e[1] for e in entries], dim=1)
        buffer = looks.new_empty(min(_CHUNK, len(looks)), cells.shape[1])
        scores = []
        for chunk in torch.split(looks / _TEMPERATURE, _CHUNK):
            weights = torch.mm(chunk, cells, out=buffer[: len(chunk)])
            # Cosines reach 1 and no more, so the exponential cannot overflow; the best is > e^-67.
            of_object, of_all = F.linear(weights.sub_(1 / _TEMPERATURE).exp_(), counts).unbind(1)
            scores.append(2 * of_object / of_all - 1)
        return torch.cat(scores)


def _entry(
    looks: Tensor, mask: Tensor, region: Tensor, rivals: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What is remembered of a frame; arguments as for ``AppearanceMemory.fit``.

    Returns:
        (M, D) features of cells, and (2, M) for how many cells of the object, and of anything, each
        of them counts.
    """
    touched = (mask > _TOUCHED).float()[None, None]
    near = F.max_pool2d(touched, 2 * _NEAR + 1, stride=1, padding=_NEAR)[0, 0] > 0
    kinds = [(region & near, 1), (region & ~near, _EVERY)]
    if rivals is not None:
        kinds.append((rivals & ~region, _EVERY))
    cells, counts = zip(*(_spread(place, every) for place, every in kinds), strict=True)
    remembered, count = torch.cat(cells), torch.cat(counts)
    shares = mask.flatten()[remembered]
    return looks.flatten(0, 1)[remembered], torch.stack([shares * count, count])


def _spread(place: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Some of the cells of a (h, w) bool place: (M,) indices, and for how many each counts."""
    cells = place.flatten().nonzero()[:, 0]
    kept = min(-(-len(cells) // every), _MOST_CELLS)
    # Not a fixed step: in a grid of rows it can miss a thin object altogether.
    some = cells[torch.arange(kept, device=cells.device) * len(cells) // max(1, kept)]
    return some, torch.full((kept,), len(cells) / max(1, kept), device=place.device)
