"""Where an object could be, by its looks: the target model and the appearance memory together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from persam_video.config import TrackConfig
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.features import FrameFeatures
from persam_video.tracking.grid import cells_in
from persam_video.tracking.objects import TrackedObject
from persam_video.tracking.target_model import TargetModel
from persam_video.types import Embedding

_NO_HOPE = 0.5
"""Share of the score that not even a certain memory makes up for; cells below are not compared with
what is remembered, which spares most of the comparisons. On real frames it changes the side of one
cell in several thousand."""
_NO_DOUBT = 0.7
"""Score from which on a cell is the object without being compared, which is half of those that are
left. On real frames the memory changes the side of none of them, and leaves all but 3 in 100 above
three quarters of the logits' limit."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Where an object could be in a frame.

    Attributes:
        embedding: Of the frame.
        obj: The object.
        lost: Whether it was lost then, and searched in the whole frame.
        region: (h, w) bool, where on the feature grid it is searched, n cells.
        scores: (n,) float32 of ``cell_scores``.
    """

    embedding: Embedding
    obj: TrackedObject
    lost: bool
    region: Tensor
    scores: Tensor

    def holds_for(self, obj: TrackedObject, embedding: Embedding) -> bool:
        """Whether it is about this frame, and the object has not been lost since, after a cut."""
        same = self.embedding is embedding and self.obj is obj
        return same and self.lost == (obj.frames_lost > 0)


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


def best_place(
    prior: Tensor, frame: FrameFeatures, memory: AppearanceMemory | None, gap: int
) -> Tensor:
    """Of the places where a lost object could be the one with the most evidence.

    In a whole frame other things look like parts of it; taken in with it, they would be learnt.
    Evidence is the sum over a place's cells of their logits, each by the chance that the appearance
    memory gives it.

    Args:
        prior: (h, w) logits over the whole frame.
        frame: The frame's features.
        memory: Of the object's cells; None = the logits alone decide.
        gap: Cells by which parts are grown to become one place.

    Returns:
        (h, w) bool, that place and ``gap`` cells around it; everything, where there is one at most.
    """
    inside = prior > 0
    wider = ndimage.binary_dilation(inside.numpy(), iterations=gap)
    places, count = ndimage.label(wider)
    if count < 2:
        return torch.ones_like(inside)
    evidence = torch.zeros_like(prior)
    evidence[inside] = prior[inside]
    if memory is not None:
        evidence[inside] *= (1 + memory.score(frame.looks(cells_in(inside)))) / 2
    sums = ndimage.sum_labels(evidence.numpy(), places, np.arange(1, count + 1))
    return torch.from_numpy(places == int(sums.argmax()) + 1)
