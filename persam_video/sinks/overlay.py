"""Drawing masks over a picture: translucent fill, contour, id tag, list of unsure objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from persam_video.errors import PersamError
from persam_video.geometry import mask_to_box
from persam_video.label_maps import object_color
from persam_video.types import BoolArray, Float32Array, ObjectState, UInt8Array, object_ids

FILL_ALPHA = 0.45
"""Default share of the object's colour inside its mask; the rest is the picture."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_REFERENCE_SIDE = 480  # pixels of the shorter side at which line width 2 and letters look right
_INK = (16, 16, 16)
_PAPER = (255, 255, 255)

_Box = tuple[int, int, int, int]  # x1, y1, x2, y2, half-open, of a drawn tag


@dataclass(frozen=True, slots=True)
class _Style:
    """Sizes in pixels that grow with the picture."""

    line: int
    font_scale: float
    font_line: int
    pad: int

    @classmethod
    def of(cls, size_hw: tuple[int, int]) -> _Style:
        scale = min(max(min(size_hw) / _REFERENCE_SIDE, 0.5), 8.0)
        return cls(
            line=max(2, round(2 * scale)),
            font_scale=max(0.4, 0.5 * scale),
            font_line=max(1, round(1.25 * scale)),
            pad=max(3, round(4 * scale)),
        )


def draw_overlay(
    image_rgb: UInt8Array,
    labels: UInt8Array,
    scores: Mapping[int, float] | None = None,
    states: Mapping[int, ObjectState] | None = None,
    *,
    fill_alpha: float = FILL_ALPHA,
) -> UInt8Array:
    """A new picture with every object of the label map drawn over it.

    Args:
        image_rgb: (H, W, 3) uint8 RGB; not changed.
        labels: (H, W) uint8 label map; 0 and VOID are not drawn.
        scores: Object id -> confidence in [0, 1], written beside the id.
        states: Object id -> state; an uncertain object gets a question mark, and the objects that
            are lost or uncertain are listed in the upper left corner.
        fill_alpha: Share of the object's colour inside its mask, in [0, 1]; 0 draws no fill.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PersamError: ``labels`` has another size than the picture.
    """
    if labels.shape != image_rgb.shape[:2]:
        raise PersamError(
            f"a label map of {labels.shape} does not fit a picture of {image_rgb.shape[:2]}"
        )
    scores, states = scores or {}, states or {}
    style = _Style.of((labels.shape[0], labels.shape[1]))
    canvas = image_rgb.copy()
    boxes: dict[int, Float32Array] = {}
    for object_id in object_ids(labels):
        box = mask_to_box(labels == object_id)
        assert box is not None  # the id was found in the map
        boxes[object_id] = box
        _fill(canvas, labels == object_id, box, object_color(object_id), fill_alpha)
    for object_id in boxes:  # after all fills, or a neighbour's fill would dye the contour
        _draw_contour(canvas, labels == object_id, object_color(object_id), style)
    taken = _draw_corner_list(canvas, states, style)
    for object_id, box in boxes.items():
        text = _tag_text(object_id, scores, states)
        taken.append(_draw_tag(canvas, text, object_color(object_id), box, taken, style))
    return canvas


def _fill(
    canvas: UInt8Array,
    mask: BoolArray,
    box_xyxy: Float32Array,
    color: tuple[int, int, int],
    alpha: float,
) -> None:
    x1, y1, x2, y2 = (int(value) for value in box_xyxy)
    region, inside = canvas[y1:y2, x1:x2], mask[y1:y2, x1:x2]
    # What becomes of each value of each channel: looked up, it need not be computed per pixel.
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]
    blends = cv2.addWeighted(values, 1 - alpha, np.full_like(values, color), alpha, 0)
    cv2.copyTo(cv2.LUT(region, blends), inside.view(np.uint8), region)


def _draw_contour(
    canvas: UInt8Array, mask: BoolArray, color: tuple[int, int, int], style: _Style
) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # A dark line below keeps the contour visible on a background of its own colour.
    cv2.drawContours(canvas, contours, -1, _INK, style.line + 1, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, style.line, cv2.LINE_AA)


