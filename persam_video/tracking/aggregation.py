"""N masks -> one label map: every pixel goes to one object or to the background."""

from __future__ import annotations

import torch
from torch import Tensor

from persam_video.types import UInt8Array


def soft_aggregate(logits: Tensor) -> Tensor:
    """Let N objects and the background compete for every pixel.

    Soft aggregation of Oh et al., "Fast Video Object Segmentation by Reference-Guided Mask
    Propagation" (2018), section 3.3: the background's probability is the product of all
    (1 - p_i), and odds are normalised over background and objects. One object alone keeps its
    logits.

    Args:
        logits: (N, h, w) float32.

    Returns:
        (N, h, w) float32 logits; > 0 in at most one object per pixel.
    """
    if len(logits) <= 1:
        return logits
    background = torch.nn.functional.logsigmoid(-logits).sum(dim=0, keepdim=True)
    log_odds = torch.cat([_log_odds(background), logits])
    total = torch.logsumexp(log_odds, dim=0)
    return _log_odds((logits - total).clamp(max=-1e-6))


def label_map(logits: Tensor, object_ids: list[int]) -> UInt8Array:
    """(N, H, W) competing logits in source pixels -> (H, W) uint8 label map."""
    best, index = logits.max(dim=0)
    ids = torch.tensor(object_ids, dtype=torch.uint8, device=logits.device)
    labels: UInt8Array = torch.where(best > 0, ids[index], 0).to(torch.uint8).cpu().numpy()
    return labels


def _log_odds(log_probability: Tensor) -> Tensor:
    """log p -> log(p / (1 - p)), finite."""
    log_probability = log_probability.clamp(-30, -1e-6)
    return log_probability - torch.log(-torch.expm1(log_probability))
