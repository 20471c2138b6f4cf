"""TinyViT's arithmetic: number formats, and what is done in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.sam import tiny_vit
from persam_video.sam.tiny_vit import MBConv, Mlp, TinyViT


def _error(got: torch.Tensor, true: torch.Tensor) -> float:
    return float((got.float() - true).norm() / true.norm())


needs_bfloat16 = pytest.mark.skipif(
    not tiny_vit._multiplies_bfloat16(), reason="no bfloat16 in the processor, or in oneDNN"
)


@needs_bfloat16
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


@needs_bfloat16
@pytest.mark.parametrize("then", ["none", "gelu"])
def test_bias_and_gelu_in_the_linear_layers_pass(then: str) -> None:
    """As near to the numbers without rounding as the two or three passes come."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 72).to(torch.bfloat16)
    x = torch.randn(2, 5, 6, 40).to(torch.bfloat16)
    with torch.inference_mode():
        true = F.linear(x.float(), layer.weight.float(), layer.bias.float())
        one, several = tiny_vit._linear(layer, x, then), layer(x)
        if then == "gelu":
            true, several = F.gelu(true), F.gelu(several)
    assert one.dtype == torch.bfloat16 and one.shape == (2, 5, 6, 72)
    assert _error(one, true) < min(0.003, 1.01 * _error(several, true))


def test_a_network_without_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 both forms of a block come to the numbers of float32."""
    torch.manual_seed(0)
    block = MBConv(8)
    x = torch.randn(2, 8, 15, 18)
    with torch.inference_mode():
        true = block(x)
        half = block.to(torch.bfloat16)
        here = half(x.to(torch.bfloat16))
        monkeypatch.setattr(tiny_vit, "_multiplies_bfloat16", lambda: False)
        elsewhere = half(x.to(torch.bfloat16))
    assert _error(here, true) < 0.01
    assert _error(elsewhere, true) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_bottleneck_in_strips_is_the_same(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = MBConv(8).to(dtype)
    x = torch.randn(1, 8, 15, 18, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = block(x)
        bytes_at_once = rows * 18 * 32 * x.element_size()
        monkeypatch.setattr(tiny_vit, "_AT_ONCE", (bytes_at_once, 1))
        strips = block(x)
    assert strips.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(strips, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 40, 126, 1000])  # of 15 x 18: all of them with the last
def test_perceptron_some_tokens_at_once_is_the_same(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    perceptron = Mlp(8)
    x = torch.randn(1, 15, 18, 8)
    calls = []
    original = Mlp._perceptron

    def counted(self: Mlp, some: torch.Tensor) -> torch.Tensor:
        calls.append(len(some))
        return original(self, some)

    with torch.inference_mode():
        whole = original(perceptron, perceptron.norm(x))
        monkeypatch.setattr(Mlp, "_perceptron", counted)
        monkeypatch.setattr(tiny_vit, "_AT_ONCE", (tokens * 32 * x.element_size(), 1))
        parts = perceptron(x)
    assert sum(calls) == 15 * 18 and max(calls) == min(tokens, 15 * 18)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(1, 16, 7, 5), (2, 3, 4, 6)])
def test_gelu_of_a_map_in_any_order(shape: tuple[int, ...], order: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(shape).contiguous(memory_format=order)
    true, memory = F.gelu(x), x.data_ptr()
    with torch.inference_mode():
        got = tiny_vit._gelu(x)
    assert got.data_ptr() == memory and got.is_contiguous(memory_format=order)
    torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)


@needs_bfloat16
@pytest.mark.parametrize("at_once", [1, 2 * 3 * 16 * 16 * 2, 10**6])  # windows: 1, 2 and all 5
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_attention_in_bfloat16_is_as_near_as_torchs(
    at_once: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiny_vit, "_AT_ONCE", (1, at_once))
    qkv = torch.randn(5, 16, 3, 24).transpose(1, 2).to(torch.bfloat16)
    query, key, value = (scale * qkv).chunk(3, dim=-1)
    bias = torch.randn(3, 16, 16).to(torch.bfloat16)
    exact = [part.float() for part in (query, key, value, bias)]
    true = tiny_vit._attention(*exact)
    got = tiny_vit._attention_in_bfloat16(query, key, value, bias)
    assert got.shape == true.shape and got.dtype == torch.bfloat16
    # Logits are rounded here, to 1 in 256; TinyViT's are as large as those of the first scale.
    assert _error(got, true) < (0.01 if scale == 1 else 0.05)


@needs_bfloat16
@pytest.mark.parametrize("logit", [-200.0, -86.0, 60.0, 80.0, 84.0, 86.0, 88.0, 200.0])
def test_attention_in_bfloat16_with_logits_beyond_its_range(logit: float) -> None:
    """Also where the exponentials are finite, and only their sum is not."""
    torch.manual_seed(0)
    query, key, value = (0.3 * torch.randn(3, 2, 3, 196, 8)).to(torch.bfloat16)
    bias = torch.zeros(3, 196, 196, dtype=torch.bfloat16)
    bias[1] = logit  # of one head; with a softmax it is nothing
    got = tiny_vit._attention_in_bfloat16(query, key, value, bias)
    plain = tiny_vit._attention(query, key, value, torch.zeros_like(bias))
    assert _error(got, plain.float()) < 0.05  # at 60 logits are rounded to a quarter


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
