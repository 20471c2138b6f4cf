"""Which cells are the object: the target model and the appearance memory together."""

from __future__ import annotations

import torch
from torch import Tensor

from persam_video.config import TrackConfig
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.features import FrameFeatures
from persam_video.tracking.grid import cells_in
from persam_video.tracking.target_model import TargetModel

_NO_HOPE = 0.5
"""Share of the score that not even a certain memory makes up for; cells below are not compared with
what is remembered, which spares most of the comparisons. On real frames it changes the side of one
cell in several thousand."""
_NO_DOUBT = 0.7
"""Score from which on a cell is the object without being compared, which is half of those that are
left. On real frames the memory changes the side of none of them, and leaves all but 3 in 100 above
three quarters of the logits' limit."""


def cell_scores(
    frame: FrameFeatures,
    region: Tensor,
    model: TargetModel,
    memory: AppearanceMemory | None,
    config: TrackConfig,
) -> Tensor:
    """Score the cells of a region.

    Args:
        frame: Features of the frame.
        region: (h, w) bool, n cells.
        model: Tells the object from the background.
        memory: Of the object's cells; None = the model alone decides.
        config: ``memory_share`` is used.

    Returns:
        (n,) float32, about +1 on the object and -1 off it.
    """
    cells = cells_in(region)
    score = frame.scores(cells, model.weights)
    share = config.memory_share
    if memory is None or share == 0:
        return score
    undecided = torch.ones_like(score, dtype=torch.bool)
    if share < 1:
        scale = share / (1 - share)
        undecided = (score > -_NO_HOPE * scale) & (score < _NO_DOUBT * scale)
    remembered = torch.where(score > 0, 1.0, -1.0)
    asked = cells_in(undecided)
    labels = memory.score(frame.looks(cells.index_select(0, asked)))
    remembered.index_copy_(0, asked, labels)
    return torch.lerp(score, remembered, share)
