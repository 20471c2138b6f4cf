"""Prompts -> mask in three passes, each prompted by the last: PerSAM's cascaded post-refinement.

PerSAM, section 3.2: the first mask is coarse; decode again with its logits as mask prompt, then with
the box of the second mask and its logits. The guidance acts in the first pass only.
"""

from __future__ import annotations

import dataclasses

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
            tight = boxes_of_logits(logits, embedding)
            if prompts.boxes_xyxy is not None:
                # An empty mask has no box of its own; it keeps the one it was prompted with.
                empty = (logits <= 0).flatten(1).all(dim=1)
                tight = torch.where(empty[:, None], prompts.boxes_xyxy, tight)
            refined = dataclasses.replace(refined, boxes_xyxy=tight)
        logits, iou = best_of_multimask(decoder.decode(embedding, refined))
    return logits, iou


def best_of_multimask(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Of each object's three masks, the one SAM itself rates best: (N, 4h, 4w) and (N,)."""
    iou, index = candidates.predicted_iou[:, 1:].max(dim=1)
    rows = torch.arange(len(index), device=index.device)
    return candidates.logits[rows, 1 + index], iou


def boxes_of_logits(logits: Tensor, embedding: Embedding) -> Tensor:
    """Tight boxes of N masks in pixels of the network's input, in SAM's convention.

    Args:
        logits: (N, 4h, 4w) float32 over the padded square, > 0 = object.
        embedding: Knows the size of the frame inside the square.

    Returns:
        (N, 4) float32; the whole frame for an empty mask.
    """
    masks = logits > 0
    cell = embedding.input_size / logits.shape[2]
    height, width = embedding.input_hw
    boxes = []
    for mask in masks:
        rows = torch.nonzero(mask.any(dim=1)).flatten()
        columns = torch.nonzero(mask.any(dim=0)).flatten()
        if len(rows) == 0:
            boxes.append([0.0, 0.0, width - 1.0, height - 1.0])
            continue
        boxes.append(
            [
                float(columns[0]) * cell,
                float(rows[0]) * cell,
                min((float(columns[-1]) + 1) * cell, width) - 1,
                min((float(rows[-1]) + 1) * cell, height) - 1,
            ]
        )
    return torch.tensor(boxes, device=logits.device)
