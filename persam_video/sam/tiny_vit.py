"""TinyViT-5M in inference form: the image encoder of MobileSAM (model ``vit_t``).

Architecture: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
2022; its use in SAM: Zhang et al., "Faster Segment Anything (MobileSAM)", 2023.

Inference form means that every convolution + BatchNorm pair of training is one convolution with a
bias, and the relative attention bias is stored expanded. Parameter names are MobileSAM's except for
these two: ``X.weight`` / ``X.bias`` where training had ``X.c`` and ``X.bn``, and ``attention_bias``
(heads, N, N) where training had ``attention_biases`` (heads, offsets). Nothing depends on the input
resolution: windows pad to any size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

EMBED_DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
NUM_HEADS = (2, 4, 5, 10)
WINDOW_SIZES = (7, 7, 14, 7)
STAGE_STRIDES = (4, 8, 16)
"""Input pixels per cell of the three maps returned beside the embedding."""
_AT_ONCE = 2_000_000, 800_000
"""Bytes of the wide maps of an inverted bottleneck or a perceptron, and of attention's logits, that
a CPU makes at once: what is larger leaves its caches, and takes fresh pages from the system each
time."""

_TOTALS = 1e-30, 1e30
"""Sums of attention's exponentials between which nothing is rounded to 0 or infinity."""


def _gelu(x: Tensor) -> Tensor:
    """GELU in the memory of ``x``: fresh pages for maps this large cost as much as the function.

    In float32 torch leaves it to oneDNN, which takes half of the time, only where the numbers lie
    in the order of the dimensions: of a map, channels last.
    """
    if x.dim() == 4 and x.dtype == torch.float32 and _on_cpu(x):
        torch.ops.aten.gelu_(x.permute(0, 2, 3, 1))
        return x
    activated: Tensor = torch.ops.aten.gelu_(x)
    return activated


def _on_cpu(x: Tensor) -> bool:
    """Whether this runs on a CPU now, and is not written down as a graph for later."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return x.device.type == "cpu" and not (traced or torch.compiler.is_compiling())


def _in_bfloat16(x: Tensor) -> bool:
    """Whether this is bfloat16 on a CPU that multiplies it."""
    return x.dtype == torch.bfloat16 and _on_cpu(x) and _multiplies_bfloat16()


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this torch has oneDNN's layers with GELU, and this CPU its bfloat16."""
    ops = torch.ops.mkldnn
    needed = "_convolution_pointwise", "_linear_pointwise", "_is_mkldnn_bf16_supported"
    return all(hasattr(ops, name) for name in needed) and ops._is_mkldnn_bf16_supported()


def _conv_gelu(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """GELU of a convolution, (B, C, h, w) -> (B, C', h', w').

    In bfloat16 on a CPU both are one pass over the map: it is larger than the caches, and reading
    it again takes longer than the convolution.
    """
    if not _in_bfloat16(x):
        return _gelu(convolution(x))
    activated: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x,
        convolution.weight,
        convolution.bias,
        convolution.padding,
        convolution.stride,
        convolution.dilation,
        convolution.groups,
        "gelu",
        [],
        "none",
    )
    return activated


def _linear(layer: nn.Linear, x: Tensor, then: str = "none") -> Tensor:
    """A linear layer over the last dimension, and "gelu" or nothing ("none") behind it.

    In bfloat16 on a CPU torch first writes the bias into the whole result, which for the widest
    maps takes as long as the product; oneDNN adds it, and does the GELU, while it multiplies.
    """
    if _in_bfloat16(x):
        pointwise = torch.ops.mkldnn._linear_pointwise
        product: Tensor = pointwise(x, layer.weight, layer.bias, then, [], "none")
        return product
    product = layer(x)
    return _gelu(product) if then == "gelu" else product


