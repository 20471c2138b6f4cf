"""The second look: where its window lies, what it costs, and that it sees more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from composed import CachingEncoder, compose, read_cutout
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.evaluation.metrics import region_similarity
from persam_video.geometry import window_around
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.models import load_sam
from persam_video.tracking.close_up import CloseUp
from persam_video.tracking.tracker import Tracker
from persam_video.types import Frame, UInt8Array, Window

Clip = list[tuple[Frame, UInt8Array]]
Sam = tuple[CachingEncoder, SamDecoder]


def box(*corners: float) -> np.ndarray:
    return np.array(corners, np.float32)


def test_window_around_is_centred_pushed_inside_and_cut_to_the_picture() -> None:
    assert window_around(box(40, 30, 60, 50), 40, (100, 200)) == Window(30, 20, 40, 40)
    assert window_around(box(0, 0, 20, 20), 40, (100, 200)) == Window(0, 0, 40, 40)
    assert window_around(box(190, 90, 200, 100), 40, (100, 200)) == Window(160, 60, 40, 40)
    assert window_around(box(80, 40, 120, 60), 150, (100, 200)) == Window(25, 0, 150, 100)


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 90), st.floats(0, 59), st.floats(0, 59)
)
def test_window_around_always_lies_in_the_picture(
    height: int, width: int, side: int, x: float, y: float
) -> None:
    window = window_around(box(x, y, x + 1, y + 1), side, (height, width))
    assert 0 <= window.left <= window.left + window.width <= width
    assert 0 <= window.top <= window.top + window.height <= height
    image = np.zeros((height, width, 3), np.uint8)
    assert window.cut(image).shape == (min(side, height), min(side, width), 3)


@pytest.fixture(scope="module")
def sam(vit_t_weights: Path) -> Sam:
    encoder, decoder = load_sam(EncoderConfig(input_size=512), progress=False)
    return CachingEncoder(encoder), decoder


@pytest.fixture(scope="module")
def scene(davis_root: Path) -> Clip:
    """A small cat walks over a picture of grass, fence and trees."""
    with_trees = davis_root / "JPEGImages/480p/soccerball/00000.jpg"
    cutout = read_cutout(davis_root.parent / "perseg-mini", "cat", 44)
    places = [[(30 + 9 * t, 150)] for t in range(6)]
    return compose(np.array(Image.open(with_trees)), [cutout], places)


def mask_logits(mask: np.ndarray) -> torch.Tensor:
    return torch.where(torch.from_numpy(mask), 8.0, -8.0)


@pytest.mark.needs_weights
def test_close_up_window_stays_for_a_small_step_and_follows_a_large_one(sam: Sam) -> None:
    encoder, decoder = sam
    seen: list[bytes] = []

    class Recording:
        def encode(self, image_rgb: UInt8Array):  # type: ignore[no-untyped-def]
            seen.append(image_rgb.tobytes())
            return encoder.encode(image_rgb)

    image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    close_up = CloseUp(Recording(), decoder, TrackConfig())
    for left in (60, 61, 90):
        mask = np.zeros((120, 200), bool)
        mask[40:70, left : left + 30] = True
        assert close_up.look(image, mask_logits(mask))
    assert len(seen[0]) == 48 * 48 * 3
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.needs_weights
def test_close_up_of_nothing_and_of_everything_there_is_none(sam: Sam) -> None:
    encoder, decoder = sam
    close_up = CloseUp(encoder, decoder, TrackConfig())
    image = np.zeros((120, 200, 3), np.uint8)
    before = encoder.calls
    assert not close_up.look(image, torch.full((120, 200), -8.0))
    assert not close_up.look(image, torch.full((120, 200), 8.0))
    assert encoder.calls == before


@pytest.mark.needs_weights
def test_close_up_returns_when_an_object_that_filled_the_frame_is_smaller_again(sam: Sam) -> None:
    close_up = CloseUp(*sam, TrackConfig())
    image = np.zeros((120, 200, 3), np.uint8)
    looked = []
    for length in (60, 76, 198, 74, 60):  # 1.6 times the length is compared with 0.6 * 200
        mask = np.zeros((120, 200), bool)
        mask[40:50, :length] = True
        looked.append(close_up.look(image, mask_logits(mask)))
    assert looked == [True, False, False, True, True]


@pytest.mark.needs_weights
def test_close_up_line_of_one_pixel_is_no_error(sam: Sam) -> None:
    close_up = CloseUp(*sam, TrackConfig())
    image = np.random.default_rng(0).integers(0, 255, (240, 426, 3), np.uint8)
    mask = np.zeros((240, 426), bool)
    mask[100, 60:210] = True
    logits = mask_logits(mask)
    for _ in range(2):
        assert close_up.look(image, logits)
        assert torch.isfinite(close_up.refine(logits, torch.zeros_like(logits))).all()
        close_up.learn(logits, torch.zeros_like(logits, dtype=torch.bool))
        close_up.forget_view()


@pytest.mark.needs_weights
@pytest.mark.needs_davis
def test_close_up_small_object_is_outlined_better_for_one_more_encoding(
    sam: Sam, scene: Clip
) -> None:
    encoder, _ = sam
    scores = {}
    for close_up in (False, True):
        tracker = Tracker(*sam, track=TrackConfig(close_up=close_up))
        tracker.start(*scene[0])
        before = encoder.calls
        found = [tracker.step(frame).labels for frame, _ in scene[1:]]
        assert encoder.calls - before == (1 + close_up) * len(found)
        scores[close_up] = np.mean(
            [
                region_similarity(labels == 1, truth == 1)
                for labels, (_, truth) in zip(found, scene[1:], strict=True)
            ]
        )
    assert scores[True] > scores[False] + 0.02
    assert scores[True] > 0.8


@pytest.mark.needs_weights
@pytest.mark.needs_davis
def test_close_up_objects_added_and_removed_keep_their_ids(sam: Sam, scene: Clip) -> None:
    tracker = Tracker(*sam, track=TrackConfig(close_up=True))
    (first, labels), (second, later), (third, last) = scene[:3]
    tracker.start(first, labels)
    tracker.step(second)
    other = np.zeros_like(later)
    other[20:60, 300:340] = 9
    tracker.add(other)
    result = tracker.step(third)
    assert result.object_ids == (1, 9)
    assert region_similarity(result.labels == 1, last == 1) > 0.7
    assert (result.labels == 9).any()
    tracker.remove(9)
    encoder, before = sam[0], sam[0].calls
    assert not (tracker.step(scene[3][0]).labels == 9).any()
    assert encoder.calls - before == 2
    fourth, truth = scene[4]
    tracker.step(fourth)
    tracker.correct(truth)
    assert region_similarity(tracker.step(scene[5][0]).labels == 1, scene[5][1] == 1) > 0.7


@pytest.mark.needs_weights
@pytest.mark.needs_davis
@pytest.mark.parametrize("method", ["persam", "persam_f"])
def test_close_up_other_methods_have_none(sam: Sam, scene: Clip, method: str) -> None:
    tracker = Tracker(*sam, track=TrackConfig(method=method, close_up=True))
    before = sam[0].calls
    tracker.start(*scene[0])
    tracker.step(scene[1][0])
    assert sam[0].calls - before == 2


@pytest.mark.needs_cuda
@pytest.mark.needs_weights
@pytest.mark.needs_davis
def test_close_up_on_cuda_finds_the_same_object(vit_t_weights: Path, scene: Clip) -> None:
    config = EncoderConfig(input_size=512, device="cuda", dtype="float32")
    tracker = Tracker(*load_sam(config, progress=False), track=TrackConfig(close_up=True))
    tracker.start(*scene[0])
    for frame, truth in scene[1:]:
        assert region_similarity(tracker.step(frame).labels == 1, truth == 1) > 0.7
