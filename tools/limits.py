r"""How far is the image encoder from what the processor can do at all? A limit for every speed.

    python tools/limits.py FRAME.jpg
    python tools/limits.py FRAME.jpg --sizes 832,1280 --threads 1 --rounds 15

Its operations are counted (multiplications and additions of convolutions, matrix products and
attention, of the whole frame); the peak is what one large matrix product does per second in the
same number format, on the same threads, in turns with the encoder, so that a busy machine slows
both. The share is how much of the peak the encoder uses: with as many operations it can be at most
one over the share times as fast. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as persam-video does, before torch is loaded

import torch
from torch.utils.flop_counter import FlopCounterMode

import persam_video as pv
from persam_video.benchmark.report import commit, machine, versions
from persam_video.sam.models import resolved
from persam_video.types import UInt8Array

_SIDE = 2048
"""Rows and columns of the matrices: large enough that only the multiplications count."""


def operations(image_rgb: UInt8Array, config: pv.EncoderConfig) -> int:
    """Of encoding a (H, W, 3) uint8 RGB frame; a multiplication and an addition are two.

    Counted in float32, where every operation is one that the counter knows.
    """
    encoder, _ = pv.load_sam(replace(config, dtype="float32"))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder.encode(image_rgb)
    return int(counter.get_total_flops())


def seconds(work: Callable[[], object]) -> float:
    """That the work takes once."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(image_rgb: UInt8Array, config: pv.EncoderConfig, rounds: int) -> dict[str, object]:
    """The encoder against the peak, in turns; medians over the rounds.

    Args:
        image_rgb: (H, W, 3) uint8 RGB.
        config: Of the encoder, with its input size.
        rounds: At least 1.
    """
    encoder, decoder = pv.load_sam(config)
    dtype = decoder.dtype  # the network's
    a, b = torch.randn(_SIDE, _SIDE).to(dtype), torch.randn(_SIDE, _SIDE).to(dtype)
    count = operations(image_rgb, config)
    encode_s, product_s = [], []
    with torch.inference_mode():
        for number in range(rounds + 2):
            times = seconds(lambda: encoder.encode(image_rgb)), seconds(lambda: a @ b)
            if number >= 2:  # to warm up
                encode_s.append(times[0])
                product_s.append(times[1])
    rates = [count / s for s in encode_s], [2 * _SIDE**3 / s for s in product_s]
    shares = [own / peak for own, peak in zip(*rates, strict=True)]
    return {
        "input_size": config.input_size,
        "number_format": str(dtype).removeprefix("torch."),
        "operations": count,
        "encode_s": statistics.median(encode_s),
        "operations_per_s": statistics.median(rates[0]),
        "peak_operations_per_s": statistics.median(rates[1]),
        "share_of_peak": statistics.median(shares),
    }


def whole_number(text: str) -> int:
    """An option's value of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, got {text!r}")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """Such values with commas."""
    return [whole_number(part) for part in text.split(",")]


def main() -> None:
    """Print what was measured as JSON; exit code 1 on an error, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frame", type=Path, help="a picture")
    parser.add_argument("--model", default="vit_t", help="default %(default)s")
    parser.add_argument(
        "--sizes", type=whole_numbers, default=[832, 1280], help="input sizes (default 832,1280)"
    )
    parser.add_argument("--threads", type=whole_number, default=1, help="default %(default)s")
    parser.add_argument("--rounds", type=whole_number, default=9, help="default %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        with pv.open_source(options.frame) as source:
            image_rgb = next(source).image_rgb
        configs = [
            resolved(pv.EncoderConfig(model=options.model, device="cpu", input_size=size))
            for size in options.sizes
        ]
        sizes = [measure(image_rgb, config, options.rounds) for config in configs]
    except pv.PersamError as error:
        raise SystemExit(f"limits.py: error: {error}") from error
    report = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "threads": options.threads,
        "frame_hw": image_rgb.shape[:2],
        "sizes": sizes,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
