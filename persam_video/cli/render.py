"""``persam-video render``: every output from masks that are on disk already."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.cli.outputs import OUTPUT_HELP, add_output_options, make_sink, make_sinks
from persam_video.cli.progress import progress_bar, summary_text
from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config
from persam_video.cli.track import SOURCE_HELP
from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.sinks import Sink
    from persam_video.types import VideoInfo

_DEFAULT = ("overlay", "sheet")
_BY_SUFFIX = {".jpg": "sheet", ".jpeg": "sheet", ".png": "sheet", ".json": "rle"}

_EXAMPLES = f"""\
MASKS is a folder of label PNGs (<frame>.png), a folder with one folder of masks per
object (<id>/<frame>.png), or a COCO JSON of this program. They are matched to the frames by
name, or by order when the names differ.

{OUTPUT_HELP}

examples:
  persam-video render clip.mp4 out/masks -o again.mp4 --side-by-side
  persam-video render clip.mp4 out/masks.json -o sheet.jpg
  persam-video render DAVIS/JPEGImages/480p/cows pred/cows -o cows --save overlay,cutout"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "render",
        parents=[common],
        allow_abbrev=False,
        help="overlay video and the like from masks on disk, ours or anybody's",
        description="Make any output from masks that are on disk already, ours or anybody's.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("masks", type=Path, metavar="MASKS", help="folder or .json, see below")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help=".mp4, .mov, .m4v, .mkv: overlay video; .jpg, .png: contact sheet; .json: COCO masks; "
        "without an ending: a folder for what --save names",
    )
    add_output_options(parser, default=_DEFAULT)
    add_settings(parser, ("source",))
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    config = resolve_config(args)
    if args.output.suffix and args.save != _DEFAULT:
        raise ConfigError(f"--save is for a folder; {args.output} names one file by its ending")

    from persam_video.pipeline import prefetched
    from persam_video.sinks import open_masks, pair_masks
    from persam_video.sources import open_source
    from persam_video.writing import write_results

    masks = open_masks(args.masks)
    with open_source(args.source, config.source) as source:
        sinks, paths = _sinks(args, source.info)
        with (
            closing(prefetched(source)) as frames,
            progress_bar(args, source.info.frame_count) as count,
        ):
            results = pair_masks(frames, masks, source.info.frame_count)
            summary = write_results(results, sinks, count)
    if not args.quiet:
        print(summary_text(summary), *paths, sep="\n")
    return 0


def _sinks(args: argparse.Namespace, info: VideoInfo) -> tuple[list[Sink], list[Path]]:
    if not args.output.suffix:
        return make_sinks(args, args.output, info)
    name = _BY_SUFFIX.get(args.output.suffix.lower(), "overlay")
    sink = make_sink(
        name, args.output, info, side_by_side=args.side_by_side, overwrite=args.overwrite
    )
    return [sink], [args.output]
