"""The network of torch modules -> the same network in another runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from persam_video.sam.compiled import CompiledBackbone, CompiledMaskNetwork, Engine
from persam_video.sam.conversion import (
    converted,
    convertible_decoder,
    convertible_encoder,
    identity,
)
from persam_video.sam.decoder import MaskNetwork


def compile_sam(
    backbone: nn.Module, mask_network: MaskNetwork, runtime: str, dtype: torch.dtype
) -> tuple[CompiledBackbone, CompiledMaskNetwork]:
    """Encoder and mask network in a runtime other than torch.

    Args:
        backbone: Of this room, float32 on the CPU.
        mask_network: The same.
        runtime: "openvino" or "onnxruntime".
        dtype: What both compute in.

    Raises:
        CheckpointError: The cache, which keeps the converted networks, cannot be written, or a file
            in it is damaged.
    """
    precision = str(dtype).removeprefix("torch.")
    encoder, decoder = convertible_encoder(backbone), convertible_decoder(mask_network)
    name = f"{runtime} {precision} {identity(encoder)}"
    return (
        CompiledBackbone(open_engine(runtime, converted(encoder), precision), name),
        CompiledMaskNetwork(open_engine(runtime, converted(decoder), precision)),
    )


def open_engine(runtime: str, file: Path, precision: str) -> Engine:
    """Open a network's file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if runtime == "openvino":
        from persam_video.sam.openvino_runtime import OpenVinoEngine

        return OpenVinoEngine(file, precision)
    from persam_video.sam.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(file)
