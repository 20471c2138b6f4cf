"""The tracker on real features: identity, absence and return, and the first version's defects.

"Defect n" is the n-th of the list "What the first implementation got wrong" in docs/method.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from composed import SIZE_HW, CachingEncoder, compose, read_cutout, read_photo
from torch import Tensor

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.errors import PersamError, PromptError
from persam_video.evaluation.metrics import region_similarity
from persam_video.personalize.cascade import best_of_multimask
from persam_video.personalize.target import Target
from persam_video.references.prompts import parse_prompts
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.machine import threads_taken
from persam_video.sam.models import load_sam
from persam_video.tracking import propagation
from persam_video.tracking.aggregation import label_map, soft_aggregate
from persam_video.tracking.background import Background, Change
from persam_video.tracking.cell_scores import best_place
from persam_video.tracking.edges import along_edges
from persam_video.tracking.features import FrameFeatures
from persam_video.tracking.lesson import Lesson
from persam_video.tracking.motion import Motion
from persam_video.tracking.objects import TrackedObject, without_strays
from persam_video.tracking.propagation import PropagationMethod, _in_turn
from persam_video.tracking.target_model import TargetModel
from persam_video.tracking.tracker import Tracker
from persam_video.types import Candidates, Frame, ObjectState, UInt8Array

METHODS = ("persam", "persam_f", "track")
Clip = list[tuple[Frame, UInt8Array]]
Sam = tuple[CachingEncoder, SamDecoder]

pytestmark = [pytest.mark.needs_weights, pytest.mark.needs_davis]


@pytest.fixture(scope="module")
def sam(vit_t_weights: Path) -> Sam:
    encoder, decoder = load_sam(EncoderConfig(input_size=512), progress=False)
    return CachingEncoder(encoder), decoder


@pytest.fixture(scope="module")
def sam_1024(vit_t_weights: Path) -> Sam:
    encoder, decoder = load_sam(EncoderConfig(input_size=1024), progress=False)
    return CachingEncoder(encoder), decoder


def make_scene(davis_root: Path, background_blur: float) -> Clip:
    """Cat and duck before a playground; the duck is away in frame 3, the cat in frames 6 and 7."""
    image = cv2.imread(str(davis_root / "JPEGImages/480p/swing/00000.jpg"))[:, :, ::-1].copy()
    if background_blur:
        image = cv2.GaussianBlur(image, (0, 0), background_blur)
    perseg = davis_root.parent / "perseg-mini"
    cutouts = [read_cutout(perseg, "cat", 120), read_cutout(perseg, "duck_toy", 90)]
    cats = [(20 + 6 * t, 80) if t not in (6, 7) else None for t in range(10)]
    ducks = [(300 - 5 * t, 120) if t != 3 else None for t in range(10)]
    return compose(image, cutouts, list(zip(cats, ducks, strict=True)))


@pytest.fixture(scope="module")
def scene(davis_root: Path) -> Clip:
    """Nothing else in the picture could be taken for an object."""
    return make_scene(davis_root, background_blur=25.0)


@pytest.fixture(scope="module")
def busy_scene(davis_root: Path) -> Clip:
    """A girl on a swing is in the picture too."""
    return make_scene(davis_root, background_blur=0.0)


def make_tracker(sam: Sam, method: str) -> Tracker:
    return Tracker(*sam, track=TrackConfig(method=method))


def follow(tracker: Tracker, clip: Clip) -> list[tuple[UInt8Array, dict[int, ObjectState]]]:
    first, labels = clip[0]
    results = [tracker.start(first, labels)]
    results += [tracker.step(frame) for frame, _ in clip[1:]]
    return [(r.labels, dict(r.states)) for r in results]


@pytest.mark.parametrize("method", METHODS)
def test_tracker_object_vanishes_for_a_frame_others_keep_their_ids(
    sam: Sam, scene: Clip, method: str
) -> None:
    # Defect 1: object 2 vanishes in frame 3; object 1 must not inherit anything, 2 must return.
    results = follow(make_tracker(sam, method), scene[:6])
    for (labels, states), (frame, truth) in zip(results, scene, strict=False):
        assert region_similarity(labels == 1, truth == 1) > 0.7, frame.index
        assert set(states) == {1, 2}
        if frame.index != 3:
            assert region_similarity(labels == 2, truth == 2) > 0.6, frame.index
            assert states[2] is not ObjectState.LOST
    assert not (results[3][0] == 2).any()
    assert results[3][1] == {1: ObjectState.TRACKED, 2: ObjectState.LOST}


@pytest.mark.parametrize("method", METHODS)
def test_tracker_draws_outlines_along_edges_but_not_the_reference_s_nor_the_paper_s(
    sam: Sam, scene: Clip, method: str
) -> None:
    found = {}
    for passes in (0, 2):
        config = TrackConfig(method=method, edge_passes=passes)
        found[passes] = [labels for labels, _ in follow(Tracker(*sam, track=config), scene[:2])]
    np.testing.assert_array_equal(found[2][0], found[0][0])
    image = scene[1][0].image_rgb
    drawn = along_edges(found[0][1], image, 2 if method == "track" else 0)
    np.testing.assert_array_equal(found[2][1], drawn)
    assert (drawn != found[0][1]).any() == (method == "track")


@pytest.mark.parametrize("method", METHODS)
def test_tracker_decodes_a_window_on_one_thread_and_whole_pictures_on_all(
    sam: Sam, scene: Clip, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, threads = SamDecoder.decode, []

    def noting(*args: Any, **kwargs: Any) -> Candidates:
        threads.append(torch.get_num_threads())
        return decode(*args, **kwargs)

    tracker = make_tracker(sam, method)
    tracker.start(*scene[0])
    monkeypatch.setattr(SamDecoder, "decode", noting)
    with threads_taken(3):
        tracker.step(scene[1][0])
    assert set(threads) == {1 if method == "track" else 3}


@pytest.mark.parametrize("threads", [2, 4])
def test_tracker_finds_the_same_on_one_thread_and_side_by_side_on_more(
    sam: Sam, scene: Clip, threads: int
) -> None:
    found = []
    for count in (1, threads):
        with threads_taken(count):
            found.append(follow(make_tracker(sam, "track"), scene))
    for (labels, states), (others, other_states) in zip(*found, strict=True):
        # Sums of floats depend on how many threads share them.
        assert region_similarity(labels > 0, others > 0) > 0.99
        assert states == other_states


def test_tracker_scores_a_single_object_once_and_anew_when_it_is_lost_by_a_cut(
    sam: Sam, scene: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, look = propagation.cell_scores, Background.look
    calls: list[tuple[bool, bool]] = []

    def noting(frame: Any, region: Tensor, model: Any, memory: Any, config: Any) -> Tensor:
        calls.append((bool(region.all()), memory is None))  # everywhere, by the model alone
        return score(frame, region, model, memory, config)

    def cutting(background: Background, image_rgb: UInt8Array) -> Change:
        change = look(background, image_rgb)
        background.cut = True
        return change

    # Of whole frames: a part that does not show where a lost object may be is encoded anew.
    tracker = Tracker(*sam, track=TrackConfig(crop_padding=0))
    first, labels = scene[0]
    tracker.start(first, np.where(labels == 1, labels, 0).astype(np.uint8))
    monkeypatch.setattr(propagation, "cell_scores", noting)
    embedding = tracker.encode(scene[1][0].image_rgb, tracker.planned[0])
    for _ in range(2):  # of the same embedding, too: the object has learnt meanwhile
        tracker.step(scene[1][0], embedding)
    assert calls == [(False, False)] * 2
    monkeypatch.setattr(Background, "look", cutting)
    tracker.step(scene[2][0])
    assert calls[2:] == [(False, False), (True, True)]


@pytest.mark.parametrize("method", METHODS)
def test_tracker_object_away_is_lost_and_found_again(sam: Sam, scene: Clip, method: str) -> None:
    # Defect 4: absence is tested, an empty mask is no accident, and the object is found again.
    results = follow(make_tracker(sam, method), scene)
    states = [states[1] for _, states in results]
    assert states[6:8] == [ObjectState.LOST, ObjectState.LOST]
    assert not any((results[t][0] == 1).any() for t in (6, 7))
    assert all(state is not ObjectState.LOST for state in states[:6] + states[8:])
    assert region_similarity(results[9][0] == 1, scene[9][1] == 1) > 0.7


def test_tracker_object_away_is_not_mistaken_for_another_salient_one(
    sam: Sam, busy_scene: Clip
) -> None:
    # PerSAM alone takes the girl for the lost cat now and then; the target model does not.
    results = follow(make_tracker(sam, "track"), busy_scene)
    for (labels, states), (frame, truth) in zip(results, busy_scene, strict=True):
        for object_id in (1, 2):
            present = (truth == object_id).any()
            assert (states[object_id] is not ObjectState.LOST) == present, frame.index
            assert region_similarity(labels == object_id, truth == object_id) > 0.7, frame.index


@pytest.mark.parametrize("method", METHODS)
def test_tracker_blank_frame_gives_empty_mask_not_a_crash(
    sam: Sam, scene: Clip, method: str
) -> None:
    tracker = make_tracker(sam, method)
    tracker.start(*scene[0])
    blank = Frame(1, 1 / 24, np.full((*SIZE_HW, 3), 127, np.uint8))
    result = tracker.step(blank)
    assert not result.labels.any()
    assert set(result.states.values()) == {ObjectState.LOST}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["one pixel", "thin line"])
def test_tracker_thin_object_gives_finite_scores(
    sam: Sam, scene: Clip, method: str, shape: str
) -> None:
    # Defect 3: an object that covers no grid cell had a NaN target.
    labels = np.zeros(SIZE_HW, np.uint8)
    if shape == "one pixel":
        labels[100, 200] = 1
    else:
        labels[60:180, 200] = 1
    tracker = make_tracker(sam, method)
    tracker.start(scene[0][0], labels)
    result = tracker.step(scene[1][0])
    assert np.isfinite(result.scores[1])
    assert 0 <= result.scores[1] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_tracker_same_input_gives_same_masks(sam: Sam, scene: Clip, method: str) -> None:
    once, again = (follow(make_tracker(sam, method), scene[:4]) for _ in range(2))
    for (a, _), (b, _) in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("method", "passes"), [("persam", 3), ("persam_f", 3), ("track", 1)])
def test_tracker_step_encodes_once_and_decodes_all_objects_in_one_batch_per_pass(
    sam: Sam, scene: Clip, method: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Defect 6: frame 0 was encoded per object, decoding ran object by object, PerSAM-F ran the
    # frozen decoder 800 times.
    encoder, _ = sam
    sizes: list[int] = []
    decode = SamDecoder.decode

    def counting(self, embedding, prompts, *rest, **options):  # type: ignore[no-untyped-def]
        sizes.append(len(prompts.boxes_xyxy))
        return decode(self, embedding, prompts, *rest, **options)

    monkeypatch.setattr(SamDecoder, "decode", counting)
    tracker = make_tracker(sam, method)
    before = encoder.calls
    tracker.start(*scene[0])
    assert encoder.calls - before == 1
    assert sizes == ([2] if method == "persam_f" else [])
    sizes.clear()
    tracker.step(scene[1][0])
    assert encoder.calls - before == 2
    # "track" decodes each object in a window: one batch for each of the windows' sizes.
    assert sizes == [2] * passes or (method == "track" and sizes == [1, 1])


def test_tracker_many_objects_take_turns_to_learn(
    sam: Sam, scene: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, truth = scene[0]
    labels = np.zeros_like(truth)
    for i, whole in enumerate((truth == 1, truth == 2)):
        rows = np.nonzero(whole.any(axis=1))[0]
        for j, third in enumerate(np.array_split(rows, 3)):
            labels[third] += (whole[third] * (3 * i + j + 1)).astype(np.uint8)
    tracker, update = make_tracker(sam, "track"), TargetModel.update
    learnt: list[int] = []

    def noted(self: TargetModel, *lesson: Any) -> None:
        learnt.append(next(o.object_id for o in tracker._objects.values() if o.model is self))
        update(self, *lesson)

    monkeypatch.setattr(TargetModel, "update", noted)
    monkeypatch.setattr(propagation, "_LESSONS", 4)
    tracker.start(frame, labels)
    turns = []
    for index in range(1, 4):  # it stays where it is
        result = tracker.step(replace(frame, index=index))
        assert {*result.states.values()} == {ObjectState.TRACKED}
        for object_id in range(1, 7):
            assert region_similarity(result.mask(object_id), labels == object_id) > 0.6
        turns.append([*learnt])
        learnt.clear()
    assert turns == [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4]]


def test_turns_to_learn_go_to_those_who_waited_and_to_all_who_never_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(propagation, "_LESSONS", 4)
    objects = [some_object(i, torch.ones(4, 4)) for i in range(1, 10)]
    for obj in objects:
        obj.model = TargetModel(TrackConfig())
    waited: dict[int, list[int]] = {i: [] for i in range(1, 10)}
    for frame in range(90):
        for obj in objects:
            obj.frames_untaught += 1
        pupils = _in_turn(objects[frame % 2 :])  # the first one is unsure in every other frame
        assert len(pupils) == 4
        for pupil in pupils:
            waited[pupil.object_id].append(pupil.frames_untaught)
            pupil.frames_untaught = 0
    assert all(len(frames) >= 30 and max(frames) <= 3 for frames in waited.values())
    for obj in objects[:7]:
        obj.model = None  # of a photo, just found
    assert _in_turn(objects) == objects


def test_what_learns_nothing_from_a_frame_is_a_rival_all_the_same(sam: Sam, scene: Clip) -> None:
    tracker = make_tracker(sam, "track")
    frame, labels = scene[0]
    tracker.start(frame, labels)
    both = list(tracker._objects.values())
    method, embedding = tracker._method, sam[0].encode(frame.image_rgb)
    assert isinstance(method, PropagationMethod)
    _, (alone,) = method._lessons(both[:1], embedding, both)
    _, (expected, _) = method._lessons(both, embedding, both)
    assert alone.other_sums is not None and expected.other_sums is not None
    # Of what learns itself some cells are left out, and the others count for more.
    assert alone.other_sums.count == pytest.approx(expected.other_sums.count, rel=0.02)
    wrong = alone.other_sums.gram - expected.other_sums.gram
    assert wrong.norm() < 0.05 * expected.other_sums.gram.norm()
    assert torch.equal(alone.others, expected.others)
    assert method._space is not None
    assert {p.dtype for p in method._space.projections} == {sam[1].dtype}


@pytest.mark.parametrize("method, padded", [("track", False), ("persam", True)])
def test_tracker_padding_is_for_clicks_and_persam(
    sam: Sam, scene: Clip, method: str, padded: bool
) -> None:
    # PerSAM loses 4 J&F without the padding that SAM was trained with (docs/method.md).
    encoder, decoder = sam[0].encoder, sam[1]
    assert not encoder.padding
    tracker = Tracker(encoder, decoder, track=TrackConfig(method=method))
    frame, asked = scene[0][0], []
    decode = decoder.decode
    assert tracker.encode(frame.image_rgb).padding is padded
    tracker.start_from_photo(frame.image_rgb, scene[0][1])
    assert tracker.encode(frame.image_rgb).padding  # PerSAM finds the objects of a photo
    tracker.start(frame, scene[0][1])
    assert tracker.encode(frame.image_rgb).padding is padded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            decoder, "decode", lambda e, *rest: asked.append(e.padding) or decode(e, *rest)
        )
        tracker.labels_from_prompts(frame.image_rgb, {1: parse_prompts(["60,110"])[1]})
    assert asked and all(asked)


def test_choice_of_mask_large_areas_is_by_rating_not_by_wrapped_pixel_count() -> None:
    # Defect 2: areas cast to uint8 made 256 pixels count as 0.
    logits = torch.full((1, 4, 16, 16), -1.0)
    logits[0, 1] = 1.0  # 256 pixels
    logits[0, 2, :5] = 1.0  # 80 pixels
    chosen, iou = best_of_multimask(Candidates(logits, torch.tensor([[0.1, 0.9, 0.5, 0.2]])))
    assert int((chosen > 0).sum()) == 256
    assert float(iou) == pytest.approx(0.9)


def test_tracker_add_remove_correct_keep_ids_apart_from_positions(sam: Sam, scene: Clip) -> None:
    tracker = make_tracker(sam, "track")
    first, labels = scene[0]
    ducks_only = np.where(labels == 2, 7, 0).astype(np.uint8)
    tracker.start(first, ducks_only)
    frame, truth = scene[1]
    tracker.step(frame)
    tracker.add(np.where(truth == 1, 3, 0).astype(np.uint8))
    assert tracker.object_ids == (3, 7)
    frame, truth = scene[2]
    result = tracker.step(frame)
    assert region_similarity(result.mask(7), truth == 2) > 0.7
    assert region_similarity(result.mask(3), truth == 1) > 0.7
    tracker.correct(np.where(truth == 1, 3, 0).astype(np.uint8))
    tracker.remove(7)
    frame, truth = scene[4]
    result = tracker.step(frame)
    assert result.object_ids == (3,)
    assert region_similarity(result.mask(3), truth == 1) > 0.7
    tracker.remove(3)
    assert not tracker.step(scene[5][0]).labels.any()


def test_tracker_correct_adds_to_what_was_given_and_replaces_what_was_found(
    sam: Sam, scene: Clip, davis_root: Path
) -> None:
    def references(tracker: Tracker) -> int:
        model = tracker._objects[1].model
        assert model is not None
        return model._references

    first, labels = scene[0]
    cats = np.where(labels == 1, 1, 0).astype(np.uint8)
    tracker = make_tracker(sam, "track")
    tracker.start(first, cats)
    tracker.step(scene[1][0])
    tracker.correct((scene[1][1] == 1).astype(np.uint8))
    assert references(tracker) == 2
    tracker.start_from_photo(first.image_rgb, cats)
    tracker.step(scene[1][0])
    assert tracker._objects[1].found
    for given in (1, 2):  # the mask that was found first may have been wrong
        tracker.correct((scene[1][1] == 1).astype(np.uint8))
        assert references(tracker) == given


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("subject", ["cat", "duck_toy"])
def test_tracker_reference_from_photo_is_found_in_the_first_frame(
    sam_1024: Sam, davis_root: Path, subject: str, method: str
) -> None:
    photo, labels = read_photo(davis_root.parent / "perseg-mini", subject, "00")
    image, truth = read_photo(davis_root.parent / "perseg-mini", subject, "01")
    tracker = make_tracker(sam_1024, method)
    tracker.start_from_photo(photo, labels)
    result = tracker.step(Frame(0, 0.0, image))
    assert result.states[1] is not ObjectState.LOST
    assert region_similarity(result.mask(1), truth == 1) > 0.7
    again = tracker.step(Frame(1, 1 / 24, np.roll(image, 12, axis=1)))
    assert region_similarity(again.mask(1), np.roll(truth, 12, axis=1) == 1) > 0.7


def test_tracker_misuse_raises_with_the_numbers(sam: Sam, scene: Clip) -> None:
    tracker = make_tracker(sam, "track")
    frame, labels = scene[0]
    with pytest.raises(PersamError, match=r"step\(\) before start\(\)"):
        tracker.step(frame)
    with pytest.raises(PersamError, match="needs a frame"):
        tracker.add(labels)
    with pytest.raises(PromptError, match=r"100 x 50 pixels .* the frame has 426 x 240;"):
        tracker.start(frame, np.eye(50, 100, dtype=np.uint8))
    with pytest.raises(PromptError, match="mask is empty"):
        tracker.start(frame, np.zeros(SIZE_HW, np.uint8))
    with pytest.raises(PromptError, match="covers all"):
        tracker.start(frame, np.ones(SIZE_HW, np.uint8))
    tracker.start(frame, labels)
    with pytest.raises(PromptError, match="followed already"):
        tracker.add(labels)
    with pytest.raises(PromptError, match="not followed"):
        tracker.correct(np.where(labels == 1, 9, 0).astype(np.uint8))
    with pytest.raises(PromptError, match="object 9 is not followed"):
        tracker.remove(9)


def test_soft_aggregate_objects_compete_and_one_alone_keeps_its_logits() -> None:
    alone = torch.tensor([[[3.0, -2.0]]])
    torch.testing.assert_close(soft_aggregate(alone), alone)
    two = torch.tensor([[[4.0, 1.0, -3.0]], [[2.0, 1.5, -3.0]]])
    competed = soft_aggregate(two)
    assert ((competed > 0).sum(dim=0) <= 1).all()
    everywhere = slice(None), slice(None)
    labels = label_map([5, 9], [(everywhere, mask) for mask in competed], (1, 3))
    np.testing.assert_array_equal(labels, [[5, 9, 0]])
    part = (slice(0, 1), slice(1, 3)), torch.tensor([[2.0, -1.0]])
    np.testing.assert_array_equal(label_map([7], [part], (1, 3)), [[0, 7, 0]])
    # An object whose rivals are sure that they are not there keeps its logits.
    sure = torch.tensor([[[2.0, -2.0]], [[-20.0, -20.0]]])
    torch.testing.assert_close(soft_aggregate(sure)[0], sure[0], rtol=1e-3, atol=1e-3)


def some_object(object_id: int, logits: Tensor, *, lost: bool = False) -> TrackedObject:
    none = torch.zeros(1, 1)
    target = Target(none[0], 1.0, 0.0, none, none[0])
    obj = TrackedObject(object_id, target, logits, Motion(logits))
    if lost:
        obj.state, obj.frames_lost = ObjectState.LOST, 1
    return obj


def test_object_returns_where_it_was_seen_last_with_less_evidence_than_elsewhere() -> None:
    def mask(left: int) -> torch.Tensor:
        logits = torch.full((20, 60), -4.0)
        logits[5:12, left : left + 8] = 4.0
        return logits

    def moving_and_then_lost() -> TrackedObject:
        obj = some_object(1, mask(10))
        for left in (16, 22):
            obj.observe(mask(left), 0.9, TrackConfig())
        for _ in range(3):
            obj.observe(mask(22), 0.0, TrackConfig())
        assert obj.state is ObjectState.LOST
        return obj

    # It stopped where it was covered; its motion says that it is far beyond by now.
    for left, state in ((22, ObjectState.UNCERTAIN), (0, ObjectState.LOST)):
        obj = moving_and_then_lost()
        obj.observe(mask(left), 0.3, TrackConfig())
        assert obj.state is state
    obj = moving_and_then_lost()
    obj.observe(mask(0), 0.5, TrackConfig())
    assert obj.state is ObjectState.TRACKED


def test_object_is_not_the_scrap_that_is_left_where_it_is_not_expected() -> None:
    def mask(left: int, width: int, scrap: int = 0) -> torch.Tensor:
        logits = torch.full((20, 60), -4.0)
        logits[5:15, left : left + width] = 4.0
        logits[5, :scrap] = 4.0
        return logits

    def hidden_in_part() -> TrackedObject:
        obj = some_object(1, mask(20, 10))
        for left, width in ((24, 10), (28, 6)):
            obj.observe(mask(left, width, scrap=4), 0.9, TrackConfig())
        return obj

    obj = hidden_in_part()
    obj.observe(mask(0, 0, scrap=4), 0.9, TrackConfig())
    assert obj.state is ObjectState.LOST
    for seen in (mask(32, 1), mask(2, 2)):  # a sliver where it goes in, or more of it elsewhere
        obj = hidden_in_part()
        obj.observe(seen, 0.9, TrackConfig())
        assert obj.state is ObjectState.TRACKED


def test_object_of_a_photo_may_have_any_size_in_the_clip() -> None:
    """In the photo it fills half of the picture; a clip's own object is no such scrap."""
    far_away, half = torch.full((2, 40, 40), -4.0)
    far_away[3:6, 3:6] = 4.0
    half[20:] = 4.0
    obj = some_object(1, half)
    obj.observe(far_away, 0.9, TrackConfig())
    assert obj.state is ObjectState.LOST
    obj = some_object(1, half)
    obj.never_seen()
    assert obj.state is ObjectState.LOST and not (obj.expected_logits() > 0).any()
    obj.observe(far_away, 0.9, TrackConfig())
    assert obj.state is ObjectState.TRACKED and obj.area == 9


