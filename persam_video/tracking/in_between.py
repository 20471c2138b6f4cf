"""Only keyframes are tracked; the frames between get masks along the optical flow.

Where the encoder is too slow for every frame, a frame between two that are tracked costs a tenth of
one: dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016)
leads from its pixels to those of both keyframes, and their labels vote. What one keyframe does not
show, as it is hidden there, looks unlike the pixel, and then the other one decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from persam_video.errors import telling_frame
from persam_video.tracking.side_by_side import spread
from persam_video.types import (
    Float32Array,
    Frame,
    ObjectState,
    TrackResult,
    UInt8Array,
    object_ids,
)

_LONGEST = 432
"""Longer side in pixels at which the flow is computed."""
_NOISE = 2.0
"""Grey levels by which the same thing differs from frame to frame."""
_BLUR = 1.0
"""Pixels, standard deviation; neighbours are hidden together."""
_SMALLEST = 32
"""Pixels of the shorter side from which on there is a flow; OpenCV's fails on less, or crashes."""
_MEAN = np.full((1, 3), 1 / 3, np.float32)
"""Of three colours, as a matrix: numpy's mean of an axis of three takes ten times as long."""
_BESIDE = 3
"""Pixels of the flow's picture around what the flow finds, inside which the masks are made."""

Tracked = tuple[Frame, TrackResult]


def in_between(
    source: Iterable[Frame],
    interval: int,
    always: Collection[int],
    follow: Callable[[Generator[Frame, None, None]], Generator[Tracked, None, None]],
    along_edges: Callable[[UInt8Array, UInt8Array], UInt8Array],
) -> Generator[Tracked, None, None]:
    """Track some of the frames of a source, and interpolate between them.

    Args:
        source: Frames in order.
        interval: Frames from one keyframe to the next, at least 1.
        always: Indices of frames that are keyframes in any case.
        follow: Tracks the keyframes; its results are closed in the end.
        along_edges: Draws the outlines of a label map to the edges of its picture.

    Yields:
        Every frame with its result, those between once the next keyframe is tracked.
    """
    waiting: deque[Frame] = deque()  # filled by the thread that reads, ahead of the tracker
    results = follow(_keyframes(source, interval, always, waiting))
    before: Tracked | None = None
    with closing(results):
        for after in results:
            between = []
            while waiting and waiting[0].index < after[0].index:
                between.append(waiting.popleft())
            if before is not None:
                yield from _interpolated(before, between, after, along_edges)
            yield after
            before = after


def _keyframes(
    source: Iterable[Frame], interval: int, always: Collection[int], waiting: deque[Frame]
) -> Generator[Frame, None, None]:
    """The first frame, the last one, and those in the interval; the others go to ``waiting``."""
    skipped: Frame | None = None  # the latest one, as it can be the last of all
    since, size_hw = interval, (0, 0)
    try:
        for frame in source:
            other_size = frame.size_hw != size_hw  # there is no flow from the one before to it
            size_hw = frame.size_hw
            if skipped is not None and other_size:
                yield skipped
            elif skipped is not None:
                waiting.append(skipped)
            skipped = None
            if since >= interval or frame.index in always or other_size:
                yield frame
                since = 1
            else:
                skipped = frame
                since += 1
    except Exception:  # what was read before it is tracked all the same
        if skipped is not None:
            yield skipped
        raise
    if skipped is not None:
        yield skipped


def _interpolated(
    before: Tracked,
    between: list[Frame],
    after: Tracked,
    along_edges: Callable[[UInt8Array, UInt8Array], UInt8Array],
) -> Iterator[Tracked]:
    """The frames between two that are tracked, with their results."""
    if not between:
        return
    ids = sorted(before[1].states.keys() & after[1].states.keys())
    keys = [_View.of(frame.image_rgb, result.labels) for frame, result in (before, after)]

    def made(place: int) -> Tracked | Exception:
        frame, far = between[place], (place + 1) / (len(between) + 1)
        try:
            with telling_frame(frame.index, "interpolating"):
                view = _View.of(frame.image_rgb, np.zeros(frame.size_hw, np.uint8))
                labels = along_edges(_voted(view, keys, ids, far), frame.image_rgb)
                return frame, _result(frame, labels, ids, (before[1], after[1]), far)
        except Exception as error:  # raised below, after the frames before it
            return error

    for each in spread(made, range(len(between))):
        if isinstance(each, Exception):
            raise each
        yield each


