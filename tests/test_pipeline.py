"""The stages that overlap: order, errors, early ends, and threads that are gone afterwards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Self

import numpy as np
import pytest
import torch
from fake_tracker import FakeTracker

from persam_video import pipeline
from persam_video.errors import PersamError, PromptError, SinkError, SourceError
from persam_video.pipeline import prefetched, reference_labels, run, track
from persam_video.types import (
    VOID,
    Box,
    Frame,
    ObjectState,
    Prompt,
    Reference,
    TrackResult,
    UInt8Array,
)
from persam_video.writing import WRITE_BEHIND, write_results

SIZE_HW = (12, 16)
WAIT_S = 10.0  # far more than any test needs; a hang fails instead of blocking the suite


def make_frame(index: int, size_hw: tuple[int, int] = SIZE_HW) -> Frame:
    return Frame(index, index / 10, np.full((*size_hw, 3), index % 256, np.uint8))


def frames_until(end: int, error: BaseException | None = None) -> Iterator[Frame]:
    yield from map(make_frame, range(end))
    if error is not None:
        raise error


def make_labels(size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    labels = np.zeros(size_hw, np.uint8)
    labels[2:6, 2:6] = 1
    labels[7:10, 8:12] = 5
    return labels


def point(x: float, y: float) -> Prompt:
    return Prompt(np.array([[x, y]], np.float32), np.array([1], np.int32))


REFERENCE = Reference(make_labels())


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("persam-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test does, the threads of the pipeline have been joined at its end."""
    yield
    assert our_threads() == []


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class ListSink:
    """Keeps what it gets; can be slow, blocked, or fail."""

    def __init__(
        self,
        *,
        fail_at: int | None = None,
        delay_s: float = 0.0,
        gate: threading.Event | None = None,
        fail_on_close: bool = False,
    ) -> None:
        self.indices: list[int] = []
        self.closed = 0
        self.threads: set[str] = set()
        self._fail_at, self._delay_s, self._gate = fail_at, delay_s, gate
        self._fail_on_close = fail_on_close

    def write(self, frame: Frame, result: TrackResult) -> None:
        assert frame.index == result.frame_index
        self.threads.add(threading.current_thread().name)
        if self._gate is not None:
            assert self._gate.wait(WAIT_S)
        time.sleep(self._delay_s)
        if frame.index == self._fail_at:
            raise SinkError("disk full", frame_index=frame.index)
        self.indices.append(frame.index)

    def close(self) -> None:
        self.closed += 1
        if self._fail_on_close:
            raise SinkError("disk full at the end")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CountingSource:
    """Endless frames; tells how many were asked for, and on which thread."""

    def __init__(self) -> None:
        self.read = 0
        self.thread = ""

    def __iter__(self) -> Iterator[Frame]:
        while True:
            self.thread = threading.current_thread().name
            self.read += 1
            yield make_frame(self.read - 1)


# --- prefetched -------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_prefetched_any_depth_gives_all_frames_in_order(depth: int) -> None:
    assert [f.index for f in prefetched(frames_until(20), depth)] == list(range(20))


def test_prefetched_slow_consumer_reads_at_most_depth_ahead() -> None:
    source = CountingSource()
    frames = prefetched(source, 3)
    next(frames)
    wait_for(lambda: source.read == 4)  # one handed out, three waiting
    time.sleep(0.05)
    assert source.read == 4
    assert source.thread == "persam-reader"
    frames.close()


def test_prefetched_before_the_first_frame_is_asked_reads_nothing() -> None:
    source = CountingSource()
    prefetched(source, 3)
    assert source.read == 0
    assert our_threads() == []


def test_prefetched_depth_below_one_is_an_error_at_once() -> None:
    with pytest.raises(PersamError, match="at least 1 frame, got 0"):
        prefetched(frames_until(3), 0)


