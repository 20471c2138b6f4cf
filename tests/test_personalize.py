"""Target, location prior, cascade, scale weights, masks from clicks: each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from persam_video.config import EncoderConfig
from persam_video.errors import PromptError
from persam_video.geometry import fit_longest_side, mask_to_box
from persam_video.personalize.cascade import best_of_multimask, boxes_of_logits, cascade
from persam_video.personalize.location_prior import (
    cell_centres_xy,
    likeness,
    normalised_prior,
    renewed,
    similarity_maps,
    spread_points,
)
from persam_video.personalize.prompted import masks_from_prompts, stability_score
from persam_video.personalize.scale_weights import fit_scale_weights, mix_masks
from persam_video.personalize.target import (
    MAX_LOCAL_FEATURES,
    Look,
    Target,
    grid_coverage,
    make_target,
    valid_cells,
)
from persam_video.sam.decoder import (
    NO_GUIDANCE,
    Guidance,
    PromptBatch,
    SamDecoder,
)
from persam_video.sam.enlarging import upscale_logits
from persam_video.sam.models import load_sam
from persam_video.types import BoolArray, Candidates, Embedding, Prompt

fast = settings(deadline=None, max_examples=50)


def embedding_of(neck: Tensor, source_hw: tuple[int, int] = (256, 256)) -> Embedding:
    size = 16 * neck.shape[-1]
    return Embedding(neck, (), source_hw, fit_longest_side(source_hw, size), size)


def one_hot(source_hw: tuple[int, int] = (256, 256)) -> Embedding:
    """16 x 16 cells, each with a feature of its own: features tell cells."""
    return embedding_of(torch.eye(256).view(1, 256, 16, 16), source_hw)


def random_embedding(source_hw: tuple[int, int] = (256, 256), grid: int = 16) -> Embedding:
    generator = torch.Generator().manual_seed(grid)
    return embedding_of(torch.randn(1, 256, grid, grid, generator=generator), source_hw)


def rectangle(
    size_hw: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> BoolArray:
    mask = np.zeros(size_hw, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a & b).sum() / (a | b).sum())


# Target


def test_make_target_mean_and_mean_max_are_those_of_the_cells_under_the_mask() -> None:
    embedding = random_embedding()
    features = embedding.neck[0, :, 2:6, 3:5].flatten(1).T
    mask = rectangle((256, 256), (32, 96), (48, 80))

    mean, mean_max = (make_target(embedding, mask, kind) for kind in ("mean", "mean_max"))

    unit = torch.nn.functional.normalize(features, dim=1)
    vectors = {
        "mean": features.mean(dim=0),
        "mean_max": (features.mean(dim=0) + features.max(dim=0).values) / 2,
    }
    for target, vector in ((mean, vectors["mean"]), (mean_max, vectors["mean_max"])):
        torch.testing.assert_close(target.local, unit)
        torch.testing.assert_close(target.embedding, vectors["mean"])
        torch.testing.assert_close(target.direction, vector / vector.norm())
        own = (unit @ target.direction).mean()
        assert target.self_similarity == pytest.approx(float(own), abs=1e-5)
        cosines = torch.nn.functional.normalize(embedding.neck[0], dim=0).flatten(1).T
        others = ((cosines @ target.direction).sum() - len(unit) * own) / (256 - len(unit))
        assert target.background_similarity == pytest.approx(float(others), abs=1e-5)


def test_make_target_background_similarity_leaves_the_padding_out() -> None:
    embedding = one_hot((90, 160))  # 9 of 16 rows are picture
    padded = dataclasses.replace(embedding, neck=embedding.neck.clone())
    padded.neck[:, :, 9:] = embedding.neck[:, :, 2:3, 5:6]
    mask = rectangle((90, 160), (20, 30), (50, 60))

    assert make_target(padded, mask).self_similarity == pytest.approx(1)
    assert make_target(padded, mask).background_similarity == 0
    assert make_target(padded, np.ones((90, 160), bool)).background_similarity == 0


THIN = {
    "one pixel": rectangle((480, 854), (200, 201), (333, 334)),
    "one pixel in the first corner": rectangle((480, 854), (0, 1), (0, 1)),
    "one pixel in the last corner": rectangle((480, 854), (479, 480), (853, 854)),
    "row of one pixel": rectangle((480, 854), (311, 312), (20, 800)),
    "column of one pixel": rectangle((480, 854), (10, 470), (853, 854)),
    "slanting line": np.fromfunction(lambda y, x: (2 * y + 7).astype(int) == x, (480, 854)),
    "smaller than a cell": rectangle((480, 854), (100, 108), (100, 108)),
    "at the border": rectangle((480, 854), (440, 480), (700, 854)),
}


@pytest.mark.parametrize("name", THIN)
def test_make_target_thin_or_small_object_is_made_of_its_own_cells(name: str) -> None:
    mask = THIN[name]
    embedding = one_hot(mask.shape)

    target = make_target(embedding, mask)

    used = target.local.sum(dim=0).view(16, 16) > 0
    touched = grid_coverage(mask, embedding, (16, 16)) > 0
    assert 1 <= len(target.local) == int(used.sum())
    assert bool((used <= touched).all())
    for vector in (target.embedding, target.direction):
        assert bool(vector.isfinite().all())
        assert bool(((vector.view(16, 16) > 0) == used).all())
    assert 0 < target.self_similarity < 1 + 1e-5


@fast
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90))
def test_make_target_any_mask_gives_finite_unit_features(
    data: st.DataObject, height: int, width: int
) -> None:
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = (y, data.draw(st.integers(y + 1, height)))
    columns = (x, data.draw(st.integers(x + 1, width)))
    embedding = random_embedding((height, width))

    target = make_target(embedding, rectangle((height, width), rows, columns))

    norms = torch.cat([target.local.norm(dim=1), target.direction.norm()[None]])
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert bool(target.embedding.isfinite().all())


def test_make_target_large_object_keeps_no_more_features_than_needed() -> None:
    embedding = random_embedding((1024, 1024), grid=64)

    target = make_target(embedding, rectangle((1024, 1024), (0, 1024), (0, 900)))

    assert MAX_LOCAL_FEATURES // 2 <= len(target.local) <= MAX_LOCAL_FEATURES


@fast
@given(data=st.data(), height=st.integers(40, 90), width=st.integers(40, 90))
def test_grid_coverage_adds_up_to_the_masks_area(
    data: st.DataObject, height: int, width: int
) -> None:
    y, x = data.draw(st.integers(0, height - 8)), data.draw(st.integers(0, width - 8))
    mask = rectangle((height, width), (y, y + 8), (x, x + 8))
    embedding = random_embedding((height, width))

    coverage = grid_coverage(mask, embedding, (16, 16))

    area = 64 * embedding.input_hw[0] * embedding.input_hw[1] / (height * width)
    # Interpolation repeats the outermost pixel, hence a little more at the frame's border.
    assert float(coverage.sum()) * 256 == pytest.approx(area, rel=0.2)
    assert 0 <= float(coverage.min()) <= float(coverage.max()) <= 1 + 1e-6
    assert float(coverage[~valid_cells(embedding, (16, 16))].sum()) < float(coverage.sum()) / 2


def test_grid_coverage_whole_frame_is_one_inside_and_zero_in_the_padding() -> None:
    coverage = grid_coverage(np.ones((90, 160), bool), one_hot((90, 160)), (16, 16))

    torch.testing.assert_close(coverage[:9], torch.ones(9, 16))
    assert float(coverage[9:].abs().max()) == 0


# Location prior


def test_similarity_maps_equal_mean_of_cosines() -> None:
    reference, frame = random_embedding(grid=12), random_embedding(grid=16)
    targets = [
        make_target(reference, rectangle((256, 256), rows, (20, 200)), "mean")
        for rows in ((0, 60), (100, 250))
    ]
    cells = frame.neck[0].flatten(1).T
    cells = cells / cells.norm(dim=1, keepdim=True)

    local = similarity_maps(targets, frame, local=True)
    direct = similarity_maps(targets, frame)

    for n, target in enumerate(targets):
        mean = (cells @ target.local.T).mean(dim=1)
        torch.testing.assert_close(local[n].flatten(), mean, rtol=1e-4, atol=1e-5)
        cosine = cells @ (target.embedding / target.embedding.norm())
        torch.testing.assert_close(direct[n].flatten(), cosine, rtol=1e-4, atol=1e-5)


def test_similarity_maps_padding_holds_the_frames_minimum() -> None:
    embedding = random_embedding((90, 160))  # 9 of 16 rows are picture
    target = make_target(embedding, rectangle((90, 160), (20, 60), (20, 60)))
    tempting = 100 * target.direction.view(1, 256, 1, 1).expand(1, 256, 7, 16)
    padded = dataclasses.replace(
        embedding, neck=torch.cat([embedding.neck[:, :, :9], tempting], dim=2)
    )

    maps = similarity_maps([target], padded)

    assert bool((maps[0, 9:] == maps[0, :9].min()).all())
    assert float(maps[0, :9].max()) > float(maps[0, :9].min())


@pytest.mark.parametrize(
    ("source_hw", "rows", "columns"),
    [((90, 160), 9, 16), ((160, 90), 16, 9), ((100, 100), 16, 16), ((1, 256), 1, 16)],
)
def test_valid_cells_are_those_with_their_centre_in_the_frame_and_never_none(
    source_hw: tuple[int, int], rows: int, columns: int
) -> None:
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:rows, :columns] = True

    assert torch.equal(valid_cells(random_embedding(source_hw), (16, 16)), expected)


def test_normalised_prior_is_logistic_of_z_score() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    flat = maps.flatten(1).double().numpy()

    prior = normalised_prior(maps)

    z = (flat - flat.mean(axis=1, keepdims=True)) / flat.std(axis=1, ddof=1, keepdims=True)
    np.testing.assert_allclose(prior.flatten(1).numpy(), 1 / (1 + np.exp(-z)), rtol=1e-4)


def test_normalised_prior_of_a_flat_map_is_about_one_half() -> None:
    prior = normalised_prior(torch.full((1, 4, 4), 0.3))

    torch.testing.assert_close(prior, torch.full((1, 4, 4), 0.5), rtol=0, atol=0.02)


@fast
@given(
    values=st.integers(1, 8)
    .flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([-torch.inf, 0.0, 1.0, 2.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=8,
        )
    )
    .filter(lambda rows: any(v > -torch.inf for row in rows for v in row)),
    count=st.integers(1, 6),
    separation=st.floats(0, 5),
)
def test_spread_points_each_is_the_best_cell_left(
    values: list[list[float]], count: int, separation: float
) -> None:
    grid = torch.tensor(values)
    allowed = [tuple(cell) for cell in torch.nonzero(grid > -torch.inf).tolist()]
    best = max(allowed, key=lambda cell: (values[cell[0]][cell[1]], -cell[0], -cell[1]))

    points = [tuple(point) for point in spread_points(grid[None], count, separation)[0].tolist()]

    assert len(points) == count
    for k, point in enumerate(points):
        left = [
            cell
            for cell in allowed
            if all(
                np.hypot(cell[0] - row, cell[1] - column) >= max(separation, 1)
                for row, column in points[:k]
            )
        ]
        # Ties go to the lowest index; a map that is used up gives its best cell again.
        expected = max(
            left, key=lambda cell: (values[cell[0]][cell[1]], -cell[0], -cell[1]), default=best
        )
        assert point == expected


def test_spread_points_of_a_smooth_peak_are_no_neighbours() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    maps = torch.stack([-((y - 4) ** 2 + (x - 9) ** 2), -((y - 19) ** 2 + (x - 29) ** 2)])

    points = spread_points(maps, 3, 4.0).float()

    assert points[:, 0].tolist() == [[4, 9], [19, 29]]
    assert min(float(torch.pdist(p).min()) for p in points) >= 4


def test_cell_centres_xy_swaps_to_x_y_in_input_pixels() -> None:
    assert cell_centres_xy(torch.tensor([[[2, 5]]]), 16.0).tolist() == [[[88.0, 40.0]]]


# Scale weights


def blobs() -> Tensor:
    """(3, 64, 64): left part, right part, and everything, as logits."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 20**2
    left = torch.where(disc, torch.where(x < 32, 9.0, -2.0), -8.0)
    return torch.stack([left, left.flip(1), torch.where(disc, 2.0, 3.0)])


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_fit_scale_weights_finds_the_one_right_mask(kept: int) -> None:
    logits = torch.full((3, 32, 32), 4.0)
    target = torch.zeros(32, 32)
    target[8:20, 5:30] = 1
    logits[kept] = 12 * target - 6

    weights = fit_scale_weights(logits, target)

    torch.testing.assert_close(weights, torch.eye(3)[kept])


