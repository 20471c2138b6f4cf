"""Many clips on this machine: the clips of a DAVIS split, resumable.

OUTPUT/<clip>/<stem>.png       label maps, one for every frame of the clip
OUTPUT/.<clip>.partial/        a clip in the making; renamed when it is complete
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persam_video.errors import DatasetError, PersamError
from persam_video.evaluation.davis import DavisClip, read_split
from persam_video.label_maps import read_label_map
from persam_video.pipeline import run
from persam_video.sinks import PalettePngSink
from persam_video.sinks.base import sink_errors
from persam_video.sources import open_source
from persam_video.types import VOID, Reference, TrackResult, UInt8Array, object_ids
from persam_video.writing import RunSummary

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker

_log = logging.getLogger(__name__)


class ClipState(StrEnum):
    """What became of a clip."""

    DONE = "done"
    SKIPPED = "skipped"  # it was complete before
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """One clip of a batch.

    Attributes:
        clip: The clip.
        state: What became of it.
        summary: Figures of its run; None unless it is done.
        error: Why it failed, else "".
    """

    clip: DavisClip
    state: ClipState
    summary: RunSummary | None = None
    error: str = ""


def run_davis(
    tracker: Tracker,
    root: Path,
    split: str,
    output: Path,
    *,
    resolution: str = "480p",
    merge_objects: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[TrackResult], None] | None = None,
) -> Iterator[ClipOutcome]:
    """Track every clip of a split from its first annotation, one after the other.

    A clip's folder appears only when all of its frames are there; complete ones are skipped. The
    next one follows after a clip that fails.

    Args:
        tracker: Started anew for every clip.
        root: DAVIS folder, see ``evaluation.davis``.
        split: ``"2017/val"``, ...
        output: Folder for the clips' folders, ready for ``evaluate``; created if missing.
        resolution: Folder under JPEGImages and Annotations.
        merge_objects: Follow all objects of a clip as one, as DAVIS-2016 does.
        overwrite: Do complete clips again; the old one stays until the new one is complete.
        on_progress: Called with every frame's result.

    Yields:
        Every clip's outcome, in the order of the split.

    Raises:
        DatasetError: The split cannot be read.
    """
    for clip in read_split(root, split, resolution):
        if not overwrite and _is_complete(clip, output / clip.name):
            yield ClipOutcome(clip, ClipState.SKIPPED)
            continue
        try:
            summary = _run_clip(tracker, clip, output, merge_objects, on_progress)
        except PersamError as error:
            yield ClipOutcome(clip, ClipState.FAILED, error=str(error))
        except Exception as error:  # a night's batch must outlive one clip's memory error
            _log.exception("clip %s failed", clip.name)
            yield ClipOutcome(clip, ClipState.FAILED, error=f"{type(error).__name__}: {error}")
        else:
            yield ClipOutcome(clip, ClipState.DONE, summary)


def first_labels(clip: DavisClip, *, merge_objects: bool = False) -> UInt8Array:
    """(H, W) uint8 label map of a clip's first annotation.

    Args:
        clip: One clip of a split.
        merge_objects: Make all objects one; where 255 is the only value beside 0, as in files of
            DAVIS-2016, it is the object, else it is void.

    Raises:
        DatasetError: The annotation cannot be read, or the clip's first frame has none.
    """
    first = clip.annotations[0]
    if not clip.frames:
        raise DatasetError("the clip has no JPEG", path=clip.frame_folder)
    if clip.frames[0].stem != first.stem:
        raise DatasetError(
            f"the first annotation must be that of the first frame, {clip.frames[0].stem}, got "
            f"{first.stem}",
            path=first,
        )
    labels = read_label_map(first)
    if not merge_objects:
        return labels
    is_void = (labels == VOID) & bool(object_ids(labels))
    return np.where(is_void, np.uint8(VOID), (labels != 0).astype(np.uint8))


def _run_clip(
    tracker: Tracker,
    clip: DavisClip,
    output: Path,
    merge_objects: bool,
    on_progress: Callable[[TrackResult], None] | None,
) -> RunSummary:
    reference = Reference(first_labels(clip, merge_objects=merge_objects))
    partial = output / f".{clip.name}.partial"
    try:
        with sink_errors(partial):
            if partial.exists():  # of a run that was killed
                shutil.rmtree(partial)
        with open_source(clip.frame_folder) as source:
            summary = run(source, tracker, reference, [PalettePngSink(partial)], on_progress)
        if not _is_complete(clip, partial):
            raise DatasetError("not every JPEG of the clip gave a frame", path=clip.frame_folder)
        _replace_folder(partial, output / clip.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _is_complete(clip: DavisClip, folder: Path) -> bool:
    """Whether a folder has a label map for every frame of the clip."""
    written = {path.stem for path in folder.glob("*.png")}
    return bool(clip.frames) and written >= {path.stem for path in clip.frames}


def _replace_folder(new: Path, old: Path) -> None:
    """Rename ``new`` to ``old``; what was there is kept aside until that has worked."""
    with sink_errors(old):
        if not old.exists():
            new.rename(old)
            return
        aside = old.with_name(f".{old.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)
