"""``persam-video weights``: the cache of network weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from persam_video.cli.settings import HelpFormatter
from persam_video.errors import CheckpointError
from persam_video.sam.registry import DEFAULT_MODEL, MODELS

if TYPE_CHECKING:
    from persam_video.sam.checkpoints import WeightsStatus

_EXAMPLES = """\
Weights are kept in the user's cache folder, or in PERSAM_CACHE. Every file is checked by
its sha256 before it is read.

examples:
  persam-video weights list
  persam-video weights get vit_b
  persam-video weights verify"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "weights",
        allow_abbrev=False,
        help="list, fetch, locate and verify network weights",
        description="List, fetch, locate and verify network weights.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    names = f"one of {', '.join(MODELS)}"

    action = actions.add_parser("list", parents=[common], help="all models and what is there")
    action.set_defaults(execute=_list)
    action = actions.add_parser("get", parents=[common], help="fetch a model unless it is there")
    action.add_argument(
        "name", nargs="?", default=DEFAULT_MODEL, help=f"{names} (default: {DEFAULT_MODEL})"
    )
    action.set_defaults(execute=_get)
    action = actions.add_parser("path", parents=[common], help="where a model is, or would be")
    action.add_argument("name", help=names)
    action.set_defaults(execute=_path)
    action = actions.add_parser(
        "verify", parents=[common], help="check the sha256 of what is there"
    )
    action.add_argument("name", nargs="?", help=f"{names} (default: all)")
    action.set_defaults(execute=_verify)


def _list(args: argparse.Namespace) -> int:
    from persam_video.sam import checkpoints

    for status in checkpoints.list_weights():
        print(weights_line(status))
    return 0


def weights_line(status: WeightsStatus) -> str:
    """One model in one line."""
    from persam_video.sam.checkpoints import WeightsState

    size = f"{status.size / 1e6:.0f} MB" if status.size else "-"
    text = f"{status.model.name:6} {status.state.value:9} {size:>8}  {status.model.title}"
    origin = f", from the {status.source}" if status.source else ""
    damage = f": {status.detail}" if status.state is WeightsState.DAMAGED else ""
    return f"{text} ({status.model.licence}{origin}){damage}"


def _get(args: argparse.Namespace) -> int:
    from persam_video.sam import checkpoints

    print(checkpoints.get(args.name, progress=not args.quiet))
    return 0


def _path(args: argparse.Namespace) -> int:
    from persam_video.sam import checkpoints

    print(checkpoints.path(args.name))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from persam_video.sam import checkpoints
    from persam_video.sam.checkpoints import WeightsState

    names = list(MODELS) if args.name is None else [args.name]
    bad = []
    for name in names:
        status = checkpoints.verify(name)
        print(weights_line(status))
        missing = status.state is WeightsState.MISSING and args.name is not None
        if missing or status.state is WeightsState.DAMAGED:
            bad.append(f"{name} is {status.state.value}")
    if bad:
        raise CheckpointError(f"{', '.join(bad)}; persam-video weights get NAME fetches it")
    return 0
