"""On an NVIDIA GPU: the same masks as on the processor, recorded steps, streams, work ahead."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from segment_anything.build_sam import _build_sam
from source_clips import Clip, write_video
from torch import Tensor

import persam_video as pv
from persam_video.evaluation.metrics import region_similarity
from persam_video.personalize import location_prior
from persam_video.sam import cuda_graphs
from persam_video.sam.cuda_graphs import _OFTEN as OFTEN
from persam_video.sam.cuda_graphs import Replayed
from persam_video.sam.resizing import _by_pillow, _by_torch, resized
from persam_video.sam.vit import VitBackbone
from persam_video.tracking import background
from persam_video.tracking.persam import _LOOK_RATE
from persam_video.types import UInt8Array, Window

CUDA = torch.device("cuda")
SIZE_HW = 270, 480


def scene(count: int = 8) -> tuple[list[pv.Frame], list[UInt8Array]]:
    """A blue disc that moves to the right and a red box that moves to the left, and their masks."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (*SIZE_HW, 3)), (0, 0), 3) * 3
    ground = (np.array([110, 130, 100]) + noise).clip(0, 255).astype(np.uint8)
    frames, masks = [], []
    for index in range(count):
        image, labels = ground.copy(), np.zeros(SIZE_HW, np.uint8)
        cv2.circle(labels, (130 + 5 * index, 90), 45, 1, -1)
        cv2.rectangle(labels, (330 - 4 * index, 140), (420 - 4 * index, 220), 2, -1)
        image[labels == 1], image[labels == 2] = (40, 60, 200), (200, 50, 30)
        frames.append(pv.Frame(index, index / 25, cv2.GaussianBlur(image, (0, 0), 0.8)))
        masks.append(labels)
    return frames, masks


def tracker_on(device: str, **track: Any) -> pv.Tracker:
    encoder = pv.EncoderConfig(input_size=512, device=device, dtype="float32")
    return pv.Tracker.from_config(pv.Config(encoder=encoder, track=pv.TrackConfig(**track)))


def agreement(got: list[UInt8Array], expected: list[UInt8Array]) -> float:
    """Least IoU over frames and objects."""
    return min(
        region_similarity(a == i, b == i)
        for a, b in zip(got, expected, strict=True)
        for i in (1, 2)
    )


def tracked(
    tracker: pv.Tracker, frames: list[pv.Frame], reference: pv.Reference
) -> list[UInt8Array]:
    return [result.labels for _, result in pv.track(iter(frames), tracker, reference)]


