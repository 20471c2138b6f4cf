"""What tools/bench.py has measured: ratios, the text for a terminal, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bench_sweeps import EARLY

from persam_video.benchmark.report import Report
from persam_video.files import atomic_path

OWN, FIRST = "default", "first_way"
"""Names of the tracker that is measured, and of the first implementation's way."""

_ONCE = ("settings", "machine", "versions", "commit")
"""Fields of a report that stand once at the top of the JSON."""


def entry(report: Report) -> dict[str, Any]:
    """A report for the JSON, J&F added."""
    values = {name: value for name, value in asdict(report).items() if name not in _ONCE}
    if report.score is not None:
        values["score"]["j_and_f"] = report.score.j_and_f
    return values


def ratios(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What the sections measured so far say about each other, all within this run.

    Each ratio has its ``value``, the median of the ``rounds`` where there are several, and says
    what it ``means``.
    """
    found: dict[str, Any] = {}
    compared = sections.get("compare", {})
    own = compared.get(OWN)
    for name, other in compared.items():
        if own is None or name in (OWN, FIRST):
            continue
        found[f"{OWN}_over_{name}"] = _of_rounds(
            own["round_fps"], other["round_fps"], f"frames/s of {OWN} over those of {name}"
        )
    if FIRST in compared:
        for name, other in compared.items():
            if name != FIRST and not other.get("random_weights"):
                found[f"{name}_over_{FIRST}"] = _of_rounds(
                    other["round_fps"],
                    compared[FIRST]["round_fps"],
                    f"frames/s of {name} over those of the first implementation's way",
                )
    if own is not None:
        found["end_to_end_over_slowest_stage"] = {
            "value": own["overlap"],
            "means": f"frames/s end to end over what {own['slowest']} alone allows",
        }
    objects = sections.get("objects", {})
    one = own if own is not None and own["objects"] == 1 else objects.get("1")
    if one is not None:
        found["besides_encoder"] = {
            "value": float(np.median(one["round_ratios"])) - 1,
            "rounds": [ratio - 1 for ratio in one["round_ratios"]],
            "means": "everything but the bare encoder per frame, one object, as its share",
        }
    for count, many in objects.items():
        if "1" in objects and count != "1":
            found[f"objects_{count}_over_1"] = _of_rounds(
                many["round_ratios"],
                objects["1"]["round_ratios"],
                f"time of a step with {count} objects, {many['found']:.0%} of them found, over "
                "that with one",
            )
            found[f"objects_{count}_over_1_end_to_end"] = _of_rounds(
                objects["1"]["round_fps"],
                many["round_fps"],
                f"time of a frame from end to end with {count} objects over that with one",
            )
    return found | _of_lengths(sections.get("lengths", []))


def _of_rounds(these: Sequence[float], those: Sequence[float], means: str) -> dict[str, Any]:
    values = [a / b for a, b in zip(these, those, strict=True)]
    return {"value": float(np.median(values)), "rounds": values, "means": means}


def _of_lengths(windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last window of a long clip against that at frame 100, or the first one."""
    if len(windows) < 2:
        return {}
    early, late = next((w for w in windows if w["frame"] == EARLY), windows[0]), windows[-1]
    if early is late:
        return {}
    name = f"frame_{late['frame']}_over_{early['frame']}"
    steps = [window["track"] / window["encode"] for window in (early, late)]
    found = {
        f"{name}_time": {
            "value": steps[1] / steps[0],
            "means": "time of a frame against the encoder's meanwhile, late over early",
        },
        f"{name}_memory": {
            "value": late["peak_memory"] / early["peak_memory"],
            "means": "peak resident memory, late over early, of 100 frames each or fewer",
        },
    }
    if early["allocated"] and late["allocated"]:
        found[f"{name}_allocated"] = {
            "value": late["allocated"] / early["allocated"],
            "means": "most memory in use, without what the allocator keeps, likewise",
        }
    if early["peak_gpu_memory"] and late["peak_gpu_memory"]:
        found[f"{name}_gpu_memory"] = {
            "value": late["peak_gpu_memory"] / early["peak_gpu_memory"],
            "means": "peak memory on the GPU, late over early, likewise",
        }
    return found


def text(results: Mapping[str, Any]) -> str:
    """Tables of all sections and the ratios, for a terminal."""
    sections = results["sections"]
    lines = []
    for title, key in (("", "compare"), ("objects", "objects"), ("height", "sizes")):
        if key in sections:
            lines += [_table(title, sections[key]), ""]
    if windows := sections.get("lengths"):
        lines.append("   frame  ms/frame  encode ms  in use MiB  resident MiB  peak MiB   J&F")
        for w in windows:
            lines.append(
                f"{w['frame']:8}{1e3 * w['track']:10.1f}{1e3 * w['encode']:11.1f}"
                f"{(w['allocated'] or 0) / 2**20:12.0f}{(w['resident'] or 0) / 2**20:14.0f}"
                f"{w['peak_memory'] / 2**20:10.0f}"
                f"{_percent(w['score']):>6}"
            )
        lines.append("")
    for name, ratio in results["ratios"].items():
        rounds = ", ".join(f"{value:.2f}" for value in ratio.get("rounds", ()))
        lines.append(
            f"{name}: {ratio['value']:.2f}{f' (rounds: {rounds})' if rounds else ''}; "
            f"{ratio['means']}"
        )
    lines += [results["machine"], results["versions"], f"commit {results['commit'] or 'unknown'}"]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, Any]) -> str:
    """One line per thing measured: medians in milliseconds."""
    stages = ("decode", "encode", "track", "write", "latency")
    width = max(12, *map(len, rows))
    head = "".join(f"{f'{stage} ms':>11}" for stage in stages)
    lines = [f"{title:{width}}{head}  track/encode  frames/s  found   J&F"]
    for name, row in rows.items():
        times = "".join(f"{1e3 * row[stage]['median']:11.1f}" for stage in stages)
        found = "" if row.get("random_weights") else f"{row['found']:.0%}"
        lines.append(
            f"{name:{width}}{times}{row['ratio']:14.2f}{row['fps']:10.2f}{found:>7}{_percent(row['score']):>6}"
        )
    return "\n".join(lines)