@pytest.mark.parametrize(("own_index", "told"), [(None, 4), (17, 17)])
def test_prefetched_failing_source_gives_frames_then_error_with_index(
    own_index: int | None, told: int
) -> None:
    frames = prefetched(frames_until(4, SourceError("damaged", frame_index=own_index)), 2)
    assert [next(frames).index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(SourceError, match="damaged") as caught:
        next(frames)
    assert caught.value.frame_index == told


def test_prefetched_source_failing_at_once_names_no_frame() -> None:
    with pytest.raises(SourceError, match="nothing here") as caught:
        next(prefetched(frames_until(0, SourceError("nothing here")), 2))
    assert caught.value.frame_index is None


def test_prefetched_unexpected_error_keeps_its_type_and_tells_the_frame() -> None:
    frames = prefetched(frames_until(2, ZeroDivisionError("a bug")), 2)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        list(frames)
    assert caught.value.__notes__ == ["while reading frame 2 of the source"]


def test_prefetched_closed_early_lets_the_source_be_read_on() -> None:
    source = frames_until(50)
    frames = prefetched(source, 4)
    next(frames)
    frames.close()
    assert our_threads() == []
    assert 1 < next(source).index <= 6


# --- track ------------------------------------------------------------------------------------


def test_track_mask_starts_on_the_first_frame_and_steps_on() -> None:
    tracker = FakeTracker()
    pairs = list(track(frames_until(4), tracker, REFERENCE))
    assert tracker.calls == [("start", 0), ("step", 1), ("step", 2), ("step", 3)]
    assert [frame.index for frame, _ in pairs] == [0, 1, 2, 3]
    assert all(np.array_equal(result.labels, make_labels()) for _, result in pairs)


def test_track_photo_is_learnt_once_and_every_frame_is_searched() -> None:
    tracker = FakeTracker()
    photo = Reference(make_labels((30, 20)), image_rgb=np.zeros((30, 20, 3), np.uint8))
    results = [result for _, result in track(frames_until(3), tracker, photo)]
    assert tracker.calls == [("photo", None), ("step", 0), ("step", 1), ("step", 2)]
    assert [result.object_ids for result in results] == [(1, 5)] * 3


def test_track_result_is_computed_only_when_asked_for() -> None:
    tracker = FakeTracker()
    pairs = track(frames_until(9), tracker, REFERENCE)
    next(pairs), next(pairs)
    assert tracker.calls == [("start", 0), ("step", 1)]
    pairs.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_track_encodes_on_threads_of_its_own_no_more_than_it_may_ahead(at_once: int) -> None:
    tracker, threads, given = FakeTracker(), set(), []
    tracker.encode_at_once = at_once
    encode, step = tracker.encode, tracker.step

    def encoding(image_rgb: UInt8Array, box_xyxy: Box) -> SimpleNamespace:
        threads.add(threading.current_thread().name)
        return encode(image_rgb, box_xyxy)

    def stepping(frame: Frame, embedding: SimpleNamespace | None = None) -> TrackResult:
        given.append(embedding)
        return step(frame, embedding)

    tracker.encode, tracker.step = encoding, stepping  # type: ignore[method-assign]
    pairs = track(frames_until(40), tracker, REFERENCE)
    next(pairs), next(pairs)
    most = 2 + at_once  # taken, and waiting
    wait_for(lambda: tracker.encoder.calls == most)
    time.sleep(0.05)
    assert tracker.encoder.calls == most
    assert threads <= {f"persam-encoder_{i}" for i in range(at_once)}
    assert len(given) == 1 and given[0] is not None
    pairs.close()
    assert our_threads() == []


def test_track_gives_free_memory_back_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = [0.0], []
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(pipeline, "give_back_memory", lambda: given.append(clock[0]))
    for _ in track(frames_until(10), FakeTracker(), REFERENCE):
        clock[0] += 7
    assert given == [21, 42, 63]


def test_track_waits_for_what_the_tracker_still_does() -> None:
    tracker, waited = FakeTracker(), list[str]()
    tracker.wait = lambda: waited.append("yes")  # type: ignore[method-assign]
    pairs = track(frames_until(10), tracker, REFERENCE)
    next(pairs), next(pairs)
    assert not waited
    pairs.close()
    assert waited


def test_track_encoders_and_tracker_share_the_threads_of_torch_and_give_them_back() -> None:
    tracker, shares, before = FakeTracker(), set(), torch.get_num_threads()
    tracker.encode_at_once = 2
    encode, step, tracking = tracker.encode, tracker.step, set()

    def stepping(frame: Frame, embedding: SimpleNamespace) -> TrackResult:
        tracking.add(torch.get_num_threads())
        return step(frame, embedding)

    def encoding(image_rgb: UInt8Array, box_xyxy: Box) -> SimpleNamespace:
        shares.add(torch.get_num_threads())
        return encode(image_rgb, box_xyxy)

    tracker.encode = encoding  # type: ignore[method-assign]
    tracker.step = stepping  # type: ignore[method-assign]
    torch.set_num_threads(6)
    try:
        between = set()
        for _ in track(frames_until(12), tracker, REFERENCE):
            between.add(torch.get_num_threads())
        assert (shares, tracking, between) == ({3}, {3}, {6})
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [torch.get_num_threads()] == [6]
    finally:
        torch.set_num_threads(before)


def test_track_failing_encoder_gives_the_frames_before_and_tells_which_it_was() -> None:
    tracker = FakeTracker()
    encode = tracker.encode

    def failing(image_rgb: UInt8Array, box_xyxy: Box) -> SimpleNamespace:
        if tracker.encoder.calls == 3:
            raise MemoryError
        return encode(image_rgb, box_xyxy)

    tracker.encode = failing  # type: ignore[method-assign]
    pairs = track(CountingSource(), tracker, REFERENCE)
    assert [next(pairs)[0].index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MemoryError) as caught:
        next(pairs)
    assert caught.value.__notes__ == ["while encoding frame 3 of the source"]
    assert our_threads() == []


@pytest.mark.parametrize("stage", ["encode", "step"])
def test_track_error_of_any_stage_has_the_index_of_its_frame(stage: str) -> None:
    tracker = FakeTracker()
    original = getattr(tracker, stage)

    def failing(given: Frame | UInt8Array, *rest: SimpleNamespace) -> object:
        index = given.index if isinstance(given, Frame) else tracker.encoder.calls
        if index == 2:
            raise PersamError("bad")
        return original(given, *rest)

    setattr(tracker, stage, failing)
    with pytest.raises(PersamError, match="bad") as caught:
        list(track(CountingSource(), tracker, REFERENCE))
    assert caught.value.frame_index == 2


def test_track_reference_that_does_not_fit_is_told_before_anything_is_encoded() -> None:
    tracker = FakeTracker()
    with pytest.raises(PromptError):
        list(track(CountingSource(), tracker, Reference(make_labels((12, 17)))))
    assert tracker.encoder.calls == 0


def test_track_failing_tracker_ends_the_reader() -> None:
    def fail(frame: Frame) -> None:
        raise PersamError("no more", frame_index=frame.index)

    with pytest.raises(PersamError, match="no more"):
        list(track(CountingSource(), FakeTracker(fail), REFERENCE))


def test_track_empty_source_gives_nothing() -> None:
    assert list(track(frames_until(0), FakeTracker(), REFERENCE)) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(make_labels((12, 17))), r"17 x 12 pixels .* the frame has 16 x 12"),
        (
            Reference(make_labels(), image_rgb=np.zeros((9, 8, 3), np.uint8)),
            r"16 x 12 pixels .* the reference picture has 8 x 9",
        ),
        (Reference(prompts={3: point(16, 2)}), r"object 3: point \(16, 2\) lies outside"),
        (Reference(make_labels(), {3: point(3, 3)}), r"no pixel is left for objects \[3\]"),
    ],
)
def test_track_reference_that_does_not_fit_is_a_prompt_error(
    reference: Reference, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        list(track(frames_until(3), FakeTracker(), reference))


def test_reference_labels_masks_and_prompts_merge_and_the_mask_wins() -> None:
    reference = Reference(make_labels(), {2: point(6, 3), 9: point(1, 10)})
    labels = reference_labels(FakeTracker(), reference, make_frame(0).image_rgb)
    expected = make_labels()
    expected[2:5, 6:8] = 2  # columns 5 to 7, but column 5 is object 1's
    expected[9:12, 0:3] = 9
    assert np.array_equal(labels, expected)


# --- run --------------------------------------------------------------------------------------


def test_run_all_sinks_get_every_frame_in_order_on_another_thread() -> None:
    sinks = [ListSink(), ListSink(delay_s=0.003)]
    seen: list[int] = []
    summary = run(
        frames_until(15), FakeTracker(), REFERENCE, sinks, lambda r: seen.append(r.frame_index)
    )
    assert [sink.indices for sink in sinks] == [list(range(15))] * 2
    assert [sink.closed for sink in sinks] == [1, 1]
    assert sinks[0].threads == {"persam-writer"}
    assert seen == list(range(15))
    assert summary.frames == 15
    assert summary.states == {1: {ObjectState.TRACKED: 15}, 5: {ObjectState.TRACKED: 15}}
    assert summary.seconds >= 15 * 0.003
    assert summary.fps == pytest.approx(15 / summary.seconds)
    assert summary.peak_memory is not None
    assert 2**20 < summary.peak_memory < 2**40


def test_run_blocked_sink_holds_the_tracker_up_after_the_queue_is_full() -> None:
    gate, tracker = threading.Event(), FakeTracker()
    sink = ListSink(gate=gate)
    thread = threading.Thread(target=run, args=(frames_until(40), tracker, REFERENCE, [sink]))
    thread.start()
    held = WRITE_BEHIND + 2  # one in the sink's hands, the queue, one that waits for room
    wait_for(lambda: len(tracker.calls) == held)
    time.sleep(0.05)
    assert len(tracker.calls) == held
    gate.set()
    thread.join(WAIT_S)
    assert sink.indices == list(range(40))


def test_run_failing_sink_stops_the_run_and_closes_all() -> None:
    sinks = [ListSink(), ListSink(fail_at=3), ListSink()]
    source = CountingSource()
    with pytest.raises(SinkError, match="disk full") as caught:
        run(source, FakeTracker(), REFERENCE, sinks)
    assert caught.value.frame_index == 3
    assert [sink.indices for sink in sinks] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert [sink.closed for sink in sinks] == [1, 1, 1]


def test_run_sink_failing_on_close_is_told_and_the_others_are_closed() -> None:
    sinks = [ListSink(fail_on_close=True), ListSink()]
    with pytest.raises(SinkError, match="at the end"):
        run(frames_until(3), FakeTracker(), REFERENCE, sinks)
    assert sinks[1].indices == [0, 1, 2]
    assert sinks[1].closed == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PersamError("lost"), MemoryError()])
