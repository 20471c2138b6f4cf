"""What flows between the stages; see "One frame's way" in README.md.

Every object is frozen and checks itself on creation. Arrays are not copied: whoever hands one on
does not write to it afterwards. Letters in shapes: N objects, T frames, H x W source pixels,
h x w cells of the embedding grid.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persam_video.errors import PersamError, PromptError

if TYPE_CHECKING:
    import torch

UInt8Array = NDArray[np.uint8]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

Box = Float32Array | None
"""What is needed of a picture: (4,) float32 x1, y1, x2, y2 in its pixels, which may reach beyond
it; None = all of it."""

VOID = 255
"""Label value that DAVIS uses for "do not count"; never an object id."""

MAX_OBJECT_ID = 254
"""Largest object id that a (H, W) uint8 label map can carry beside 0 and VOID."""


class ObjectState(enum.StrEnum):
    """What the tracker believes about one object in one frame."""

    TRACKED = "tracked"
    UNCERTAIN = "uncertain"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: 0-based position of the frame in the source before any stride or start is applied.
        time_s: Presentation time in seconds, as the container states it.
        image_rgb: (H, W, 3) uint8, RGB, upright (rotation metadata applied).
        name: Stem of the file the frame came from ("00042"), or None when it had no file.
    """

    index: int
    time_s: float
    image_rgb: UInt8Array
    name: str | None = None

    def __post_init__(self) -> None:
        image = self.image_rgb
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise PersamError(
                f"image_rgb must be (H, W, 3) uint8 with H, W >= 1, got {image.shape} {image.dtype}"
            )
        if self.index < 0:
            raise PersamError(f"a frame's index must be >= 0, got {self.index}")

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image_rgb.shape[0]), int(self.image_rgb.shape[1])

    @property
    def stem(self) -> str:
        """Name for the files made from this frame: the source's own, else the padded index."""
        return self.name if self.name is not None else f"{self.index:05d}"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known about a source before its first frame is read.

    Attributes:
        spec: The text or path that opened the source.
        size_hw: Height and width in pixels of the frames that come out (after rotation and
            ``max_size``).
        rate: Frames per second as an exact fraction (30000/1001 stays 30000/1001), or None when
            the source does not know it.
        frame_count: Number of frames that will come out, or None when unknown (streams, cameras).
        backend: Name of the reader, e.g. "pyav", "decord", "images", "opencv", "raw".
        has_audio: Whether the file holds a sound track.
    """

    spec: str
    size_hw: tuple[int, int]
    rate: Fraction | None
    frame_count: int | None
    backend: str
    has_audio: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Clicks and a box for one object, in source pixels.

    Attributes:
        points_xy: (K, 2) float32, x right and y down; K may be 0.
        point_labels: (K,) int32, 1 = on the object, 0 = off it.
        box_xyxy: (4,) float32, half-open (x2, y2 exclusive), or None.
    """

    points_xy: Float32Array = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    point_labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    box_xyxy: Float32Array | None = None

    def __post_init__(self) -> None:
        points, labels, box = self.points_xy, self.point_labels, self.box_xyxy
        if points.ndim != 2 or points.shape[1] != 2 or labels.shape != (len(points),):
            raise PromptError(
                "points_xy must be (K, 2) with point_labels (K,), "
                f"got {points.shape} and {labels.shape}"
            )
        if not np.isin(labels, (0, 1)).all():
            raise PromptError(f"point labels must be 0 or 1, got {sorted(set(labels.tolist()))}")
        if len(points) == 0 and box is None:
            raise PromptError("a prompt needs at least one point or a box, got neither")
        if len(points) and box is None and not labels.any():
            raise PromptError("a prompt of points needs at least one on the object ('+'), got none")
        if box is not None:
            if box.shape != (4,):
                raise PromptError(f"a box must be x1,y1,x2,y2, got shape {box.shape}")
            if not (box[0] < box[2] and box[1] < box[3]):
                raise PromptError(f"a box needs x1 < x2 and y1 < y2, got {box.tolist()}")

    def check_inside(self, size_hw: tuple[int, int], object_id: int) -> None:
        """Raise PromptError unless every point and the box lie inside a frame of ``size_hw``."""
        height, width = size_hw
        for x, y in self.points_xy.tolist():
            if not (0 <= x < width and 0 <= y < height):
                raise PromptError(
                    f"object {object_id}: point ({x:g}, {y:g}) lies outside the frame; legal are "
                    f"0 <= x < {width} and 0 <= y < {height}"
                )
        if self.box_xyxy is not None:
            x1, y1, x2, y2 = self.box_xyxy.tolist()
            if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
                raise PromptError(
                    f"object {object_id}: box {x1:g},{y1:g},{x2:g},{y2:g} leaves the frame; legal "
                    f"are 0 <= x <= {width} and 0 <= y <= {height}"
                )


