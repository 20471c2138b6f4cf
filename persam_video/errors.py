"""Every error this package raises on purpose.

    PersamError
    ├── SourceError(OSError)       frames cannot be read
    ├── SinkError(OSError)         results cannot be written
    ├── CheckpointError(OSError)   weights are missing, damaged or of another architecture
    ├── DatasetError(OSError)      a DAVIS or PerSeg folder, or predictions for it, are incomplete
    ├── PromptError(ValueError)    a mask, point, box or object id makes no sense
    └── ConfigError(ValueError)    a setting is unknown or out of range

A message says what was wrong, what was got and what is legal. ``path`` and ``frame_index`` carry
the place where there is one, and are part of the printed message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PersamError(Exception):
    """Base of every deliberate error of this package.

    Args:
        message: What was wrong, what was got, what is legal.
        path: The file, folder or address concerned, if there is one.
        frame_index: The 0-based frame concerned, if there is one.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, frame_index: int | None = None
    ) -> None:
        self.message = message
        self.path = None if path is None else str(path)
        self.frame_index = frame_index
        super().__init__(message)

    def __str__(self) -> str:
        place = [] if self.path is None or self.path in self.message else [self.path]
        if self.frame_index is not None:
            place.append(f"frame {self.frame_index}")
        return f"{', '.join(place)}: {self.message}" if place else self.message


class SourceError(PersamError, OSError):
    """Frames cannot be opened, decoded or found."""


class SinkError(PersamError, OSError):
    """Results cannot be written; nothing half-written is left."""


class CheckpointError(PersamError, OSError):
    """Weights are missing, damaged, or belong to another architecture."""


class DatasetError(PersamError, OSError):
    """A dataset folder, or a folder of predictions for it, is incomplete or malformed."""


class PromptError(PersamError, ValueError):
    """A mask, point, box or object id makes no sense for the frame it is meant for."""


class ConfigError(PersamError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


@contextmanager
def telling_frame(index: int, doing: str) -> Iterator[None]:
    """An error in the block says which frame it was, and what was done with it."""
    try:
        yield
    except PersamError as error:
        error.frame_index = index if error.frame_index is None else error.frame_index
        raise
    except Exception as error:
        error.add_note(f"while {doing} frame {index} of the source")
        raise
