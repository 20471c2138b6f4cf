"""``persam-video davis``: masks for every clip of a split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.cli.progress import progress_bar
from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config, save_config
from persam_video.config import SourceConfig
from persam_video.errors import ConfigError, PersamError

if TYPE_CHECKING:
    from persam_video.batch import ClipOutcome

_EXAMPLES = """\
Every clip is followed from its first annotation. A clip's folder appears when the clip
is complete; run the same command again to go on after an interruption.

examples:
  persam-video davis DAVIS --split 2017/val -o pred
  persam-video davis DAVIS --split 2016/val -o pred16 --merge-objects --method persam_f
  persam-video eval pred DAVIS --split 2017/val"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "davis",
        parents=[common],
        allow_abbrev=False,
        usage="persam-video davis ROOT --split YEAR/NAME -o DIR [options]",
        help="follow the objects of every clip of a DAVIS split",
        description="Follow the objects of every clip of a DAVIS split; resumable.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add_davis_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the clips"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="do complete clips again, with any settings"
    )
    add_settings(parser, ("encoder", "personalize", "track"))
    parser.set_defaults(execute=execute)


def add_davis_options(parser: argparse.ArgumentParser, *, split_required: bool = True) -> None:
    """Add what names the ground truth; ``eval`` has it too."""
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="folder of ImageSets, JPEGImages and Annotations"
    )
    parser.add_argument(
        "--split",
        required=split_required,
        metavar="YEAR/NAME",
        help="2017/val reads ImageSets/2017/val.txt",
    )
    parser.add_argument(
        "--resolution", default="480p", metavar="NAME", help="folder of frames (default: 480p)"
    )
    parser.add_argument(
        "--merge-objects",
        action="store_true",
        help="all objects of a clip are one, as in DAVIS-2016",
    )


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    config = resolve_config(args)
    if config.source != SourceConfig():
        raise ConfigError("[source] has no place here: whole clips in full size are compared")

    from persam_video.batch import ClipState, run_davis
    from persam_video.evaluation.davis import read_split
    from persam_video.tracking.tracker import Tracker

    clips = read_split(args.root, args.split, args.resolution)
    merged = "all objects of a clip as one" if args.merge_objects else "every object by itself"
    save_config(args.output, config, args.overwrite, note=merged)
    tracker = Tracker.from_config(config, progress=not args.quiet)
    failed = []
    with progress_bar(args, sum(len(clip.frames) for clip in clips)) as count:
        outcomes = run_davis(
            tracker,
            args.root,
            args.split,
            args.output,
            resolution=args.resolution,
            merge_objects=args.merge_objects,
            overwrite=args.overwrite,
            on_progress=count,
        )
        for outcome in outcomes:
            if outcome.state is ClipState.FAILED:
                failed.append(outcome.clip.name)
            if not args.quiet:
                print(_line(outcome), flush=True)
    if failed:
        raise PersamError(f"{len(failed)} of {len(clips)} clips failed: {', '.join(failed)}")
    return 0


def _line(outcome: ClipOutcome) -> str:
    text = f"{outcome.clip.name}: {outcome.state.value}"
    if outcome.summary is not None:
        return f"{text}, {outcome.summary.frames} frames, {outcome.summary.fps:.2f} frames/s"
    return f"{text}: {outcome.error}" if outcome.error else f"{text}, it is complete"
