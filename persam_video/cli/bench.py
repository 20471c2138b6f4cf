"""``persam-video bench``: time per stage, speed end to end, and how good the masks are."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from persam_video.cli.evaluate import write_text
from persam_video.cli.reference import add_reference_options, read_reference
from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config
from persam_video.cli.track import SOURCE_HELP
from persam_video.errors import ConfigError

_EXAMPLES = """\
The bare encoder and the tracker take turns on every frame, so that their ratio holds on a
busy machine too. Then the clip runs as "track" runs it, its stages overlapping. Low and high
are the quantiles 0.1 and 0.9. Indented rows are the parts of tracking a frame; prior is all of
finding the mask but SAM's decoder, outlines are drawn to the edges of the picture, waiting is
for what other threads do meanwhile, and other is what none of them holds.

examples:
  persam-video bench clip.mp4 --points "640,360"
  persam-video bench frames/ --mask first.png --truth annotations/
  persam-video bench frames/ --mask ten_objects.png --frames 30 --rounds 5 --json bench.json"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        parents=[common],
        allow_abbrev=False,
        usage="persam-video bench SOURCE (--mask FILE | --points X,Y | --box X1,Y1,X2,Y2) ...",
        help="time of decoding, encoding, tracking and writing a frame",
        description="Time of decoding, encoding, tracking and writing a frame, frames per second\n"
        "end to end, latency, peak memory, and J&F where there is ground truth.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    add_reference_options(parser)
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--frames", type=int, default=20, metavar="N", help="timed frames per round (default: 20)"
    )
    group.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="runs over the clip (default: 3)"
    )
    group.add_argument(
        "--truth",
        type=Path,
        metavar="FOLDER",
        help="label maps of the clip, named as its frames (00000.png, ...): J&F of the timed masks",
    )
    group.add_argument(
        "--merge-objects", action="store_true", help="score all objects of --truth as one"
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON too")
    add_settings(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    config = resolve_config(args)
    if args.frames < 1 or args.rounds < 1:
        raise ConfigError(
            f"--frames and --rounds must be at least 1, got {args.frames}, {args.rounds}"
        )
    if args.reference_image is not None:
        raise ConfigError("bench starts on the first frame; it has no use for --reference-image")
    if args.merge_objects and args.truth is None:
        raise ConfigError("--merge-objects is for scoring; there is no --truth")
    reference = read_reference(args)

    from persam_video.benchmark.stages import measure
    from persam_video.benchmark.truth import Truth
    from persam_video.sam.models import resolved
    from persam_video.sources import open_source
    from persam_video.tracking.tracker import Tracker

    truth = Truth(args.truth, merge_objects=args.merge_objects) if args.truth else None
    report = measure(
        lambda: open_source(args.source, config.source),
        Tracker.from_config(config, progress=not args.quiet),
        reference,
        frames=args.frames,
        rounds=args.rounds,
        # "auto" depends on the machine; the report says what it came to.
        settings=replace(config, encoder=resolved(config.encoder)).to_toml(),
        truth=truth,
    )
    print(report.to_text(), end="")
    if args.json is not None:
        write_text(args.json, report.to_json())
    return 0
