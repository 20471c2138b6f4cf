"""Time per stage of the main job, with the bare image encoder as the yardstick.

A round runs the first frames of a clip twice. The first time every stage waits for the one before,
and every frame is encoded alone and then tracked (or the other way round, in turn), so that a busy
machine slows both alike and their ratio stays honest. The second time decoding, encoding,
following and writing overlap as in ``persam-video track``, and only keyframes are tracked. Where
several things are compared, their rounds take turns. With a ground truth the clip is run from end
to end once more, to score the masks that come out of that.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from persam_video import pipeline
from persam_video.benchmark.parts import STEP_PARTS, timed_parts
from persam_video.benchmark.report import Report, Spread, commit, machine, versions
from persam_video.benchmark.truth import Truth, packed, unpacked
from persam_video.errors import PersamError
from persam_video.pipeline import reference_labels
from persam_video.sam.machine import forget_peak_gpu_memory, gpu_name, peak_gpu_memory
from persam_video.sinks import OverlayVideoSink, PalettePngSink, Sink
from persam_video.sources import Source
from persam_video.types import (
    Box,
    Frame,
    ObjectState,
    Reference,
    TrackResult,
    UInt8Array,
    VideoInfo,
)
from persam_video.writing import RunSummary, peak_memory

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker

WARM_UP = 2
"""Tracked frames at the start of every round that are not timed."""

Run = Callable[..., RunSummary]
"""A function with the arguments of ``pipeline.run``."""


@dataclass(slots=True)
class _Samples:
    """Seconds per frame of one round, ``encode`` and ``track`` per frame that is tracked."""

    interval: int = 1
    decode: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    track: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    fps: float = 0.0

    @property
    def ratio(self) -> float:
        return float(np.median(self.track) / np.median(self.encode))

    @property
    def slowest(self) -> float:
        """Seconds per frame of the slowest stage alone."""
        return max(_stages(self).values())


class StageBench:
    """Measures one clip with one tracker, a round at a time.

    Args:
        open_clip: Opens the source anew for every pass.
        tracker: Started anew for every pass.
        reference: What to follow, on the first frame; a picture of its own is not used.
        frames: Frames that are timed per pass; ``WARM_UP`` + 1 more are read.
        truth: Ground truth of the clip, to score the first round's masks.
        run: What runs the clip from end to end.

    Raises:
        PersamError: ``frames`` is below 1.
    """

    def __init__(
        self,
        open_clip: Callable[[], Source],
        tracker: Tracker,
        reference: Reference,
        *,
        frames: int = 20,
        truth: Truth | None = None,
        run: Run = pipeline.run,
    ) -> None:
        if frames < 1:
            raise PersamError(f"frames must be at least 1, got {frames}")
        self._open_clip, self._tracker, self._reference = open_clip, tracker, reference
        self._frames, self._truth, self._run = frames, truth, run
        self._interval = tracker.keyframe_interval if run is pipeline.run else 1
        self._rounds: list[_Samples] = []
        self._masks: list[tuple[str, bytes]] = []
        self._found: list[float] = []
        self._info: VideoInfo | None = None
        self._ids: tuple[int, ...] = ()  # the tracker may follow others by the time of the report
        self._peaks: list[tuple[int, int]] = []

    def round(self) -> None:
        """Run the clip once more.

        Raises:
            PersamError: The clip has no frame left to time.
        """
        forget_peak_gpu_memory()
        samples = _Samples(interval=self._interval)
        # On a GPU the parts have to wait for it at their ends; that needs a pass of its own.
        self._step_by_step(samples, parts=gpu_name() is None)
        if gpu_name() is not None:
            again = _Samples()
            self._step_by_step(again, parts=True)
            samples.parts = again.parts
        self._end_to_end(samples)
        if self._truth is not None and not self._masks:
            self._keep_masks()
        self._rounds.append(samples)
        self._peaks.append((peak_memory() or 0, peak_gpu_memory() or 0))

    def report(self, settings: str = "") -> Report:
        """What the rounds so far amount to; at least one has been run.

        Args:
            settings: The configuration as TOML.

        Raises:
            DatasetError: The ground truth does not fit.
        """
        info, rounds = self._info, self._rounds
        assert info is not None

        def all_of(name: str) -> list[float]:
            return [seconds for samples in rounds for seconds in getattr(samples, name)]

        stages = {name: Spread.of(all_of(name)) for name in ("decode", "encode", "track", "write")}
        speeds = tuple(samples.fps for samples in rounds)
        score = None
        if self._truth is not None:
            score = self._truth.score(self._ids, self._results(info.size_hw))
        return Report(
            source=info.spec,
            size_wh=(info.size_hw[1], info.size_hw[0]),
            rounds=len(rounds),
            objects=len(self._ids),
            found=float(np.mean(self._found)),
            decode=stages["decode"],
            encode=stages["encode"],
            track=stages["track"],
            parts=_spreads([parts for samples in rounds for parts in samples.parts]),
            write=stages["write"],
            ratio=stages["track"].median / stages["encode"].median,
            round_ratios=tuple(samples.ratio for samples in rounds),
            latency=Spread.of(all_of("latency")),
            queued_latency=Spread.of(all_of("queued")),
            fps=float(np.median(speeds)),
            round_fps=speeds,
            slowest=_slowest(rounds),
            overlap=float(np.median([s.fps * s.slowest for s in rounds])),
            peak_memory=max(resident for resident, _ in self._peaks) or None,
            peak_gpu_memory=max(on_gpu for _, on_gpu in self._peaks) or None,
            score=score,
            settings=settings,
            machine=machine(),
            versions=versions(),
            commit=commit(),
        )

    def _step_by_step(self, samples: _Samples, *, parts: bool) -> None:
        """One stage after the other; ``samples.parts`` is filled when ``parts`` are timed."""
        with ExitStack() as stack:
            source = stack.enter_context(self._open_clip())
            self._info = source.info
            seconds = stack.enter_context(timed_parts(STEP_PARTS if parts else {}))
            first = next(source)
            labels = reference_labels(self._tracker, self._reference, first.image_rgb)
            self._tracker.start(first, labels)
            self._ids = self._tracker.object_ids
            sinks = _sinks(stack, source.info)
            for position in range(WARM_UP + self._frames):
                begun = time.perf_counter()
                frame = next(source, None)
                if frame is None:
                    break
                decoded = time.perf_counter() - begun
                timed = samples if position >= WARM_UP else _Samples()
                result = self._encode_and_track(frame, timed, seconds, position % 2 == 0)
                begun = time.perf_counter()
                for sink in sinks:
                    sink.write(frame, result)
                timed.write.append(time.perf_counter() - begun)
                timed.decode.append(decoded)
                timed.latency.append(decoded + timed.track[-1])
                lost = sum(state is ObjectState.LOST for state in result.states.values())
                self._found.append(1 - lost / len(self._ids))
        if not samples.track:
            raise PersamError(
                f"the clip is too short to time it: at least {WARM_UP + 2} frames are needed",
                path=source.info.spec,
            )

    def _encode_and_track(
        self, frame: Frame, samples: _Samples, seconds: dict[str, float], encode_first: bool
    ) -> TrackResult:
        """The bare encoder, and the tracker; ``seconds`` are those of the parts."""
        box = self._tracker.planned[0]
        if encode_first:
            samples.encode.append(_time_encoder(self._tracker, frame, box))
        seconds.update(dict.fromkeys(seconds, 0.0))
        begun = time.perf_counter()
        result = self._tracker.step(frame)
        tracked = time.perf_counter() - begun
        samples.track.append(tracked)
        samples.parts.append({**seconds, "other": tracked - sum(seconds.values())})
        if not encode_first:
            samples.encode.append(_time_encoder(self._tracker, frame, box))
        return result

    def _end_to_end(self, samples: _Samples) -> None:
        """Everything at once; speed is taken where the masks come out."""
        read: dict[int, float] = {}
        found: dict[int, float] = {}
        clock = _Clock()

        def stamped(source: Source) -> Iterator[Frame]:
            for frame in islice(source, 1 + WARM_UP + self._frames):
                read[frame.index] = time.perf_counter()
                yield frame

        def note(result: TrackResult) -> None:
            found[result.frame_index] = time.perf_counter()

        with ExitStack() as stack:
            source = stack.enter_context(self._open_clip())
            sinks = [*_sinks(stack, source.info), clock]
            self._run(stamped(source), self._tracker, self._reference, sinks, note)
        timed = list(read)[1 + WARM_UP :]
        samples.queued = [found[index] - read[index] for index in timed]
        # From one keyframe to another: those between come out in one go.
        first = min(-(-WARM_UP // self._interval) * self._interval, len(clock.times) - 2)
        samples.fps = (len(clock.times) - 1 - first) / (clock.times[-1] - clock.times[first])

    def _keep_masks(self) -> None:
        """Of the frames that are timed and of the warm-up."""
        keeper = _Keeper()
        with self._open_clip() as source:
            frames = islice(source, 1 + WARM_UP + self._frames)
            self._run(frames, self._tracker, self._reference, [keeper], None)
        self._masks = keeper.masks[1:]

    def _results(self, size_hw: tuple[int, int]) -> Iterator[tuple[str, UInt8Array]]:
        for stem, labels in self._masks:
            yield stem, unpacked(labels, size_hw)


def measure(
    open_clip: Callable[[], Source],
    tracker: Tracker,
    reference: Reference,
    *,
    frames: int = 20,
    rounds: int = 3,
    settings: str = "",
    truth: Truth | None = None,
) -> Report:
    """Run the first frames of a clip several times and time every stage.

    Args:
        open_clip: Opens the source anew for every pass.
        tracker: Started anew for every pass.
        reference: What to follow, on the first frame; a picture of its own is not used.
        frames: Frames that are timed per pass; ``WARM_UP`` + 1 more are read.
        rounds: How often.
        settings: The configuration as TOML, for the report.
        truth: Ground truth of the clip.

    Raises:
        PersamError: The clip has no frame left to time, or a count is below 1.
        DatasetError: The ground truth does not fit.
    """
    if frames < 1 or rounds < 1:
        raise PersamError(f"frames and rounds must be at least 1, got {frames} and {rounds}")
    bench = StageBench(open_clip, tracker, reference, frames=frames, truth=truth)
    for _ in range(rounds):
        bench.round()
    return bench.report(settings)


class _Watcher:
    """A sink without a file."""

    def close(self) -> None:
        """Nothing to finish."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Clock(_Watcher):
    """Notes when a frame has been written by the sinks before it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def write(self, frame: Frame, result: TrackResult) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


class _Keeper(_Watcher):
    """Keeps the masks, packed, by the names of their frames."""

    def __init__(self) -> None:
        self.masks: list[tuple[str, bytes]] = []

    def write(self, frame: Frame, result: TrackResult) -> None:
        """Keep the mask."""
        self.masks.append((frame.stem, packed(result.labels)))


def _time_encoder(tracker: Tracker, frame: Frame, box_xyxy: Box) -> float:
    begun = time.perf_counter()
    embedding = tracker.encode(frame.image_rgb, box_xyxy)
    float(embedding.neck.flatten()[0])  # an accelerator works on its own until a value is asked for
    return time.perf_counter() - begun


def _stages(samples: _Samples) -> dict[str, float]:
    """Seconds per frame of what overlaps in ``pipeline.run``; following is all but the encoder.

    Between keyframes neither runs.
    """
    decode, encode, track, write = (
        float(np.median(s)) for s in (samples.decode, samples.encode, samples.track, samples.write)
    )
    encode, follow = encode / samples.interval, (track - encode) / samples.interval
    return {"decode": decode, "encode": encode, "follow": follow, "write": write}


def _slowest(rounds: list[_Samples]) -> str:
    """Name of the stage that is the slowest in most rounds."""
    names = [max(stages, key=stages.__getitem__) for stages in map(_stages, rounds)]
    return statistics.mode(names)


def _sinks(stack: ExitStack, info: VideoInfo) -> list[Sink]:
    """What ``persam-video track`` writes by default, into a folder that goes with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="persam_video-")))
    sinks = [PalettePngSink(folder / "masks"), OverlayVideoSink(folder / "overlay.mp4", info.rate)]
    return [stack.enter_context(sink) for sink in sinks]


def _spreads(frames: list[dict[str, float]]) -> dict[str, Spread]:
    """Per part, of the frames' seconds; parts that never ran are left out."""
    names = frames[0] if frames else ()
    of = {name: [parts[name] for parts in frames] for name in names}
    return {name: Spread.of(seconds) for name, seconds in of.items() if any(seconds)}
