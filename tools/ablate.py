r"""Compare variants of the tracker on a DAVIS split: what is each part worth?

    python tools/ablate.py ROOT --split 2016/dev --merge-objects --cache CACHE -o OUT --workers 2
    python tools/ablate.py ROOT --split 2016/dev --merge-objects --cache CACHE -o OUT \
        --only default,close_up --oracles --sheets default

The encoder runs once per frame, whatever the number of variants and runs: its maps are kept under
CACHE, as float16, about 10 MB per 480p frame. The windows of close-ups depend on the masks, so each
variant that has them adds its own. A finished variant of a clip is not run again until the code or
the variant changes.

OUT gets masks (<variant>/<clip>/*.png), scores.csv, report.json, with matplotlib the plots
scores.png and states.png (what the tracker said of the baseline's masks against what they were
worth), and with --sheets each clip's worst frames. The table has J, F, J&F (means over clips),
the paired difference to the baseline with a 95 % bootstrap interval over clips, encoder runs and
milliseconds per frame without the encoder; --halves picks the best variant on each half of the
clips and confirms it on the other half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_report import ClipRun, write_report, write_sheets
from map_cache import CachedEncoder, code_version
from oracles import ORACLES, oracle_masks
from scipy import ndimage

import persam_video as pv
from persam_video.batch import first_labels
from persam_video.benchmark.parts import timed_parts
from persam_video.evaluation.davis import DavisClip, read_split
from persam_video.evaluation.scores import score_clip
from persam_video.files import atomic_path
from persam_video.sam.decoder import SamDecoder
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.features import FeatureSpace
from persam_video.tracking.target_model import TargetModel
from persam_video.types import VOID, object_ids

PARTS = {
    "features": ((FeatureSpace, "features"),),
    "appearance_memory": ((AppearanceMemory, "score"),),
    "target_model": ((TargetModel, "update"),),
    "decoder": ((SamDecoder, "decode"),),
}
"""Name in the report -> the method whose time is taken, of the thread that follows the objects: all
of it with as many workers as cores, less where a step is shared by several threads."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the tracker.

    Attributes:
        name: Name of its folder and row.
        config: All settings.
        click: Start from one click in the place of the first mask.
        later_mask: The mask of the middle frame is given as well.
        backwards: From the last frame that has a mask, which is given, to the first.
    """

    name: str
    config: pv.Config
    click: bool = False
    later_mask: bool = False
    backwards: bool = False

    def key(self, clip: DavisClip, options: argparse.Namespace) -> str:
        """What the result on a clip depends on."""
        depends = (asdict(self), clip, options.merge_objects, options.version)
        return hashlib.sha256(repr(depends).encode()).hexdigest()[:16]

    def order(self, clip: DavisClip) -> DavisClip:
        """The clip in the order that its frames are given in."""
        if not self.backwards:
            return clip
        end = len(clip.annotations)
        while not pv.read_label_map(clip.annotations[end - 1]).any():
            end -= 1
        return replace(
            clip, frames=clip.frames[:end][::-1], annotations=clip.annotations[:end][::-1]
        )

    def frames(self, source: Iterable[pv.Frame], clip: DavisClip) -> Iterator[pv.Frame]:
        """The frames of a clip in that order, numbered anew."""
        if not self.backwards:
            yield from source
            return
        for index, frame in enumerate(reversed(list(islice(source, len(clip.frames))))):
            yield replace(frame, index=index)


def version() -> str:
    """Of the package and of these tools."""
    tools = hashlib.sha256()
    for name in ("ablate.py", "map_cache.py", "oracles.py"):
        tools.update((Path(__file__).parent / name).read_bytes())
    return f"{code_version()} {tools.hexdigest()[:12]}"


def read_variants(path: Path, only: str | None) -> list[Variant]:
    """The variants of a file, "default" first; ``only`` names some of them."""
    tables: dict[str, dict[str, Any]] = {
        "default": {},
        **tomllib.loads(path.read_text(encoding="utf-8")),
    }
    if only is not None:
        if unknown := sorted(set(only.split(",")) - tables.keys()):
            raise SystemExit(f"{path} has no variant {unknown}; it has {', '.join(tables)}")
        tables = {name: tables[name] for name in only.split(",")}
    return [_variant(name, dict(table)) for name, table in tables.items()]


def _variant(name: str, table: dict[str, Any]) -> Variant:
    reference = table.pop("reference", "mask")
    if reference not in ("mask", "click"):
        raise SystemExit(f"{name}: reference must be mask or click, got {reference!r}")
    later = table.pop("later_mask", "none")
    if later not in ("none", "middle"):
        raise SystemExit(f"{name}: later_mask must be none or middle, got {later!r}")
    backwards = table.pop("backwards", False)
    if not isinstance(backwards, bool):
        raise SystemExit(f"{name}: backwards must be true or false, got {backwards!r}")
    layer: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        section, _, setting = key.partition(".")
        layer.setdefault(section, {})[setting] = value
    config = pv.Config().merged(layer, name)
    return Variant(name, config, reference == "click", later == "middle", backwards)


def middle_of(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[int, int]:
    """Column and row of the pixel farthest from a mask's edge: where a person would click."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(column), int(row)