def test_fit_scale_weights_recovers_a_known_mixture() -> None:
    logits, known = blobs(), torch.tensor([0.5, 0.5, 0.0])
    target = (mix_masks(logits[None], known[None])[0] > 0).float()

    weights = fit_scale_weights(logits, target)

    torch.testing.assert_close(weights, known, rtol=0, atol=0.05)
    assert torch.equal(mix_masks(logits[None], weights[None])[0] > 0, target > 0)


def dice_and_focal(weights: Sequence[float], logits: Tensor, target: Tensor) -> float:
    """PerSAM-F's loss of one mixture, pixel by pixel as the papers of its two terms write it."""
    mixed = np.einsum("mhw,m->hw", logits.double().numpy(), weights)
    wanted = target.numpy() > 0
    p = 1 / (1 + np.exp(-mixed))
    dice = 1 - (2 * p[wanted].sum() + 1) / (p.sum() + wanted.sum() + 1)
    hits = -0.25 * (1 - p[wanted]) ** 2 * np.log(p[wanted])
    misses = -0.75 * p[~wanted] ** 2 * np.log(1 - p[~wanted])
    return float(dice + (hits.sum() + misses.sum()) / mixed.size)


def test_fit_scale_weights_no_mixture_of_a_grid_has_less_loss() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(3, 24, 24, generator=generator)
    target = (logits.sum(dim=0) + 2 * torch.randn(24, 24, generator=generator) > 5).float()

    weights = fit_scale_weights(logits, target)

    grid = [(i / 100, j / 100, 1 - (i + j) / 100) for i in range(101) for j in range(101 - i)]
    best = min(dice_and_focal(w, logits, target) for w in grid)
    assert dice_and_focal(weights.tolist(), logits, target) <= best + 1e-6
    assert float(weights.min()) > 0.1  # the best lies inside the triangle


