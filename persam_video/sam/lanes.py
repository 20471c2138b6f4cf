"""Streams of an NVIDIA GPU on which encoder and tracker work side by side.

What a GPU is asked for on one stream is done in order. There the many small steps of the tracker,
which needs an answer all the time, would wait behind the encoder's work for the next frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from persam_video.types import Embedding

Encoded = tuple[Embedding, torch.cuda.Event | None]
"""An embedding, and what tells when the GPU has made it."""


class Lanes:
    """A stream for the encoder, and one that goes before it for the tracker.

    Args:
        device: Where the network runs; if it is no NVIDIA GPU, nothing is different.
    """

    def __init__(self, device: torch.device) -> None:
        self._encoder: torch.cuda.Stream | None = None
        self._tracker: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._encoder, self._tracker = _streams(device)
            loading = torch.cuda.current_stream(device)
            self._encoder.wait_stream(loading)

    @property
    def are_open(self) -> bool:
        """Whether there is a GPU that works while its threads do something else."""
        return self._encoder is not None

    def encoded(self, encode: Callable[[], Embedding]) -> Encoded:
        """Encode on the encoder's stream, without waiting for the end of it."""
        if self._encoder is None:
            return encode(), None
        with torch.cuda.stream(self._encoder):
            embedding = encode()
            return embedding, self._encoder.record_event()

    @contextmanager
    def tracking(self, encoded: Encoded) -> Iterator[None]:
        """Work on the tracker's stream for a while, with what has been encoded.

        What the caller does on the stream of its own comes before that, or after it.
        """
        embedding, made = encoded
        if self._tracker is None or made is None:
            yield
            return
        callers = torch.cuda.current_stream(self._tracker.device)
        self._tracker.wait_stream(callers)
        self._tracker.wait_event(made)
        for m in (embedding.neck, *embedding.stages):
            if m.is_cuda:
                m.record_stream(self._tracker)  # its memory is not free before that is done
        try:
            with torch.cuda.stream(self._tracker):
                yield
        finally:
            callers.wait_stream(self._tracker)


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """The same two for all clips: what is recorded on a stream is replayed on that one."""
    encoder = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return encoder, torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
