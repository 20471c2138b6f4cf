"""``persam-video``: parse, dispatch, and turn errors into one line and an exit code.

0 done, 1 PersamError, 2 usage or configuration, 130 Ctrl-C. Commands import torch and the like only
when they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from persam_video.cli import bench, davis, evaluate, export, info, render, track, weights
from persam_video.cli.settings import HelpFormatter
from persam_video.errors import ConfigError, PersamError

PROGRAM = "persam-video"

_COMMANDS = (track, davis, evaluate, render, bench, export, info, weights)

_EXAMPLES = """examples:
  persam-video track clip.mp4 --points "640,360"         click an object, get masks and a video
  persam-video track frames/ --mask first.png -o out     several objects, from a palette PNG
  persam-video render clip.mp4 out/masks -o again.mp4    draw masks that are already there
  persam-video davis DAVIS --split 2017/val -o pred      every clip of a split
  persam-video eval pred DAVIS --split 2017/val          J, F and J&F as the official code

persam-video COMMAND --help tells more. Exit codes: 0 done, 1 an error (one line on stderr),
2 wrong usage or configuration, 130 Ctrl-C (the files written so far are whole)."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``execute`` to the function that does it."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Follow objects through a video from one mask, click or photo.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    common = argparse.ArgumentParser(add_help=False)
    loudness = common.add_argument_group("messages").add_mutually_exclusive_group()
    loudness.add_argument(
        "-v", "--verbose", action="count", default=0, help="log what is done; -vv for details"
    )
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="no progress bar, no warnings, no summary"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_command(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; default: those of the process.

    Returns:
        The exit code. Wrong usage and ``--help`` leave through SystemExit, as argparse does it.
    """
    # Read when torch is loaded, which no command has done yet. Encoder and tracker share the cores:
    # a thread that spins while it waits takes them from the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = build_parser().parse_args(argv)
    with _log_to_stderr(args.verbose, args.quiet):
        try:
            return int(args.execute(args))
        except PersamError as error:
            _tell(f"error: {error}")
            return 2 if isinstance(error, ConfigError) else 1
        except KeyboardInterrupt:
            _tell("interrupted; files written so far are whole")
            return 130


def _tell(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


@contextmanager
def _log_to_stderr(verbose: int, quiet: bool) -> Iterator[None]:
    """Show the package's log on stderr for as long as a command runs."""
    level = (
        logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    )
    logger = logging.getLogger("persam_video")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"{PROGRAM}: %(levelname)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Formatter(logging.Formatter):
    """Levels in lower case, like the error line."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace(record.levelname, record.levelname.lower(), 1)
