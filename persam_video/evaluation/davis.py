"""DAVIS: read its folders, and score predictions as the official DAVIS-2017 code does.

ROOT/ImageSets/<year>/<name>.txt             one clip per line; the split is "<year>/<name>"
ROOT/JPEGImages/<resolution>/<clip>/*.jpg
ROOT/Annotations/<resolution>/<clip>/*.png   label maps
PREDICTIONS/<clip>/<stem>.png                label maps, one for every annotation
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persam_video.errors import DatasetError
from persam_video.evaluation.scores import ClipScore, DavisScore, score_clip
from persam_video.label_maps import read_label_map
from persam_video.types import VOID, UInt8Array, object_ids


@dataclass(frozen=True, slots=True)
class DavisClip:
    """One clip of a split.

    Attributes:
        name: Name of its folders.
        frame_folder: Folder of its JPEGs; it need not exist for an evaluation.
        frames: Its JPEGs in order, empty without the folder.
        annotations: Its label maps in order, at least one; test splits have the first one only.
    """

    name: str
    frame_folder: Path
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]


def read_split(root: Path, split: str, resolution: str = "480p") -> tuple[DavisClip, ...]:
    """The clips of a split in the order of its file.

    Args:
        root: Folder that holds ImageSets, JPEGImages and Annotations.
        split: ``"2017/val"`` for ``ImageSets/2017/val.txt``.
        resolution: Folder under JPEGImages and Annotations.

    Raises:
        DatasetError: The split's file is missing (those there are, are named), is empty or names a
            clip twice, or clips have no annotation; all of them are listed.
    """
    names = _read_names(root, split)
    clips, missing = [], []
    for name in names:
        folder = root / "Annotations" / resolution / name
        annotations = tuple(sorted(folder.glob("*.png")))
        if not annotations:
            missing.append(f"{name}: no PNG in {folder}")
        frame_folder = root / "JPEGImages" / resolution / name
        clips.append(
            DavisClip(name, frame_folder, tuple(sorted(frame_folder.glob("*.jpg"))), annotations)
        )
    if missing:
        raise DatasetError(_listing(f"split {split} lacks annotations", missing), path=root)
    return tuple(clips)


def _read_names(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / f"{split}.txt"
    try:
        names = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        sets = root / "ImageSets"
        there = [p.relative_to(sets).with_suffix("").as_posix() for p in sets.glob("*/*.txt")]
        raise DatasetError(
            f"there is no split {split!r}; legal are: {', '.join(sorted(there)) or 'none'}",
            path=path,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"not a readable list of clips: {error}", path=path) from error
    if not names:
        raise DatasetError("the split names no clip", path=path)
    if paths := [name for name in names if Path(name).name != name]:
        raise DatasetError(
            f"a split must hold one clip name per line, got {paths[0]!r} (the lists of DAVIS-2016 "
            "with file names are in ImageSets/480p; take those in ImageSets/2016)",
            path=path,
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"the split names clips twice: {', '.join(twice)}", path=path)
    return names


def evaluate(
    predictions: Path,
    root: Path,
    split: str,
    *,
    resolution: str = "480p",
    merge_objects: bool = False,
    on_clip: Callable[[ClipScore], None] | None = None,
) -> DavisScore:
    """Score a folder of predictions against the ground truth of a split.

    Figures equal those of the official semi-supervised evaluation: the first and the last frame of
    a clip do not count, void pixels of the ground truth (255) are background, the total is the
    mean over all objects. Objects are those in the first annotation; an object without any pixel
    there is not scored. An id that no object has, void included, is an error in a prediction.

    Args:
        predictions: Folder with ``<clip>/<stem>.png`` for every annotation of the split.
        root: Folder of the data set, see ``read_split``.
        split: ``"2016/val"``, ``"2017/val"``, ...
        resolution: Folder under Annotations.
        merge_objects: Score all objects of a clip as one, as DAVIS-2016 does. Any value but 0 in a
            prediction is the object; ground truth of 0 and 255 only is read in the same way.
        on_clip: Called with every clip's score as soon as it is known.

    Raises:
        DatasetError: Clips or frames are missing, or masks are unreadable, of another size, or
            hold unknown ids; all of them are listed.
    """
    clips = read_split(root, split, resolution)
    problems = [p for clip in clips for p in _missing(clip, predictions)]
    scores = []
    for clip in clips:
        try:
            ids = _ids_to_score(clip, merge_objects)
            pairs = _read_pairs(clip, predictions, ids, merge_objects)
            if problems:  # no score is possible any more, but the list is to be complete
                deque(pairs, maxlen=0)
                continue
            scores.append(score_clip(clip.name, ids, pairs))
        except _UnscorableClipError as error:
            problems += error.problems
        else:
            if on_clip is not None:
                on_clip(scores[-1])
    if problems:
        raise DatasetError(_listing("the predictions cannot be scored", problems), path=predictions)
    return DavisScore(split, merge_objects, tuple(scores))


class _UnscorableClipError(DatasetError):
    """Everything that is wrong with the masks of one clip."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _missing(clip: DavisClip, predictions: Path) -> Iterator[str]:
    """What the names of the files alone tell."""
    stems = [path.stem for path in clip.annotations]
    if len(stems) < 3:
        yield (
            f"{clip.name}: {len(stems)} annotated frames; 3 are needed, as the first and the last "
            "do not count"
        )
    if bare := sorted({path.stem for path in clip.frames} - set(stems)):
        yield f"{clip.name}: {len(bare)} frames have no ground truth: {', '.join(bare)}"
    folder = predictions / clip.name
    if not folder.is_dir():
        yield f"{clip.name}: the clip is missing, there is no folder {folder}"
    elif absent := [stem for stem in stems if not (folder / f"{stem}.png").is_file()]:
        yield f"{clip.name}: {len(absent)} of {len(stems)} frames missing: {', '.join(absent)}"


