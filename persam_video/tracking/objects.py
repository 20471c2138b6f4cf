"""What the tracker remembers of one object, and when it calls it tracked, uncertain or lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persam_video.config import TrackConfig
from persam_video.personalize.target import Look, Target
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.grid import rectangle_of
from persam_video.tracking.motion import Motion
from persam_video.tracking.target_model import TargetModel
from persam_video.types import BoolArray, Float32Array, ObjectState

_LIKENESS_RATE = 0.2
_MOST_FRAMES = 5  # a velocity says little about a place longer after
_LEAP = 2  # times the area it had a frame ago
_SUDDEN = 0.25  # areas of the object that may come into sight at once, though none was hidden
_AREA_DECAY = 0.95
_SCRAP = 0.1  # areas of the object that it has at least where it is not expected
_EDGE = 2  # cells beside the picture's edge that are at it
_EMPTY = -0.5  # mean vote of the background from which on a part is a place where nothing is
_MAIN = 0.25  # of its largest part, what another part of an object has that is no scrap
_STRAY = 0.02  # an object that moves smoothly overlaps its own expected place by more


@dataclass(slots=True)
class TrackedObject:
    """One object's memory; its size is fixed, however long the clip.

    Attributes:
        object_id: The user's id, 1 to 254.
        target: The reference's features, never changed.
        logits: (4h, 4w) float32, the last mask believed in; kept as it is while the object is lost.
        motion: How the mask's centre moves.
        scale_weights: (3,) float32 of PerSAM-F, or None for other methods.
        model: The discriminative model of method "track"; None for other methods, and until the
            object of a photo is first found.
        memory: The appearance memory of method "track".
        found: Its model began with a mask that was found, and not given (the object of a photo).
        recent: What it looked like of late, where it was tracked.
        area: Of its masks in cells, the largest of late.
        likeness: Running likeness of its masks to the target, see ``location_prior.likeness``; it
            falls slowly as the object turns, and at once when the mask is on something else.
        state: Of the latest frame.
        score: Confidence of the latest frame, in [0, 1].
        frames_lost: Frames since the object was last seen, 0 while it is seen.
        frames_untaught: Frames since it last learnt.
    """

    object_id: int
    target: Target
    logits: Tensor
    motion: Motion
    scale_weights: Tensor | None = None
    model: TargetModel | None = None
    memory: AppearanceMemory = field(default_factory=AppearanceMemory)
    found: bool = False
    recent: Look = field(init=False)
    area: float = field(init=False)
    likeness: float = 1.0
    state: ObjectState = ObjectState.TRACKED
    score: float = 1.0
    frames_lost: int = 0
    frames_untaught: int = 0

    def __post_init__(self) -> None:
        """Its look and area begin with those of the reference."""
        self.recent = self.target
        self.area = float((self.logits > 0).sum())

    def learn_likeness(self, value: float) -> None:
        """Let the running likeness follow the one of the mask just believed in."""
        self.likeness += _LIKENESS_RATE * (max(value, 0.1) - self.likeness)

    def expected_logits(self) -> Tensor:
        """(4h, 4w) the last mask believed in, moved to where it should be in the coming frame.

        It is kept for those who ask again, and not to be changed.
        """
        return self.motion.moved(self.logits, min(self.frames_lost, _MOST_FRAMES) + 1)

    def lose(self) -> None:
        """It may be anywhere now."""
        self.state, self.score = ObjectState.LOST, 0.0
        self.frames_lost = max(1, self.frames_lost)

    def never_seen(self) -> None:
        """The reference is from another picture: nothing is known of its place and size here."""
        self.lose()
        self.area = 0.0
        self.logits = torch.full_like(self.logits, float(self.logits.min()))

    def observe(self, logits: Tensor, score: float, config: TrackConfig) -> None:
        """Take over the answer for a new frame.

        Args:
            logits: (4h, 4w) float32, the mask after all objects have competed for the pixels.
            score: Confidence in it, in [0, 1].
            config: ``lost_below``, ``found_above`` and ``uncertain_below`` are used.
        """
        returned = self.frames_lost > 0
        # It may be anywhere, or, less surely, where most of it should be by now or was seen last.
        mask = (logits > 0).numpy()
        area = np.count_nonzero(mask)
        found = score >= config.found_above and bool(area >= max(1.0, _SCRAP * self.area))
        if not found and score >= config.lost_below and area > 0:
            places = (self.expected_logits(), self.logits)
            found = any(_overlap(mask, _largest_part((p > 0).numpy())) for p in places)
        self.score = score if found else min(score, config.lost_below)
        if not found:
            self.state = ObjectState.LOST
            self.frames_lost += 1
            return
        self.frames_lost = 0
        self.state = (
            ObjectState.TRACKED if score >= config.uncertain_below else ObjectState.UNCERTAIN
        )
        self.motion.observe(logits, jumped=returned)
        self.logits = logits
        self.area = max(float(area), _AREA_DECAY * self.area)


def without_strays(
    logits: Tensor,
    objects: list[TrackedObject],
    picture_hw: tuple[int, int],
    votes: Tensor | None = None,
) -> Tensor:
    """Take the parts off the masks that are likely something else.

    What is away from an object's place is not of it (``_away``): it has just come into the picture.
    A part that looks as the background did there is none (the object has left it behind).
    Of the parts in another object's place only those are kept that are not away from the main parts
    of its own. While one object is lost or uncertain, another one that looks like it would
    take it over; and an object that more than doubles from one frame to the next has rather been
    joined by something else. Its mask may not have parts then that do not touch where the object
    itself is expected.

    Args:
        logits: (N, 4h, 4w) float32, masks of a new frame.
        objects: The N objects, as they were in the frame before.
        picture_hw: Rows and columns that are no padding.
        votes: (4h, 4w) float32 in [-1, 1], ``Change.votes`` over the padded square.

    Returns:
        (N, 4h, 4w) float32 logits.
    """
    rows, columns = picture_hw
    unsure = [obj.state is not ObjectState.TRACKED for obj in objects]
    masks = (logits[:, :rows, :columns] > 0).numpy()
    places = [(o.expected_logits()[:rows, :columns] > 0).numpy() for o in objects]
    occupied = np.zeros(picture_hw, np.uint8)
    for place, obj in zip(places, objects, strict=True):
        if obj.frames_lost == 0:
            occupied += place
    still = None if votes is None else votes[:rows, :columns].numpy()
    kept = logits.clone()
    for i, (obj, itself) in enumerate(zip(objects, unsure, strict=True)):
        if obj.frames_lost > 0 or not masks[i].any():
            continue
        # All is done where the object is, or should be: it is mostly a small part of the picture.
        around = rectangle_of(masks[i] | places[i])
        (parts, count), place = _parts(masks[i][around]), places[i][around]
        strays = np.zeros(parts.shape, np.bool_)
        if still is not None:
            strays |= _nothing_there(parts, still[around])
        if count > 1:  # a single part is in its place, or the object has jumped
            theirs = occupied[around] > place
            leaps = int(masks[i].sum()) > _LEAP * int((obj.logits > 0).sum())
            edges, rivals = _edges(around, picture_hw), sum(unsure) > itself
            strays |= _not_its_own(obj, parts, place, theirs, edges, leaps=leaps, rivals=rivals)
        if strays.any():
            kept[(i, *around)][torch.from_numpy(strays)] = logits[i].min()
    return kept


def _not_its_own(
    obj: TrackedObject,
    parts: NDArray[Any],
    place: BoolArray,
    theirs: BoolArray,
    edges: Sequence[tuple[slice, slice]],
    *,
    leaps: bool,
    rivals: bool,
) -> BoolArray:
    """Of an object's several parts those that are likely of something else, see ``without_strays``.

    Args:
        obj: The object.
        parts: (H, W) int, numbered parts of its mask; 0 is none.
        place: (H, W) bool, where it should be.
        theirs: (H, W) bool, where other objects should be and it should not.
        edges: What is at the picture's edges.
        leaps: Its mask has more than doubled.
        rivals: Another object is lost or uncertain.

    Returns:
        (H, W) bool.
    """
    main, hidden = _main_parts(place), _hidden(obj, place)
    strays = _away(parts, place, hidden, edges)
    if parts[theirs].any():
        strays |= _away(parts, main, hidden, edges) & np.isin(parts, np.unique(parts[theirs]))
    if leaps or rivals:
        # What has joined it may touch the scrap that its smaller part is.
        core = _largest_part(place) if leaps else main
        own = np.isin(parts, np.unique(parts[core & (parts > 0)]))
        if own.any():
            strays |= ~own & (parts > 0)
    return strays


def _edges(around: tuple[slice, slice], picture_hw: tuple[int, int]) -> list[tuple[slice, slice]]:
    """What is at each of the picture's four edges of a rectangle in it, from its own corner on."""
    rows, columns = (
        (slice(max(0, _EDGE - side.start)), slice(max(0, length - _EDGE - side.start), None))
        for side, length in zip(around, picture_hw, strict=True)
    )
    everything = slice(None)
    return [*((side, everything) for side in rows), *((everything, side) for side in columns)]