@dataclass(frozen=True, slots=True)
class Reference:
    """What to follow: a label map, or clicks and boxes, on the first frame or on a photo.

    Attributes:
        labels: (H, W) uint8 label map of the reference picture, or None when ``prompts`` say it.
        prompts: Object id -> clicks and box; SAM makes these objects' masks.
        image_rgb: (H, W, 3) uint8 picture the reference belongs to, or None when it belongs to the
            first frame of the source. With a picture, the object is searched in every frame, the
            first one too.
        later: Index of a later frame -> its (H, W) uint8 label map: what is wrong by then is put
            right, and objects that come later are added.
    """

    labels: UInt8Array | None = None
    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    image_rgb: UInt8Array | None = None
    later: Mapping[int, UInt8Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels is None and not self.prompts:
            raise PromptError("a reference needs a mask, points or a box, got none of them")
        for object_id in self.prompts:
            check_object_id(object_id)
        if self.labels is not None:
            check_label_map(self.labels)
            clash = sorted(set(object_ids(self.labels)) & set(self.prompts))
            if clash:
                raise PromptError(f"object ids {clash} have both a mask and a prompt; legal is one")
        for labels in self.later.values():
            check_label_map(labels)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels inside a picture.

    Attributes:
        left: First column.
        top: First row.
        width: Columns, >= 1.
        height: Rows, >= 1.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index the last two axes of a picture's array with."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def scaled(self, factor: int) -> Window:
        """The same rectangle in a picture so many times as large."""
        return Window(
            factor * self.left, factor * self.top, factor * self.width, factor * self.height
        )

    def cut(self, image_rgb: UInt8Array) -> UInt8Array:
        """(H, W, 3) -> (height, width, 3), contiguous."""
        return np.ascontiguousarray(image_rgb[self.slices])

    def is_near(self, other: Window, pixels: float) -> bool:
        """Whether two windows have one size and lie at most so many pixels apart on either axis."""
        return (self.width, self.height) == (other.width, other.height) and (
            max(abs(self.left - other.left), abs(self.top - other.top)) <= pixels
        )


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the frozen image encoder says about one frame; the only input of the tracker.

    Attributes:
        neck: (1, 256, h, w) float32 over the padded square, SAM's image embedding, what the mask
            decoder reads.
        stages: Intermediate maps of the encoder, finest first, each (1, C_i, h_i, w_i) in the
            network's number format, over the padded square or over no more than what was encoded;
            may be empty.
        source_hw: Height and width of the frame in source pixels.
        input_hw: Height and width of the frame inside the network's square input; the rest of the
            square (right and bottom) is padding.
        input_size: Side of the network's square input in pixels.
        padding: Whether the padding was encoded as well, as SAM does. If not, ``neck`` is 0 there
            and the decoder leaves it out too.
        window: Cells of ``neck`` that were encoded, where that is only a part of the frame; the
            others are 0.
    """

    neck: torch.Tensor
    stages: tuple[torch.Tensor, ...]
    source_hw: tuple[int, int]
    input_hw: tuple[int, int]
    input_size: int
    padding: bool = True
    window: Window | None = None

    def __post_init__(self) -> None:
        if max(self.input_hw) > self.input_size:
            raise PersamError(f"input_hw {self.input_hw} exceeds input_size {self.input_size}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one batched decoder call proposes for N objects, on the processor.

    Attributes:
        logits: (N, M, 4h, 4w) float32, mask logits over the padded square, > 0 = object.
        predicted_iou: (N, M) float32, SAM's own estimate of each mask's IoU, about [0, 1].
    """

    logits: torch.Tensor
    predicted_iou: torch.Tensor


@dataclass(frozen=True, slots=True)
class TrackResult:
    """The answer for one frame.

    Attributes:
        frame_index: Index of the frame it belongs to.
        time_s: Its presentation time in seconds.
        labels: (H, W) uint8, value = object id, 0 = background; VOID never occurs.
        scores: Object id -> confidence in [0, 1]; every known object has one, lost or not.
        states: Object id -> tracked, uncertain or lost; same keys as ``scores``.
    """

    frame_index: int
    time_s: float
    labels: UInt8Array
    scores: Mapping[int, float]
    states: Mapping[int, ObjectState]

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.uint8:
            raise PersamError(
                f"labels must be (H, W) uint8, got {self.labels.shape} {self.labels.dtype}"
            )
        if self.scores.keys() != self.states.keys():
            raise PersamError(
                f"scores and states name other objects: {sorted(self.scores)} and "
                f"{sorted(self.states)}"
            )

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects the tracker knows in this frame, ascending, lost ones included."""
        return tuple(sorted(self.scores))

    def mask(self, object_id: int) -> BoolArray:
        """(H, W) bool mask of one object; all False while it is lost."""
        mask: BoolArray = self.labels == object_id
        return mask


def object_ids(labels: UInt8Array) -> tuple[int, ...]:
    """Ids present in a (H, W) uint8 label map, ascending, without 0 and VOID."""
    # What occurs begins somewhere in a row: there are few beginnings, and sorting them is quick.
    begins = labels[..., 1:] != labels[..., :-1]
    found = np.unique(np.concatenate([labels[..., :1].ravel(), labels[..., 1:][begins]]))
    return tuple(int(value) for value in found if value not in (0, VOID))


def check_object_id(object_id: int) -> None:
    """Raise PromptError unless ``object_id`` is in 1..254."""
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise PromptError(
            f"object id {object_id} is not legal: ids run from 1 to {MAX_OBJECT_ID} "
            f"(0 is the background, {VOID} is DAVIS void)"
        )


def check_label_map(labels: UInt8Array) -> None:
    """Raise PromptError unless ``labels`` is a (H, W) uint8 map that holds some object."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise PromptError(f"a label map must be (H, W) uint8, got {labels.shape} {labels.dtype}")
    ids = object_ids(labels)
    if not ids:
        raise PromptError(
            f"the mask is empty: no object id in it, values are {np.unique(labels).tolist()}"
        )
    for object_id in ids:
        if bool((labels == object_id).all()):
            raise PromptError(
                f"object {object_id} covers all {labels.size} pixels of the mask: there is no "
                "background to tell it from"
            )