@fast
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_fit_scale_weights_lie_on_the_simplex_and_are_reproducible(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 12, 12, generator=generator)
    target = (torch.rand(12, 12, generator=generator) > 0.5).float()

    weights = fit_scale_weights(logits, target)

    assert weights.shape == (3,)
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(weights, fit_scale_weights(logits.clone(), target.clone()))


def test_mix_masks_weighs_each_objects_own_masks() -> None:
    logits = torch.arange(6.0).view(2, 3, 1, 1)

    mixed = mix_masks(logits, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]))

    assert mixed.flatten().tolist() == [0.0, 3.75]


# Cascade


@dataclass
class Script:
    """A decoder that answers from a list and remembers what it was asked."""

    answers: Sequence[Candidates]
    asked: list[tuple[PromptBatch, Guidance]] = field(default_factory=list)

    def decode(
        self, embedding: Embedding, prompts: PromptBatch, guidance: Guidance = NO_GUIDANCE
    ) -> Candidates:
        self.asked.append((prompts, guidance))
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


def candidates(*masks: BoolArray, rating: Sequence[float] = (0.4, 0.5, 0.9, 0.6)) -> Candidates:
    """Four masks of one object as logits of +-5."""
    logits = torch.stack([torch.from_numpy(mask).float() * 10 - 5 for mask in masks])
    return Candidates(logits[None], torch.tensor([rating]))


