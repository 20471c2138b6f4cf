"""Which tensors a model has, and building it from them.

ViT-B, -L and -H are built by segment_anything's own builder; ``vit_t`` is the same prompt encoder
and mask decoder with TinyViT in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from persam_video.errors import CheckpointError
from persam_video.sam.registry import MODELS, ModelInfo, VitSizes, model_info
from persam_video.sam.tiny_vit import TinyViT

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_build_sam: Callable[..., Sam] = import_module("persam_video.sam.official.build_sam")._build_sam

_SHOWN = 3  # names spelled out per kind of difference

# segment_anything's builder makes a ViT in every case; this one costs nothing and is replaced.
_PLACEHOLDER = VitSizes(embed_dim=1, depth=0, heads=1, global_blocks=())

Shape = tuple[int, ...]


def build_sam(name: str, state_dict: Mapping[str, Tensor]) -> Sam:
    """The model with these weights, on the CPU, in eval mode, not trainable.

    Args:
        name: Model of the registry.
        state_dict: Exactly its tensors, in segment_anything's names (``image_encoder.``,
            ``prompt_encoder.``, ``mask_decoder.``). They are used as they are, not copied.

    Returns:
        segment_anything's ``Sam``, as ``official.py`` has the class. For ``vit_t`` its
        ``image_encoder`` is a ``TinyViT``, which returns (embedding, stages).

    Raises:
        CheckpointError: The name is unknown, or tensors are missing, unknown or of another shape.
    """
    check_architecture(name, state_dict)
    sam = _empty(model_info(name))
    sam.load_state_dict(state_dict, strict=True, assign=True)
    sam.requires_grad_(False)
    return sam.eval()


def check_architecture(
    name: str, state_dict: Mapping[str, Tensor], path: Path | None = None
) -> None:
    """Raise CheckpointError unless ``state_dict`` has exactly the tensors of model ``name``.

    The message counts and names what is missing, unknown and of another shape, and says which
    model the weights do fit.

    Args:
        name: Model of the registry.
        state_dict: Tensor names and tensors.
        path: Where they come from, for the message.
    """
    expected = expected_shapes(model_info(name))
    got = {key: tuple(value.shape) for key, value in state_dict.items()}
    if got == expected:
        return
    missing = sorted(expected.keys() - got.keys())
    unknown = sorted(got.keys() - expected.keys())
    reshaped = [
        f"{key} {got[key]} instead of {expected[key]}"
        for key in sorted(expected.keys() & got.keys())
        if got[key] != expected[key]
    ]
    differences = [
        f"{len(keys)} {kind} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for kind, keys in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
        )
        if keys
    ]
    raise CheckpointError(
        f"these weights are not of {name}: expected {len(expected)} tensors, got {len(got)}; "
        f"{'; '.join(differences)}. {_guess(got)}",
        path=path,
    )


def _guess(got: Mapping[str, Shape]) -> str:
    """Say which model these tensors belong to."""
    fractions = {}
    for other, info in MODELS.items():
        shapes = expected_shapes(info)
        if shapes == got:
            return f"They fit {other}."
        same = sum(got.get(key) == shape for key, shape in shapes.items())
        fractions[other] = same / max(len(shapes), len(got))
    best = max(fractions, key=lambda other: fractions[other])
    if fractions[best] < 0.5:
        return f"They fit none of {', '.join(MODELS)}."
    return f"They are closest to {best}: {fractions[best]:.0%} of the tensors agree."


def expected_shapes(info: ModelInfo) -> dict[str, Shape]:
    """Name -> shape of every tensor of a model."""
    return {key: tuple(value.shape) for key, value in _empty(info).state_dict().items()}


class _Unfilled(TorchFunctionMode):
    """New modules mostly keep whatever their memory holds, and no random numbers are drawn.

    torch's meta device, made for this, loads torch's compiler for some of the numbers. Loading that
    took longer than loading a small network.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Nothing for what fills a tensor, else ``func``."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def _empty(info: ModelInfo) -> Sam:
    """The model without weights, in memory that is hardly touched."""
    sizes = info.vit or _PLACEHOLDER
    with torch.device("cpu"), _Unfilled():
        sam = _build_sam(
            encoder_embed_dim=sizes.embed_dim,
            encoder_depth=sizes.depth,
            encoder_num_heads=sizes.heads,
            encoder_global_attn_indexes=sizes.global_blocks,
        )
        if info.vit is None:
            sam.image_encoder = TinyViT()
    return sam
