"""Composed scenes with exact masks, and real clips, for tools/hard_cases.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import persam_video as pv

SIZE_HW = (480, 854)
FRAMES = 30
_CUT = 15
_WIDEST = 1.35
"""Width of an object in heights, from which on its height is taken to be the width by this."""
SCENERY = 100
"""Labels from here on are copies, which nobody follows."""

Image8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Clip = list[tuple[pv.Frame, Image8]]
"""Frames and their (H, W) true label maps."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object stands in one frame.

    Attributes:
        x: Column of its centre.
        y: Row of its centre.
        height: Its height in pixels, in its clip's first frame; less where it is very wide.
        mirrored: Flipped left to right.
        followed: It is one of the objects; otherwise it is scenery, like a copy.
    """

    x: float
    y: float
    height: float = 170.0
    mirrored: bool = False
    followed: bool = True


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays in a scene.

    Attributes:
        background: Clip whose first frame is the background.
        actors: Clips that the objects are cut out of.
    """

    background: str
    actors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of scene.

    Attributes:
        casts: Who plays in each scene of it.
        places: Frame -> each actor's place, or None while it is away. Later actors are in front.
        before: Frame number, background -> background.
        after: Frame number, picture, true labels -> both, e.g. with something in front.
    """

    casts: tuple[Cast, ...]
    places: Callable[[int], Sequence[Place | None]]
    before: Callable[[int, Image8], Image8] = lambda _, image: image
    after: Callable[[int, Image8, Image8], tuple[Image8, Image8]] = lambda _, *both: both


def _across(t: int, start: float, end: float, first: int = 0, last: int = FRAMES - 1) -> float:
    share = min(max((t - first) / (last - first), 0.0), 1.0)
    return start + share * (end - start)


def _leave_and_return(t: int) -> list[Place | None]:
    """Out at the left, away for some ten frames, in again at the right."""
    if t < 11:
        return [Place(_across(t, 300, -120, 0, 10), 250)]
    return [None if t < 20 else Place(_across(t, 960, 600, 20, 29), 250)]


def _blurred(t: int, image: Image8, labels: Image8) -> tuple[Image8, Image8]:
    strength = 9.0 * max(0.0, 1 - abs(t - 14) / 8)
    if strength >= 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), strength), np.uint8)
    return image, labels


def _behind_a_post(t: int, image: Image8, labels: Image8) -> tuple[Image8, Image8]:
    image[:, 370:550] = (110, 90, 70)
    labels[:, 370:550] = 0
    return image, labels


def _panned(t: int, image: Image8) -> Image8:
    """A view of three quarters of the picture that goes to the right and trembles."""
    height, width = SIZE_HW
    left = _across(t, 0.0, width / 4) + 1.5 * np.sin(1.7 * t)
    top = height / 8 + 1.5 * np.sin(2.3 * t)
    view = np.array([[4 / 3, 0.0, -left * 4 / 3], [0.0, 4 / 3, -top * 4 / 3]])
    flags, border = cv2.INTER_LINEAR, cv2.BORDER_REPLICATE
    return np.asarray(
        cv2.warpAffine(image, view, (width, height), flags=flags, borderMode=border), np.uint8
    )


def _mirrored_after_the_cut(t: int, image: Image8) -> Image8:
    return image if t < _CUT else np.ascontiguousarray(image[:, ::-1])


_RETURNING = (
    Cast("soccerball", ("lucia",)),
    Cast("surf", ("drift-turn",)),
    Cast("kite-walk", ("mallard-fly",)),
    Cast("lucia", ("soccerball",)),
    Cast("swing", ("horsejump-low",)),
    Cast("drift-turn", ("breakdance-flare",)),
)

CASES = {
    "crossing": Case(
        (
            Cast("surf", ("lucia", "mallard-fly")),
            Cast("kite-walk", ("soccerball", "lucia")),
            Cast("lucia", ("drift-turn", "hockey")),
            Cast("hockey", ("mallard-fly", "horsejump-low")),
            Cast("swing", ("breakdance-flare", "drift-turn")),
        ),
        lambda t: [
            Place(_across(t, 150, 700), 240, 220),
            Place(_across(t, 700, 150), 260, 130),
        ],
    ),
    "return": Case(_RETURNING, _leave_and_return),
    "return_pan": Case(_RETURNING, _leave_and_return, before=_panned),
    "look_alike": Case(
        (
            Cast("hockey", ("mallard-fly", "mallard-fly")),
            Cast("surf", ("lucia", "lucia")),
            Cast("swing", ("soccerball", "soccerball")),
            Cast("kite-walk", ("drift-turn", "drift-turn")),
            Cast("drift-turn", ("horsejump-low", "horsejump-low")),
        ),
        lambda t: [
            Place(_across(t, 150, 420), 330, 120, followed=False, mirrored=True),
            Place(_across(t, 600, 250), 180, 120),
        ],
    ),
    "grows": Case(
        (
            Cast("swing", ("lucia",)),
            Cast("surf", ("mallard-fly",)),
            Cast("hockey", ("soccerball",)),
            Cast("soccerball", ("horsejump-low",)),
            Cast("lucia", ("breakdance-flare",)),
        ),
        lambda t: [Place(430, 240, _across(t, 80, 320))],
    ),
    "blur": Case(
        (
            Cast("drift-turn", ("lucia",)),
            Cast("hockey", ("mallard-fly",)),
            Cast("swing", ("breakdance-flare",)),
            Cast("surf", ("horsejump-low",)),
        ),
        lambda t: [Place(_across(t, 200, 650), 250)],
        after=_blurred,
    ),
    "occlusion": Case(
        (
            Cast("horsejump-low", ("mallard-fly",)),
            Cast("kite-walk", ("soccerball",)),
            Cast("surf", ("breakdance-flare",)),
            Cast("swing", ("lucia",)),
            Cast("lucia", ("hockey",)),
            Cast("hockey", ("horsejump-low",)),
        ),
        lambda t: [Place(_across(t, 200, 720), 240, 90)],
        after=_behind_a_post,
    ),
    "cut": Case(
        (
            Cast("kite-walk", ("lucia",)),
            Cast("surf", ("mallard-fly",)),
            Cast("hockey", ("drift-turn",)),
            Cast("soccerball", ("breakdance-flare",)),
            Cast("swing", ("soccerball",)),
        ),
        lambda t: [Place(250, 250) if t < _CUT else Place(600, 200, 200, mirrored=True)],
        before=_mirrored_after_the_cut,
    ),
}


class Cutouts:
    """The objects of the clips of a data set, frame by frame."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def picture(self, clip: str, index: int) -> Image8:
        """(H, W, 3) RGB frame of a clip, scaled to SIZE_HW."""
        path = sorted((self._root / "JPEGImages/480p" / clip).glob("*.jpg"))[index]
        image = Image.open(path).convert("RGB").resize(SIZE_HW[::-1], Image.Resampling.BILINEAR)
        return np.array(image)

    def cut(self, clip: str, index: int, height: float, mirrored: bool) -> tuple[Image8, Mask]:
        """The object in a frame, cropped to its box in the first frame's scale of ``height``."""
        masks = sorted((self._root / "Annotations/480p" / clip).glob("*.png"))
        images = sorted((self._root / "JPEGImages/480p" / clip).glob("*.jpg"))
        at = min(index, len(masks) - 1)
        mask = pv.read_label_map(masks[at]) > 0
        image = np.array(Image.open(images[at]).convert("RGB"))
        in_first = pv.read_label_map(masks[0]) > 0
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        tall, wide = (np.ptp(np.flatnonzero(in_first.any(axis=axis))) + 1 for axis in (1, 0))
        scale = height / max(tall, wide / _WIDEST)
        size = [max(2, round(scale * (ends[-1] + 1 - ends[0]))) for ends in (columns, rows)]
        crop = cv2.resize(image[box], size, interpolation=cv2.INTER_AREA)
        shape = cv2.resize(mask[box].astype(np.uint8), size, interpolation=cv2.INTER_LINEAR) > 0
        if mirrored:
            crop, shape = crop[:, ::-1], shape[:, ::-1]
        return np.asarray(crop, np.uint8), shape


