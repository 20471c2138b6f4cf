from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from persam_video.errors import DatasetError, PersamError
from persam_video.evaluation.davis import evaluate, read_split
from persam_video.evaluation.metrics import (
    average,
    boundary_map,
    contour_accuracy,
    region_similarity,
    summarize,
)
from persam_video.evaluation.perseg import evaluate_perseg, read_perseg
from persam_video.evaluation.scores import DavisScore, score_clip
from persam_video.evaluation.tables import davis_table, perseg_table
from persam_video.label_maps import read_label_map, write_label_map

GOLDEN = Path(__file__).parent / "golden" / "davis_metrics"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
SEQUENCES = ("three-objects", "vanish-return", "one-object", "missing-last-id")

masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
mask_pairs = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24).flatmap(
    lambda shape: st.tuples(npst.arrays(np.bool_, shape), npst.arrays(np.bool_, shape))
)


def make_split(root: Path, names: tuple[str, ...], split: str = "2017/golden") -> None:
    path = root / "ImageSets" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_clip(folder: Path, frames: list[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for index, labels in enumerate(frames):
        write_label_map(folder / f"{index:05d}.png", labels.astype(np.uint8))


@pytest.fixture
def golden_root(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    make_split(root, SEQUENCES)
    shutil.copytree(GOLDEN / "sequences" / "gt", root / "Annotations" / "480p")
    return root


@pytest.fixture
def golden_predictions(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "sequences" / "pred", tmp_path / "predictions"))


@pytest.fixture(scope="module")
def golden_score(tmp_path_factory: pytest.TempPathFactory) -> DavisScore:
    root = tmp_path_factory.mktemp("davis")
    make_split(root, SEQUENCES)
    shutil.copytree(GOLDEN / "sequences" / "gt", root / "Annotations" / "480p")
    return evaluate(GOLDEN / "sequences" / "pred", root, "2017/golden")


# Metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXPECTED["pairs"]))
def test_metrics_golden_pair_equals_official(name: str) -> None:
    prediction, truth = (
        read_label_map(GOLDEN / "pairs" / f"{name}_{kind}.png") > 0 for kind in ("pred", "gt")
    )
    expected = EXPECTED["pairs"][name]
    tolerance = EXPECTED["bound_th"]
    assert region_similarity(prediction, truth) == pytest.approx(expected["J"], abs=1e-6)
    assert contour_accuracy(prediction, truth, tolerance=tolerance) == pytest.approx(
        expected["F"], abs=1e-6
    )


def test_metrics_golden_pairs_are_all_there() -> None:
    assert len(EXPECTED["pairs"]) == 23


@settings(deadline=None)
@given(mask_pairs)
def test_metrics_any_pair_is_in_range_and_symmetric(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    for metric in (region_similarity, contour_accuracy):
        value = metric(first, second)
        assert 0 <= value <= 1
        assert metric(second, first) == pytest.approx(value, abs=1e-12)


@settings(deadline=None)
@given(masks)
def test_metrics_identical_masks_are_perfect(mask: np.ndarray) -> None:
    assert region_similarity(mask, mask) == 1
    assert contour_accuracy(mask, mask) == 1


@settings(max_examples=40, deadline=None)
@given(mask_pairs)
def test_contour_accuracy_equals_brute_force(pair: tuple[np.ndarray, np.ndarray]) -> None:
    tolerance = 0.1
    radius = math.ceil(tolerance * math.hypot(*pair[0].shape))
    points = [np.argwhere(boundary_map(mask)) for mask in pair]
    if min(map(len, points)) == 0:
        expected = 1.0 if max(map(len, points)) == 0 else 0.0
    else:
        distance = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
        precision = (distance.min(axis=1) <= radius).mean()
        recall = (distance.min(axis=0) <= radius).mean()
        both = precision + recall
        expected = 2 * precision * recall / both if both else 0.0
    assert contour_accuracy(*pair, tolerance=tolerance) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(masks)
def test_boundary_map_any_mask_equals_definition(mask: np.ndarray) -> None:
    boundary = boundary_map(mask)
    height, width = mask.shape
    for row in range(height):
        for column in range(width):
            below, right = row + 1 < height, column + 1 < width
            neighbours = [mask[row + 1, column]] if below else []
            neighbours += [mask[row, column + 1]] if right else []
            neighbours += [mask[row + 1, column + 1]] if below and right else []
            expected = any(bool(n) != bool(mask[row, column]) for n in neighbours)
            assert boundary[row, column] == expected


@settings(deadline=None)
@given(mask_pairs)
def test_metrics_everything_void_is_perfect(pair: tuple[np.ndarray, np.ndarray]) -> None:
    void = np.ones(pair[0].shape, np.bool_)
    assert region_similarity(*pair, void) == 1
    assert contour_accuracy(*pair, void) == 1


def test_metrics_void_hides_the_difference() -> None:
    truth = np.zeros((40, 60), np.bool_)
    truth[10:20, 10:20] = True
    prediction = truth.copy()
    prediction[30:38, 40:58] = True
    void = np.zeros_like(truth)
    void[30:, 40:] = True
    assert region_similarity(prediction, truth) < 0.5
    assert contour_accuracy(prediction, truth) < 0.7
    assert region_similarity(prediction, truth, void) == 1
    assert contour_accuracy(prediction, truth, void) == 1


@pytest.mark.parametrize("metric", [region_similarity, contour_accuracy])
def test_metrics_other_sizes_raise_with_both_shapes(metric: object) -> None:
    with pytest.raises(PersamError, match=r"\(4, 5\), \(5, 4\)"):
        metric(np.zeros((4, 5), np.bool_), np.zeros((5, 4), np.bool_))  # type: ignore[operator]


def test_summarize_hand_computed_values_gives_them() -> None:
    values = np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    result = summarize(values)
    assert result.mean == pytest.approx(values.mean())
    assert result.recall == pytest.approx(3 / 9)  # 0.5 itself is not above the threshold
    assert result.decay == pytest.approx(0.8 - 0.1)  # frames 0..2 and 6..8: borders are shared


def test_summarize_nan_is_left_out_of_the_mean_but_not_of_the_recall() -> None:
    result = summarize(np.array([math.nan, 0.8, 0.6, 0.4]))
    assert result.mean == pytest.approx(0.6)
    assert result.recall == pytest.approx(0.5)
    assert result.decay == pytest.approx(0.8 - 0.5)


def test_summarize_only_nan_gives_nan_without_warning() -> None:
    result = summarize(np.array([math.nan, math.nan]))
    assert math.isnan(result.mean)
    assert math.isnan(result.decay)
    assert result.recall == 0


def test_summarize_long_clip_does_not_wrap() -> None:
    values = np.linspace(1, 0, 1000)
    assert summarize(values).decay == pytest.approx(0.75, abs=0.01)


def test_summarize_and_average_of_nothing_raise() -> None:
    with pytest.raises(PersamError, match="T >= 1"):
        summarize(np.zeros(0))
    with pytest.raises(PersamError, match="got none"):
        average([])


# DAVIS --------------------------------------------------------------------------------------


def test_evaluate_golden_sequences_equals_official_per_object(golden_score: DavisScore) -> None:
    got = {
        f"{o.clip}_{o.object_id}": {"J-Mean": o.j.mean, "F-Mean": o.f.mean}
        for o in golden_score.objects
    }
    expected = EXPECTED["sequences"]["per_object"]
    assert got.keys() == expected.keys()
    for name, figures in expected.items():
        assert got[name] == pytest.approx(figures, abs=1e-6)


def test_evaluate_golden_sequences_equals_official_in_total(golden_score: DavisScore) -> None:
    rows = json.loads(davis_table(golden_score).to_json())["rows"]
    total = {key: value for key, value in rows[-1].items() if key not in ("clip", "object")}
    assert total == pytest.approx(EXPECTED["sequences"]["global"], abs=1e-6)


def test_evaluate_frames_leave_first_and_last_out(golden_score: DavisScore) -> None:
    counts = [len(clip.objects[0].j_frames) for clip in golden_score.clips]
    assert counts == [11, 15, 7, 6]
    for scored in golden_score.objects:
        assert len(scored.f_frames) == len(scored.j_frames)
        assert np.mean(scored.j_frames) == pytest.approx(scored.j.mean)


def test_evaluate_clip_figures_are_means_over_objects(golden_score: DavisScore) -> None:
    clip = golden_score.clips[0]
    assert clip.j.mean == pytest.approx(np.mean([o.j.mean for o in clip.objects]))
    assert clip.f.recall == pytest.approx(np.mean([o.f.recall for o in clip.objects]))
    assert clip.j_and_f == pytest.approx((clip.j.mean + clip.f.mean) / 2)


def test_evaluate_missing_clip_and_frames_lists_all(
    golden_root: Path, golden_predictions: Path
) -> None:
    shutil.rmtree(golden_predictions / "one-object")
    for name in ("00000", "00003", "00016"):
        (golden_predictions / "vanish-return" / f"{name}.png").unlink()
    write_label_map(
        golden_predictions / "three-objects" / "00002.png", np.zeros((60, 107), np.uint8)
    )
    (golden_predictions / "three-objects" / "00004.png").write_bytes(b"no picture")
    unknown = np.zeros((120, 213), np.uint8)
    unknown[0, :2] = 4, 255
    write_label_map(golden_predictions / "three-objects" / "00005.png", unknown)
    with pytest.raises(DatasetError) as caught:
        evaluate(golden_predictions, golden_root, "2017/golden")
    message = str(caught.value)
    assert "problems: 5" in message
    assert "one-object: the clip is missing" in message
    assert "vanish-return: 3 of 17 frames missing: 00000, 00003, 00016" in message
    assert "00002.png: 107 x 60 pixels, the ground truth has 213 x 120" in message
    assert re.search("not a readable PNG.*00004.png", message)
    assert "00005.png: ids [4, 255] are none of the clip's objects [1, 2, 3]" in message


def test_evaluate_bad_mask_in_the_last_clip_raises_instead_of_scoring(
    golden_root: Path, golden_predictions: Path
) -> None:
    (golden_predictions / "missing-last-id" / "00003.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"problems: 1(.|\n)*missing-last-id/00003\.png"):
        evaluate(golden_predictions, golden_root, "2017/golden")


def test_evaluate_frames_without_ground_truth_raises(
    golden_root: Path, golden_predictions: Path
) -> None:
    images = golden_root / "JPEGImages" / "480p" / "one-object"
    images.mkdir(parents=True)
    for index in range(11):
        (images / f"{index:05d}.jpg").touch()
    with pytest.raises(DatasetError, match="one-object: 2 frames have no ground truth: 00009, 000"):
        evaluate(golden_predictions, golden_root, "2017/golden")


def test_evaluate_two_frame_clip_raises(tmp_path: Path) -> None:
    make_split(tmp_path, ("short",))
    frames = [np.eye(8)] * 2
    write_clip(tmp_path / "Annotations" / "480p" / "short", frames)
    write_clip(tmp_path / "pred" / "short", frames)
    with pytest.raises(DatasetError, match="short: 2 annotated frames; 3 are needed"):
        evaluate(tmp_path / "pred", tmp_path, "2017/golden")


def test_evaluate_void_in_truth_is_background(tmp_path: Path) -> None:
    make_split(tmp_path, ("clip",))
    truth = np.zeros((20, 30), np.uint8)
    truth[5:10, 5:10] = 1
    with_void = truth.copy()
    with_void[10:15, 5:10] = 255
    covered = truth.copy()
    covered[10:15, 5:10] = 1
    write_clip(tmp_path / "Annotations" / "480p" / "clip", [with_void] * 3)
    write_clip(tmp_path / "exact" / "clip", [truth] * 3)
    write_clip(tmp_path / "covers-void" / "clip", [covered] * 3)
    exact = evaluate(tmp_path / "exact", tmp_path, "2017/golden")
    covers = evaluate(tmp_path / "covers-void", tmp_path, "2017/golden")
    assert exact.j_and_f == 1
    assert covers.j.mean == pytest.approx(0.5)


def test_evaluate_merged_objects_scores_their_union(tmp_path: Path) -> None:
    make_split(tmp_path, ("clip",))
    truth = np.zeros((20, 30), np.uint8)
    truth[5:10, 5:10], truth[5:10, 10:20] = 1, 2
    swapped = np.where(truth > 0, 3 - truth, 0)
    write_clip(tmp_path / "Annotations" / "480p" / "clip", [truth] * 3)
    write_clip(tmp_path / "pred" / "clip", [swapped] * 3)
    write_clip(tmp_path / "binary" / "clip", [(truth > 0) * 255] * 3)
    assert evaluate(tmp_path / "pred", tmp_path, "2017/golden").j.mean == 0
    for folder in ("pred", "binary"):
        merged = evaluate(tmp_path / folder, tmp_path, "2017/golden", merge_objects=True)
        assert merged.j_and_f == 1
        assert [o.object_id for o in merged.objects] == [1]


def test_evaluate_davis_2016_masks_of_0_and_255_need_merging(tmp_path: Path) -> None:
    make_split(tmp_path, ("clip",), "2016/val")
    truth = np.zeros((20, 30), np.uint8)
    truth[5:10, 5:10] = 255
    write_clip(tmp_path / "Annotations" / "480p" / "clip", [truth] * 3)
    write_clip(tmp_path / "pred" / "clip", [truth > 0] * 3)
    merged = evaluate(tmp_path / "pred", tmp_path, "2016/val", merge_objects=True)
    assert merged.j_and_f == 1
    with pytest.raises(DatasetError, match="score it with merged objects"):
        evaluate(tmp_path / "pred", tmp_path, "2016/val")


def test_evaluate_empty_first_annotation_raises(tmp_path: Path) -> None:
    make_split(tmp_path, ("clip",))
    empty = [np.zeros((8, 8))] * 3
    write_clip(tmp_path / "Annotations" / "480p" / "clip", empty)
    write_clip(tmp_path / "pred" / "clip", empty)
    for merge in (False, True):
        with pytest.raises(DatasetError, match=r"00000\.png: no object in the first annotation"):
            evaluate(tmp_path / "pred", tmp_path, "2017/golden", merge_objects=merge)


def test_evaluate_late_and_missing_ids_follow_the_first_annotation(tmp_path: Path) -> None:
    make_split(tmp_path, ("clip",))
    first, later = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    first[1:4, 1:4] = 3
    later[1:4, 1:4], later[5:7, 5:7] = 3, 4
    write_clip(tmp_path / "Annotations" / "480p" / "clip", [first, later, later, first])
    write_clip(tmp_path / "pred" / "clip", [first] * 4)
    score = evaluate(tmp_path / "pred", tmp_path, "2017/golden")
    assert [o.object_id for o in score.objects] == [3]
    assert score.j_and_f == 1


def test_evaluate_on_clip_is_told_every_clip_once(golden_root: Path) -> None:
    told: list[str] = []
    evaluate(
        GOLDEN / "sequences" / "pred",
        golden_root,
        "2017/golden",
        on_clip=lambda clip: told.append(clip.name),
    )
    assert tuple(told) == SEQUENCES


def test_evaluate_other_resolution_reads_its_folder(golden_root: Path) -> None:
    annotations = golden_root / "Annotations"
    (annotations / "480p").rename(annotations / "Full-Resolution")
    pred = GOLDEN / "sequences" / "pred"
    score = evaluate(pred, golden_root, "2017/golden", resolution="Full-Resolution")
    assert len(score.objects) == 9
    with pytest.raises(DatasetError, match=r"problems: 4(.|\n)*one-object: no PNG in .*480p"):
        evaluate(pred, golden_root, "2017/golden")


def test_read_split_clips_hold_sorted_files(golden_root: Path) -> None:
    images = golden_root / "JPEGImages" / "480p" / "one-object"
    images.mkdir(parents=True)
    for index in (2, 0, 1):
        (images / f"{index:05d}.jpg").touch()
    clips = read_split(golden_root, "2017/golden")
    assert tuple(clip.name for clip in clips) == SEQUENCES
    assert [path.stem for path in clips[2].frames] == ["00000", "00001", "00002"]
    assert [path.stem for path in clips[2].annotations] == [f"{i:05d}" for i in range(9)]
    assert clips[2].frame_folder == images
    assert clips[0].frames == ()


def test_read_split_unknown_split_names_those_there_are(golden_root: Path) -> None:
    make_split(golden_root, ("one-object",), "2016/val")
    with pytest.raises(DatasetError, match="no split '2017/valid'; legal are: 2016/val, 2017/gold"):
        read_split(golden_root, "2017/valid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "names no clip"),
        (b"one-object\none-object\n", "twice: one-object"),
        (b"/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n", "one clip name"),
        (b"\xff\xfe", "not a readable list"),
    ],
)
def test_read_split_bad_file_raises(golden_root: Path, text: bytes, message: str) -> None:
    path = golden_root / "ImageSets" / "2017" / "golden.txt"
    path.write_bytes(text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_split(golden_root, "2017/golden")
    assert caught.value.path == str(path)


def test_score_clip_reads_a_generator_once() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[2:5, 2:5] = 7
    score = score_clip("clip", (7,), ((labels, labels) for _ in range(3)))
    assert score.objects[0].j_frames == (1.0, 1.0, 1.0)
    with pytest.raises(PersamError, match="T >= 1"):
        score_clip("clip", (7,), iter(()))


@pytest.mark.needs_davis
def test_evaluate_ground_truth_of_real_clips_is_perfect() -> None:
    root = Path(os.environ.get("PERSAM_DATA", Path(__file__).parents[2] / "shared")) / "davis-dev"
    if not root.is_dir():
        pytest.skip(f"no clips in {root}; set PERSAM_DATA")
    score = evaluate(root / "Annotations" / "480p", root, "2017/dev")
    assert [o.object_id for o in score.objects] == [1, 2, 3]
    assert score.j_and_f == 1


# PerSeg -------------------------------------------------------------------------------------


@pytest.fixture
def perseg_root(tmp_path: Path) -> Path:
    root = tmp_path / "perseg"
    for name in ("cat", "mug"):
        (root / "Images" / name).mkdir(parents=True)
        (root / "Annotations" / name).mkdir(parents=True)
        for index in range(3):
            labels = np.zeros((20, 20), np.uint8)
            labels[:10, : 5 * (index + 1)] = 1
            Image.new("RGB", (20, 20)).save(root / "Images" / name / f"{index:02d}.jpg")
            write_label_map(root / "Annotations" / name / f"{index:02d}.png", labels)
    return root


def test_evaluate_perseg_sums_before_dividing_and_leaves_the_reference_out(
    perseg_root: Path, tmp_path: Path
) -> None:
    predictions = tmp_path / "predictions"
    for name in ("cat", "mug"):
        (predictions / name).mkdir(parents=True)
        for index in (1, 2):
            mask = np.zeros((20, 20, 3), np.uint8)
            mask[:10, :10, 2] = 128  # blue, as the first implementation writes its masks
            Image.fromarray(mask).save(predictions / name / f"{index:02d}.png")
    Image.new("L", (20, 20)).save(predictions / "mug" / "02.png")
    score = evaluate_perseg(predictions, perseg_root)
    cat, mug = score.subjects
    assert (cat.name, mug.name) == ("cat", "mug")
    assert cat.iou == pytest.approx((100 + 100) / (100 + 150))
    assert cat.accuracy == pytest.approx(200 / 250)
    assert mug.iou == pytest.approx(100 / 250)
    assert score.mean_iou == pytest.approx((0.8 + 0.4) / 2)
    assert evaluate_perseg(predictions, perseg_root, leave_out=["mug"]).mean_iou == cat.iou
    assert perseg_table(score).to_csv().splitlines()[0] == "subject,IoU,Accuracy"
    assert perseg_table(score).to_text().splitlines()[-1] == "total    60.0      60.0"


def test_evaluate_perseg_bad_predictions_lists_all(perseg_root: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    shutil.copytree(perseg_root / "Annotations", predictions)
    (predictions / "cat" / "01.png").unlink()
    (predictions / "cat" / "02.png").write_bytes(b"no picture")
    Image.new("L", (5, 6)).save(predictions / "mug" / "01.png")
    with pytest.raises(DatasetError) as caught:
        evaluate_perseg(predictions, perseg_root)
    message = str(caught.value)
    assert "problems: 3" in message
    assert "01.png: missing" in message
    assert re.search("not a readable mask.*02.png", message)
    assert "01.png: 5 x 6 pixels, the ground truth has 20 x 20" in message


def test_read_perseg_incomplete_folder_lists_all(perseg_root: Path, tmp_path: Path) -> None:
    (perseg_root / "Images" / "cat" / "01.jpg").unlink()
    (perseg_root / "Annotations" / "mug" / "02.png").unlink()
    with pytest.raises(DatasetError, match=r"cat: .*: 01\n  mug: .*: 02"):
        read_perseg(perseg_root)
    with pytest.raises(DatasetError, match="got none"):
        read_perseg(tmp_path / "nowhere")


# Tables -------------------------------------------------------------------------------------


def test_davis_table_csv_holds_full_precision(golden_score: DavisScore) -> None:
    rows = list(csv.DictReader(io.StringIO(davis_table(golden_score).to_csv())))
    assert len(rows) == 9 + 4 + 1
    assert (rows[0]["clip"], rows[0]["object"]) == ("three-objects", "1")
    assert (rows[-1]["clip"], rows[-1]["object"]) == ("total", "all")
    assert float(rows[-1]["F-Decay"]) == golden_score.f.decay
    assert float(rows[3]["J&F-Mean"]) == golden_score.clips[0].j_and_f


def test_davis_table_text_is_aligned_and_in_percent(golden_score: DavisScore) -> None:
    lines = davis_table(golden_score).to_text().splitlines()
    assert lines[0].startswith("DAVIS 2017/golden: 4 clips, 9 objects")
    assert lines[1].split() == [
        *("clip", "object", "J&F-Mean", "J-Mean", "J-Recall", "J-Decay"),
        *("F-Mean", "F-Recall", "F-Decay"),
    ]
    assert lines[-1].split() == [
        *("total", "all", "52.0", "60.5", "87.1", "0.3", "43.5", "29.9", "4.5")
    ]
    assert len({len(line) for line in lines[1:]}) == 1
