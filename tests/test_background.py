"""What stands still: on pictures whose truth is known, and what the tracker makes of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from composed import CachingEncoder, compose, read_cutout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.evaluation.metrics import region_similarity
from persam_video.sam.models import load_sam
from persam_video.tracking.aggregation import moved_objects
from persam_video.tracking.background import Background
from persam_video.tracking.tracker import Tracker
from persam_video.types import BoolArray, Frame, ObjectState, UInt8Array

HEIGHT, WIDTH = 144, 256
NOTHING = np.zeros((HEIGHT, WIDTH), np.bool_)


def scenery(seed: int = 0, size_hw: tuple[int, int] = (HEIGHT, 2 * WIDTH)) -> UInt8Array:
    """(H, W, 3) uint8, soft grey-green blobs with corners enough to follow."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(size=(*size_hw, 1)).astype(np.float32), (0, 0), 3)
    shade = 110 + 400 * np.asarray(blobs).reshape(*size_hw, 1)
    return np.clip(shade + np.array([-20.0, 20.0, -20.0]), 0, 255).astype(np.uint8)


def with_thing(picture: UInt8Array, left: int, top: int = 50) -> tuple[UInt8Array, BoolArray]:
    """A red square of 40 pixels pasted into a picture, and where it is."""
    image, mask = picture.copy(), np.zeros(picture.shape[:2], np.bool_)
    image[top : top + 40, left : left + 40] = (200, 40, 40)
    mask[top : top + 40, left : left + 40] = True
    return image, mask


def labels_of(mask: BoolArray) -> UInt8Array:
    return mask.astype(np.uint8)


def settled(pictures: list[UInt8Array], masks: list[BoolArray] | None = None) -> Background:
    """A background that has seen pictures; the objects are in a corner, or where the masks say."""
    background = Background()
    for i, picture in enumerate(pictures):
        corner = np.zeros(picture.shape[:2], np.bool_)
        corner[:12, :12] = True
        background.look(picture)
        background.learn(labels_of(masks[i] if masks else corner))
    return background


def test_first_frame_says_nothing() -> None:
    change = Background().look(scenery()[:, :WIDTH]).votes
    assert change.shape == (HEIGHT, WIDTH)
    assert change.dtype == torch.float32
    assert not change.any()


def test_still_camera_tells_what_has_come_from_what_stayed() -> None:
    still = scenery()[:, :WIDTH]
    background = settled([still] * 10)
    image, mask = with_thing(still, 100)
    change = background.look(image).votes.numpy()
    inside = cv2.erode(mask.astype(np.uint8), np.ones((7, 7))) > 0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) == 0
    assert change[inside].min() > 0.8
    assert change[20:-2, 20:-2][outside[20:-2, 20:-2]].max() < -0.8


def test_edges_of_what_has_come_are_not_grown() -> None:
    """Half-way between the two colours is where the thing ends."""
    still = scenery()[:, :WIDTH]
    background = settled([still] * 10)
    image, mask = with_thing(still, 100)
    found = background.look(image).votes.numpy() > 0
    assert region_similarity(found, mask) > 0.9


@settings(max_examples=10, deadline=None)
@given(step=st.tuples(st.integers(-6, 6), st.integers(-2, 2)))
def test_pan_is_accounted_for(step: tuple[int, int]) -> None:
    wide = scenery(size_hw=(HEIGHT + 60, 2 * WIDTH))
    places = [(128 + step[0] * i, 30 + step[1] * i) for i in range(12)]
    views = [wide[y : y + HEIGHT, x : x + WIDTH] for x, y in places]
    background = settled(views[:-1])
    image, mask = with_thing(views[-1], 100)
    change = background.look(image).votes.numpy()
    assert change[mask].mean() > 0.7
    assert (change[~mask] > 0.5).mean() < 0.02
    assert (change[20:-20, 20:-20][~mask[20:-20, 20:-20]] < -0.5).mean() > 0.7


def test_what_comes_into_view_or_out_from_behind_is_unknown() -> None:
    wide = scenery()
    views = [wide[:, 6 * i : 6 * i + WIDTH] for i in range(8)]
    hidden = [with_thing(view, 60) for view in views]
    background = settled([image for image, _ in hidden], [mask for _, mask in hidden])
    image, _ = with_thing(wide[:, 48 : 48 + WIDTH], 160)
    change = background.look(image).votes.numpy()
    assert np.abs(change[:, -3:]).max() < 0.01  # new: the camera pans right
    still = scenery()[:, :WIDTH]
    image, mask = with_thing(still, 60)
    background = settled([image] * 10, [mask] * 10)
    uncovered = background.look(with_thing(still, 160)[0]).votes.numpy()
    inside = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))) > 0
    assert np.abs(uncovered[inside]).max() < 0.01


