"""Frames between keyframes: which are tracked, and what the others get along the optical flow."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_tracker import FakeTracker

from persam_video.errors import PersamError, SourceError
from persam_video.evaluation.metrics import region_similarity
from persam_video.pipeline import run, track
from persam_video.sinks import PalettePngSink
from persam_video.tracking.in_between import in_between
from persam_video.types import BoolArray, Frame, ObjectState, Reference, TrackResult, UInt8Array

SIZE_HW = (90, 160)
BOTH = {1: ObjectState.TRACKED, 2: ObjectState.TRACKED}
GONE = {1: ObjectState.TRACKED, 2: ObjectState.LOST}


def texture(seed: int, size_hw: tuple[int, int]) -> UInt8Array:
    noise = np.random.default_rng(seed).uniform(0, 255, (*size_hw, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.asarray(cv2.normalize(blurred, None, 20, 235, cv2.NORM_MINMAX), np.uint8)


def scene(index: int, scale: int = 1) -> tuple[UInt8Array, UInt8Array]:
    """Two textured squares that move past each other, the second one in front."""
    height, width = SIZE_HW
    image, labels = texture(0, SIZE_HW).copy(), np.zeros(SIZE_HW, np.uint8)
    for object_id, left, top in ((1, 10 + 5 * index, 20), (2, 110 - 6 * index, 40)):
        place = slice(top, top + 36), slice(max(0, left), min(width, left + 36))
        image[place] = texture(object_id, (36, 36))[:, : place[1].stop - place[1].start]
        labels[place] = object_id
    size = width * scale, height * scale
    return (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8),
        np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8),
    )


def frames_of(count: int, scale: int = 1) -> list[Frame]:
    return [Frame(i, i / 25, scene(i, scale)[0]) for i in range(count)]


def as_is(labels: UInt8Array, image_rgb: UInt8Array) -> UInt8Array:
    """Outlines are left where they are."""
    assert labels.shape == image_rgb.shape[:2]
    return labels


def truth_tracker(
    scale: int = 1, states: dict[int, dict[int, ObjectState]] | None = None
) -> tuple[list[int], object]:
    """The indices of what was tracked, and a follower that knows the truth."""
    tracked: list[int] = []

    def follow(
        frames: Generator[Frame, None, None],
    ) -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame in frames:
            tracked.append(frame.index)
            its = (states or {}).get(frame.index, BOTH)
            labels = scene(frame.index, scale)[1]
            for i, state in its.items():
                if state is ObjectState.LOST:
                    labels[labels == i] = 0
            scores = {i: 0.0 if s is ObjectState.LOST else 1.0 for i, s in its.items()}
            yield frame, TrackResult(frame.index, frame.time_s, labels, scores, its)

    return tracked, follow


@pytest.mark.parametrize(
    ("count", "interval", "always", "keys"),
    [
        (7, 2, (), [0, 2, 4, 6]),
        (6, 2, (), [0, 2, 4, 5]),  # the last one is tracked in any case
        (8, 3, (), [0, 3, 6, 7]),
        (7, 2, (3,), [0, 2, 3, 5, 6]),
        (1, 4, (), [0]),
        (3, 1, (), [0, 1, 2]),
        (0, 2, (), []),
    ],
)
def test_keyframes_are_tracked_and_all_frames_come_out_in_order(
    count: int, interval: int, always: tuple[int, ...], keys: list[int]
) -> None:
    tracked, follow = truth_tracker()
    results = list(in_between(frames_of(count), interval, always, follow, as_is))  # type: ignore[arg-type]
    assert tracked == keys
    assert [frame.index for frame, _ in results] == list(range(count))
    for frame, result in results:
        assert (result.frame_index, result.time_s) == (frame.index, frame.time_s)
        assert result.labels.shape == frame.size_hw and result.labels.dtype == np.uint8


@pytest.mark.parametrize(("interval", "scale"), [(2, 1), (3, 1), (2, 5)])
def test_masks_between_follow_what_moves_also_where_it_is_covered(
    interval: int, scale: int
) -> None:
    """The squares overlap in frames 5 to 12; at 5 times the size the flow's picture is smaller."""
    tracked, follow = truth_tracker(scale)
    truths = [scene(i, scale)[1] for i in range(14)]
    between, copied = [], []
    for frame, result in in_between(frames_of(14, scale), interval, (), follow, as_is):  # type: ignore[arg-type]
        assert result.states == BOTH and result.scores == {1: 1.0, 2: 1.0}
        key = max(k for k in tracked if k <= frame.index)
        for i in (1, 2) if frame.index not in tracked else ():
            truth = truths[frame.index] == i
            between.append(region_similarity(result.labels == i, truth))
            copied.append(region_similarity(truths[key] == i, truth))
    assert min(between) > 0.65 and np.mean(between) > 0.85
    assert np.mean(copied) < 0.75


