r"""Write a checkpoint with random weights, for timing a model whose own weights are not at hand.

    python tools/random_weights.py vit_h vit_h.pth
    python tools/bench.py CLIP --mask FIRST.png -o OUT --model vit_h --checkpoint vit_h.pth

The encoder's speed does not depend on the weights. Masks do, so that J&F means nothing, and a step
of the tracker takes another time as far as it loses the object. Same seed, same weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from persam_video.errors import CheckpointError
from persam_video.sam.architecture import expected_shapes
from persam_video.sam.registry import MODELS, model_info

_SPREAD = 0.02
"""Standard deviation of the weights; those of norms are 1, and biases 0, as before training."""


def random_weights(model: str, seed: int) -> dict[str, torch.Tensor]:
    """All tensors of a model of the registry, in float32.

    Raises:
        CheckpointError: There is no such model.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(model_info(model)).items():
        if name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        elif len(shape) == 1:
            weights[name] = torch.ones(shape)
        else:
            weights[name] = _SPREAD * torch.randn(shape, generator=generator)
    return weights


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} exists; legal is a new file")
    try:
        weights = random_weights(options.model, options.seed)
    except CheckpointError as error:
        parser.error(str(error))
    torch.save(weights, options.output)


if __name__ == "__main__":
    main()
