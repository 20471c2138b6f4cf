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
from persam_video.sam.download import sha256_of
from persam_video.sam.export import exported_files


def compile_sam(
    backbone: nn.Module,
    mask_network: MaskNetwork,
    runtime: str,
    dtype: torch.dtype,
    exported: str | None = None,
) -> tuple[CompiledBackbone, CompiledMaskNetwork]:
    """Encoder and mask network in a runtime other than torch.

    Args:
        backbone: Of this room, float32 on the CPU.
        mask_network: The same.
        runtime: "openvino" or "onnxruntime".
        dtype: What both compute in, but for what is in 8 bits.
        exported: Folder of files to take, else the cache has them or gets them.

    Raises:
        CheckpointError: The cache, which keeps the converted networks, cannot be written, or a file
            in it is damaged; or the export is, or was made from other weights.
    """
    precision = str(dtype).removeprefix("torch.")
    encoder, decoder = convertible_encoder(backbone), convertible_decoder(mask_network)
    if exported is None:
        files, made = (converted(encoder), converted(decoder)), identity(encoder)
    else:
        files = exported_files(Path(exported), (encoder, decoder))
        parts = (files[0], files[0].with_suffix(".bin"))
        made = " ".join(sha256_of(part) for part in parts if part.exists())
    return (
        CompiledBackbone(
            open_engine(runtime, files[0], precision), f"{runtime} {precision} {made}"
        ),
        CompiledMaskNetwork(open_engine(runtime, files[1], precision)),
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
