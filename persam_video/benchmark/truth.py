"""J and F beside a speed: a fast wrong mask counts for nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from persam_video.errors import DatasetError
from persam_video.evaluation.scores import score_clip
from persam_video.label_maps import read_label_map
from persam_video.types import VOID, UInt8Array, object_ids


@dataclass(frozen=True, slots=True)
class Score:
    """How good the timed masks are.

    Attributes:
        j: Region similarity in [0, 1], mean over objects and frames.
        f: Contour accuracy in [0, 1].
        frames: Frames scored per object: all that were tracked, the reference left out.
    """

    j: float
    f: float
    frames: int

    @property
    def j_and_f(self) -> float:
        """Mean of J and F, in [0, 1]."""
        return (self.j + self.f) / 2


class Truth:
    """A folder of label maps, named as the frames: ``00000.png`` and so on.

    Frames of a video file have no names; their index with five digits stands for it. Where the
    first map holds 0 and 255 only, 255 is the object, else it is "does not count", which is scored
    as background.

    Args:
        folder: With one PNG per frame.
        merge_objects: Score all objects as one.

    Raises:
        DatasetError: There is no PNG in the folder.
    """

    def __init__(self, folder: Path, *, merge_objects: bool = False) -> None:
        paths = sorted(folder.glob("*.png"))
        if not paths:
            raise DatasetError(
                "there is no ground truth: legal is a folder of PNG label maps", path=folder
            )
        self.folder = folder
        self.merge_objects = merge_objects
        self._void_is_object = not object_ids(read_label_map(paths[0]))

    def labels(self, stem: str, size_hw: tuple[int, int]) -> UInt8Array:
        """(H, W) uint8 label map of a frame, scaled to ``size_hw``; 1 is the one merged object.

        Raises:
            DatasetError: It is missing or cannot be read.
        """
        labels = read_label_map(self.folder / f"{stem}.png")
        if self._void_is_object or self.merge_objects:
            marked = (labels != 0) & ((labels != VOID) | self._void_is_object)
            labels = marked.astype(np.uint8)
        if labels.shape != size_hw:
            size_wh = (size_hw[1], size_hw[0])
            labels = np.asarray(
                cv2.resize(labels, size_wh, interpolation=cv2.INTER_NEAREST), np.uint8
            )
        return labels

    def score(self, ids: tuple[int, ...], masks: Iterable[tuple[str, UInt8Array]]) -> Score:
        """Score label maps.

        Args:
            ids: Objects followed.
            masks: Name of each frame and its (H, W) uint8 label map; read once.

        Raises:
            DatasetError: A frame has no ground truth, or none of it has the objects ``ids``.
        """
        known: set[int] = set()

        def pairs() -> Iterable[tuple[UInt8Array, UInt8Array]]:
            for stem, labels in masks:
                truth = self.labels(stem, (labels.shape[0], labels.shape[1]))
                known.update(object_ids(truth))
                yield (labels != 0).astype(np.uint8) if self.merge_objects else labels, truth

        clip = score_clip(self.folder.name, (1,) if self.merge_objects else ids, pairs())
        if not self.merge_objects and not known & set(ids):
            raise DatasetError(
                f"the ground truth has objects {sorted(known)}, followed are {sorted(ids)}; legal "
                "is a mask with the same ids, or to score all objects as one",
                path=self.folder,
            )
        return Score(clip.j.mean, clip.f.mean, len(clip.objects[0].j_frames))


def packed(labels: UInt8Array) -> bytes:
    """A label map small enough to be kept where memory is measured."""
    return zlib.compress(labels.tobytes(), 1)


def unpacked(packed_labels: bytes, size_hw: tuple[int, int]) -> UInt8Array:
    """(H, W) uint8 label map of what ``packed`` gave."""
    return np.frombuffer(zlib.decompress(packed_labels), np.uint8).reshape(size_hw)