EMPTY = np.zeros((64, 64), bool)
SQUARES = [rectangle((64, 64), (4 * i, 4 * i + 8), (8 * i, 8 * i + 12)) for i in range(1, 5)]
CLICK = PromptBatch(torch.tensor([[[30.0, 20.0]]]), torch.tensor([[1]]))
BOXED = PromptBatch(*(CLICK.points_xy, CLICK.point_labels), torch.tensor([[5.0, 6.0, 70.0, 80.0]]))
GUIDED = Guidance(torch.rand(1, 256), torch.rand(1, 256))


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_cascade_prompts_each_pass_with_the_last(passes: int) -> None:
    script = Script([candidates(*SQUARES)])

    logits, rating = cascade(script, one_hot(), BOXED, GUIDED, passes=passes)

    asked, single = script.asked, script.answers[0].logits[:, :1]
    best = script.answers[0].logits[:, 2:3]
    assert len(asked) == passes
    assert asked[0] == (BOXED, GUIDED)
    assert all(guidance == NO_GUIDANCE for _, guidance in asked[1:])
    assert all(prompts.points_xy is CLICK.points_xy for prompts, _ in asked)
    if passes > 1:
        assert torch.equal(asked[1][0].mask_logits, single)
        assert asked[1][0].boxes_xyxy is BOXED.boxes_xyxy
    if passes > 2:
        assert torch.equal(asked[2][0].mask_logits, best)
        # Third square: rows 12 to 19 and columns 24 to 35 of cells of 4 pixels.
        assert asked[2][0].boxes_xyxy.tolist() == [[96, 48, 143, 79]]
    assert torch.equal(logits, (single if passes == 1 else best)[:, 0])
    assert rating.tolist() == pytest.approx([0.4 if passes == 1 else 0.9])


