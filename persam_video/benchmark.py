"""Time per stage of the main job, with the bare image encoder as the yardstick.

Within a round, every frame is encoded alone and then tracked (or the other way round, in turn), so
that a busy machine slows both alike and their ratio stays honest.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persam_video.errors import PersamError
from persam_video.pipeline import peak_memory, reference_labels
from persam_video.sinks import OverlayVideoSink, PalettePngSink
from persam_video.sources import Source
from persam_video.types import Frame, Reference, TrackResult, VideoInfo

if TYPE_CHECKING:
    from persam_video.tracking.tracker import Tracker

WARM_UP = 2
"""Tracked frames at the start of every round that are not timed."""

_PACKAGES = ("persam-video", "torch", "numpy", "av", "opencv-python")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds per frame: median, and the quantiles that hold four fifths of the samples."""

    median: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, on what.

    Attributes:
        source: What was read.
        size_wh: Width and height of its frames in pixels.
        rounds: How often the clip was run.
        objects: Number of objects followed.
        decode: Getting a frame from the source.
        encode: The bare image encoder.
        track: ``Tracker.step``, its own call of the encoder included.
        write: Palette PNG and overlay video.
        ratio: Median of track over median of encode.
        round_ratios: The same for every round.
        peak_memory: Bytes resident at most, of the whole process; None if unknown.
        settings: The configuration as TOML.
        machine: Processor and number of cores, system, Python.
        versions: Versions of what the time depends on.
        commit: Commit of the code, "+" at its end when files were changed; None if unknown.
    """

    source: str
    size_wh: tuple[int, int]
    rounds: int
    objects: int
    decode: Spread
    encode: Spread
    track: Spread
    write: Spread
    ratio: float
    round_ratios: tuple[float, ...]
    peak_memory: int | None
    settings: str
    machine: str
    versions: str
    commit: str | None

    def to_json(self) -> str:
        """All of it, seconds and bytes."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_text(self) -> str:
        """A table in milliseconds, for a terminal."""
        lines = [
            f"{self.source}: {self.size_wh[0]} x {self.size_wh[1]}, objects {self.objects}, "
            f"rounds {self.rounds}",
            f"{'stage':8}{'median ms':>11}{'low':>9}{'high':>9}{'samples':>9}",
        ]
        for name in ("decode", "encode", "track", "write"):
            spread: Spread = getattr(self, name)
            times = f"{1e3 * spread.median:11.1f}{1e3 * spread.low:9.1f}{1e3 * spread.high:9.1f}"
            lines.append(f"{name:8}{times}{spread.samples:9}")
        rounds = ", ".join(f"{ratio:.2f}" for ratio in self.round_ratios)
        lines.append(f"track / encode: {self.ratio:.2f} (rounds: {rounds})")
        if self.peak_memory is not None:
            lines.append(f"peak memory: {self.peak_memory / 2**20:.0f} MiB")
        lines += [self.machine, self.versions, f"commit {self.commit or 'unknown'}"]
        return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Samples:
    """Seconds per frame of one round."""

    decode: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    track: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return float(np.median(self.track) / np.median(self.encode))


def measure(
    open_clip: Callable[[], Source],
    tracker: Tracker,
    reference: Reference,
    *,
    frames: int = 20,
    rounds: int = 3,
    settings: str = "",
) -> Report:
    """Run the first frames of a clip several times and time every stage.

    Args:
        open_clip: Opens the source anew for every round.
        tracker: Started anew for every round.
        reference: What to follow, on the first frame; a picture of its own is not used.
        frames: Frames that are timed per round; ``WARM_UP`` + 1 more are read.
        rounds: How often.
        settings: The configuration as TOML, for the report.

    Raises:
        PersamError: The clip has no frame left to time, or a count is below 1.
    """
    if frames < 1 or rounds < 1:
        raise PersamError(f"frames and rounds must be at least 1, got {frames} and {rounds}")
    measured = []
    for _ in range(rounds):
        with open_clip() as source:
            info = source.info
            measured.append(_round(source, tracker, reference, frames))
    return Report(
        source=info.spec,
        size_wh=(info.size_hw[1], info.size_hw[0]),
        rounds=rounds,
        objects=len(tracker.object_ids),
        decode=_spread([s for samples in measured for s in samples.decode]),
        encode=_spread([s for samples in measured for s in samples.encode]),
        track=_spread([s for samples in measured for s in samples.track]),
        write=_spread([s for samples in measured for s in samples.write]),
        ratio=float(
            np.median([s for samples in measured for s in samples.track])
            / np.median([s for samples in measured for s in samples.encode])
        ),
        round_ratios=tuple(samples.ratio for samples in measured),
        peak_memory=peak_memory(),
        settings=settings,
        machine=_machine(),
        versions=", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        commit=_commit(),
    )


def _round(source: Source, tracker: Tracker, reference: Reference, frames: int) -> _Samples:
    samples = _Samples()
    first = next(source)
    tracker.start(first, reference_labels(tracker, reference, first.image_rgb))
    with tempfile.TemporaryDirectory(prefix="persam_video-") as folder, ExitStack() as stack:
        write = _writer(stack, Path(folder), source.info)
        for position in range(WARM_UP + frames):
            begun = time.perf_counter()
            frame = next(source, None)
            if frame is None:
                break
            decoded = time.perf_counter() - begun
            encoded, tracked, result = _encode_and_track(tracker, frame, position % 2 == 0)
            begun = time.perf_counter()
            write(frame, result)
            written = time.perf_counter() - begun
            if position >= WARM_UP:
                samples.decode.append(decoded)
                samples.encode.append(encoded)
                samples.track.append(tracked)
                samples.write.append(written)
    if not samples.track:
        raise PersamError(
            f"the clip is too short to time it: at least {WARM_UP + 2} frames are needed",
            path=source.info.spec,
        )
    return samples


def _encode_and_track(
    tracker: Tracker, frame: Frame, encode_first: bool
) -> tuple[float, float, TrackResult]:
    """Seconds of the bare encoder, seconds of the tracker, and its result."""
    encoded = _time_encoder(tracker, frame) if encode_first else 0.0
    begun = time.perf_counter()
    result = tracker.step(frame)
    tracked = time.perf_counter() - begun
    return encoded if encode_first else _time_encoder(tracker, frame), tracked, result


def _time_encoder(tracker: Tracker, frame: Frame) -> float:
    begun = time.perf_counter()
    embedding = tracker.encoder.encode(frame.image_rgb)
    float(embedding.neck.flatten()[0])  # an accelerator works on its own until a value is asked for
    return time.perf_counter() - begun


def _writer(
    stack: ExitStack, folder: Path, info: VideoInfo
) -> Callable[[Frame, TrackResult], None]:
    """A function that writes what ``persam-video track`` writes by default for every frame."""
    masks = stack.enter_context(PalettePngSink(folder / "masks"))
    overlay = stack.enter_context(OverlayVideoSink(folder / "overlay.mp4", info.rate))

    def write(frame: Frame, result: TrackResult) -> None:
        masks.write(frame, result)
        overlay.write(frame, result)

    return write


def _spread(seconds: list[float]) -> Spread:
    low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Spread(median, low, high, len(seconds))


def _machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    return (
        f"{name}, {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    )


def _commit() -> str | None:
    """Commit of the checkout this package lies in; None when it was installed or git is missing."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12"]
    try:
        found = subprocess.run(
            [*command, "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