@dataclass(frozen=True, slots=True)
class _View:
    """A frame as the flow sees it.

    Attributes:
        image_rgb: (h, w, 3) uint8, small.
        gray: (h, w) uint8, the same.
        labels: (H, W) uint8 label map of the frame, in its full size; empty for one between.
    """

    image_rgb: UInt8Array
    gray: UInt8Array
    labels: UInt8Array

    @classmethod
    def of(cls, image_rgb: UInt8Array, labels: UInt8Array) -> _View:
        height, width = image_rgb.shape[:2]
        scale = min(1.0, _LONGEST / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
        return cls(small, gray, labels)


def _result(
    frame: Frame,
    labels: UInt8Array,
    ids: list[int],
    results: tuple[TrackResult, TrackResult],
    far: float,
) -> TrackResult:
    """Of a frame between two, ``far`` of the way from the first to the second one."""
    present = set(object_ids(labels))
    states, scores = {}, {}
    for i in ids:
        tracked = all(result.states[i] is ObjectState.TRACKED for result in results)
        seen = ObjectState.TRACKED if tracked else ObjectState.UNCERTAIN
        states[i] = seen if i in present else ObjectState.LOST
        score = (1 - far) * results[0].scores[i] + far * results[1].scores[i]
        scores[i] = score if i in present else 0.0
    return TrackResult(frame.index, frame.time_s, labels, scores, states)


def _voted(view: _View, keys: list[_View], ids: list[int], far: float) -> UInt8Array:
    """(H, W) uint8 label map: at each pixel what has more than half of the votes."""
    labels = view.labels.copy()
    size = view.gray.shape[::-1]
    flows, aparts, seen = zip(*(_seen_from(view, key) for key in keys), strict=True)
    weights = [
        nearness / np.square(apart + _NOISE)
        for nearness, apart in zip((1 - far, far), aparts, strict=True)
    ]
    found = seen[0] | seen[1]
    box = _box_of(found, labels.shape)
    if box is None:
        return labels
    share = _enlarged(weights[0] / (weights[0] + weights[1]), labels.shape, box)
    scale = np.array([labels.shape[1] / size[0], labels.shape[0] / size[1]], np.float32)
    enlarged = [_places(box) + scale * _enlarged(flow, labels.shape, box) for flow in flows]
    for i in ids:
        votes = [
            _looked_up((key.labels == i).astype(np.float32), places)
            for key, places in zip(keys, enlarged, strict=True)
        ]
        labels[box][share * votes[0] + (1 - share) * votes[1] > 0.5] = i
    return labels


def _seen_from(view: _View, key: _View) -> tuple[Float32Array, Float32Array, UInt8Array]:
    """The flow from a frame to a keyframe, and what of that one is at the frame's pixels.

    Returns:
        (h, w, 2) float32 as of ``_flow``, (h, w) float32 grey levels by which the two differ there,
        and (h, w) uint8, where the keyframe has objects.
    """
    flow = _flow(view, key)
    height, width = view.gray.shape
    places = _places((slice(0, height), slice(0, width))) + flow
    apart = cv2.absdiff(_looked_up(key.image_rgb, places), view.image_rgb)
    apart = cv2.transform(apart.astype(np.float32), _MEAN)
    apart = cv2.GaussianBlur(apart, (0, 0), _BLUR)
    mask = (key.labels > 0).astype(np.float32)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    found = _looked_up((small > 0).astype(np.uint8), places, cv2.INTER_NEAREST)
    return flow, np.asarray(apart, np.float32), np.asarray(found, np.uint8)


def _flow(view: _View, key: _View) -> Float32Array:
    """(h, w, 2) float32, by how much x and y in the keyframe differ from those of each pixel."""
    height, width = view.gray.shape
    none = np.zeros((height, width, 2), np.float32)
    if min(height, width) < _SMALLEST:
        return none
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.nan_to_num(np.asarray(search.calc(view.gray, key.gray, none), np.float32))


def _box_of(found: UInt8Array, full_hw: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns of the full picture around some pixels of the small one."""
    left, top, width, height = cv2.boundingRect(found)
    if width == 0:
        return None
    ends = []
    for start, length, small, full in (
        (top, height, found.shape[0], full_hw[0]),
        (left, width, found.shape[1], full_hw[1]),
    ):
        low, high = max(0, start - _BESIDE), min(small, start + length + _BESIDE)
        ends.append(slice(low * full // small, -(-high * full // small)))
    return ends[0], ends[1]


def _places(box: tuple[slice, slice]) -> Float32Array:
    """(h, w, 2) float32, x and y of the pixels in a box."""
    rows, columns = (np.arange(part.start, part.stop, dtype=np.float32) for part in box)
    return np.dstack(np.meshgrid(columns, rows))


def _enlarged(
    small: Float32Array, full_hw: tuple[int, ...], box: tuple[slice, slice]
) -> Float32Array:
    """What a small map says about the full picture's pixels in a box."""
    rows, columns = (
        ((np.arange(part.start, part.stop) + 0.5) * length / full - 0.5).astype(np.float32)
        for part, length, full in zip(box, small.shape, full_hw, strict=False)
    )
    places = np.dstack(np.meshgrid(columns, rows))
    return np.asarray(_looked_up(small, places), np.float32)


def _looked_up(
    picture: NDArray[Any], places: Float32Array, method: int = cv2.INTER_LINEAR
) -> NDArray[Any]:
    """A picture's values at (h, w, 2) places x, y; outside of it those of its edge."""
    x, y = cv2.split(places)
    return np.asarray(cv2.remap(picture, x, y, method, borderMode=cv2.BORDER_REPLICATE))
