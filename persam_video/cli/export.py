"""``persam-video export``: the image encoder as files for onnxruntime or OpenVINO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from persam_video.cli.settings import HelpFormatter, add_settings, resolve_config
from persam_video.cli.track import SOURCE_HELP
from persam_video.config import Config, EncoderConfig
from persam_video.errors import ConfigError

if TYPE_CHECKING:
    from persam_video.sam.image_encoder import SamImageEncoder
    from persam_video.types import Float32Array

_EXAMPLES = """\
The folder gets the image encoder, which is what takes the time, and export.json: model, weights,
precision, input, versions. The mask decoder stays on torch. Tracking takes the folder with
--exported DIR. No export is needed for --runtime openvino or onnxruntime in float32 or bfloat16:
the cache has those files.

int8 measures the range of every activation on frames of your own (--calibrate) and rounds
weights and activations to 8 bits. It loses accuracy: hold it against float32 on clips
with ground truth (tools/runtimes.py) before you use it. For OpenVINO it runs at the size of
those frames only: from a mask, without a click, photo, close-up, persam or --padding.

examples:
  persam-video export --format openvino -o vit_t_openvino
  persam-video export --format onnx --precision float32 -o vit_t_onnx
  persam-video export --format openvino --precision int8 --calibrate clip.mp4 -o vit_t_int8
  persam-video track clip.mp4 --mask first.png --exported vit_t_int8 -o out"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        allow_abbrev=False,
        usage="persam-video export --format onnx|openvino -o DIR [options]",
        help="the image encoder as files for onnxruntime or OpenVINO, int8 too",
        description="Write the image encoder as files for onnxruntime or OpenVINO.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for the files"
    )
    parser.add_argument(
        "--format", required=True, choices=("onnx", "openvino"), help="what the files are for"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="what it computes in; onnx has no bfloat16 (default: float32)",
    )
    parser.add_argument("--calibrate", metavar="SOURCE", help=f"int8: frames; {SOURCE_HELP}")
    parser.add_argument(
        "--calibration-frames",
        type=int,
        default=16,
        metavar="N",
        help="int8: so many, spread over the source where its length is known (default: 16)",
    )
    add_settings(parser, ("encoder",), only=("model", "checkpoint", "input_size"))
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run the command."""
    config = _network_settings(resolve_config(args))
    if (args.precision == "int8") != (args.calibrate is not None):
        raise ConfigError("--precision int8 and --calibrate SOURCE need each other, got only one")
    if args.calibration_frames < 1:
        raise ConfigError(f"--calibration-frames must be at least 1, got {args.calibration_frames}")

    from persam_video.sam.export import check_folder, check_precision, write_export
    from persam_video.sam.models import load_sam

    check_precision(args.format, args.precision)  # before the work
    check_folder(args.output)
    encoder, _ = load_sam(config, progress=not args.quiet)
    frames = _calibration(args.calibrate, args.calibration_frames, encoder)
    write_export(
        args.output,
        config.model,
        encoder.input_size,
        encoder.torch_backbone,
        args.format,
        args.precision,
        weights_source=_weights_source(config),
        calibration=frames,
        calibration_source=f"{len(frames)} frames of {args.calibrate}",
    )
    if not args.quiet:
        print(args.output)
    return 0


def _network_settings(config: Config) -> EncoderConfig:
    """The part of the settings that an export depends on; where and how it runs does not."""
    chosen = config.encoder
    return EncoderConfig(
        model=chosen.model,
        checkpoint=chosen.checkpoint,
        input_size=chosen.input_size,
        device="cpu",
        dtype="float32",
        runtime="torch",
    )


def _weights_source(config: EncoderConfig) -> str:
    from persam_video.sam import checkpoints

    if config.checkpoint is not None:
        return Path(config.checkpoint).name
    statuses = checkpoints.list_weights()
    return next(status.source for status in statuses if status.model.name == config.model)


def _calibration(spec: str | None, count: int, encoder: SamImageEncoder) -> list[Float32Array]:
    """Inputs (1, 3, H, W) of the encoder, made of ``count`` frames of a source."""
    if spec is None:
        return []
    from persam_video.geometry import fit_longest_side
    from persam_video.sources import open_source

    inputs: list[Float32Array] = []
    with open_source(spec) as source:
        stride = max(1, (source.info.frame_count or 0) // count)
        for number, frame in enumerate(source):
            if len(inputs) == count:
                break
            if number % stride == 0:
                input_hw = fit_longest_side(frame.size_hw, encoder.input_size)
                inputs.append(encoder.preprocess(frame.image_rgb, input_hw).contiguous().numpy())
    return inputs
