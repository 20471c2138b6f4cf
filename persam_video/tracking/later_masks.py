"""Masks given for later frames: what is wrong by then is put right, what comes late is added."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from persam_video.errors import PromptError
from persam_video.types import VOID, ObjectState, Reference, TrackResult, UInt8Array, object_ids

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker


class LaterMasks:
    """Those of a reference, on their way to the tracker that follows it.

    Args:
        tracker: Is corrected, and gets more objects.
        reference: Whose ``later`` masks it is about.
    """

    def __init__(self, tracker: Tracker, reference: Reference) -> None:
        self._tracker = tracker
        self._waiting = dict(reference.later)

    def put_right(self, result: TrackResult) -> TrackResult:
        """The result of the tracker's latest frame, with the mask given for that frame if any.

        Raises:
            PromptError: That mask has another size than the frame, or the frame of another one has
                been passed by.
        """
        labels = self._waiting.pop(result.frame_index, None)
        self._check_waiting(result.frame_index)
        if labels is None:
            return result
        tracker = self._tracker
        followed = np.isin(labels, tracker.object_ids)
        # Void is in both: what of it is an object's is unknown.
        for kind, take in ((followed, tracker.correct), (~followed, tracker.add)):
            part = np.where(kind | (labels == VOID), labels, 0).astype(np.uint8)
            if object_ids(part):
                take(part)
        return _with_masks(result, labels)

    def check_end(self) -> None:
        """Raise PromptError where a mask is left."""
        self._check_waiting(None)

    def _check_waiting(self, read_until: int | None) -> None:
        passed = [i for i in self._waiting if read_until is None or i < read_until]
        if passed:
            raise PromptError(
                "a mask is given for this frame, but it is not one of those that are read after "
                "the first one (whose masks are no later ones)",
                frame_index=min(passed),
            )


def _with_masks(result: TrackResult, labels: UInt8Array) -> TrackResult:
    """A result in which the objects of a (H, W) uint8 label map are as there, and tracked."""
    ids = object_ids(labels)
    others = np.where(np.isin(result.labels, ids), 0, result.labels)
    scores = {**result.scores, **dict.fromkeys(ids, 1.0)}
    states = {**result.states, **dict.fromkeys(ids, ObjectState.TRACKED)}
    return replace(
        result,
        labels=np.where(np.isin(labels, ids), labels, others).astype(np.uint8),
        scores=dict(sorted(scores.items())),
        states=dict(sorted(states.items())),
    )
