"""A folder with the converted image encoder: what is in it, writing it, reading it.

FOLDER/encoder.onnx      or, for OpenVINO, encoder.xml and encoder.bin
FOLDER/export.json       what it is, see ``Export``
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from torch import nn

from persam_video.config import EncoderConfig
from persam_video.errors import CheckpointError, ConfigError
from persam_video.sam.conversion import INPUT, input_shape, weights_digest, write_onnx
from persam_video.sam.runtimes import PRECISIONS, require_installed
from persam_video.types import Float32Array

MANIFEST = "export.json"
FORMAT_VERSION = 1
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Format -> the runtime that runs it."""
_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True, slots=True)
class Export:
    """What ``export.json`` says.

    Attributes:
        model: Model of the registry.
        format: "onnx" or "openvino".
        precision: "float32", "bfloat16" or "int8".
        input_size: Side of the network's square input in pixels.
        input_shape: Of the network's input, names for free dimensions.
        weights: sha256 of the network's tensors before they were converted.
        weights_source: Where they came from.
        calibration: int8: what it was calibrated on, else "".
        versions: Of the packages that took part.
        format_version: Of this file.
    """

    model: str
    format: str
    precision: str
    input_size: int
    input_shape: list[int | str]
    weights: str
    weights_source: str
    calibration: str
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def runtime(self) -> str:
        """What runs it."""
        return RUNTIMES[self.format]


def check_precision(format_name: str, precision: str) -> None:
    """Raise ConfigError unless this precision can be exported, and later run, in this format."""
    legal = (*PRECISIONS[RUNTIMES[format_name]], "int8")
    if precision not in legal:
        raise ConfigError(
            f"{RUNTIMES[format_name]} does not compute in {precision} on a CPU; legal precisions "
            f"of format {format_name}: {', '.join(legal)}"
        )
    if format_name == "openvino":
        require_installed("openvino")
    if precision == "int8":
        require_installed("nncf" if format_name == "openvino" else "onnxruntime", "export")


def write_export(
    folder: Path,
    model: str,
    input_size: int,
    backbone: nn.Module,
    format_name: str,
    precision: str,
    *,
    weights_source: str,
    calibration: Sequence[Float32Array] = (),
    calibration_source: str = "",
) -> Export:
    """Convert an image encoder into a new folder, which appears when it is complete.

    Args:
        folder: Must not exist, or be empty.
        model: Of the registry.
        input_size: That the network will be asked for, in pixels.
        backbone: Of this room, float32 on the CPU.
        format_name: "onnx" or "openvino".
        precision: "float32", "bfloat16" (openvino) or "int8".
        weights_source: For the manifest.
        calibration: int8: inputs (1, 3, H, W) of the network, what activations are measured on.
        calibration_source: For the manifest.

    Raises:
        CheckpointError: The folder holds something, or cannot be written.
        ConfigError: The format does not have this precision, int8 has nothing to be calibrated on,
            or a package that it takes is not installed.
    """
    check_precision(format_name, precision)
    if precision == "int8" and not calibration:
        raise ConfigError("int8 needs frames to be calibrated on, got none")
    folder = folder.absolute()
    check_folder(folder)
    export = Export(
        model,
        format_name,
        precision,
        input_size,
        input_shape(backbone),
        weights_digest(backbone),
        weights_source,
        calibration_source if precision == "int8" else "",
        _versions(format_name, precision),
    )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir(parents=True)
        _write(backbone, temporary, format_name, calibration if precision == "int8" else ())
        (temporary / MANIFEST).write_text(json.dumps(asdict(export), indent=1) + "\n", "utf-8")
        temporary.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror or error}", path=folder
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return export


def _versions(format_name: str, precision: str) -> dict[str, str]:
    """Package -> version, of those that an export comes from."""
    packages = ["persam-video", "torch", format_name]
    if precision == "int8":
        packages.append("nncf" if format_name == "openvino" else "onnxruntime")
    return {package: version(package) for package in packages}


def check_folder(folder: Path) -> None:
    """Raise CheckpointError unless a new folder can get this name."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError("something is there already; choose another folder", path=folder)


def _write(
    backbone: nn.Module, folder: Path, format_name: str, calibration: Sequence[Float32Array]
) -> None:
    onnx_file = folder / "encoder.onnx"
    write_onnx(backbone, onnx_file)
    if calibration:
        from persam_video.sam import quantization

        if format_name == "onnx":
            quantization.quantize_onnx(onnx_file, INPUT, calibration)
        else:
            quantization.quantize_openvino(onnx_file, onnx_file.with_suffix(".xml"), calibration)
    elif format_name == "openvino":
        import openvino

        model = openvino.Core().read_model(onnx_file)
        openvino.save_model(model, onnx_file.with_suffix(".xml"), compress_to_fp16=False)
    if format_name == "openvino":
        onnx_file.unlink()


def read_export(folder: Path) -> Export:
    """Read the manifest of an exported folder.

    Raises:
        CheckpointError: There is none, it is damaged, or of another version of this package.
    """
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_text("utf-8"))
        got = stored["format_version"]
        export = Export(**stored) if got == FORMAT_VERSION else None
    except OSError as error:
        raise CheckpointError(
            f"no exported network: {error.strerror}; persam-video export makes one", path=path
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"damaged: {error}", path=path) from error
    if export is None:
        raise CheckpointError(
            f"export of format {got}; this version of persam_video reads format {FORMAT_VERSION}; "
            "persam-video export makes it anew",
            path=path,
        )
    if export.format not in RUNTIMES:
        raise CheckpointError(f"damaged: it says format {export.format!r}", path=path)
    return export


def exported_file(folder: Path, backbone: nn.Module) -> Path:
    """The exported network's file, when it is of the same weights as this one.

    Raises:
        CheckpointError: It is of other weights, or there is no whole export.
    """
    export = read_export(folder)
    if export.weights != weights_digest(backbone):
        raise CheckpointError(
            f"exported from other weights ({export.weights_source}) than those that the settings "
            "name; persam-video export makes it anew",
            path=folder,
        )
    return folder / f"encoder{_SUFFIXES[export.format]}"


def with_export(config: EncoderConfig) -> EncoderConfig:
    """The settings with runtime, device and number format of the export that they name.

    Raises:
        CheckpointError: There is no whole export.
        ConfigError: The settings want something else than what was exported.
    """
    if config.exported is None:
        return config
    export = read_export(Path(config.exported))
    wanted = {"model": export.model, "input_size": export.input_size, "runtime": export.runtime}
    if export.precision != "int8":
        wanted["dtype"] = export.precision
    for name, value in wanted.items():
        got = getattr(config, name)
        if got not in ("auto", None, value):
            raise ConfigError(f"{config.exported} was exported for {name} {value}, got {got}")
    device = "cpu" if config.device == "auto" else config.device
    dtype = str(wanted.get("dtype", config.dtype))
    return replace(
        config,
        device=device,
        runtime=export.runtime,
        dtype=dtype,
        input_size=export.input_size,
    )
