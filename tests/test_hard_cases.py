"""tools/hard_cases.py: its counts on made-up label maps, and the scenes that it composes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import persam_video as pv

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def map_of(**columns: int) -> np.ndarray:
    """(10, 40) label map with blocks of ten columns: a=1 puts label 1 on the first block."""
    labels = np.zeros((10, 40), np.uint8)
    for name, label in columns.items():
        start = 10 * "abcd".index(name)
        labels[:, start : start + 10] = label
    return labels


def test_judge_right_masks_have_nothing_to_blame() -> None:
    from hard_cases import judge

    truths = [map_of(a=1, c=2)] * 4
    findings = judge(truths, truths, (1, 2))
    assert findings.j == 1.0
    assert (findings.switches, findings.returns, findings.false_area) == (0, 0, 0.0)


def test_judge_switch_is_counted_once_when_masks_move_over_to_another_object() -> None:
    from hard_cases import judge

    truths = [map_of(a=1, c=2)] * 5
    results = [*truths[:2], *[map_of(c=1, a=2)] * 3]
    assert judge(truths, results, (1, 2)).switches == 2
    assert judge([map_of(a=1, c=101)] * 5, [map_of(a=1), *[map_of(c=1)] * 4], (1,)).switches == 1


def test_judge_return_counts_only_when_found_soon_and_absent_masks_are_blamed() -> None:
    from hard_cases import judge

    there, away = map_of(a=1), map_of()
    truths = [there, *[away] * 4, *[there] * 7]
    late = [there, *[away] * 10, there]
    soon = [there, map_of(b=1), *[away] * 5, *[there] * 5]
    assert (judge(truths, late, (1,)).returns, judge(truths, late, (1,)).found) == (1, 0)
    assert judge(truths, soon, (1,)).found == 1
    assert judge(truths, soon, (1,)).false_area == pytest.approx(1 / 4)


def test_judge_void_is_no_object_that_a_mask_could_move_over_to() -> None:
    from hard_cases import judge

    truths = [map_of(a=1, c=255)] * 3
    assert judge(truths, [truths[0], *[map_of(c=1)] * 2], (1,)).switches == 0


def test_sheet_of_many_objects_has_them_all() -> None:
    from hard_cases import draw_sheet

    labels = np.zeros((240, 427), np.uint8)
    for i in range(10):
        labels[80:160, 40 * i : 40 * i + 30] = i + 1
    clip = [(pv.Frame(i, i / 24, np.zeros((240, 427, 3), np.uint8)), labels) for i in range(12)]
    sheet = draw_sheet(clip, [labels] * 12, range(1, 11))
    assert sheet.shape == (720, 1708, 3)
    assert all(sheet[100:140, 40 * i + 10 : 40 * i + 20].any() for i in range(10))


def test_judge_all_means_and_sums() -> None:
    from hard_cases import Findings, judge_all

    scenes = [Findings(0.5, 1, 1, 0, 0.2), Findings(0.7, 0, 2, 2, 0.0)]
    assert judge_all(scenes) == Findings(pytest.approx(0.6), 1, 3, 2, pytest.approx(0.1))


@pytest.mark.needs_davis
def test_compose_every_case_has_its_objects_and_the_hardship_it_is_named_for(
    davis_root: Path,
) -> None:
    from scenes import CASES, Cutouts, compose

    cutouts = Cutouts(davis_root)
    clips = {name: compose(case, case.casts[0], cutouts) for name, case in CASES.items()}
    ids = {name: set(np.unique(clip[0][1]).tolist()) - {0} for name, clip in clips.items()}
    assert ids["crossing"] == {1, 2}
    assert ids["look_alike"] == {1, 100}
    areas = {name: [int((truth == 1).sum()) for _, truth in clip] for name, clip in clips.items()}
    assert all(values[0] > 500 for values in areas.values())
    assert min(areas["return"]) == min(areas["occlusion"]) == 0
    assert areas["return"][-1] > 500 < areas["occlusion"][-1]
    assert areas["grows"][-1] > 8 * areas["grows"][0]
    still, panned = (clips[name][0][0].image_rgb for name in ("return", "return_pan"))
    assert (still != panned).any()
    assert (clips["return"][-1][1] == clips["return_pan"][-1][1]).all()


@pytest.mark.needs_davis
@pytest.mark.parametrize("name", ["return", "return_pan", "occlusion"])
def test_compose_every_cast_returns(davis_root: Path, name: str) -> None:
    from hard_cases import judge
    from scenes import CASES, Cutouts, compose

    cutouts = Cutouts(davis_root)
    for cast in CASES[name].casts:
        truths = [truth for _, truth in compose(CASES[name], cast, cutouts)]
        found = judge(truths, truths, (1,))
        assert found.returns == found.found == 1
