"""Decode, encode, track and write as stages that overlap.

    source ─reader thread▶ queue ─encoder threads▶ queue ─▶ tracker ─▶ queue ─writer thread▶ sinks

The tracker runs on the caller's thread. Where only keyframes are tracked, ``run`` gives it a thread
of its own, while the caller's makes the masks between. Queues are short, so memory does not grow
with the clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from persam_video.channel import Channel, ahead
from persam_video.errors import PersamError, PromptError, telling_frame
from persam_video.references.masks import check_mask_size
from persam_video.sam.lanes import Encoded, Lanes
from persam_video.sam.machine import (
    give_back_memory,
    processor_threads,
    take_threads,
    threads_taken,
)
from persam_video.sinks import Sink
from persam_video.tracking.in_between import in_between
from persam_video.tracking.later_masks import LaterMasks
from persam_video.tracking.look_back import looking_back
from persam_video.types import (
    Box,
    Frame,
    Reference,
    TrackResult,
    UInt8Array,
    object_ids,
)
from persam_video.writing import RunSummary, write_results

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker

PREFETCH = 4
"""Frames that are decoded ahead of the encoder."""
_GIVE_BACK_S = 20.0
"""Seconds after which free memory is given back: that takes a few hundredths of one, and as much
again until it has been taken anew."""


def run(
    source: Iterable[Frame],
    tracker: Tracker,
    reference: Reference,
    sinks: Sequence[Sink] = (),
    on_progress: Callable[[TrackResult], None] | None = None,
    *,
    prefetch: int = PREFETCH,
) -> RunSummary:
    """Track a source and write every result; see ``track`` and ``write_results``.

    Nothing may be asked of the tracker meanwhile.
    """
    results = _results(source, tracker, reference, prefetch, overlapping=True)
    return write_results(results, sinks, on_progress)


def track(
    source: Iterable[Frame], tracker: Tracker, reference: Reference, *, prefetch: int = PREFETCH
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """Follow the objects of a reference through a source, one frame after the other.

    The tracker forgets what it followed before. A reference without a picture of its own belongs
    to the first frame; with one, the objects are searched in every frame, the first one included.
    Between two frames the caller may use ``tracker.add``, ``remove`` and ``correct``; with the
    settings ``look_back`` and ``keyframe_interval`` the tracker can then be some frames further.
    Masks known before are better in ``reference.later``, as then the frames before them can be put
    right, too. Closing the generator early ends its threads; closing the source is for the caller.

    Args:
        source: Frames in order, one pass.
        tracker: Started anew.
        reference: What to follow.
        prefetch: Frames decoded ahead, at least 1.

    Yields:
        Every frame with its result; a source without a frame yields nothing.

    Raises:
        PromptError: The reference does not fit its picture (see ``reference_labels``), or a later
            mask not its frame, or that frame is not read.
        SourceError: The source failed; ``frame_index`` tells where.
    """
    return _results(source, tracker, reference, prefetch, overlapping=False)


def _results(
    source: Iterable[Frame],
    tracker: Tracker,
    reference: Reference,
    prefetch: int,
    *,
    overlapping: bool,
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """``track``; ``overlapping``, the tracker need not stand where the latest result is from."""

    def follow(
        frames: Generator[Frame, None, None],
    ) -> Generator[tuple[Frame, TrackResult], None, None]:
        results = _tracked(frames, tracker, reference, prefetch)
        if tracker.look_back:
            held = max(1, tracker.look_back // interval)
            results = looking_back(results, tracker.twin(), held, reference)
        if interval > 1 and overlapping:
            results = ahead(results, 1, "persam-tracker")
        return results

    take_threads(processor_threads())  # which this thread keeps when the tracker's takes some
    frames, interval = _numbered(source), tracker.keyframe_interval
    if interval > 1:
        return in_between(frames, interval, reference.later, follow, tracker.along_edges)
    return follow(frames)


def _tracked(
    numbered: Generator[Frame, None, None], tracker: Tracker, reference: Reference, prefetch: int
) -> Generator[tuple[Frame, TrackResult], None, None]:
    """``track``, of every frame and without a look back."""
    tracker.reset()
    photo = reference.image_rgb
    if photo is not None:
        tracker.start_from_photo(photo, reference_labels(tracker, reference, photo))
    threads = processor_threads()
    # In the end, whichever thread was the last to take some, those to come have them all.
    with threads_taken(threads), closing(_read_ahead(numbered, prefetch)) as frames:
        first = next(frames, None)
        if first is None:
            return
        labels = None
        if photo is None:
            labels = reference_labels(tracker, reference, first.image_rgb)
        # What is encoded of a frame depends on where the objects were three frames before.
        boxes = Channel[Box](4)
        for box in tracker.planned if labels is None else [tracker.box_around(labels)]:
            boxes.put(box)
        at_once = tracker.encode_at_once
        each = max(1, threads // at_once)
        lanes = Lanes(tracker.device)
        embeddings = _encoded(chain((first,), frames), boxes, tracker, lanes, at_once, each)
        # The tracker works while the encoder does. With all threads for itself, too, each of its
        # many small steps would wait for one whose core the encoder holds, unless that is a GPU's.
        share = threads if lanes.are_open else max(1, threads // 2)
        later, given_back_at = LaterMasks(tracker, reference), time.monotonic()
        with closing(ahead(embeddings, at_once, "persam-planner")) as encoded:
            try:
                for frame, waiting in encoded:
                    made = waiting.result()
                    embedding, _ = made
                    with (
                        telling_frame(frame.index, "tracking"),
                        threads_taken(share),
                        lanes.tracking(made),
                    ):
                        if labels is None:
                            result = later.put_right(tracker.step(frame, embedding))
                            boxes.put(tracker.planned[-1])
                        else:
                            result = tracker.start(frame, labels, embedding)
                            for box in tracker.planned:
                                boxes.put(box)
                    yield frame, result
                    labels = None
                    if time.monotonic() - given_back_at > _GIVE_BACK_S:
                        give_back_memory()
                        given_back_at = time.monotonic()
                later.check_end()
            finally:
                boxes.end()  # the encoder may be waiting for one
                tracker.wait()


def _encoded(
    frames: Iterable[Frame],
    boxes: Iterable[Box],
    tracker: Tracker,
    lanes: Lanes,
    at_once: int,
    threads: int,
) -> Generator[tuple[Frame, Future[Encoded]], None, None]:
    """Each frame with its embedding to come, of as much of it as is needed.

    So many are made at once, each on so many of torch's threads.
    """

    def encode(frame: Frame, box_xyxy: Box) -> Encoded:
        with telling_frame(frame.index, "encoding"):
            encoded = lanes.encoded(lambda: tracker.encode(frame.image_rgb, box_xyxy))
            if lanes.are_open:  # the GPU is at work now, and this thread is not
                tracker.look_ahead(frame.image_rgb)
            return encoded

    pool = ThreadPoolExecutor(
        at_once, "persam-encoder", initializer=take_threads, initargs=(threads,)
    )
    try:
        for frame, box_xyxy in zip(frames, boxes, strict=False):
            yield frame, pool.submit(encode, frame, box_xyxy)
    except GeneratorExit:  # nobody waits for what has not begun
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()


def reference_labels(tracker: Tracker, reference: Reference, image_rgb: UInt8Array) -> UInt8Array:
    """(H, W) uint8 label map of a reference: its masks, and what SAM makes of its prompts.

    Where both claim a pixel, the mask keeps it: it was drawn, the other one was guessed.

    Args:
        tracker: Makes the masks of points and boxes.
        reference: Masks, prompts or both.
        image_rgb: (H, W, 3) uint8 picture that the reference belongs to.

    Raises:
        PromptError: The mask has another size than the picture, a point or box lies outside, or
            nothing is left of a prompted object.
    """
    size_hw = (int(image_rgb.shape[0]), int(image_rgb.shape[1]))
    of = "the frame" if reference.image_rgb is None else "the reference picture"
    if reference.labels is not None:
        check_mask_size(reference.labels, size_hw, of=of)
    for object_id, prompt in reference.prompts.items():
        prompt.check_inside(size_hw, object_id)
    if not reference.prompts:
        assert reference.labels is not None  # a Reference has one of the two
        return reference.labels
    labels = tracker.labels_from_prompts(image_rgb, reference.prompts)
    if reference.labels is not None:
        drawn = np.isin(reference.labels, object_ids(reference.labels))
        labels = np.where(drawn, reference.labels, labels)
    if gone := sorted(set(reference.prompts) - set(object_ids(labels))):
        raise PromptError(
            f"no pixel is left for objects {gone}: the masks of other objects cover what their "
            "points or boxes select; legal is a prompt on something else"
        )
    return labels


def prefetched(source: Iterable[Frame], depth: int = PREFETCH) -> Generator[Frame, None, None]:
    """Read a source on a thread of its own, up to ``depth`` frames ahead.

    Nothing is read before the first frame is asked for. When the generator ends, fails or is
    closed, its thread has been joined: the source may be closed, or read on from where it stands.

    Args:
        source: Frames in order; only the thread touches it meanwhile.
        depth: Frames held ready, at least 1.

    Raises:
        PersamError: ``depth`` is below 1.
        Exception: Whatever the source raises, after the frames before it, with the frame's index.
    """
    return _read_ahead(_numbered(source), depth)


def _read_ahead(numbered: Generator[Frame, None, None], depth: int) -> Generator[Frame, None, None]:
    """``prefetched``, of frames whose errors tell which one could not be read."""
    if depth < 1:
        raise PersamError(f"prefetch must be at least 1 frame, got {depth}")
    return ahead(numbered, depth, "persam-reader")


def _numbered(source: Iterable[Frame]) -> Generator[Frame, None, None]:
    """The frames; an error says which one could not be read."""
    next_index: int | None = None
    try:
        for frame in source:
            next_index = frame.index + 1
            yield frame
    except PersamError as error:
        error.frame_index = next_index if error.frame_index is None else error.frame_index
        raise
    except Exception as error:
        error.add_note(f"while reading frame {next_index or 0} of the source")
        raise