@pytest.mark.slow
def test_tracker_object_is_found_anywhere_in_the_frame_after_a_cut(
    sam: Sam, davis_root: Path
) -> None:
    image = cv2.imread(str(davis_root / "JPEGImages/480p/swing/00000.jpg"))[:, :, ::-1].copy()
    cat = read_cutout(davis_root.parent / "perseg-mini", "cat", 90)
    clip = compose(image, [cat], [[(20 + 4 * t, 80)] for t in range(4)])
    after = compose(np.ascontiguousarray(image[:, ::-1]), [cat], [[(290, 120)]] * 2)
    tracker = Tracker(*sam)
    tracker.start(*clip[0])
    for frame, _ in clip[1:]:
        tracker.step(frame)
    for i, (frame, truth) in enumerate(after):
        result = tracker.step(Frame(4 + i, (4 + i) / 25, frame.image_rgb))
        assert result.states[1] is ObjectState.TRACKED
        assert region_similarity(result.labels == 1, truth == 1) > 0.7


def test_strays_part_away_from_the_object_is_left_to_the_one_that_is_lost_or_uncertain() -> None:
    before = torch.full((20, 30), -4.0)
    before[5:12, 4:12] = 4.0
    now = before.clone()
    now[5:12, 20:24] = 4.0
    claimed = torch.stack([now, now])
    seen, lost = some_object(1, before), some_object(2, before, lost=True)
    assert torch.equal(without_strays(claimed, [seen, lost], (20, 30))[0], before)
    assert torch.equal(without_strays(claimed, [seen, lost], (20, 30))[1], now)
    # dogs-jump: the larger dog took the smaller one, which had just come back and was uncertain.
    unsure = some_object(2, before)
    unsure.state = ObjectState.UNCERTAIN
    assert torch.equal(without_strays(claimed, [seen, unsure], (20, 30))[0], before)
    # With nobody missing a mask may have parts: an occluder can split the object.
    split = before.clone()
    split[:, 7:9] = -4.0
    assert torch.equal(without_strays(split[None], [seen], (20, 30))[0], split)


