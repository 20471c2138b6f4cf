"""Score several methods on a DAVIS split; every frame is encoded once and shared by all of them.

    python tools/compare_methods.py DAVIS_ROOT --split 2016/dev --merge-objects -o OUT

Masks are written to OUT/<method>/<clip>/*.png and scored as `persam-video eval` does. The table and
OUT/scores.json hold J, F and J&F per clip, the milliseconds that encoder and tracker took per
frame, the commit, the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import persam_video as pv
from persam_video.batch import first_labels
from persam_video.evaluation.davis import DavisClip, evaluate, read_split
from persam_video.sam.models import load_sam

METHODS = ("persam", "persam_f", "track")


def make_trackers(methods: str, threads: int) -> dict[str, pv.Tracker]:
    """One tracker per method, all on the same network, in this process."""
    torch.set_num_threads(threads)
    config = pv.Config()
    encoder, decoder = load_sam(config.encoder)
    return {
        method: pv.Tracker(
            encoder,
            decoder,
            config.personalize,
            config.merged({"track": {"method": method}}, "--methods").track,
        )
        for method in methods.split(",")
    }


def run_clip(
    clip: DavisClip, methods: str, threads: int, output: Path, merge_objects: bool
) -> dict[str, list[float]]:
    """Track one clip with every method; seconds per frame of the encoder and of each method."""
    trackers = make_trackers(methods, threads)
    seconds: dict[str, list[float]] = {name: [] for name in ("encoder", *trackers)}
    labels = first_labels(clip, merge_objects=merge_objects)
    sinks = {m: pv.PalettePngSink(output / m / clip.name, overwrite=True) for m in trackers}
    with pv.open_source(clip.frame_folder) as source:
        for frame in source:
            begin = time.perf_counter()
            embedding = next(iter(trackers.values())).encoder.encode(frame.image_rgb)
            seconds["encoder"].append(time.perf_counter() - begin)
            for method, tracker in trackers.items():
                begin = time.perf_counter()
                if len(seconds["encoder"]) == 1:
                    result = tracker.start(frame, labels, embedding)
                else:
                    result = tracker.step(frame, embedding)
                    seconds[method].append(time.perf_counter() - begin)
                sinks[method].write(frame, result)
    for sink in sinks.values():
        sink.close()
    print(clip.name, file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    """Run, print the table, write scores.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS layout")
    parser.add_argument("--split", default="2016/dev", help="ImageSets file, default %(default)s")
    parser.add_argument("--merge-objects", action="store_true", help="one object, as DAVIS-2016")
    parser.add_argument("--methods", default=",".join(METHODS), help="default %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="clips at once, default %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the masks")
    arguments = parser.parse_args()

    methods, workers = arguments.methods.split(","), arguments.workers
    threads = max(1, (os.cpu_count() or 1) // workers)
    seconds: dict[str, list[float]] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        runs = [
            pool.submit(
                run_clip,
                clip,
                arguments.methods,
                threads,
                arguments.output,
                arguments.merge_objects,
            )
            for clip in read_split(arguments.root, arguments.split)
        ]
        for run in runs:
            for part, values in run.result().items():
                seconds.setdefault(part, []).extend(values)

    median_ms = {part: 1000 * float(np.median(values)) for part, values in seconds.items()}
    report = {
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": f"{platform.machine()}, {workers} workers of {threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "split": arguments.split,
        "median_ms": median_ms,
        "methods": {},
    }
    print(f"{'method':10} {'J&F':>6} {'J':>6} {'F':>6} {'ms':>6}  per clip J&F")
    for method in methods:
        score = evaluate(
            arguments.output / method,
            arguments.root,
            arguments.split,
            merge_objects=arguments.merge_objects,
        )
        clips = {clip.name: 100 * clip.j_and_f for clip in score.clips}
        total = [100 * value for value in (score.j_and_f, score.j.mean, score.f.mean)]
        report["methods"][method] = {"J&F": total[0], "J": total[1], "F": total[2], "clips": clips}
        print(
            f"{method:10} {total[0]:6.1f} {total[1]:6.1f} {total[2]:6.1f} {median_ms[method]:6.0f}"
            f"  {' '.join(f'{name} {value:.0f},' for name, value in clips.items())}"
        )
    print(f"{'encoder':10} {'':20} {median_ms['encoder']:6.0f}")
    (arguments.output / "scores.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