def compose(case: Case, cast: Cast, cutouts: Cutouts) -> Clip:
    """Frames and (H, W) uint8 true label maps of a scene; copies have ids from SCENERY on."""
    canvas = cutouts.picture(cast.background, 0)
    followed = [i for i, place in enumerate(case.places(0)) if place and place.followed]
    clip = []
    for t in range(FRAMES):
        image, labels = case.before(t, canvas).copy(), np.zeros(SIZE_HW, np.uint8)
        for i, (actor, place) in enumerate(zip(cast.actors, case.places(t), strict=True)):
            if place is not None:
                crop, mask = cutouts.cut(actor, t, place.height, place.mirrored)
                object_id = followed.index(i) + 1 if i in followed else SCENERY + i
                _paste(image, labels, crop, mask, (place.x, place.y), object_id)
        image, labels = case.after(t, image, labels)
        clip.append((pv.Frame(t, t / 24, image), labels))
    return clip


def read_clip(root: Path, name: str) -> Clip:
    """Frames and annotations of a clip as they are."""
    truths = sorted((root / "Annotations/480p" / name).glob("*.png"))
    with pv.open_source(root / "JPEGImages/480p" / name) as source:
        return [(f, pv.read_label_map(path)) for f, path in zip(source, truths, strict=True)]


def _paste(
    image: Image8,
    labels: Image8,
    crop: Image8,
    mask: Mask,
    centre_xy: tuple[float, float],
    object_id: int,
) -> None:
    """Draw a cut-out; what lies outside the picture is left out."""
    height, width = mask.shape
    left, top = round(centre_xy[0] - width / 2), round(centre_xy[1] - height / 2)
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = min(SIZE_HW[1], left + width), min(SIZE_HW[0], top + height)
    if x1 >= x2 or y1 >= y2:
        return
    part = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
    shown = mask[part]
    image[y1:y2, x1:x2][shown] = crop[part][shown]
    labels[y1:y2, x1:x2][shown] = object_id
