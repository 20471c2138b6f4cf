"""Every runtime of the image encoder against torch, and the choice of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.build_sam import _build_sam
from torch import Tensor, nn

from persam_video.config import EncoderConfig
from persam_video.errors import CheckpointError, ConfigError
from persam_video.sam import compilation, compiled, models, runtimes, tiny_vit, torch_compile
from persam_video.sam.compilation import compile_backbone, open_engine
from persam_video.sam.compiled import CompiledBackbone
from persam_video.sam.conversion import converted, identity, write_onnx
from persam_video.sam.decoder import PromptBatch
from persam_video.sam.machine import threads_taken
from persam_video.sam.models import load_sam
from persam_video.sam.tiny_vit import TinyViT
from persam_video.sam.torch_compile import TorchCompiled
from persam_video.sam.vit import VitBackbone
from persam_video.types import UInt8Array

CPU = torch.device("cpu")
KINDS = [("openvino", "float32"), ("openvino", "bfloat16"), ("onnxruntime", "float32")]
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.03}
SIZES = [(80, 256), (240, 112)]  # the same in all tests: each is compiled once per runtime


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def needs_bfloat16(precision: str) -> None:
    if precision == "bfloat16" and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        pytest.skip("the processor has no bfloat16")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Conversions of this module go into one folder, those of the real weights to the user's."""
    if request.node.get_closest_marker("needs_weights") is None:
        monkeypatch.setenv("PERSAM_CACHE", str(cache))