def test_outlines_of_frames_between_are_drawn_along_the_edges_of_their_own_pictures() -> None:
    _, follow = truth_tracker()
    frames, drawn = frames_of(5), []

    def only_the_first(labels: UInt8Array, image_rgb: UInt8Array) -> UInt8Array:
        drawn.append(next(f.index for f in frames if f.image_rgb is image_rgb))
        return np.where(labels == 1, labels, 0).astype(np.uint8)

    results = [r for _, r in in_between(frames, 2, (), follow, only_the_first)]  # type: ignore[arg-type]
    assert drawn == [1, 3]  # those that are tracked have been drawn already
    for result in results:
        between = result.frame_index in drawn
        assert (result.labels == 2).any() == (not between)
        assert (result.states[2] is ObjectState.LOST) == between


def test_an_error_between_comes_after_the_frames_before_it() -> None:
    _, follow = truth_tracker()
    frames, seen = frames_of(5), []

    def failing(labels: UInt8Array, image_rgb: UInt8Array) -> UInt8Array:
        if image_rgb is frames[2].image_rgb:
            raise PersamError("broken")
        return labels

    with pytest.raises(PersamError, match="broken") as caught:
        for frame, _ in in_between(frames, 4, (), follow, failing):  # type: ignore[arg-type]
            seen.append(frame.index)
    assert seen == [0, 1] and caught.value.frame_index == 2


def test_object_that_is_lost_on_one_side_is_in_doubt_or_lost_between() -> None:
    _, follow = truth_tracker(states={2: GONE, 4: GONE})
    results = dict(
        (frame.index, result)
        for frame, result in in_between(frames_of(7), 2, (), follow, as_is)  # type: ignore[arg-type]
    )
    assert [results[i].states[1] for i in range(7)] == [ObjectState.TRACKED] * 7
    for i, score in ((1, 0.5), (3, 0.0), (5, 0.5)):
        there = bool((results[i].labels == 2).any())
        state = ObjectState.UNCERTAIN if there else ObjectState.LOST
        assert results[i].states[2] is state
        assert results[i].scores[2] == (score if there else 0.0)
    assert not (results[3].labels == 2).any()


def test_object_that_is_added_or_removed_at_a_keyframe_is_in_no_frame_before_or_after() -> None:
    only_first = {1: ObjectState.TRACKED}

    def follow(frames: Iterable[Frame]) -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame in frames:
            ids = BOTH if frame.index == 2 else only_first
            labels = np.where(np.isin(scene(frame.index)[1], list(ids)), scene(frame.index)[1], 0)
            scores = dict.fromkeys(ids, 1.0)
            yield frame, TrackResult(frame.index, 0.0, labels.astype(np.uint8), scores, ids)

    results = [r for _, r in in_between(frames_of(5), 2, (), follow, as_is)]  # type: ignore[arg-type]
    assert [tuple(r.states) for r in results] == [(1,), (1,), (1, 2), (1,), (1,)]
    assert all(set(np.unique(r.labels)) <= {0, *r.states} for r in results)


@pytest.mark.parametrize(
    "size_hw",
    # OpenCV's flow gave NaN for 16 x 432, and ended the process for 24 x 432 and 31 x 96.
    [(1, 1), (3, 2), (15, 300), (16, 16), (16, 432), (24, 432), (31, 96), (32, 432), (120, 1920)],
)
def test_tiny_and_flat_pictures_get_masks_too(size_hw: tuple[int, int]) -> None:
    def follow(frames: Iterable[Frame]) -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame in frames:
            labels = np.zeros(frame.size_hw, np.uint8)
            labels[0, 0] = 1
            yield frame, TrackResult(frame.index, 0.0, labels, {1: 1.0}, {1: ObjectState.TRACKED})

    frames = [Frame(i, 0.0, np.full((*size_hw, 3), 90, np.uint8)) for i in range(3)]
    results = [r for _, r in in_between(frames, 2, (), follow, as_is)]  # type: ignore[arg-type]
    assert [int(r.labels[0, 0]) for r in results] == [1, 1, 1]
    assert [int((r.labels > 0).sum()) for r in results] == [1, 1, 1]


def test_frames_of_another_size_are_keyframes() -> None:
    sizes = [(40, 60)] * 4 + [(60, 40)] * 3
    tracked = []

    def follow(frames: Iterable[Frame]) -> Generator[tuple[Frame, TrackResult], None, None]:
        for frame in frames:
            tracked.append(frame.index)
            labels = np.ones(frame.size_hw, np.uint8)
            yield frame, TrackResult(frame.index, 0.0, labels, {1: 1.0}, {1: ObjectState.TRACKED})

    frames = [Frame(i, 0.0, texture(0, size)) for i, size in enumerate(sizes)]
    results = list(in_between(frames, 3, (), follow, as_is))  # type: ignore[arg-type]
    assert tracked == [0, 3, 4, 6]
    assert [(f.index, r.labels.shape) for f, r in results] == list(enumerate(sizes))
    tracked.clear()
    frames = [Frame(i, 0.0, texture(0, (40 + 20 * (i > 1), 60))) for i in range(4)]
    list(in_between(frames, 3, (), follow, as_is))  # type: ignore[arg-type]
    assert tracked == [0, 1, 2, 3]


def labels_at_start() -> UInt8Array:
    labels = np.zeros(SIZE_HW, np.uint8)
    labels[20:50, 30:70] = 1
    return labels