@pytest.fixture
def recorded() -> Iterator[tuple[Replayed, list[int]]]:
    """A function of two tensors, and a list with an entry for each time that Python runs it."""
    calls: list[int] = []

    def function(a: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        calls.append(1)
        return (a.exp(), a @ a.T if b is None else a @ b)

    with torch.inference_mode():
        yield Replayed(function), calls


@pytest.mark.parametrize("method", ["track", "persam", "persam_f"])
@pytest.mark.needs_weights
@pytest.mark.needs_cuda
def test_a_clip_has_the_same_masks_as_on_the_processor(
    method: str, vit_t_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, masks = scene()
    # Recorded in this short clip is what is recorded in a long one, and nothing from another test.
    monkeypatch.setattr(cuda_graphs, "_OFTEN", 2)
    likenesses = [location_prior._similarity, location_prior._turning(_LOOK_RATE)]
    for replayed in likenesses:
        monkeypatch.setattr(replayed, "_known", OrderedDict())
    trackers = {device: tracker_on(device, method=method) for device in ("cpu", "cuda")}
    found = {
        device: tracked(tracker, frames, pv.Reference(masks[0]))
        for device, tracker in trackers.items()
    }
    on_gpu = trackers["cuda"]
    encoder = on_gpu.encoder if method == "track" else on_gpu._sam_encoder
    groups = [[on_gpu._decoder._propose], [encoder._network]]
    if method == "track":
        sized, space = on_gpu._decoder._sized, on_gpu._method._space  # type: ignore[attr-defined]
        groups += [
            [each.boxes_and_masks for each in sized.values()],
            [*space._recorded.values()],
            *([each] for each in likenesses),
        ]
    for group in groups:
        assert any(known.recording for each in group for known in each._known.values())
    assert agreement(found["cuda"], found["cpu"]) > 0.95
    if method == "track":
        assert agreement(found["cuda"], masks) > 0.9


@pytest.mark.parametrize(
    "settings", [{"close_up": True}, {"keyframe_interval": 2}, {"look_back": 4}]
)
@pytest.mark.needs_weights
@pytest.mark.needs_cuda
def test_settings_find_the_objects(settings: dict[str, Any], vit_t_weights: Path) -> None:
    frames, masks = scene()
    reference = pv.Reference(masks[0], later={6: masks[6]})
    assert agreement(tracked(tracker_on("cuda", **settings), frames, reference), masks) > 0.9


@pytest.mark.needs_weights
@pytest.mark.needs_cuda
def test_clicks_and_a_photo_find_the_objects(vit_t_weights: Path) -> None:
    frames, masks = scene(4)
    prompts = pv.parse_prompts(["130,90", "2=375,180"])
    clicked = tracked(tracker_on("cuda"), frames, pv.Reference(prompts=prompts))
    photo = pv.Reference(masks[0], image_rgb=frames[0].image_rgb)
    searched = tracked(tracker_on("cuda"), frames[1:], photo)
    assert agreement(clicked, masks) > 0.9
    assert agreement(searched, masks[1:]) > 0.85


@pytest.mark.needs_cuda
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_video_is_decoded_on_the_gpu_as_on_the_processor(
    tmp_path: Path, codec: str, rotation: int
) -> None:
    clip = Clip(size_hw=(144, 256), rotation=rotation)
    path = write_video(tmp_path / "clip.mp4", clip, codec=codec, pixels="yuv420p")
    with (
        pv.open_source(path, pv.SourceConfig(backend="cuda")) as on_gpu,
        pv.open_source(path) as on_processor,
    ):
        assert on_gpu.info.backend == "cuda" and on_gpu.info.frame_count == clip.count
        for got, expected in zip(on_gpu, on_processor, strict=True):
            assert got.time_s == expected.time_s
            # The pictures are the same; their colours are made from another pixel format.
            difference = got.image_rgb.astype(int) - expected.image_rgb
            assert np.abs(difference).mean() < 2


@pytest.mark.needs_weights
def test_what_is_made_of_a_frame_ahead_is_used_once(
    vit_t_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, masks = scene(4)
    ahead, plain = tracker_on("cpu"), tracker_on("cpu")
    for tracker in (ahead, plain):
        tracker.start(frames[0], masks[0])
    for frame in frames[1:3]:
        ahead.look_ahead(frame.image_rgb)
    expected = [plain.step(frame).labels for frame in frames[1:]]

    def fail(*args: Any) -> None:
        raise AssertionError("it is there already")

    with monkeypatch.context() as patched:
        patched.setattr(background, "_reduced", fail)
        assert np.array_equal(ahead.step(frames[1]).labels, expected[0])
        ahead.wait()
        with monkeypatch.context() as compared:  # and looked at, beside the step before
            compared.setattr(background.Background, "look_at", fail)
            assert np.array_equal(ahead.step(frames[2]).labels, expected[1])
        with pytest.raises(AssertionError, match="there already"):
            ahead.step(frames[3])
    assert np.array_equal(ahead.step(frames[3]).labels, expected[2])


@pytest.mark.needs_weights
@pytest.mark.needs_cuda
def test_objects_are_added_and_corrected_between_frames(vit_t_weights: Path) -> None:
    frames, masks = scene()
    only_disc = [np.where(mask == 1, mask, 0).astype(np.uint8) for mask in masks]
    tracker, got = tracker_on("cuda"), []
    for frame, result in pv.track(iter(frames), tracker, pv.Reference(only_disc[0])):
        if frame.index == 2:
            tracker.add(np.where(masks[2] == 2, masks[2], 0).astype(np.uint8))
        if frame.index == 4:
            tracker.correct(masks[4])
        got.append(result.labels)
    assert agreement(got[3:], masks[3:]) > 0.9


@pytest.mark.needs_cuda
def test_a_function_that_is_called_often_is_recorded_and_then_replayed(
    recorded: tuple[Replayed, list[int]],
) -> None:
    function, calls = recorded
    kept = []
    for step in range(OFTEN + 4):
        a, b = torch.randn(3, 4, device=CUDA), torch.randn(4, 2, device=CUDA)
        kept.append((a, b, *function(a, b)))
        assert len(calls) == min(step, OFTEN) + 1
    for a, b, exponential, product in kept:  # of each call its own
        assert torch.equal(exponential, a.exp()) and torch.allclose(product, a @ b, atol=1e-6)
    c = torch.randn(7, 4, device=CUDA)
    for _ in range(OFTEN + 3):
        assert torch.allclose(function(c, None)[1], c @ c.T, atol=1e-5)
        assert torch.allclose(function(a, b)[1], a @ b, atol=1e-6)  # they share memory
    assert len(calls) == 2 * (OFTEN + 1)


@pytest.mark.needs_cuda
def test_a_recording_outlives_one_that_was_made_before_it() -> None:
    def function(a: Tensor) -> tuple[Tensor, ...]:
        return (a @ a @ a,)

    with torch.inference_mode():
        a = (torch.randn(512, 512, device=CUDA) / 20).bfloat16()
        first, second = Replayed(function), Replayed(function)
        for replayed in [first, second] * (OFTEN + 1):
            replayed(a)
        del first, replayed
        gc.collect()
        torch.cuda.empty_cache()
        others = [torch.full((1 << 22,), torch.nan, device=CUDA) for _ in range(8)]
        for _ in range(3):
            assert torch.allclose(second(a)[0], function(a)[0], rtol=0.02)
        assert all(bool(other.isnan().all()) for other in others)


@pytest.mark.needs_cuda
def test_what_was_recorded_for_clips_before_keeps_no_memory() -> None:
    def function(a: Tensor) -> tuple[Tensor, ...]:
        return (a @ a @ a,)

    reserved = []
    with torch.inference_mode():
        a = torch.randn(2048, 2048, device=CUDA) / 50
        for _ in range(6):
            replayed = Replayed(function)
            for _ in range(OFTEN + 2):
                replayed(a)
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[1]


@pytest.mark.needs_cuda
def test_recordings_are_of_a_stream(recorded: tuple[Replayed, list[int]]) -> None:
    function, _ = recorded
    assert not function._known

    def work(seed: int) -> bool:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            a = torch.full((64, 64), float(seed), device=CUDA)
            products = [function(a, None)[1] for _ in range(3 * OFTEN)]
            return all(bool((p == 64 * seed * seed).all()) for p in products)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))
    assert len(function._known) == 4


class FakeRecording:
    """Computes what is replayed; without a GPU."""

    def __init__(self, pool: Any) -> None:
        self.graph = SimpleNamespace(pool=lambda: pool or (0, 1))

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + 100,)


