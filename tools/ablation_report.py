"""What an ablation has shown: table, CSV, JSON, plot, and pictures of the worst frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from oracles import ORACLES
from PIL import Image

import persam_video as pv
from persam_video.evaluation.davis import DavisClip
from persam_video.files import atomic_path

_RESAMPLES = 10_000
_WORST = 6
"""Frames per clip on a sheet."""


@dataclass(frozen=True, slots=True)
class ClipRun:
    """One variant on one clip.

    Attributes:
        variant: Its name.
        clip: Its name.
        j: J of every frame that counts, in [0, 1], mean over the objects.
        f: F of the same frames.
        ms: Part of the tracker -> mean milliseconds per frame; "all" is all but the encoder.
        encoder_runs: Pictures encoded per frame.
        answers: State, score and J of every object in every frame that counts.
    """

    variant: str
    clip: str
    j: list[float]
    f: list[float]
    ms: dict[str, float]
    encoder_runs: float
    answers: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def j_and_f(self) -> float:
        """Mean of J mean and F mean, in [0, 1]."""
        return float(np.mean(self.j) + np.mean(self.f)) / 2


def bootstrap_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, clips drawn with replacement."""
    draws = np.random.default_rng(0).integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_report(
    runs: Sequence[ClipRun],
    baseline: str,
    about: Mapping[str, Any],
    folder: Path,
    *,
    halves: bool = False,
) -> str:
    """Write scores.csv, report.json and scores.png; returns the table for the terminal."""
    names = list(dict.fromkeys(run.variant for run in runs))
    clips = list(dict.fromkeys(run.clip for run in runs))
    of = {(run.variant, run.clip): run for run in runs}
    scores = {n: 100 * np.array([of[n, clip].j_and_f for clip in clips]) for n in names}
    summaries = {
        name: _summary([of[name, clip] for clip in clips], scores[name], scores[baseline])
        for name in names
    }
    answers = [a for clip in clips for a in of[baseline, clip].answers]
    lines = _table(summaries, baseline) + _kept_word(baseline, answers)
    if halves:
        lines += _confirmed(names, baseline, scores)
    width = max(map(len, names))
    for name in names:
        pairs = zip(clips, scores[name], strict=True)
        lines.append(f"{name:{width}} {', '.join(f'{clip} {score:.0f}' for clip, score in pairs)}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "report.json") as path:
        report = {**about, "baseline": baseline, "variants": summaries}
        path.write_text(json.dumps(report, indent=1) + "\n")
    with atomic_path(folder / "scores.csv") as path:
        _write_csv(runs, path)
    if find_spec("matplotlib"):
        _plot(names, baseline, scores, folder / "scores.png")
        _plot_states(answers, about["settings"][baseline]["track"], folder / "states.png")
    return "\n".join(lines)


def _summary(
    own: Sequence[ClipRun], scores: NDArray[np.float64], baseline: NDArray[np.float64]
) -> dict[str, Any]:
    """A variant's runs on all clips, whose scores are given, against the baseline's."""
    difference = scores - baseline
    return {
        "J&F": float(scores.mean()),
        "J": 100 * float(np.mean([np.mean(run.j) for run in own])),
        "F": 100 * float(np.mean([np.mean(run.f) for run in own])),
        "difference": float(difference.mean()),
        "interval": list(bootstrap_interval(difference)),
        "ms": {part: float(np.mean([run.ms[part] for run in own])) for part in own[0].ms},
        "encoder_runs": float(np.mean([run.encoder_runs for run in own])),
        "clips": dict(zip((run.clip for run in own), scores.tolist(), strict=True)),
    }


def _table(summaries: Mapping[str, Mapping[str, Any]], baseline: str) -> list[str]:
    """One line per variant, below a head."""
    width = max(map(len, summaries))
    lines = [f"{'':{width}}   J&F      J      F   against {baseline} (95 %)   encoded      ms"]
    for name, of in summaries.items():
        low, high = of["interval"]
        versus = f"{of['difference']:+6.2f} ({low:+.2f} .. {high:+.2f})"
        lines.append(
            f"{name:{width}} {of['J&F']:5.1f}  {of['J']:5.1f}  {of['F']:5.1f}   "
            f"{'' if name == baseline else versus:26} "
            f"{of['encoder_runs']:9.2f} {of['ms'].get('all', float('nan')):7.0f}"
        )
    return lines


def _write_csv(runs: Sequence[ClipRun], path: Path) -> None:
    """One row per variant and clip."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "clip", "J&F", "J", "F", "encoder runs", "ms"])
        for run in runs:
            j, f = 100 * np.mean(run.j), 100 * np.mean(run.f)
            row = [100 * run.j_and_f, j, f, run.encoder_runs, run.ms.get("all", float("nan"))]
            writer.writerow([run.variant, run.clip, *(f"{value:.2f}" for value in row)])


def _confirmed(
    names: list[str], baseline: str, scores: Mapping[str, NDArray[np.float64]]
) -> list[str]:
    """The best variant of every second clip, and what it is worth on the clips between them."""
    real = [name for name in names if name not in ORACLES]
    lines = []
    for first in (0, 1):
        best = max(real, key=lambda name: scores[name][first::2].mean())
        gains = [(scores[best] - scores[baseline])[k::2].mean() for k in (first, 1 - first)]
        half = ("1st, 3rd, ...", "2nd, 4th, ...")[first]
        lines.append(f"best on the {half} clips: {best}, {gains[0]:+.2f}; others {gains[1]:+.2f}")
    return lines


def _plot(
    names: list[str], baseline: str, scores: Mapping[str, NDArray[np.float64]], path: Path
) -> None:
    """Differences to the baseline: one dot per clip, the mean and its interval."""
    from matplotlib.figure import Figure

    others = [name for name in names if name != baseline]
    figure = Figure(figsize=(8, 1 + 0.4 * len(others)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(others):
        difference = scores[name] - scores[baseline]
        low, high = bootstrap_interval(difference)
        axes.plot(difference, np.full(len(difference), row), "o", color="0.7", markersize=4)
        axes.plot([low, high], [row, row], color="C0")
        axes.plot(difference.mean(), row, "s", color="C0")
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(others)), others)
    axes.invert_yaxis()
    axes.set_xlabel(f"J&F against {baseline}; dots are clips, the bar is 95 % of the mean")
    figure.savefig(path, dpi=120)


def _kept_word(name: str, answers: Sequence[tuple[str, float, float]]) -> list[str]:
    """How often each state was given, and the J of its masks."""
    lines = []
    for state in dict.fromkeys(state for state, _, _ in answers):
        j = np.array([value for own, _, value in answers if own == state])
        lines.append(
            f"{name} says {state} in {100 * len(j) / len(answers):.1f} % of the frames: "
            f"J {100 * j.mean():.0f}, below 50 in {100 * (j < 0.5).mean():.0f} % of them"
        )
    return lines


def _plot_states(
    answers: Sequence[tuple[str, float, float]], track: Mapping[str, Any], path: Path
) -> None:
    """Score against J, a dot per object and frame, with the thresholds of the states."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for state in dict.fromkeys(state for state, _, _ in answers):
        own = np.array([(score, j) for name, score, j in answers if name == state])
        axes.plot(own[:, 0], own[:, 1], ".", markersize=4, alpha=0.4, label=state)
    for name, style in (("lost_below", ":"), ("found_above", "--"), ("uncertain_below", "-")):
        axes.axvline(track[name], color="0.4", linewidth=1, linestyle=style, label=name)
    axes.set_xlabel("score")
    axes.set_ylabel("J")
    axes.legend()
    figure.savefig(path, dpi=120)


def write_sheets(
    variant: str, runs: Sequence[ClipRun], clips: Sequence[DavisClip], folder: Path
) -> None:
    """sheets/<variant>.png: a row per clip, its worst frames; prediction filled, truth outlined."""
    rows = []
    by_name = {clip.name: clip for clip in clips}
    for run in sorted(runs, key=lambda r: r.j_and_f):
        clip = by_name[run.clip]
        worst = np.argsort(np.add(run.j, run.f), kind="stable")[:_WORST]
        tiles = [_tile(clip, i + 1, run.j[i], folder / variant) for i in sorted(worst.tolist())]
        tiles += [np.zeros_like(tiles[0])] * (_WORST - len(tiles))
        rows.append(np.hstack(tiles))
    path = folder / "sheets" / f"{variant}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(path)


def _tile(clip: DavisClip, frame: int, j: float, predictions: Path) -> NDArray[np.uint8]:
    image = np.array(Image.open(clip.frames[frame]).convert("RGB"))
    stem = clip.frames[frame].stem
    predicted = pv.read_label_map(predictions / clip.name / f"{stem}.png") > 0
    truth = pv.read_label_map(clip.annotations[frame]) > 0
    image[predicted] = image[predicted] // 2 + np.array([0, 127, 0], np.uint8)
    outlines, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, (255, 0, 0), 2)
    tile = cv2.resize(image, (320, 180), interpolation=cv2.INTER_AREA)
    text = f"{clip.name} {stem} J {100 * j:.0f}"
    cv2.putText(tile, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0), 1, cv2.LINE_AA)
    return np.asarray(tile, np.uint8)
