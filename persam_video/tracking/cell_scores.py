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
        undecided = score > -_NO_HOPE * share / (1 - share)
    remembered = torch.full_like(score, -1.0)
    remembered[undecided] = memory.score(frame.looks(cells[undecided]))
    return torch.lerp(score, remembered, share)
