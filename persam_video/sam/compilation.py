"""The image encoder of torch modules -> the same network in another runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from persam_video.errors import CheckpointError
from persam_video.sam.compiled import CompiledBackbone, Engine
from persam_video.sam.conversion import converted, identity
from persam_video.sam.download import sha256_of
from persam_video.sam.export import exported_file


def compile_backbone(
    backbone: nn.Module, runtime: str, dtype: torch.dtype, exported: str | None = None
) -> CompiledBackbone:
    """The image encoder in a runtime other than torch.

    Args:
        backbone: Of this room, float32 on the CPU.
        runtime: "openvino" or "onnxruntime".
        dtype: What it computes in, but for what is in 8 bits.
        exported: Folder of an export to take, else the cache has the file or gets it.

    Raises:
        CheckpointError: The cache, which keeps the converted network, cannot be written, or the
            file in it is damaged; or the export is, or was made from other weights.
    """
    precision = str(dtype).removeprefix("torch.")
    if exported is None:
        made = identity(backbone)
        engine = _open_converted(backbone, runtime, precision)
    else:
        file = exported_file(Path(exported), backbone)
        made = " ".join(sha256_of(p) for p in (file, file.with_suffix(".bin")) if p.exists())
        engine = open_engine(runtime, file, precision)
    return CompiledBackbone(engine, f"{runtime} {precision} {made}")


def _open_converted(backbone: nn.Module, runtime: str, precision: str) -> Engine:
    """Open the file of the cache; a damaged one is made anew once."""
    file = converted(backbone)
    try:
        return open_engine(runtime, file, precision)
    except CheckpointError:
        file.unlink(missing_ok=True)
        return open_engine(runtime, converted(backbone), precision)


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
