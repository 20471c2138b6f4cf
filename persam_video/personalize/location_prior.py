"""Target + new frame -> where the object probably is, as a map and as points.

PerSAM, section 3.2: cosine similarity of the target with every cell of the test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.personalize.target import Look, Target, valid_cells
from persam_video.sam.cuda_graphs import Replayed
from persam_video.sam.decoder import window_seen
from persam_video.types import Embedding


def similarity_maps(targets: list[Target], embedding: Embedding, local: bool = False) -> Tensor:
    """Cosine similarity of N targets with every grid cell.

    Args:
        targets: N targets.
        embedding: Of the frame to search.
        local: Compare with every local feature and average (the paper's image method) instead of
            with the one direction (its video script).

    Returns:
        (N, h, w) float32 in [-1, 1]; cells that are padding hold the map's minimum.
    """
    features = F.normalize(embedding.neck[0], dim=0)
    # The mean of cosines with many unit vectors is the dot product with the vectors' mean.
    directions = torch.stack([t.local.mean(dim=0) if local else t.direction for t in targets])
    similarity = torch.einsum("nc,chw->nhw", directions, features).cpu()
    valid = valid_cells(embedding, (similarity.shape[1], similarity.shape[2]))
    lowest = similarity.masked_fill(~valid, torch.inf).amin(dim=(1, 2), keepdim=True)
    return torch.where(valid, similarity, lowest)


def normalised_prior(maps: Tensor) -> Tensor:
    """(N, h, w) maps -> (N, h, w) in (0, 1): z-score over the cells, then the logistic function."""
    mean = maps.mean(dim=(1, 2), keepdim=True)
    deviation = maps.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return torch.sigmoid((maps - mean) / deviation)


def spread_points(maps: Tensor, count: int, separation: float) -> Tensor:
    """The ``count`` best cells of each map that are not neighbours.

    Greedy: take the maximum, blank out everything nearer than ``separation`` cells, repeat. When
    the blanks cover the whole map, the best cell comes again.

    Args:
        maps: (N, h, w) float32; -inf marks cells that may not be taken.
        count: Points per map, K >= 1.
        separation: Smallest distance between two points, in cells; under 1 any two cells will do.

    Returns:
        (N, K, 2) int64 row and column of each point.
    """
    rows = torch.arange(maps.shape[1])[:, None]
    columns = torch.arange(maps.shape[2])[None, :]
    points = []
    for grid in maps:
        left, best = grid.clone(), int(grid.argmax())
        chosen = []
        for _ in range(count):
            at = int(left.argmax())
            at = at if bool(left.flatten()[at] > -torch.inf) else best
            row, column = divmod(at, grid.shape[1])
            chosen.append((row, column))
            near = (rows - row) ** 2 + (columns - column) ** 2 < max(separation, 1.0) ** 2
            left = left.masked_fill(near, -torch.inf)
        points.append(chosen)
    return torch.tensor(points)


def cell_centres_xy(grid_rc: Tensor, stride: float) -> Tensor:
    """(..., 2) row and column of cells -> (..., 2) float32 x, y of centres in input pixels."""
    return (grid_rc.flip(-1).float() + 0.5) * stride


def likeness(looks: Sequence[Look], logits: Tensor, embedding: Embedding) -> Tensor:
    """How much the features under each mask resemble looks.

    SAM always returns some mask; this is what tells the object from something else.

    Args:
        looks: k * N of them, e.g. N targets; the i-th is for mask i modulo N.
        logits: (N, 4h, 4w) float32 masks of the frame, > 0 = object.
        embedding: Of the frame.

    Returns:
        (k * N,) float32: mean similarity under the mask, on a scale where the object in the look's
        own picture is at 1 and the rest of that picture at 0; unbounded; 0 for an empty mask.
    """
    cells, coverage = _cells_and_coverage(logits, embedding)
    coverage = coverage.repeat(len(looks) // len(logits), 1, 1)
    directions = torch.stack([look.direction for look in looks])
    (similarity,) = _similarity(directions, coverage.to(cells.device), cells)
    similarity = similarity.cpu()
    low = torch.tensor([look.background_similarity for look in looks])
    high = torch.tensor([look.self_similarity for look in looks])
    relative = (similarity - low) / (high - low).clamp_min(1e-3)
    return torch.where(coverage.sum(dim=(1, 2)) > 0, relative, 0)


def renewed(
    looks: Sequence[Look], logits: Tensor, embedding: Embedding, share: float
) -> list[Look]:
    """N looks with some of this frame's in them.

    Args:
        looks: N of them.
        logits: (N, 4h, 4w) float32 masks of the frame, > 0 = object; none is empty.
        embedding: Of the frame.
        share: Of the frame in the directions; the similarities are those of this frame.
    """
    cells, coverage = _cells_and_coverage(logits, embedding)
    before = torch.stack([look.direction for look in looks])
    directions, scales = _turning(share)(before, coverage.to(cells.device), cells)
    return [Look(*each) for each in zip(directions, *scales.tolist(), strict=True)]


def _cells_and_coverage(logits: Tensor, embedding: Embedding) -> tuple[Tensor, Tensor]:
    """(C, h, w) embedding of the cells seen, and (N, h, w) how much of each the masks cover."""
    seen = window_seen(embedding)
    # The decoder's masks have four cells to one of the embedding's, across.
    coverage = F.avg_pool2d((logits[(..., *seen.scaled(4).slices)] > 0).float(), 4)
    return embedding.neck[(0, slice(None), *seen.slices)], coverage


# What is recorded of these two is kept as long as the program runs, some megabytes for each number
# of objects and size of frames.
@Replayed
def _similarity(directions: Tensor, coverage: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """(N, C) directions, (N, h, w) and (C, h, w) -> (N,) mean cosine where they are covered."""
    maps = torch.einsum("nc,chw->nhw", directions, F.normalize(cells, dim=0))
    return (_mean(maps, coverage),)


@cache
def _turning(share: float) -> Replayed:
    """(N, C) directions, (N, h, w) and (C, h, w) -> (N, C), turned towards what is covered.

    With it come (2, N) mean cosines where it is covered, and where it is not.
    """

    def turned(directions: Tensor, coverage: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
        features = F.normalize(cells, dim=0)
        own = torch.einsum("nhw,chw->nc", coverage, features)
        directions = F.normalize(torch.lerp(directions, F.normalize(own, dim=1), share), dim=1)
        maps = torch.einsum("nc,chw->nhw", directions, features)
        scales = _mean(maps, coverage), _mean(maps, (coverage == 0).float())
        return directions, torch.stack(scales)

    return Replayed(turned)


def _mean(maps: Tensor, weights: Tensor) -> Tensor:
    """(N,) mean of (N, h, w) maps with (N, h, w) weights."""
    return (maps * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(1e-6)
