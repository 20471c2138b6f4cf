"""Static quantisation after training: weights and activations in 8 bits, ranges from real frames.

Imported only for ``persam-video export --precision int8``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from persam_video.types import Float32Array


def quantize_openvino(onnx_file: Path, xml_file: Path, frames: Sequence[Float32Array]) -> None:
    """Quantise an .onnx file into an .xml file with its .bin beside it, by nncf.

    Args:
        onnx_file: Of a network with one input.
        xml_file: To be written.
        frames: Its inputs.
    """
    # Read when nncf is first imported: it sends usage data otherwise.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(onnx_file),
        nncf.Dataset(list(frames)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(frames),
    )
    openvino.save_model(quantized, xml_file, compress_to_fp16=False)


def quantize_onnx(onnx_file: Path, input_name: str, frames: Sequence[Float32Array]) -> None:
    """Quantise an .onnx file in place, by onnxruntime.

    Args:
        onnx_file: Of a network with one input.
        input_name: Name of that.
        frames: Its inputs.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        """The frames one after the other."""

        def __init__(self) -> None:
            self._frames = iter(frames)

        def get_next(self) -> dict[str, Float32Array] | None:
            """The next input, None after the last."""
            frame = next(self._frames, None)
            return None if frame is None else {input_name: frame}

    quantized = onnx_file.with_name(f"{onnx_file.stem}.int8.onnx")
    quantize_static(
        str(onnx_file),
        str(quantized),
        Frames(),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantized.replace(onnx_file)
