"""The camera's motion: what is followed, and what is not believed."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from persam_video.tracking.camera import Camera
from persam_video.types import BoolArray, UInt8Array

HEIGHT, WIDTH = 288, 512
EVERYTHING = np.ones((HEIGHT, WIDTH), np.bool_)


def texture(seed: int, size_hw: tuple[int, int], *grains: float) -> UInt8Array:
    rng, total = np.random.default_rng(seed), np.zeros(size_hw, np.float32)
    for grain in grains:
        noise = np.asarray(cv2.GaussianBlur(rng.normal(size=size_hw), (0, 0), grain))
        total += noise / noise.std()
    return np.clip(128 + 40 * total, 0, 255).astype(np.uint8)


def pan(lefts: list[int], seed: int = 0) -> list[UInt8Array]:
    """Grey frames of a camera that looks at a long wall, from these columns on."""
    wall = texture(seed, (HEIGHT, max(lefts) + WIDTH), 3, 10, 30)
    return [wall[:, left : left + WIDTH].copy() for left in lefts]


def followed(frames: list[UInt8Array], background: BoolArray = EVERYTHING) -> list[float | None]:
    """By how much each frame's middle has moved to the right since the one before."""
    camera, shifts = Camera(1.0), []
    middle = np.array([[[WIDTH / 2, HEIGHT / 2]]])
    for before, after in itertools.pairwise(frames):
        moved, share = camera.motion(before, after, background)
        assert (moved is None) == (share == 0)
        shift = None if moved is None else cv2.perspectiveTransform(middle, moved) - middle
        shifts.append(None if shift is None else round(float(shift[0, 0, 0]), 1))
    return shifts


def test_fast_pan_is_followed_from_where_the_last_motion_leads() -> None:
    lefts = np.cumsum([0, 20, 45, 70, 95, 120]).tolist()
    assert followed(pan(lefts)) == pytest.approx([-20, -45, -70, -95, -120], abs=0.5)


def test_what_is_drawn_over_the_picture_is_no_background() -> None:
    """All that can be followed between the last frames, which are blurred, is a logo."""
    frames = pan([10 * i for i in range(9)])
    logo = texture(7, (30, 70), 2)
    for i, frame in enumerate(frames):
        if i >= 7:
            frame[:] = cv2.blur(frame, (151, 151))
        frame[20:50, 400:470] = logo
    shifts = followed(frames)
    assert shifts[:6] == pytest.approx([-10] * 6, abs=0.2)
    assert shifts[7] is None
    # Where nothing else has been seen, the camera is taken to stand still.
    assert followed(frames[7:]) == pytest.approx([0], abs=0.5)


@pytest.mark.parametrize("speed", [12, 60, 100])
def test_fast_pan_that_stops_is_followed(speed: int) -> None:
    lefts = [*(speed * i for i in range(5)), *[4 * speed] * 4]
    shifts = followed(pan(lefts))
    assert shifts[4:] == pytest.approx([0] * 4, abs=0.3)


@pytest.mark.parametrize("step", [0, 6])
def test_corners_of_a_missed_object_are_not_the_camera(step: int) -> None:
    """The background is blurred, and the object, which its mask lacks, moves unlike the camera."""
    frames = pan([40 * i for i in range(4)])
    thing = texture(9, (90, 120), 2)
    for i, frame in enumerate(frames):
        if i >= 2:
            frame[:] = cv2.blur(frame, (151, 151))
        frame[150:240, 200 + step * i : 320 + step * i] = thing
        if i >= 2:  # corners that cannot be followed
            frame[:130] = texture(20 + i, (130, WIDTH), 2)
    masked = EVERYTHING.copy()
    masked[140:250, 190:420] = False
    camera = Camera(1.0)
    shift = camera.motion(frames[0], frames[1], masked)[0]
    assert shift is not None and shift[0, 2] == pytest.approx(-40, abs=0.5)
    camera.motion(frames[1], frames[2], masked)
    assert camera.motion(frames[2], frames[3], EVERYTHING) == (None, 0.0)
    assert camera.same_place
    # Without the motion before it is believed.
    moved, _ = Camera(1.0).motion(frames[2], frames[3], EVERYTHING)
    middle = np.array([[[260.0 + 2 * step, 195.0]]])
    assert moved is not None
    assert np.abs(cv2.perspectiveTransform(middle, moved) - middle - [step, 0]).max() < 4


def test_corners_that_end_on_something_else_do_not_count() -> None:
    """Half of the second picture shows something new."""
    one, other = pan([0, 0])
    other[:, : WIDTH // 2] = texture(5, (HEIGHT, WIDTH // 2), 3, 10, 30)
    moved, share = Camera(1.0).motion(one, other, EVERYTHING)
    assert moved is not None
    assert share > 0.85


def test_nothing_is_left_out_while_the_camera_stands_still() -> None:
    shifts = followed(pan([0] * 30 + [15, 30, 45]))
    assert shifts == pytest.approx([0] * 29 + [-15] * 3, abs=0.3)


@pytest.mark.parametrize("step", [12, 25, 40])
def test_sudden_motion_of_everything_is_believed(step: int) -> None:
    shifts = followed(pan([0, 0, 0, step, step]))
    assert shifts == pytest.approx([0, 0, -step, 0], abs=0.3)


def test_jolt_too_large_to_be_believed_shows_the_same_place() -> None:
    camera = Camera(1.0)
    for before, after in itertools.pairwise(pan([0, 0, 60])):
        camera.motion(before, after, EVERYTHING)
        assert camera.same_place


def test_pictures_of_two_places_have_no_motion_between_them() -> None:
    for seed in range(1, 6):
        assert followed([pan([0])[0], pan([0], seed)[0]]) == [None]
    flat = np.full((HEIGHT, WIDTH), 90, np.uint8)
    assert followed([flat, flat]) == [None]
