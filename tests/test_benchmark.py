"""benchmark/ and tools/bench.py: what is summed up, scored, cut, resized and told."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from persam_video.benchmark.parts import timed_parts
from persam_video.benchmark.truth import Truth
from persam_video.errors import DatasetError
from persam_video.label_maps import write_label_map


class Machine:
    """Two calls, one inside the other."""

    def outer(self) -> str:
        time.sleep(0.01)
        return self.inner() + "!"

    def inner(self) -> str:
        time.sleep(0.02)
        return "done"


def test_timed_parts_inner_call_is_taken_off_the_outer_one_and_all_is_put_back() -> None:
    originals = Machine.outer, Machine.inner
    begun = time.perf_counter()
    with timed_parts({"a": ((Machine, "outer"),), "b": ((Machine, "inner"),)}) as seconds:
        assert Machine().outer() == "done!"
        whole = time.perf_counter() - begun
        assert Machine.outer is not originals[0]
    assert (Machine.outer, Machine.inner) == originals
    assert seconds["a"] >= 0.01
    assert seconds["b"] >= 0.02
    assert seconds["a"] + seconds["b"] <= whole


def test_timed_parts_failing_call_still_ends_and_unknown_name_changes_nothing() -> None:
    broken = SimpleNamespace(call=lambda: 1 / 0)
    original = broken.call
    with timed_parts({"a": ((broken, "call"),)}) as seconds:
        with pytest.raises(ZeroDivisionError):
            broken.call()
        assert seconds["a"] > 0
    assert broken.call is original
    with pytest.raises(AttributeError), timed_parts({"a": ((broken, "call"), (broken, "no"))}):
        pass
    assert broken.call is original


def test_truth_black_and_white_map_is_scaled_and_its_255_is_the_object(tmp_path: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:4] = 255
    write_label_map(tmp_path / "00007.png", labels)
    truth = Truth(tmp_path).labels("00007", (8, 12))
    assert truth.shape == (8, 12)
    assert truth[2:6, 4:8].all()
    assert truth.sum() == 16


def test_truth_ids_that_nobody_follows_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:4] = 3
    write_label_map(tmp_path / "00001.png", labels)
    with pytest.raises(DatasetError, match=r"has objects \[3\], followed are \[1\]"):
        Truth(tmp_path).score((1,), [("00001", labels)])
    assert Truth(tmp_path, merge_objects=True).score((1,), [("00001", labels)]).j_and_f == 1