def test_strays_object_that_was_seen_in_two_parts_keeps_the_smaller_one() -> None:
    """dogs-jump: the person's head and feet, beside a dog that she was mixed up with."""
    before = torch.full((20, 30), -4.0)
    before[2:8, 4:12] = before[12:14, 4:12] = 4.0
    before[17, 4] = 4.0  # a scrap
    now = before.clone()
    now[16:19, 4:7] = 4.0
    whole = before.clone()
    whole[17, 4] = -4.0
    unsure = some_object(2, torch.full((20, 30), -4.0))
    unsure.state = ObjectState.UNCERTAIN
    claimed = torch.stack([now, unsure.logits])
    assert torch.equal(
        without_strays(claimed, [some_object(1, before), unsure], (20, 30))[0], whole
    )


@pytest.mark.parametrize(
    ("rows", "columns", "kept"),
    [
        ((6, 9), (14, 17), True),  # small and near: a part that had been hidden
        ((6, 14), (14, 18), False),  # near, but a quarter of the object at once
        ((6, 8), (24, 27), False),  # far off
        ((14, 16), (4, 6), False),  # near, but through the lower edge of the picture
        ((6, 8), (0, 2), True),  # at an edge that the object reaches itself
    ],
)
def test_strays_what_has_just_come_into_the_picture_is_something_else(
    rows: tuple[int, int], columns: tuple[int, int], kept: bool
) -> None:
    """bmx-bumps: a spectator walks into the picture in front of the rider."""
    before = torch.full((32, 32), -4.0)
    before[2:12, 4:13] = 4.0
    before[10:12, 0:4] = 4.0  # its arm reaches the left edge
    now = before.clone()
    now[slice(*rows), slice(*columns)] = 4.0
    rider = some_object(1, before)
    found = without_strays(now[None], [rider], (16, 32))[0]
    assert torch.equal(found, now if kept else before)
    # Where no part is in its place the object has jumped.
    moved = now.where(before < 0, torch.tensor(-4.0))
    assert torch.equal(without_strays(moved[None], [rider], (16, 32))[0], moved)


