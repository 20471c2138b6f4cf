"""PerSAM-F: two weights that mix SAM's three masks, learnt on the reference alone.

PerSAM, section 3.3: M = w1 M1 + w2 M2 + (1 - w1 - w2) M3, everything else frozen; loss = Dice +
focal. The paper runs 800 decoder passes of gradient descent. But the decoder's input never changes,
so its three logit maps are a constant, and the loss is a function of two numbers on a triangle:
looking at all of the triangle is exact, reproducible and takes milliseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

_STEPS = 20  # the triangle in steps of 0.05, then of 0.05 / 5 around the best


def fit_scale_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Weights of the three masks that reproduce the reference mask best.

    Args:
        logits: (3, h, w) float32, the multimask output on the reference.
        target: (h, w) float32 in [0, 1], the reference mask on the same grid.

    Returns:
        (3,) float32, non-negative, summing to 1.
    """
    grid = torch.arange(_STEPS + 1) / _STEPS
    best = _best_weights(_triangle(grid, grid), logits, target)
    fine = torch.arange(-5, 6) / (5 * _STEPS)
    return _best_weights(_triangle(best[0] + fine, best[1] + fine), logits, target)


def mix_masks(logits: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, h, w) logits, (N, 3) weights -> (N, h, w) mixed logits."""
    return torch.einsum("nmhw,nm->nhw", logits, weights)


def _triangle(first: Tensor, second: Tensor) -> Tensor:
    """All (w1, w2, 1 - w1 - w2) of two axes that lie on the simplex: (G, 3)."""
    w1, w2 = (axis.flatten() for axis in torch.meshgrid(first, second, indexing="ij"))
    weights = torch.stack([w1, w2, 1 - w1 - w2], dim=1)
    return weights[(weights > -1e-6).all(dim=1)].clamp(0, 1)


def _best_weights(weights: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    losses = torch.cat(
        [
            _mask_loss(torch.einsum("gm,mhw->ghw", part, logits).flatten(1), target.flatten())
            for part in torch.split(weights, 32)
        ]
    )
    return weights[losses.argmin()]


def _mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + focal loss (alpha 0.25, gamma 2) of G maps of P pixels: (G, P), (P,) -> (G,)."""
    probability = logits.sigmoid()
    overlap = 2 * probability @ target
    dice = 1 - (overlap + 1) / (probability.sum(dim=1) + target.sum() + 1)
    error = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    agreement = probability * target + (1 - probability) * (1 - target)
    alpha = 0.25 * target + 0.75 * (1 - target)
    focal = (alpha * error * (1 - agreement) ** 2).mean(dim=1)
    return dice + focal
