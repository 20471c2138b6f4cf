"""Follow objects through a video from one mask, click or photo, without training.

Everything public is here; ``README.md`` documents it. Names that need torch or a video library are
imported when they are first used, so that ``import persam_video`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from persam_video.config import (
    Config,
    EncoderConfig,
    PersonalizeConfig,
    SourceConfig,
    TrackConfig,
    load_config,
)
from persam_video.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    PersamError,
    PromptError,
    SinkError,
    SourceError,
)
from persam_video.types import (
    Embedding,
    Frame,
    ObjectState,
    Prompt,
    Reference,
    TrackResult,
    VideoInfo,
)

if TYPE_CHECKING:
    from persam_video.batch import run_davis
    from persam_video.evaluation.davis import evaluate
    from persam_video.label_maps import read_label_map, write_label_map
    from persam_video.pipeline import run, track
    from persam_video.references.masks import read_mask_file, read_masks
    from persam_video.references.prompts import parse_prompts
    from persam_video.sam.image_encoder import Encoder
    from persam_video.sam.models import load_sam
    from persam_video.sinks import (
        ContactSheetSink,
        CutoutPngSink,
        ObjectPngSink,
        OverlayVideoSink,
        PalettePngSink,
        RleJsonSink,
        Sink,
        draw_overlay,
    )
    from persam_video.sources import Source, open_source
    from persam_video.tracking.tracker import Tracker
    from persam_video.writing import RunSummary, write_results

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "ContactSheetSink",
    "CutoutPngSink",
    "DatasetError",
    "Embedding",
    "Encoder",
    "EncoderConfig",
    "Frame",
    "ObjectPngSink",
    "ObjectState",
    "OverlayVideoSink",
    "PalettePngSink",
    "PersamError",
    "PersonalizeConfig",
    "Prompt",
    "PromptError",
    "Reference",
    "RleJsonSink",
    "RunSummary",
    "Sink",
    "SinkError",
    "Source",
    "SourceConfig",
    "SourceError",
    "TrackConfig",
    "TrackResult",
    "Tracker",
    "VideoInfo",
    "draw_overlay",
    "evaluate",
    "load_config",
    "load_sam",
    "open_source",
    "parse_prompts",
    "read_label_map",
    "read_mask_file",
    "read_masks",
    "run",
    "run_davis",
    "track",
    "write_label_map",
    "write_results",
]

_LATE = {
    "persam_video.batch": ("run_davis",),
    "persam_video.evaluation.davis": ("evaluate",),
    "persam_video.label_maps": ("read_label_map", "write_label_map"),
    "persam_video.pipeline": ("run", "track"),
    "persam_video.references.masks": ("read_mask_file", "read_masks"),
    "persam_video.references.prompts": ("parse_prompts",),
    "persam_video.sam.image_encoder": ("Encoder",),
    "persam_video.sam.models": ("load_sam",),
    "persam_video.sinks": (
        "ContactSheetSink",
        "CutoutPngSink",
        "ObjectPngSink",
        "OverlayVideoSink",
        "PalettePngSink",
        "RleJsonSink",
        "Sink",
        "draw_overlay",
    ),
    "persam_video.sources": ("Source", "open_source"),
    "persam_video.tracking.tracker": ("Tracker",),
    "persam_video.writing": ("RunSummary", "write_results"),
}
"""Module -> its public names that are imported on first use."""


def __getattr__(name: str) -> Any:
    for module, names in _LATE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
