"""Encoding only what is around the objects: geometry, planning, and what must not change by it."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import compose, every_cell, read_cutout
from torch import Tensor, nn

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.evaluation.metrics import region_similarity
from persam_video.pipeline import track
from persam_video.sam.cuda_graphs import _nothing_collected
from persam_video.sam.decoder import SamDecoder, window_seen
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.models import load_sam
from persam_video.tracking.features import FeatureSpace, grid_size, grid_slices
from persam_video.tracking.grid import on_grid, on_square
from persam_video.tracking.propagation import PropagationMethod
from persam_video.tracking.tracker import Tracker
from persam_video.types import Box, Embedding, Float32Array, Frame, Reference, UInt8Array, Window

Clip = list[tuple[Frame, UInt8Array]]
Sam = tuple[SamImageEncoder, SamDecoder]
BOX = np.array([100, 60, 180, 140], np.float32)
SMALL_CROP = TrackConfig(crop_padding=9)

pytestmark = [pytest.mark.needs_weights, pytest.mark.needs_davis]


@pytest.fixture(scope="module")
def sam(vit_t_weights: Path) -> Sam:
    return load_sam(EncoderConfig(dtype="float32", input_size=1024), progress=False)


@pytest.fixture(scope="module")
def small(vit_t_weights: Path) -> Sam:
    return load_sam(EncoderConfig(dtype="float32", input_size=512), progress=False)


@pytest.fixture(scope="module")
def cat(davis_root: Path) -> Clip:
    """A small cat walks to the right; in frames 3 and 4 it is away."""
    places = [(20 + 8 * t, 90) if t not in (3, 4) else None for t in range(7)]
    return _scene(davis_root, [("cat", 70)], [[place] for place in places])


def _scene(davis_root: Path, cutouts: list[tuple[str, int]], places: list[list]) -> Clip:  # type: ignore[type-arg]
    image = np.linspace(60, 190, 426)[None, :, None].repeat(240, 0).repeat(3, 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, image.shape, np.uint8)
    perseg = davis_root.parent / "perseg-mini"
    return compose(image + noise, [read_cutout(perseg, *cutout) for cutout in cutouts], places)


class Watched:
    """An encoder that notes what was asked of it; None = everything."""

    def __init__(self, encoder: SamImageEncoder) -> None:
        self._encoder = encoder
        self.asked: list[Box] = []
        self.encodes_parts = True

    def encode(self, image_rgb: UInt8Array) -> Embedding:
        self.asked.append(None)
        return self._encoder.encode(image_rgb)

    def encode_part(self, image_rgb: UInt8Array, box_xyxy: Float32Array) -> Embedding:
        self.asked.append(box_xyxy)
        return self._encoder.encode_part(image_rgb, box_xyxy)


def test_encode_part_lies_where_it_lies_in_the_whole_picture(sam: Sam, cat: Clip) -> None:
    encoder, image = sam[0], cat[0][0].image_rgb
    whole, part = encoder.encode(image), encoder.encode_part(image, BOX)
    window = part.window
    assert window is not None and whole.window is None
    assert window.width % 14 == window.height % 14 == 0
    scale = 1024 / 426 / 16  # source pixels -> cells
    assert window.left <= BOX[0] * scale and window.left + window.width >= BOX[2] * scale
    assert window.top <= BOX[1] * scale and window.top + window.height >= BOX[3] * scale
    # The finest map is made by a few convolutions: away from the edge nothing is different.
    inner = Window(window.left + 2, window.top + 2, window.width - 4, window.height - 4)
    expected = whole.stages[0][(..., *inner.scaled(4).slices)]
    found = part.stages[0][..., 8:-8, 8:-8]
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert (found.roll(1, -1) - expected).norm() > 0.2 * expected.norm()  # one cell off is seen
    outside = part.neck.clone()
    outside[(..., *window.slices)] = 0
    assert not outside.any() and part.neck.any()


@pytest.mark.parametrize(
    "box_xyxy", [(0, 0, 426, 240), (-50, -50, 400, 230), (500, 0, 600, 100), (50, -90, 90, -10)]
)
def test_encode_part_of_nearly_everything_and_of_nothing_is_everything(
    sam: Sam, cat: Clip, box_xyxy: tuple[int, ...]
) -> None:
    image = cat[0][0].image_rgb
    assert sam[0].encode_part(image, np.array(box_xyxy, np.float32)).window is None


class Blank(nn.Module):
    """A network that sees nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return torch.zeros(1, 256, x.shape[2] // 16, x.shape[3] // 16), ()


def test_parts_are_of_few_sizes_and_show_what_was_asked_for() -> None:
    encoder = SamImageEncoder(Blank(), 1280, padding=False)
    image = np.zeros((45 * 16, 80 * 16, 3), np.uint8)  # a pixel is one of the network's input
    sizes = set()
    for left, top in itertools.product(range(-60, 1280, 79), range(-60, 720, 97)):
        for width, height in ((100, 60), (330, 410), (700, 200)):
            box = np.array([left, top, left + width, top + height], np.float32)
            window = encoder.encode_part(image, box).window
            if window is not None:
                sizes.add((window.width, window.height))
                assert 0 <= window.left <= max(0, box[0] / 16)
                assert 0 <= window.top <= max(0, box[1] / 16)
                assert min(80, box[2] / 16) <= window.left + window.width <= 80
                assert min(45, box[3] / 16) <= window.top + window.height <= 45
                right = window.left + window.width
                if window.left > 0 and right < 80:  # as much on either side
                    assert abs(left / 16 - window.left - (right - (left + width) / 16)) <= 2
    assert {(14, 14), (28, 28), (56, 14)} <= sizes
    assert {width for width, _ in sizes} <= {14, 28, 42, 56, 70, 80}
    assert {height for _, height in sizes} <= {14, 28, 42, 45}


def test_a_gpu_takes_whole_frames() -> None:
    encoder = SamImageEncoder(Blank(), 1280, padding=False)
    assert encoder.encodes_parts
    encoder.device = torch.device("cuda")
    assert not encoder.encodes_parts


def test_encode_part_with_padding_is_everything(sam: Sam, cat: Clip) -> None:
    padded = sam[0].with_padding()
    assert not padded.encodes_parts
    assert padded.encode_part(cat[0][0].image_rgb, BOX).window is None


@pytest.mark.parametrize("stride", [4, 8])
def test_feature_grid_of_a_part_is_that_part_of_the_whole_one(
    sam: Sam, cat: Clip, stride: int
) -> None:
    whole = sam[0].encode(cat[0][0].image_rgb)
    window = Window(7, 7, 28, 21)
    neck = torch.zeros_like(whole.neck)
    neck[(..., *window.slices)] = whole.neck[(..., *window.slices)]
    stages = tuple(
        stage[(..., *window.scaled(factor).slices)]
        for stage, factor in zip(whole.stages, (4, 2, 1), strict=True)
    )
    part = replace(whole, neck=neck, stages=stages, window=window)
    assert window_seen(part) == window and window_seen(whole) == Window(0, 0, 64, 37)
    space = FeatureSpace.fit(whole, stride)
    everything, found = space.features(whole), space.features(part)
    assert found.size_hw == grid_size(part, stride) == (336 // stride, 448 // stride)
    place = grid_slices(part, stride)
    expected = every_cell(everything)[place]
    edge = 16 // stride  # where maps are enlarged, their last cells have other neighbours
    inner = slice(edge, -edge), slice(edge, -edge)
    torch.testing.assert_close(every_cell(found)[inner], expected[inner], atol=1e-4, rtol=1e-4)
    # The last channel is ones: its square adds up to the number of cells.
    assert float(found.sums.gram[-1, -1]) == found.sums.count == math.prod(found.size_hw)

    square = torch.rand(1, 256, 256)
    torch.testing.assert_close(
        on_grid(square, part, stride), on_grid(square, whole, stride)[(..., *place)]
    )
    logits = torch.full((1, *grid_size(part, stride)), -4.0)
    logits[:, 5:9, 6:12] = 4
    painted = on_square(logits, part, stride)[0] > 0
    rows, columns = painted.any(dim=1).nonzero()[:, 0], painted.any(dim=0).nonzero()[:, 0]
    cell = stride // 4
    assert (rows[0], rows[-1] + 1) == (28 + 5 * cell, 28 + 9 * cell)
    assert (columns[0], columns[-1] + 1) == (28 + 6 * cell, 28 + 12 * cell)


def test_feature_space_that_nobody_holds_is_gone_at_once(sam: Sam, cat: Clip) -> None:
    """With it what it has recorded of a GPU's memory."""
    embedding = sam[0].encode(cat[0][0].image_rgb)
    space = FeatureSpace.fit(embedding, 4)
    space.features(embedding)
    gone = weakref.ref(space.projections[0].mean)
    with _nothing_collected():
        del space
        assert gone() is None


def test_tracker_encodes_around_the_object_and_everything_while_it_is_lost(
    small: Sam, cat: Clip
) -> None:
    encoder = Watched(small[0])
    tracker = Tracker(encoder, small[1], track=SMALL_CROP)
    first, labels = cat[0]
    results = [tracker.start(first, labels)] + [tracker.step(frame) for frame, _ in cat[1:]]
    for result, (_, truth) in zip(results, cat, strict=True):
        # After a return come two whole frames, which are not what was learnt from.
        least = 0.8 if result.frame_index in (5, 6) else 0.9
        assert region_similarity(result.labels == 1, truth == 1) > least, result.frame_index
    # Of the first frame both, the part to be followed in and all for what is far off. In frames 3
    # and 4 the cat is away. What frame 4 needs was planned before that was known, so it is encoded
    # again, and so is frame 5; frame 6 was planned while it was away.
    parts = [box is not None for box in encoder.asked]
    assert parts == [True, False, *[True] * 4, False, True, False, False]
    # The first three were planned when it had not been seen to move yet.
    boxes = [box for box in encoder.asked if box is not None]
    for box, (_, truth) in zip(boxes, cat[:3], strict=False):
        rows, columns = np.nonzero(truth)
        assert box[0] < columns.min() - 10 and box[2] > columns.max() + 10
        assert box[1] < rows.min() - 10 and box[3] > rows.max() + 10


def test_masks_are_the_same_with_the_encoder_a_frame_ahead(small: Sam, cat: Clip) -> None:
    tracker = Tracker(*small, track=SMALL_CROP)
    frames = [frame for frame, _ in cat]
    ahead = [r.labels for _, r in track(frames, tracker, Reference(labels=cat[0][1]))]
    alone = [tracker.start(frames[0], cat[0][1]).labels]
    alone += [tracker.step(frame).labels for frame in frames[1:]]
    for one, other in zip(ahead, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_comes_in_outside_the_planned_part_is_encoded_again(
    small: Sam, davis_root: Path
) -> None:
    # The duck is added far away from the cat, when the next three frames are planned already.
    places = [[(10 + 2 * t, 90), (340 - 2 * t, 120)] for t in range(4)]
    clip = _scene(davis_root, [("cat", 70), ("duck_toy", 60)], places)
    encoder = Watched(small[0])
    tracker = Tracker(encoder, small[1], track=SMALL_CROP)
    first, labels = clip[0]
    tracker.start(first, np.where(labels == 1, labels, 0))
    tracker.add(np.where(labels == 2, labels, 0))
    assert [box is None for box in encoder.asked] == [
        False,
        True,
        False,
    ]  # the last one is the duck's
    for frame, truth in clip[1:]:
        result = tracker.step(frame)
        for object_id in (1, 2):
            overlap = region_similarity(result.labels == object_id, truth == object_id)
            assert overlap > 0.85, (frame.index, object_id)
    assert len(encoder.asked) == 3 + 2 + 2 + 2


@pytest.mark.parametrize("settings", [TrackConfig(crop_padding=0), TrackConfig(method="persam")])
def test_whole_frames_are_encoded_where_they_are_wanted(
    small: Sam, cat: Clip, settings: TrackConfig
) -> None:
    encoder = Watched(small[0])
    tracker = Tracker(encoder, small[1], track=settings)
    assert not tracker.crops and tracker.box_around(cat[0][1]) is None
    tracker.start(*cat[0])
    tracker.step(cat[1][0])
    assert encoder.asked == [None, None]


def test_what_is_far_off_in_the_first_frame_is_learnt_as_background(
    small: Sam, davis_root: Path
) -> None:
    # The cat is away from frame 1 on; the duck, far off from the first, must not become it.
    places = [[(40, 90) if t == 0 else None, (330, 100)] for t in range(6)]
    clip = _scene(davis_root, [("cat", 70), ("duck_toy", 60)], places)
    tracker = Tracker(*small, track=SMALL_CROP)
    first, labels = clip[0]
    tracker.start(first, np.where(labels == 1, labels, 0))
    method = tracker._method
    assert isinstance(method, PropagationMethod) and method._far_off is not None
    embedding = tracker._latest[1]  # type: ignore[index]
    rows, columns = (-(-length // 4) for length in embedding.input_hw)
    seen = grid_size(embedding, 4)
    assert method._far_off.count == rows * columns - seen[0] * seen[1]
    for frame, _ in clip[1:]:
        assert not tracker.step(frame).labels.any()
    tracker.remove(1)
    assert not tracker.step(clip[-1][0]).states
