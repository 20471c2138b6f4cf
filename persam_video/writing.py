"""Results -> sinks, on a thread of their own, and what a finished run amounts to."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from persam_video.channel import Channel
from persam_video.sinks import MultiSink, Sink
from persam_video.types import Frame, ObjectState, TrackResult

WRITE_BEHIND = 4
"""Results that may wait for the sinks before the tracker is held up."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a finished run amounts to.

    Attributes:
        frames: Number of frames written.
        seconds: Wall-clock time from before the first frame was read until all sinks were closed.
        peak_memory: Largest resident memory of this process so far in bytes; None where the
            system does not tell (Windows).
        states: Object id -> state -> number of frames; states that never occurred are left out.
    """

    frames: int
    seconds: float
    peak_memory: int | None
    states: Mapping[int, Mapping[ObjectState, int]]

    @property
    def fps(self) -> float:
        """Frames per second of the whole run, writing included."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


def write_results(
    results: Iterable[tuple[Frame, TrackResult]],
    sinks: Sequence[Sink],
    on_progress: Callable[[TrackResult], None] | None = None,
) -> RunSummary:
    """Write frames with their results, on a thread of their own, and close the sinks.

    However it ends, Ctrl-C and errors of ``results`` included, what was yielded before is written
    and every sink is closed, so that the files are whole. A sink that fails ends the run.

    Args:
        results: Frames in order with their results, e.g. of ``track``; a generator is closed.
        sinks: Each gets every frame; closed at the end.
        on_progress: Called on the caller's thread with every result handed to the writer.

    Raises:
        SinkError: A sink could not write.
    """
    begun = time.perf_counter()
    frames, states = 0, dict[int, Counter[ObjectState]]()
    writer = _Writer(MultiSink(sinks))
    iterator = iter(results)
    try:
        for frame, result in iterator:
            if not writer.write(frame, result):
                break
            frames += 1
            for object_id, state in result.states.items():
                states.setdefault(object_id, Counter())[state] += 1
            if on_progress is not None:
                on_progress(result)
    finally:
        try:
            if isinstance(iterator, Generator):
                iterator.close()  # joins reader and encoder before the sinks' files are finished
        finally:
            writer.finish()
    return RunSummary(frames, time.perf_counter() - begun, peak_memory(), states)


class _Writer:
    """A thread that feeds a sink and closes it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._channel = Channel[tuple[Frame, TrackResult]](WRITE_BEHIND)
        self._error: BaseException | None = None
        self._done = threading.Event()  # join() cannot be taken up again after Ctrl-C
        self._thread = threading.Thread(target=self._work, name="persam-writer", daemon=True)
        self._thread.start()

    def write(self, frame: Frame, result: TrackResult) -> bool:
        """Hand on a result, waiting for room; False once the sink has failed."""
        return self._channel.put((frame, result))

    def finish(self) -> None:
        """Write what is waiting and close the sink; raises what the sink raised."""
        try:
            self._end()
        except KeyboardInterrupt:
            self._end()  # the files are nearly whole; a second Ctrl-C gives them up
            raise
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self._channel.end()
        self._done.wait()
        self._thread.join()

    def _work(self) -> None:
        try:
            with self._sink:
                for frame, result in self._channel:
                    self._sink.write(frame, result)
        except BaseException as error:  # raised again on the caller's thread
            self._error = error
        finally:
            self._channel.abandon()
            self._done.set()


def peak_memory() -> int | None:
    """Largest resident memory of this process so far in bytes; None where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
