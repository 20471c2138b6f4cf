"""A DAVIS split as a batch: complete or not there, resumable, one clip's failure is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_tracker import FakeTracker
from PIL import Image

from persam_video.batch import ClipState, first_labels, run_davis
from persam_video.errors import DatasetError, PersamError
from persam_video.evaluation.davis import evaluate, read_split
from persam_video.label_maps import read_label_map, write_label_map
from persam_video.types import Frame

CLIPS = ("ant", "bee", "cow")
FRAMES = 4


def make_labels() -> np.ndarray:
    labels = np.zeros((16, 24), np.uint8)
    labels[3:9, 4:10] = 1
    labels[10:14, 12:20] = 2
    return labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three clips of four frames whose objects do not move; the grey level tells the clip."""
    folder = tmp_path / "davis"
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/tiny.txt").write_text("\n".join(CLIPS))
    for number, name in enumerate(CLIPS):
        images, masks = folder / "JPEGImages/480p" / name, folder / "Annotations/480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(FRAMES):
            picture = np.full((16, 24, 3), 60 * number, np.uint8)
            Image.fromarray(picture).save(images / f"{index:05d}.jpg")
            write_label_map(masks / f"{index:05d}.png", make_labels())
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "predictions"


def states(root: Path, output: Path, tracker: FakeTracker, **options: bool) -> Sequence[str]:
    outcomes = run_davis(tracker, root, "2017/tiny", output, **options)
    return [outcome.state.value for outcome in outcomes]


def fails_in(clip: str, error: BaseException) -> FakeTracker:
    """Fails on the third frame of one clip."""

    def fail(frame: Frame) -> None:
        if frame.index == 2 and round(int(frame.image_rgb[0, 0, 0]) / 60) == CLIPS.index(clip):
            raise error

    return FakeTracker(fail)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_run_davis_whole_split_can_be_evaluated(root: Path, output: Path) -> None:
    seen: list[int] = []
    outcomes = list(
        run_davis(
            FakeTracker(),
            root,
            "2017/tiny",
            output,
            on_progress=lambda r: seen.append(r.frame_index),
        )
    )
    assert [(o.clip.name, o.state) for o in outcomes] == [(c, ClipState.DONE) for c in CLIPS]
    assert [o.summary.frames for o in outcomes if o.summary is not None] == [FRAMES] * 3
    assert seen == list(range(FRAMES)) * 3
    assert visible(output) == list(CLIPS)
    assert evaluate(output, root, "2017/tiny").j_and_f == 1.0


def test_run_davis_again_skips_what_is_complete(root: Path, output: Path) -> None:
    states(root, output, FakeTracker())
    (output / "bee/00002.png").unlink()
    tracker = FakeTracker()
    assert states(root, output, tracker) == ["skipped", "done", "skipped"]
    assert tracker.calls.count(("start", 0)) == 1
    assert len(visible(output / "bee")) == FRAMES
    assert visible(output) == list(CLIPS)


def test_run_davis_interrupted_leaves_no_half_clip_and_goes_on_later(
    root: Path, output: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        states(root, output, fails_in("bee", KeyboardInterrupt()))
    assert visible(output) == ["ant"]
    assert states(root, output, FakeTracker()) == ["skipped", "done", "done"]


@pytest.mark.parametrize("error", [PersamError("out of luck"), RuntimeError("out of memory")])
def test_run_davis_failing_clip_is_told_and_the_rest_goes_on(
    root: Path, output: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = list(run_davis(fails_in("bee", error), root, "2017/tiny", output))
    assert [o.state.value for o in outcomes] == ["done", "failed", "done"]
    assert str(error) in outcomes[1].error
    assert visible(output) == ["ant", "cow"]
    # An error nobody raised on purpose comes with its traceback.
    assert any(record.exc_info for record in caplog.records) == isinstance(error, RuntimeError)


def test_run_davis_after_a_kill_starts_the_clip_afresh(root: Path, output: Path) -> None:
    stale = output / ".bee.partial"
    stale.mkdir(parents=True)
    (stale / "99999.png").write_bytes(b"half a picture")
    assert states(root, output, FakeTracker()) == ["done"] * 3
    assert visible(output / "bee") == [f"{index:05d}.png" for index in range(FRAMES)]


def test_run_davis_overwrite_keeps_the_old_clip_until_the_new_one_is_complete(
    root: Path, output: Path
) -> None:
    states(root, output, FakeTracker())
    mark = output / "bee/00000.png"
    write_label_map(mark, make_labels() * 7)
    failing = fails_in("bee", PersamError("no"))
    assert states(root, output, failing, overwrite=True) == ["done", "failed", "done"]
    assert read_label_map(mark).max() == 14
    assert states(root, output, FakeTracker(), overwrite=True) == ["done"] * 3
    assert read_label_map(mark).max() == 2
    assert visible(output) == list(CLIPS)


def test_run_davis_unwritable_output_is_a_failed_clip(root: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    outcomes = list(run_davis(FakeTracker(), root, "2017/tiny", in_the_way))
    assert [o.state.value for o in outcomes] == ["failed"] * 3
    assert str(in_the_way) in outcomes[0].error


def test_run_davis_merged_objects_score_as_one(root: Path, output: Path) -> None:
    assert states(root, output, FakeTracker(), merge_objects=True) == ["done"] * 3
    assert set(np.unique(read_label_map(output / "ant/00003.png"))) == {0, 1}
    assert evaluate(output, root, "2017/tiny", merge_objects=True).j_and_f == 1.0


@pytest.mark.parametrize(
    ("stored", "merged"),
    [([0, 1, 2, 255], [0, 1, 1, 255]), ([0, 255, 0, 255], [0, 1, 0, 1])],
)
def test_first_labels_merged_void_is_kept_unless_it_is_the_object(
    root: Path, stored: list[int], merged: list[int]
) -> None:
    path = root / "Annotations/480p/ant/00000.png"
    write_label_map(path, np.array([stored], np.uint8))
    clip = read_split(root, "2017/tiny")[0]
    assert first_labels(clip).tolist() == [stored]
    assert first_labels(clip, merge_objects=True).tolist() == [merged]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("Annotations/480p/ant/00000.png", "that of the first frame, 00000, got 00001"),
        ("JPEGImages/480p/ant/*", "the clip has no JPEG"),
    ],
)
def test_first_labels_incomplete_clip_is_a_dataset_error(
    root: Path, gone: str, message: str
) -> None:
    for path in root.glob(gone):
        path.unlink()
    with pytest.raises(DatasetError, match=message):
        first_labels(read_split(root, "2017/tiny")[0])