def test_strays_place_that_looks_as_the_background_did_is_nothing_of_the_object() -> None:
    before = torch.full((20, 30), -4.0)
    before[5:12, 4:12] = 4.0
    now = before.clone()
    now[13:15, 4:8] = 4.0
    votes = torch.zeros(20, 30)
    seen = some_object(1, before)
    assert torch.equal(without_strays(now[None], [seen], (20, 30), votes)[0], now)
    votes[13:, :] = -0.6
    assert torch.equal(without_strays(now[None], [seen], (20, 30), votes)[0], before)
    votes[:, :] = -0.6  # all of it has gone
    assert not (without_strays(now[None], [seen], (20, 30), votes) > 0).any()


def test_strays_part_far_off_in_the_place_of_another_object_is_that_one() -> None:
    """dogs-jump: a patch of the smaller dog stayed with the larger one that had stood before it."""
    large = torch.full((24, 48), -4.0)
    large[6:18, 2:14] = 4.0
    large[10:12, 40:42] = 4.0  # the patch, its own since the two have touched
    small = torch.full((24, 48), -4.0)
    small[8:14, 38:46] = 4.0
    alone = large.clone()
    alone[10:12, 40:42] = -4.0
    claimed = torch.stack([large, small])
    kept = without_strays(claimed, [some_object(1, large), some_object(2, small)], (24, 48))
    assert torch.equal(kept, torch.stack([alone, small]))
    # Nearby it may be its own, seen past the other one.
    near = small.roll(-22, dims=1)
    legs = alone.clone()
    legs[10:12, 18:20] = 4.0
    claimed = torch.stack([legs, near])
    kept = without_strays(claimed, [some_object(1, legs), some_object(2, near)], (24, 48))
    assert torch.equal(kept, claimed)
    # With nobody there an object may be in two places.
    assert torch.equal(without_strays(large[None], [some_object(1, large)], (24, 48))[0], large)


