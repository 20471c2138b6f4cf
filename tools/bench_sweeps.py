"""What the sweeps of tools/bench.py run on: many objects, other sizes, longer clips."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from memory import STATUS, allocated_bytes, forget_peak, looped, peak_bytes
from numpy.typing import NDArray
from PIL import Image

import persam_video as pv
from persam_video.benchmark.truth import Score, Truth, packed, unpacked
from persam_video.sam.machine import forget_peak_gpu_memory, peak_gpu_memory
from persam_video.sources import Source
from persam_video.types import Box, Embedding, UInt8Array, object_ids

WINDOW = 10
"""Frames whose masks are scored in the course of a long clip."""
EARLY = 100
"""Frame at which a long clip is compared with itself later on; so many are measured together."""

_SMALLEST_PART = 64
_JPEG_QUALITY = 95


def parts_of(labels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Cut what a label map marks into ``count`` disjoint objects of about the same area.

    The marked pixels, whatever their object, are halved (or divided as the counts demand) along
    their longer extent again and again. The objects together are the marked pixels, so that J&F of
    all of them as one still tells how good the masks are.

    Args:
        labels: (H, W) uint8.
        count: 1 to 254.

    Returns:
        (H, W) uint8 label map of the objects 1 to ``count``.

    Raises:
        PromptError: The objects would be smaller than 64 pixels.
    """
    places = np.argwhere(np.isin(labels, object_ids(labels)))
    if len(places) < count * _SMALLEST_PART:
        raise pv.PromptError(
            f"the mask has {len(places)} pixels: too few to cut it into {count} objects of at "
            f"least {_SMALLEST_PART}; legal are fewer (or, for the section objects, "
            "--object-shape boxes)"
        )
    cut = np.zeros_like(labels)
    groups = [(places, count)]
    label = 0
    while groups:
        group, parts = groups.pop()
        if parts == 1:
            label += 1
            cut[group[:, 0], group[:, 1]] = label
            continue
        axis = int(np.argmax(np.ptp(group, axis=0)))
        order = group[np.argsort(group[:, axis], kind="stable")]
        at = round(len(order) * (parts // 2) / parts)
        groups += [(order[at:], parts - parts // 2), (order[:at], parts // 2)]
    return cut


def boxes_in(size_hw: tuple[int, int], count: int) -> NDArray[np.uint8]:
    """(H, W) uint8 label map with ``count`` boxes on a grid, half as long and wide as its cells."""
    height, width = size_hw
    columns = min(count, math.ceil(math.sqrt(count * width / height)))
    rows = math.ceil(count / columns)
    labels = np.zeros(size_hw, np.uint8)
    for place in range(count):
        y, x = divmod(place, columns)
        top, left = (4 * y + 1) * height // (4 * rows), (4 * x + 1) * width // (4 * columns)
        labels[top : top + height // (2 * rows), left : left + width // (2 * columns)] = place + 1
    return labels


def write_resized(source: Source, folder: Path, height: int, frames: int) -> None:
    """Write the first frames of a source, ``height`` pixels high, as JPEGs with their names.

    The width keeps the shape and is even. The clip is then read like any other, so that decoding
    is measured at that size too.
    """
    folder.mkdir(parents=True)
    for frame in islice(source, frames):
        size_hw = resized_hw(frame.size_hw, height)
        shrinks = height < frame.size_hw[0]
        image = cv2.resize(
            frame.image_rgb,
            (size_hw[1], size_hw[0]),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
        )
        Image.fromarray(image).save(folder / f"{frame.stem}.jpg", quality=_JPEG_QUALITY)


def resized_hw(size_hw: tuple[int, int], height: int) -> tuple[int, int]:
    """Height, and the even width that keeps the shape."""
    return height, max(2, 2 * round(height * size_hw[1] / size_hw[0] / 2))


def resized_labels(labels: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The label map of ``size_hw``; every object must be left.

    Raises:
        PromptError: An object is too small for that size.
    """
    size_wh = (size_hw[1], size_hw[0])
    resized = np.asarray(cv2.resize(labels, size_wh, interpolation=cv2.INTER_NEAREST), np.uint8)
    if gone := sorted(set(object_ids(labels)) - set(object_ids(resized))):
        raise pv.PromptError(f"nothing is left of objects {gone} at {size_wh[0]} x {size_wh[1]}")
    return resized


@dataclass(frozen=True, slots=True)
class Window:
    """Up to a hundred frames in the course of a long clip.

    Attributes:
        frame: Position of the last one in the clip.
        track: Median seconds from one frame to the next, all overlapped.
        encode: Median seconds of the encoder meanwhile, each from its beginning to its end.
        resident: Resident memory at the end in bytes; None where the system does not tell.
        peak_memory: Most resident memory in these, or those since the window before; in the whole
            process so far where the system cannot tell.
        peak_gpu_memory: Most memory of tensors on the GPU in these; None without one.
        allocated: Most memory that was in use when one of their masks came; None where the system
            does not tell.
        score: J and F of the last ten; None without ground truth.
    """

    frame: int
    track: float
    encode: float
    resident: int | None
    peak_memory: int
    peak_gpu_memory: int | None
    allocated: int | None
    score: Score | None


def long_run(
    open_clip: Callable[[], Source],
    tracker: pv.Tracker,
    labels: NDArray[np.uint8],
    lengths: Sequence[int],
    truth: Truth | None,
    tell: Callable[[str], None],
) -> list[Window]:
    """Follow objects through a looped clip as long as the longest of ``lengths``.

    Everything runs as in ``persam-video track``. At frame 100 and at the end of every length the
    last frames are looked at, and how long the encoder took in the meantime, so that a machine that
    gets slower over the time is not taken for a tracker that does. (Encoding them once more to know
    that was most of what memory grew by.)

    Args:
        open_clip: Opens the clip anew for every turn of the loop.
        tracker: Started anew.
        labels: (H, W) uint8 label map of the first frame.
        lengths: Frames, each above ``WINDOW``.
        truth: Ground truth of the clip.
        tell: Gets progress.
    """
    ends = sorted({*lengths, EARLY} if max(lengths) > EARLY else set(lengths))
    watch = _Watch(ends, tell, keep_masks=truth is not None)

    def watched() -> Iterator[tuple[pv.Frame, pv.TrackResult]]:
        source = looped(open_clip, ends[-1])
        with closing(pv.track(source, tracker, pv.Reference(labels))) as results:
            begun = time.perf_counter()
            for frame, result in results:
                watch.note(frame, result, time.perf_counter() - begun)
                yield frame, result
                begun = time.perf_counter()

    forget_peaks()
    with (
        _timed_encoder(tracker, watch.encode_s),
        tempfile.TemporaryDirectory(prefix="persam_video-") as folder,
    ):
        overlay = pv.OverlayVideoSink(Path(folder) / "overlay.mp4", None)
        pv.write_results(watched(), [pv.PalettePngSink(Path(folder) / "masks"), overlay])
    if truth is None:
        return watch.windows
    ids = tracker.object_ids
    return watch.scored(truth, ids, _names(open_clip, ends[-1]), (labels.shape[0], labels.shape[1]))


class _Watch:
    """Looks at the last frames before each of some ends; what it keeps is small.

    Args:
        ends: Positions in the clip, ascending.
        tell: Gets progress.
        keep_masks: They are scored later.

    Attributes:
        encode_s: Seconds of the latest encodings; whoever encodes appends to it.
        windows: What was seen at the ends so far.
    """

    def __init__(
        self,
        ends: list[int],
        tell: Callable[[str], None],
        *,
        keep_masks: bool,
    ) -> None:
        self._ends, self._tell = ends, tell
        self._keep_masks = keep_masks
        self._track_s: deque[float] = deque(maxlen=EARLY)
        self.encode_s: deque[float] = deque(maxlen=EARLY)
        self._allocated: deque[int] = deque(maxlen=EARLY)
        self._masks: dict[int, list[tuple[int, bytes]]] = {end: [] for end in ends}
        self.windows: list[Window] = []

    def note(self, frame: pv.Frame, result: pv.TrackResult, seconds: float) -> None:
        """A frame's result, which took so long."""
        count = frame.index + 1
        end = next(end for end in self._ends if end >= count)
        self._track_s.append(seconds)
        self._allocated.append(allocated_bytes() or 0)
        if count == end - EARLY:
            forget_peaks()
        if self._keep_masks and count > end - WINDOW:
            self._masks[end].append((frame.index, packed(result.labels)))
        if count == end:
            track, encode = (statistics.median(s) for s in (self._track_s, list(self.encode_s)))
            memory = (
                resident_bytes(),
                peak_bytes(),
                peak_gpu_memory(),
                max(self._allocated) or None,
            )
            self.windows.append(Window(end, track, encode, *memory, None))
            self._tell(f"lengths: frame {count} of {self._ends[-1]}")
            forget_peaks()

    def scored(
        self, truth: Truth, ids: tuple[int, ...], names: list[str], size_hw: tuple[int, int]
    ) -> list[Window]:
        """The windows with the objects' scores; ``names`` are those of the clip's frames."""
        scored = []
        for window in self.windows:
            masks = (
                (names[index % len(names)], unpacked(data, size_hw))
                for index, data in self._masks[window.frame]
            )
            scored.append(replace(window, score=truth.score(ids, masks)))
        return scored


def _names(open_clip: Callable[[], Source], frames: int) -> list[str]:
    """Stems of the first frames of a clip, all of them if it is shorter."""
    with open_clip() as source:
        return [frame.stem for frame in islice(source, frames)]


@contextmanager
def _timed_encoder(tracker: pv.Tracker, encode_s: deque[float]) -> Iterator[None]:
    """Note how long each of the tracker's encodings takes, a GPU's work included."""
    encode = tracker.encode

    def timed(image_rgb: UInt8Array, box_xyxy: Box = None) -> Embedding:
        begun = time.perf_counter()
        embedding = encode(image_rgb, box_xyxy)
        float(embedding.neck.flatten()[0])
        encode_s.append(time.perf_counter() - begun)
        return embedding

    with patch.object(tracker, "encode", timed):
        yield


def forget_peaks() -> None:
    """Let the largest memory be looked for from here on."""
    forget_peak()
    forget_peak_gpu_memory()


def resident_bytes() -> int | None:
    """Memory resident now; None without /proc."""
    if not STATUS.is_file():
        return None
    line = next(x for x in STATUS.read_text("ascii").splitlines() if x.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])
