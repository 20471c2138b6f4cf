"""Every setting once: its default, its meaning, its legal values.

One flat frozen dataclass per stage. A value comes from the default, then the TOML file, then the
flag; ``Config.merged`` applies one such layer. The command line makes its flags from these fields,
so help, defaults and ranges cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persam_video.errors import ConfigError


def setting(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field that knows its help text, its choices, and its closed range."""
    metadata = {"help": help_text, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=metadata)


def value_type(annotation: Any) -> tuple[type, bool]:
    """``float | None`` -> (float, True); ``int`` -> (int, False)."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return next(a for a in arguments if a is not type(None)), True
    return annotation, False


class _Checked:
    """Checks every field of a settings dataclass against its type, choices and range."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value, (kind, optional) = getattr(self, f.name), value_type(hints[f.name])
            if value is None and optional:
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, value := float(value))
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConfigError(f"{f.name} must be {kind.__name__}, got {value!r}")
            choices, low, high = (f.metadata[key] for key in ("choices", "low", "high"))
            if choices is not None and value not in choices:
                raise ConfigError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
            if (low is not None and value < low) or (high is not None and value > high):
                legal = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
                raise ConfigError(f"{f.name} must be in {legal}, got {value!r}")


@dataclass(frozen=True, slots=True)
class SourceConfig(_Checked):
    """Which frames are read, and how large."""

    backend: str = setting(
        "pyav",
        "decoder of videos; cuda = PyAV with the decoders of an NVIDIA GPU, decord for files only; "
        "never swapped silently",
        choices=("pyav", "cuda", "decord"),
    )
    start: int = setting(0, "index of the first frame to read", low=0)
    end: int | None = setting(None, "index of the first frame not to read", low=1)
    stride: int = setting(1, "read every n-th frame", low=1)
    max_size: int | None = setting(
        None, "shrink frames so that the longer side has at most this many pixels", low=16
    )


