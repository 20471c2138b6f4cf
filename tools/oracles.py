"""What SAM's decoder gives when it is told the truth: ceilings for any tracker that ends in it."""

from __future__ import annotations

import torch
from torch import Tensor

from persam_video.personalize.cascade import boxes_of_logits
from persam_video.personalize.target import grid_coverage
from persam_video.sam.decoder import PromptBatch, SamDecoder
from persam_video.sam.enlarging import upscale_logits
from persam_video.types import BoolArray, Embedding, UInt8Array

ORACLES = ("oracle_grid", "oracle_box", "oracle_mask", "oracle_mask_best")
"""The true mask on the decoder's grid alone; its box -> SAM, by predicted IoU; the mask and its box
-> SAM, by predicted IoU; the same, the best of the four masks by true IoU."""


@torch.inference_mode()
def oracle_masks(
    embedding: Embedding, truth: BoolArray, decoder: SamDecoder
) -> dict[str, UInt8Array]:
    """All oracles' label maps (H, W) uint8 of one object, 1 where it is."""
    if not truth.any():
        return {name: truth.astype("uint8") for name in ORACLES}
    side = embedding.input_size // 4
    mask = torch.logit(grid_coverage(truth, embedding, (side, side)), eps=3e-4)[None]
    box = boxes_of_logits(mask, embedding)
    by_box = decoder.decode(embedding, PromptBatch(boxes_xyxy=box))
    by_mask = decoder.decode(embedding, PromptBatch(boxes_xyxy=box, mask_logits=mask[:, None]))
    inside = mask[0] > 0
    masks = by_mask.logits[0] > 0
    iou = (masks & inside).sum(dim=(1, 2)) / (masks | inside).sum(dim=(1, 2)).clamp_min(1)
    chosen: dict[str, Tensor] = {
        "oracle_grid": mask[0],
        "oracle_box": by_box.logits[0, by_box.predicted_iou[0].argmax()],
        "oracle_mask": by_mask.logits[0, by_mask.predicted_iou[0].argmax()],
        "oracle_mask_best": by_mask.logits[0, iou.argmax()],
    }
    return {
        name: (upscale_logits(logits[None, None], embedding)[0, 0] > 0).numpy().view("uint8")
        for name, logits in chosen.items()
    }