def clicked(labels: Any, tracker: pv.Tracker, image_rgb: Any) -> Any:
    """The label map that SAM makes of one click per object."""
    prompts = {}
    for object_id in np.unique(labels[(labels > 0) & (labels < 255)]).tolist():
        x, y = middle_of(labels == object_id)
        prompts[object_id] = pv.parse_prompts([f"{x},{y}"])[1]
    return tracker.labels_from_prompts(image_rgb, prompts)


def run_clip(
    clip: DavisClip,
    variants: list[Variant],
    options: argparse.Namespace,
) -> list[ClipRun]:
    """All variants on one clip; masks and scores are written as they are ready."""
    torch.set_num_threads(options.threads)
    if version() != options.version:
        raise SystemExit("the code changed during the run; start it again")
    networks: dict[pv.EncoderConfig, tuple[CachedEncoder, SamDecoder]] = {}
    runs = []
    for variant in variants:
        settings = variant.config.encoder
        if settings not in networks:
            encoder, decoder = pv.load_sam(settings)
            networks[settings] = CachedEncoder(encoder, options.cache), decoder
        runs.append(_run_variant(clip, variant, *networks[settings], options))
    if options.oracles:
        runs += _run_oracles(clip, *next(iter(networks.values())), options)
    return runs


def _run_variant(
    clip: DavisClip,
    variant: Variant,
    encoder: CachedEncoder,
    decoder: SamDecoder,
    options: argparse.Namespace,
) -> ClipRun:
    folder = options.output / variant.name / clip.name
    record = options.output / "runs" / f"{variant.name}--{clip.name}.json"
    key = variant.key(clip, options)
    if record.exists():
        stored = json.loads(record.read_text())
        if stored.pop("key") == key:
            return ClipRun(**stored)
    clip = variant.order(clip)
    tracker = pv.Tracker(encoder, decoder, variant.config.personalize, variant.config.track)
    labels = first_labels(clip, merge_objects=options.merge_objects)
    later = {}
    if variant.later_mask:
        middle = len(clip.frames) // 2
        later[middle] = _truth(clip.annotations[middle], clip, options.merge_objects)
    ms: list[float] = []
    results: list[pv.TrackResult] = []
    with (
        timed_parts(PARTS) as seconds,
        pv.open_source(clip.frame_folder) as source,
        pv.PalettePngSink(folder, overwrite=True) as sink,
    ):
        ordered = variant.frames(source, clip)
        first = next(ordered)
        if variant.click:
            labels = clicked(labels, tracker, first.image_rgb)
        frames = chain([first], ordered)
        track, calls = variant.config.track, encoder.use.calls
        overlapping = bool(later) or track.keyframe_interval > 1 or track.look_back > 0
        if overlapping:  # several runs of the encoder are for the start
            pairs = pv.track(frames, tracker, pv.Reference(labels, later=later))
        else:
            pairs = _one_by_one(frames, tracker, labels, encoder, seconds, ms)
        for frame, result in pairs:
            if not (results or overlapping):
                calls = encoder.use.calls
            results.append(result)
            sink.write(frame, result)
    parts = {part: 1e3 * value / len(ms) for part, value in seconds.items() if ms}
    if ms:
        parts["all"] = float(np.mean(ms))
    runs = (encoder.use.calls - calls) / max(1, len(results) - 1)
    maps = [result.labels for result in results]
    run = _scored(
        clip, variant.name, maps, parts, runs, options.merge_objects, results, frozenset(later)
    )
    record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps({**asdict(run), "key": key}))
    print(f"{variant.name} {clip.name} {100 * run.j_and_f:.1f}", file=sys.stderr, flush=True)
    return run


def _one_by_one(
    frames: Iterable[pv.Frame],
    tracker: pv.Tracker,
    labels: Any,
    encoder: CachedEncoder,
    seconds: dict[str, float],
    ms: list[float],
) -> Iterator[tuple[pv.Frame, pv.TrackResult]]:
    """Nothing overlaps, so that times mean something; those of the steps go to ``ms``."""
    for place, frame in enumerate(frames):
        if place == 0:
            result = tracker.start(frame, labels)
            seconds.update(dict.fromkeys(PARTS, 0.0))
        else:
            begin, before = time.perf_counter(), encoder.use.seconds
            result = tracker.step(frame)
            ms.append(1e3 * (time.perf_counter() - begin - (encoder.use.seconds - before)))
        yield frame, result