def test_cascade_with_scale_weights_mixes_the_first_pass() -> None:
    script, weights = Script([candidates(*SQUARES)]), torch.tensor([[0.2, 0.3, 0.5]])
    masks = script.answers[0].logits

    logits, rating = cascade(
        script,
        one_hot(),
        CLICK,
        GUIDED,
        scale_weights=weights,
        passes=1,
    )

    expected = 0.2 * masks[:, 1] + 0.3 * masks[:, 2] + 0.5 * masks[:, 3]
    torch.testing.assert_close(logits, expected)
    assert rating.tolist() == pytest.approx([0.2 * 0.5 + 0.3 * 0.9 + 0.5 * 0.6])


@pytest.mark.parametrize(
    ("prompts", "box"),
    [(BOXED, [5, 6, 70, 80]), (CLICK, [0, 0, 255, 143])],
    ids=["with a box", "without"],
)
def test_cascade_empty_mask_goes_on_with_the_box_at_hand(
    prompts: PromptBatch, box: list[int]
) -> None:
    script = Script([candidates(*[EMPTY] * 4)])

    logits, _ = cascade(script, one_hot((90, 160)), prompts, GUIDED)

    assert script.asked[2][0].boxes_xyxy.tolist() == [box]
    assert not bool((logits > 0).any())


def test_best_of_multimask_leaves_the_single_mask_out_and_breaks_ties_low() -> None:
    answer = candidates(*SQUARES, rating=(0.99, 0.2, 0.7, 0.7))

    logits, rating = best_of_multimask(answer)

    assert torch.equal(logits, answer.logits[:, 2])
    assert rating.tolist() == pytest.approx([0.7])


@fast
@given(
    height=st.integers(20, 256),
    width=st.integers(20, 256),
    spans=st.tuples(*[st.integers(0, 63)] * 4),
)
def test_boxes_of_logits_hold_the_mask_inside_the_frame(
    height: int, width: int, spans: tuple[int, int, int, int]
) -> None:
    rows, columns = sorted(spans[:2]), sorted(spans[2:])
    embedding = one_hot((height, width))
    height, width = embedding.input_hw
    mask = rectangle((64, 64), (rows[0], rows[1] + 1), (columns[0], columns[1] + 1))
    pixels = mask.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    expected = mask_to_box(pixels)

    answer = candidates(mask, EMPTY).logits[0]
    (got, empty) = boxes_of_logits(answer, embedding).tolist()
    given_box = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(2, 4)

    whole = [0, 0, width - 1, height - 1]
    assert empty == whole
    assert got == (whole if expected is None else [*expected[:2], *(expected[2:] - 1)])
    assert boxes_of_logits(answer, embedding, given_box).tolist() == [
        [1, 2, 3, 4] if expected is None else got,
        [1, 2, 3, 4],
    ]


# Masks from clicks


def click(x: float, y: float) -> Prompt:
    return Prompt(np.array([[x, y]], np.float32), np.array([1], np.int32))