def test_strays_part_that_more_than_doubles_an_object_is_something_else() -> None:
    """bmx-bumps on a fine grid: a spectator walks in beside the rider, dark like him."""
    before = torch.full((20, 30), -4.0)
    before[5:12, 4:12] = 4.0
    rider = some_object(1, before)
    joined = before.clone()
    joined[:, 20:29] = 4.0
    assert torch.equal(without_strays(joined[None], [rider], (20, 30))[0], before)
    grown = before.clone()
    grown[2:18, 2:26] = 4.0  # comes closer, or into the picture: one part
    assert torch.equal(without_strays(grown[None], [rider], (20, 30))[0], grown)


def test_lost_object_is_searched_in_the_place_with_the_most_evidence() -> None:
    prior = torch.full((20, 40), -4.0)
    prior[2:8, 2:8] = 0.5  # larger, but it looks less like the object
    prior[10:14, 30:34] = 3.0
    prior[15, 31] = 2.0  # near the other one: the same place
    looks = torch.zeros(20, 40, 2)
    looks[..., 0], looks[10:16, 30:34, 1] = 1.0, 1.0
    looks = torch.nn.functional.normalize(looks, dim=2)
    obj = some_object(1, torch.zeros(8, 8), lost=True)
    frame = FrameFeatures.of(looks)
    obj.memory.fit(Lesson.around((prior > 1).float(), prior > -5, frame))
    found = best_place(prior, frame, obj.memory, 2)
    assert torch.equal(found & (prior > 0), prior > 1)
    assert best_place(torch.where(prior > 1, prior, -4.0), frame, obj.memory, 2).all()


