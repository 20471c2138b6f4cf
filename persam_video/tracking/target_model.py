"""A linear model that tells this object from this background, learnt as the clip goes on.

Weighted ridge regression to +1 (object) and -1 (background) on the encoder's features. It is kept
as its normal equations, so a new frame is an addition, forgetting is a multiplication, and its size
does not depend on the length of the clip. The reference frame's equations are kept for ever beside
the running ones: they are the only ones known to be right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persam_video.config import TrackConfig


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """The features of one frame and their sums, shared by all of its objects.

    Attributes:
        cells: (C, h, w) float32.
        gram: (C, C) float32, sum of f f^T over all cells.
        total: (C,) float32, sum of f over all cells.
    """

    cells: Tensor
    gram: Tensor
    total: Tensor

    @classmethod
    def of(cls, cells: Tensor) -> FrameFeatures:
        """Sum up (C, h, w) features."""
        flat = cells.flatten(1)
        return cls(cells, flat @ flat.T, flat.sum(dim=1))


class TargetModel:
    """Ridge regression for one object.

    Args:
        config: The settings ``reference_share`` to ``area_prior`` are used.
    """

    def __init__(self, config: TrackConfig) -> None:
        self._config = config
        self._reference: tuple[Tensor, Tensor] | None = None
        self._running: tuple[Tensor, Tensor] | None = None
        self.weights: Tensor = torch.zeros(0)
        """(C,) float32; features.T @ weights is about +1 on the object, -1 off it."""

    def fit(self, frame: FrameFeatures, mask: Tensor, region: Tensor) -> None:
        """Learn the reference; what was learnt before is forgotten.

        Args:
            frame: Features of the frame.
            mask: (h, w) float32 in [0, 1], share of the cell that is object.
            region: (h, w) bool, cells near the object; outside them there is none of it.
        """
        self._reference = self._normal_equations(frame, mask, region)
        self._running = None
        self._solve()

    def update(self, frame: FrameFeatures, mask: Tensor, region: Tensor) -> None:
        """Learn from another frame; arguments as for ``fit``."""
        matrix, vector = self._normal_equations(frame, mask, region)
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
        self, frame: FrameFeatures, mask: Tensor, region: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted X^T X (C, C) and X^T y (C,).

        Object and background each have a fixed total weight, whatever their sizes. Half of the
        background's is spread over the whole frame, half over the region around the object, where
        the confusion happens. It weighs more than the object: with equal weights the border cells,
        half object and half background, all fall to the object, and the mask creeps outwards.

        Far from the object all cells weigh the same, so the sums over the frame serve every object
        and only the region is summed anew.
        """
        near = frame.cells[:, region]
        share = mask[region]
        background = 1 - share
        far_weight = region.numel() - share.sum()
        half = self._config.background_weight / 2
        everywhere = half / far_weight
        # A mask of few cells is trusted less: it weighs as if some of the frame were added to it.
        positive = share / (share.sum() + self._config.area_prior * region.numel())
        negative = background * (everywhere + half / background.sum().clamp_min(1e-3))
        weight = positive + negative - everywhere
        matrix = everywhere * frame.gram + (near * weight) @ near.T
        vector = near @ (positive - negative + everywhere) - everywhere * frame.total
        return matrix, vector
