r"""Compose hard cases with exact masks from a DAVIS split, and count what goes wrong in them.

    python tools/hard_cases.py ROOT -o OUT
    python tools/hard_cases.py ROOT -o OUT --cases crossing,return --scenes 1 \
        --config configs/accurate.toml
    python tools/hard_cases.py ROOT -o OUT --clips dogs-jump

Objects are cut out of clips, frame by frame, so that they move and deform as they did, and pasted
on a still picture of another clip, once under a moving camera: two cross, one leaves and returns,
copies stand beside it, it grows four times as large, blurs, hides, is cut to another place; each
with several casts of objects and backgrounds. Per scene: J on the frames where the object is there;
switches, the times that the mask of one object moves over to another one; returns found within five
frames; and the mask's area while there is no object, in objects. Per case the means of its scenes,
switches and returns summed.
OUT gets report.json and a sheet per scene (predictions filled, truth outlined).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import persam_video as pv
from persam_video.evaluation.metrics import region_similarity

SIZE_HW = (480, 854)
FRAMES = 30
_FOUND_WITHIN = 5
_ABSENT = 3
"""Frames away from which on coming back counts as a return."""
_CUT = 15
_WIDEST = 1.35
"""Width of an object in heights, from which on its height is taken to be the width by this."""
_SCENERY = 100
"""Labels from here on are copies, which nobody follows."""
_COLOURS = np.array([[0, 0, 0], [230, 60, 60], [60, 160, 250], [240, 200, 40]], np.uint8)

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
    """Frames and (H, W) uint8 true label maps of a scene; copies have ids from _SCENERY on."""
    canvas = cutouts.picture(cast.background, 0)
    followed = [i for i, place in enumerate(case.places(0)) if place and place.followed]
    clip = []
    for t in range(FRAMES):
        image, labels = case.before(t, canvas).copy(), np.zeros(SIZE_HW, np.uint8)
        for i, (actor, place) in enumerate(zip(cast.actors, case.places(t), strict=True)):
            if place is not None:
                crop, mask = cutouts.cut(actor, t, place.height, place.mirrored)
                object_id = followed.index(i) + 1 if i in followed else _SCENERY + i
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


@dataclass(frozen=True, slots=True)
class Findings:
    """What happened in a scene, or in all of a case.

    Attributes:
        j: Mean region similarity over objects and the frames where they are there.
        switches: Times that an object's mask moved over to another object, or to a copy.
        returns: Times that an object came back.
        found: Of these, how often its mask was on it (J >= 0.5) within five frames.
        false_area: Mean area of the masks of absent objects, in first areas of the object.
    """

    j: float
    switches: int
    returns: int
    found: int
    false_area: float


def judge(truths: Sequence[Image8], results: Sequence[Image8], ids: Sequence[int]) -> Findings:
    """Count, from true and predicted (H, W) label maps of all frames."""
    everything = sorted({int(i) for truth in truths for i in np.unique(truth)} - {0})
    similarity, false_areas = [], []
    switches = returns = found = 0
    for object_id in ids:
        own = [truth == object_id for truth in truths]
        masks = [result == object_id for result in results]
        there = [bool(mask.any()) for mask in own]
        overlap = [region_similarity(a, b) for a, b in zip(masks, own, strict=True)]
        similarity += [value for value, seen in zip(overlap[1:], there[1:], strict=True) if seen]
        area = own[0].sum()
        false_areas += [m.sum() / area for m, seen in zip(masks, there, strict=True) if not seen]
        on_another = [
            any(
                region_similarity(mask, truth == other) > max(0.3, value)
                for other in everything
                if other != object_id
            )
            for mask, truth, value in zip(masks, truths, overlap, strict=True)
        ]
        switches += sum(now and not before for before, now in pairwise(on_another))
        for t in range(_ABSENT, len(truths)):
            if there[t] and not any(there[t - _ABSENT : t]):
                returns += 1
                found += any(value >= 0.5 for value in overlap[t : t + _FOUND_WITHIN])
    return Findings(
        float(np.mean(similarity)),
        switches,
        returns,
        found,
        float(np.mean(false_areas)) if false_areas else 0.0,
    )


def draw_sheet(clip: Clip, results: Sequence[Image8]) -> Image8:
    """Twelve frames of a case: predictions filled in the objects' colours, truth outlined."""
    tiles = []
    for at in np.linspace(0, len(clip) - 1, 12).round().astype(int).tolist():
        frame, truth = clip[at]
        colours = _COLOURS[np.minimum(results[at], len(_COLOURS) - 1)]
        image = np.where((results[at] > 0)[..., None], frame.image_rgb // 2 + colours // 2, 0)
        image = np.where((results[at] > 0)[..., None], image, frame.image_rgb).astype(np.uint8)
        for object_id in np.unique(truth[(truth > 0) & (truth < _SCENERY)]).tolist():
            outlines, _ = cv2.findContours(
                (truth == object_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(image, outlines, -1, _COLOURS[object_id].tolist(), 2)
        tile = cv2.resize(image, (427, 240), interpolation=cv2.INTER_AREA)
        cv2.putText(tile, str(at), (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
        tiles.append(tile)
    return np.vstack([np.hstack(tiles[row : row + 4]) for row in range(0, 12, 4)])


def judge_all(scenes: Sequence[Findings]) -> Findings:
    """Means of J and of the false area, sums of the counts."""
    return Findings(
        float(np.mean([scene.j for scene in scenes])),
        sum(scene.switches for scene in scenes),
        sum(scene.returns for scene in scenes),
        sum(scene.found for scene in scenes),
        float(np.mean([scene.false_area for scene in scenes])),
    )


def run_scene(clip: Clip, tracker: pv.Tracker) -> tuple[Findings, Image8]:
    """Findings in a scene and its sheet."""
    truth = clip[0][1]
    followed = np.where(truth < _SCENERY, truth, 0).astype(np.uint8)
    pairs = pv.track((frame for frame, _ in clip), tracker, pv.Reference(labels=followed))
    results = [result.labels for _, result in pairs]
    found = judge([truth for _, truth in clip], results, tracker.object_ids)
    return found, draw_sheet(clip, results)


def scenes_of(
    name: str, cutouts: Cutouts, options: argparse.Namespace
) -> Iterator[tuple[str, Clip]]:
    """Title and frames of the scenes of a case, or of a clip as it is."""
    if options.clips:
        yield name, read_clip(options.root, name)
        return
    for cast in CASES[name].casts[: options.scenes]:
        title = f"{name}: {', '.join(cast.actors)} on {cast.background}"
        yield title, compose(CASES[name], cast, cutouts)


def row(name: str, found: Findings) -> str:
    """A line of the table."""
    return (
        f"{name:46} {100 * found.j:5.1f} {found.switches:9} "
        f"{f'{found.found} of {found.returns}':>14} {100 * found.false_area:9.1f} %"
    )


def main() -> None:
    """Run the cases, print the table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder in DAVIS layout")
    parser.add_argument("--cases", default=",".join(CASES), help="default %(default)s")
    parser.add_argument("--clips", help="real clips to be judged in their place, with commas")
    parser.add_argument("--scenes", type=int, help="of each case at most so many; default all")
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    names = options.cases.split(",")
    if unknown := sorted(set(names) - CASES.keys()):
        parser.error(f"there is no case {', '.join(unknown)}; legal: {', '.join(CASES)}")
    frames = options.root / "JPEGImages/480p"
    clips = options.clips.split(",") if options.clips else []
    if missing := [clip for clip in clips if not (frames / clip).is_dir()]:
        parser.error(f"{frames} has no clip {', '.join(missing)}")
    if options.scenes is not None and options.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {options.scenes}")

    config = pv.load_config(options.config) if options.config else pv.Config()
    tracker = pv.Tracker.from_config(config)
    cutouts = Cutouts(options.root)
    options.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    print(f"{'case':46} {'J':>5} {'switches':>9} {'returns found':>14} {'false area':>11}")
    for name in clips or names:
        scenes = {}
        for title, clip in scenes_of(name, cutouts, options):
            scenes[title], sheet = run_scene(clip, tracker)
            print(row(f"  {title}", scenes[title]), flush=True)
            Image.fromarray(sheet).save(options.output / f"{name}_{len(scenes)}.png")
        whole = judge_all(list(scenes.values()))
        print(row(name, whole), flush=True)
        report[name] = {
            **asdict(whole),
            "scenes": {title: asdict(found) for title, found in scenes.items()},
        }
    about = {
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cases": report,
    }
    (options.output / "report.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