def test_stability_score_equals_segment_anything() -> None:
    logits = 3 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = calculate_stability_score(logits.flatten(0, 1), 0.0, 1.0).view(2, 4)

    torch.testing.assert_close(stability_score(logits), expected)
    assert stability_score(torch.full((4, 4), -9.0)) == 0


def answer_to(prompt: Prompt, rating: tuple[float, ...]) -> int:
    """Which of four masks, of sides 10, 20, 30 and 40, is taken."""
    masks = [rectangle((64, 64), (5, 5 + side), (5, 5 + side)) for side in (10, 20, 30, 40)]
    script = Script([candidates(*masks, rating=rating)])
    labels = masks_from_prompts(script, one_hot(), {7: prompt})
    assert len(script.asked) == 1
    (found,) = [
        i
        for i in range(4)
        if np.array_equal(
            labels, 7 * (upscale_logits(script.answers[0].logits, one_hot())[0, i] > 0).numpy()
        )
    ]
    return found


@pytest.mark.parametrize(
    ("rating", "by_click", "by_box"),
    [
        ((0.95, 0.5, 0.9, 0.6), 2, 0),  # a click is ambiguous: the single mask is no candidate
        ((0.2, 0.9, 0.85, 0.6), 2, 1),  # of two rated alike, the person and not the shirt
        ((0.2, 0.9, 0.87, 0.86), 3, 1),
        ((0.2, 0.9, 0.85, 0.82), 2, 1),  # a person with the rock beside it is rated less
        ((0.2, 0.9, 0.5, 0.7), 1, 1),
    ],
)
def test_masks_from_prompts_click_takes_the_largest_of_the_well_rated_and_box_the_best(
    rating: tuple[float, ...], by_click: int, by_box: int
) -> None:
    box = Prompt(box_xyxy=np.array([5, 6, 71, 81], np.float32))

    assert answer_to(click(10, 20), rating) == by_click
    assert answer_to(box, rating) == by_box


def test_masks_from_prompts_unstable_mask_loses_to_a_stable_one() -> None:
    answer = candidates(*SQUARES, rating=(0.1, 0.8, 0.95, 0.1))
    answer.logits[:, 2] *= 0.1  # +-0.5: nothing of it is left at the threshold + 1
    script = Script([answer])

    labels = masks_from_prompts(script, one_hot(), {1: click(1, 1)})

    expected = upscale_logits(answer.logits[:, 1:2], one_hot())[0, 0] > 0
    assert np.array_equal(labels == 1, expected.numpy())


def test_masks_from_prompts_scales_clicks_and_boxes_to_the_input() -> None:
    script = Script([candidates(*[np.ones((64, 64), bool)] * 4)])
    prompt = Prompt(
        np.array([[100, 50], [0, 10]], np.float32),
        np.array([1, 0], np.int32),
        np.array([10, 20, 111, 71], np.float32),
    )

    labels = masks_from_prompts(script, one_hot((90, 160)), {1: prompt})

    ((asked, _),) = script.asked
    assert labels.shape == (90, 160)
    assert asked.points_xy.tolist() == [[[160.0, 80.0], [0.0, 16.0]]]
    assert asked.point_labels.tolist() == [[1, 0]]
    assert asked.boxes_xyxy.tolist() == [[16.0, 32.0, 176.0, 112.0]]


def test_masks_from_prompts_overlap_goes_to_the_higher_logit() -> None:
    wide, narrow = rectangle((64, 64), (10, 30), (10, 50)), rectangle((64, 64), (10, 30), (40, 60))
    strong = Candidates(2 * candidates(*[narrow] * 4).logits, torch.ones(1, 4))
    script = Script([candidates(*[wide] * 4), strong])

    labels = masks_from_prompts(
        script,
        one_hot(),
        {9: click(200, 80), 3: click(60, 80)},
    )

    assert labels[80, [100, 180, 220]].tolist() == [3, 9, 9]
    assert sorted(np.unique(labels)) == [0, 3, 9]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({1: click(160, 20)}, r"object 1: point \(160, 20\) lies outside .* 0 <= x < 160"),
        ({2: click(10, -1)}, r"object 2: point \(10, -1\) lies outside"),
        ({1: Prompt(box_xyxy=np.array([5, 5, 20, 91], np.float32))}, "5,5,20,91 leaves the frame"),
        ({255: click(1, 1)}, "object id 255 is not legal"),
        ({0: click(1, 1)}, "object id 0 is not legal"),
    ],
)
def test_masks_from_prompts_senseless_prompt_raises_before_decoding(
    prompts: dict[int, Prompt], message: str
) -> None:
    script = Script([])

    with pytest.raises(PromptError, match=message):
        masks_from_prompts(script, one_hot((90, 160)), prompts)

    assert script.asked == []


