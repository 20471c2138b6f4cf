"""Values of a picture or array -> object ids: what is an id, what is white, what is a soft edge."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from persam_video.errors import PromptError
from persam_video.types import MAX_OBJECT_ID, VOID, UInt8Array

_WHITE = (1, 255, 65535)
"""Values that mean "object", not an id, where no other value beside 0 occurs."""

_DENSE_IDS = 32
"""Up to so many ids without a gap are taken for ids, even if an object is as thin as an edge."""


def labels_from_ids(values: NDArray[Any]) -> UInt8Array:
    """(H, W) integers or bools -> (H, W) uint8 label map; a single white value becomes id 1.

    Raises:
        PromptError: A value is negative or above 255.
    """
    found = np.unique(values)
    objects = found[found != 0]
    if objects.size == 1 and int(objects[0]) in _WHITE:
        values = values != 0
    elif illegal := [int(value) for value in objects if not 0 < value <= VOID]:
        raise PromptError(
            f"object ids must be in 1..{MAX_OBJECT_ID} (0 background, {VOID} void), got "
            f"{shown(np.array(illegal))}"
        )
    return values.astype(np.uint8)


def labels_from_grey(values: NDArray[Any], threshold: float | None) -> UInt8Array:
    """(H, W) numbers of a grey picture or array -> (H, W) uint8 label map.

    Without a threshold the values are ids, and soft edges are refused: a number that lies between
    background and object is nobody's id. With one, values >= threshold are object 1.

    Raises:
        PromptError: Values are no numbers, soft, or illegal ids, or no or every value reaches the
            threshold; the values found are shown.
    """
    if values.dtype.kind not in "buif":
        raise PromptError(f"a mask must hold bools, integers or floats, got {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise PromptError("a mask must hold finite numbers, got NaN or infinity")
    if threshold is not None:
        return _binarised(values, threshold)
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if not np.array_equal(whole, values):
            raise PromptError(_soft_message(values))
        values = whole.clip(-1, 2**31).astype(np.int64)
    if _has_soft_edges(values):
        raise PromptError(_soft_message(values))
    return labels_from_ids(values)


def shown(values: NDArray[Any]) -> str:
    """The different values as text, the middle left out when there are many."""
    found = [
        f"{value:.4g}" if isinstance(value, float) else str(value)
        for value in np.unique(values).tolist()
    ]
    if len(found) <= 12:
        return f"[{', '.join(found)}]"
    return f"[{', '.join(found[:6])}, ..., {', '.join(found[-3:])}] ({len(found)} different)"


def _binarised(values: NDArray[Any], threshold: float) -> UInt8Array:
    mask = values >= threshold
    if mask.all() or not mask.any():
        raise PromptError(
            f"{'every' if mask.any() else 'no'} value reaches the threshold {threshold:g}; the "
            f"values found are {shown(values)}"
        )
    return mask.astype(np.uint8)


def _has_soft_edges(values: NDArray[Any]) -> bool:
    """Whether some value occurs only along borders, as the steps of an anti-aliased edge do."""
    found = np.unique(values)
    ids = found[(found != 0) & (found != VOID)]
    if ids.size == 0 or np.count_nonzero(found) == 1:
        return False
    if ids.size <= _DENSE_IDS and np.array_equal(ids, np.arange(1, ids.size + 1)):
        return False
    numbers, window = values.astype(np.float64), np.ones((3, 3), np.uint8)
    inside = cv2.erode(numbers, window) == cv2.dilate(numbers, window)
    return not np.isin(ids, values[inside]).all()


def _soft_message(values: NDArray[Any]) -> str:
    """Refusal with a threshold that suits the values: half of white, or 0 for logits."""
    half = float(values.max()) / 2
    middle = 0 if values.min() < 0 else half if values.dtype.kind == "f" else math.ceil(half)
    return (
        f"a grey mask with soft edges, not object ids: the values found are {shown(values)}; make "
        f"it one object with a threshold (--threshold {middle:g}), or save the ids as palette PNG"
    )
