"""Gaps in which an object was lost are filled from where it is tracked again."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace

import numpy as np
import pytest
from fake_tracker import FakeTracker

from persam_video.errors import SourceError
from persam_video.pipeline import track
from persam_video.tracking.look_back import looking_back
from persam_video.types import Frame, ObjectState, Reference, TrackResult, UInt8Array

STATES = {"t": ObjectState.TRACKED, "u": ObjectState.UNCERTAIN, "-": ObjectState.LOST}


def frame_at(index: int) -> Frame:
    return Frame(index, index / 25, np.zeros((4, 8, 3), np.uint8))


def labels_of(index: int, ids: set[int]) -> UInt8Array:
    """One pixel for each object, in a row of its own; the column tells the frame."""
    labels = np.zeros((4, 8), np.uint8)
    for i in ids:
        labels[i, index % 8] = i
    return labels


REFERENCE = Reference(labels=labels_of(0, {1}))


def results_of(**objects: str) -> Generator[tuple[Frame, TrackResult], None, None]:
    """Of a clip in which the objects have these states, e.g. ``o1="tt--ut"``."""
    for index in range(len(objects["o1"])):
        states = {int(name[1:]): STATES[told[index]] for name, told in objects.items()}
        seen = {i for i, state in states.items() if state is not ObjectState.LOST}
        scores = dict.fromkeys(states, 0.5)
        result = TrackResult(index, index / 25, labels_of(index, seen), scores, states)
        yield frame_at(index), result


class BackTracker:
    """Follows what it is started with; ``unsure`` are the frames in which it is not sure.

    Attributes:
        walked: Frames that it was started with and stepped to.
    """

    def __init__(self, unsure: set[int] | None = None) -> None:
        self.walked: list[int] = []
        self.unsure = unsure or set()

    def start(self, frame: Frame, labels: UInt8Array) -> None:
        self.walked.append(frame.index)
        self.ids = set(np.unique(labels).tolist()) - {0}

    def step(self, frame: Frame) -> SimpleNamespace:
        self.walked.append(frame.index)
        state = ObjectState.UNCERTAIN if frame.index in self.unsure else ObjectState.TRACKED
        return SimpleNamespace(
            labels=labels_of(frame.index, self.ids),
            scores=dict.fromkeys(self.ids, 0.9),
            states=dict.fromkeys(self.ids, state),
        )


def told(results: list[tuple[Frame, TrackResult]], object_id: int) -> str:
    """The states of an object; its masks and scores must agree with them."""
    letters = {state: letter for letter, state in STATES.items()}
    for frame, result in results:
        seen = result.states[object_id] is not ObjectState.LOST
        assert (result.labels == object_id).any() == seen
        assert result.frame_index == frame.index
    return "".join(letters[result.states[object_id]] for _, result in results)


@pytest.mark.parametrize(
    ("before", "unsure", "after", "walked"),
    [
        ("tttttt", set(), "tttttt", []),
        ("tt--tt", set(), "tttttt", [4, 3, 2]),
        ("tt--uutt", set(), "ttttuutt", [6, 5, 4, 3, 2]),  # starts where it is sure
        ("tt---t", {2}, "tt-ttt", [5, 4, 3, 2]),  # and goes as far as it is
        ("t--u-t", set(), "t--utt", [5, 4]),  # where it had been seen it ends
        ("--t-t", set(), "ttttt", [2, 1, 0, 4, 3]),  # of a photo: not there at first
        ("tt----", set(), "tt----", []),
        ("t-----t", set(), "t-ttttt", [6, 5, 4, 3, 2]),  # four frames at most
    ],
)
def test_gaps_are_filled_backwards(
    before: str, unsure: set[int], after: str, walked: list[int]
) -> None:
    back = BackTracker(unsure)
    results = list(looking_back(results_of(o1=before), back, 4, REFERENCE))  # type: ignore[arg-type]
    assert [frame.index for frame, _ in results] == list(range(len(before)))
    assert told(results, 1) == after
    assert back.walked == walked
    filled = [result.scores[1] for _, result in results]
    assert [score == 0.9 for score in filled] == [
        a != b for a, b in zip(before, after, strict=True)
    ]


def test_others_keep_their_pixels_and_their_gaps() -> None:
    def taken() -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame, result in results_of(o1="t--t", o2="tttt", o3="t---"):
            if frame.index == 2:
                result.labels[1, 2] = 2  # where the way back will find object 1
                result.labels[1, 3] = 0
            yield frame, result

    results = list(looking_back(taken(), BackTracker(), 9, REFERENCE))  # type: ignore[arg-type]
    assert [result.states[1].value for _, result in results] == ["tracked"] * 4
    assert results[2][1].labels[1, 2] == 2
    assert told(results, 3) == "t---"


def test_results_are_held_back_only_while_something_is_lost() -> None:
    read: list[int] = []

    def counted() -> Generator[tuple[Frame, TrackResult], None, None]:
        for pair in results_of(o1="tt--tt-----"):
            read.append(pair[0].index)
            yield pair

    ahead = [
        read[-1] - frame.index
        for frame, _ in looking_back(counted(), BackTracker(), 3, REFERENCE)  # type: ignore[arg-type]
    ]
    assert ahead == [0, 0, 2, 1, 0, 0, 3, 3, 2, 1, 0]


def test_an_error_on_the_way_back_tells_the_frame() -> None:
    back = BackTracker()

    def failing(frame: Frame) -> SimpleNamespace:
        raise MemoryError

    back.step = failing  # type: ignore[method-assign]
    with pytest.raises(MemoryError) as caught:
        list(looking_back(results_of(o1="tt--tt"), back, 4, REFERENCE))  # type: ignore[arg-type]
    assert caught.value.__notes__ == ["while looking back at frame 3 of the source"]


def test_closing_early_closes_the_results() -> None:
    results = results_of(o1="ttt")
    pairs = looking_back(results, BackTracker(), 3, REFERENCE)  # type: ignore[arg-type]
    next(pairs)
    pairs.close()
    assert results.gi_frame is None


def test_track_looks_back_when_it_is_asked_to() -> None:
    tracker = FakeTracker()
    step, back = tracker.step, BackTracker()

    def losing(frame: Frame, embedding: SimpleNamespace) -> TrackResult:
        result = step(frame, embedding)
        if frame.index in (2, 3):
            lost = dict.fromkeys(result.states, ObjectState.LOST)
            nothing = np.zeros_like(result.labels)
            return TrackResult(frame.index, frame.time_s, nothing, result.scores, lost)
        return result

    tracker.step, tracker.twin = losing, lambda: back  # type: ignore[method-assign, attr-defined]
    reference = Reference(labels=labels_of(0, {1}))
    frames = [frame_at(index) for index in range(6)]
    assert told(list(track(frames, tracker, reference)), 1) == "tt--tt"  # type: ignore[arg-type]
    tracker.look_back = 8
    assert told(list(track(frames, tracker, reference)), 1) == "tttttt"  # type: ignore[arg-type]
    assert back.walked == [4, 3, 2]


def wrong_results(
    first: int, end: int, length: int, **objects: str
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """``results_of`` in which object 1 is somewhere else in some frames."""
    for frame, result in results_of(o1="t" * length, **objects):
        if first <= frame.index < end:
            result.labels[result.labels == 1] = 0
            result.labels[0, 0] = 1
        yield frame, result


def is_right(results: list[tuple[Frame, TrackResult]], object_id: int) -> list[bool]:
    return [
        bool(np.array_equal(result.labels == object_id, labels_of(frame.index, {object_id}) > 0))
        for frame, result in results
    ]


@pytest.mark.parametrize(
    ("held", "given", "unsure", "right", "walked"),
    [
        # Wrong in frames 3 to 5; the mask of frame 6 is given. Frame 2 agrees.
        (9, [6], set(), "rrrrrrrr", [6, 5, 4, 3, 2]),
        (9, [4, 6], set(), "rrrrrrrr", [4, 3, 2, 6, 5]),  # not past the one given before
        (2, [6], set(), "rrrwrrrr", [6, 5, 4]),  # not farther than is held
        (9, [6], {4}, "rrrwwrrr", [6, 5, 4]),  # nor than it is sure of
    ],
)
def test_given_mask_puts_right_what_came_before(
    held: int, given: list[int], unsure: set[int], right: str, walked: list[int]
) -> None:
    back = BackTracker(unsure)
    reference = Reference(labels_of(0, {1}), later={i: labels_of(i, {1}) for i in given})

    def corrected() -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame, result in wrong_results(3, 6, 8):
            if frame.index in given:
                result.labels[...] = labels_of(frame.index, {1})
            yield frame, result

    results = list(looking_back(corrected(), back, held, reference))  # type: ignore[arg-type]
    assert [frame.index for frame, _ in results] == list(range(8))
    assert is_right(results, 1) == [letter == "r" for letter in right]
    assert back.walked == walked
    assert [result.scores[1] == 0.9 for _, result in results].count(True) == (
        is_right(results, 1)[3:6].count(True) - len(set(given) & {3, 4, 5})
    )


def test_where_both_ways_never_agree_the_given_mask_is_believed_up_to_the_reference() -> None:
    reference = Reference(labels_of(0, {1}), later={6: labels_of(6, {1})})
    back = BackTracker()
    results = list(looking_back(wrong_results(0, 6, 7), back, 9, reference))  # type: ignore[arg-type]
    assert is_right(results, 1) == [False, *[True] * 6]  # frame 0 is the reference itself
    photo = Reference(
        labels_of(0, {1}), image_rgb=np.zeros((4, 8, 3), np.uint8), later=reference.later
    )
    results = list(looking_back(wrong_results(0, 6, 7), back, 9, photo))  # type: ignore[arg-type]
    assert all(is_right(results, 1))


def test_the_way_back_of_an_object_ends_at_its_own_mask_and_not_at_anothers() -> None:
    """Object 2 is given in frame 4, object 1, which is wrong in frames 2 to 5, in frame 6."""
    later = {4: labels_of(4, {2}), 6: labels_of(6, {1})}
    reference = Reference(labels_of(0, {1, 2}), later=later)
    back = BackTracker()
    found = wrong_results(2, 6, 8, o2="tttttttt")
    results = list(looking_back(found, back, 9, reference))  # type: ignore[arg-type]
    assert all(is_right(results, 1)) and all(is_right(results, 2))
    assert back.walked == [4, 3, 6, 5, 4, 3, 2, 1]


def test_object_that_is_added_is_followed_back_and_others_stay() -> None:
    """Object 3 is given in frame 4, object 2 is lost before and after, object 1 never given."""

    def grown() -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame, result in results_of(o1="tttttt", o2="tt----"):
            if frame.index >= 4:
                result.labels[3, frame.index % 8] = 3
                scores = {**result.scores, 3: 1.0}
                states = {**result.states, 3: ObjectState.TRACKED}
                result = TrackResult(frame.index, frame.time_s, result.labels, scores, states)
            yield frame, result

    reference = Reference(labels_of(0, {1, 2}), later={4: labels_of(4, {3})})
    back = BackTracker({1})
    results = list(looking_back(grown(), back, 9, reference))  # type: ignore[arg-type]
    assert told(results, 1) == "tttttt" and told(results, 2) == "tt----"
    assert [3 in result.states for _, result in results] == [False, False, *[True] * 4]
    assert is_right(results, 3) == [False, False, *[True] * 4]
    assert back.walked == [4, 3, 2, 1]


def test_results_are_held_back_for_a_mask_that_is_to_come_and_come_out_before_an_error() -> None:
    reference = Reference(labels_of(0, {1}), later={9: labels_of(9, {1})})

    def breaking() -> Generator[tuple[Frame, TrackResult], None, None]:
        yield from results_of(o1="ttttt")
        raise SourceError("torn")

    seen: list[int] = []
    with pytest.raises(SourceError, match="torn"):
        for frame, _ in looking_back(breaking(), BackTracker(), 3, reference):  # type: ignore[arg-type]
            seen.append(frame.index)
    assert seen == [0, 1, 2, 3, 4]
