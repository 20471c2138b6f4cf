"""What is asked of the machine."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from persam_video.sam import machine
from persam_video.sam.machine import give_back_memory

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_free_memory_goes_back_to_the_system() -> None:
    # Pieces too small to be asked of the system one by one, and some left in between and on top.
    pieces = [np.ones(64 << 10, np.uint8) for _ in range(3200)]
    kept = pieces[::100]
    del pieces
    before = resident()
    give_back_memory()
    assert before - resident() > 100 * MIB
    assert all(piece.all() for piece in kept)


@pytest.mark.parametrize("error", [AttributeError("malloc_trim"), OSError("no such library")])
def test_without_glibc_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def without(name: str | None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", without)
    machine._malloc_trim.cache_clear()
    try:
        give_back_memory()
        assert machine._malloc_trim() is None
    finally:
        machine._malloc_trim.cache_clear()
