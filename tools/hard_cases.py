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
OUT gets report.json and a sheet per scene (predictions filled, truth outlined in white).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scenes import CASES, SCENERY, Clip, Cutouts, Image8, compose, read_clip

import persam_video as pv
from persam_video.evaluation.metrics import region_similarity
from persam_video.types import VOID

_FOUND_WITHIN = 5
_ABSENT = 3
"""Frames away from which on coming back counts as a return."""


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
    everything = sorted({int(i) for truth in truths for i in np.unique(truth)} - {0, VOID})
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


def draw_sheet(clip: Clip, results: Sequence[Image8], ids: Sequence[int]) -> Image8:
    """Twelve frames of a scene: predictions filled, true outlines of the objects in white."""
    tiles = []
    for at in np.linspace(0, len(clip) - 1, 12).round().astype(int).tolist():
        frame, truth = clip[at]
        image = pv.draw_overlay(frame.image_rgb, results[at])
        for object_id in ids:
            outlines, _ = cv2.findContours(
                (truth == object_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(image, outlines, -1, (255, 255, 255), 1)
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


def run_scene(clip: Clip, first: Image8, tracker: pv.Tracker) -> tuple[Findings, Image8]:
    """Findings in a scene and its sheet; ``first`` is the label map of what is followed."""
    pairs = pv.track((frame for frame, _ in clip), tracker, pv.Reference(labels=first))
    results, ids = [result.labels for _, result in pairs], tracker.object_ids
    found = judge([truth for _, truth in clip], results, ids)
    return found, draw_sheet(clip, results, ids)


def scenes_of(
    name: str, cutouts: Cutouts, options: argparse.Namespace
) -> Iterator[tuple[str, Clip, Image8]]:
    """Title, frames and first label map of the scenes of a case, or of a clip as it is."""
    if options.clips:
        clip = read_clip(options.root, name)
        yield name, clip, clip[0][1]
        return
    for cast in CASES[name].casts[: options.scenes]:
        clip = compose(CASES[name], cast, cutouts)
        truth = clip[0][1]
        title = f"{name}: {', '.join(cast.actors)} on {cast.background}"
        yield title, clip, np.where(truth < SCENERY, truth, 0).astype(np.uint8)


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
        for title, clip, first in scenes_of(name, cutouts, options):
            scenes[title], sheet = run_scene(clip, first, tracker)
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