def test_belief_is_earned() -> None:
    still = scenery()[:, :WIDTH]
    image, mask = with_thing(still, 100)
    early = settled([still] * 1).look(image).votes.numpy()[mask].max()
    late = settled([still] * 10).look(image).votes.numpy()[mask].max()
    assert early < 0.2
    assert late > 0.9


def test_smoke_is_not_believed() -> None:
    """Where what surrounds the object changes all the time, a change says nothing.

    Even there a place that looks as it did has nothing new in it.
    """
    still = scenery()[:, :WIDTH]
    rng = np.random.default_rng(1)
    background = Background()
    _, mask = with_thing(still, 100)
    for _ in range(12):
        puffs = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), (0, 0), 6)
        smoky = np.where(np.asarray(puffs)[..., None] > 0.06, 235, still).astype(np.uint8)
        change = background.look(with_thing(smoky, 100)[0]).votes
        background.learn(labels_of(mask))
    assert change.abs().max() < 0.2


def test_a_large_change_beyond_reach_silences_it() -> None:
    """It may be of the object, but smoke would look the same; a small one is believed.

    What has stayed has stayed all the same.
    """
    still = scenery()[:, :WIDTH]
    image, mask = with_thing(still, 100)
    background = settled([image] * 10, [mask] * 10)
    small = image.copy()
    small[52:60, 158:166] = (40, 40, 200)
    assert background.look(small).votes.max() > 0.8
    background = settled([image] * 10, [mask] * 10)
    change = background.look(with_thing(image, 158)[0]).votes.numpy()
    assert change.max() < 0.01
    assert change[:, :80].mean() < -0.9


def test_what_a_mask_misses_of_a_still_object_is_not_learnt_as_background() -> None:
    image, mask = with_thing(scenery()[:, :WIDTH], 100)
    half = mask.copy()
    half[70:] = False
    background = settled([image] * 20, [mask] * 10 + [half] * 10)
    missed = cv2.erode((mask & ~half).astype(np.uint8), np.ones((9, 9))) > 0
    assert np.abs(background.look(image).votes.numpy()[missed]).max() < 0.01


def test_what_an_object_leaves_is_learnt() -> None:
    still = scenery()[:, :WIDTH]
    gone, mask = with_thing(still, 60)
    moved, there = with_thing(still, 160)
    background = settled([gone] * 5 + [moved] * 5, [mask] * 5 + [there] * 5)
    assert background.look(moved).votes.numpy()[mask].mean() < -0.8


def test_moved_objects_do_not_share_what_has_come() -> None:
    taken = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 0, 1]]], dtype=torch.bool)
    change = torch.tensor([[2.0, 2.0, 2.0, -1.0]])
    expected = [[[2.0, 0.0, 2.0, -1.0]], [[0.0, 2.0, 2.0, -1.0]]]
    assert moved_objects(taken, change).tolist() == expected


def test_a_cut_starts_anew() -> None:
    background = settled([scenery()[:, :WIDTH]] * 10)
    other = scenery(seed=5)[:, :WIDTH]
    assert not background.look(other).votes.any()
    background.learn(labels_of(NOTHING))
    image, mask = with_thing(other, 100)
    change = background.look(image).votes.numpy()
    assert change.max() < 0.2
    assert change[~mask].mean() < -0.9


