"""OpenVINO: a network's file -> compiled for one input shape. Imported only when it is used."""

from __future__ import annotations

from pathlib import Path

import openvino
import torch

from persam_video.errors import CheckpointError, ConfigError
from persam_video.sam.compiled import Run, Shape
from persam_video.types import Float32Array


class OpenVinoEngine:
    """A network in OpenVINO on the CPU.

    Args:
        file: An .onnx file, or an .xml file with its .bin beside it.
        precision: "float32" or "bfloat16", what it computes in; files and outputs are float32.

    Raises:
        CheckpointError: The file is missing or damaged.
    """

    def __init__(self, file: Path, precision: str) -> None:
        self._core = openvino.Core()
        self._file = file
        self._type = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
        self._precision = precision
        try:
            self._model = self._core.read_model(file)
        except RuntimeError as error:
            told = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"OpenVINO cannot read it: {told}", path=file) from error

    def compile(self, shape: Shape) -> Run:
        """See ``compiled.Engine``; takes as many threads as torch does.

        Raises:
            CheckpointError: The network does not run at this shape.
            ConfigError: The processor does not compute in this precision.
        """
        model = self._model.clone()
        try:
            model.reshape(openvino.PartialShape(list(shape)))
        except RuntimeError as error:
            raise CheckpointError(
                f"the network does not run at an input of {shape}: one of 8 bits runs at the size "
                "of the frames that it was calibrated on only",
                path=self._file,
            ) from error
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._type,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # The tracker computes in torch at the same time, on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        refusal = (
            f"OpenVINO does not compute in {self._precision} on this processor; dtype float32 "
            "does, or runtime torch"
        )
        try:
            compiled = self._core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            told = str(error).strip().splitlines()[-1]
            raise ConfigError(f"{refusal} ({told})") from error
        if compiled.get_property("INFERENCE_PRECISION_HINT") != self._type:
            raise ConfigError(refusal)
        request = compiled.create_infer_request()

        def run(array: Float32Array) -> list[Float32Array]:
            # Outputs are copied out of the request's buffers, which the next call writes to.
            results = request.infer([array], share_inputs=True, share_outputs=False)
            return [results[index] for index in range(len(compiled.outputs))]

        return run