def test_shapes_that_come_often_are_recorded_and_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "_key", lambda inputs: cuda_graphs._Key(0, inputs[0].shape))
    monkeypatch.setattr(cuda_graphs, "_MOST", 2)
    pools: list[Any] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pools.append("emptied"))

    def recording(function: Any, inputs: Any, pool: Any) -> FakeRecording:
        pools.append(pool)
        return FakeRecording(pool)

    monkeypatch.setattr(cuda_graphs.Recording, "of", recording)
    function = Replayed(lambda x: (x + 1,))
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)

    def first(x: Tensor) -> float:
        return float(function(x)[0][0])

    assert [first(one) for _ in range(OFTEN + 2)] == [1.0] * OFTEN + [100.0] * 2
    assert [first(two), first(one), first(three)] == [1.0, 100.0, 1.0]
    assert [first(one), first(two)] == [100.0, 1.0]  # the two were the oldest, and begin anew
    assert [first(two) for _ in range(OFTEN)] == [1.0] * (OFTEN - 1) + [100.0]
    # The second one shares the memory of the first; before that, nothing of others is kept.
    assert pools == ["emptied", None, (0, 1)]


@pytest.mark.parametrize("failures", [1, 2])
def test_what_the_gpu_has_no_room_for_is_not_recorded(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def recording(function: Any, inputs: Any, pool: Any) -> FakeRecording:
        tries.append(1)
        if len(tries) <= failures:
            raise torch.cuda.OutOfMemoryError("full")
        return FakeRecording(pool)

    monkeypatch.setattr(cuda_graphs, "_key", lambda inputs: cuda_graphs._Key(0, inputs[0].shape))
    monkeypatch.setattr(cuda_graphs.Recording, "of", recording)
    function, x = Replayed(lambda x: (x + 1,)), torch.zeros(1)
    found = [float(function(x)[0][0]) for _ in range(OFTEN + 3)]
    assert found == [1.0] * OFTEN + [100.0 if failures == 1 else 1.0] * 3
    assert len(tries) == 2


def test_on_a_processor_nothing_is_recorded() -> None:
    calls: list[int] = []

    def function(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return (x,)

    replayed, x = Replayed(function), torch.zeros(3)
    with torch.inference_mode():
        assert all(replayed(x)[0] is x for _ in range(3 * OFTEN))
    assert len(calls) == 3 * OFTEN


@pytest.mark.parametrize("size_hw", [(432, 768), (180, 320), (270, 480)])
def test_torch_resizes_as_pillow_does(size_hw: tuple[int, int]) -> None:
    image_rgb = scene(1)[0][0].image_rgb
    pixels = torch.from_numpy(image_rgb).permute(2, 0, 1)[None]
    got = _by_torch(pixels, size_hw)
    expected = torch.from_numpy(_by_pillow(image_rgb, size_hw, Window(0, 0, *size_hw[::-1])))
    apart = (got - expected).abs()
    assert got.shape == expected.shape and apart.max() <= 1
    assert apart.mean() < 0.1


@pytest.mark.parametrize("part", [None, Window(64, 48, 160, 400)])
@pytest.mark.parametrize("size_hw", [(432, 768), (180, 320)])
@pytest.mark.needs_cuda
def test_a_picture_is_resized_as_on_the_processor(
    size_hw: tuple[int, int], part: Window | None
) -> None:
    image_rgb = scene(1)[0][0].image_rgb
    expected = resized(image_rgb, size_hw, part, torch.device("cpu"))
    got = resized(image_rgb, size_hw, part, CUDA).cpu()
    apart = (got - expected).abs()
    assert got.shape == expected.shape and apart.max() <= 1
    assert apart.mean() < 0.1


@pytest.mark.needs_cuda
def test_vit_in_bfloat16_is_near_float32(vit: VitBackbone) -> None:
    vit = vit.to(CUDA)
    x = torch.randn(1, 3, 1024, 1024, device=CUDA)
    with torch.inference_mode():
        exact = vit(x)[0]
        rounded = vit.bfloat16()(x.bfloat16())[0].float()
    assert ((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.fixture
def vit() -> VitBackbone:
    """A small ViT of random weights."""
    torch.manual_seed(0)
    encoder = _build_sam(64, 4, 4, (1, 3)).image_encoder
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":  # which begin as zeros
            parameter.data.normal_(0, 0.1)
    return VitBackbone(encoder).requires_grad_(False).eval()