def test_a_cut_is_told_from_motion_and_from_restless_pictures() -> None:
    calm = [scenery()[:, 4 * i : WIDTH + 4 * i] for i in range(8)]
    background = Background()
    for picture in calm:
        background.look(picture)
        background.learn(labels_of(NOTHING))
        assert not background.cut
    other = scenery(seed=5) // 2
    background.look(other[:, :WIDTH])
    assert background.cut
    background.learn(labels_of(NOTHING))
    background.look(other[:, 4 : WIDTH + 4])
    assert not background.cut
    background = Background()
    for seed in range(8):  # as in a shaky clip, no frame can be laid over the one before
        background.look(scenery(seed)[:, :WIDTH] // (1 + seed % 2))
        background.learn(labels_of(NOTHING))
        assert not background.cut


def test_a_jolt_of_the_camera_is_no_cut() -> None:
    wall = np.repeat(np.repeat(scenery()[:, :WIDTH], 3, axis=0), 3, axis=1)
    for jolt in (20, 40):
        background = Background()
        for left in (0, 0, 0, jolt, jolt):
            background.look(wall[:288, left : left + 512])
            background.learn(np.zeros((288, 512), np.uint8))
            assert not background.cut


def test_frames_of_another_size_forget_the_camera() -> None:
    """It has panned fast, and stands still in the pictures of the other size."""
    wall = np.repeat(np.repeat(scenery(), 2, axis=0), 2, axis=1)
    background = Background()
    for left in (0, 30, 80, 130, 180):
        background.look(wall[:280, left : left + 500])
        background.learn(np.zeros((280, 500), np.uint8))
    small = scenery()[:, :WIDTH]
    for _ in range(6):
        change = background.look(small).votes
        background.learn(labels_of(NOTHING))
    assert change.mean() < -0.9


def test_frames_of_another_size_start_anew() -> None:
    background = settled([scenery()[:, :WIDTH]] * 10)
    change = background.look(scenery()[:100, :200]).votes
    assert change.shape == (100, 200)
    assert not change.any()


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 700), (144, 256)])
def test_pictures_without_corners(size_hw: tuple[int, int]) -> None:
    flat = np.full((*size_hw, 3), 90, np.uint8)
    background = settled([flat] * 3)
    assert not background.look(flat).votes.any()


def test_large_pictures_are_reduced() -> None:
    still = np.repeat(np.repeat(scenery()[:, :WIDTH], 8, axis=0), 8, axis=1)
    assert Background().look(still).votes.shape == (288, 512)


def test_released_places_are_learnt_as_background() -> None:
    """What a mask held wrongly looks as it did, and would be taken for the object for ever."""
    image, wrong = with_thing(scenery()[:, :WIDTH], 100)
    for released in (False, True):
        background = settled([image] * 3, [wrong] * 3)
        if released:
            background.release(wrong)
        for _ in range(4):
            change = background.look(image).votes.numpy()
            background.learn(labels_of(NOTHING))
        assert bool(change[wrong].mean() < -0.8) is released


def test_smaller_comparison_says_the_same() -> None:
    """Twice as large a picture at half of its size: lengths in pixels are halved with it."""
    votes = []
    for longest in (256, 512):
        background = Background(longest)
        for i in range(8):
            image, mask = with_thing(scenery()[:, :WIDTH], 60 + 5 * i)
            large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
            change = background.look(np.asarray(large, np.uint8)).votes.numpy()
            labels = np.repeat(np.repeat(labels_of(mask), 2, axis=0), 2, axis=1)
            background.learn(labels if i < 7 else np.zeros_like(labels))
        assert max(change.shape) == longest
        votes.append(cv2.resize(change, (256, 144), interpolation=cv2.INTER_AREA))
    small, full = votes
    assert full.max() > 0.9 and full.min() < -0.9
    assert np.abs(small - full).mean() < 0.1
    assert np.mean((small > 0.5) == (full > 0.5)) > 0.97


def test_forgotten_places_are_unknown() -> None:
    """An object pointed at later has been learnt as background before."""
    image, mask = with_thing(scenery()[:, :WIDTH], 100)
    background = settled([image] * 10)
    assert background.look(image).votes.numpy()[mask].mean() < -0.9
    background.learn(labels_of(NOTHING))
    background.forget(mask)
    assert np.abs(background.look(image).votes.numpy()[mask]).max() < 0.05


def test_what_was_background_before_an_object_was_lost_is_not_the_object() -> None:
    still = scenery()[:, :WIDTH]
    clip = [with_thing(still, 100 + 2 * i) for i in range(10)]
    background = settled([image for image, _ in clip], [mask for _, mask in clip])
    gone = background.look(still).empty.numpy()
    assert gone[20:-20, 20:90].min() > 0.8  # seen as background all the time
    assert gone[clip[0][1] & clip[-1][1]].max() < 0.3  # never seen
    background.learn(labels_of(NOTHING), all_tracked=False)
    # Where something comes and is learnt, as nobody knows that it is the lost one, it may be that.
    image, mask = with_thing(still, 20)
    for _ in range(20):
        change = background.look(image)
        background.learn(labels_of(NOTHING), all_tracked=False)
    assert change.votes.numpy()[mask].mean() < -0.8
    assert change.empty.numpy()[mask].max() < 0.7 and change.empty.numpy()[mask].mean() < 0.1
    assert change.empty.numpy()[20:-20, 80:95].min() > 0.8


