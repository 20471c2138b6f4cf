"""The progress bar, and what is told when a run has ended."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persam_video.writing import RunSummary


@contextmanager
def progress_bar(
    args: argparse.Namespace, total: int | None, unit: str = "frame"
) -> Iterator[Callable[[object], None]]:
    """Give a function that counts one up; a bar on stderr if that is a terminal, else nothing.

    Args:
        args: Of a command; ``quiet`` shows no bar.
        total: How many there will be; None when unknown (no time left is shown then).
        unit: What is counted.
    """
    if args.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with (
        logging_redirect_tqdm([logging.getLogger("persam_video")]),
        tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar,
    ):

        def count(_: object) -> None:
            bar.update()

        yield count


def summary_text(summary: RunSummary) -> str:
    """Frames, time, memory, and a line per object."""
    lines = [_figures(summary)]
    for object_id, states in sorted(summary.states.items()):
        counts = ", ".join(f"{state.value} {count}" for state, count in sorted(states.items()))
        lines.append(f"object {object_id}: {counts}")
    return "\n".join(lines)


def _figures(summary: RunSummary) -> str:
    text = f"{summary.frames} frames in {summary.seconds:.1f} s, {summary.fps:.2f} frames/s"
    if summary.peak_memory is not None:
        text += f", peak memory {summary.peak_memory / 2**20:.0f} MiB"
    return text
