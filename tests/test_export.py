"""Exported backbone: files and manifest, round trips through every format, refusals."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from persam_video.cli.main import main
from persam_video.config import EncoderConfig
from persam_video.errors import CheckpointError, ConfigError
from persam_video.sam import export as export_module
from persam_video.sam import models, tiny_vit
from persam_video.sam.compilation import compile_backbone
from persam_video.sam.export import MANIFEST, read_export, with_export, write_export
from persam_video.sam.models import load_sam
from persam_video.sam.tiny_vit import TinyViT

CONFIG = EncoderConfig(device="cpu", dtype="float32", runtime="torch", input_size=256)


@pytest.fixture(scope="module")
def backbone() -> TinyViT:
    """Of random weights, with one block a stage."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit, "DEPTHS", (1, 1, 1, 1))  # each block takes its time to convert
        torch.manual_seed(0)
        return TinyViT().requires_grad_(False).eval()


def write(folder: Path, backbone: TinyViT, *how: str, **options: Any) -> export_module.Export:
    return write_export(
        folder, CONFIG.model, 256, backbone, *how, weights_source="a test", **options
    )


@pytest.fixture(scope="module")
def folder(backbone: TinyViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for OpenVINO in float32."""
    made = tmp_path_factory.mktemp("exports") / "made"
    write(made, backbone, "openvino", "float32")
    return made


def assert_export_equals_torch(folder: Path, backbone: TinyViT) -> None:
    runtime = read_export(folder).runtime
    compiled = compile_backbone(backbone, runtime, torch.float32, str(folder))
    x = torch.randn(1, 3, 112, 160, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(x)[0], backbone(x)[0], rtol=1e-3, atol=1e-3)


def test_export_openvino_round_trip_equals_torch(folder: Path, backbone: TinyViT) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"encoder.xml", "encoder.bin", MANIFEST}
    assert [path.name for path in folder.parent.iterdir()] == ["made"]
    assert_export_equals_torch(folder, backbone)


@pytest.mark.slow
def test_export_onnx_round_trip_equals_torch(backbone: TinyViT, tmp_path: Path) -> None:
    written = write(tmp_path / "made", backbone, "onnx", "float32")
    assert read_export(tmp_path / "made") == written
    assert written.input_shape == [1, 3, "height", "width"]
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"encoder.onnx", MANIFEST}
    assert_export_equals_torch(tmp_path / "made", backbone)


def test_export_of_other_weights_is_refused(folder: Path, backbone: TinyViT) -> None:
    other = copy.deepcopy(backbone)
    other.neck[0].weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="exported from other weights \\(a test\\)"):
        compile_backbone(other, "openvino", torch.float32, str(folder))


def test_resolve_export_decides_runtime_and_number_format(folder: Path) -> None:
    config = EncoderConfig(exported=str(folder), input_size=256)
    device, dtype, runtime = models.resolve(config)
    assert (device.type, dtype, runtime) == ("cpu", torch.float32, "openvino")
    assert models.resolve_input_size(EncoderConfig(exported=str(folder))) == 256
    assert with_export(CONFIG) is CONFIG


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"input_size": 512}, "was exported for input_size 256, got 512"),
        ({"runtime": "torch"}, "was exported for runtime openvino, got torch"),
        ({"dtype": "bfloat16"}, "was exported for dtype float32, got bfloat16"),
        ({"model": "vit_b"}, "was exported for model vit_t, got vit_b"),
    ],
)
def test_resolve_export_against_the_settings_is_refused(
    settings: dict[str, Any], told: str, folder: Path
) -> None:
    config = EncoderConfig(**{"exported": str(folder), "input_size": 256, **settings})
    with pytest.raises(ConfigError, match=told):
        models.resolve(config)


def test_resolve_int8_export_leaves_the_rest_its_number_format(
    folder: Path, tmp_path: Path
) -> None:
    stored = json.loads((folder / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**stored, "precision": "int8"}))
    config = EncoderConfig(exported=str(tmp_path), input_size=256, dtype="bfloat16")
    assert models.resolve(config)[1:] == (torch.bfloat16, "openvino")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no exported network: No such file or directory; persam-video export makes one"),
        ("{", "damaged: "),
        ("[]", "damaged: "),
        ('{"format_version": 9}', "export of format 9"),
        ('{"format_version": null}', "export of format None"),
        ('{"format_version": 1, "model": "vit_t"}', "damaged: .*missing"),
    ],
)
def test_read_export_of_a_bad_folder_tells_what_is_wrong(
    text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=told):
        read_export(tmp_path)


def test_write_export_that_fails_leaves_nothing(
    backbone: TinyViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(part: object, folder: Path, *rest: object) -> None:
        (folder / "encoder.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write(tmp_path / "made", backbone, "onnx", "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--format", "onnx", "--precision", "bfloat16", "-o", "new"], 2, "does not compute in"),
        (["--format", "onnx", "--precision", "int8", "-o", "new"], 2, "need each other"),
        (["--format", "onnx", "--calibrate", "clip", "-o", "new"], 2, "need each other"),
        (["--format", "onnx", "-o", "there"], 1, "something is there already"),
        (["--format", "onnx", "--input-size", "100", "-o", "new"], 2, "input_size must be in"),
        (["--format", "onnx", "--checkpoint", "no.pth", "-o", "new"], 1, "no.pth"),
    ],
)
def test_export_command_wrong_input_is_one_clear_line(
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("mine")
    assert main(["export", *arguments]) == code
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_write_export_int8_without_its_package_names_the_extra(
    backbone: TinyViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persam_video.sam import runtimes

    monkeypatch.setattr(runtimes, "is_installed", lambda package: package != "nncf")
    with pytest.raises(ConfigError, match=r'nncf is not installed; pip install "persam-video\[exp'):
        write(tmp_path / "made", backbone, "openvino", "int8")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="int8 needs frames to be calibrated on, got none"):
        write(tmp_path / "made", backbone, "onnx", "int8")


@pytest.mark.slow
@pytest.mark.needs_weights
@pytest.mark.parametrize(("format_name", "limit"), [("openvino", 0.15), ("onnx", 0.4)])
def test_export_command_int8_is_taken_by_load_sam(
    format_name: str,
    limit: float,
    vit_t_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format_name == "openvino":
        pytest.importorskip("nncf", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :160]
    (tmp_path / "clip").mkdir()
    for index in range(4):
        image = np.stack([90 + y, 120 + 40 * np.sin((x + 5 * index) / 12), 60 + x], axis=2)
        image[(y - 60) ** 2 + (x - 60 - 9 * index) ** 2 < 900] = (200, 40, 30)
        image = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"clip/{index}.png")
    command = ["export", "--format", format_name, "--precision", "int8", "--calibrate", "clip"]
    with warnings.catch_warnings():  # of the quantising packages themselves
        warnings.simplefilter("ignore")
        assert main([*command, "--input-size", "256", "--calibration-frames", "2", "-o", "q"]) == 0

    assert read_export(tmp_path / "q").calibration == "2 frames of clip"
    quantised, _ = load_sam(EncoderConfig(exported="q", input_size=256))
    exact, _ = load_sam(CONFIG)
    got, expected = quantised.encode(image).neck, exact.encode(image).neck
    error = float((got - expected).norm() / expected.norm())
    assert 1e-3 < error < limit
    encoder_files = (tmp_path / "q").glob("encoder.*")
    assert sum(path.stat().st_size for path in encoder_files) < 15e6  # of 28 MB in float32
