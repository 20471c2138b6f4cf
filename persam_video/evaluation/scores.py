"""Scores per object, per clip and in total, and the loop that makes them from label maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from persam_video.evaluation.metrics import (
    Statistics,
    average,
    contour_accuracy,
    region_similarity,
    summarize,
)
from persam_video.types import UInt8Array


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """One object of one clip; first and last frame left out.

    Attributes:
        clip: Name of the clip.
        object_id: Value in the label maps; 1 when the objects were merged.
        j_frames: J of every frame that counts, in order.
        f_frames: F of the same frames.
        j: Statistics of ``j_frames``.
        f: Statistics of ``f_frames``.
    """

    clip: str
    object_id: int
    j_frames: tuple[float, ...]
    f_frames: tuple[float, ...]
    j: Statistics
    f: Statistics

    @property
    def j_and_f(self) -> float:
        """Mean of J mean and F mean, in [0, 1]."""
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True, slots=True)
class ClipScore:
    """All objects of one clip; every figure is the mean over the objects."""

    name: str
    objects: tuple[ObjectScore, ...]

    @property
    def j(self) -> Statistics:
        """Region similarity."""
        return average([o.j for o in self.objects])

    @property
    def f(self) -> Statistics:
        """Contour accuracy."""
        return average([o.f for o in self.objects])

    @property
    def j_and_f(self) -> float:
        """Mean of J mean and F mean, in [0, 1]."""
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True, slots=True)
class DavisScore:
    """A whole split; the total is the mean over all objects, whichever clip they are in."""

    split: str
    merge_objects: bool
    clips: tuple[ClipScore, ...]

    @property
    def objects(self) -> tuple[ObjectScore, ...]:
        """The objects of all clips."""
        return tuple(o for clip in self.clips for o in clip.objects)

    @property
    def j(self) -> Statistics:
        """Region similarity."""
        return average([o.j for o in self.objects])

    @property
    def f(self) -> Statistics:
        """Contour accuracy."""
        return average([o.f for o in self.objects])

    @property
    def j_and_f(self) -> float:
        """Mean of J mean and F mean, in [0, 1]: the figure papers quote."""
        return (self.j.mean + self.f.mean) / 2


def score_clip(
    name: str,
    ids: tuple[int, ...],
    pairs: Iterable[tuple[UInt8Array, UInt8Array]],
) -> ClipScore:
    """Score the frames of one clip.

    Args:
        name: Name of the clip.
        ids: Objects to score.
        pairs: Prediction and ground truth of every frame that counts, (H, W) uint8 label maps; the
            caller leaves out the first and the last frame. Read once, one pair in memory.

    Raises:
        PersamError: There is no frame or no object, or a pair differs in size.
    """
    j_frames: list[list[float]] = [[] for _ in ids]
    f_frames: list[list[float]] = [[] for _ in ids]
    for prediction, truth in pairs:
        for position, object_id in enumerate(ids):
            masks = prediction == object_id, truth == object_id
            j_frames[position].append(region_similarity(*masks))
            f_frames[position].append(contour_accuracy(*masks))
    return ClipScore(
        name,
        tuple(
            ObjectScore(
                name, object_id, tuple(j), tuple(f), summarize(np.array(j)), summarize(np.array(f))
            )
            for object_id, j, f in zip(ids, j_frames, f_frames, strict=True)
        ),
    )
