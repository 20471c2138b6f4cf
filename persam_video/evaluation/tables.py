"""Scores as text, CSV and JSON.

Text shows percent with one decimal; CSV and JSON hold shares in full precision under the names of
the official code ("J&F-Mean", "J-Decay", ...).
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass

from persam_video.evaluation.perseg import PersegScore
from persam_video.evaluation.scores import ClipScore, DavisScore, ObjectScore

DAVIS_FIGURES = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
PERSEG_FIGURES = ("IoU", "Accuracy")
TOTAL = "total"
ALL_OBJECTS = "all"


@dataclass(frozen=True, slots=True)
class Row:
    """What the figures belong to, one entry per name column, and the figures as shares."""

    names: tuple[str, ...]
    figures: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of figures; the total is the last one.

    Attributes:
        title: What was scored.
        name_columns: Headings of the columns that say whose figures they are.
        figure_columns: Headings of the figures.
        rows: The rows, each as wide as the headings.
    """

    title: str
    name_columns: tuple[str, ...]
    figure_columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_text(self) -> str:
        """Aligned columns in percent, for a terminal."""
        cells = [[*self.name_columns, *self.figure_columns]]
        cells += [[*r.names, *(f"{100 * value:.1f}" for value in r.figures)] for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.title]
        for row in cells:
            padded = [
                cell.ljust(width) if column < len(self.name_columns) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """A heading and one line per row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.name_columns, *self.figure_columns])
        writer.writerows([*row.names, *map(repr, row.figures)] for row in self.rows)
        return text.getvalue()

    def to_json(self) -> str:
        """``{"title": ..., "rows": [{"clip": ..., "J-Mean": ...}, ...]}``; the total is last."""
        columns = (*self.name_columns, *self.figure_columns)
        rows = [dict(zip(columns, (*r.names, *r.figures), strict=True)) for r in self.rows]
        return json.dumps({"title": self.title, "rows": rows}, indent=1) + "\n"


def davis_table(score: DavisScore) -> Table:
    """One row per object, one per clip (object "all"), and the total."""
    rows = []
    for clip in score.clips:
        rows += [Row((o.clip, str(o.object_id)), _davis_figures(o)) for o in clip.objects]
        rows.append(Row((clip.name, ALL_OBJECTS), _davis_figures(clip)))
    rows.append(Row((TOTAL, ALL_OBJECTS), _davis_figures(score)))
    merged = ", objects merged" if score.merge_objects else ""
    title = (
        f"DAVIS {score.split}{merged}: {len(score.clips)} clips, {len(score.objects)} objects, "
        "first and last frame left out"
    )
    return Table(title, ("clip", "object"), DAVIS_FIGURES, tuple(rows))


def perseg_table(score: PersegScore) -> Table:
    """One row per subject, and the total: mIoU and mean accuracy."""
    rows = [Row((s.name,), (s.iou, s.accuracy)) for s in score.subjects]
    rows.append(Row((TOTAL,), (score.mean_iou, score.mean_accuracy)))
    title = f"PerSeg: {len(score.subjects)} subjects, reference photo left out"
    return Table(title, ("subject",), PERSEG_FIGURES, tuple(rows))


def _davis_figures(score: ObjectScore | ClipScore | DavisScore) -> tuple[float, ...]:
    j, f = score.j, score.f
    return (score.j_and_f, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)
