"""The options that say what to follow, and the Reference made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.types import Reference


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
    if args.threshold is not None and not args.mask:
        raise ConfigError("--threshold is for masks; there is no --mask")
    labels = read_masks(args.mask, threshold=args.threshold) if args.mask else None
    prompts = parse_prompts(args.points, args.box)
    image_rgb = None
    if args.reference_image is not None:
        with open_source(args.reference_image) as picture:
            image_rgb = next(picture).image_rgb
    return Reference(labels, prompts, image_rgb)
