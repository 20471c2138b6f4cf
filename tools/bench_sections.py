"""The sections of tools/bench.py: what is measured, and in which turns."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_report import FIRST, OWN, entry, ratios
from bench_sweeps import (
    boxes_in,
    long_run,
    parts_of,
    resized_hw,
    resized_labels,
    write_resized,
)
from first_way import FirstWay, run_in_turn
from memory import forget_peak
from numpy.typing import NDArray
from video_models import VideoModel, missing_packages

import persam_video as pv
from persam_video.benchmark.report import commit, machine, versions
from persam_video.benchmark.stages import WARM_UP, StageBench
from persam_video.benchmark.truth import Truth
from persam_video.cli.evaluate import write_text
from persam_video.sam.models import resolve_device, resolve_dtype, resolved


@dataclass(slots=True)
class Job:
    """What every section needs, and the results so far."""

    args: argparse.Namespace
    config: pv.Config
    tracker: pv.Tracker
    labels: NDArray[np.uint8]
    truth: Truth | None
    sections: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def open_clip(self) -> pv.Source:
        """The clip, from its beginning."""
        return pv.open_source(self.args.source, self.config.source)

    def bench(self, tracker: Any, labels: NDArray[np.uint8], **options: Any) -> StageBench:
        """Measure a tracker on the clip, or on ``open_clip`` of the options."""
        options = {"open_clip": self.open_clip, "truth": self.truth, **options}
        return StageBench(
            options.pop("open_clip"),
            tracker,
            pv.Reference(labels),
            frames=self.args.frames,
            **options,
        )

    def tell(self, message: str) -> None:
        """One line of progress on stderr."""
        print(f"[{time.monotonic() - self.begun:6.0f} s] {message}", file=sys.stderr, flush=True)

    def in_turns(self, title: str, benches: Mapping[str, StageBench]) -> dict[str, Any]:
        """Run the rounds of several measurements in turns, back and forth; name -> entry."""
        for number in range(self.args.rounds):
            order = list(benches)[:: -1 if number % 2 else 1]
            for name in order:
                forget_peak()
                benches[name].round()
                self.tell(f"{title}: {name}, round {number + 1} of {self.args.rounds}")
        return {name: entry(bench.report()) for name, bench in benches.items()}

    def save(self) -> dict[str, Any]:
        """Write what there is so far."""
        others = {"transformers", "timm"} if "video_models" in self.args.sections else ()
        encoder = resolved(self.config.encoder)
        results = {
            "commit": commit(),
            "machine": machine(),
            "versions": versions(*sorted(others)),
            "settings": asdict(self.config),
            "number_format": encoder.dtype,
            "runtime": encoder.runtime,
            "arguments": self.args.given,
            "ratios": ratios(self.sections),
            "sections": self.sections,
        }
        write_text(self.args.output / "bench.json", json.dumps(results, indent=1) + "\n")
        return results


def compare(job: Job) -> dict[str, Any]:
    """The tracker, other settings of it, the first way and the video models, in turns."""
    config, wanted = job.config, job.args.sections
    benches = {OWN: job.bench(job.tracker, job.labels)}
    settings: dict[str, pv.Config] = {}
    for path in job.args.against if "stages" in wanted else ():
        other = pv.load_config(path)
        encoder = replace(other.encoder, device=config.encoder.device)
        other = settings[path.stem] = replace(other, source=config.source, encoder=encoder)
        benches[path.stem] = job.bench(pv.Tracker.from_config(other), job.labels)
    if "first_way" in wanted:
        first = FirstWay(replace(config.encoder, input_size=job.args.first_way_size))
        benches[FIRST] = job.bench(first, job.labels, run=run_in_turn)
    models = []
    for name in job.args.video_models if "video_models" in wanted else ():
        if missing := missing_packages(name):
            job.tell(f"{name} is left out: {', '.join(missing)} is not installed")
            continue
        device = resolve_device(config.encoder.device)
        model = VideoModel(name, device, resolve_dtype(config.encoder.dtype, device))
        benches[name] = job.bench(model, job.labels, truth=None, run=run_in_turn)
        models.append(name)
    entries = job.in_turns("compare", benches)
    for name in models:
        entries[name]["random_weights"] = True
    for name, used in settings.items():
        entries[name]["settings"] = asdict(used)
    return entries


def objects(job: Job) -> dict[str, Any]:
    """More and more objects."""
    truth = job.truth
    if truth is not None:
        truth = (
            None if job.args.object_shape == "boxes" else Truth(truth.folder, merge_objects=True)
        )
    benches = {
        str(count): job.bench(job.tracker, labels, truth=truth)
        for count, labels in object_maps(job).items()
    }
    return job.in_turns("objects", benches)


def object_maps(job: Job) -> dict[int, NDArray[np.uint8]]:
    """Number of objects -> (H, W) uint8 label map of the first frame."""
    size_hw = job.labels.shape[0], job.labels.shape[1]
    boxes = job.args.object_shape == "boxes"
    return {
        count: boxes_in(size_hw, count) if boxes else parts_of(job.labels, count)
        for count in job.args.objects
    }


def sizes(job: Job) -> dict[str, Any]:
    """The clip at other sizes."""
    with tempfile.TemporaryDirectory(prefix="persam_video-") as folder:
        benches = {}
        for height in job.args.sizes:
            path = Path(folder) / f"{height}p"
            with job.open_clip() as source:
                write_resized(source, path, height, job.args.frames + WARM_UP + 1)
            labels = resized_labels(job.labels, resized_hw(job.labels.shape, height))
            open_clip = partial(pv.open_source, path)
            benches[str(height)] = job.bench(job.tracker, labels, open_clip=open_clip)
        return job.in_turns("sizes", benches)


def lengths(job: Job) -> list[dict[str, Any]]:
    """The clip in a loop."""
    args = job.args
    windows = long_run(job.open_clip, job.tracker, job.labels, args.lengths, job.truth, job.tell)
    return [asdict(window) for window in windows]


COMPARED = ("stages", "first_way", "video_models")
"""Sections that are measured in turns with each other."""


def run_sections(job: Job) -> dict[str, Any]:
    """All sections that are wanted; bench.json is written after each. Returns what is in it."""
    if set(COMPARED) & set(job.args.sections):
        job.sections["compare"] = compare(job)
        job.save()
    for name, section in (("objects", objects), ("sizes", sizes), ("lengths", lengths)):
        if name in job.args.sections:
            job.sections[name] = section(job)
            job.save()
    return job.save()
