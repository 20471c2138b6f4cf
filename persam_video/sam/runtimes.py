"""The runtimes that can take torch's place for the image encoder, and the choice among them."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import torch

from persam_video.config import EncoderConfig
from persam_video.errors import ConfigError
from persam_video.sam.machine import multiplies_bfloat16
from persam_video.sam.registry import DEFAULT_MODEL

PRECISIONS = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}
"""Runtime other than torch -> number formats that it computes in on a processor."""

# Time of encoding a frame as a share of torch's in the same number format: vit_t, a frame of
# 854 x 480, two cores of an Intel Xeon with AMX, busy with other work too, turns taken in one
# process; medians of 15 rounds, commit d6c7f7f:
#     python tools/runtimes.py FRAME.jpg -o OUT --rounds 15
# Where the processor does not multiply bfloat16 only the float32 rows count.
_MEASURED = {
    ("openvino", "bfloat16"): 0.94,
    ("openvino", "float32"): 0.95,
    ("onnxruntime", "float32"): 1.16,
}
_WORTH_IT = 0.9  # nearer to torch than this, rounds of one run disagree on which is faster
_MEASURED_ON = ("x86_64", "AMD64")


def choose_runtime(config: EncoderConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The runtime of these settings on this machine.

    "auto" is the one that was measured to be the fastest among those installed: always torch for
    models, devices, processors and number formats that were not measured.

    Args:
        config: Its ``runtime`` and ``model`` are used.
        device: Where the network runs.
        dtype: The encoder's number format.

    Raises:
        ConfigError: The runtime asked for is not installed, or does not run on this device or in
            this number format.
    """
    precision = str(dtype).removeprefix("torch.")
    if config.runtime == "auto":
        if device.type != "cpu" or config.model != DEFAULT_MODEL:
            return "torch"
        return _fastest(precision)
    if config.runtime in PRECISIONS:
        _check(config.runtime, device, precision)
    return config.runtime


def _fastest(precision: str) -> str:
    slow = precision == "bfloat16" and not multiplies_bfloat16()
    if slow or platform.machine() not in _MEASURED_ON:
        return "torch"
    shares = {
        runtime: share
        for (runtime, measured), share in _MEASURED.items()
        if measured == precision and share < _WORTH_IT and is_installed(runtime)
    }
    return min(shares, key=lambda runtime: shares[runtime], default="torch")


def _check(runtime: str, device: torch.device, precision: str) -> None:
    if device.type != "cpu":
        raise ConfigError(
            f"runtime {runtime} is for the CPU, the device is {device.type}; legal there: torch, "
            "torch_compile"
        )
    require_installed(runtime)
    if precision not in PRECISIONS[runtime]:
        raise ConfigError(
            f"runtime {runtime} does not compute in {precision} on a CPU; legal dtypes: "
            f"{', '.join(PRECISIONS[runtime])}"
        )


def is_installed(package: str) -> bool:
    """Whether a package could be imported; it is not."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name has none


def require_installed(package: str, extra: str | None = None) -> None:
    """Raise ConfigError, naming the extra that installs it, unless a package is there."""
    if not is_installed(package):
        raise ConfigError(
            f"{package} is not installed; "
            f'pip install "persam-video[{extra or package}]" installs it'
        )
