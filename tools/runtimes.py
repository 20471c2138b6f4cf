r"""The runtimes and number formats of the image encoder against torch: time, error, and J&F.

    python tools/runtimes.py FRAME.jpg -o OUT
    python tools/runtimes.py FRAME.jpg -o OUT --calibrate CLIP
    python tools/runtimes.py FRAME.jpg -o OUT --calibrate CLIP --davis ROOT --split 2016/dev \
        --clips a,b,c --frames 30

One process; all take turns on the same frame round by round, so that a busy machine slows all of
them alike: believe the ratios of one run, not times of two. CPU is the time that all threads spent
on processors, which other processes disturb less. Times are medians of ``encode`` of a whole frame
(resizing too). A ratio is the median of the rounds' ratios to torch in the same number format, for
int8 to torch in the format that "auto" takes here; the choice of ``--runtime auto`` rests on it.
Errors are of the image embedding, relative to torch in float32. --calibrate adds int8, calibrated
on that source (some minutes; kept in OUT for the next run); --only "torch_compile bfloat16" adds
torch.compile, which needs a C++ compiler and a minute or so to warm up. J&F is of all objects of a
clip as one, from its first annotation, over the first --frames frames.

OUT gets runtimes.json and runtimes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as persam-video does, before torch is loaded

import numpy as np
from PIL import Image

import persam_video as pv
from persam_video.batch import first_labels
from persam_video.benchmark.report import commit, machine, versions
from persam_video.benchmark.truth import Score, Truth
from persam_video.cli.main import main as persam_video_main
from persam_video.evaluation.davis import DavisClip, read_split
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.models import resolved
from persam_video.sam.runtimes import PRECISIONS, is_installed
from persam_video.types import UInt8Array

REFERENCE = "torch float32"
_FORMATS = {"openvino": "openvino", "onnxruntime": "onnx"}


@dataclass(slots=True)
class Kind:
    """A runtime in a number format, and what was measured of it.

    Attributes:
        settings: It as settings.
        against: Name of the kind that its times are compared with.
        wall_ms: Of each round.
        cpu_ms: The same, summed over all threads.
        error: Of the image embedding, relative to ``REFERENCE``.
        scores: Clip -> J&F in [0, 100].
    """

    settings: pv.EncoderConfig
    against: str
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    error: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


def kinds(options: argparse.Namespace) -> dict[str, Kind]:
    """Everything that runs here; exports the int8 networks that are not in OUT yet."""

    def settings(**chosen: str) -> pv.EncoderConfig:
        return pv.EncoderConfig(device="cpu", **chosen)

    found = {}
    for precision in ("float32", "bfloat16"):
        name = f"torch {precision}"
        found[name] = Kind(settings(runtime="torch", dtype=precision), name)
        name = f"torch_compile {precision}"
        if name in (options.only or ""):  # minutes of warm-up, and a compiler is needed
            found[name] = Kind(
                settings(runtime="torch_compile", dtype=precision), f"torch {precision}"
            )
    own = f"torch {resolved(settings(runtime='torch')).dtype}"
    for runtime, precisions in PRECISIONS.items():
        if not is_installed(runtime):
            continue
        for precision in precisions:
            chosen = settings(runtime=runtime, dtype=precision)
            found[f"{runtime} {precision}"] = Kind(chosen, f"torch {precision}")
        if options.calibrate:
            folder = options.output / f"{runtime}_int8"
            if not folder.exists():
                export_int8(_FORMATS[runtime], options.calibrate, folder)
            found[f"{runtime} int8"] = Kind(settings(exported=str(folder)), own)
    if options.only is None:
        return found
    names = set(options.only.split(","))
    if unknown := sorted(names - found.keys()):
        raise SystemExit(f"--only: {', '.join(unknown)} is none of {', '.join(found)}")
    names |= {REFERENCE, *(found[name].against for name in names)}
    return {name: kind for name, kind in found.items() if name in names}


def export_int8(format_name: str, source: str, folder: Path) -> None:
    """Run ``persam-video export``."""
    command = ["export", "--format", format_name, "--precision", "int8", "--calibrate", source]
    if persam_video_main([*command, "-o", str(folder)]) != 0:
        raise SystemExit(f"no int8 export for {format_name}")


def measure(
    found: dict[str, Kind], encoders: dict[str, SamImageEncoder], image: UInt8Array, rounds: int
) -> None:
    """Fill in errors, whose encoding compiles and warms up, and times."""
    necks = {name: encoders[name].encode(image).neck for name in found}
    reference = necks[REFERENCE]
    for name, kind in found.items():
        kind.error = float((necks[name] - reference).norm() / reference.norm())
    for number in range(rounds):
        for name in list(found)[:: -1 if number % 2 else 1]:
            begin, used = time.perf_counter(), time.process_time()
            encoders[name].encode(image)
            found[name].wall_ms.append(1e3 * (time.perf_counter() - begin))
            found[name].cpu_ms.append(1e3 * (time.process_time() - used))


def score(
    clip: DavisClip, network: tuple[SamImageEncoder, SamDecoder], frames: int | None
) -> Score:
    """Follow a clip's objects as one."""
    tracker = pv.Tracker(*network)
    truth = Truth(clip.annotations[0].parent, merge_objects=True)
    masks = []
    with pv.open_source(clip.frame_folder) as source:
        for frame in islice(source, frames):
            if frame.index == 0:
                tracker.start(frame, first_labels(clip, merge_objects=True))
            else:
                masks.append((frame.stem, tracker.step(frame).labels))
    return truth.score((1,), masks)


