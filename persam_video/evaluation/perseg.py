"""PerSeg: read its folders, and mIoU as the evaluation script of PerSAM computes it.

    ROOT/Images/<name>/NN.jpg, ROOT/Annotations/<name>/NN.png, PREDICTIONS/<name>/NN.png

Source of the figure: ``eval_mioU.py`` of https://github.com/ZrrSkywalker/Personalize-SAM. Per
subject, intersections and unions are summed over the photos before they are divided; the photo of
the reference is left out; the total is the mean over the subjects.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from persam_video.errors import DatasetError
from persam_video.evaluation.metrics import intersection_and_union
from persam_video.types import BoolArray

REFERENCE = "00"
"""Stem of the photo that shows the subject; it is not scored."""

_EPSILON = 1e-10  # the script's own guard against an empty union


@dataclass(frozen=True, slots=True)
class PersegSubject:
    """One subject: its photos and their masks, in order of their stems."""

    name: str
    images: tuple[Path, ...]
    annotations: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class SubjectScore:
    """One subject.

    Attributes:
        name: Name of its folder.
        iou: Summed intersections over summed unions, in [0, 1].
        accuracy: Summed intersections over summed pixels of the ground truth, in [0, 1].
    """

    name: str
    iou: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class PersegScore:
    """All subjects."""

    subjects: tuple[SubjectScore, ...]

    @property
    def mean_iou(self) -> float:
        """MIoU: mean over the subjects, in [0, 1]."""
        return fmean(s.iou for s in self.subjects)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the subjects, in [0, 1]."""
        return fmean(s.accuracy for s in self.subjects)


def read_perseg(root: Path, leave_out: Collection[str] = ()) -> tuple[PersegSubject, ...]:
    """All subjects of a PerSeg folder by name.

    Args:
        root: Folder that holds Images and Annotations.
        leave_out: Names of subjects not to read; the script itself passes over eight by name.

    Raises:
        DatasetError: A folder or the partner of a photo or mask is missing; all are listed.
    """
    folder = root / "Annotations"
    names = sorted(p.name for p in folder.glob("*") if p.is_dir() and p.name not in leave_out)
    if not names:
        raise DatasetError("a PerSeg folder needs Annotations/<name>/NN.png, got none", path=root)
    subjects, problems = [], []
    for name in names:
        images = tuple(sorted((root / "Images" / name).glob("*.jpg")))
        annotations = tuple(sorted((folder / name).glob("*.png")))
        odd = {p.stem for p in images} ^ {p.stem for p in annotations}
        if odd or not annotations:
            stems = ", ".join(sorted(odd)) or "none at all"
            problems.append(f"{name}: photo without mask or mask without photo: {stems}")
        subjects.append(PersegSubject(name, images, annotations))
    if problems:
        raise DatasetError("\n  ".join(["incomplete subjects:", *problems]), path=root)
    return tuple(subjects)


def evaluate_perseg(
    predictions: Path, root: Path, *, leave_out: Collection[str] = ()
) -> PersegScore:
    """Score predicted masks of every photo but the reference.

    A mask's foreground is every pixel whose label, or whose colour, is not zero.

    Raises:
        DatasetError: Predictions are missing, unreadable or of another size; all are listed.
    """
    problems: list[str] = []
    scores = []
    for subject in read_perseg(root, leave_out):
        counts = np.zeros(3)
        scored = [path for path in subject.annotations if path.stem != REFERENCE]
        if not scored:
            problems.append(f"{subject.name}: no photo beside the reference {REFERENCE}")
        for truth_path in scored:
            path = predictions / subject.name / f"{truth_path.stem}.png"
            try:
                counts += _count(_read_foreground(path), _read_foreground(truth_path))
            except DatasetError as error:
                problems.append(f"{path}: {error.message}" if error.path is None else str(error))
        intersection, union, target = counts.tolist()
        scores.append(
            SubjectScore(
                subject.name, intersection / (union + _EPSILON), intersection / (target + _EPSILON)
            )
        )
    if problems:
        title = f"the predictions cannot be scored; problems: {len(problems)}"
        raise DatasetError("\n  ".join([title, *problems]), path=predictions)
    return PersegScore(tuple(scores))


def _count(prediction: BoolArray, truth: BoolArray) -> tuple[int, int, int]:
    """Pixels in both, in either, in the ground truth."""
    if prediction.shape != truth.shape:
        (height, width), (true_height, true_width) = prediction.shape, truth.shape
        raise DatasetError(
            f"{width} x {height} pixels, the ground truth has {true_width} x {true_height}"
        )
    return *intersection_and_union(prediction, truth), int(np.count_nonzero(truth))


def _read_foreground(path: Path) -> BoolArray:
    """(H, W) bool mask of a label PNG or of a picture that is black outside the object."""
    try:
        with Image.open(path) as image:
            labels = image if image.mode in ("1", "L", "P") else image.convert("RGB")
            values = np.asarray(labels)
    except FileNotFoundError as error:
        raise DatasetError("missing", path=path) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"not a readable mask: {error}", path=path) from error
    foreground: BoolArray = values != 0 if values.ndim == 2 else (values != 0).any(axis=2)
    return foreground
