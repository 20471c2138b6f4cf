"""What was lost is searched backwards from where it is tracked again, for those who can wait.

A tracker that knows the past alone finds a lost object late: it takes a good view of it to be sure.
From that view it is easily followed back to the moment at which it came into sight. So results are
held back while an object is lost, up to a fixed number of frames, and when it is tracked again a
second tracker starts there and goes through the held frames in reverse order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from persam_video.errors import telling_frame
from persam_video.types import Frame, ObjectState, TrackResult

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker


def looking_back(
    results: Generator[tuple[Frame, TrackResult], None, None], tracker: Tracker, frames: int
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """Fill the gaps in the results of a clip.

    Nothing that was found is changed. In a gap an object gets free pixels only, and only as far
    back as the second tracker is sure of it.

    Args:
        results: Frames in order with their results; closed in the end.
        tracker: For the way back; it forgets what it followed before.
        frames: Most frames that are held back, and with it the longest gap, at least 1.

    Yields:
        The frames with their results, at once or up to so many frames later.
    """
    held: deque[tuple[Frame, TrackResult]] = deque()
    missed: set[int] = set()  # lost in one of the held frames, and not tracked since
    with closing(results):
        for frame, result in results:
            held.append((frame, result))
            missed |= _in_state(result, ObjectState.LOST)
            missed &= set(result.states)
            if returned := missed & _in_state(result, ObjectState.TRACKED):
                _fill(held, returned, tracker)
                missed -= returned
            while held and (len(held) > frames or not missed):
                yield held.popleft()
    yield from held


def _fill(held: deque[tuple[Frame, TrackResult]], sought: set[int], tracker: Tracker) -> None:
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
        found = sought & lost
        free = (result.labels == 0) & np.isin(back.labels, list(found))
        held[place] = (
            frame,
            replace(
                result,
                labels=np.where(free, back.labels, result.labels),
                scores={**result.scores, **{i: back.scores[i] for i in found}},
                states={**result.states, **{i: back.states[i] for i in found}},
            ),
        )


def _in_state(result: TrackResult, state: ObjectState) -> set[int]:
    """Ids of the objects that are in a state."""
    return {i for i, its_state in result.states.items() if its_state is state}