def test_run_interrupted_writes_what_was_tracked_and_closes(error: BaseException) -> None:
    def fail(frame: Frame) -> None:
        if frame.index == 7:
            raise error

    sink = ListSink(delay_s=0.005)  # results are still waiting when it happens
    with pytest.raises(type(error)):
        run(CountingSource(), FakeTracker(fail), REFERENCE, [sink])
    assert sink.indices == list(range(7))
    assert sink.closed == 1


@pytest.mark.usefixtures("hears_ctrl_c")
def test_run_ctrl_c_while_sinks_are_closing_lets_them_finish() -> None:
    class SlowlyClosing(ListSink):
        whole = False

        def close(self) -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.1)
            self.whole = True

    sink = SlowlyClosing()
    with pytest.raises(KeyboardInterrupt):
        run(frames_until(3), FakeTracker(), REFERENCE, [sink])
    assert sink.whole
    assert sink.indices == [0, 1, 2]


def test_run_damaged_source_keeps_the_frames_before() -> None:
    sink = ListSink()
    with pytest.raises(SourceError, match="damaged"):
        run(frames_until(6, SourceError("damaged")), FakeTracker(), REFERENCE, [sink])
    assert sink.indices == list(range(6))
    assert sink.closed == 1


def test_write_results_list_of_pairs_is_written() -> None:
    sink = ListSink()
    summary = write_results(list(track(frames_until(5), FakeTracker(), REFERENCE)), [sink])
    assert summary.frames == len(sink.indices) == 5


