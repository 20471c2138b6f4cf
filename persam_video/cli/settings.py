"""Flags made from the settings' dataclasses, and the layers default < file < flag."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persam_video.config import Config, load_config, value_type
from persam_video.errors import SinkError

ALL_SECTIONS = ("source", "encoder", "personalize", "track")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; flags get a wide column."""

    def __init__(self, prog: str) -> None:
        """Lay out help for ``prog``."""
        super().__init__(prog, max_help_position=32, width=100)


def add_settings(
    parser: argparse.ArgumentParser,
    sections: Sequence[str] = ALL_SECTIONS,
    only: Sequence[str] | None = None,
) -> None:
    """Add ``--config`` and one flag per field of the named sections of ``Config``.

    Args:
        parser: Gets them.
        sections: Names of sections.
        only: Names of fields; the others get no flag.
    """
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="settings file with sections "
        f"{', '.join(f'[{name}]' for name in sections)}; flags win over it, it wins over defaults",
    )
    for name in sections:
        section = getattr(Config(), name)
        title = f"settings of [{name}]"
        group = parser.add_argument_group(title, (type(section).__doc__ or "").splitlines()[0])
        hints = typing.get_type_hints(type(section))
        for field in dataclasses.fields(section):
            if only is not None and field.name not in only:
                continue
            _add_flag(group, name, field, hints[field.name])


def _add_flag(
    group: argparse._ArgumentGroup, section: str, field: dataclasses.Field[Any], hint: Any
) -> None:
    kind, optional = value_type(hint)
    options: dict[str, Any] = {
        "dest": f"{section}.{field.name}",
        "default": argparse.SUPPRESS,  # a flag that is not given must not hide the file's value
        "help": f"{field.metadata['help']} ({_facts(field, optional)})".replace("%", "%%"),
    }
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = _reader(kind, optional)
        options["choices"] = field.metadata["choices"]
        if options["choices"] is None:
            options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kind]
    group.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _facts(field: dataclasses.Field[Any], optional: bool) -> str:
    """Default and legal range in words."""
    default = field.default
    shown = "none" if default is None else default
    if isinstance(default, bool):
        shown = "on" if default else "off"
    low, high = field.metadata["low"], field.metadata["high"]
    facts = [f"default: {shown}"]
    if low is not None and high is not None:
        facts.append(f"{low:g} to {high:g}")
    elif low is not None:
        facts.append(f"at least {low:g}")
    elif high is not None:
        facts.append(f"at most {high:g}")
    if optional and default is not None:
        facts.append("or none")
    return "; ".join(facts)


def _reader(kind: type, optional: bool) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if optional and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse: "invalid int value"
    return read


def resolve_config(args: argparse.Namespace) -> Config:
    """Defaults, then the file of ``--config``, then the flags that were given.

    Raises:
        ConfigError: The file is missing or no TOML, or a key or value is illegal.
    """
    config = Config() if args.config is None else load_config(args.config)
    layer: dict[str, dict[str, Any]] = {}
    for dest, value in vars(args).items():
        section, dot, key = dest.partition(".")
        if dot:
            layer.setdefault(section, {})[key] = value
    return config.merged(layer, "command line")


def save_config(folder: Path, config: Config, overwrite: bool, note: str = "") -> Path:
    """Write the resolved configuration beside the outputs as ``config.toml``.

    Args:
        folder: Created if missing.
        config: What the run uses.
        overwrite: Replace a file with other settings.
        note: Line of comment for what is no setting but makes results differ.

    Raises:
        SinkError: Other settings are there already, or the folder cannot be written.
    """
    from persam_video.files import atomic_path
    from persam_video.sinks.base import sink_errors

    path = folder / "config.toml"
    text = (f"# {note}\n\n" if note else "") + config.to_toml()
    with sink_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and _differs(path, text):
            raise SinkError(
                "results with other settings are there; choose another folder or --overwrite",
                path=path,
            )
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def _differs(path: Path, text: str) -> bool:
    """Whether other settings are there with results beside them; alone they are of a failed run."""
    if not path.exists() or path.read_text(encoding="utf-8") == text:
        return False
    return any(found.is_file() for found in path.parent.rglob("*") if found != path)