def _run_oracles(
    clip: DavisClip, encoder: CachedEncoder, decoder: SamDecoder, options: argparse.Namespace
) -> list[ClipRun]:
    """The ceilings; the objects of a clip are taken as one."""
    masks: dict[str, list[Any]] = {name: [] for name in ORACLES}
    padded = encoder.with_padding()  # SAM as it was trained
    with pv.open_source(clip.frame_folder) as source:
        for frame, annotation in zip(source, clip.annotations, strict=True):
            truth = _truth(annotation, clip, merge_objects=True) > 0
            embedding = padded.encode(frame.image_rgb)
            for name, mask in oracle_masks(embedding, truth, decoder).items():
                masks[name].append(mask)
    return [_scored(clip, name, found, {}, 1.0, True) for name, found in masks.items()]


def _scored(
    clip: DavisClip,
    variant: str,
    results: Sequence[Any],
    ms: Mapping[str, float],
    encoder_runs: float,
    merge_objects: bool,
    told: Sequence[pv.TrackResult] = (),
    given: frozenset[int] = frozenset(),
) -> ClipRun:
    """J and F of every frame that counts, objects averaged, and what the tracker said of them.

    Besides the first and the last frame those do not count whose masks were given.
    """
    truths = [_truth(path, clip, merge_objects) for path in clip.annotations]
    ids = tuple(np.unique(truths[0][(truths[0] > 0) & (truths[0] < 255)]).tolist())
    counts = [i for i in range(1, len(truths) - 1) if i not in given]
    score = score_clip(clip.name, ids, ((results[i], truths[i]) for i in counts))
    j, f = (
        np.mean([getattr(o, name) for o in score.objects], axis=0).tolist()
        for name in ("j_frames", "f_frames")
    )
    answers = [
        (result.states[o.object_id].value, result.scores[o.object_id], frame_j)
        for o in score.objects
        for result, frame_j in zip((told[i] for i in counts if told), o.j_frames, strict=bool(told))
    ]
    return ClipRun(variant, clip.name, j, f, dict(ms), encoder_runs, answers)


def _truth(path: Path, clip: DavisClip, merge_objects: bool) -> Any:
    """(H, W) uint8 label map; 255 is the object where the first annotation has nothing else."""
    labels = pv.read_label_map(path)
    if not merge_objects:
        return labels
    void_is_object = not object_ids(pv.read_label_map(clip.annotations[0]))
    return ((labels != 0) & ((labels != VOID) | void_is_object)).view(np.uint8)


def check_names(options: argparse.Namespace, variants: list[Variant], clips: list[str]) -> None:
    """Stop before hours of work that a wrong name would spoil at the end."""
    names = [variant.name for variant in variants]
    for option, wanted, legal in (
        ("--baseline", options.baseline, names),
        ("--sheets", options.sheets, names),
        ("--clips", options.clips, clips),
    ):
        if unknown := sorted(set((wanted or legal[0]).split(",")) - set(legal)):
            raise SystemExit(f"{option}: {', '.join(unknown)} is none of {', '.join(legal)}")
    if options.halves and len((options.clips or ",".join(clips)).split(",")) < 2:
        raise SystemExit("--halves needs at least two clips")


def main() -> None:
    """Run, print the table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument("root", type=Path, help="folder in DAVIS layout")
    parser.add_argument("--split", default="2016/dev", help="ImageSets file, default %(default)s")
    parser.add_argument("--clips", help="names of some of its clips, with commas")
    parser.add_argument("--merge-objects", action="store_true", help="one object, as DAVIS-2016")
    parser.add_argument(
        "--variants", type=Path, default=here / "ablation.toml", help="default %(default)s"
    )
    parser.add_argument("--only", help="names of some of its variants, with commas")
    parser.add_argument("--baseline", default="default", help="variant to compare with")
    parser.add_argument("--oracles", action="store_true", help="ceilings of SAM's decoder as well")
    parser.add_argument(
        "--halves", action="store_true", help="choose on a half, confirm on another"
    )
    parser.add_argument("--sheets", help="variants whose worst frames are drawn, with commas")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the encoder's maps")
    parser.add_argument("--workers", type=int, default=1, help="clips at once, default %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    options.threads = max(1, (os.cpu_count() or 1) // options.workers)

    variants = read_variants(options.variants, options.only)
    clips = list(read_split(options.root, options.split))
    check_names(options, variants, [clip.name for clip in clips])
    if options.clips:
        clips = [clip for clip in clips if clip.name in options.clips.split(",")]
    options.version = version()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    with ProcessPoolExecutor(
        options.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        jobs = [pool.submit(run_clip, clip, variants, options) for clip in clips]
        runs = [run for job in jobs for run in job.result()]
    about = {
        "commit": commit,
        "machine": f"{platform.machine()}, {options.workers} workers of {options.threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "split": options.split,
        "settings": {variant.name: asdict(variant.config) for variant in variants},
    }
    print(write_report(runs, options.baseline, about, options.output, halves=options.halves))
    for variant in variants:
        if variant.name in (options.sheets or "").split(","):
            own = [run for run in runs if run.variant == variant.name]
            ordered = [variant.order(clip) for clip in clips]
            write_sheets(variant.name, own, ordered, options.output)


if __name__ == "__main__":
    main()
