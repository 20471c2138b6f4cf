r"""Speed, latency and memory of the whole job on one clip, beside J&F, and what they depend on.

    python tools/bench.py CLIP --mask FIRST.png --truth MASKS -o OUT
    python tools/bench.py CLIP --mask FIRST.png --truth MASKS -o OUT --full
    python tools/bench.py CLIP --mask FIRST.png -o OUT --sections stages,objects --objects 1,10

One process, one clip. Things that are compared take turns round by round, so that a busy machine
slows all of them alike; believe the ratios of one run, not times of two. Sections:

    stages        every stage alone and all overlapped, with the settings given ("default") and with
                  each file of --against
    first_way     the first implementation's way, see tools/first_way.py
    video_models  EdgeTAM and SAM 2.1 tiny with random weights, or those of --video-models, see
                  tools/video_models.py; left out where the package transformers is not installed
    objects       the same clip with more and more objects: the first mask cut into parts that are
                  followed each on its own (J&F is of all of them as one), or boxes on a grid
    sizes         the first frames written as JPEGs of other heights, then measured like any clip
    lengths       the clip looped; time and memory of the hundred frames up to frame 100 and to the
                  end of every length; they show the same if that is 100 and some turns of the clip

OUT gets bench.json (whole after every section; seconds and bytes) and bench.png (with matplotlib).
With --parts N the objects are N parts that the first mask is cut into.
Peak memory is of the process, the networks of all that is compared among it; found is the share of
objects that were not lost, as only those cost what following costs.
Without --truth there is no J&F. The default takes some minutes on two cores; --full takes hours.
Set OMP_WAIT_POLICY=PASSIVE in the environment, as persam-video does for itself: encoder and tracker
share the cores, and threads that spin while they wait slow the other stage down.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from bench_report import FIRST, OWN, plot, text
from bench_sections import Job, object_maps, run_sections
from bench_sweeps import WINDOW, parts_of, resized_hw, resized_labels
from video_models import NEEDS

import persam_video as pv
from persam_video.benchmark.stages import WARM_UP
from persam_video.benchmark.truth import Truth
from persam_video.cli.reference import add_reference_options, read_reference
from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config
from persam_video.cli.track import SOURCE_HELP
from persam_video.pipeline import reference_labels
from persam_video.sinks.base import sink_errors
from persam_video.types import MAX_OBJECT_ID

SECTIONS = ("stages", "first_way", "video_models", "objects", "sizes", "lengths")
_QUICK = {
    "sections": "stages,first_way,objects,sizes",
    "frames": 3,
    "rounds": 2,
    "objects": "1,2,5,10,20",
    "sizes": "240,480,1080,2160",
    "lengths": "50,200",
}
_FULL = {
    "sections": ",".join(SECTIONS),
    "frames": 20,
    "rounds": 5,
    "sizes": "240,480,720,1080,2160",
    "lengths": "50,500,2000",
}
_FAST = Path(__file__).parent.parent / "configs" / "fast.toml"


def prepare(args: argparse.Namespace) -> Job:
    """Load, and find out now what would stop the run later.

    Raises:
        PersamError: The clip is too short, the mask or the ground truth does not fit, ...
    """
    config = resolve_config(args)
    if args.reference_image is not None:
        raise pv.ConfigError("the bench starts on the first frame; legal is no --reference-image")
    reference = read_reference(args)
    for path in args.against:
        pv.load_config(path)
    truth = Truth(args.truth, merge_objects=args.merge_objects) if args.truth else None
    needed = args.frames + WARM_UP + 1
    with pv.open_source(args.source, config.source) as source:
        frames = list(islice(source, needed))
    if len(frames) < needed:
        raise pv.SourceError(
            f"the clip has {len(frames)} frames, {needed} are needed: --frames, {WARM_UP} to warm "
            "up and the first one",
            path=args.source,
        )
    for frame in frames[1:] if truth else ():
        truth.labels(frame.stem, frame.size_hw)
    with sink_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    tracker = pv.Tracker.from_config(config)
    labels = reference_labels(tracker, reference, frames[0].image_rgb)
    if args.parts is not None:
        labels = parts_of(labels, args.parts)
    job = Job(args, config, tracker, labels, truth)
    if "objects" in args.sections:
        object_maps(job)
    if "sizes" in args.sections:
        for height in args.sizes:
            resized_labels(labels, resized_hw(labels.shape, height))
    return job


def run(args: argparse.Namespace) -> None:
    """Measure, print, draw."""
    job = prepare(args)
    results = run_sections(job)
    print(text(results), end="")
    with sink_errors(args.output / "bench.png"):
        if not plot(results, args.output / "bench.png"):
            job.tell("no plot: matplotlib is not installed")


def numbers(name: str, given: str, low: int, high: int) -> list[int]:
    """Read "1,2,5" as [1, 2, 5], ascending, each once.

    Raises:
        ConfigError: Something in it is no number from ``low`` to ``high``.
    """
    values = [part.strip() for part in given.split(",")]
    if not all(v.isascii() and v.isdigit() and low <= int(v) <= high for v in values):
        raise pv.ConfigError(
            f"--{name} takes whole numbers from {low} to {high} with commas, got {given!r}"
        )
    return sorted({int(v) for v in values})


def complete(args: argparse.Namespace) -> None:
    """Fill in what was not given, and check it.

    Raises:
        ConfigError: An option has an illegal value.
    """
    for name, value in {**_QUICK, **(_FULL if args.full else {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.sections = args.sections.split(",")
    if unknown := sorted(set(args.sections) - set(SECTIONS)):
        raise pv.ConfigError(f"--sections: {', '.join(unknown)} is none of {', '.join(SECTIONS)}")
    if args.frames < 1 or args.rounds < 1:
        raise pv.ConfigError(
            f"--frames and --rounds must be at least 1, got {args.frames} and {args.rounds}"
        )
    if args.parts is not None and not 1 <= args.parts <= MAX_OBJECT_ID:
        raise pv.ConfigError(f"--parts must be from 1 to {MAX_OBJECT_ID}, got {args.parts}")
    if args.parts is not None and args.truth is not None and not args.merge_objects:
        raise pv.ConfigError(
            "--parts are no objects of --truth; legal is --merge-objects beside it"
        )
    args.video_models = list(dict.fromkeys(args.video_models.split(",")))
    if unknown := sorted(set(args.video_models) - set(NEEDS)):
        raise pv.ConfigError(f"--video-models: {', '.join(unknown)} is none of {', '.join(NEEDS)}")
    args.objects = numbers("objects", args.objects, 1, MAX_OBJECT_ID)
    args.sizes = numbers("sizes", args.sizes, 32, 4320)
    args.lengths = numbers("lengths", args.lengths, WINDOW + 1, 1_000_000)
    if args.merge_objects and args.truth is None:
        raise pv.ConfigError("--merge-objects is for scoring; there is no --truth")
    if args.against is None:
        args.against = [_FAST] if _FAST.is_file() else []
    stems = [path.stem for path in args.against]
    if clash := sorted({s for s in stems if stems.count(s) > 1 or s in (OWN, FIRST, *NEEDS)}):
        raise pv.ConfigError(f"--against: {', '.join(clash)} is the name of something else too")


def build_parser() -> argparse.ArgumentParser:
    """All options; what is not given is filled in by ``complete``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    add_reference_options(parser)
    group = parser.add_argument_group("measuring")
    group.add_argument("--full", action="store_true", help="everything, with enough repeats")
    for name, metavar, told in (
        ("sections", "NAMES", "with commas"),
        ("objects", "N,N,...", "numbers of objects"),
        ("sizes", "N,N,...", "heights of the source in pixels"),
        ("lengths", "N,N,...", "frames of the looped clip"),
    ):
        default = f"default {_QUICK[name]}; full: {_FULL.get(name, 'the same')}"
        group.add_argument(f"--{name}", metavar=metavar, help=f"{told} ({default})")
    for name, told in (("frames", "timed frames per round"), ("rounds", "turns")):
        default = f"default {_QUICK[name]}; full: {_FULL[name]}"
        group.add_argument(f"--{name}", type=int, metavar="N", help=f"{told} ({default})")
    group.add_argument("--truth", type=Path, metavar="FOLDER", help="label maps of the clip: J&F")
    group.add_argument("--merge-objects", action="store_true", help="score all objects as one")
    group.add_argument(
        "--object-shape",
        choices=("parts", "boxes"),
        default="parts",
        help="objects of that section: parts of the first mask, or boxes on a grid",
    )
    group.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="cut the first mask into N objects (the section objects has numbers of its own)",
    )
    group.add_argument(
        "--video-models",
        metavar="NAMES",
        default=",".join(NEEDS),
        help="models of that section, with commas (default: %(default)s)",
    )
    group.add_argument(
        "--against",
        type=Path,
        action="append",
        metavar="FILE.toml",
        help="other settings to compare with; source and device stay (repeatable; default: "
        "configs/fast.toml where there is one)",
    )
    group.add_argument(
        "--first-way-size",
        type=int,
        default=1024,
        metavar="N",
        help="side of the first way's square input (default: 1024, which is its own)",
    )
    add_settings(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as ``persam-video``: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C."""
    args = build_parser().parse_args(argv)
    args.given = list(sys.argv[1:] if argv is None else argv)
    try:
        complete(args)
        run(args)
    except pv.PersamError as error:
        print(f"bench.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, pv.ConfigError) else 1
    except KeyboardInterrupt:
        print("bench.py: interrupted; bench.json has the finished sections", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
