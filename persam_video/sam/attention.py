"""The attention of SAM's two-way transformer, for a few tokens and many cells of the image.

SAM projects tokens and cells to queries, keys and values, compares them, and projects what comes of
it back. With eight tokens and some thousand cells nearly all of that is the cells' projections. But
a product with projected cells is a product of theirs with the projected other side, projected back:
(W c) . q = c . (W^T q). So each of the tokens' few vectors goes through the cells' weights, and the
cells are multiplied once with 8 tokens x 8 heads and once more with what comes of these.

``attention`` is segment_anything's module with ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj`` and
``num_heads``; the results are its own but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)


def tokens_to_tokens(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention: q, k and v (N, K, C) -> (N, K, C)."""
    query, key, value = (
        _by_heads(attention, project(x)).transpose(1, 2)
        for project, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    out: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))
    return out


def tokens_to_cells(
    attention: Any, tokens: Tensor, k: Tensor, v: Tensor, prior: Tensor | None = None
) -> Tensor:
    """Tokens ask the cells, whose attention map a location prior can modulate.

    PerSAM, section 3.2, with the modulation before the softmax: softmax(q k^T / sqrt(d) + alpha S).
    The released code computes softmax(softmax(q k^T / sqrt(d)) + S) instead; over some thousand
    cells that is nearly uniform and loses what SAM attends to (docs/method.md).

    Args:
        attention: See above.
        tokens: (N, K, C), what asks.
        k: (N, L, C), the cells that are asked, with their positional encoding.
        v: (N, L, C), what they answer.
        prior: (N, L) alpha S, added to the attention's logits, or None.

    Returns:
        (N, K, C) attended.
    """
    query = _by_heads(attention, attention.q_proj(tokens))
    query = query * query.shape[3] ** -0.5
    # The keys' bias adds the same to each cell, which a softmax over the cells takes no notice of.
    asked = torch.einsum("nkhd,hdc->nhkc", query, _heads(attention, attention.k_proj))
    logits = torch.bmm(asked.flatten(1, 2), k.transpose(1, 2))  # "@" would copy the cells first
    if prior is not None:
        logits = logits + prior[:, None]
    mixed = torch.bmm(logits.softmax(dim=2), v).view(*asked.shape)
    value = torch.einsum("nhkc,hdc->nkhd", mixed, _heads(attention, attention.v_proj))
    out: Tensor = attention.out_proj(value.flatten(2) + attention.v_proj.bias)
    return out


def cells_to_tokens(attention: Any, cells: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cells ask the tokens.

    Args:
        attention: See above.
        cells: (N, L, C), what asks, with its positional encoding.
        k: (N, K, C), the tokens that are asked.
        v: (N, K, C), what they answer.

    Returns:
        (N, L, C) attended.
    """
    key, value = (
        _by_heads(attention, project(x))
        for project, x in ((attention.k_proj, k), (attention.v_proj, v))
    )
    key = key * key.shape[3] ** -0.5
    asking = torch.einsum("nkhd,hdc->nhkc", key, _heads(attention, attention.q_proj))
    bias = torch.einsum("nkhd,hd->nhk", key, attention.q_proj.bias.view(key.shape[2:]))
    answers = _by_heads(attention, attention.out_proj.weight)
    answers = torch.einsum("nkhd,chd->nhkc", value, answers)
    # Cells lie along the last axis, where the processor takes many of them at once.
    logits = torch.baddbmm(bias.flatten(1)[..., None], asking.flatten(1, 2), cells.transpose(1, 2))
    weights = logits.view(*bias.shape, -1).softmax(dim=2).flatten(1, 2)
    return torch.baddbmm(attention.out_proj.bias, weights.transpose(1, 2), answers.flatten(1, 2))


def _by_heads(attention: Any, x: Tensor) -> Tensor:
    """(..., H d) -> (..., H, d)."""
    return x.view(*x.shape[:-1], attention.num_heads, -1)


def _heads(attention: Any, projection: Any) -> Tensor:
    """(H, d, C) weight of each head."""
    weight: Tensor = projection.weight
    return weight.view(attention.num_heads, -1, weight.shape[1])
