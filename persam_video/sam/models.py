"""Settings -> a ready encoder and decoder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from persam_video.config import EncoderConfig
from persam_video.errors import ConfigError
from persam_video.sam.architecture import build_sam
from persam_video.sam.checkpoints import load_state_dict
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.export import with_export
from persam_video.sam.image_encoder import (
    TRAINED_INPUT_SIZE,
    Backbone,
    SamImageEncoder,
)
from persam_video.sam.machine import multiplies_bfloat16
from persam_video.sam.registry import model_info
from persam_video.sam.runtimes import PRECISIONS, choose_runtime
from persam_video.sam.tiny_vit import TinyViT
from persam_video.sam.torch_compile import TorchCompiled
from persam_video.sam.vit import VitBackbone

logger = logging.getLogger(__name__)

_TINY_INPUT_SIZE = 1280
"""For "track" TinyViT sees more at this size than at SAM's own (README, ablation)."""

_TINY_PROMPT_INPUT_SIZE = 1536
"""For clicks and boxes: at smaller sizes TinyViT's masks are of parts of the object (README)."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_sam(config: EncoderConfig, *, progress: bool = True) -> tuple[SamImageEncoder, SamDecoder]:
    """Load the frozen network; fetch its weights first when the cache has none.

    Args:
        config: Model, checkpoint, device, dtype and input size.
        progress: Show a bar while fetching.

    Raises:
        CheckpointError: The weights cannot be had, are damaged, or fit another model.
        ConfigError: The device or the runtime is not there, or the model does not run at this input
            size.
    """
    device, dtype, runtime = resolve(config)
    input_size = resolve_input_size(config)  # before anything large is fetched
    checkpoint = None if config.checkpoint is None else Path(config.checkpoint)
    sam = build_sam(config.model, load_state_dict(config.model, checkpoint, progress=progress))
    backbone: torch.nn.Module = sam.image_encoder
    if not isinstance(backbone, TinyViT):
        backbone = VitBackbone(backbone)
    for module in (backbone, sam.prompt_encoder, sam.mask_decoder):
        module.requires_grad_(False).eval().to(device)
    tiny = isinstance(backbone, TinyViT)
    padding = config.padding or not tiny
    prompt_input_size = _TINY_PROMPT_INPUT_SIZE if tiny else TRAINED_INPUT_SIZE
    grid = input_size // 16
    sam.prompt_encoder.image_embedding_size = (grid, grid)
    sam.prompt_encoder.input_image_size = (input_size, input_size)
    sam.prompt_encoder.mask_input_size = (4 * grid, 4 * grid)
    # float16 has too few exponents for the decoder's logits.
    decoder_dtype = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    decoder = SamDecoder(sam.prompt_encoder, sam.mask_decoder.to(decoder_dtype))
    logger.info("%s on %s, %s, %s, input %d", config.model, device, dtype, runtime, input_size)
    network: Backbone | None = None
    if runtime in PRECISIONS:
        chosen = config.runtime != "auto" or config.exported is not None
        network = _compiled(backbone, runtime, dtype, config.exported, chosen)
    if network is None:
        backbone = backbone.to(dtype=dtype).to(memory_format=torch.channels_last)
        network = TorchCompiled(backbone) if runtime == "torch_compile" else backbone
    else:
        dtype = torch.float32  # what it takes, whatever it computes in
    encoder = SamImageEncoder(
        network, input_size, device, dtype, padding=padding, prompt_input_size=prompt_input_size
    )
    return encoder, decoder


def _compiled(
    backbone: torch.nn.Module,
    runtime: str,
    dtype: torch.dtype,
    exported: str | None,
    chosen: bool,
) -> Backbone | None:
    """The encoder in another runtime; None where that fails and the user has not chosen it."""
    from persam_video.sam.compilation import compile_backbone

    if chosen:
        return compile_backbone(backbone, runtime, dtype, exported)
    try:
        compiled = compile_backbone(backbone, runtime, dtype)
        compiled(torch.zeros(1, 3, 64, 64))  # what does not work fails with the first input
    except Exception as error:  # an optional package that is broken must not stop torch
        logger.warning("runtime %s does not work here, torch runs instead: %s", runtime, error)
        return None
    return compiled


def resolve_input_size(config: EncoderConfig) -> int:
    """Side of the network's square input in pixels that these settings come to.

    Raises:
        ConfigError: The model does not run at this size.
        CheckpointError: As for ``resolve``.
    """
    wanted = with_export(config).input_size
    if model_info(config.model).vit is None:
        return wanted or _TINY_INPUT_SIZE
    if wanted not in (None, TRAINED_INPUT_SIZE):
        raise ConfigError(
            f"{config.model} runs at input_size {TRAINED_INPUT_SIZE} only (its position embedding "
            f"has that size), got {wanted}"
        )
    return TRAINED_INPUT_SIZE


def resolve_device(name: str) -> torch.device:
    """Name of a device -> the device; "auto" takes the first of cuda, mps and cpu that is there.

    Raises:
        ConfigError: The device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, yes in available.items() if yes)
        raise ConfigError(f"device {name} is not available here; available: {there}")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Name -> number format of the encoder.

    "auto" is bfloat16 (else float16) on CUDA, bfloat16 on processors that multiply it in hardware
    (AMX, AVX512-BF16), where it takes half the time, and float32 elsewhere.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def resolve(config: EncoderConfig) -> tuple[torch.device, torch.dtype, str]:
    """Device, number format and runtime that these settings come to on this machine.

    Raises:
        ConfigError: One of them is not there, or they do not go together.
        CheckpointError: The exported network that they name is not there or damaged.
    """
    config = with_export(config)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if config.dtype == "auto" and config.runtime == "onnxruntime":
        dtype = torch.float32  # the only one it has on a processor
    return device, dtype, choose_runtime(config, device, dtype)


def resolved(config: EncoderConfig) -> EncoderConfig:
    """These settings with what "auto" and none come to here, but for the device."""
    _, dtype, runtime = resolve(config)
    return replace(
        config,
        dtype=str(dtype).removeprefix("torch."),
        runtime=runtime,
        input_size=resolve_input_size(config),
    )
