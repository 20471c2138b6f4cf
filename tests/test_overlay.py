"""Drawing over a picture, and the contact sheet made of such drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sink_samples import LOST, TRACKED, UNCERTAIN, make_frame, make_result

from persam_video.errors import PersamError, SinkError
from persam_video.label_maps import object_color
from persam_video.sinks import (
    ContactSheetSink,
    draw_overlay,
)
from persam_video.types import UInt8Array


@pytest.mark.parametrize("count", [1, 2, 5, 20, 21, 97])
def test_contact_sheet_of_any_length_is_even_bounded_and_has_both_ends(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    path = tmp_path / "sheet.png"
    sink = ContactSheetSink(path, frames=5)

    def spy(canvas: UInt8Array, text: str, *rest: Any) -> None:
        shown.append(int(text.split("frame ")[1])) if "frame " in text else None

    monkeypatch.setattr(cv2, "putText", spy)
    for index in range(count):
        sink.write(make_frame(index % 30), make_result(index % 30))
        assert len(sink._kept) < 20
    positions = [thumb.position for thumb in sink._kept]
    sink.close()
    assert positions == list(range(0, count, sink._stride))
    assert 0 in shown
    assert (count - 1) % 30 in shown
    with Image.open(path) as image:
        tiles = (image.width // 406) * (image.height // 332)
    assert tiles >= min(count, 5)


def test_contact_sheet_of_one_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="at least 2 frames, got 1"):
        ContactSheetSink(tmp_path / "sheet.jpg", frames=1)


def test_overlay_mixes_colour_inside_and_leaves_the_rest() -> None:
    image = np.full((480, 640, 3), 100, np.uint8)
    labels = np.zeros((480, 640), np.uint8)
    labels[160:340, 200:400] = 2
    labels[470:, 620:] = 255
    drawn = draw_overlay(image, labels, fill_alpha=0.25)
    expected = np.rint(0.75 * 100 + 0.25 * np.array(object_color(2)))
    assert np.abs(drawn[250, 300] - expected).max() <= 1
    assert np.abs(drawn[160, 300] - np.array(object_color(2))).max() <= 8  # the contour
    assert (drawn[350:, :190] == 100).all()
    assert (drawn[470:, 620:] == 100).all()  # void is no object
    assert (image == 100).all()


def test_overlay_lists_lost_and_uncertain_objects_in_the_corner() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    labels = np.zeros((200, 300), np.uint8)
    calm = draw_overlay(image, labels, {1: 0.9}, {1: TRACKED})
    told = draw_overlay(image, labels, {1: 0.0, 4: 0.4}, {1: LOST, 4: UNCERTAIN})
    assert np.array_equal(calm, image)
    corner = told[:60, :120].reshape(-1, 3)
    for object_id in (1, 4):
        assert (corner == object_color(object_id)).all(axis=1).any()
    assert np.array_equal(told[100:], image[100:])


def test_overlay_of_touching_objects_puts_tags_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((240, 320), np.uint8)
    for number in range(4):
        labels[100:140, 100 + 12 * number : 112 + 12 * number] = number + 1
    plates: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def spy(canvas: UInt8Array, corner: tuple[int, int], other: tuple[int, int], *_: Any) -> None:
        plates.append((corner, other))

    monkeypatch.setattr(cv2, "rectangle", spy)
    draw_overlay(np.zeros((240, 320, 3), np.uint8), labels)
    assert len(plates) == 4
    for number, ((ax1, ay1), (ax2, ay2)) in enumerate(plates):
        for (bx1, by1), (bx2, by2) in plates[:number]:
            assert ax2 < bx1 or bx2 < ax1 or ay2 < by1 or by2 < ay1


@given(
    labels=st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 254, 255]))
    )
)
def test_overlay_of_any_small_map_keeps_shape_and_input(labels: UInt8Array) -> None:
    image = np.full((*labels.shape, 3), 7, np.uint8)
    drawn = draw_overlay(image, labels, {1: 1.0}, {1: UNCERTAIN, 9: LOST})
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 7).all()


def test_overlay_of_another_size_is_refused() -> None:
    with pytest.raises(PersamError, match=r"\(3, 4\) does not fit a picture of \(4, 4\)"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((3, 4), np.uint8))
