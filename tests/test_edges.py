"""Outlines drawn to the edges of the picture, on pictures whose truth is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persam_video.errors import PromptError
from persam_video.evaluation.metrics import region_similarity
from persam_video.tracking.edges import along_edges
from persam_video.types import VOID, BoolArray, UInt8Array

HEIGHT, WIDTH = 480, 854
CELL = 3
"""Pixels per cell of the masks that are drawn to the edges."""


def disk(x: float, y: float, radius: float, scale: int = 1) -> BoolArray:
    rows, columns = (np.arange(length * scale) / scale for length in (HEIGHT, WIDTH))
    return np.asarray((rows[:, None] - y) ** 2 + (columns - x) ** 2 < radius**2)


def picture(masks: list[BoolArray], seed: int = 0) -> UInt8Array:
    """(H, W, 3) uint8: a dark ground, things that are lighter one by one, and a little noise."""
    shade = np.full(masks[0].shape, 60.0)
    for place, mask in enumerate(masks):
        shade[mask] = 130 + 70 * place
    shade += np.random.default_rng(seed).normal(scale=3, size=shade.shape)
    return np.asarray(np.repeat(shade.clip(0, 255)[..., None], 3, axis=2), np.uint8)


def in_cells(mask: BoolArray, shift: int = 0, cell: int = CELL) -> BoolArray:
    """A mask as a network has it whose cells are some pixels wide, and a little off."""
    moved = np.roll(mask, shift, axis=1).astype(np.float32)
    height, width = (-(-length // cell) for length in mask.shape)
    small = cv2.resize(moved, (width, height), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(large > 0.5)


def as_labels(*masks: BoolArray) -> UInt8Array:
    labels = np.zeros(masks[0].shape, np.uint8)
    for object_id, mask in enumerate(masks, 1):
        labels[mask] = object_id
    return labels


@pytest.mark.parametrize("scale", [1, 2])
def test_an_outline_in_cells_goes_to_the_edge_whatever_the_size_of_the_picture(scale: int) -> None:
    truth = disk(400, 240, 70, scale)
    coarse = in_cells(truth, scale, CELL * scale)
    image = picture([truth])
    ious = [
        region_similarity(along_edges(as_labels(coarse), image, passes) == 1, truth)
        for passes in (0, 1, 2)
    ]
    assert ious[0] == region_similarity(coarse, truth) < 0.975
    assert ious[0] + 0.01 < ious[1] < ious[2] and ious[2] > 0.985


@pytest.mark.parametrize("off", [-3, 3])
def test_passes_add_up_until_the_edge_is_reached_and_no_farther(off: int) -> None:
    truth = disk(400, 240, 60)
    image, wrong = picture([truth]), as_labels(disk(400, 240, 60 + off))
    ious = [region_similarity(along_edges(wrong, image, n) == 1, truth) for n in range(7)]
    assert ious[0] < ious[1] < ious[2] <= ious[3] <= ious[6] and ious[0] < 0.91
    assert ious[1] < 0.98 and ious[6] > 0.995


def test_an_edge_out_of_reach_draws_nothing() -> None:
    thing, mask = disk(200, 240, 50), disk(320, 240, 40)
    drawn = along_edges(as_labels(mask), picture([thing]), 2) == 1
    assert not drawn[thing].any()
    flat = along_edges(as_labels(mask), np.full((HEIGHT, WIDTH, 3), 90, np.uint8), 2) == 1
    assert region_similarity(flat, mask) > 0.99  # round, and stays where it is


def shaded(seed: int = 0) -> UInt8Array:
    """(H, W, 3) uint8, light and dark by turns along a sine: nothing to be seen of any mask."""
    shade = 127 + 120 * np.sin(np.arange(WIDTH) / 60) + np.zeros((HEIGHT, 1))
    shade += np.random.default_rng(seed).normal(scale=1, size=shade.shape)
    return np.asarray(np.repeat(shade.clip(0, 255)[..., None], 3, axis=2), np.uint8)


@pytest.mark.parametrize("image", [np.full((HEIGHT, WIDTH, 3), 90, np.uint8), shaded()])
@pytest.mark.parametrize("void", [False, True])
def test_thin_parts_gaps_and_void_stay_as_they_are(image: UInt8Array, void: bool) -> None:
    mask = disk(200, 120, 60)
    mask[119:121, 260:400] = True  # a rope
    mask[60:120, 199:201] = False  # a gap
    labels = as_labels(mask)
    labels[300:400, 500:598] = 2  # two objects beside each other
    labels[300:400, 600:700] = 3
    labels[450:453, 100:700] = 4  # nothing but thin
    if void:
        labels[170:190, 150:250] = VOID
    drawn = along_edges(labels, image, 3)
    gap, rope = (slice(66, 118), slice(199, 201)), (slice(119, 121), slice(266, 400))
    between, thin = (slice(306, 394), slice(598, 600)), (slice(445, 458), slice(None))
    for part in (gap, rope, between, thin):
        np.testing.assert_array_equal(drawn[part], labels[part])
    np.testing.assert_array_equal(drawn == VOID, labels == VOID)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_corners_of_any_size_are_no_thin_parts(scale: int) -> None:
    """They go to the edge as the sides do; the mask is a pixel too large on all of them."""
    truth = np.zeros((HEIGHT * scale, WIDTH * scale), np.bool_)
    truth[200 * scale : 260 * scale, 300 * scale : 400 * scale] = True
    large = cv2.dilate(truth.astype(np.uint8), np.ones((2 * scale + 1,) * 2, np.uint8)) > 0
    drawn = along_edges(as_labels(large), picture([truth]), 2) == 1
    left = int((drawn & ~truth).sum())
    assert left <= 4 * scale**2  # of a pixel's breadth around it there were 324


@pytest.mark.parametrize("radius", [4, 5, 6, 8])
def test_a_small_object_is_never_lost_to_the_filter(radius: int) -> None:
    labels = as_labels(disk(300, 200, radius), disk(500, 200, radius))
    for passes in (1, 2, 8):
        drawn = along_edges(labels, shaded(), passes)
        for object_id in (1, 2):
            assert (drawn == object_id).sum() > 0.7 * (labels == object_id).sum()


def test_three_objects_that_meet_in_a_point_leave_no_hole_there() -> None:
    rows, columns = np.mgrid[: 2 * HEIGHT, : 2 * WIDTH]
    y, x = rows - HEIGHT, columns - WIDTH
    sector = np.floor((np.arctan2(y, x) / (2 * np.pi) * 3) % 3).astype(np.uint8)
    inside = x**2 + y**2 < 150**2
    labels = np.where(inside, 1 + sector, 0).astype(np.uint8)
    image = np.repeat((60 + 50 * labels)[..., None], 3, axis=2).astype(np.uint8)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 4), np.uint8)
    drawn = along_edges(labels, image, 2)
    assert (drawn != labels).any()
    assert (drawn[x**2 + y**2 < 100**2] > 0).all()


def test_noise_leaves_no_specks_along_the_outline() -> None:
    truth = disk(400, 240, 70)
    rng = np.random.default_rng(0)
    noisy = picture([truth]) + rng.normal(scale=25, size=(*truth.shape, 1))
    drawn = along_edges(as_labels(truth), np.asarray(noisy.clip(0, 255), np.uint8), 2) == 1
    assert (drawn != truth).any()
    for side in (drawn, ~drawn):
        sizes = np.bincount(cv2.connectedComponents(side.astype(np.uint8), connectivity=4)[1].flat)
        assert (sizes > 1).all()


def test_edges_that_one_channel_does_not_show_are_followed() -> None:
    truth = disk(400, 240, 70)
    image = picture([truth])
    image[..., 0] = 128
    wrong = as_labels(disk(400, 240, 68))
    assert region_similarity(along_edges(wrong, image, 2) == 1, truth) > 0.99


def test_the_order_of_the_numbers_in_memory_does_not_matter() -> None:
    image = picture([disk(200, 200, 60)])
    labels = in_cells(disk(200, 200, 60), shift=3).astype(np.uint8)
    columns = np.asfortranarray(labels)
    drawn = along_edges(columns, np.asfortranarray(image), 2)
    assert np.array_equal(drawn, along_edges(labels, image, 2))
    assert np.array_equal(columns, labels)  # which is the caller's


@pytest.mark.parametrize("size_hw", [(479, 854), (480, 853), (481, 900)])
def test_a_picture_of_another_size_is_refused(size_hw: tuple[int, int]) -> None:
    labels = as_labels(disk(400, 240, 70))
    size = f"{size_hw[1]} x {size_hw[0]}"
    with pytest.raises(PromptError, match=f"854 x 480 pixels .* its picture has {size};"):
        along_edges(labels, np.zeros((*size_hw, 3), np.uint8), 2)


def test_objects_that_touch_share_their_border_and_leave_no_gap() -> None:
    """One lies over the other; its mask is in cells, and one pixel off."""
    front, behind = disk(360, 240, 80), disk(460, 240, 90)
    image = picture([behind, front])
    labels = as_labels(behind, in_cells(front, shift=1))
    truth = as_labels(behind, front)
    drawn = along_edges(labels, image, 2)
    for object_id in (1, 2):
        before = region_similarity(labels == object_id, truth == object_id)
        after = region_similarity(drawn == object_id, truth == object_id)
        assert after > before + 0.005 and after > 0.985
    inside = cv2.erode((truth > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (drawn[inside] > 0).all()
    swapped = along_edges(np.choose(labels, [0, 2, 1]).astype(np.uint8), image, 2)
    np.testing.assert_array_equal(swapped, np.choose(drawn, [0, 2, 1]))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    passes=st.integers(0, 4),
)
def test_any_label_map_gives_one_with_its_ids_that_is_near_to_it(
    seed: int, size: tuple[int, int], passes: int
) -> None:
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 7, VOID], size=(-(-size[0] // 8), -(-size[1] // 8)))
    labels = np.asarray(np.kron(small, np.ones((8, 8)))[: size[0], : size[1]], np.uint8)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    given_labels, given_image = labels.copy(), image.copy()
    drawn = along_edges(labels, image, passes)
    assert drawn.shape == labels.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(labels, given_labels)
    np.testing.assert_array_equal(image, given_image)
    np.testing.assert_array_equal(drawn == VOID, labels == VOID)
    for object_id in np.unique(drawn[(drawn > 0) & (drawn != VOID)]):
        away = cv2.distanceTransform((labels != object_id).astype(np.uint8), cv2.DIST_C, 3)
        assert away[drawn == object_id].max() <= 2 * passes  # a window of 3 pixels, twice