# --- masks for later frames -------------------------------------------------------------------


def later_labels(**rectangles: int) -> UInt8Array:
    """Squares of 3 pixels with an id each, their left edge given, as in ``o5=8``."""
    labels = np.zeros(SIZE_HW, np.uint8)
    for name, left in rectangles.items():
        labels[2:5, left : left + 3] = int(name[1:])
    return labels


def test_track_later_mask_corrects_the_followed_and_adds_the_new() -> None:
    tracker = FakeTracker()
    given = later_labels(o5=1, o9=12)
    given[0] = VOID
    reference = Reference(make_labels(), later={2: given})
    results = [result for _, result in track(frames_until(4), tracker, reference)]
    assert [name for name, _ in tracker.calls] == [
        "start",
        "step",
        "step",
        "correct",
        "add",
        "step",
    ]
    assert [tuple(result.states) for result in results] == [(1, 5), (1, 5), (1, 5, 9), (1, 5, 9)]
    assert results[2].scores == {1: 1.0, 5: 1.0, 9: 1.0}
    for result in results[2:]:
        for object_id in (5, 9):
            assert np.array_equal(result.labels == object_id, given == object_id)
        covered = (given > 0) & (given != VOID)
        assert np.array_equal(result.labels == 1, (make_labels() == 1) & ~covered)


def test_track_later_mask_may_be_of_the_first_frame_where_a_photo_is_the_reference() -> None:
    photo = Reference(
        make_labels(), image_rgb=np.zeros((*SIZE_HW, 3), np.uint8), later={0: later_labels(o1=3)}
    )
    tracker = FakeTracker()
    first = next(iter(track(frames_until(2), tracker, photo)))[1]
    assert [name for name, _ in tracker.calls[:3]] == ["photo", "step", "correct"]
    assert np.array_equal(first.labels == 1, later_labels(o1=3) == 1)


@pytest.mark.parametrize("index", [0, 7])
def test_track_later_mask_whose_frame_is_not_read_is_told_after_what_was_found(index: int) -> None:
    reference = Reference(make_labels(), later={index: later_labels(o1=3)})
    sink = ListSink()
    with pytest.raises(PromptError, match=f"frame {index}: a mask is given") as caught:
        run(frames_until(3), FakeTracker(), reference, [sink])
    assert caught.value.frame_index == index
    assert sink.closed == 1
    assert sink.indices == ([0] if index == 0 else [0, 1, 2])


def test_track_later_mask_of_another_size_tells_its_frame() -> None:
    reference = Reference(make_labels(), later={1: make_labels((12, 17))})
    with pytest.raises(PromptError, match="another size") as caught:
        list(track(frames_until(3), FakeTracker(), reference))
    assert caught.value.frame_index == 1


def test_reference_later_mask_must_be_legal() -> None:
    with pytest.raises(PromptError, match="object"):
        Reference(make_labels(), later={3: np.zeros(SIZE_HW, np.uint8)})
