"""Fetching one pinned file over HTTP, resumably, and checking that it is the right one."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from persam_video.errors import CheckpointError
from persam_video.sam.registry import HttpSource, PinnedFile

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0  # for connecting and for every single read
_CHUNK = 1 << 18
_MAX_RESUMES = 5


class _ConnectionLostError(Exception):
    """The connection broke; what came so far is kept in the partial file."""


def download(source: HttpSource, folder: Path, *, progress: bool = True) -> Path:
    """Fetch a file into ``folder``, going on where an earlier attempt stopped.

    Bytes collect in ``<name>.part``; only a file of the right sha256 gets its final name. The
    partial file survives a broken connection and Ctrl-C, and is removed when its hash is wrong.

    Args:
        source: Address and pinned file.
        folder: An existing folder.
        progress: Show a bar on stderr if that is a terminal.

    Raises:
        CheckpointError: The server cannot be reached, refuses, offers another file, or the folder
            cannot be written.
    """
    target = folder / source.file.name
    if target.exists() and file_problem(target, source.file) is None:
        return target
    part = target.with_name(f"{target.name}.part")
    for resumes in range(_MAX_RESUMES + 1):
        before = _size(part)
        try:
            _transfer(source, part, progress)
            break
        except _ConnectionLostError as error:
            if _size(part) <= before or resumes == _MAX_RESUMES:
                kept = f"; {_size(part):,} bytes are kept to go on from" if part.exists() else ""
                raise CheckpointError(f"{error}{kept}", path=source.url) from error
            logger.info("%s: %s; going on", source.url, error)
    if problem := file_problem(part, source.file):
        part.unlink()
        raise CheckpointError(f"{problem}; the download was thrown away", path=source.url)
    part.replace(target)
    return target


def file_problem(path: Path, expected: PinnedFile) -> str | None:
    """What tells a file from the pinned one, with numbers; None when it is the right one.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        size = path.stat().st_size
        if expected.size is not None and size < expected.size:
            return f"truncated: {size:,} of {expected.size:,} bytes"
        if expected.size is not None and size > expected.size:
            return f"wrong size: {size:,} bytes, expected {expected.size:,}"
        digest = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=path) from error
    if digest != expected.sha256:
        return f"wrong sha256: got {digest}, expected {expected.sha256} ({size:,} bytes)"
    return None


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's contents."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(source: HttpSource, part: Path, progress: bool) -> None:
    """Append to ``part`` what it lacks.

    Raises:
        _ConnectionLostError: The connection broke or timed out.
        CheckpointError: The server refuses or offers a file of another size, or ``part`` cannot be
            written.
    """
    offset = _size(part)
    if source.file.size is not None and offset >= source.file.size:
        if offset == source.file.size:
            return
        offset = _restart(part)
    request = urllib.request.Request(source.url, headers={"Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            _receive(response, source, part, offset, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # nothing is left to send; the hash tells if that is right
            return
        raise CheckpointError(f"HTTP {error.code} {error.reason}", path=source.url) from error
    except CheckpointError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _ConnectionLostError(f"the connection failed: {reason}") from error


def _restart(part: Path) -> int:
    part.unlink(missing_ok=True)
    return 0


def _receive(response: Any, source: HttpSource, part: Path, offset: int, progress: bool) -> None:
    if offset and not _continues(response, offset):
        offset = _restart(part)  # the server sends the file from its beginning
    total = None if response.length is None else offset + int(response.length)
    expected = source.file.size
    if total is not None and expected is not None and total != expected:
        raise CheckpointError(
            f"the server offers {total:,} bytes, expected {expected:,}", path=source.url
        )
    with (
        _open_part(part) as out,
        tqdm(
            desc=source.file.name,
            initial=offset,
            total=total or expected,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None if progress else True,  # None: only on a terminal
        ) as bar,
    ):
        while chunk := response.read(_CHUNK):
            _write(out, chunk, part)
            offset += len(chunk)
            bar.update(len(chunk))
    if total is not None and offset < total:
        raise _ConnectionLostError(f"the connection ended after {offset:,} of {total:,} bytes")


def _continues(response: Any, offset: int) -> bool:
    """Whether the answer begins at ``offset``; a server may ignore the Range we asked for."""
    content_range = str(response.headers.get("Content-Range", ""))
    return response.status == 206 and content_range.startswith(f"bytes {offset}-")


def _open_part(part: Path) -> IO[bytes]:
    try:
        return part.open("ab")
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror}", path=part) from error


def _write(out: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        out.write(chunk)
        out.flush()  # a full disk shows here, not when the file is closed
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror}", path=part) from error
