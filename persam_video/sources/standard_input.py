"""The one way to standard input: its bytes, or an error that says why there are none."""

from __future__ import annotations

import sys
from typing import BinaryIO, cast

from persam_video.errors import SourceError


def standard_input(spec: str) -> BinaryIO:
    """Binary standard input.

    Args:
        spec: The text that asked for it, for the error.

    Raises:
        SourceError: There is no binary standard input, or it is a terminal.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None or buffer.closed:
        raise SourceError(f"{spec!r} reads standard input, but there is none")
    if buffer.isatty():
        raise SourceError(
            f"{spec!r} reads standard input, but that is a terminal; pipe a video into it, e.g. "
            "cat clip.mkv | persam-video track - ..."
        )
    return cast(BinaryIO, buffer)