def breaking(count: int) -> Iterator[Frame]:
    yield from frames_of(count)
    raise SourceError("torn")


def test_track_steps_to_keyframes_only_and_writes_every_frame(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    tracker = FakeTracker()
    tracker.keyframe_interval = 2
    still = [Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(6)]
    summary = run(still, tracker, Reference(labels_at_start()), [PalettePngSink(folder)])  # type: ignore[arg-type]
    assert [index for _, index in tracker.calls] == [0, 2, 4, 5]
    assert tracker.encoder.calls == 4
    # A tracked frame's outlines are the tracker's own work, those between are drawn by it as well.
    assert all(a is still[i].image_rgb for i, a in zip((1, 3), tracker.drawn, strict=True))
    assert summary.frames == len(list(folder.glob("*.png"))) == 6


def test_track_later_mask_makes_its_frame_a_keyframe() -> None:
    later: BoolArray = np.roll(labels_at_start(), 20, axis=1) > 0
    tracker = FakeTracker()
    tracker.keyframe_interval = 3
    reference = Reference(labels_at_start(), later={4: later.astype(np.uint8)})
    still = [Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(8)]
    results = [result for _, result in track(still, tracker, reference)]  # type: ignore[arg-type]
    assert [name for name, _ in tracker.calls] == ["start", "step", "step", "correct", "step"]
    assert np.array_equal(results[4].labels == 1, later)
    assert region_similarity(results[5].labels == 1, later) > 0.95


@pytest.mark.parametrize("count", [4, 5])
def test_track_source_that_fails_gives_what_was_read_before(count: int) -> None:
    tracker = FakeTracker()
    tracker.keyframe_interval = 2
    seen = []
    with pytest.raises(SourceError, match="torn") as caught:
        for frame, _ in track(breaking(count), tracker, Reference(labels_at_start())):  # type: ignore[arg-type]
            seen.append(frame.index)
    assert seen == list(range(count))
    assert caught.value.frame_index == count


def test_track_closed_between_keyframes_ends_its_threads() -> None:
    tracker = FakeTracker()
    tracker.keyframe_interval = 2
    still = (Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(1000))
    results = track(still, tracker, Reference(labels_at_start()))  # type: ignore[arg-type]
    assert [next(results)[0].index for _ in range(2)] == [0, 1]
    results.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith("persam-")] == []


@pytest.mark.parametrize(("call", "look_back"), [(run, 0), (run, 4), (track, 0)])
def test_run_tracks_keyframes_on_a_thread_of_their_own(call: Any, look_back: int) -> None:
    threads = set()
    tracker = FakeTracker(lambda frame: threads.add(threading.current_thread().name))
    tracker.keyframe_interval, tracker.look_back = 2, look_back
    tracker.twin = FakeTracker  # type: ignore[attr-defined]
    still = [Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(6)]
    results = call(still, tracker, Reference(labels_at_start()))
    assert (results.frames if call is run else len(list(results))) == 6
    assert threads == {"persam-tracker" if call is run else "MainThread"}
    assert [t.name for t in threading.enumerate() if t.name.startswith("persam-")] == []


def test_run_error_of_a_keyframe_comes_after_the_frames_before_it(tmp_path: Path) -> None:
    def failing(frame: Frame) -> None:
        if frame.index == 4:
            raise PersamError("broken")

    tracker, seen = FakeTracker(failing), []
    tracker.keyframe_interval = 2
    still = [Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(9)]
    with pytest.raises(PersamError, match="broken") as caught:
        run(
            still,
            tracker,  # type: ignore[arg-type]
            Reference(labels_at_start()),
            [PalettePngSink(tmp_path / "masks")],
            lambda result: seen.append(result.frame_index),
        )
    assert caught.value.frame_index == 4
    assert seen == [0, 1, 2] and len(list((tmp_path / "masks").glob("*.png"))) == 3
    assert [t.name for t in threading.enumerate() if t.name.startswith("persam-")] == []


def test_track_keyframes_later_masks_and_the_way_back_together() -> None:
    """A mask for frame 6 puts keyframe 4 right, and through it frames 3 and 5."""
    right = labels_at_start()
    wrong = np.roll(right, 30, axis=1)
    tracker = FakeTracker()
    tracker.keyframe_interval, tracker.look_back = 2, 8
    step, back = tracker.step, FakeTracker()

    def straying(frame: Frame, embedding: object = None) -> TrackResult:
        result = step(frame, embedding)  # type: ignore[arg-type]
        return replace(result, labels=wrong) if frame.index == 4 else result

    tracker.step, tracker.twin = straying, lambda: back  # type: ignore[method-assign, attr-defined]
    still = [Frame(i, i / 25, texture(0, SIZE_HW)) for i in range(9)]
    reference = Reference(right, later={6: right})
    results = [result for _, result in track(still, tracker, reference)]  # type: ignore[arg-type]
    assert [result.frame_index for result in results] == list(range(9))
    assert [index for _, index in back.calls] == [6, 4, 2]
    for result in results:
        assert region_similarity(result.labels == 1, right == 1) > 0.95