def timing(own: list[float], other: list[float]) -> str:
    """Median, and the median of the rounds' ratios to another kind's."""
    return f"{np.median(own):.0f} ({np.median(np.array(own) / np.array(other)):.2f})"


def table(found: dict[str, Kind]) -> str:
    """Markdown; medians over the rounds."""
    clips = list(next(iter(found.values())).scores)
    head = ["runtime", "encode, ms (ratio)", "CPU, ms (ratio)", "error"]
    head += [*clips, "J&F"] if clips else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, kind in found.items():
        other = found[kind.against]
        cells = [name, timing(kind.wall_ms, other.wall_ms), timing(kind.cpu_ms, other.cpu_ms)]
        cells.append(f"{kind.error:.1e}")
        if clips:
            cells += [f"{kind.scores[clip]:.1f}" for clip in clips]
            cells.append(f"{np.mean(list(kind.scores.values())):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frame", type=Path, help="picture that is timed")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=10, help="timed turns, default %(default)s")
    parser.add_argument(
        "--only", help=f"names of some rows, with commas, {REFERENCE!r} in any case"
    )
    parser.add_argument("--calibrate", metavar="SOURCE", help="adds int8, calibrated on this clip")
    parser.add_argument("--davis", type=Path, metavar="ROOT", help="folder in DAVIS layout: J&F")
    parser.add_argument("--split", default="2016/dev", help="ImageSets file, default %(default)s")
    parser.add_argument("--clips", help="names of some of its clips, with commas")
    parser.add_argument("--frames", type=int, help="of each clip, default all")
    options = parser.parse_args()
    if options.rounds < 1 or (options.frames is not None and options.frames < 3):
        parser.error("--rounds must be at least 1 and --frames at least 3")
    return options


def chosen_clips(options: argparse.Namespace) -> list[DavisClip]:
    """The clips to score, none without --davis."""
    if options.davis is None:
        return []
    clips = {clip.name: clip for clip in read_split(options.davis, options.split)}
    names = options.clips.split(",") if options.clips else list(clips)
    if unknown := sorted(set(names) - clips.keys()):
        raise SystemExit(f"--clips: {', '.join(unknown)} is none of {', '.join(clips)}")
    return [clips[name] for name in names]


def main() -> None:
    """Measure, print, write."""
    options = parse()
    clips = chosen_clips(options)
    image = np.array(Image.open(options.frame).convert("RGB"))
    options.output.mkdir(parents=True, exist_ok=True)
    found = kinds(options)
    networks = {name: pv.load_sam(kind.settings) for name, kind in found.items()}
    encoders = {name: encoder for name, (encoder, _) in networks.items()}
    measure(found, encoders, image, options.rounds)
    for clip in clips:
        for name, kind in found.items():
            kind.scores[clip.name] = 100 * score(clip, networks[name], options.frames).j_and_f
            print(f"{name} {clip.name} {kind.scores[clip.name]:.1f}", flush=True)
    text = table(found)
    print(text, end="")
    about = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions(*PRECISIONS, "nncf"),
        "kinds": {name: asdict(kind) for name, kind in found.items()},
    }
    (options.output / "runtimes.md").write_text(text, encoding="utf-8")
    (options.output / "runtimes.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
