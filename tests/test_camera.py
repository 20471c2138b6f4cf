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


def test_corners_of_a_missed_object_are_not_the_camera() -> None:
    """The background is blurred by its motion, the object moves along with the camera."""
    frames = pan([0, 30, 60, 90])
    thing = texture(9, (90, 120), 2)
    for i, frame in enumerate(frames):
        if i == 3:
            frame[:] = cv2.blur(frame, (151, 151))
        frame[150:240, 200 + 2 * i : 320 + 2 * i] = thing
    masked = EVERYTHING.copy()
    masked[140:250, 190:340] = False
    assert followed(frames[:3], masked) == pytest.approx([-30, -30], abs=0.2)
    camera = Camera(1.0)
    for before, after in itertools.pairwise(frames[:3]):
        camera.motion(before, after, masked)
    assert camera.motion(frames[2], frames[3], EVERYTHING) == (None, 0.0)
    # Without the motion before it would have been.
    moved, _ = Camera(1.0).motion(frames[2], frames[3], EVERYTHING)
    assert moved is not None
    middle = np.array([[[260.0, 195.0]]])
    assert np.abs(cv2.perspectiveTransform(middle, moved) - middle).max() < 4


def test_sudden_motion_of_everything_is_believed() -> None:
    shifts = followed(pan([0, 0, 0, 40, 40]))
    assert shifts == pytest.approx([0, 0, -40, 0], abs=0.3)


def test_pictures_of_two_places_have_no_motion_between_them() -> None:
    for seed in range(1, 6):
        assert followed([pan([0])[0], pan([0], seed)[0]]) == [None]
    flat = np.full((HEIGHT, WIDTH), 90, np.uint8)
    assert followed([flat, flat]) == [None]
