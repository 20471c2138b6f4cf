"""The image encoder -> an ONNX file, which both runtimes read, kept in the weights' cache.

Height and width are free in the file where the network takes any; ``compiled.py`` fixes them.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from persam_video.errors import CheckpointError, ConfigError
from persam_video.files import atomic_path
from persam_video.sam.checkpoints import cache_folder, cache_lock
from persam_video.sam.image_encoder import TRAINED_INPUT_SIZE
from persam_video.sam.tiny_vit import STAGE_STRIDES, TinyViT

logger = logging.getLogger(__name__)

INPUT = "image"
"""Name of the input in the file."""
_OPSET = 17
_LARGEST = 2**31  # bytes of a protobuf message
_SOURCES = ("conversion.py", "image_encoder.py", "tiny_vit.py", "vit.py")
_EXAMPLE = {"height": 160, "width": 256}  # what is traced where any size will do


class _FlatOutputs(nn.Module):
    """(embedding, maps) -> (embedding, map, map, ...)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        neck, stages = self.backbone(x)
        return (neck, *stages)


def input_shape(backbone: nn.Module) -> list[int | str]:
    """(1, 3, H, W); H and W are names where the network, a ``TinyViT``, takes any size."""
    if isinstance(backbone, TinyViT):
        return [1, 3, *_EXAMPLE]
    return [1, 3, TRAINED_INPUT_SIZE, TRAINED_INPUT_SIZE]


def write_onnx(backbone: nn.Module, path: Path) -> None:
    """Convert an image encoder, float32 on the CPU, into an .onnx file at ``path``.

    Raises:
        CheckpointError: The file cannot be written.
    """
    if sum(p.numel() * p.element_size() for p in backbone.parameters()) >= _LARGEST:
        raise ConfigError(
            "the network is too large for an .onnx file (2 GiB); runtime torch has it"
        )
    shape = input_shape(backbone)
    example = torch.zeros([_EXAMPLE[n] if isinstance(n, str) else n for n in shape])
    free = {axis: name for axis, name in enumerate(shape) if isinstance(name, str)}
    strides = [f"stride{stride}" for stride in STAGE_STRIDES]
    stages = strides if isinstance(backbone, TinyViT) else ["early", "late"]
    # The newer exporter needs a package more and does not free the sizes; torch before 2.5 has no
    # other than the older one.
    has_both = "dynamo" in inspect.signature(torch.onnx.export).parameters
    options: dict[str, Any] = {"dynamo": False} if has_both else {}
    try:
        with atomic_path(path) as temporary, warnings.catch_warnings(), torch.no_grad():
            # What depends on the input's size is held against torch at other sizes by the tests.
            warnings.filterwarnings("ignore", category=TracerWarning)
            warnings.filterwarnings("ignore", "You are using the legacy TorchScript")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            torch.onnx.export(
                _FlatOutputs(backbone).eval(),
                (example,),
                str(temporary),
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=["neck", *stages],
                dynamic_axes={INPUT: free},
                **options,
            )
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", path=path) from error


def weights_digest(backbone: nn.Module) -> str:
    """sha256 of the network's tensors, with their names and shapes.

    What is made of others when the network is built is left out.
    """
    digest = hashlib.sha256()
    kept = backbone.state_dict()
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if name not in kept:
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity(backbone: nn.Module) -> str:
    """Hexadecimal digest of all that the converted file depends on: weights, code, versions."""
    digest = hashlib.sha256(weights_digest(backbone).encode())
    for package in ("torch", "segment-anything"):
        digest.update(f"{package} {version(package)}\n".encode())
    for source in _SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    return digest.hexdigest()


def converted(backbone: nn.Module) -> Path:
    """The network's .onnx file in the cache, made first if it is not there.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    name = f"encoder-{identity(backbone)[:16]}"
    path = cache_folder() / f"{name}.onnx"
    if not path.exists():
        with cache_lock(name):
            if not path.exists():  # whoever held the lock may have done the work
                logger.info("converting the image encoder once: %s", path)
                write_onnx(backbone, path)
    return path
