"""TinyViT's arithmetic: number formats, and what is done in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.sam import tiny_vit
from persam_video.sam.tiny_vit import MBConv, TinyViT


def _error(got: torch.Tensor, true: torch.Tensor) -> float:
    return float((got.float() - true).norm() / true.norm())


@pytest.mark.skipif(not tiny_vit._fuses_gelu(), reason="no bfloat16 convolution with GELU here")
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_gelu_in_the_convolutions_pass(groups: int, stride: int) -> None:
    """As near to the numbers without rounding as the two passes come."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(16, 32, 3, stride, 1, groups=groups)
    x = torch.randn(1, 16, 23, 30).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        rounded = convolution.to(torch.bfloat16)
        true = F.gelu(
            F.conv2d(
                x.to(torch.bfloat16).float(),
                rounded.weight.float(),
                rounded.bias.float() if rounded.bias is not None else None,
                stride,
                1,
                groups=groups,
            )
        )
        one = tiny_vit._conv_gelu(rounded, x.to(torch.bfloat16))
        two = F.gelu(rounded(x.to(torch.bfloat16)))
    assert one.dtype == torch.bfloat16 and one.shape == true.shape
    assert _error(one, true) < min(0.003, _error(two, true))


def test_a_network_without_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 both forms of a block come to the numbers of float32."""
    torch.manual_seed(0)
    block = MBConv(8)
    x = torch.randn(2, 8, 15, 18)
    with torch.inference_mode():
        true = block(x)
        half = block.to(torch.bfloat16)
        here = half(x.to(torch.bfloat16))
        monkeypatch.setattr(tiny_vit, "_fuses_gelu", lambda: False)
        elsewhere = half(x.to(torch.bfloat16))
    assert _error(here, true) < 0.01
    assert _error(elsewhere, true) < 0.01


def test_bfloat16_is_near_float32() -> None:
    """The whole network, random weights: the maps differ by its rounding and no more."""
    torch.manual_seed(0)
    network = TinyViT().eval()
    x = torch.randn(1, 3, 112, 160)
    with torch.inference_mode():
        neck, stages = network(x)
        got_neck, got_stages = network.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert all(
        _error(g, t) < 0.03 for g, t in zip((got_neck, *got_stages), (neck, *stages), strict=True)
    )
