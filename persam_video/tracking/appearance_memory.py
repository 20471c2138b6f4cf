"""What single cells of the object and of its surroundings look like, copied and not summed up.

The target model is linear: a thin part that looks like the background elsewhere is outvoted in it.
Here every cell of a new frame takes its label from the most similar cells of the reference and of
the latest frame (label propagation, as in Jabri et al., "Space-Time Correspondence as a Contrastive
Random Walk", 2020, section 3.3, with SAM's features and without their choice of the k nearest,
which costs more than it changes), so that an ear remains an ear as long as something looks more
like it than like anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.tracking.features import filled_up, looks_of
from persam_video.tracking.lesson import Lesson
from persam_video.tracking.side_by_side import spread

_SHARPNESS = 46.0
"""One over the cosine by which a remembered cell is more similar to weigh twice as much (powers of
two take less time than those of e); a number that bfloat16 has, too."""
_CHUNK = 192
"""Cells asked about at once, so that what they are compared with stays in the processor's cache."""
_LARGE_CHUNK = 16 * _CHUNK
"""The same on an accelerator, which would mostly wait to be asked about few."""
_BLOCK = 2 * _CHUNK
"""Cells that one thread asks about before another one may go on."""


class AppearanceMemory:
    """Labelled cells of the reference frame and of the latest one that an object learnt from.

    Where masks are given for later frames, the newest of these is a second reference.

    Args:
        dtype: Number format that cells are compared in.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._references: list[tuple[Tensor, Tensor]] = []
        self._latest: tuple[Tensor, Tensor] | None = None

    def fit(self, lesson: Lesson) -> None:
        """Remember the reference, or another one; what is remembered of other frames is forgotten.

        Args:
            lesson: Which cells of the frame.
        """
        self._references = [*self._references[:1], self._entry(lesson)]
        self._latest = None

    def update(self, lesson: Lesson) -> None:
        """Remember another frame in the place of the latest one; arguments as for ``fit``."""
        self._latest = self._entry(lesson)

    def score(self, looks: Tensor) -> Tensor:
        """The label of each cell by its most similar remembered cells.

        Args:
            looks: (n, D) float32, ``FrameFeatures.looks`` of the cells.

        Returns:
            (n,) float32 in [-1, 1], +1 = object.
        """
        if not len(looks):
            return torch.zeros(0)
        entries = [*self._references, *([] if self._latest is None else [self._latest])]
        cells = torch.cat([e[0] for e in entries])
        counts = torch.cat([e[1] for e in entries], dim=1)
        nothing = filled_up(len(cells)) - len(cells)  # of which each counts for no cell
        cells, counts = F.pad(cells, (0, 0, 0, nothing)).T, F.pad(counts, (0, nothing))
        asked = F.pad(_SHARPNESS * looks, (0, 1), value=-_SHARPNESS)
        on_processor = looks.device.type == "cpu"
        at_once = _CHUNK if on_processor else min(_LARGE_CHUNK, filled_up(len(looks)))
        asked = F.pad(asked, (0, 0, 0, -len(looks) % at_once)).to(self._dtype)
        blocks = torch.split(asked, _BLOCK if on_processor else len(asked))
        labels = torch.cat(spread(lambda b: _labels(b, cells, counts, at_once), blocks))
        return labels[: len(looks)].cpu()

    def _entry(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """What is remembered of a frame.

        Returns:
            (M, D + 1) looks of cells and a column of ones, and (2, M) for how many cells of the
            object, and of anything, each of them counts.
        """
        shares = F.pad(lesson.mask.flatten().index_select(0, lesson.cells), (0, len(lesson.others)))
        looks = looks_of(torch.cat([lesson.features, lesson.others]))
        counts = torch.cat([lesson.counts, lesson.other_counts])
        ones = F.pad(looks, (0, 1), value=1.0)
        weights = torch.stack([shares * counts, counts])
        return ones.to(self._dtype), weights.to(ones.device, self._dtype)


def _labels(asked: Tensor, cells: Tensor, counts: Tensor, at_once: int) -> Tensor:
    """The label of each cell by those that are remembered.

    Args:
        asked: (n, D + 1) looks times the sharpness, and a column of minus the sharpness.
        cells: (D + 1, M) looks of the remembered cells, and a row of ones.
        counts: (2, M) for how many cells of the object, and of anything, each of them counts.
        at_once: So many of the asked cells, of which n is a multiple.

    Returns:
        (n,) float32 in [-1, 1].
    """
    buffer = asked.new_empty(at_once, cells.shape[1])
    labels = []
    for chunk in torch.split(asked, at_once):
        # With the column of ones: sharpness x (cosine - 1), so no weight is above 1, but for
        # rounding.
        weights = torch.mm(chunk, cells, out=buffer).exp2_()
        of_object, of_all = F.linear(counts, weights).float()
        labels.append(2 * of_object / of_all - 1)
    return torch.cat(labels)