@pytest.fixture(scope="module")
def backbone() -> TinyViT:
    """TinyViT of random weights whose outputs are of the order of one, with one block a stage."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit, "DEPTHS", (1, 1, 1, 1))  # each block takes its time to compile
        torch.manual_seed(0)
        network = TinyViT().requires_grad_(False).eval()
        for name, parameter in network.named_parameters():
            if name.endswith("attention_bias"):
                nn.init.normal_(parameter)
    return network


Engines = Callable[[str, str], CompiledBackbone]


@pytest.fixture(scope="module")
def engines(backbone: TinyViT, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """The encoder in a runtime, each compiled shape kept for all tests."""
    file = tmp_path_factory.mktemp("engines") / "encoder.onnx"
    write_onnx(backbone, file)
    made: dict[tuple[str, str], CompiledBackbone] = {}

    def get(runtime: str, precision: str) -> CompiledBackbone:
        needs_bfloat16(precision)
        key = runtime, precision
        if key not in made:
            made[key] = CompiledBackbone(open_engine(runtime, file, precision), "test")
        return made[key]

    return get


# The encoder


@pytest.mark.parametrize(("runtime", "precision"), KINDS)
def test_encoder_at_changing_sizes_equals_torch(
    runtime: str, precision: str, engines: Engines, backbone: TinyViT
) -> None:
    network = engines(runtime, precision)
    generator = torch.Generator().manual_seed(0)
    for height, width in (*SIZES, SIZES[0]):
        x = torch.randn(1, 3, height, width, generator=generator)
        neck, stages = network(x)
        expected_neck, expected_stages = backbone(x)
        assert len(stages) == len(expected_stages) == 3
        for got, expected in zip((neck, *stages), (expected_neck, *expected_stages), strict=True):
            assert got.shape == expected.shape
            assert got.dtype == torch.float32
            assert relative_error(got, expected) < TOLERANCE[precision]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_encoder_outputs_outlive_the_next_call(runtime: str, engines: Engines) -> None:
    network = engines(runtime, "float32")
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1, 3, *SIZES[0], generator=generator)
    neck, stages = network(one)
    before = [neck.clone(), *(stage.clone() for stage in stages)]
    changed, _ = network(other)
    assert not torch.equal(changed, neck)
    assert all(torch.equal(a, b) for a, b in zip(before, (neck, *stages), strict=True))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_encoder_called_from_two_threads_mixes_nothing_up(runtime: str, engines: Engines) -> None:
    network = engines(runtime, "float32")
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(1, 3, *SIZES[i % 2], generator=generator) for i in range(8)]
    alone = [network(x)[0] for x in pictures]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x: network(x)[0], pictures))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_encoder_by_torch_compile_equals_torch(
    backbone: TinyViT, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    network = TorchCompiled(backbone)
    x = torch.randn(1, 3, *SIZES[0], generator=torch.Generator().manual_seed(0))
    for threads in (1, 2):
        with threads_taken(threads):
            neck, stages = network(x)
        expected_neck, expected_stages = backbone(x)
        for got, expected in zip((neck, *stages), (expected_neck, *expected_stages), strict=True):
            assert relative_error(got, expected) < TOLERANCE["float32"]
    told = [r.getMessage() for r in caplog.records if r.name == torch_compile.__name__]
    assert told[0] == "torch.compile: compiling for inputs of 256x80, once per run"
    assert len(told) == 2  # when it begins and how long it took, of the first call alone


def test_torch_compile_compiles_once_per_size(backbone: TinyViT) -> None:
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        compiled.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    network, calls = TorchCompiled(backbone, backend=count), []
    for size in (SIZES[0], SIZES[1], SIZES[0]):
        for threads in (1, 2):
            with threads_taken(threads):
                network(torch.zeros(1, 3, *size))
                network(torch.zeros(1, *size, 3).permute(0, 3, 1, 2))
        calls.append(len(compiled))
    assert 0 < calls[0] < calls[1] == calls[2]


def test_torch_compile_that_fails_says_what_does_not(backbone: TinyViT) -> None:
    def broken(*_: object) -> None:
        raise OSError("no compiler")

    torch._dynamo.reset()
    network = TorchCompiled(backbone, backend=broken)
    with pytest.raises(ConfigError, match=r"does not work here .*no compiler.*; runtime torch do"):
        network(torch.zeros(1, 3, *SIZES[0]))


@pytest.mark.needs_weights
def test_torch_compile_is_loaded_as_asked(vit_t_weights: Path) -> None:
    config = EncoderConfig(device="cpu", dtype="float32", runtime="torch_compile", input_size=256)
    assert models.resolved(config).runtime == "torch_compile"
    encoder, _ = load_sam(config, progress=False)
    assert isinstance(encoder.backbone, TorchCompiled)
    assert not encoder.encodes_parts  # each of their sizes would be compiled
    assert encoder.encode_at_once == 1


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "precision"), KINDS)
def test_encoder_of_a_cut_down_vit_equals_torch(
    runtime: str, precision: str, tmp_path: Path
) -> None:
    needs_bfloat16(precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = _build_sam(32, 4, 2, (1, 3)).image_encoder.requires_grad_(False)
        for name, parameter in vit.named_parameters():
            if "pos" in name:
                nn.init.normal_(parameter, std=0.1)
    network = VitBackbone(vit).eval()
    write_onnx(network, tmp_path / "vit.onnx")
    engine = open_engine(runtime, tmp_path / "vit.onnx", precision)
    x = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))

    neck, stages = CompiledBackbone(engine, "test")(x)
    expected_neck, expected_stages = network(x)

    for got, expected in zip((neck, *stages), (expected_neck, *expected_stages), strict=True):
        assert relative_error(got, expected) < TOLERANCE[precision]


# Compiled shapes


class CountingEngine:
    """Notes the shapes that it is compiled for."""

    def __init__(self) -> None:
        self.compiled: list[tuple[int, ...]] = []

    def compile(self, shape: tuple[int, ...]) -> compiled.Run:
        self.compiled.append(shape)
        return lambda array: [array + sum(shape)]


def test_compiled_backbone_keeps_the_latest_shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_SHAPES_KEPT", 2)
    engine = CountingEngine()
    network = CompiledBackbone(engine, "test")
    for length in (1, 2, 1, 3, 1, 2):
        neck, stages = network(torch.ones(length))
        assert neck.tolist() == [1 + length] * length and stages == ()
    assert engine.compiled == [(1,), (2,), (3,), (2,)]


# Files


class Patches(nn.Module):
    """A backbone that converts at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 16, 16).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        neck = self.conv(x)
        return neck, (neck + 1, neck + 2)


@pytest.fixture
def patches() -> Patches:
    return Patches()


def test_converted_is_made_once_and_again_for_other_weights(patches: Patches, cache: Path) -> None:
    path = converted(patches)
    assert path == cache / f"encoder-{identity(patches)[:16]}.onnx"
    made = path.stat().st_mtime_ns
    assert converted(patches) == path
    assert path.stat().st_mtime_ns == made
    patches.conv.weight[0, 0] += 1
    other = converted(patches)
    assert other != path and other.exists() and path.exists()
    assert not list(cache.glob("*.partial*"))


