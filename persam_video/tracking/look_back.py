"""What a later frame tells is carried back to the frames before it, for those who can wait.

A tracker that knows the past alone finds a lost object late: it takes a good view of it to be sure.
From that view it is easily followed back to the moment at which it came into sight. And a mask that
is given for a later frame tells that the ones before it have gone wrong, but not since when. So up
to a fixed number of results are held back, while an object is lost or a given mask is still to
come, and a second tracker goes from there through the held frames in reverse order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from persam_video.errors import telling_frame
from persam_video.evaluation.metrics import region_similarity
from persam_video.types import Frame, ObjectState, Reference, TrackResult, object_ids

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker

_AGREED = 0.95
"""IoU of an object's masks from both ways from which on those before are taken to be right."""
_ALIKE = 0.8
"""IoU below which it is not the same that both ways have."""

Held = deque[tuple[Frame, TrackResult]]
"""Frames that are held back with their results, in order."""


def looking_back(
    results: Generator[tuple[Frame, TrackResult], None, None],
    tracker: Tracker,
    frames: int,
    reference: Reference,
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """Fill the gaps in the results of a clip, and put right what comes before a given mask.

    In a gap an object gets free pixels only, and only as far back as the second tracker is sure of
    it. An object whose mask is given is followed back until its masks agree with those it had, or
    to the frame where they agree most, but not past its mask that was given before. Everything else
    stays as it was found.

    Args:
        results: Frames in order with their results; closed in the end.
        tracker: For the way back; it forgets what it followed before.
        frames: Most frames that are held back, and with it the longest way, at least 1.
        reference: What is followed; its masks for later frames are in the results.

    Yields:
        The frames with their results, at once or up to so many frames later.
    """
    held: Held = deque()
    missed: set[int] = set()  # lost in one of the held frames, and not tracked since
    given: dict[int, int] = {}  # object id -> index of the latest frame that its mask is given for
    last_given = max(reference.later, default=-1)
    with closing(results):
        try:
            for place, (frame, result) in enumerate(results):
                held.append((frame, result))
                if place == 0 and reference.image_rgb is None:
                    given = dict.fromkeys(result.states, frame.index)
                if frame.index in reference.later:
                    ids = object_ids(reference.later[frame.index])
                    _put_right(held, {i: given.get(i, -1) for i in ids}, tracker)
                    given.update(dict.fromkeys(ids, frame.index))
                    missed -= set(ids)
                missed |= _in_state(result, ObjectState.LOST)
                missed &= set(result.states)
                if returned := missed & _in_state(result, ObjectState.TRACKED):
                    _fill(held, returned, tracker)
                    missed -= returned
                waiting = missed or frame.index < last_given
                while held and (len(held) > frames or not waiting):
                    yield held.popleft()
        except Exception:  # what came before is there all the same
            yield from held
            raise
    yield from held


def _fill(held: Held, sought: set[int], tracker: Tracker) -> None:
    """Search objects of the latest of the frames in those before it."""
    frame, result = held[-1]
    # All objects of the frame go along, so that none is taken for another one.
    tracker.start(frame, result.labels)
    entered: set[int] = set()  # those whose gap has been reached
    for place in range(len(held) - 2, -1, -1):
        frame, result = held[place]
        lost = _in_state(result, ObjectState.LOST)
        entered |= sought & lost
        sought = sought - (entered - lost)
        if not sought:
            return
        with telling_frame(frame.index, "looking back at"):
            back = tracker.step(frame)
        sought = sought & _in_state(back, ObjectState.TRACKED)
        held[place] = frame, _taken_over(result, back, sought & lost)


def _put_right(held: Held, ends: dict[int, int], tracker: Tracker) -> None:
    """Follow objects back from the latest of the frames, for which their masks are given.

    Args:
        held: The frames.
        ends: Object id -> index of the frame that its mask was given for before.
        tracker: For the way back.
    """
    frame, result = held[-1]
    tracker.start(frame, result.labels)
    backs: list[TrackResult] = []  # of the frames before, from the latest back
    agreement: dict[int, list[float]] = {i: [] for i in ends}
    going = set(ends)
    for frame, result in list(held)[-2::-1]:
        going = {i for i in going if ends[i] < frame.index}
        if not going:
            break
        with telling_frame(frame.index, "looking back at"):
            back = tracker.step(frame)
        going &= _in_state(back, ObjectState.TRACKED)
        for i in going:
            agreement[i].append(region_similarity(back.labels == i, result.labels == i))
        going = {i for i in going if agreement[i][-1] < _AGREED}
        backs.append(back)
    ways = {i: _way(alike) for i, alike in agreement.items()}
    for steps, back in enumerate(backs):
        place = len(held) - 2 - steps
        frame, result = held[place]
        held[place] = frame, _taken_over(result, back, {i for i in ways if steps < ways[i]})


def _way(agreement: list[float]) -> int:
    """How many steps back an object is taken over, by how its masks agree in each."""
    if not agreement or max(agreement) < _ALIKE:
        return len(agreement)
    return int(np.argmax(agreement))


def _taken_over(result: TrackResult, back: TrackResult, ids: set[int]) -> TrackResult:
    """A result with some objects as on the way back; the others keep their pixels."""
    others = np.where(np.isin(result.labels, list(ids)), 0, result.labels)
    free = (others == 0) & np.isin(back.labels, list(ids))
    return replace(
        result,
        labels=np.where(free, back.labels, others).astype(np.uint8),
        scores=dict(sorted({**result.scores, **{i: back.scores[i] for i in ids}}.items())),
        states=dict(sorted({**result.states, **{i: back.states[i] for i in ids}}.items())),
    )


def _in_state(result: TrackResult, state: ObjectState) -> set[int]:
    """Ids of the objects that are in a state."""
    return {i for i, its_state in result.states.items() if its_state is state}