def _percent(score: Mapping[str, float] | None) -> str:
    return "" if score is None else f"{50 * (score['j'] + score['f']):.1f}"


def plot(results: Mapping[str, Any], path: Path) -> bool:
    """Stage times, and cost against objects, size and length; False without matplotlib."""
    if not find_spec("matplotlib"):
        return False
    from matplotlib.figure import Figure

    sections = results["sections"]
    panels = [
        (draw, sections[key])
        for key, draw in (
            ("compare", _plot_stages),
            ("compare", _plot_speeds),
            ("objects", _plot_objects),
            ("sizes", _plot_sizes),
            ("lengths", _plot_lengths),
        )
        if sections.get(key)
    ]
    if not panels:
        return False
    rows = -(-len(panels) // 2)
    columns = min(2, len(panels))
    figure = Figure(figsize=(6.5 * columns, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (draw, section) in zip(grid, panels, strict=False):
        draw(axes, section)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(f"{results['machine'].partition(',')[0]}, commit {results['commit']}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return True


def _plot_stages(axes: Any, compared: Mapping[str, Any]) -> None:
    """Bars of every stage of the tracker with their spread, and the bare encoder's line."""
    own = compared[OWN]
    stages = {name: own[name] for name in ("decode", "track", "write")}
    rows = {"decode": stages["decode"], "track": stages["track"]}
    rows |= {f"of it {name}": spread for name, spread in own["parts"].items()}
    rows["write"] = stages["write"]
    low, middle, high = (
        np.array([1e3 * row[name] for row in rows.values()]) for name in ("low", "median", "high")
    )
    colours = ["C0" if name in stages else "C9" for name in rows]
    bars = axes.barh(
        list(rows), middle, xerr=[middle - low, high - middle], color=colours, ecolor="0.4"
    )
    axes.bar_label(
        bars, [f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in middle], padding=4, fontsize=8
    )
    axes.axvline(1e3 * own["encode"]["median"], color="C1", label="bare encoder")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds per frame, each stage alone")
    axes.legend()


def _plot_speeds(axes: Any, compared: Mapping[str, Any]) -> None:
    """Frames per second end to end of all that is compared, J&F beside them."""
    names = [
        f"{name}\nJ&F {_percent(row['score'])}" if row["score"] else name
        for name, row in compared.items()
    ]
    axes.barh(names, [row["fps"] for row in compared.values()], color="C0")
    for place, row in enumerate(compared.values()):
        axes.plot(row["round_fps"], [place] * len(row["round_fps"]), "|", color="0.2")
    axes.invert_yaxis()
    axes.set_xlabel("frames/s end to end, median and rounds")


def _plot_objects(axes: Any, objects: Mapping[str, Any]) -> None:
    """Time of a frame alone and end to end, and of the encoder, against the number of objects."""
    counts = [int(count) for count in objects]
    for stage, label, colour in (("track", "a step", "C0"), ("encode", "bare encoder", "C1")):
        low, middle, high = (
            [1e3 * row[stage][name] for row in objects.values()]
            for name in ("low", "median", "high")
        )
        axes.plot(counts, middle, "o-", color=colour, label=label)
        axes.fill_between(counts, low, high, color=colour, alpha=0.2)
    end_to_end = [1e3 / row["fps"] for row in objects.values()]
    axes.plot(counts, end_to_end, "o--", color="C2", label="end to end")
    axes.set(xlabel="objects", xticks=counts, ylabel="milliseconds per frame", ylim=(0, None))
    axes.legend()


def _plot_sizes(axes: Any, sizes: Mapping[str, Any]) -> None:
    """Each stage against the height of the source."""
    heights = [int(height) for height in sizes]
    for stage in ("decode", "encode", "track", "write"):
        axes.plot(
            heights, [1e3 * row[stage]["median"] for row in sizes.values()], "o-", label=stage
        )
    axes.set(xlabel="height of the source in pixels", ylabel="milliseconds per frame")
    axes.set(yscale="log", xticks=heights)
    axes.legend()


def _plot_lengths(axes: Any, windows: Sequence[Mapping[str, Any]]) -> None:
    """Time of a frame and memory against the position in the clip."""
    frames = [window["frame"] for window in windows]
    axes.plot(frames, [w["track"] / w["encode"] for w in windows], "o-", label="frame / encoder")
    first = windows[0]["peak_memory"]
    axes.plot(
        frames, [w["peak_memory"] / first for w in windows], "s-", label="peak memory / first"
    )
    axes.set(xlabel="frame of the looped clip", ylabel="ratio", ylim=(0, None))
    axes.legend()