def test_converted_cache_that_cannot_be_written_is_told(
    patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PERSAM_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(CheckpointError, match="PERSAM_CACHE chooses another"):
        converted(patches)


def test_identity_differs_with_the_weights_and_the_precision(patches: Patches, cache: Path) -> None:
    before = set(cache.glob("encoder-*.onnx"))
    names = [
        compile_backbone(patches, runtime, getattr(torch, precision)).identity
        for runtime, precision in KINDS
    ]
    assert len(set(cache.glob("encoder-*.onnx")) - before) == 1
    patches.conv.weight[0, 0] += 1
    names.append(compile_backbone(patches, "openvino", torch.float32).identity)
    assert len(set(names)) == len(KINDS) + 1


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_open_engine_of_a_damaged_file_names_it(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(b"\x08\x07\x12half a model")
    with pytest.raises(CheckpointError, match=r"half\.onnx"):
        open_engine(runtime, path, "float32")


def test_openvino_shape_that_the_network_does_not_take_is_an_error(
    patches: Patches, tmp_path: Path
) -> None:
    write_onnx(patches, tmp_path / "patches.onnx")
    engine = open_engine("openvino", tmp_path / "patches.onnx", "float32")
    with pytest.raises(CheckpointError, match=r"does not run at an input of \(1, 5, 32, 32\)"):
        CompiledBackbone(engine, "test")(torch.zeros(1, 5, 32, 32))


def test_openvino_precision_that_the_processor_lacks_is_an_error(
    patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compute in float32 and say nothing."""
    from openvino import CompiledModel, Type

    write_onnx(patches, tmp_path / "patches.onnx")
    engine = open_engine("openvino", tmp_path / "patches.onnx", "bfloat16")
    monkeypatch.setattr(CompiledModel, "get_property", lambda self, name: Type.f32)
    with pytest.raises(ConfigError, match="does not compute in bfloat16 on this processor"):
        CompiledBackbone(engine, "test")(torch.zeros(1, 3, 32, 32))


# The choice


TABLE = {
    ("openvino", "bfloat16"): 0.6,
    ("openvino", "float32"): 0.95,
    ("onnxruntime", "float32"): 1.2,
}


def choose(monkeypatch: pytest.MonkeyPatch, installed: set[str], **settings: str) -> str:
    monkeypatch.setattr(runtimes, "is_installed", installed.__contains__)
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runtimes, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(runtimes, "_MEASURED", TABLE)
    config = EncoderConfig(**{"device": "cpu", "dtype": "float32", **settings})
    return models.resolve(config)[2]


BOTH = {"openvino", "onnxruntime"}


@pytest.mark.parametrize(
    ("installed", "dtype", "model", "runtime"),
    [
        (BOTH, "float32", "vit_t", "torch"),
        (BOTH, "bfloat16", "vit_t", "openvino"),
        (BOTH, "float16", "vit_t", "torch"),
        (BOTH, "float32", "vit_b", "torch"),
        ({"onnxruntime"}, "float32", "vit_t", "torch"),
        (set(), "bfloat16", "vit_t", "torch"),
    ],
)
def test_choose_runtime_auto_takes_the_fastest_measured_and_installed(
    installed: set[str], dtype: str, model: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(monkeypatch, installed, dtype=dtype, model=model) == runtime


def test_choose_runtime_auto_elsewhere_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "is_installed", lambda _: True)
    monkeypatch.setattr(runtimes, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(runtimes, "_MEASURED", TABLE)
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
    cuda = torch.device("cuda")
    assert runtimes.choose_runtime(EncoderConfig(), cuda, torch.bfloat16) == "torch"
    assert runtimes.choose_runtime(EncoderConfig(), CPU, torch.bfloat16) == "openvino"
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "arm64")
    assert runtimes.choose_runtime(EncoderConfig(), CPU, torch.bfloat16) == "torch"
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runtimes, "multiplies_bfloat16", lambda: False)
    assert runtimes.choose_runtime(EncoderConfig(), CPU, torch.bfloat16) == "torch"


def test_folder_of_a_runtimes_name_is_no_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_runtime").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not runtimes.is_installed("some_runtime")
    assert runtimes.is_installed("numpy")


def test_runtime_that_auto_took_and_that_fails_leaves_it_to_torch(
    patches: Patches, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(compilation, "compile_backbone", broken)
    assert models._compiled(patches, "openvino", torch.float32, None, chosen=False) is None
    assert "torch runs instead: libopenvino.so" in caplog.text
    with pytest.raises(ImportError):
        models._compiled(patches, "openvino", torch.float32, None, chosen=True)


def test_converted_file_that_is_damaged_is_made_anew(patches: Patches, cache: Path) -> None:
    path = converted(patches)
    path.write_bytes(b"")
    backbone = compile_backbone(patches, "onnxruntime", torch.float32)
    x = torch.rand(1, 3, 1024, 1024)  # the one size of what is no TinyViT
    torch.testing.assert_close(backbone(x)[0], patches(x)[0])
    assert path.stat().st_size > 0


@pytest.mark.parametrize("runtime", sorted(BOTH))
def test_choose_runtime_that_is_not_installed_names_the_extra(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(monkeypatch, BOTH, runtime=runtime) == runtime
    with pytest.raises(ConfigError, match=rf'pip install "persam-video\[{runtime}\]"'):
        choose(monkeypatch, set(), runtime=runtime)


def test_choose_runtime_on_a_gpu_is_torch_only() -> None:
    config = EncoderConfig(runtime="openvino")
    with pytest.raises(ConfigError, match="openvino is for the CPU, the device is cuda"):
        runtimes.choose_runtime(config, torch.device("cuda"), torch.float32)


@pytest.mark.parametrize(
    ("runtime", "dtype", "legal"),
    [
        ("onnxruntime", "bfloat16", "float32"),
        ("onnxruntime", "float16", "float32"),
        ("openvino", "float16", "float32, bfloat16"),
    ],
)
def test_choose_runtime_in_a_number_format_it_lacks_is_an_error(
    runtime: str, dtype: str, legal: str
) -> None:
    with pytest.raises(ConfigError, match=f"{dtype} on a CPU; legal dtypes: {legal}$"):
        load_sam(EncoderConfig(device="cpu", runtime=runtime, dtype=dtype))


def test_resolve_onnxruntime_auto_dtype_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(runtimes, "multiplies_bfloat16", lambda: True)
    config = models.resolved(EncoderConfig(device="cpu", runtime="onnxruntime"))
    assert (config.dtype, config.runtime) == ("float32", "onnxruntime")


# With the real weights


@pytest.fixture(scope="module")
def picture() -> UInt8Array:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:180, :320]
    image = np.stack([90 + y / 3, 120 + 40 * np.sin(x / 30), 80 + x / 5], axis=2)
    image[(y - 80) ** 2 + (x - 120) ** 2 < 50**2] = (200, 40, 30)
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.needs_weights
@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("openvino", "bfloat16"),
        pytest.param("openvino", "float32", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "float32", marks=pytest.mark.slow),
    ],
)
def test_load_sam_in_each_runtime_gives_the_masks_of_torch(
    runtime: str, precision: str, picture: UInt8Array, vit_t_weights: Path
) -> None:
    needs_bfloat16(precision)
    settings = {"device": "cpu", "input_size": 256}
    torch_sam = load_sam(EncoderConfig(**settings, dtype="float32", runtime="torch"))
    sam = load_sam(EncoderConfig(**settings, dtype=precision, runtime=runtime))
    assert isinstance(torch_sam[0].backbone, TinyViT)
    assert isinstance(sam[0].backbone, CompiledBackbone)
    box = 0.8 * torch.tensor([[70.0, 30.0, 170.0, 130.0]])
    masks, necks = [], []
    for encoder, decoder in (torch_sam, sam):
        embedding = encoder.encode(picture)
        necks.append(embedding.neck)
        masks.append(decoder.decode(embedding, PromptBatch(boxes_xyxy=box)).logits[0, 0] > 0)
    assert relative_error(necks[1], necks[0]) < (1e-4 if precision == "float32" else 0.05)
    intersection, union = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert masks[0].sum() > 100
    assert intersection / union > (0.999 if precision == "float32" else 0.98)


# The tool


@pytest.mark.slow
@pytest.mark.needs_weights
def test_runtimes_tool_writes_a_table_with_ratios_to_torch(
    picture: UInt8Array, tmp_path: Path, vit_t_weights: Path
) -> None:
    Image.fromarray(picture).save(tmp_path / "frame.png")
    tool = [sys.executable, str(Path(__file__).parents[1] / "tools/runtimes.py")]
    command = [*tool, str(tmp_path / "frame.png"), "-o", str(tmp_path / "out"), "--rounds", "2"]
    subprocess.run([*command, "--only", "openvino float32"], capture_output=True, check=True)

    table = (tmp_path / "out/runtimes.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "torch float32",
        "openvino float32",
    ]
    assert len({line.count("|") for line in table}) == 1
    kinds = json.loads((tmp_path / "out/runtimes.json").read_text())["kinds"]
    assert kinds["torch float32"]["error"] == 0
    assert 0 < kinds["openvino float32"]["error"] < 1e-4
    assert {len(kind["wall_ms"]) for kind in kinds.values()} == {2}
    wrong = subprocess.run(
        [*command, "--only", "magic"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "--only: magic is none of torch float32" in wrong.stderr