class PatchEmbed(nn.Module):
    """Two strided 3x3 convolutions: (B, 3, H, W) -> (B, 64, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        dim = EMBED_DIMS[0]
        self.seq = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(dim // 2, dim, 3, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, _, second = self.seq  # the GELU between has no weights
        assert isinstance(first, nn.Conv2d)
        embedded: Tensor = second(_conv_gelu(first, x))
        return embedded


class MBConv(nn.Module):
    """Inverted bottleneck, (B, C, h, w) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """On a CPU in strips of rows, as the maps between are four times as large as ``x``."""
        height, width = x.shape[2:]
        rows = max(1, _AT_ONCE[0] // (x.element_size() * self.conv1.out_channels * width))
        if rows >= height or not _on_cpu(x):
            return _gelu(self._wide(x).add_(x))
        out = torch.empty_like(x)
        for top in range(0, height, rows):
            end = min(top + rows, height)
            above, below = max(top - 1, 0), min(end + 1, height)  # what a 3x3 convolution sees
            strip = self._wide(x[:, :, above:below], slice(top - above, end - above))
            out[:, :, top:end] = _gelu(strip.add_(x[:, :, top:end]))
        return out

    def _wide(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """The three convolutions; of the last one these rows."""
        y = _conv_gelu(self.conv2, _conv_gelu(self.conv1, x))
        narrow: Tensor = self.conv3(y[:, :, rows])
        return narrow


class PatchMerging(nn.Module):
    """Channels up and, for ``stride`` 2, resolution down: (B, C, h, w) -> (B, C', h/s, w/s)."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out_dim, 1)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, stride, 1, groups=out_dim)
        self.conv3 = nn.Conv2d(out_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(_conv_gelu(self.conv2, _conv_gelu(self.conv1, x)))
        return merged


class Attention(nn.Module):
    """Self-attention inside windows of N = window^2 tokens: (B, N, C) -> same."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        tokens = window_size**2
        self.attention_bias = nn.Parameter(torch.zeros(num_heads, tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        # TinyViT stores q, k and v of one head side by side: (heads, 3 * C / heads).
        qkv = _linear(self.qkv, self.norm(x)).view(batch, tokens, self.num_heads, -1)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)
        if _in_bfloat16(x):
            mixed = _attention_in_bfloat16(query, key, value, self.attention_bias)
        else:
            mixed = _attention(query, key, value, self.attention_bias)
        return _linear(self.proj, mixed.transpose(1, 2).reshape(batch, tokens, dim))


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention, all (B, heads, N, D), with a (heads, N, N) bias of the logits."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])


def _attention_in_bfloat16(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The same on a CPU in less than half of the time, a batch of small products at once.

    No maximum is taken off the logits before their exponentials. TinyViT's are within +-30; where
    the sums of exponentials leave the range of the number format, softmax is made as usual.
    """
    batch, heads, tokens, depth = query.shape
    many = max(1, min(batch, _AT_ONCE[1] // (bias.element_size() * bias.numel())))
    biases = bias.repeat(many, 1, 1)
    mixed = query.new_empty(batch, tokens, heads, depth)
    totals = query.new_empty(batch, heads, tokens)
    for start in range(0, batch, many):
        some = slice(start, min(start + many, batch))
        q, k = (part[some].reshape(-1, tokens, depth) for part in (query, key))
        # A column of ones: the sums of the weights come with those of the values.
        v = F.pad(value[some], (0, 1), value=1.0).reshape(-1, tokens, depth + 1)
        logits = torch.baddbmm(biases[: len(q)], q, k.transpose(1, 2), alpha=depth**-0.5)
        sums = torch.bmm(logits.exp_(), v).view(-1, heads, tokens, depth + 1)
        mixed[some] = (sums[..., :depth] / sums[..., depth:]).transpose(1, 2)
        totals[some] = sums[..., depth]
    if not (totals.amin() > _TOTALS[0] and totals.amax() < _TOTALS[1]):  # nor for NaN
        return _attention(query, key, value, bias)
    return mixed.transpose(1, 2)


class Mlp(nn.Module):
    """Pre-normalised two-layer perceptron over the last dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """In float32 on a CPU some tokens at once: what is between is four times as wide."""
        x = self.norm(x)
        if x.dtype != torch.float32 or not _on_cpu(x):
            return self._perceptron(x)
        tokens = x.flatten(0, -2)
        out = torch.empty_like(tokens)
        many = max(1, _AT_ONCE[0] // (x.element_size() * self.fc1.out_features))
        for start in range(0, len(tokens), many):
            some = slice(start, start + many)
            out[some] = self._perceptron(tokens[some])
        return out.view(x.shape)

    def _perceptron(self, x: Tensor) -> Tensor:
        return _linear(self.fc2, _linear(self.fc1, x, "gelu"))


class TinyViTBlock(nn.Module):
    """Windowed attention, 3x3 depthwise convolution, MLP: (B, C, h, w) -> same."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = Attention(dim, num_heads, window_size)
        self.local_conv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = x.permute(0, 2, 3, 1)  # a free view: x is channels_last in memory
        tokens = tokens + self._windowed_attention(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = tokens + self.mlp(tokens)
        return tokens.permute(0, 3, 1, 2)

    def _windowed_attention(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> same; windows at the border are filled up with zeros, as in training."""
        batch, height, width, dim = x.shape
        side = self.window_size
        pad_h, pad_w = -height % side, -width % side
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(batch, rows, side, columns, side, dim).transpose(2, 3)
        x = self.attn(x.reshape(-1, side * side, dim))
        x = x.view(batch, rows, columns, side, side, dim).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, dim)
        return x[:, :height, :width]


class Stage(nn.Module):
    """Blocks and merging: (B, C, h, w) -> same, and that merged to (B, C', h/s, w/s)."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(x)
        return x, self.downsample(x)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """(B, 3, H, W) normalised RGB -> SAM's image embedding and three finer maps."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        layers: list[nn.Module] = []
        for i, dim in enumerate(EMBED_DIMS):
            blocks: list[nn.Module] = [
                MBConv(dim) if i == 0 else TinyViTBlock(dim, NUM_HEADS[i], WINDOW_SIZES[i])
                for _ in range(DEPTHS[i])
            ]
            merging: nn.Module = nn.Identity()
            if i < len(EMBED_DIMS) - 1:
                # The step to 320 channels keeps the resolution: SAM wants stride 16, not 32.
                merging = PatchMerging(dim, EMBED_DIMS[i + 1], 1 if i == 2 else 2)
            layers.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(layers)
        self.neck = nn.Sequential(
            nn.Conv2d(EMBED_DIMS[-1], 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode a batch.

        Args:
            x: (B, 3, H, W) float, normalised RGB; H and W multiples of 16.

        Returns:
            The embedding (B, 256, H/16, W/16) and the maps behind the blocks of strides 4, 8 and
            16: (B, 64, H/4, W/4), (B, 128, H/8, W/8), (B, 160, H/16, W/16).
        """
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        stages = []
        for layer in self.layers:
            stage, x = layer(x)
            stages.append(stage)
        return self.neck(x), tuple(stages[:-1])
