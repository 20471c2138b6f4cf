"""``persam-video track``: the main job."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.cli.outputs import OUTPUT_HELP, add_output_options, make_sinks
from persam_video.cli.progress import progress_bar, summary_text
from persam_video.cli.reference import (
    add_later_masks,
    add_reference_options,
    read_later_masks,
    read_reference,
)
from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config, save_config
from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.sources import Source
    from persam_video.tracking.tracker import Tracker
    from persam_video.types import Frame, Reference, UInt8Array

SOURCE_HELP = (
    "image folder, video file, camera:N, stream address (rtsp://, http://, ...), - for a video on "
    "standard input, raw:WIDTHxHEIGHT@RATE for raw RGB frames on standard input"
)

_EXAMPLES = f"""{OUTPUT_HELP}

examples:
  one click, and look at the mask before the long run
    persam-video track clip.mp4 --points "640,360" --preview first.png --preview-only
  a click on, a click off, a box for a second object
    persam-video track clip.mp4 --points "120,80;+ 300,40;-" --box 2=400,200,520,360
  several objects from one palette PNG, or one file each
    persam-video track frames/ --mask first.png -o out --save masks,objects
    persam-video track frames/ --mask 1=dog.png --mask 2=hat.png
  the object is known from a photo
    persam-video track clip.mp4 --reference-image dog.jpg --mask dog_mask.png
  the mask of frame 57 was drawn anew; the frames before it are put right as well
    persam-video track clip.mp4 --mask 0.png --later-mask 57=57.png --look-back 57
  webcam, until Ctrl-C
    persam-video track camera:0 --points "320,240" --max-size 640
  ten seconds of a large file, settings from a file
    persam-video track clip.mov --mask m.png --start 250 --end 500 --config mine.toml"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "track",
        parents=[common],
        allow_abbrev=False,
        usage="persam-video track SOURCE (--mask FILE | --points X,Y | --box X1,Y1,X2,Y2) ...",
        help="follow objects through a video",
        description="Follow objects through a video from one mask, click, box or photo.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the outputs (default: <source>_tracked)",
    )
    add_reference_options(parser)
    add_later_masks(parser)
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="FILE",
        help="write a picture of the first mask over its frame, or over the reference image",
    )
    parser.add_argument("--preview-only", action="store_true", help="stop after the preview")
    add_output_options(parser, default=("masks", "overlay", "sheet"))
    add_settings(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    config = resolve_config(args)
    if args.preview_only and args.preview is None:
        raise ConfigError("--preview-only needs --preview FILE")
    reference = read_reference(args)

    from persam_video.pipeline import run
    from persam_video.sam.models import resolved
    from persam_video.sources import open_source
    from persam_video.tracking.tracker import Tracker

    resolved(config.encoder)  # what cannot run here is told before anything is written
    with open_source(args.source, config.source) as source:
        if args.preview_only:
            tracker = Tracker.from_config(config, progress=not args.quiet)
            _preview(args, source, tracker, reference)
            return 0
        later = read_later_masks(args, config.source, source.info)
        folder = args.output or default_output(args.source)
        sinks, paths = make_sinks(args, folder, source.info)
        paths.append(save_config(folder, config, args.overwrite))
        tracker = Tracker.from_config(config, progress=not args.quiet)
        frames: Iterable[Frame] = source
        if args.preview is not None:
            frames, reference = _preview(args, source, tracker, reference)
        with progress_bar(args, source.info.frame_count) as count:
            summary = run(frames, tracker, replace(reference, later=later), sinks, count)
    if not args.quiet:
        print(summary_text(summary), *paths, sep="\n")
    return 0


def default_output(spec: str) -> Path:
    """Folder in the working directory, named after the source."""
    path = Path(spec)
    if path.exists():
        path = path.resolve()
        return Path(f"{path.name if path.is_dir() else path.stem}_tracked")
    address = spec.partition("://")[2] or spec
    return Path(f"{re.sub(r'[^A-Za-z0-9.]+', '-', address).strip('-.') or 'stdin'}_tracked")


def _preview(
    args: argparse.Namespace, source: Source, tracker: Tracker, reference: Reference
) -> tuple[Iterable[Frame], Reference]:
    """Write the preview; the frames to track, and the reference with its masks made."""
    from persam_video.pipeline import reference_labels
    from persam_video.types import Reference

    frames: Iterable[Frame] = source
    picture = reference.image_rgb
    if picture is None:
        first = next(source)
        picture, frames = first.image_rgb, chain([first], source)
    labels = reference_labels(tracker, reference, picture)
    _write_preview(args.preview, picture, labels, args.overwrite)
    if not args.quiet:
        print(args.preview)
    return frames, Reference(labels, image_rgb=reference.image_rgb)


def _write_preview(path: Path, image_rgb: UInt8Array, labels: UInt8Array, overwrite: bool) -> None:
    from PIL import Image

    from persam_video.files import atomic_path
    from persam_video.sinks.base import claim_file, sink_errors
    from persam_video.sinks.overlay import draw_overlay

    claim_file(path, (".png", ".jpg", ".jpeg", ".webp"), overwrite)
    with sink_errors(path), atomic_path(path) as temporary:
        Image.fromarray(draw_overlay(image_rgb, labels)).save(temporary)
