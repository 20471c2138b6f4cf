"""The two halves of method "track"'s prior, alone: on made-up features and on real ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.errors import ConfigError
from persam_video.label_maps import read_label_map
from persam_video.personalize.target import grid_coverage
from persam_video.sam.models import load_sam
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.features import FeatureSpace, FrameFeatures, Sums, grid_size, grid_stride
from persam_video.tracking.grid import cells_of
from persam_video.tracking.target_model import TargetModel
from persam_video.types import Embedding

GRID = (12, 16)
EVERYWHERE = torch.ones(GRID, dtype=torch.bool)


def frame_of(looks: Tensor) -> FrameFeatures:
    """A frame of (h, w, D) made-up features and the intercept."""
    return FrameFeatures.of(torch.cat([looks, torch.ones(*GRID, 1)], dim=2), looks)


def two_kinds(mask: Tensor) -> Tensor:
    """(h, w, 2) features that are a mixture of the object's look and the background's."""
    return torch.stack([mask, 1 - mask], dim=2)


def square_mask() -> Tensor:
    mask = torch.zeros(GRID)
    mask[3:8, 4:10] = 1.0
    return mask


def test_target_model_half_filled_cells_score_half_way() -> None:
    # A small object weighs as much as the whole background, so a half-filled cell counted as a bit
    # of both would score near +1.
    mask = square_mask()
    mask[8, 4:10] = 0.5
    model = TargetModel(TrackConfig())
    model.fit(frame_of(two_kinds(mask)), mask, EVERYWHERE)
    score = frame_of(two_kinds(mask)).cells @ model.weights
    assert score[3:8, 4:10].min() > 0.9
    assert score[0].max() < -0.9
    assert score[8, 4:10].abs().max() < 0.1


def test_target_model_thin_object_is_learnt_from_its_fullest_cells() -> None:
    mask = torch.zeros(GRID)
    mask[5, 2:14] = 0.3
    looks = two_kinds((mask > 0).float())
    model = TargetModel(TrackConfig())
    model.fit(frame_of(looks), mask, EVERYWHERE)
    score = frame_of(looks).cells @ model.weights
    assert score[5, 2:14].min() > 0.5
    assert score[:5].max() < -0.5


def test_target_model_sums_over_the_frame_equal_the_sums_over_cells() -> None:
    # The region is summed anew and the rest taken from the frame's sums; both ways must agree.
    torch.manual_seed(0)
    looks = torch.randn(*GRID, 5)
    mask = square_mask() * 0.9
    region = torch.zeros(GRID, dtype=torch.bool)
    region[1:10, 2:13] = True
    frame = frame_of(looks)
    rivals = torch.zeros(GRID, dtype=torch.bool)
    rivals[8:11, 10:14] = True  # some of it beside the region
    sums = Sums.over(frame.cells[rivals])
    model = TargetModel(TrackConfig())
    matrix, vector = model._normal_equations(frame, mask, region, sums)
    inside = mask > 0.5
    weight = inside / inside.sum()
    # Away from the region the cells that were counted stand for the others, too.
    everywhere = ~inside * torch.where(region, torch.ones(GRID), frame.counted)
    weight = weight + everywhere / (~inside).sum() / 3
    for cells in (region & ~inside, rivals):
        weight = weight + cells / cells.sum() / 3
    target = 2 * mask / mask.max() - 1
    flat = frame.cells.flatten(0, 1).double()
    expected = (flat.T * weight.flatten()) @ flat
    assert torch.allclose(matrix.double(), expected, atol=1e-5)
    assert torch.allclose(vector.double(), (weight * target).flatten().double() @ flat, atol=1e-5)


def test_features_some_cells_stand_for_all_in_the_sums() -> None:
    frame = frame_of(torch.ones(*GRID, 2))
    assert float(frame.counted.sum()) == frame.sums.count == 12 * 16
    assert torch.equal(frame.sums.gram, torch.full((3, 3), 12.0 * 16.0))
    assert torch.equal(frame.sums.total, torch.full((3,), 12.0 * 16.0))


def test_target_model_other_object_of_a_similar_look_is_told_apart() -> None:
    # A few cells of a look-alike would drown in the background's; they have a weight of their own.
    # The second look says object, the third, weak one says which.
    torch.manual_seed(0)
    mask, rivals = square_mask(), torch.zeros(GRID, dtype=torch.bool)
    rivals[10, 12:14] = True
    both = ((mask > 0) | rivals).float()
    looks = torch.stack([1 - both, both, 0.3 * rivals], dim=2) + 0.1 * torch.randn(*GRID, 3)
    frame, scores = frame_of(looks), []
    for known in (None, Sums.over(frame.cells[rivals])):
        model = TargetModel(TrackConfig())
        model.fit(frame, mask, EVERYWHERE, known)
        score = frame.cells @ model.weights
        scores.append(float(score[rivals].mean()))
    assert scores[0] > 0
    assert scores[1] < 0


def test_appearance_memory_keeps_a_part_that_the_linear_model_outvotes() -> None:
    # Looks on a circle: body and ear have background looks between them on either side.
    angles = torch.full(GRID, 180.0)
    angles[:, :4], angles[:, 12:] = 60.0, 300.0
    mask = torch.zeros(GRID)
    mask[3:10, 4:10], angles[3:10, 4:10] = 1.0, 0.0
    mask[1:3, 6:9], angles[1:3, 6:9] = 1.0, 120.0
    looks = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=2)
    memory, model = AppearanceMemory(), TargetModel(TrackConfig())
    memory.fit(looks, mask, EVERYWHERE)
    model.fit(frame_of(looks), mask, EVERYWHERE)
    assert frame_of(looks).cells[1, 6] @ model.weights < 0
    remembered = memory.score(looks.flatten(0, 1)).view(GRID)
    assert torch.equal(remembered > 0.9, mask > 0)


def test_appearance_memory_latest_frame_is_replaced_and_the_reference_stays() -> None:
    first, second, third = torch.eye(3)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    region = torch.ones((1, 1), dtype=torch.bool)
    memory = AppearanceMemory()
    memory.fit(first[None, None], one, region)
    memory.update(second[None, None], none, region)
    assert float(memory.score(second[None])) == pytest.approx(-1, abs=1e-3)
    memory.update(third[None, None], none, region)
    assert float(memory.score(first[None])) == pytest.approx(1, abs=1e-3)
    assert float(memory.score(second[None])) == pytest.approx(0, abs=1e-3)


def test_appearance_memory_large_region_is_thinned_to_a_fixed_size() -> None:
    looks = torch.nn.functional.normalize(torch.randn(100, 90, 4), dim=2)
    mask = (looks[..., 0] > 0).float()
    memory = AppearanceMemory()
    memory.fit(looks, mask, torch.ones((100, 90), dtype=torch.bool))
    assert memory._reference is not None
    assert memory._reference[0].shape == (1024, 4)
    score = memory.score(looks.flatten(0, 1))
    assert ((score > 0) == (mask.flatten() > 0)).float().mean() > 0.9


def test_appearance_memory_cells_far_off_are_thinned_and_count_for_those_left_out() -> None:
    mask = torch.zeros(40, 40)
    mask[10:14, 10:14] = 1.0
    region, rivals = torch.zeros((2, 40, 40), dtype=torch.bool)
    region[:30, :30], rivals[8:12, 28:36] = True, True
    memory = AppearanceMemory()
    memory.fit(torch.randn(40, 40, 4), mask, region, rivals)
    assert memory._reference is not None
    cells, counts = memory._reference
    near, far, others = 10 * 10, 30 * 30 - 10 * 10, 4 * 6  # two columns of it are in the region
    assert counts.shape == (2, near + far // 4 + others // 4) == (2, len(cells))
    assert counts.sum(dim=1).tolist() == [16, near + far + others]


def test_grid_of_a_small_input_has_as_many_cells_as_that_of_a_large_one() -> None:
    def embedding(size: int) -> Embedding:
        neck = torch.zeros(1, 256, size // 16, size // 16)
        return Embedding(neck, (), (480, 854), (size * 9 // 16, size), size, False)

    sizes = {}
    for size in (256, 512, 1024):
        strides = (4, 8, grid_stride(TrackConfig(), embedding(size)))
        sizes[size] = [grid_size(embedding(size), stride) for stride in strides]
        asked = TrackConfig(grid_stride=8)
        assert grid_stride(asked, embedding(size)) == 8
        # 9 of 128 parts of the side, whatever the cells.
        reach = [cells_of(9, embedding(size), stride) * stride / size for stride in (4, 8)]
        assert reach == pytest.approx([9 / 128] * 2, abs=0.5 * 8 / size)
    assert sizes[256] == [(36, 64), (18, 32), (36, 64)]
    assert sizes[512] == [(72, 128), (36, 64), (72, 128)]
    assert sizes[1024] == [(144, 256), (72, 128), (72, 128)]


def test_grid_stride_other_than_4_or_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="grid_stride must be 4, 8 or none, got 6"):
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
    assert frame.cells.shape[:2] == frame.looks.shape[:2] == (height, width)
    assert torch.allclose(frame.looks.norm(dim=2), torch.ones(height, width), atol=1e-4)

    cells = 512 // stride
    mask = grid_coverage(labels, embedding, (cells, cells))[:height, :width]
    region = torch.ones_like(mask, dtype=torch.bool)
    model, memory = TargetModel(TrackConfig()), AppearanceMemory()
    model.fit(frame, mask, region)
    memory.fit(frame.looks, mask, region)
    by_model = frame.cells @ model.weights > 0
    by_memory = memory.score(frame.looks.flatten(0, 1)).view(height, width) > 0
    for found in (by_model, by_memory):
        assert (found & (mask > 0.5)).sum() / (found | (mask > 0.5)).sum() > least
