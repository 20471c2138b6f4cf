"""Writes that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    The temporary name keeps the suffix (encoders choose the format by it) and starts with a dot.
    When the block raises, KeyboardInterrupt included, the temporary file is removed and ``path``
    stays as it was.

    Raises:
        OSError: The folder cannot be written; callers turn it into their own error.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
