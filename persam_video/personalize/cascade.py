"""Prompts -> mask in three passes, each prompted by the last: PerSAM's cascaded post-refinement.

PerSAM, section 3.2: the first mask is coarse; decode again with its logits as mask prompt, then
with the box of the second mask and its logits. The guidance acts in the first pass only.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from persam_video.personalize.scale_weights import mix_masks
from persam_video.sam.decoder import Guidance, PromptBatch, SamDecoder
from persam_video.types import Candidates, Embedding


def cascade(
    decoder: SamDecoder,
    embedding: Embedding,
    prompts: PromptBatch,
    guidance: Guidance,
    *,
    scale_weights: Tensor | None = None,
    passes: int = 3,
) -> tuple[Tensor, Tensor]:
    """Decode N objects, every pass as one batch.

    Args:
        decoder: SAM's decoder.
        embedding: Of the frame.
        prompts: Points, and boxes or None.
        guidance: PerSAM's attention and semantic guidance for the first pass.
        scale_weights: (N, 3) float32 mix of the first pass's masks (PerSAM-F), or None to take the
            mask of SAM's single-mask token (PerSAM).
        passes: 1 = coarse mask, 2 = refined by its logits, 3 = and by its box.

    Returns:
        (N, 4h, 4w) float32 logits and (N,) predicted IoU.
    """
    candidates = decoder.decode(embedding, prompts, guidance)
    if scale_weights is None:
        logits, iou = candidates.logits[:, 0], candidates.predicted_iou[:, 0]
    else:
        logits = mix_masks(candidates.logits[:, 1:], scale_weights)
        iou = (candidates.predicted_iou[:, 1:] * scale_weights).sum(dim=1)
    for number in range(2, passes + 1):
        refined = dataclasses.replace(prompts, mask_logits=logits[:, None])
        if number == 3:
            # An empty mask has no box of its own; it keeps the one it was prompted with.
            tight = boxes_of_logits(logits, embedding, prompts.boxes_xyxy)
            refined = dataclasses.replace(refined, boxes_xyxy=tight)
        logits, iou = best_of_multimask(decoder.decode(embedding, refined))
    return logits, iou


def best_of_multimask(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Of each object's three masks, the one SAM itself rates best: (N, 4h, 4w) and (N,)."""
    iou, index = candidates.predicted_iou[:, 1:].max(dim=1)
    rows = torch.arange(len(index))
    return candidates.logits[rows, 1 + index], iou


def boxes_of_logits(
    logits: Tensor, embedding: Embedding, empty_xyxy: Tensor | None = None
) -> Tensor:
    """Tight boxes of N masks in pixels of the network's input, in SAM's convention.

    Args:
        logits: (N, 4h, 4w) float32 over the padded square, > 0 = object. What lies in the padding
            does not count.
        embedding: Knows the size of the frame inside the square.
        empty_xyxy: (N, 4) float32 boxes for masks that are empty; None = the whole frame.

    Returns:
        (N, 4) float32.
    """
    cell = embedding.input_size / logits.shape[2]
    height, width = embedding.input_hw
    picture = logits[:, : math.ceil(height / cell), : math.ceil(width / cell)]
    columns, rows = picture.amax(dim=1) > 0, picture.amax(dim=2) > 0
    spans = []
    for occupied, length in ((columns, width), (rows, height)):
        flags = occupied.int()  # argmax takes the first of equals
        end = flags.shape[1] - flags.flip(1).argmax(dim=1)
        spans.append((flags.argmax(dim=1) * cell, (end * cell).clamp_max(length) - 1))
    (x1, x2), (y1, y2) = spans
    boxes = torch.stack([x1, y1, x2, y2], dim=1)
    if empty_xyxy is None:
        empty_xyxy = torch.tensor([0.0, 0.0, width - 1.0, height - 1.0])
    return torch.where(rows.any(dim=1)[:, None], boxes, empty_xyxy)