@dataclass(frozen=True, slots=True)
class EncoderConfig(_Checked):
    """The frozen network and where it runs."""

    model: str = setting(
        "vit_t",
        "backbone of the Segment Anything Model",
        choices=("vit_t", "vit_b", "vit_l", "vit_h"),
    )
    checkpoint: str | None = setting(None, "local weights file instead of the cached download")
    device: str = setting("auto", "where the network runs", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = setting(
        "auto",
        "number format of the network; auto = bfloat16 on CUDA and on CPUs that multiply it (AMX, "
        "AVX512-BF16), float32 elsewhere; with float16 the mask decoder is in float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    runtime: str = setting(
        "auto",
        "what runs the image encoder; onnxruntime and openvino run on a CPU, torch_compile "
        "(torch.compile) warms up with each new size of frame (vit_t on a CPU: up to a minute); "
        "auto = the fastest that is installed by a measured table on a CPU, torch on any other "
        "device",
        choices=("auto", "torch", "torch_compile", "onnxruntime", "openvino"),
    )
    exported: str | None = setting(
        None, "folder made by persam-video export; it says runtime and number format too"
    )
    input_size: int | None = setting(
        None,
        "side of the network's square input in pixels, a multiple of 64; none = 1280 for vit_t, "
        "1024 for the others; photos, persam and persam_f have at most SAM's own 1024, clicks and "
        "boxes 1536 with vit_t",
        low=256,
        high=2048,
    )
    padding: bool = setting(
        False,
        "encode and decode the padding of a frame that is not square too, as SAM does, which takes "
        "up to twice the time; clicks, photos, persam, persam_f and all models but vit_t always do",
    )

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.input_size is not None and self.input_size % 64:
            raise ConfigError(f"input_size must be a multiple of 64, got {self.input_size}")


@dataclass(frozen=True, slots=True)
class PersonalizeConfig(_Checked):
    """PerSAM's parts, each switchable (Zhang et al., 2023, sections 3.2 and 3.3)."""

    target: str = setting(
        "mean_max", "target embedding from the reference's features", choices=("mean", "mean_max")
    )
    attention: float = setting(
        3.0, "strength of target-guided attention in the first decoder pass, 0 = off", low=0.0
    )
    semantic: bool = setting(True, "target-semantic prompting in the first decoder pass")
    positive_points: int = setting(2, "points on the likeliest cells", low=1, high=16)
    negative_points: int = setting(1, "points on the least likely cells", low=0, high=16)
    point_separation: float = setting(
        4.0, "smallest distance between points of one kind, in grid cells", low=0.0, high=64.0
    )
    passes: int = setting(3, "decoder passes of the cascaded refinement", low=1, high=3)


@dataclass(frozen=True, slots=True)
class TrackConfig(_Checked):
    """How the object is followed through time."""

    method: str = setting("track", "how masks are found", choices=("persam", "persam_f", "track"))
    box_margin: float = setting(
        10.0, "persam, persam_f: growth of the previous mask's box, in source pixels", low=0.0
    )
    reference_share: float = setting(
        0.6, "track: weight of the reference against the running memory", low=0.0, high=1.0
    )
    decay: float = setting(
        0.92, "track: what is left of the running memory after a lesson", low=0.0, high=0.999
    )
    ridge: float = setting(3e-3, "track: regulariser of the target model", low=1e-8, high=10.0)
    memory_share: float = setting(
        0.5, "track: weight of the appearance memory against the target model", low=0.0, high=1.0
    )
    background: float = setting(
        2.0,
        "track: logits for a place that has changed against the still background, and against one "
        "that looks as it did, where besides, whatever the number, no lost object is searched and "
        "parts of masks are dropped; 0 = all of it off",
        low=0.0,
        high=8.0,
    )
    background_size: int = setting(
        512,
        "track: longer side in pixels at which frames are compared with the background",
        low=128,
        high=1024,
    )
    grid_stride: int = setting(
        4,
        "track: input pixels per cell of the prior's grid, 4 or 8; 8 loses thin parts and is "
        "faster; vit_b, vit_l and vit_h, whose maps are coarser, have 8 in any case",
        low=4,
        high=8,
    )
    region_padding: int = setting(
        9,
        "track: how far around the previous mask the object is searched, in 128ths of the input's "
        "side",
        low=1,
        high=128,
    )
    components: int = setting(
        256,
        "track: principal components of the encoder's maps that a cell is described by",
        low=8,
        high=1024,
    )
    crop_padding: int = setting(
        24,
        "track: how far around the objects' expected places a frame is encoded, in 128ths of the "
        "input's side; 0 = whole frames, which a GPU of NVIDIA's takes in any case",
        low=0,
        high=128,
    )
    gain: float = setting(4.0, "track: logits per unit of the prior's score", low=0.1)
    logit_limit: float = setting(4.0, "track: limit of the prior's logits", low=0.5)
    sam_logit_limit: float = setting(8.0, "track: limit of the SAM decoder's logits", low=0.5)
    agreement_low: float = setting(
        0.55, "track: soft IoU of SAM and the prior at which SAM gets no say", low=0.0, high=1.0
    )
    agreement_slope: float = setting(
        2.0, "track: SAM's share gained per unit of soft IoU above that", low=0.0, high=10.0
    )
    close_up: bool = setting(
        False,
        "track: encode the window around each object as well that is at most three eighths of the "
        "frame long; one more encoder run per frame and object",
    )
    edge_passes: int = setting(
        2,
        "track: how often a guided filter draws the masks' outlines to the edges of the picture; "
        "0 = outlines as the network has them",
        low=0,
        high=8,
    )
    keyframe_interval: int = setting(
        1,
        "frames from one keyframe to the next; only these are tracked, and those between, whose "
        "masks follow the optical flow from both, come out with the next one; 1 = all are tracked",
        low=1,
        high=8,
    )
    look_back: int = setting(
        0,
        "most frames that are held back while an object is lost, or a mask for a later frame is to "
        "come, and then searched from there backwards; 0 = none",
        low=0,
        high=256,
    )
    uncertain_below: float = setting(
        0.5, "score under which a mask is uncertain", low=0.0, high=1.0
    )
    lost_below: float = setting(0.2, "score under which the object is lost", low=0.0, high=1.0)
    found_above: float = setting(
        0.45,
        "score that it takes to find an object again, or to let a mask jump, where it was neither "
        "expected nor seen last",
        low=0.0,
        high=1.0,
    )

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.grid_stride not in (4, 8):
            raise ConfigError(f"grid_stride must be 4 or 8, got {self.grid_stride}")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a run, one section per stage; the sections of the TOML file."""

    source: SourceConfig = field(default_factory=SourceConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    personalize: PersonalizeConfig = field(default_factory=PersonalizeConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def merged(self, layer: Mapping[str, Mapping[str, Any]], origin: str) -> Config:
        """This configuration with ``layer[section][key]`` on top.

        Args:
            layer: Section name -> key -> value, as a TOML file holds them.
            origin: Name of the layer for error messages, e.g. the file's path.

        Raises:
            ConfigError: A section or key is unknown (all legal ones are named), or a value is
                illegal.
        """
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, values in layer.items():
            if name not in sections:
                raise ConfigError(
                    f"{origin}: unknown section [{name}]; legal: {', '.join(sections)}"
                )
            if not isinstance(values, Mapping):
                raise ConfigError(f"{origin}: {name} must be a section [{name}], got {values!r}")
            legal = [f.name for f in dataclasses.fields(sections[name])]
            if unknown := [key for key in values if key not in legal]:
                raise ConfigError(
                    f"{origin}: unknown key {', '.join(unknown)} in [{name}]; "
                    f"legal: {', '.join(legal)}"
                )
            try:
                sections[name] = dataclasses.replace(sections[name], **values)
            except ConfigError as error:
                raise ConfigError(f"{origin}: [{name}] {error.message}") from None
        return Config(**sections)

    def to_toml(self) -> str:
        """The whole configuration as TOML text that ``load_config`` reads back."""
        lines = []
        for section in dataclasses.fields(self):
            lines.append(f"[{section.name}]")
            values = dataclasses.asdict(getattr(self, section.name))
            lines += [f"{k} = {_toml_value(v)}" for k, v in values.items() if v is not None]
            lines.append("")
        return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def load_config(path: Path, base: Config | None = None) -> Config:
    """Read a TOML file on top of ``base`` (default: the defaults).

    Raises:
        ConfigError: The file is missing, is no TOML, or holds an unknown or illegal setting.
    """
    try:
        layer = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", path=path) from error
    return (base or Config()).merged(layer, str(path))
