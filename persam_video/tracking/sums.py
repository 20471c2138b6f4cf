"""What is summed up of cells: enough to fit a linear model to them, whatever their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    def over(cls, cells: Tensor, counts: Tensor | None = None) -> Sums:
        """Of (n, C) features, which count once or (n,) times."""
        if counts is None:
            return cls(gram(cells, cells), cells.sum(dim=0), len(cells))
        count, counts = float(counts.sum()), counts.to(cells.device)
        return cls(gram(cells * counts[:, None], cells), counts @ cells, count)

    def times(self, weight: float) -> Sums:
        """Each of the cells counts so many times."""
        return Sums(weight * self.gram, weight * self.total, weight * self.count)

    def __add__(self, other: Sums) -> Sums:
        """Over the cells of both."""
        return Sums(self.gram + other.gram, self.total + other.total, self.count + other.count)

    def __sub__(self, other: Sums) -> Sums:
        """Without the cells of another, which are among these."""
        return Sums(self.gram - other.gram, self.total - other.total, self.count - other.count)


def gram(weighted: Tensor, cells: Tensor) -> Tensor:
    """``weighted.T @ cells``, symmetric, so that a quarter of it need not be made.

    A GPU would wait longer to be asked for the parts than it takes for all.

    Args:
        weighted: (n, C) float32, each of the cells times a number.
        cells: (n, C) float32.

    Returns:
        (C, C) float32.
    """
    if cells.device.type != "cpu":
        return weighted.T @ cells
    half = cells.shape[1] // 2
    upper = weighted[:, :half].T @ cells
    right = weighted[:, half:].T @ cells[:, half:]
    return torch.cat([upper, torch.cat([upper[:, half:].T, right], dim=1)])