def test_lost_object_is_not_where_more_cells_are_familiar_but_less_likely() -> None:
    """The composed cut: the larger person beside it has cells like the object's, too."""
    prior = torch.full((20, 40), -4.0)
    prior[2:8, 2:8] = 0.5
    prior[10:14, 30:34] = 3.0
    looks = torch.zeros(20, 40, 2)
    looks[..., 0] = 1.0
    looks[prior > 0] = torch.tensor([0.0, 1.0])
    obj = some_object(1, torch.zeros(8, 8), lost=True)
    frame = FrameFeatures.of(looks)
    obj.memory.fit(Lesson.around((prior > 0).float(), prior > -5, frame))
    assert torch.equal(best_place(prior, frame, obj.memory, 2) & (prior > 0), prior > 1)


def test_motion_constant_velocity_moves_the_mask() -> None:
    frames = [torch.full((20, 30), -5.0) for _ in range(4)]
    for t, logits in enumerate(frames):
        logits[5:9, 3 + 4 * t : 7 + 4 * t] = 5.0
    motion = Motion(frames[0])
    for logits in frames[1:3]:
        motion.observe(logits)
    moved = motion.moved(frames[2])
    assert torch.nonzero(moved > 0)[:, 1].float().mean() == pytest.approx(4.5 + 8 + 3, abs=1.01)
    assert (motion.moved(torch.full((20, 30), -5.0)) == -5).all()


def test_motion_kept_answer_is_of_the_same_mask_as_far_away() -> None:
    first, second = torch.full((2, 20, 30), -5.0)
    first[5:9, 3:7], second[5:9, 7:11] = 5.0, 5.0
    motion = Motion(first)
    motion.observe(second)  # two columns a frame, of a smoothed velocity

    def columns(logits: Tensor, frames: int = 1) -> list[int]:
        return (motion.moved(logits, frames) > 0).any(dim=0).nonzero()[:, 0].tolist()

    assert columns(second) == columns(second) == [9, 10, 11, 12]
    assert columns(second, 3) == [13, 14, 15, 16]
    assert columns(first, 3) == [9, 10, 11, 12]
    assert columns(second) == [9, 10, 11, 12]
    motion.observe(second)  # it has slowed down
    assert columns(second) == [8, 9, 10, 11]
