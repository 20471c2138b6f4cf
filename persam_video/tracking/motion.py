"""Where the mask will be in the next frame, from where it was in the last ones."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from persam_video.tracking.grid import rectangle_of

_SMOOTHING = 0.5  # share of the newest displacement in the velocity


class Motion:
    """Constant velocity of the mask's centre, smoothed.

    Args:
        logits: (H, W) float32 mask logits of the first frame, > 0 = object.
    """

    def __init__(self, logits: Tensor) -> None:
        self._centre = _centre(logits)
        self.velocity_rc: tuple[float, float] = (0.0, 0.0)
        """Rows and columns per frame on the logits' grid."""
        self._moved: tuple[Tensor, int, int, Tensor] | None = None

    def observe(self, logits: Tensor, *, jumped: bool = False) -> None:
        """Learn from the mask of a new frame; ``jumped`` forgets the past velocity."""
        centre = _centre(logits)
        if self._centre is not None and centre is not None and not jumped:
            step = (centre[0] - self._centre[0], centre[1] - self._centre[1])
            self.velocity_rc = (
                _SMOOTHING * step[0] + (1 - _SMOOTHING) * self.velocity_rc[0],
                _SMOOTHING * step[1] + (1 - _SMOOTHING) * self.velocity_rc[1],
            )
        else:
            self.velocity_rc = (0.0, 0.0)
        self._centre = centre

    def moved(self, logits: Tensor, frames: int = 1) -> Tensor:
        """(H, W) logits shifted by the motion of some frames; what enters is background.

        Several ask for the same in one frame: the latest answer is kept, and not to be changed.
        """
        height, width = logits.shape
        rows = max(-height, min(height, round(frames * self.velocity_rc[0])))
        columns = max(-width, min(width, round(frames * self.velocity_rc[1])))
        if self._moved is not None:
            asked, down, across, answer = self._moved
            if asked is logits and (down, across) == (rows, columns):
                return answer
        moved = torch.full_like(logits, float(logits.min()))
        kept = logits[
            max(0, -rows) : height - max(0, rows), max(0, -columns) : width - max(0, columns)
        ]
        top, left = max(0, rows), max(0, columns)
        moved[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
        self._moved = logits, rows, columns, moved
        return moved


def _centre(logits: Tensor) -> tuple[float, float] | None:
    """Mean row and column of the mask, or None when it is empty."""
    mask = (logits > 0).numpy()
    rows, columns = rectangle_of(mask)
    sums = cv2.moments(mask[rows, columns].view(np.uint8), binaryImage=True)
    if not sums["m00"]:
        return None
    return rows.start + sums["m01"] / sums["m00"], columns.start + sums["m10"] / sums["m00"]