def _tag_text(
    object_id: int, scores: Mapping[int, float], states: Mapping[int, ObjectState]
) -> str:
    text = f"#{object_id}"
    if states.get(object_id) is ObjectState.UNCERTAIN:
        text += "?"
    return f"{text} {scores[object_id]:.2f}" if object_id in scores else text


def _draw_tag(
    canvas: UInt8Array,
    text: str,
    color: tuple[int, int, int],
    box_xyxy: Float32Array,
    taken: list[_Box],
    style: _Style,
) -> _Box:
    """Write ``text`` on a plate of ``color`` near the object, off the plates drawn before."""
    width, height = _plate_size(text, style)
    x1, y1, x2, y2 = (int(value) for value in box_xyxy)
    centre, gap = (x1 + x2 - width) // 2, style.pad
    wishes = [
        (centre, y1 - height - gap),
        (centre, y2 + gap),
        (x2 + gap, y1),
        (x1 - width - gap, y1),
    ]
    inside_frame = [_clamp(wish, (width, height), canvas) for wish in wishes]
    free = [plate for plate in inside_frame if not any(_overlap(plate, other) for other in taken)]
    # A wish that had to be pushed into the frame covers the object; prefer one that was not.
    whole = [
        p for p, wish in zip(inside_frame, wishes, strict=True) if p[1] == wish[1] and p in free
    ]
    plate = (whole or free or inside_frame)[0]
    cv2.rectangle(canvas, plate[:2], (plate[2] - 1, plate[3] - 1), color, cv2.FILLED)
    luma = float(np.dot(color, (0.299, 0.587, 0.114)))
    _write_on_plate(canvas, text, plate, _INK if luma > 110 else _PAPER, style)
    return plate


def _draw_corner_list(
    canvas: UInt8Array, states: Mapping[int, ObjectState], style: _Style
) -> list[_Box]:
    """List lost and uncertain objects in the upper left corner; the plates drawn."""
    plates: list[_Box] = []
    top = style.pad
    for object_id, state in sorted(states.items()):
        if state is ObjectState.TRACKED:
            continue
        text = f"#{object_id} {state.value}"
        width, height = _plate_size(text, style)
        if top + height > canvas.shape[0]:
            break
        chip = height // 2
        plate = _clamp((style.pad, top), (width + chip + style.pad, height), canvas)
        area = canvas[plate[1] : plate[3], plate[0] : plate[2]]
        area[:] = (area * np.float32(0.3)).astype(np.uint8)
        chip_xy = (plate[0] + style.pad, plate[1] + (height - chip) // 2)
        corner = (chip_xy[0] + chip, chip_xy[1] + chip)
        cv2.rectangle(canvas, chip_xy, corner, object_color(object_id), cv2.FILLED)
        text_plate = (plate[0] + chip + style.pad, plate[1], plate[2], plate[3])
        _write_on_plate(canvas, text, text_plate, _PAPER, style)
        plates.append(plate)
        top += height + max(1, style.pad // 2)
    return plates


def _plate_size(text: str, style: _Style) -> tuple[int, int]:
    """Width and height of the plate for ``text``."""
    (width, height), _ = cv2.getTextSize(text, _FONT, style.font_scale, style.font_line)
    return width + 2 * style.pad, height + 2 * style.pad


def _write_on_plate(
    canvas: UInt8Array, text: str, plate: _Box, color: tuple[int, int, int], style: _Style
) -> None:
    origin = (plate[0] + style.pad, plate[3] - style.pad)
    cv2.putText(canvas, text, origin, _FONT, style.font_scale, color, style.font_line, cv2.LINE_AA)


def _clamp(corner_xy: tuple[int, int], size_wh: tuple[int, int], canvas: UInt8Array) -> _Box:
    """Plate of ``size_wh`` at ``corner_xy``, pushed into the picture as far as it fits."""
    x = max(0, min(corner_xy[0], canvas.shape[1] - size_wh[0]))
    y = max(0, min(corner_xy[1], canvas.shape[0] - size_wh[1]))
    return x, y, x + size_wh[0], y + size_wh[1]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
