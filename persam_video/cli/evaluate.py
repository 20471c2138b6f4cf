"""``persam-video eval``: figures of predictions against ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.cli.davis import add_davis_options
from persam_video.cli.progress import progress_bar
from persam_video.cli.settings import HelpFormatter
from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.evaluation.tables import Table

_EXAMPLES = """\
Figures are those of the official DAVIS-2017 code: first and last frame left out, total =
mean over all objects. Missing clips or frames are an error that lists them.

examples:
  persam-video eval pred DAVIS --split 2017/val --csv scores.csv --json scores.json
  persam-video eval pred DAVIS --split 2016/val --merge-objects
  persam-video eval pred PerSeg --perseg"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        parents=[common],
        allow_abbrev=False,
        help="score predictions: J, F, J&F of DAVIS, or mIoU of PerSeg",
        description="Score a folder of predicted masks against ground truth.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "predictions", type=Path, metavar="PRED", help="folder with <clip>/<frame>.png"
    )
    add_davis_options(parser, split_required=False)
    parser.add_argument(
        "--perseg", action="store_true", help="ROOT is a PerSeg folder; there is no split then"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.perseg == (args.split is not None):
        raise ConfigError("legal is either --split YEAR/NAME or --perseg, got both or neither")
    table = _perseg(args) if args.perseg else _davis(args)
    print(table.to_text(), end="")
    if args.csv is not None:
        write_text(args.csv, table.to_csv())
    if args.json is not None:
        write_text(args.json, table.to_json())
    return 0


def _davis(args: argparse.Namespace) -> Table:
    from persam_video.evaluation.davis import evaluate, read_split
    from persam_video.evaluation.tables import davis_table

    clips = read_split(args.root, args.split, args.resolution)
    with progress_bar(args, len(clips), unit="clip") as count:
        score = evaluate(
            args.predictions,
            args.root,
            args.split,
            resolution=args.resolution,
            merge_objects=args.merge_objects,
            on_clip=count,
        )
    return davis_table(score)


def _perseg(args: argparse.Namespace) -> Table:
    from persam_video.evaluation.perseg import evaluate_perseg
    from persam_video.evaluation.tables import perseg_table

    return perseg_table(evaluate_perseg(args.predictions, args.root))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, replacing what is there: figures are made to be made again.

    Raises:
        SinkError: It cannot be written.
    """
    from persam_video.files import atomic_path
    from persam_video.sinks.base import sink_errors

    with sink_errors(path), atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
