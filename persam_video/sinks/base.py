"""What every sink is, the life cycle they share, and several sinks as one."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2

from persam_video.errors import PersamError, SinkError
from persam_video.types import Frame, TrackResult


class Sink(Protocol):
    """Takes frames with their masks, in order; a context manager.

    Leaving the ``with`` block closes the sink whatever the reason, Ctrl-C included: the frames
    taken so far become whole files. After a SinkError nothing half-written is left.
    """

    def write(self, frame: Frame, result: TrackResult) -> None:
        """Take one frame and its masks.

        Raises:
            SinkError: The output cannot be written, the label map has another size than the frame,
                or the sink is closed.
        """

    def close(self) -> None:
        """Finish the output; a second call does nothing. Raises SinkError."""

    def __enter__(self) -> Self:
        """The sink itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sink."""


class SinkLifeCycle(ABC):
    """The part that all sinks share: open, written, failed or closed, and errors by name.

    Args:
        path: The file or folder that is written, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closed = False

    def write(self, frame: Frame, result: TrackResult) -> None:
        """Take one frame and its masks; see ``Sink``."""
        if self._closed:
            raise SinkError("the sink is closed and takes no more frames", path=self.path)
        if result.labels.shape != frame.size_hw:
            raise SinkError(
                f"the label map is {_size_text(result.labels.shape)}, its frame "
                f"{_size_text(frame.size_hw)}; both must be equal",
                path=self.path,
                frame_index=frame.index,
            )
        try:
            with sink_errors(self.path, frame.index):
                self._write(frame, result)
        except Exception as error:
            # Not on Ctrl-C: then close() still finishes what was written before.
            self._closed = True
            self._discard(error)
            raise

    def close(self) -> None:
        """Finish the output; see ``Sink``."""
        if self._closed:
            return
        self._closed = True
        try:
            with sink_errors(self.path):
                self._finish()
        except BaseException as error:
            self._discard(error)
            raise

    def __enter__(self) -> Self:
        """The sink itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sink."""
        self.close()

    @abstractmethod
    def _write(self, frame: Frame, result: TrackResult) -> None:
        """Take one frame whose label map has the right size."""

    def _finish(self) -> None:
        """Complete the output."""
        return

    def _discard(self, error: BaseException) -> None:
        """Remove what is incomplete because of ``error``; must not raise."""
        return


class MultiSink:
    """Several sinks as one; every one of them is closed even when another fails."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, frame: Frame, result: TrackResult) -> None:
        """Hand the frame to each sink in turn; the first SinkError ends the round."""
        for sink in self._sinks:
            sink.write(frame, result)

    def close(self) -> None:
        """Close every sink, then raise the first error; the others are attached as notes."""
        errors: list[BaseException] = []
        for sink in self._sinks:
            try:
                sink.close()
            except BaseException as error:  # Ctrl-C too: the other sinks must still finish
                errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"closing another output failed too: {other}")
            raise errors[0]

    def __enter__(self) -> Self:
        """The sink itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every sink."""
        self.close()


@contextmanager
def sink_errors(path: Path, frame_index: int | None = None) -> Iterator[None]:
    """Turn errors of the system, PyAV and OpenCV inside the block into SinkError."""
    try:
        yield
    except PersamError:
        raise
    except (OSError, av.error.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise SinkError(f"cannot write: {reason}", path=path, frame_index=frame_index) from error
    except cv2.error as error:
        message = f"OpenCV cannot draw this frame: {error}"
        raise SinkError(message, path=path, frame_index=frame_index) from error


def claim_file(path: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Check before the first frame that ``path`` can be written; its folder is created.

    Raises:
        SinkError: The suffix is not one of ``suffixes``, the file exists and ``overwrite`` is
            False, it is a folder, or its folder cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise SinkError(
            f"the name must end in {' or '.join(suffixes)}, got {path.suffix or 'no ending'!r}",
            path=path,
        )
    if path.is_dir():
        raise SinkError("a file is to be written here, but this is a folder", path=path)
    if path.exists() and not overwrite:
        raise SinkError("it exists already; choose another name or allow overwriting", path=path)
    _claim_folder(path.parent, path)


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Check before the first frame that files can be written into ``folder``; it is created.

    With ``overwrite``, files of equal names are replaced later; no other file is ever touched.

    Raises:
        SinkError: The folder holds files (hidden ones do not count) and ``overwrite`` is False,
            it is a file, or it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise SinkError("a folder is to be written here, but this is a file", path=folder)
    if folder.is_dir() and not overwrite:
        with sink_errors(folder):
            found = next((p.name for p in folder.iterdir() if not p.name.startswith(".")), None)
        if found is not None:
            raise SinkError(
                f"the folder is not empty, it holds {found!r}; choose another folder or allow "
                "overwriting",
                path=folder,
            )
    _claim_folder(folder, folder)


def _claim_folder(folder: Path, path: Path) -> None:
    with sink_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        # Asking for permissions is not enough: read-only file systems, quotas, being root.
        with tempfile.TemporaryFile(dir=folder):
            return


def _size_text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