def _hidden(obj: TrackedObject, expected: BoolArray) -> float:
    """Cells of an object that may come into sight: what it had of late, or a share of that."""
    return max(obj.area - float(expected.sum()), _SUDDEN * obj.area)


def _away(
    parts: NDArray[Any], place: BoolArray, hidden: float, edges: Sequence[tuple[slice, slice]]
) -> BoolArray:
    """Parts that are away from an object's place and cannot be of it.

    Args:
        parts: (H, W) int, numbered parts of its mask; 0 is none.
        place: (H, W) bool, where it should be.
        hidden: How many of its cells may come into sight.
        edges: What is at the picture's edges.

    Returns:
        (H, W) bool, those that are larger than what is hidden of the object, farther off than that
        is wide, or at an edge of the picture that its place does not reach. None where no part is
        in the place, as then the object has jumped.
    """
    apart = np.ones(parts.max() + 1, np.bool_)
    apart[0], apart[parts[place]] = False, False
    if not apart.any() or apart[1:].all():
        return np.zeros(parts.shape, np.bool_)
    distance = cv2.distanceTransform((~place).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    nearest, some = np.full(len(apart), np.inf, np.float32), apart[parts]
    np.minimum.at(nearest, parts[some], distance[some])
    impossible = (nearest > hidden**0.5) | (np.bincount(parts.ravel()) > hidden)
    for edge in edges:
        if not place[edge].any():
            impossible[parts[edge]] = True
    away: BoolArray = (apart & impossible)[parts]
    return away


def _nothing_there(parts: NDArray[Any], votes: Float32Array) -> BoolArray:
    """(H, W) bool, of some numbered parts those where the background is as it was, by its votes."""
    inside = parts > 0
    sums = np.bincount(parts[inside], weights=votes[inside])
    empty = sums < _EMPTY * np.bincount(parts[inside])
    nothing: BoolArray = empty[parts]
    return nothing


def _largest_part(mask: BoolArray) -> BoolArray:
    """(H, W) bool, the largest connected part of a mask."""
    parts, _ = _parts(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: BoolArray = (parts == sizes.argmax()) & (parts > 0)
    return largest


def _main_parts(mask: BoolArray) -> BoolArray:
    """(H, W) bool, a mask without scraps: what is partly hidden can be seen in two parts."""
    parts, _ = _parts(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    main: BoolArray = (sizes > _MAIN * sizes.max())[parts] & (parts > 0)
    return main


def _parts(mask: BoolArray) -> tuple[NDArray[Any], int]:
    """Connected parts of a mask: (H, W) int, numbered from 1, and how many there are."""
    count, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    return np.asarray(parts), count - 1


def _overlap(a: BoolArray, b: BoolArray) -> bool:
    """Whether two masks share more than a stray cell of their union."""
    return bool((a & b).sum() > _STRAY * (a | b).sum())
