"""A linear model that tells this object from this background, learnt as the clip goes on.

Weighted ridge regression to +1 (object) and -1 (background) on the encoder's features. It is kept
as its normal equations, so a new frame is an addition, forgetting is a multiplication, and its size
does not depend on the length of the clip. The equations of the reference frame, and of those that
masks are given for later, are kept for ever beside the running ones: only they are known to be
right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persam_video.config import TrackConfig
from persam_video.tracking.features import FrameFeatures
from persam_video.tracking.lesson import Lesson


class TargetModel:
    """Ridge regression for one object.

    Args:
        config: ``reference_share``, ``decay`` and ``ridge`` are used.
    """

    def __init__(self, config: TrackConfig) -> None:
        self._config = config
        self._reference: tuple[Tensor, Tensor] | None = None
        self._references = 0
        self._running: tuple[Tensor, Tensor] | None = None
        self.weights: Tensor = torch.zeros(0)
        """(C,) float32; features.T @ weights is about +1 on the object, -1 off it."""

    def fit(self, frame: FrameFeatures, lesson: Lesson) -> None:
        """Learn the reference, or one more; what was learnt of other frames is forgotten.

        Args:
            frame: Features of the frame.
            lesson: Which of its cells.
        """
        matrix, vector = self._normal_equations(frame, lesson)
        self._references += 1
        if self._reference is not None:  # all weigh the same
            matrix = torch.lerp(self._reference[0], matrix, 1 / self._references)
            vector = torch.lerp(self._reference[1], vector, 1 / self._references)
        self._reference, self._running = (matrix, vector), None
        self._solve()

    def update(self, frame: FrameFeatures, lesson: Lesson) -> None:
        """Learn from another frame; arguments as for ``fit``."""
        matrix, vector = self._normal_equations(frame, lesson)
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

    def _normal_equations(self, frame: FrameFeatures, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Weighted X^T X (C, C) and X^T y (C,).

        A cell's target is y = 2 share - 1: 0 where the object fills half of it. Its class, and with
        it its weight, is the majority's. A half-filled cell counted as a bit of both classes would
        be pulled to the object, whose few cells weigh the most, and the mask would creep outwards
        from frame to frame.

        Object and background weigh the same, whatever their sizes. Of the background's weight
        others that could be mistaken for it have their own, and the rest is spread in equal parts
        over the whole frame and over the region, where the confusion happens. The sums over the
        frame and over the other objects serve every object; the object's own cells are taken out of
        the former.
        """
        others, part = lesson.other_sums, (1 - lesson.other_weight) / 2
        background = frame.sums - frame.sum_sampled(frame.sampled(lesson.itself))
        everywhere = part / max(1.0, background.count)
        beside, own = part / max(1.0, lesson.beside.count), 1 / max(1.0, lesson.own.count)
        matrix = everywhere * background.gram + beside * lesson.beside.gram + own * lesson.own.gram
        weight = lesson.counts * torch.where(lesson.shares > 0.5, own, beside)
        targets = weight * (2 * lesson.shares - 1)
        vector = targets.to(lesson.features.device) @ lesson.features
        vector -= everywhere * background.total
        if others is not None:
            each = lesson.other_weight / max(1.0, others.count)
            matrix += each * others.gram
            vector -= each * others.total
        return matrix, vector