def test_place_that_changed_is_not_empty_though_no_mask_had_it() -> None:
    """The object has moved on to it, its mask has missed that, and then it is lost."""
    still = scenery()[:, :WIDTH]
    background = settled([still] * 10)
    image, missed = with_thing(still, 100)
    inside = cv2.erode(missed.astype(np.uint8), np.ones((7, 7))) > 0
    background.look(image)
    background.learn(labels_of(NOTHING), all_tracked=True)
    for _ in range(5):
        change = background.look(image)
        background.learn(labels_of(NOTHING), all_tracked=False)
    assert change.empty.numpy()[inside].max() < 1e-6
    assert change.empty.numpy()[20:90, 20:80].min() > 0.8


def test_background_that_comes_out_and_stays_in_the_mask_is_learnt() -> None:
    """A mask that keeps what was behind the object when it moves on: a rock behind a boat."""
    still = scenery()[:, :WIDTH]
    background = Background()
    scrap = with_thing(still, 60, top=100)[1]
    for i in range(14):
        image, mask = with_thing(still, 60 + 5 * i)
        change = background.look(image).votes.numpy()
        background.learn(labels_of(mask | scrap))
        if i in (0, 6):
            assert np.abs(change[scrap]).max() < 0.05
    assert change[scrap].mean() < -0.8
    assert change[mask][:-3].min() > -0.5


@pytest.mark.needs_weights
def test_still_object_that_was_lost_stays_found(vit_t_weights: Path) -> None:
    """While it is lost it is not in the mask, and must not become background for good."""
    encoder, decoder = load_sam(EncoderConfig(input_size=256), progress=False)
    image, mask = with_thing(scenery()[:, :WIDTH], 100)
    frames = [Frame(i, i / 25, image) for i in range(20)]
    seen = CachingEncoder(encoder)
    tracker = Tracker(seen, decoder, track=TrackConfig(close_up=True))
    tracker.start(frames[0], mask.astype(np.uint8))
    states = []
    for frame in frames[1:]:
        if frame.index == 5:
            tracker._track = TrackConfig(lost_below=1.0, found_above=1.0)
        if frame.index == 10:
            tracker._track = TrackConfig()
        result = tracker.step(frame)
        states.append(result.states[1])
    assert ObjectState.LOST in states[4:9]
    assert states[10:] == [ObjectState.TRACKED] * 9
    assert region_similarity(result.labels > 0, mask) > 0.85


@pytest.mark.needs_weights
def test_still_object_does_not_shrink(vit_t_weights: Path) -> None:
    encoder, decoder = load_sam(EncoderConfig(input_size=512), progress=False)
    seen = CachingEncoder(encoder)
    image, mask = with_thing(scenery()[:, :WIDTH], 100)
    scores = {}
    for strength in (0.0, 2.0):
        tracker = Tracker(seen, decoder, track=TrackConfig(background=strength))
        tracker.start(Frame(0, 0.0, image), mask.astype(np.uint8))
        for i in range(1, 30):
            labels = tracker.step(Frame(i, i / 25, image)).labels
        scores[strength] = region_similarity(labels > 0, mask)
    assert scores[2.0] > scores[0.0] - 0.02


@pytest.mark.needs_davis
@pytest.mark.needs_weights
@pytest.mark.slow
def test_tracker_does_not_lose_the_edges_of_what_moves(davis_root: Path) -> None:
    trees = np.array(Image.open(davis_root / "JPEGImages/480p/soccerball/00000.jpg"))
    cat = read_cutout(davis_root.parent / "perseg-mini", "cat", 110)
    clip = compose(trees, [cat], [[(120 + 2 * i, 90)] for i in range(16)])
    encoder, decoder = load_sam(EncoderConfig(input_size=512, dtype="float32"), progress=False)
    seen = CachingEncoder(encoder)
    truths = [labels > 0 for _, labels in clip[1:]]

    def score(config: TrackConfig) -> float:
        tracker = Tracker(seen, decoder, track=config)
        tracker.start(*clip[0])
        found = [tracker.step(frame).labels > 0 for frame, _ in clip[1:]]
        return float(np.mean([*map(region_similarity, found, truths)]))

    assert score(TrackConfig(background=2.0)) > 0.88
    # Of whole frames: where a crop ends changes these masks as much as the background does.
    without, with_it = (score(TrackConfig(background=b, crop_padding=0)) for b in (0.0, 2.0))
    assert with_it > 0.88
    assert with_it > without + 0.02
