"""SAM's ViT-B, -L and -H image encoders: segment_anything's modules, run by our own pass.

It computes what ``ImageEncoderViT.forward`` computes, but for rounding, and also returns maps from
inside. Two things are done otherwise:

- Attention is one call that, where torch has fused it, never holds the logits of all pairs of
  tokens, in a global block of ViT-H 1 GB in float32. SAM adds two terms to them, by the rows and by
  the columns that query and key are apart (Li et al., "MViTv2", 2022, section 4.1, equation 4).
  Each term is a product with the query already: the query gets its terms with all rows and all
  columns as more channels, and the key has a one in the channels of its own row and column.
- Windows of 14 x 14 tokens do not fit into 64 x 64, and SAM fills them up with zeros behind the
  norm. Queries, keys and values of these are the bias; they are put in place, not multiplied out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT

_ALIGNED = 8
"""Fused attention takes channels in multiples of so many."""


class VitBackbone(nn.Module):
    """segment_anything's ViT encoder, with maps from inside as ``stages``.

    The maps are the outputs of the global-attention blocks that end the first and the last quarter
    of the depth, all at stride 16.
    """

    def __init__(self, vit: ImageEncoderViT) -> None:
        super().__init__()
        self.vit = vit
        self.blocks = nn.ModuleList(_Block(block) for block in vit.blocks)
        depth = len(vit.blocks)
        self.taps = (depth // 4 - 1, depth - 1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, 1024, 1024) -> (B, 256, 64, 64) and two maps (B, C, 64, 64)."""
        vit = self.vit
        x = vit.patch_embed(x)
        if vit.pos_embed is not None:
            x = x + vit.pos_embed
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                stages.append(x.permute(0, 3, 1, 2))
        return vit.neck(x.permute(0, 3, 1, 2)), tuple(stages)


class _Block(nn.Module):
    """One block of the transformer, (B, H, W, C) -> same.

    Args:
        block: segment_anything's.
    """

    by_rows: Tensor
    by_columns: Tensor
    own: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        self.window: int = block.window_size
        """Tokens across that attend to each other; 0 = all of them."""
        attention = block.attn
        self.heads: int = attention.num_heads
        # Attention divides all products by the root of the channels; SAM does not divide these.
        root = (attention.qkv.in_features // self.heads) ** 0.5
        rows, columns = (root * _by_distance(t) for t in (attention.rel_pos_h, attention.rel_pos_w))
        height, width = len(rows), len(columns)
        own_row = torch.eye(height, device=rows.device)[:, None].expand(-1, width, -1)
        own_column = torch.eye(width, device=rows.device).expand(height, -1, -1)
        self.register_buffer("by_rows", rows, persistent=False)
        self.register_buffer("by_columns", columns, persistent=False)
        self.register_buffer("own", torch.cat([own_row, own_column], dim=2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> same."""
        block = self.block
        x = x + block.attn.proj(self._attended(block.attn.qkv(block.norm1(x))))
        attended: Tensor = x + block.mlp(block.norm2(x))
        return attended

    def _attended(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3 C) queries, keys and values -> (B, H, W, C)."""
        if self.window == 0:
            return self._all_to_all(qkv)
        batch, height, width, channels = qkv.shape
        side = self.window
        # Never a division of a negative number, which ONNX rounds the other way.
        rows, columns = ((side - length % side) % side for length in (height, width))
        down, across = (height + rows) // side, (width + columns) // side
        bias: Tensor = self.block.attn.qkv.bias
        beside = bias.expand(batch, height, columns, channels)
        below = bias.expand(batch, rows, across * side, channels)
        filled = torch.cat([torch.cat([qkv, beside], dim=2), below], dim=1)
        windows = filled.view(batch, down, side, across, side, channels).transpose(2, 3)
        attended = self._all_to_all(windows.flatten(0, 2))
        attended = attended.view(batch, down, across, side, side, -1).transpose(2, 3)
        attended = attended.reshape(batch, down * side, across * side, -1)
        return attended[:, :height, :width]

    def _all_to_all(self, qkv: Tensor) -> Tensor:
        """(B, h, w, 3 C) -> (B, h, w, C), every token attends to every one."""
        batch, height, width, _ = qkv.shape
        parts = qkv.view(batch, height, width, 3, self.heads, -1)
        given = parts.permute(3, 0, 4, 1, 2, 5)  # each of the three (B, heads, h, w, channels)
        each = given.shape[-1]
        ends = each, each + height, each + height + width
        channels = ends[2] + (_ALIGNED - ends[2] % _ALIGNED) % _ALIGNED
        query, key, value = given.new_zeros(3, batch, self.heads, height, width, channels)
        query[..., :each], key[..., :each], value[..., :each] = given
        query[..., each : ends[1]] = torch.einsum("bnhwc,hkc->bnhwk", given[0], self.by_rows)
        query[..., ends[1] : ends[2]] = torch.einsum("bnhwc,wkc->bnhwk", given[0], self.by_columns)
        key[..., each : ends[2]] = self.own
        query, key, value = (x.flatten(2, 3) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=each**-0.5)
        attended = attended[..., :each].view(batch, self.heads, height, width, each)
        return attended.permute(0, 2, 3, 1, 4).flatten(3)


def _by_distance(table: Tensor) -> Tensor:
    """(2 n - 1, C) by how far query and key are apart -> (n, n, C) by query and key."""
    places = torch.arange((len(table) + 1) // 2, device=table.device)
    return table[places[:, None] - places + len(places) - 1]