def _ids_to_score(clip: DavisClip, merge_objects: bool) -> tuple[int, ...]:
    """Object ids of the first annotation; 1 stands for all of them when they are merged."""
    first = clip.annotations[0]
    try:
        labels = read_label_map(first)
    except DatasetError as error:
        raise _UnscorableClipError([str(error)]) from error
    ids = object_ids(labels)
    if merge_objects and labels.any():
        return (1,)
    if not ids:
        hint = "; 0 and 255 only: score it with merged objects" if labels.any() else ""
        raise _UnscorableClipError([f"{first}: no object in the first annotation{hint}"])
    return ids


def _read_pairs(
    clip: DavisClip, predictions: Path, ids: tuple[int, ...], merge_objects: bool
) -> Iterator[tuple[UInt8Array, UInt8Array]]:
    """Prediction and ground truth of the frames that count; every other frame is checked too.

    Raises:
        _UnscorableClipError: At the end, with all that was wrong; absent files are passed over.
    """
    problems = []
    void_is_object = merge_objects and not object_ids(read_label_map(clip.annotations[0]))
    for position, truth_path in enumerate(clip.annotations):
        path = predictions / clip.name / truth_path.name
        if not path.is_file():
            continue
        try:
            truth, prediction = read_label_map(truth_path), read_label_map(path)
        except DatasetError as error:
            problems.append(str(error))
            continue
        if merge_objects:
            truth = ((truth != 0) & ((truth != VOID) | void_is_object)).view(np.uint8)
            prediction = (prediction != 0).view(np.uint8)
        if problem := _mismatch(prediction, truth, ids):
            problems.append(f"{path}: {problem}")
        elif 0 < position < len(clip.annotations) - 1:
            yield prediction, truth
    if problems:
        raise _UnscorableClipError(problems)


def _mismatch(prediction: UInt8Array, truth: UInt8Array, ids: tuple[int, ...]) -> str | None:
    """Why the two cannot be compared, or None."""
    if prediction.shape != truth.shape:
        (height, width), (true_height, true_width) = prediction.shape, truth.shape
        return f"{width} x {height} pixels, the ground truth has {true_width} x {true_height}"
    seen = np.flatnonzero(np.bincount(prediction.ravel(), minlength=256)).tolist()
    if unknown := sorted(set(seen) - {0, *ids}):
        return f"ids {unknown} are none of the clip's objects {list(ids)}"
    return None


def _listing(title: str, problems: list[str]) -> str:
    return "\n  ".join([f"{title}; problems: {len(problems)}", *problems])
