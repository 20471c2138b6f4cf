r"""The image encoder against segment_anything's own, float32 and eager: time and error.

    python tools/plain_encoder.py FRAME.jpg --model vit_h
    python tools/plain_encoder.py FRAME.jpg --model vit_h --checkpoint vit_h.pth --device cuda

From the picture to its embedding: ``SamPredictor.set_image`` on one side, ``encode`` on the other,
and the networks alone. One process; all take turns round by round, so believe the ratios of one
run, not times of two. The error is of the embedding, relative to segment_anything's. For ViT-B, -L
and -H; where their weights are not at hand tools/random_weights.py makes some.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import SamPredictor

import persam_video as pv
from persam_video.benchmark.report import commit, machine, versions
from persam_video.geometry import fit_longest_side
from persam_video.sam.architecture import build_sam
from persam_video.sam.checkpoints import load_state_dict
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.machine import wait_for_gpu
from persam_video.sam.models import resolve_device
from persam_video.types import UInt8Array

PLAIN = "segment_anything float32"


@dataclass(slots=True)
class Way:
    """A way from a picture to its embedding.

    Attributes:
        encode: All of it.
        network: The network alone, on a picture that has been resized and normalised.
        embedding: What came out.
        encode_ms: Of each round.
        network_ms: Of each round.
    """

    encode: Callable[[], torch.Tensor]
    network: Callable[[], object]
    embedding: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    encode_ms: list[float] = field(default_factory=list)
    network_ms: list[float] = field(default_factory=list)


def plain_way(options: argparse.Namespace, image: UInt8Array) -> Way:
    """segment_anything's own, as it comes."""
    sam = build_sam(options.model, load_state_dict(options.model, options.checkpoint))
    predictor = SamPredictor(sam.to(resolve_device(options.device)))

    def encode() -> torch.Tensor:
        predictor.set_image(image)
        return predictor.get_image_embedding()

    resized = torch.from_numpy(predictor.transform.apply_image(image)).to(predictor.device)
    x = sam.preprocess(resized.permute(2, 0, 1)[None])
    return Way(encode, lambda: sam.image_encoder(x))


def own_way(options: argparse.Namespace, image: UInt8Array, number_format: str) -> Way:
    """This package's."""
    checkpoint = None if options.checkpoint is None else str(options.checkpoint)
    config = pv.EncoderConfig(
        model=options.model, checkpoint=checkpoint, device=options.device, dtype=number_format
    )
    encoder: SamImageEncoder = pv.load_sam(config)[0]
    size_hw = fit_longest_side((image.shape[0], image.shape[1]), encoder.input_size)
    x = encoder.preprocess(image, size_hw).to(encoder.dtype)
    return Way(lambda: encoder.encode(image).neck, lambda: encoder.backbone(x))


def milliseconds(call: Callable[[], object]) -> float:
    """Until the GPU has done it, too."""
    wait_for_gpu()
    begun = time.perf_counter()
    call()
    wait_for_gpu()
    return 1e3 * (time.perf_counter() - begun)


@torch.inference_mode()
def measure(ways: dict[str, Way], rounds: int) -> None:
    """Fill in embeddings, which warms up, and times."""
    for way in ways.values():
        for _ in range(3):
            way.embedding = way.encode().float().cpu()
            way.network()
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            ways[name].encode_ms.append(milliseconds(ways[name].encode))
            ways[name].network_ms.append(milliseconds(ways[name].network))


def table(ways: dict[str, Way]) -> str:
    """Markdown; medians over the rounds, and the medians of the rounds' ratios to the plain one."""
    plain = ways[PLAIN]
    lines = ["| | encode, ms (x faster) | network, ms (x faster) | error |", "|---|---|---|---|"]
    for name, way in ways.items():
        cells = [name]
        for own, other in (
            (way.encode_ms, plain.encode_ms),
            (way.network_ms, plain.network_ms),
        ):
            ratio = np.median(np.array(other) / np.array(own))
            cells.append(f"{np.median(own):.1f} ({ratio:.2f})")
        error = (way.embedding - plain.embedding).norm() / plain.embedding.norm()
        cells.append(f"{100 * float(error):.3f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frame", type=Path, help="picture that is encoded")
    parser.add_argument("--model", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--checkpoint", type=Path, help="file of weights; default: fetched")
    parser.add_argument("--device", default="auto", help="default %(default)s")
    parser.add_argument(
        "--dtypes", default="float32,bfloat16", help="number formats, default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed turns, default %(default)s")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    image = np.array(Image.open(options.frame).convert("RGB"))
    ways = {PLAIN: plain_way(options, image)}
    for number_format in options.dtypes.split(","):
        ways[f"persam_video {number_format}"] = own_way(options, image, number_format)
    measure(ways, options.rounds)
    print(table(ways))
    print(f"\n{machine()}\n{versions()}\ncommit {commit()}")


if __name__ == "__main__":
    main()
