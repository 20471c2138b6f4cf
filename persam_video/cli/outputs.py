"""The outputs that ``track`` and ``render`` can write, by name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persam_video.sinks import Sink
    from persam_video.types import VideoInfo

NAMES = {
    "masks": "masks",
    "overlay": "overlay.mp4",
    "sheet": "contact_sheet.jpg",
    "objects": "objects",
    "cutout": "cutout",
    "rle": "masks.json",
}
"""Name of an output -> its file or folder inside the output folder."""

OUTPUT_HELP = """outputs (--save):
  masks     masks/<frame>.png          palette PNG in the form of DAVIS, value = object id
  overlay   overlay.mp4                H.264 with contours, ids and the source's sound
  sheet     contact_sheet.jpg          twelve overlays of the whole run in one picture
  objects   objects/<id>/<frame>.png   one binary PNG per object
  cutout    cutout/<frame>.png         the objects with alpha, the rest transparent
  rle       masks.json                 COCO run-length masks with scores and states"""


def add_output_options(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Add ``--save``, ``--side-by-side`` and ``--overwrite``."""
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--save",
        type=_names,
        default=tuple(default),
        metavar="LIST",
        help=f"comma list out of {','.join(NAMES)} (default: {','.join(default)})",
    )
    group.add_argument(
        "--side-by-side", action="store_true", help="overlay video: the source beside the overlay"
    )
    group.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(
            f"unknown output {', '.join(map(repr, unknown))}; legal: {', '.join(NAMES)}"
        )
    return names


def make_sink(
    name: str, path: Path, info: VideoInfo, *, side_by_side: bool = False, overwrite: bool = False
) -> Sink:
    """The sink of one output; nothing is written yet.

    Args:
        name: Key of ``NAMES``.
        path: Its file or folder.
        info: The source's facts: rate, and where the sound is.
        side_by_side: See ``OverlayVideoSink``.
        overwrite: Allow replacing what is there.

    Raises:
        SinkError: The output exists, or cannot be written.
    """
    from persam_video.sinks import (
        ContactSheetSink,
        CutoutPngSink,
        ObjectPngSink,
        OverlayVideoSink,
        PalettePngSink,
        RleJsonSink,
    )

    match name:
        case "masks":
            return PalettePngSink(path, overwrite=overwrite)
        case "overlay":
            sound = Path(info.spec) if info.has_audio and Path(info.spec).is_file() else None
            return OverlayVideoSink(
                path, info.rate, audio_from=sound, side_by_side=side_by_side, overwrite=overwrite
            )
        case "sheet":
            return ContactSheetSink(path, overwrite=overwrite)
        case "objects":
            return ObjectPngSink(path, overwrite=overwrite)
        case "cutout":
            return CutoutPngSink(path, overwrite=overwrite)
        case "rle":
            return RleJsonSink(path, overwrite=overwrite)
    raise ValueError(f"unknown output {name!r}")


def make_sinks(
    args: argparse.Namespace, folder: Path, info: VideoInfo
) -> tuple[list[Sink], list[Path]]:
    """The sinks that ``--save`` names, and their paths inside ``folder``."""
    paths = [folder / NAMES[name] for name in args.save]
    sinks = [
        make_sink(name, path, info, side_by_side=args.side_by_side, overwrite=args.overwrite)
        for name, path in zip(args.save, paths, strict=True)
    ]
    return sinks, paths
