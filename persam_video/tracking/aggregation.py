"""N objects, one picture: every pixel, and every change, goes to one of them or to none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from persam_video.types import UInt8Array

_LEAST = 1e-37
"""Chance of the background: float32 has no much smaller numbers."""


def soft_aggregate(logits: Tensor) -> Tensor:
    """Let N objects and the background compete for every pixel.

    As in Oh et al., "Fast Video Object Segmentation by Reference-Guided Mask Propagation" (2018),
    section 3.3, the background's probability is the product of all (1 - p_i), and the highest odds
    win. The result is half of an object's lead in log-odds over its best rival, which for one
    object alone is its own logit.

    Args:
        logits: (N, h, w) float32, N >= 1.

    Returns:
        (N, h, w) float32 logits; > 0 in at most one object per pixel.
    """
    if len(logits) == 1:
        return logits
    # With nine objects that are all certain it could be 0, where it is nobody's rival any more.
    background = torch.sigmoid(-logits).prod(dim=0).clamp(_LEAST, 1 - 1e-6).logit()
    best, second = background, torch.full_like(background, -torch.inf)
    for odds in logits:
        second = torch.maximum(second, torch.minimum(best, odds))
        best = torch.maximum(best, odds)
    return (logits - torch.where(logits == best, second, best)) / 2


def moved_objects(taken: Tensor, change: Tensor) -> Tensor:
    """What a change says about each object: where another one is, what has come is that one.

    Args:
        taken: (N, h, w) bool, where the objects are thought to be.
        change: (h, w) float32, > 0 where something has come.

    Returns:
        (N, h, w) float32, ``change`` or the part of it that is negative.
    """
    if len(taken) == 1:
        return change[None]
    count = taken.sum(dim=0, dtype=torch.uint8)
    return torch.where(count > taken, change.clamp_max(0), change)


def kept_share(claimed: Tensor, won: Tensor) -> Tensor:
    """Share of each mask left after the competition: two (N, h, w) logits -> (N,) in [0, 1].

    A mask mostly lost to another object's was on that object.
    """
    # numpy counts what is true several times as fast as torch.
    before, after = (
        torch.tensor([np.count_nonzero(mask) for mask in (logits > 0).numpy()])
        for logits in (claimed, won)
    )
    return (after / before.clamp_min(1)).clamp_max(1)


def label_map(
    object_ids: Sequence[int],
    parts: Iterable[tuple[tuple[slice, slice], Tensor]],
    size_hw: tuple[int, int],
) -> UInt8Array:
    """(H, W) uint8 label map of objects.

    They have competed: no two are > 0 in one pixel, which enlarging them does not change, as the
    leads of two objects over each other sum up to 0 at most.

    Args:
        object_ids: N ids.
        parts: Of each of the objects, the rows and columns that it is in, and its logits there.
        size_hw: Height and width of the map.
    """
    labels = np.zeros(size_hw, np.uint8)
    for object_id, (place, logits) in zip(object_ids, parts, strict=True):
        labels[place][(logits > 0).numpy()] = object_id
    return labels
