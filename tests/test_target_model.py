"""The two halves of method "track"'s prior, alone: on made-up features and on real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from composed import every_cell
from torch import Tensor

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.errors import ConfigError
from persam_video.label_maps import read_label_map
from persam_video.personalize.target import grid_coverage
from persam_video.sam.models import load_sam
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.cell_scores import cell_scores
from persam_video.tracking.features import (
    FeatureSpace,
    FrameFeatures,
    filled_up,
    grid_size,
    grid_stride,
)
from persam_video.tracking.grid import cells_in, cells_of, rectangle_of
from persam_video.tracking.lesson import Lesson
from persam_video.tracking.sums import Sums
from persam_video.tracking.target_model import TargetModel
from persam_video.types import Embedding

GRID = (12, 16)
EVERYWHERE = torch.ones(GRID, dtype=torch.bool)


def frame_of(looks: Tensor) -> FrameFeatures:
    """A frame of (h, w, D) made-up components."""
    return FrameFeatures.of(looks)


def scored(frame: FrameFeatures, model: TargetModel) -> Tensor:
    """(h, w) score of all cells."""
    height, width = frame.size_hw
    return frame.scores(torch.arange(height * width), model.weights).view(height, width)


def summed_every_second(looks: Tensor) -> FrameFeatures:
    """The same with every second row and column in its sums."""
    frame = frame_of(looks)
    samples = every_cell(frame)[::2, ::2]
    sums = Sums.over(samples.flatten(0, 1)).times(4.0)
    return replace(frame, step=2, every=(2, 2), samples=samples, sums=sums)


def two_kinds(mask: Tensor) -> Tensor:
    """(h, w, 2) features that are a mixture of the object's look and the background's."""
    return torch.stack([mask, 1 - mask], dim=2)


def square_mask() -> Tensor:
    mask = torch.zeros(GRID)
    mask[3:8, 4:10] = 1.0
    return mask


@pytest.mark.parametrize("column", [20, 21, 22, 23])
def test_target_model_object_far_smaller_than_a_cell_is_learnt(column: int) -> None:
    """One pixel of a frame of 1920 fills 3 % of a cell; elsewhere there is the least chance."""
    mask = torch.full((45, 45), 3.3e-4)
    mask[22, column] = 0.028
    looks = torch.zeros(45, 45, 2)
    looks[..., 1], looks[22, column] = 1.0, torch.tensor([1.0, 0.0])
    frame, model = frame_of(looks), TargetModel(TrackConfig())
    lesson = Lesson.around(mask, torch.ones_like(mask, dtype=torch.bool), frame)
    assert lesson.own.count == 1
    model.fit(frame, lesson)
    score = scored(frame, model)
    assert score.argmax() == 22 * 45 + column and score.max() > 0.9


def test_target_model_half_filled_cells_score_half_way() -> None:
    # A small object weighs as much as the whole background, so a half-filled cell counted as a bit
    # of both would score near +1.
    mask = square_mask()
    mask[8, 4:10] = 0.5
    model = TargetModel(TrackConfig())
    frame = frame_of(two_kinds(mask))
    model.fit(frame, Lesson.around(mask, EVERYWHERE, frame))
    score = scored(frame, model)
    assert score[3:8, 4:10].min() > 0.9
    assert score[0].max() < -0.9
    assert score[8, 4:10].abs().max() < 0.1


def test_target_model_thin_object_is_learnt_from_its_fullest_cells() -> None:
    mask = torch.zeros(GRID)
    mask[5, 2:14] = 0.3
    looks = two_kinds((mask > 0).float())
    model = TargetModel(TrackConfig())
    frame = frame_of(looks)
    model.fit(frame, Lesson.around(mask, EVERYWHERE, frame))
    score = scored(frame, model)
    assert score[5, 2:14].min() > 0.5
    assert score[:5].max() < -0.5


def test_target_model_equations_are_the_weighted_sums_over_cells() -> None:
    # The frame's sums and the others' are made once; both ways must agree.
    torch.manual_seed(0)
    mask = square_mask() * 0.9
    region, rivals = torch.zeros((2, *GRID), dtype=torch.bool)
    region[1:10, 2:13] = True
    rivals[8:11, 10:14] = True  # some of it beside the region
    frame = summed_every_second(torch.randn(*GRID, 5))
    lesson = Lesson.around(mask, region, frame).against(frame, rivals=rivals)
    matrix, vector = TargetModel(TrackConfig())._normal_equations(frame, lesson)
    inside, counted, chosen = mask > 0.5, torch.zeros(GRID), torch.zeros(GRID)
    counted[::2, ::2] = 4.0  # these stand for all
    chosen.view(-1)[lesson.cells] = lesson.counts
    weight = chosen * inside / inside.sum()
    for cells in (counted * ~inside, chosen * ~inside, rivals):
        weight = weight + cells / cells.sum() / 3
    target = 2 * mask / mask.max() - 1
    flat = every_cell(frame).flatten(0, 1).double()
    expected = (flat.T * weight.flatten()) @ flat
    assert torch.allclose(matrix.double(), expected, atol=1e-5)
    assert torch.allclose(vector.double(), (weight * target).flatten().double() @ flat, atol=1e-5)


def test_target_model_other_object_of_a_similar_look_is_told_apart() -> None:
    # A few cells of a look-alike would drown in the background's; they have a weight of their own.
    # The second look says object, the third, weak one says which.
    torch.manual_seed(0)
    mask, rivals = square_mask(), torch.zeros(GRID, dtype=torch.bool)
    rivals[10, 12:14] = True
    both = ((mask > 0) | rivals).float()
    looks = torch.stack([1 - both, both, 0.3 * rivals], dim=2) + 0.1 * torch.randn(*GRID, 3)
    frame, scores = frame_of(looks), []
    for known in (None, rivals):
        model = TargetModel(TrackConfig())
        model.fit(frame, Lesson.around(mask, EVERYWHERE, frame).against(frame, rivals=known))
        score = scored(frame, model)
        scores.append(float(score[rivals].mean()))
    assert scores[0] > 0
    assert scores[1] < 0


def test_lesson_what_looks_like_the_object_far_away_is_learnt_as_far_as_it_is_large() -> None:
    torch.manual_seed(0)
    mask = square_mask()
    banner = torch.zeros(GRID, dtype=torch.bool)
    banner[9:12, 10:16] = True
    # Nearly the object's look, and nothing like it in the region.
    looks = two_kinds(mask)
    looks[banner] = torch.tensor([0.9, 0.3])
    frame = frame_of(looks + 0.02 * torch.randn(*GRID, 2))
    region = torch.zeros(GRID, dtype=torch.bool)
    region[1:9, 2:12] = True
    alike = frame.sampled(banner)
    scores, remembered = [], []
    for known in (None, alike):
        lesson = Lesson.around(mask, region, frame).against(frame, alike=known)
        model, memory = TargetModel(TrackConfig()), AppearanceMemory()
        model.fit(frame, lesson)
        memory.fit(lesson)
        scores.append(float((alike @ model.weights).mean()))
        remembered.append(float(memory.score(frame.looks(cells_in(banner))).mean()))
        assert scored(frame, model)[mask > 0].min() > 0
    assert scores[0] > 0.2 and remembered[0] > 0.9
    assert scores[1] < scores[0] - 0.2 and remembered[1] < 0
    small = Lesson.around(mask, region, frame).against(frame, alike=alike[:3])
    assert lesson.other_weight == pytest.approx(18 / 30 / 3)
    assert small.other_weight == pytest.approx(3 / 30 / 3)
    assert small.other_sums is not None and small.other_sums.count == 3


def test_appearance_memory_keeps_a_part_that_the_linear_model_outvotes() -> None:
    # Looks on a circle: body and ear have background looks between them on either side.
    angles = torch.full(GRID, 180.0)
    angles[:, :4], angles[:, 12:] = 60.0, 300.0
    mask = torch.zeros(GRID)
    mask[3:10, 4:10], angles[3:10, 4:10] = 1.0, 0.0
    mask[1:3, 6:9], angles[1:3, 6:9] = 1.0, 120.0
    looks = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=2)
    memory, model = AppearanceMemory(), TargetModel(TrackConfig())
    frame = frame_of(looks)
    lesson = Lesson.around(mask, EVERYWHERE, frame)
    memory.fit(lesson)
    model.fit(frame, lesson)
    assert scored(frame, model)[1, 6] < 0
    remembered = memory.score(frame.looks(cells_in(EVERYWHERE))).view(GRID)
    assert torch.equal(remembered > 0.9, mask > 0)


def test_cell_scores_cells_that_are_ruled_out_are_not_compared_and_none_is_lost_by_it() -> None:
    torch.manual_seed(0)
    mask = square_mask()
    frame = frame_of(two_kinds(mask) + 0.3 * torch.randn(*GRID, 2))
    memory, model = AppearanceMemory(), TargetModel(TrackConfig())
    lesson = Lesson.around(mask, EVERYWHERE, frame)
    memory.fit(lesson)
    model.fit(frame, lesson)
    asked: list[int] = []

    class Counting(AppearanceMemory):
        def score(self, looks: Tensor) -> Tensor:
            asked.append(len(looks))
            return memory.score(looks)

    scores = cell_scores(frame, EVERYWHERE, model, Counting(), TrackConfig())
    alone = scored(frame, model).flatten()
    both = (alone + memory.score(frame.looks(cells_in(EVERYWHERE)))) / 2
    assert torch.equal(scores > 0, both > 0)
    assert 0 < asked[0] < 0.6 * alone.numel()
    config = TrackConfig(memory_share=1.0)  # the model has no say, so it rules nothing out
    remembered = cell_scores(frame, EVERYWHERE, model, Counting(), config)
    assert torch.equal(remembered, memory.score(frame.looks(cells_in(EVERYWHERE))))
    config = TrackConfig(memory_share=0.0)
    assert torch.equal(cell_scores(frame, EVERYWHERE, model, Counting(), config), alone)
    assert asked[1:] == [alone.numel()]


def test_appearance_memory_latest_frame_is_replaced_and_the_reference_stays() -> None:
    first, second, third = torch.eye(3)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    region = torch.ones((1, 1), dtype=torch.bool)

    def learnt(look: Tensor, mask: Tensor) -> Lesson:
        return Lesson.around(mask, region, frame_of(look[None, None]))

    memory = AppearanceMemory()
    memory.fit(learnt(first, one))
    memory.update(learnt(second, none))
    assert float(memory.score(second[None])) == pytest.approx(-1, abs=1e-3)
    memory.update(learnt(third, none))
    assert float(memory.score(first[None])) == pytest.approx(1, abs=1e-3)
    assert float(memory.score(second[None])) == pytest.approx(0, abs=1e-3)


def test_more_references_weigh_the_same_and_the_newest_two_looks_are_kept() -> None:
    """The object has one look in each reference; what was learnt in between is forgotten."""
    looks = torch.eye(6)
    mask = torch.zeros(8, 8)
    mask[2:5, 2:5] = 1.0
    region = torch.ones(8, 8, dtype=torch.bool)
    model, memory = TargetModel(TrackConfig()), AppearanceMemory()

    def learn(look: int, method: str) -> None:
        cells = torch.where(mask[..., None] > 0.5, looks[look], looks[5])
        frame = frame_of(cells)
        lesson = Lesson.around(mask, region, frame)
        getattr(model, method)(frame, lesson)
        getattr(memory, method)(lesson)

    learn(0, "fit")
    learn(4, "update")
    assert float(memory.score(looks[4][None])) > 0.5
    for look in (1, 2):
        learn(look, "fit")
    first, second, third, background = (float(model.weights[i]) for i in (0, 1, 2, 5))
    assert first == pytest.approx(second, rel=1e-3) and first == pytest.approx(third, rel=1e-3)
    assert background < 0 < first
    assert abs(float(model.weights[4])) < 1e-3
    scores = memory.score(looks).tolist()
    assert scores[0] > 0.9 and scores[2] > 0.9 and scores[5] < -0.9
    assert scores[1] == pytest.approx(scores[4], abs=1e-3)  # neither is known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_appearance_memory_products_have_few_shapes_and_what_fills_them_up_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    shapes, real_mm = set(), torch.mm

    def noted_mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        shapes.add((*a.shape, *b.shape))
        return real_mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", noted_mm)
    torch.manual_seed(0)
    looks = torch.nn.functional.normalize(torch.randn(40, 60, 5), dim=2)
    frame, flat = frame_of(looks), looks.flatten(0, 1)
    for size in range(4, 40, 4):  # as many sizes of the object, and of what is remembered
        mask, region = torch.zeros(40, 60), torch.zeros(40, 60, dtype=torch.bool)
        mask[1 : size // 2, 1:size], region[: size + 1, : size + 20] = 1.0, True
        memory = AppearanceMemory(dtype)
        lesson = Lesson.around(mask, region, frame)
        memory.fit(lesson)
        asked, known = flat[: 20 * size], flat[lesson.cells]
        weights = (lesson.counts * (46 * (asked @ known.T - 1)).exp2()).double()
        labels = 2 * mask.flatten()[lesson.cells].double() - 1
        expected = (weights @ labels / weights.sum(dim=1)).float()
        torch.testing.assert_close(
            memory.score(asked), expected, atol=0.15 if dtype is torch.bfloat16 else 1e-4, rtol=0
        )
    assert {shape[3] for shape in shapes} == {256, 512, 768, 1024}
    assert len(shapes) == 4
    assert memory.score(flat[:0]).shape == (0,)


def test_appearance_memory_large_region_is_thinned_to_a_fixed_size() -> None:
    looks = torch.nn.functional.normalize(torch.randn(100, 90, 4), dim=2)
    mask = (looks[..., 0] > 0).float()
    memory = AppearanceMemory()
    frame = frame_of(looks)
    memory.fit(Lesson.around(mask, torch.ones((100, 90), dtype=torch.bool), frame))
    [(cells, _)] = memory._references
    assert cells.shape == (1024, 5)
    score = memory.score(looks.flatten(0, 1))
    assert ((score > 0) == (mask.flatten() > 0)).float().mean() > 0.9


def test_lesson_cells_far_off_are_thinned_and_count_for_those_left_out() -> None:
    mask = torch.zeros(40, 40)
    mask[10:14, 10:14] = 1.0
    region, rivals = torch.zeros((2, 40, 40), dtype=torch.bool)
    region[:30, :30], rivals[8:12, 28:36] = True, True
    frame = frame_of(torch.randn(40, 40, 4))
    lesson = Lesson.around(mask, region, frame).against(frame, rivals=rivals)
    memory = AppearanceMemory()
    memory.fit(lesson)
    [(cells, counts)] = memory._references
    near, far, others = 8 * 8, 30 * 30 - 8 * 8, 4 * 6  # two columns of it are in the region
    assert len(lesson.cells) == near + -(-far // 8)
    remembered = len(lesson.cells) + others // 8
    assert counts.shape == (2, remembered) == (2, len(cells))
    assert counts.sum(dim=1).tolist() == pytest.approx([16, near + far + others])
    assert lesson.other_sums is not None and lesson.other_sums.count == int(rivals.sum())


def made_up(size: int, strides: tuple[int, ...]) -> Embedding:
    """An embedding of a 16:9 picture whose encoder has maps of some strides."""
    torch.manual_seed(0)
    neck = torch.randn(1, 256, size // 16, size // 16)
    stages = tuple(torch.randn(1, 32, size * 9 // 16 // s, size // s) for s in strides)
    return Embedding(neck, stages, (480, 854), (size * 9 // 16, size), size, False)


def test_grid_stride_is_at_most_twice_as_fine_as_the_maps() -> None:
    for asked, tiny, vit in ((4, 4, 8), (8, 8, 8)):
        assert grid_stride(TrackConfig(grid_stride=asked), made_up(256, (4, 8, 16))) == tiny
        assert grid_stride(TrackConfig(grid_stride=asked), made_up(256, (16, 16))) == vit
    # 9 of 128 parts of the side, whatever the cells.
    reach = [cells_of(9, made_up(512, (4,)), stride) * stride / 512 for stride in (4, 8)]
    assert reach == pytest.approx([9 / 128] * 2, abs=0.5 * 8 / 512)


@pytest.mark.parametrize("strides", [(4, 8, 16), (16, 16)])
@pytest.mark.parametrize("stride", [4, 8])
def test_features_are_all_maps_standardised_enlarged_and_projected(
    strides: tuple[int, ...], stride: int
) -> None:
    embedding, height, width = made_up(256, strides), 144 // stride, 256 // stride
    space = FeatureSpace.fit(embedding, stride, components=24)
    expected = torch.zeros(height, width, 24)
    maps = [*embedding.stages, embedding.neck[:, :, :9]]
    for projection, m in zip(space.projections, maps, strict=True):
        if m.shape[3] > width:
            m = torch.nn.functional.avg_pool2d(m, m.shape[3] // width)
        cells = (m[0].permute(1, 2, 0) - projection.mean) / projection.deviation
        share = torch.nn.functional.normalize(cells, dim=2) @ projection.axes[:24].T
        expected += torch.nn.functional.interpolate(
            share.permute(2, 0, 1)[None], (height, width), mode="bilinear"
        )[0].permute(1, 2, 0)
    frame = space.features(embedding)
    if len(strides) == 2 or stride == 8:  # else the coarsest are enlarged in steps
        assert torch.allclose(every_cell(frame)[..., :-1], expected, atol=1e-3)
    some = torch.tensor([0, width - 1, 3 * width + 5, height * width - 1])
    assert torch.allclose(frame.at(some), every_cell(frame).flatten(0, 1)[some], atol=1e-5)
    unit = torch.nn.functional.normalize(frame.at(some)[:, :-1], dim=1)
    assert torch.allclose(frame.looks(some), unit, atol=1e-5)
    weights = torch.randn(25)
    assert torch.allclose(frame.scores(some, weights), frame.at(some) @ weights, atol=1e-4)


def test_features_in_bfloat16_are_those_in_float32_but_for_its_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedding = made_up(256, (4, 8, 16))
    rows, product = set(), Tensor.__matmul__

    def noted(self: Tensor, other: Tensor) -> Tensor:
        if self.dtype is torch.bfloat16:
            rows.add(len(self))
        return product(self, other)

    monkeypatch.setattr(Tensor, "__matmul__", noted)
    plain, rounded = (
        FeatureSpace.fit(embedding, 4, components=24, dtype=dtype).features(embedding)
        for dtype in (torch.float32, torch.bfloat16)
    )
    some = torch.arange(0, 36 * 64, 5)
    for of in (lambda f: f.at(some), lambda f: f.looks(some), lambda f: f.samples):
        expected, found = of(plain), of(rounded)
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        assert (found - expected).norm() < 0.01 * expected.norm()
    assert (rounded.at(some)[:, -1] == 1).all()
    assert rounded.at(some[:0]).shape == (0, 25)
    assert rows and all(count % 256 == 0 for count in rows)  # few shapes, as of the memory


def test_rows_are_filled_up_to_few_numbers_and_by_little() -> None:
    numbers = [filled_up(rows) for rows in range(60_000)]
    assert len(set(numbers)) < 30
    assert all(rows <= number < max(rows + 256, 1.25 * rows) for rows, number in enumerate(numbers))


@pytest.mark.parametrize("strides", [(4, 8, 16), (16, 16)])
@pytest.mark.parametrize("stride", [4, 8])
def test_sums_are_over_half_of_the_embedded_cells(strides: tuple[int, ...], stride: int) -> None:
    embedding = made_up(256, strides)
    space = FeatureSpace.fit(embedding, stride, components=24)
    frame, step = space.features(embedding), 16 // stride
    counted = every_cell(frame)[::step, :: 2 * step].flatten(0, 1)
    expected = Sums.over(counted).times(2 * step**2)
    assert frame.step == step and frame.every == (step, 2 * step)
    torch.testing.assert_close(frame.sums.gram, expected.gram, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(frame.sums.total, expected.total, atol=1e-2, rtol=1e-4)
    assert frame.sums.count == expected.count == 144 * 256 / stride**2
    half = torch.zeros(9, 16, dtype=torch.bool)
    half[:, 8:] = True
    rest = space.sums(embedding, ~half)
    both = space.sums(embedding, half) + rest
    torch.testing.assert_close(both.gram, expected.gram, atol=1e-2, rtol=1e-4)
    assert rest.count == expected.count / 2


def test_grid_stride_other_than_4_or_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="grid_stride must be 4 or 8, got 6"):
        TrackConfig(grid_stride=6)


@pytest.mark.needs_weights
@pytest.mark.needs_davis
@pytest.mark.parametrize(("stride", "least"), [(4, 0.7), (8, 0.85)])
def test_prior_both_halves_tell_the_object_of_a_real_frame(
    vit_t_weights: Path, davis_root: Path, stride: int, least: float
) -> None:
    encoder, _ = load_sam(EncoderConfig(input_size=512), progress=False)
    image = cv2.imread(str(davis_root / "JPEGImages/480p/hockey/00000.jpg"))[:, :, ::-1].copy()
    labels = read_label_map(davis_root / "Annotations/480p/hockey/00000.png") > 0
    embedding = encoder.encode(image)
    frame = FeatureSpace.fit(embedding, stride).features(embedding)
    height, width = grid_size(embedding, stride)
    assert frame.size_hw == (height, width)

    cells = 512 // stride
    mask = grid_coverage(labels, embedding, (cells, cells))[:height, :width]
    region = torch.ones_like(mask, dtype=torch.bool)
    looks = frame.looks(cells_in(region))
    assert torch.allclose(looks.norm(dim=1), torch.ones(height * width), atol=1e-4)
    model, memory = TargetModel(TrackConfig()), AppearanceMemory()
    lesson = Lesson.around(mask, region, frame)
    model.fit(frame, lesson)
    memory.fit(lesson)
    by_model = scored(frame, model) > 0
    by_memory = memory.score(looks).view(height, width) > 0
    for found in (by_model, by_memory):
        assert (found & (mask > 0.5)).sum() / (found | (mask > 0.5)).sum() > least


def test_rectangle_of_a_place_and_of_nothing() -> None:
    place = np.zeros((7, 9), np.bool_)
    assert place[rectangle_of(place)].shape == (0, 0)
    place[2, 3], place[4, 8] = True, True
    assert rectangle_of(place) == (slice(2, 5), slice(3, 9))
    assert rectangle_of(place[:, ::2]) == (slice(4, 5), slice(4, 5))
