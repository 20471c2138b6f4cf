"""Clicks and boxes -> first masks, by SAM itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from persam_video.errors import PromptError
from persam_video.geometry import box_to_sam, scale_box, scale_points
from persam_video.sam.decoder import PromptBatch, SamDecoder
from persam_video.sam.enlarging import upscale_logits
from persam_video.types import Embedding, Prompt, UInt8Array, check_object_id

_STABILITY_OFFSET = 1.0
_NEARLY = 0.06
"""Difference in rating within which the larger mask is taken; from 0.07 on the demo's rabbit has a
rock in it."""


def masks_from_prompts(
    decoder: SamDecoder, embedding: Embedding, prompts: Mapping[int, Prompt]
) -> UInt8Array:
    """Label map of clicked and boxed objects.

    Masks are rated by predicted IoU x stability. With a box, the best of SAM's four is taken.
    Points alone are ambiguous, a shirt or the person in it: of the three masks of the multimask
    output the largest is taken among those that are rated nearly as well as the best.

    Args:
        decoder: SAM's decoder.
        embedding: Of the picture.
        prompts: Object id -> clicks and box in source pixels.

    Returns:
        (H, W) uint8; where two masks overlap, the pixel goes to the higher logit.

    Raises:
        PromptError: A point or box lies outside, an id is illegal, or SAM's mask is empty.
    """
    ids = sorted(prompts)
    masks = []
    for object_id in ids:
        check_object_id(object_id)
        prompts[object_id].check_inside(embedding.source_hw, object_id)
        logits = upscale_logits(_best_mask(decoder, embedding, prompts[object_id]), embedding)[0, 0]
        if not bool((logits > 0).any()):
            raise PromptError(f"object {object_id}: SAM finds nothing at this prompt; try a box")
        masks.append(logits)
    best, index = torch.stack(masks).max(dim=0)
    rank = ((index + 1) * (best > 0)).numpy()  # 0 = background, then in the order of ids
    labels: UInt8Array = np.array([0, *ids], np.uint8)[rank]
    hidden = sorted(set(ids) - set(labels.ravel().tolist()))
    if hidden:
        raise PromptError(f"objects {hidden} are wholly covered by others: prompt them more apart")
    return labels


def stability_score(logits: Tensor, offset: float = _STABILITY_OFFSET) -> Tensor:
    """IoU of the masks at thresholds +offset and -offset: (..., h, w) -> (...), in [0, 1].

    As in segment_anything's automatic mask generator.
    """
    inner = (logits > offset).sum(dim=(-2, -1))
    outer = (logits > -offset).sum(dim=(-2, -1))
    return inner / outer.clamp_min(1)


def _best_mask(decoder: SamDecoder, embedding: Embedding, prompt: Prompt) -> Tensor:
    """(1, 1, 4h, 4w) logits of one object."""
    candidates = decoder.decode(embedding, _to_batch(prompt, embedding))
    logits = candidates.logits[0]
    rating = candidates.predicted_iou[0] * stability_score(logits)
    if prompt.box_xyxy is not None:
        return logits[rating.argmax()][None, None]
    several, rating = logits[1:], rating[1:]
    area = (several > 0).sum(dim=(1, 2))
    area[rating < rating.max() - _NEARLY] = -1
    return several[area.argmax()][None, None]


def _to_batch(prompt: Prompt, embedding: Embedding) -> PromptBatch:
    """A prompt in source pixels -> a batch of one in input pixels."""
    source, target = embedding.source_hw, embedding.input_hw
    points = labels = boxes = None
    if len(prompt.points_xy):
        points_xy = scale_points(prompt.points_xy, source, target)
        points = torch.from_numpy(points_xy)[None]
        labels = torch.from_numpy(prompt.point_labels)[None]
    if prompt.box_xyxy is not None:
        box = scale_box(box_to_sam(prompt.box_xyxy), source, target)
        boxes = torch.from_numpy(box)[None]
    return PromptBatch(points, labels, boxes)
