"""Points and boxes as text, the way the command line takes them.

    points:  [ID=]X,Y[;+|;-]     "120,80;+ 300,40;-"     "1=120,80 2=40,60;+ 2=44,90;-"
    boxes:   [ID=]X1,Y1,X2,Y2    "100,50,220,180"        "2=10,20,60,80"

Items are separated by white space. ``+`` (the default) is a point on the object, ``-`` one off it.
Without ``ID=`` an item belongs to object 1. Numbers are source pixels, x right and y down, with or
without decimals; x2 and y2 are the first column and row outside the box.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from persam_video.errors import PromptError
from persam_video.types import Prompt, check_object_id

DEFAULT_OBJECT_ID = 1

_ID = r"(?:(?P<id>[+-]?\d{1,9})=)?"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_POINT = re.compile(rf"{_ID}(?P<numbers>{_NUMBER},{_NUMBER})(?:;(?P<sign>[+-]))?", re.ASCII)
_BOX = re.compile(rf"{_ID}(?P<numbers>{_NUMBER}(?:,{_NUMBER}){{3}})", re.ASCII)


def parse_prompts(points: Iterable[str] = (), boxes: Iterable[str] = ()) -> dict[int, Prompt]:
    """Clicks and boxes per object id, ascending.

    Args:
        points: Texts of the points' form; several texts count as one.
        boxes: Texts of the boxes' form; one box per object.

    Returns:
        Object id -> prompt; empty when both arguments are. Whether the prompts lie inside the
        frame is for ``Prompt.check_inside`` to tell, once there is a frame.

    Raises:
        PromptError: An item has another form, an id is not in 1..254, an object has two boxes or
            only points off it, or a box is empty; the item or the object is shown.
    """
    clicks: dict[int, list[tuple[list[float], int]]] = {}
    for object_id, numbers, match in _items(points, _POINT, "point", "X,Y;+ or X,Y;-"):
        clicks.setdefault(object_id, []).append((numbers, 0 if match["sign"] == "-" else 1))
    box_of: dict[int, list[float]] = {}
    for object_id, numbers, match in _items(boxes, _BOX, "box", "X1,Y1,X2,Y2"):
        if object_id in box_of:
            raise PromptError(
                f"object {object_id} has a second box, {match[0]!r}; legal is one per object "
                f"(another object's box starts with its id: 2=X1,Y1,X2,Y2)"
            )
        box_of[object_id] = numbers
    return {
        object_id: _prompt(object_id, clicks.get(object_id, []), box_of.get(object_id))
        for object_id in sorted({*clicks, *box_of})
    }


def _items(
    texts: Iterable[str], pattern: re.Pattern[str], kind: str, form: str
) -> Iterator[tuple[int, list[float], re.Match[str]]]:
    """Object id, numbers and match of every item."""
    for text in texts:
        items = text.split()
        if not items:
            raise PromptError(f"a {kind} is expected, got {text!r}; legal is {form}")
        for item in items:
            match = pattern.fullmatch(item)
            if match is None:
                raise PromptError(
                    f"{item!r} is no {kind}; legal is {form}, with ID= in front for an object "
                    "other than 1, without spaces inside"
                )
            object_id = DEFAULT_OBJECT_ID if match["id"] is None else int(match["id"])
            check_object_id(object_id)
            yield object_id, [float(number) for number in match["numbers"].split(",")], match


def _prompt(
    object_id: int, clicks: list[tuple[list[float], int]], box: list[float] | None
) -> Prompt:
    try:
        return Prompt(
            points_xy=np.array([xy for xy, _ in clicks], np.float32).reshape(-1, 2),
            point_labels=np.array([label for _, label in clicks], np.int32),
            box_xyxy=None if box is None else np.array(box, np.float32),
        )
    except PromptError as error:
        raise PromptError(f"object {object_id}: {error.message}") from None
