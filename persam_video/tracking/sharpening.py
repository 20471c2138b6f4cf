"""One call of SAM's decoder with the prior as prompt, believed as far as it agrees with it."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from persam_video.config import TrackConfig
from persam_video.personalize.cascade import boxes_of_logits
from persam_video.sam.decoder import (
    PromptBatch,
    SamDecoder,
    cells_of_picture,
    cut,
    window_seen,
)
from persam_video.sam.enlarging import to_square
from persam_video.tracking.side_by_side import large_step
from persam_video.types import Candidates, Embedding, Window

_BELIEF = 0.3
"""Weight of SAM's predicted IoU against the agreement with the prior."""
_MARGIN = 7
"""Cells of the embedding around the prior's box that SAM's decoder sees, at least; with more of
them the masks are about the same, with 4 thin parts are lost."""
_WHOLE = 0.25, 1.3
"""Areas of an object that it may have when it comes back."""
_INSIDE = 0.9
"""Agreement of a mask that has all of the prior in it, and is as large as the object may be."""
_MANY_CELLS = 4096
"""Cells of all objects decoded at once for which two threads take as long as one; fewer of them are
decoded faster by one, ten objects with 8000 by two."""
_STEP = 14
"""Sizes of windows are multiples of this, as those of the parts that frames are encoded in: objects
of about one size are one batch, and oneDNN, which keeps half a megabyte for every matrix product of
another size, has few of them to keep."""


def sharpened(
    prior: Tensor,
    moved: Tensor,
    embedding: Embedding,
    decoder: SamDecoder,
    config: TrackConfig,
    missed: Tensor | None = None,
) -> Tensor:
    """Blend the prior of N objects with the masks that SAM makes of it.

    SAM's idea of a whole object can leave out what has folded or turned. So where the prior sees
    the object and the background says that something has come, SAM takes nothing away.

    Of an object that comes back the prior often knows a part alone, as it has turned meanwhile. A
    mask agrees with that when it has the part in it and is about as large as the object was.

    Args:
        prior: (N, 4h, 4w) float32 logits over the padded square.
        moved: (N, 4h, 4w) float32 logits, from what has changed; from 1 on it counts in full.
        embedding: Of the picture.
        decoder: SAM's decoder.
        config: ``sam_logit_limit`` and the two of the agreement are used.
        missed: (N,) float32, areas in cells that the objects had of late which were lost or
            uncertain in the frame before; 0 for the others. None = all others.

    Returns:
        (N, 4h, 4w) float32 logits.
    """
    boxes = boxes_of_logits(prior, embedding)
    prompts = PromptBatch(boxes_xyxy=boxes, mask_logits=prior[:, None])
    windows = _windows_around(boxes, embedding)
    rows, columns = (4 * cells for cells in cells_of_picture(embedding))
    prior = prior[:, :rows, :columns]
    chances = prior.sigmoid()
    size = chances.sum(dim=(1, 2))
    inside = [chance[w.scaled(4).slices].sum() for chance, w in zip(chances, windows, strict=True)]
    # No mask can agree with the prior by more. Of small objects in large pictures SAM gets no say,
    # but where it can tell what else belongs to a part.
    most = torch.stack(inside) / size
    missed = torch.zeros_like(most) if missed is None else missed * (prior.amax(dim=(1, 2)) > 0)
    asked = ((most > config.agreement_low) | (missed > 0)).nonzero()[:, 0].tolist()
    sharp = prior.clone()
    for some in _of_one_size(windows, asked):
        seen = [windows[i] for i in some]
        cells = len(some) * seen[0].width * seen[0].height
        # Threads have to be waited for at every step, which the many cells alone are worth.
        with large_step() if cells > _MANY_CELLS else nullcontext():
            candidates = decoder.decode(embedding, prompts.of(some), windows=seen)
        seen = [window.scaled(4) for window in seen]
        p = cut(prior[some, None], seen)[:, 0]
        come = cut(moved[some, None], seen)[:, 0]
        refined, share = _best_candidate(p, size[some], candidates, config, missed[some])
        spared = torch.lerp(refined, p, come.clamp(0, 1))
        refined = torch.where((p > 0) & (refined < 0), spared, refined)
        # Outside its window the object is nowhere.
        sharp[some] = torch.lerp(prior[some], refined.new_tensor(-config.sam_logit_limit), share)
        for i, window, blend in zip(some, seen, torch.lerp(p, refined, share), strict=True):
            sharp[(i, *window.slices)] = blend
    return to_square(sharp[:, None], embedding.input_size // 4)[:, 0]


def _of_one_size(windows: list[Window], asked: list[int]) -> list[list[int]]:
    """The asked ones of some windows, those of one size together."""
    places: dict[tuple[int, int], list[int]] = {}
    for i in asked:
        places.setdefault((windows[i].width, windows[i].height), []).append(i)
    return list(places.values())


def _windows_around(boxes_xyxy: Tensor, embedding: Embedding) -> list[Window]:
    """(N, 4) boxes in input pixels -> N windows around them, in cells, inside what was encoded."""
    stride = embedding.input_size // max(embedding.neck.shape[2:])
    seen = window_seen(embedding)
    limits = (seen.left, seen.left + seen.width), (seen.top, seen.top + seen.height)
    windows = []
    for box in boxes_xyxy.tolist():
        starts, lengths = [], []
        for low, high, (first, end) in zip(box[:2], box[2:], limits, strict=True):
            wanted = int(high) // stride - int(low) // stride + 1 + 2 * _MARGIN
            length = min(end - first, -(-wanted // _STEP) * _STEP)
            start = (int(low) // stride + int(high) // stride + 1 - length) // 2
            starts.append(max(first, min(start, end - length)))
            lengths.append(length)
        windows.append(Window(*starts, *lengths))
    return windows


def _best_candidate(
    p: Tensor, size: Tensor, candidates: Candidates, config: TrackConfig, missed: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM's mask and its share in the blend, which is 0 where it disagrees with the prior.

    Args:
        p: (n, h, w) logits of the prior in the objects' windows.
        size: (n,) soft area of the prior in the whole picture.
        candidates: SAM's four masks in the windows.
        config: As for ``sharpened``.
        missed: (n,), as for ``sharpened``.

    Returns:
        (n, h, w) logits of the masks that agree best with the prior and that SAM itself believes
        in, and (n, 1, 1) shares in [0, 1].
    """
    p, q = p.sigmoid()[:, None], candidates.logits.sigmoid()
    outside = size[:, None] - p.sum(dim=(2, 3))
    both, either = torch.minimum(p, q).sum(dim=(2, 3)), torch.maximum(p, q).sum(dim=(2, 3))
    agreement = both / (either + outside)
    part, whole = p > 0.5, q > 0.5
    inside = (part & whole).sum(dim=(2, 3)) / part.sum(dim=(2, 3)).clamp_min(1)
    areas = whole.sum(dim=(2, 3)) / missed.clamp_min(1)[:, None]
    least, most = _WHOLE
    possible = (missed > 0)[:, None] & (areas > least) & (areas < most)
    agreement = torch.where(possible, torch.maximum(agreement, _INSIDE * inside), agreement)
    best = (agreement + _BELIEF * candidates.predicted_iou).argmax(dim=1)
    row = torch.arange(len(best))
    share = config.agreement_slope * (agreement[row, best] - config.agreement_low)
    limit = config.sam_logit_limit
    refined = candidates.logits[row, best].clamp(-limit, limit)
    return refined, share.clamp(0, 1)[:, None, None]
