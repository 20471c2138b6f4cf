"""Reference -> target: the features that stand for the object.

PerSAM, section 3.2 (Zhang et al., 2023): the reference's embedding under its mask gives local
features; their mean is the target embedding. Its video script takes half mean, half maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.types import BoolArray, Embedding

MAX_LOCAL_FEATURES = 512
"""More cells than this add nothing to the mean similarity but time."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one object looks like to the frozen encoder, on the whole.

    Attributes:
        direction: (256,) float32, unit length, on the encoder's device; what similarity compares
            with.
        self_similarity: Mean cosine of ``direction`` with the object's own cells.
        background_similarity: Mean cosine with the other cells of its picture. The two are the
            scale on which a similarity elsewhere is high or low.
    """

    direction: Tensor
    self_similarity: float
    background_similarity: float


@dataclass(frozen=True, slots=True)
class Target(Look):
    """The object of a reference; the tensors are on the encoder's device.

    Attributes:
        local: (L, 256) float32, unit length, one per grid cell under the reference mask, L >= 1.
        embedding: (256,) float32, not normalised; what target-semantic prompting adds.
    """

    local: Tensor
    embedding: Tensor


def grid_coverage(mask: BoolArray, embedding: Embedding, grid_hw: tuple[int, int]) -> Tensor:
    """Share of every grid cell that a mask covers.

    Args:
        mask: (H, W) bool in source pixels of the embedding's frame.
        embedding: Knows how the frame lies in the padded square.
        grid_hw: Cells of the whole padded square, e.g. (64, 64).

    Returns:
        (h, w) float32 in [0, 1].
    """
    pixels = torch.from_numpy(mask).to(torch.float32)[None, None]
    inside = F.interpolate(
        pixels, embedding.input_hw, mode="bilinear", align_corners=False, antialias=True
    )
    height, width = embedding.input_hw
    square = F.pad(inside, (0, embedding.input_size - width, 0, embedding.input_size - height))
    return F.adaptive_avg_pool2d(square, grid_hw)[0, 0]


def valid_cells(embedding: Embedding, grid_hw: tuple[int, int]) -> Tensor:
    """(h, w) bool, True where a cell's centre lies inside the frame and not in the padding.

    Of a frame that is flatter than that, the first row or column.
    """
    inside = []
    for cells, length in zip(grid_hw, embedding.input_hw, strict=True):
        index = torch.arange(cells)
        inside.append(((index + 0.5) / cells * embedding.input_size < length) | (index == 0))
    return inside[0][:, None] & inside[1][None, :]


def make_target(embedding: Embedding, mask: BoolArray, kind: str = "mean_max") -> Target:
    """Target of the object under ``mask`` in the reference picture.

    A cell counts when the mask covers half of it. A thin or small object may cover no cell that
    far; then its best-covered cells count, so that a target always exists.

    Args:
        embedding: Of the reference picture.
        mask: (H, W) bool, at least one pixel set.
        kind: "mean" (the paper) or "mean_max" (its video script).
    """
    grid_hw = (embedding.neck.shape[2], embedding.neck.shape[3])
    coverage = grid_coverage(mask, embedding, grid_hw).flatten()
    threshold = min(0.5, 0.5 * float(coverage.max()))
    cells = torch.nonzero(coverage >= threshold).flatten()
    features = embedding.neck[0].flatten(1).T[cells.to(embedding.neck.device)]
    mean = features.mean(dim=0)
    vector = mean if kind == "mean" else (mean + features.amax(dim=0)) / 2
    step = -(-len(features) // MAX_LOCAL_FEATURES)
    direction = F.normalize(vector, dim=0)
    similarity = (direction @ F.normalize(embedding.neck[0].flatten(1), dim=0)).cpu()
    elsewhere = similarity[(coverage < threshold) & valid_cells(embedding, grid_hw).flatten()]
    return Target(
        local=F.normalize(features[::step], dim=1),
        embedding=mean,
        direction=direction,
        self_similarity=float(similarity[cells].mean()),
        background_similarity=float(elsewhere.mean()) if len(elsewhere) else 0.0,
    )
