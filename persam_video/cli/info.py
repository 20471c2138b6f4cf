"""``persam-video info``: facts of a source, or of this installation."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version

from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config
from persam_video.cli.track import SOURCE_HELP
from persam_video.cli.weights import weights_line
from persam_video.config import EncoderConfig

_PACKAGES = (
    "persam-video",
    "torch",
    "segment-anything",
    "numpy",
    "av",
    "opencv-python",
)

_EXAMPLES = """examples:
  persam-video info                 versions, device, cache and weights: put it into bug reports
  persam-video info clip.mp4        size, rate, frames, sound
  persam-video info clip.mp4 --stride 2 --max-size 640     what track would get"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        allow_abbrev=False,
        help="facts of a video, or of this installation",
        description="Facts of a source as track would read it; without one, of this installation.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP)
    add_settings(parser, ("source",))
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    rows = _installation() if args.source is None else _source(args)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    return 0


def _source(args: argparse.Namespace) -> list[tuple[str, str]]:
    from persam_video.sources import open_source

    with open_source(args.source, resolve_config(args).source) as source:
        info = source.info
    height, width = info.size_hw
    rate = "unknown" if info.rate is None else f"{float(info.rate):.6g} frames/s ({info.rate})"
    seconds = ""
    if info.frame_count is not None and info.rate:
        seconds = f" ({float(info.frame_count / info.rate):.2f} s)"
    return [
        ("source", info.spec),
        ("size", f"{width} x {height}"),
        ("rate", rate),
        ("frames", "unknown" if info.frame_count is None else f"{info.frame_count}{seconds}"),
        ("sound", "yes" if info.has_audio else "no"),
        ("backend", info.backend),
    ]


def _installation() -> list[tuple[str, str]]:
    from persam_video.sam import checkpoints
    from persam_video.sam.models import resolve_device, resolved

    device, encoder = resolve_device("auto"), resolved(EncoderConfig())
    rows = [(name, version(name)) for name in _PACKAGES]
    rows += [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("device", f"{device} ({encoder.dtype})"),
        ("runtime", encoder.runtime),
        ("cache", str(checkpoints.cache_folder())),
    ]
    rows += [("weights", weights_line(status)) for status in checkpoints.list_weights()]
    return rows
