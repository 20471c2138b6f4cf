"""onnxruntime: a network's file -> ready for one input shape. Imported only when it is used."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import torch

from persam_video.errors import CheckpointError
from persam_video.sam.compiled import Run, Shape
from persam_video.types import Float32Array


class OnnxRuntimeEngine:
    """A network in onnxruntime on the CPU, in the number formats of its file.

    Args:
        file: An .onnx file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            (image,) = onnx.load(str(file)).graph.input
        except Exception as error:  # protobuf's errors have no common base
            raise CheckpointError(f"not a whole .onnx file: {error}", path=file) from error
        # Not the message itself, which would hold the whole file in memory.
        self._name = image.name
        self._free = [dim.dim_param for dim in image.type.tensor_type.shape.dim]

    def compile(self, shape: Shape) -> Run:
        """See ``compiled.Engine``; takes as many threads as torch does.

        Raises:
            CheckpointError: onnxruntime refuses the file.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Encoder and tracker share the cores: a thread that spins takes them from the other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for name, length in zip(self._free, shape, strict=True):
            if name:
                options.add_free_dimension_override_by_name(name, length)
        try:
            session = onnxruntime.InferenceSession(
                str(self._file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"onnxruntime refuses it: {error}", path=self._file) from error

        def run(array: Float32Array) -> list[Float32Array]:
            return list(session.run(None, {self._name: array}))

        return run
