"""The options that say what to follow, and the Reference made of them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.config import SourceConfig
    from persam_video.types import Reference, UInt8Array, VideoInfo

_LATER = re.compile(r"(?P<frame>\d{1,9})=(?P<mask>.+)", re.ASCII | re.DOTALL)
_UNKNOWN = 10**9
"""The end of a source that does not tell how many frames it has."""


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--mask``, ``--threshold``, ``--points``, ``--box`` and ``--reference-image``."""
    group = parser.add_argument_group(
        "what to follow",
        "On the first frame that is read, or on --reference-image. Coordinates are pixels of\n"
        "that picture (for a frame: after --max-size), x right, y down. Ids are 1 to 254.",
    )
    group.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[ID=]FILE",
        help="mask of one or several objects: palette or grey PNG (values are ids), black and "
        "white picture, .npy, COCO RLE .json; ID= names the object of a file with one (repeatable)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="makes a grey mask with soft edges one object: values from X on, in the file's units",
    )
    group.add_argument(
        "--points",
        action="append",
        default=[],
        metavar='"[ID=]X,Y[;+|-] ..."',
        help="clicks on (;+, the default) and off (;-) an object, separated by spaces; SAM makes "
        "the first mask (repeatable)",
    )
    group.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="[ID=]X1,Y1,X2,Y2",
        help="box around an object, X2 and Y2 outside of it; SAM makes the first mask (repeatable)",
    )
    group.add_argument(
        "--reference-image",
        type=Path,
        metavar="FILE",
        help="another picture that shows the object: --mask, --points and --box belong to it, and "
        "the object is searched in every frame, the first one too",
    )


def add_later_masks(parser: argparse.ArgumentParser) -> None:
    """Add ``--later-mask``."""
    parser.add_argument(
        "--later-mask",
        action="append",
        default=[],
        metavar="FRAME=[ID=]FILE",
        help="mask for a later frame, otherwise as --mask: puts right what has gone wrong by then, "
        "adds objects that come late; with --look-back N up to N frames before it are put right, "
        "too (repeatable)",
    )


def read_reference(args: argparse.Namespace) -> Reference:
    """The reference that the options describe; whether it fits the frames is seen later.

    Raises:
        ConfigError: No option says what to follow, or ``--threshold`` has no mask.
        PromptError: A mask, point or box makes no sense.
        SourceError: The reference picture cannot be read.
    """
    from persam_video.references.masks import read_masks
    from persam_video.references.prompts import parse_prompts
    from persam_video.sources import open_source
    from persam_video.types import Reference

    if not (args.mask or args.points or args.box):
        raise ConfigError(
            "nothing says what to follow; legal are --mask FILE, --points X,Y and --box X1,Y1,X2,Y2"
        )
    if args.threshold is not None and not (args.mask or getattr(args, "later_mask", [])):
        raise ConfigError("--threshold is for masks; there is no --mask")
    labels = read_masks(args.mask, threshold=args.threshold) if args.mask else None
    prompts = parse_prompts(args.points, args.box)
    image_rgb = None
    if args.reference_image is not None:
        with open_source(args.reference_image) as picture:
            image_rgb = next(picture).image_rgb
    return Reference(labels, prompts, image_rgb)


def read_later_masks(
    args: argparse.Namespace, config: SourceConfig, info: VideoInfo
) -> dict[int, UInt8Array]:
    """Frame index -> (H, W) uint8 label map of ``--later-mask``.

    Args:
        args: The options.
        config: Says which frames are read.
        info: Of the source, opened with it.

    Raises:
        ConfigError: No frame is named, or one that is not read.
        PromptError: A mask makes no sense.
    """
    from persam_video.references.masks import check_mask_size, read_masks

    end = config.end or _UNKNOWN
    if info.frame_count is not None:
        end = min(end, config.start + info.frame_count * config.stride)
    legal = range(config.start, end, config.stride)
    if args.reference_image is None:
        legal = legal[1:]  # the first frame's masks are the reference
    specs: dict[int, list[str]] = {}
    for given in args.later_mask:
        match = _LATER.fullmatch(given)
        if match is None:
            raise ConfigError(
                f"--later-mask must be FRAME=FILE or FRAME=ID=FILE, like 57=mask.png, got {given!r}"
            )
        if int(match["frame"]) not in legal:
            some = ", ".join(map(str, legal[:2])) or "none"
            last = f" to {legal[-1]}" if end != _UNKNOWN and len(legal) > 2 else ""
            raise ConfigError(
                f"--later-mask {given!r}: that frame is not read after the first one; legal are "
                f"{some}, ...{last}"
            )
        specs.setdefault(int(match["frame"]), []).append(match["mask"])
    later = {frame: read_masks(some, threshold=args.threshold) for frame, some in specs.items()}
    for frame, labels in later.items():
        check_mask_size(labels, info.size_hw, of=f"frame {frame}")
    return later
