"""Our modules -> ONNX files, which both runtimes read, kept in the cache beside the weights.

Heights, widths and numbers of objects are free in the files; ``compiled.py`` fixes them.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from persam_video.errors import CheckpointError
from persam_video.files import atomic_path
from persam_video.sam.checkpoints import cache_folder, cache_lock
from persam_video.sam.decoder import MaskNetwork
from persam_video.sam.image_encoder import VIT_INPUT_SIZE
from persam_video.sam.tiny_vit import STAGE_STRIDES, TinyViT

logger = logging.getLogger(__name__)

_OPSET = 17
_SOURCES = ("conversion.py", "decoder.py", "image_encoder.py", "tiny_vit.py")


@dataclass(frozen=True, slots=True)
class Convertible:
    """A network and how it is to be called.

    Attributes:
        name: "encoder" or "decoder".
        network: Float32, on the CPU; tensors in, a tuple of tensors out.
        example: Inputs that it can be run with.
        inputs: Name of each input -> its free dimensions and their names.
        outputs: Names.
    """

    name: str
    network: nn.Module
    example: tuple[Tensor, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


class _FlatOutputs(nn.Module):
    """(embedding, maps) -> (embedding, map, map, ...)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        neck, stages = self.backbone(x)
        return (neck, *stages)


def convertible_encoder(backbone: nn.Module) -> Convertible:
    """``TinyViT`` for pictures of any size, ``VitBackbone`` for its one."""
    if isinstance(backbone, TinyViT):
        example, free = torch.zeros(1, 3, 160, 256), {2: "height", 3: "width"}
        stages = tuple(f"stride{stride}" for stride in STAGE_STRIDES)
    else:
        example, free = torch.zeros(1, 3, VIT_INPUT_SIZE, VIT_INPUT_SIZE), {}
        stages = ("early", "late")
    network = _FlatOutputs(backbone).eval()
    return Convertible("encoder", network, (example,), {"image": free}, ("neck", *stages))


def convertible_decoder(network: MaskNetwork, tokens: int = 7) -> Convertible:
    """The mask network for ``tokens`` tokens (a box adds two to its own five), without guidance."""
    channels = network.image_pe.shape[1]
    example = torch.zeros(2, tokens, channels), torch.zeros(2, channels, 3, 4)
    free = {"tokens": {0: "objects"}, "source": {0: "objects", 2: "rows", 3: "columns"}}
    return Convertible("decoder", network.eval(), example, free, ("logits", "predicted_iou"))


def write_onnx(convertible: Convertible, path: Path) -> None:
    """Convert a network into an .onnx file at ``path``.

    Raises:
        CheckpointError: The file cannot be written.
    """
    free = {name: dict(dims) for name, dims in convertible.inputs.items()}
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
                convertible.network,
                convertible.example,
                str(temporary),
                opset_version=_OPSET,
                input_names=list(convertible.inputs),
                output_names=list(convertible.outputs),
                dynamic_axes=free,
                **options,
            )
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", path=path) from error


def weights_digest(convertible: Convertible) -> str:
    """sha256 of the network's tensors, with their names and shapes."""
    digest = hashlib.sha256()
    network = convertible.network
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity(convertible: Convertible) -> str:
    """Hexadecimal digest of all that the converted file depends on: weights, code, versions."""
    digest = hashlib.sha256(weights_digest(convertible).encode())
    for package in ("torch", "segment-anything"):
        digest.update(f"{package} {version(package)}\n".encode())
    for source in _SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    return digest.hexdigest()


def converted(convertible: Convertible) -> Path:
    """The network's .onnx file in the cache, made first if it is not there.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    name = f"{convertible.name}-{identity(convertible)[:16]}"
    path = cache_folder() / f"{name}.onnx"
    if not path.exists():
        with cache_lock(name):
            if not path.exists():  # whoever held the lock may have done the work
                logger.info("converting the %s once: %s", convertible.name, path)
                write_onnx(convertible, path)
    return path
