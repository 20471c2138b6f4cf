"""Which pixels an object has passed: on label maps whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest

from persam_video.tracking.passing import Passing
from persam_video.types import VOID, BoolArray, UInt8Array

SHAPE = (40, 120)
STAYED = np.ones(SHAPE, np.bool_)
STILL = np.eye(3)


def square(left: int, label: int = 1) -> UInt8Array:
    """A label map with a square of 20 pixels, cut off where the picture ends."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:30, max(0, left) : max(0, left + 20)] = label
    return labels


def shifted(pixels: float) -> np.ndarray:
    return np.array([[1.0, 0.0, pixels], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def passed_in(passing: Passing, clip: list[UInt8Array], camera: np.ndarray = STILL) -> BoolArray:
    """What is passed in the last of some frames."""
    for labels in clip:
        passed = passing.learn(labels, STAYED, camera)
    return passed


def with_scrap(left: int) -> UInt8Array:
    """The square, and a scrap that stays below where it was at first."""
    labels = square(left)
    labels[33:37, 10:14] = 1
    return labels


def test_scrap_left_behind_is_passed_once_the_object_has_gone_half_its_length() -> None:
    before = [with_scrap(10 + 4 * i) for i in range(3)]  # 8 of its 20 pixels
    assert not passed_in(Passing(), before).any()
    passed = passed_in(Passing(), [*before, with_scrap(22)])
    scrap = with_scrap(22) > square(22)
    assert np.array_equal(passed, scrap)


def test_part_is_passed_whole_or_not_at_all() -> None:
    def with_part(left: int, wide: int) -> UInt8Array:
        labels = square(left)
        labels[33:37, 10 : 10 + wide] = 1
        return labels

    clip = [with_part(10 + 4 * i, 6) for i in range(3)]
    most = passed_in(Passing(), [*clip, with_part(22, 10)])  # 4 of its 10 columns are new
    assert most[33:37, 10:20].all() and most.sum() == 40
    assert not passed_in(Passing(), [*clip, with_part(22, 13)]).any()


def test_part_of_one_colour_that_goes_along_is_not_passed() -> None:
    """A bar that is longer than the main part; inside it the picture looks as before."""
    passing = Passing()
    for i in range(16):
        labels = square(10 + 4 * i)
        labels[33:36, 10 + 4 * i : 28 + 4 * i] = 1  # smaller than the square, nearly as long
        stayed = STAYED.copy()
        stayed[33:36, 28 + 4 * i - 4 : 28 + 4 * i] = False
        assert not passing.learn(labels, stayed, STILL).any()


def test_what_is_tied_to_the_object_is_not_passed() -> None:
    passing = Passing()
    for i in range(20):
        labels = square(10 + 4 * i)
        labels[28:30, 10 : 10 + 4 * i] = 1  # a rope
        assert not passed_in(passing, [labels]).any()


def test_object_of_one_colour_has_not_passed_its_own_pixels() -> None:
    """They look as if they had stayed, too."""
    passing = Passing()
    assert not any(passed_in(passing, [square(4 * i)]).any() for i in range(25))


def test_scrap_that_changes_is_not_passed() -> None:
    passing, changed = Passing(), STAYED.copy()
    changed[33:37, 10:14] = False
    passed_in(passing, [with_scrap(10 + 4 * i) for i in range(5)])
    assert not passing.learn(with_scrap(30), changed, STILL).any()
    assert not passing.learn(with_scrap(34), STAYED, STILL).any()  # counted anew


def test_still_object_that_the_camera_leaves_behind_is_not_passed() -> None:
    """It goes out of the picture without moving: of its edges one is cut off, one stays."""
    passing = Passing()
    passed = [passed_in(passing, [square(30 - 4 * i)], shifted(-4)).any() for i in range(12)]
    assert not any(passed)


def test_object_that_leaves_is_measured_by_the_edge_that_is_seen() -> None:
    leaving = [with_scrap(6 - 4 * i) for i in range(4)]  # its left edge goes 6 pixels
    assert not passed_in(Passing(), leaving[:3]).any()
    assert passed_in(Passing(), leaving)[35, 12]


def test_object_that_goes_behind_something_is_not_passed() -> None:
    """Of its edges one goes on, and the other one is hidden where it was."""
    passing = Passing()
    for i in range(19):
        labels = square(40 + i)
        labels[:, 60:] = 0
        labels[33:37, 42:46] = 1  # stays in the mask, clear of what hides the object
        assert not passed_in(passing, [labels]).any()


def test_still_object_whose_largest_part_changes_is_not_passed() -> None:
    """It is behind a rail, and once its upper part is the larger one, once its lower part."""
    passing = Passing()
    for i in range(6):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:37, 30:50] = 1
        rail = 17 + 2 * (i % 2)
        labels[rail : rail + 3] = 0
        assert not passed_in(passing, [labels]).any()


def test_object_that_breathes_is_not_passed() -> None:
    """Its edges go out and in one after the other, and where it began it is again."""
    passing = Passing()
    for i in range(60):
        left, right = [(40, 60), (40, 63), (43, 63)][i % 3]
        labels = np.zeros(SHAPE, np.uint8)
        labels[10:30, left:right] = 1
        assert not passed_in(passing, [labels]).any()


def test_another_part_goes_on_anew_when_the_main_one_has_gone() -> None:
    passing, both = Passing(), with_scrap(60)
    both[2:6, 100:118] = 1
    passed_in(passing, [both] * 3)
    rest = np.where(square(60) > 0, 0, both).astype(np.uint8)
    assert not passed_in(passing, [rest] * 3).any()


@pytest.mark.parametrize("pan", [0.0, 0.3, 0.4, 1.0, 2.6])
def test_scrap_is_passed_under_any_pan(pan: float) -> None:
    """Pans below half a pixel add up; the object goes at 2 pixels a frame over the ground."""
    passing, passed = Passing(), []
    for i in range(14):
        # A thing of 6 pixels stays where it is on the ground, a square goes on from there.
        ground = 20 + round(pan * i)
        labels = square(ground + 2 * i)
        labels[33:37, ground : ground + 6] = 1
        passed.append(passed_in(passing, [labels], shifted(pan if i else 0.0))[35, ground + 3])
    assert not any(passed[:4])
    assert all(passed[6:])


def test_another_view_and_another_size_start_anew() -> None:
    passing = Passing()
    passed_in(passing, [with_scrap(10 + 4 * i) for i in range(5)])
    assert not passing.learn(with_scrap(30), STAYED, None).any()
    assert not passing.learn(with_scrap(34), STAYED, STILL).any()
    small = with_scrap(38)[:20]
    assert passing.learn(small, STAYED[:20], STILL).shape == (20, 120)


def test_every_object_is_measured_by_its_own_way_and_void_is_nobodys() -> None:
    def all_three(left: int) -> UInt8Array:
        labels = np.maximum(with_scrap(left), square(90, 7))
        labels[:8] = VOID * (with_scrap(left)[15:23] > 0)  # goes as the first one does
        labels[:4, 10:14] = VOID  # and leaves a scrap, too
        return labels

    passed = passed_in(Passing(), [all_three(10 + 4 * i) for i in range(6)])
    assert passed[35, 12]
    assert not passed[:, 90:].any() and not passed[:8].any()
