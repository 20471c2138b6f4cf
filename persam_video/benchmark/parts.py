"""Seconds in the parts of a step, taken by wrapping methods and functions from outside.

The code that is measured knows nothing of it and pays nothing when nobody measures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from persam_video.sam.decoder import SamDecoder
from persam_video.sam.image_encoder import SamImageEncoder
from persam_video.sam.machine import wait_for_gpu
from persam_video.tracking import tracker
from persam_video.tracking.close_up import CloseUps
from persam_video.tracking.look_ahead import LookAhead
from persam_video.tracking.persam import PersamMethod
from persam_video.tracking.propagation import PropagationMethod
from persam_video.tracking.side_by_side import Meanwhile

Place = tuple[Any, str]
"""A class or module, and the name of its method or function."""

STEP_PARTS: Mapping[str, tuple[Place, ...]] = {
    "preprocess": ((SamImageEncoder, "preprocess"),),
    "encoder": ((SamImageEncoder, "encode"), (SamImageEncoder, "encode_part")),
    "prior": (
        (PropagationMethod, "prepare"),
        (PropagationMethod, "segment"),
        (PersamMethod, "segment"),
        (LookAhead, "look"),
    ),
    "decoder": ((SamDecoder, "decode"),),
    "close_up": ((CloseUps, "refine"),),
    "merge": (
        (tracker, "soft_aggregate"),
        (tracker, "upscale_inside"),
        (tracker, "upscale_logits"),
        (tracker, "label_map"),
    ),
    "learn": ((PropagationMethod, "remember"), (PersamMethod, "remember"), (LookAhead, "learn")),
    "outlines": ((tracker.Tracker, "along_edges"),),
    "waiting": ((Meanwhile, "wait"),),
}
"""Parts of ``Tracker.step``. ``prior`` is all of finding a mask but the decoder itself: features,
location prior, prompts, the blend of the two. ``waiting`` is for what other threads do meanwhile,
as far as it takes longer: with several threads the background is another one's."""


@contextmanager
def timed_parts(parts: Mapping[str, tuple[Place, ...]]) -> Iterator[dict[str, float]]:
    """Sum up the seconds that this thread spends in each part while in the block.

    A part that runs inside another one is taken off that one, so that the parts add up. What other
    threads do meanwhile is not counted. A GPU in use is waited for at both ends of every call.

    Args:
        parts: Name -> the calls that belong to it.

    Yields:
        Name -> seconds so far; the caller may set them back to 0.

    Raises:
        AttributeError: A place has no such method or function.
    """
    seconds = dict.fromkeys(parts, 0.0)
    inner: list[float] = []  # per open call, seconds of the calls inside it
    own = threading.get_ident()
    originals = [(*place, getattr(*place), name) for name, p in parts.items() for place in p]
    try:
        for owner, attribute, original, name in originals:
            setattr(owner, attribute, _timed(original, name, seconds, inner, own))
        yield seconds
    finally:
        for owner, attribute, original, _ in originals:
            setattr(owner, attribute, original)


def _timed(
    original: Callable[..., Any],
    name: str,
    seconds: dict[str, float],
    inner: list[float],
    thread: int,
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(*args, **kwargs)
        wait_for_gpu()
        begun = time.perf_counter()
        inner.append(0.0)
        try:
            return original(*args, **kwargs)
        finally:
            wait_for_gpu()
            spent = time.perf_counter() - begun
            seconds[name] += spent - inner.pop()
            if inner:
                inner[-1] += spent

    return call