def test_masks_from_prompts_that_find_nothing_or_the_same_raise() -> None:
    nothing, same = Script([candidates(*[EMPTY] * 4)]), Script([candidates(*SQUARES)])

    with pytest.raises(PromptError, match="object 4: SAM finds nothing"):
        masks_from_prompts(nothing, one_hot(), {4: click(1, 1)})
    with pytest.raises(PromptError, match=r"objects \[8\] are wholly covered"):
        masks_from_prompts(same, one_hot(), {4: click(1, 1), 8: click(9, 9)})


# Real features


@dataclass(frozen=True)
class Photo:
    """A picture, its object, and what the network says about it."""

    mask: BoolArray
    embedding: Embedding

    def inner_click(self) -> Prompt:
        """The pixel of the object that is farthest from its border."""
        depth = cv2.distanceTransform(np.pad(self.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        return click(float(column - 1), float(row - 1))

    def at(self, point_xy: Tensor) -> bool:
        scale = self.mask.shape[1] / self.embedding.input_hw[1]
        x, y = (point_xy * scale).int().tolist()
        return bool(self.mask[y, x])


@dataclass(frozen=True)
class Ducks:
    """One toy in two photos, at an input size that costs a quarter."""

    decoder: SamDecoder
    reference: Photo
    other: Photo

    def prompts(self, target: Target) -> tuple[PromptBatch, Tensor]:
        maps = similarity_maps([target], self.other.embedding)
        points = [cell_centres_xy(spread_points(m, 1, 4.0), 16.0) for m in (maps, -maps)]
        return PromptBatch(torch.cat(points, dim=1), torch.tensor([[1, 0]])), maps

    def found(self, logits: Tensor) -> float:
        mask = upscale_logits(logits[:, None], self.other.embedding)[0, 0] > 0
        return iou(mask.numpy(), self.other.mask)


def photo(encoder: Any, image: Path, mask: Path) -> Photo:
    stored = np.asarray(Image.open(mask))
    picture = np.array(Image.open(image).convert("RGB"))
    return Photo((stored if stored.ndim == 2 else stored.max(axis=2)) > 0, encoder.encode(picture))


@pytest.fixture(scope="module")
def ducks(davis_root: Path, vit_t_weights: Path) -> Ducks:
    encoder, decoder = load_sam(EncoderConfig(device="cpu", input_size=512))
    root = davis_root.parent / "perseg-mini"
    photos = [
        photo(encoder, root / f"Images/duck_toy/{n}.jpg", root / f"Annotations/duck_toy/{n}.png")
        for n in ("00", "01")
    ]
    return Ducks(decoder, *photos)


def real(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the weights and the photos and clips."""
    return pytest.mark.needs_weights(pytest.mark.needs_davis(test))


@real
def test_masks_from_prompts_click_on_the_toy_finds_it(ducks: Ducks) -> None:
    for picture in (ducks.reference, ducks.other):
        labels = masks_from_prompts(ducks.decoder, picture.embedding, {5: picture.inner_click()})
        assert iou(labels == 5, picture.mask) > 0.9


@real
def test_masks_from_prompts_click_and_box_in_a_clip_find_the_bird(
    davis_root: Path, vit_t_weights: Path
) -> None:
    encoder, decoder = load_sam(EncoderConfig(device="cpu"))
    bird = photo(
        encoder,
        davis_root / "JPEGImages/480p/mallard-fly/00000.jpg",
        davis_root / "Annotations/480p/mallard-fly/00000.png",
    )
    box = mask_to_box(bird.mask)

    for prompt in (bird.inner_click(), Prompt(box_xyxy=box)):
        labels = masks_from_prompts(decoder, bird.embedding, {1: prompt})
        assert iou(labels == 1, bird.mask) > 0.8


@real
@pytest.mark.parametrize("kind", ["mean", "mean_max"])
@pytest.mark.parametrize("local", [False, True])
def test_similarity_maps_point_at_the_toy_in_the_other_photo(
    ducks: Ducks, kind: str, local: bool
) -> None:
    target = make_target(ducks.reference.embedding, ducks.reference.mask, kind)
    (likeness,) = similarity_maps([target], ducks.other.embedding, local)
    points = spread_points(torch.stack([likeness, -likeness]), 2, 4.0)
    toy = grid_coverage(ducks.other.mask, ducks.other.embedding, (32, 32)) > 0.5

    positive, negative = cell_centres_xy(points, 16.0)
    assert all(ducks.other.at(point) for point in positive)
    assert not any(ducks.other.at(point) for point in negative)
    assert float(likeness[toy].mean()) > float(likeness[~toy].mean()) + 0.1


@real
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("semantic", [False, True])
def test_cascade_each_guidance_alone_and_together_finds_the_toy(
    ducks: Ducks, attention: bool, semantic: bool
) -> None:
    target = make_target(ducks.reference.embedding, ducks.reference.mask)
    prompts, maps = ducks.prompts(target)
    guidance = Guidance(
        3 * normalised_prior(maps).flatten(1) if attention else None,
        target.embedding[None] if semantic else None,
    )

    coarse, _ = cascade(ducks.decoder, ducks.other.embedding, prompts, guidance, passes=1)
    refined, rating = cascade(ducks.decoder, ducks.other.embedding, prompts, guidance)

    plain = ducks.decoder.decode(ducks.other.embedding, prompts).logits[:, 0]
    assert torch.equal(coarse, plain) is not (attention or semantic)
    assert ducks.found(refined) > 0.9
    assert 0.5 < float(rating) < 1.2


@real
def test_fit_scale_weights_on_the_reference_are_as_good_as_its_best_mask(ducks: Ducks) -> None:
    reference = ducks.reference
    target = make_target(reference.embedding, reference.mask)
    point = cell_centres_xy(
        spread_points(similarity_maps([target], reference.embedding), 1, 4.0), 16.0
    )
    masks = ducks.decoder.decode(
        reference.embedding, PromptBatch(point, torch.tensor([[1]]))
    ).logits[0, 1:]
    wanted = grid_coverage(reference.mask, reference.embedding, (128, 128)).numpy() > 0.5

    weights = fit_scale_weights(masks, torch.from_numpy(wanted).float())

    single = [iou(mask.numpy() > 0, wanted) for mask in masks]
    mixed = iou(mix_masks(masks[None], weights[None])[0].numpy() > 0, wanted)
    assert mixed > max(single) - 0.01
    assert mixed > 0.9


def test_what_an_object_looked_like_of_late_tells_it_when_it_is_unlike_its_reference() -> None:
    """mallard-fly backwards: the duck on the grass is unlike the one in the sun."""
    random = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    before, after, ground = torch.nn.functional.normalize(random, dim=1)
    neck = ground.view(1, 256, 1, 1).repeat(1, 1, 16, 16)
    neck[0, :, 4:8, 4:8] = after[:, None, None]
    frame = embedding_of(neck)
    object_there, elsewhere = torch.full((2, 1, 64, 64), -4.0)
    object_there[:, 16:32, 16:32] = elsewhere[:, 40:56, 40:56] = 4.0
    look = Look(before, 1.0, float(before @ ground))
    assert float(likeness([look], object_there, frame)) < 0.5
    for _ in range(5):
        (look,) = renewed([look], object_there, frame, 0.2)
    assert float(look.direction.norm()) == pytest.approx(1, abs=1e-5)
    assert float(likeness([look], object_there, frame)) == pytest.approx(1, abs=1e-4)
    assert float(likeness([look], elsewhere, frame)) == pytest.approx(0, abs=1e-4)
    (only,) = renewed([look], object_there, frame, 1.0)
    assert torch.allclose(only.direction, after, atol=1e-5)
