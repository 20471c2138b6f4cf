"""What a benchmark says: figures, and what they were taken on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from persam_video.benchmark.truth import Score
from persam_video.sam.machine import gpu_name, processor_threads

_PACKAGES = ("persam-video", "torch", "numpy", "av", "opencv-python", "opencv-python-headless")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds per frame: median, and the quantiles that hold four fifths of the samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of at least one sample."""
        low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
        return cls(median, low, high, len(seconds))


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, on what. Times are seconds per frame, memory is bytes.

    Attributes:
        source: What was read.
        size_wh: Width and height of its frames in pixels.
        rounds: How often the clip was run.
        objects: Number of objects followed.
        found: Share of the objects that were not lost, mean over the frames tracked; a lost object
            costs less, or more, than one that is followed.
        decode: Getting a frame from the source.
        encode: The bare image encoder, its pre-processing included.
        track: ``Tracker.step``, its own call of the encoder included.
        parts: Part of the step -> its time without the parts inside it; with ``other`` they add up
            to the step. Parts that never ran are left out.
        write: Palette PNG and overlay video.
        ratio: Median of track over median of encode.
        round_ratios: The same for every round.
        latency: From asking the source for a frame to its mask, with nothing else going on.
        queued_latency: From the frame's leaving the source to its mask, in the overlapping
            pipeline, the wait in its queue included.
        fps: Frames per second at the end of the overlapping pipeline, decoding and writing
            included, median of the rounds.
        round_fps: The same for every round.
        slowest: Name of the slowest of decode, encode, follow (track without the encoder) and
            write.
        overlap: ``fps`` times the slowest stage's time alone, median of the rounds: 1 when nothing
            is lost beside the slowest stage.
        peak_memory: Resident at most, of the whole process; None if unknown.
        peak_gpu_memory: Taken of the GPU by torch at most; None without one.
        score: J and F of these masks; None without ground truth.
        settings: The configuration as TOML.
        machine: Processor, number of cores, GPU, system, Python.
        versions: Versions of what the time depends on.
        commit: Commit of the code, "+" at its end when files were changed; None if unknown.
    """

    source: str
    size_wh: tuple[int, int]
    rounds: int
    objects: int
    found: float
    decode: Spread
    encode: Spread
    track: Spread
    parts: Mapping[str, Spread]
    write: Spread
    ratio: float
    round_ratios: tuple[float, ...]
    latency: Spread
    queued_latency: Spread
    fps: float
    round_fps: tuple[float, ...]
    slowest: str
    overlap: float
    peak_memory: int | None
    peak_gpu_memory: int | None
    score: Score | None
    settings: str
    machine: str
    versions: str
    commit: str | None

    def to_json(self) -> str:
        """All of it, seconds and bytes."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_text(self) -> str:
        """A table in milliseconds, for a terminal."""
        parts = [(f"  {name}", spread) for name, spread in self.parts.items()]
        rows = [("decode", self.decode), ("encode", self.encode), ("track", self.track), *parts]
        rows += [("write", self.write), ("latency", self.latency)]
        rows.append(("queued latency", self.queued_latency))
        lines = [
            f"{self.source}: {self.size_wh[0]} x {self.size_wh[1]}, objects {self.objects} "
            f"({self.found:.0%} found), rounds {self.rounds}",
            f"{'stage':15}{'median ms':>11}{'low':>9}{'high':>9}{'samples':>9}",
        ]
        for name, spread in rows:
            times = f"{1e3 * spread.median:11.1f}{1e3 * spread.low:9.1f}{1e3 * spread.high:9.1f}"
            lines.append(f"{name:15}{times}{spread.samples:9}")
        rounds = ", ".join(f"{ratio:.2f}" for ratio in self.round_ratios)
        lines.append(f"track / encode: {self.ratio:.2f} (rounds: {rounds})")
        lines += self._figures()
        lines += [self.machine, self.versions, f"commit {self.commit or 'unknown'}"]
        return "\n".join(lines) + "\n"

    def _figures(self) -> list[str]:
        """The lines on speed, masks and memory, as far as they were measured."""
        lines = [
            f"end to end: {self.fps:.2f} frames/s, {self.overlap:.2f} of what the slowest "
            f"stage alone ({self.slowest}) allows"
        ]
        if self.score is not None:
            lines.append(
                f"J&F {100 * self.score.j_and_f:.1f}, J {100 * self.score.j:.1f}, "
                f"F {100 * self.score.f:.1f} (frames: {self.score.frames})"
            )
        for name, peak in (("", self.peak_memory), (" on the GPU", self.peak_gpu_memory)):
            if peak is not None:
                lines.append(f"peak memory{name}: {peak / 2**20:.0f} MiB")
        return lines


def machine() -> str:
    """Processor, its cores and threads, GPU in use, system and Python, for a report."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    gpu = gpu_name()
    cores = f"{os.cpu_count()} cores ({processor_threads()} threads used)"
    facts = [cores, *([gpu] if gpu else []), platform.platform()]
    return ", ".join([name, *facts, f"Python {platform.python_version()}"])


def versions(*others: str) -> str:
    """Versions of what the times depend on, and of ``others``, as far as they are installed."""
    found = []
    for name in (*_PACKAGES, *others):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str | None:
    """Commit of the checkout this package lies in; None when it was installed or git is missing."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12"]
    try:
        found = subprocess.run(
            [*command, "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
