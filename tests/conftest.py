"""What tests share: the data they may need, and what becomes of them when it is not there.

A test marked ``needs_X`` is skipped when X is missing, unless PERSAM_REQUIRE (a comma list such as
``weights,davis,browser``) names X: then it fails.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persam_video.errors import CheckpointError
from persam_video.sam import checkpoints

PROJECT_ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = Path(os.environ.get("PERSAM_DATA") or PROJECT_ROOT / "../shared").resolve()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")


@functools.cache
def _missing_weights() -> str | None:
    try:
        checkpoints.get("vit_t", progress=False)
    except CheckpointError as error:
        return str(error)
    return None


def _missing_davis() -> str | None:
    folder = DATA_ROOT / "davis-dev"
    return None if folder.is_dir() else f"no folder {folder} (PERSAM_DATA chooses its parent)"


def _missing_browser() -> str | None:
    found = any(shutil.which(name) for name in BROWSERS)
    return None if found else f"none of {', '.join(BROWSERS)} is on PATH"


def _missing_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


NEEDS: dict[str, Callable[[], str | None]] = {
    "weights": _missing_weights,
    "davis": _missing_davis,
    "browser": _missing_browser,
    "cuda": _missing_cuda,
}


def _required() -> set[str]:
    names = (name.strip() for name in os.environ.get("PERSAM_REQUIRE", "").split(","))
    return {name for name in names if name}


def _need(what: str) -> None:
    """Skip or fail the running test unless ``what`` is there."""
    reason = NEEDS[what]()
    if reason is None:
        return
    if what in _required():
        pytest.fail(f"PERSAM_REQUIRE names {what}, but: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    if unknown := _required() - NEEDS.keys():
        raise pytest.UsageError(
            f"PERSAM_REQUIRE names {', '.join(sorted(unknown))}; legal: {', '.join(NEEDS)}"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for what in NEEDS:
        if item.get_closest_marker(f"needs_{what}"):
            _need(what)


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def davis_root() -> Path:
    """The DAVIS-shaped folder of development clips; for tests marked ``needs_davis``."""
    _need("davis")
    return DATA_ROOT / "davis-dev"


@pytest.fixture(scope="session")
def vit_t_weights() -> Path:
    """Ready weights of ``vit_t``, fetched if need be; for tests marked ``needs_weights``."""
    _need("weights")
    return checkpoints.path("vit_t")
