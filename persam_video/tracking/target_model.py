"""A linear model that tells this object from this background, learnt as the clip goes on.

Weighted ridge regression to +1 (object) and -1 (background) on the encoder's features. It is kept
as its normal equations, so a new frame is an addition, forgetting is a multiplication, and its size
does not depend on the length of the clip. The reference frame's equations are kept for ever beside
the running ones: they are the only ones known to be right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persam_video.config import TrackConfig


class TargetModel:
    """Ridge regression for one object.

    Args:
        config: ``reference_share``, ``decay``, ``ridge`` and ``background_weight`` are used.
    """

    def __init__(self, config: TrackConfig) -> None:
        self._config = config
        self._reference: tuple[Tensor, Tensor] | None = None
        self._running: tuple[Tensor, Tensor] | None = None
        self.weights: Tensor = torch.zeros(0)
        """(C,) float32; features.T @ weights is about +1 on the object, -1 off it."""

    def fit(self, features: Tensor, mask: Tensor, region: Tensor) -> None:
        """Learn the reference; what was learnt before is forgotten.

        Args:
            features: (C, P) float32, one column per cell.
            mask: (P,) float32 in [0, 1], share of the cell that is object.
            region: (P,) bool, cells near the object.
        """
        self._reference = self._normal_equations(features, mask, region)
        self._running = None
        self._solve()

    def update(self, features: Tensor, mask: Tensor, region: Tensor) -> None:
        """Learn from another frame; arguments as for ``fit``."""
        matrix, vector = self._normal_equations(features, mask, region)
        if self._running is not None:
            keep = self._config.decay
            matrix = torch.lerp(matrix, self._running[0], keep)
            vector = torch.lerp(vector, self._running[1], keep)
        self._running = matrix, vector
        self._solve()

    def _solve(self) -> None:
        assert self._reference is not None
        matrix, vector = self._reference
        if self._running is not None:
            share = self._config.reference_share
            matrix = torch.lerp(self._running[0], matrix, share)
            vector = torch.lerp(self._running[1], vector, share)
        matrix = matrix.clone()
        matrix.diagonal().add_(self._config.ridge * matrix.diagonal().mean())
        self.weights = torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(matrix))[:, 0]

    def _normal_equations(
        self, features: Tensor, mask: Tensor, region: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted X^T X (C, C) and X^T y (C,).

        Object and background each have a fixed total weight, whatever their sizes. Half of the
        background's is spread over the whole frame, half over the region around the object, where
        the confusion happens. It weighs more than the object: with equal weights the border cells,
        half object and half background, all fall to the object, and the mask creeps outwards.
        """
        background = 1 - mask
        nearby = background * region.to(mask.dtype)
        positive = mask / mask.sum().clamp_min(1e-3)
        negative = background / background.sum().clamp_min(1e-3)
        negative = negative + nearby / nearby.sum().clamp_min(1e-3)
        negative = negative * (self._config.background_weight / 2)
        matrix = (features * (positive + negative)) @ features.T
        return matrix, features @ (positive - negative)
