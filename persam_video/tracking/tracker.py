"""One frame in, one label map out: the streaming core.

The tracker owns the objects and their ids; a method (``persam.py``, ``propagation.py``) finds their
masks. Everything remembered per object has a fixed size, so memory does not grow with the clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from persam_video.config import Config, PersonalizeConfig, TrackConfig
from persam_video.errors import PersamError, PromptError
from persam_video.personalize.prompted import masks_from_prompts
from persam_video.personalize.target import grid_coverage, make_target
from persam_video.references.masks import check_mask_size
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.enlarging import upscale_inside, upscale_logits
from persam_video.sam.image_encoder import (
    Encoder,
    PaddingEncoder,
    ParallelEncoder,
    PartEncoder,
)
from persam_video.sam.models import load_sam
from persam_video.tracking.aggregation import kept_share, label_map, soft_aggregate
from persam_video.tracking.background import Change
from persam_video.tracking.close_up import CloseUps
from persam_video.tracking.crop import box_ahead, box_around, shows_expected_places
from persam_video.tracking.edges import along_edges
from persam_video.tracking.look_ahead import LookAhead
from persam_video.tracking.method import Method
from persam_video.tracking.motion import Motion
from persam_video.tracking.objects import TrackedObject, without_strays
from persam_video.tracking.persam import PersamMethod
from persam_video.tracking.propagation import PropagationMethod
from persam_video.tracking.side_by_side import shared_on, side_by_side, small_steps, spread
from persam_video.types import (
    VOID,
    Box,
    Embedding,
    Frame,
    ObjectState,
    Prompt,
    TrackResult,
    UInt8Array,
    check_label_map,
    object_ids,
)

PLANNED = 3
"""Frames for which is known what is encoded of them: one to be tracked, and two ahead of it."""

_REFERENCE_EPS = 1 / (1 + math.exp(8))
"""Chance that the reference is wrong about a cell: its logits are within +-8."""


class Tracker:
    """Follows objects through a clip, one frame at a time.

    ``start`` once, then ``step`` for every further frame; ``add``, ``remove`` and ``correct`` act
    on the latest frame at any time. Same input, same masks: nothing is random.

    Args:
        encoder: Anything with ``encode(image_rgb) -> Embedding``. What SAM's decoder decides alone
            is encoded by its ``with_padding()`` (PerSAM) and ``for_prompts()`` (clicks, boxes), if
            it has these.
        decoder: SAM's decoder for that encoder's embeddings.
        personalize: Settings of PerSAM's parts.
        track: Settings of the method through time.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: SamDecoder,
        personalize: PersonalizeConfig | None = None,
        track: TrackConfig | None = None,
    ) -> None:
        self.encoder = encoder
        # Where SAM's decoder decides alone it gets what it was trained on: padded squares.
        self._sam_encoder, self._prompt_encoder = encoder, encoder
        if isinstance(encoder, PaddingEncoder):
            self._sam_encoder = encoder.with_padding()
            self._prompt_encoder = encoder.for_prompts()
        self._decoder = decoder
        self._personalize = personalize or PersonalizeConfig()
        self._track = track or TrackConfig()
        self.reset()

    @classmethod
    def from_config(cls, config: Config | None = None, *, progress: bool = True) -> Tracker:
        """Load the network that the settings name, and make a tracker of it.

        Raises:
            CheckpointError: The weights cannot be had, are damaged, or fit another model.
            ConfigError: The device is not there.
        """
        config = config or Config()
        encoder, decoder = load_sam(config.encoder, progress=progress)
        return cls(encoder, decoder, config.personalize, config.track)

    def reset(self) -> None:
        """Forget every object; ready for ``start`` on another clip."""
        self._objects: dict[int, TrackedObject] = {}
        self._latest: tuple[Frame, Embedding] | None = None
        self._shown: UInt8Array = np.zeros((0, 0), np.uint8)  # the latest label map
        self._from_photo = False
        self._planned: tuple[Box, ...] = (None,) * PLANNED
        self._method = self._make_method()
        self._close_ups: CloseUps | None = None
        self._background: LookAhead | None = None
        if self._track.method == "track":
            if self._track.close_up:
                self._close_ups = CloseUps(self.encoder, self._decoder, self._track)
            if self._track.background > 0:
                self._background = LookAhead(self._track.background_size)

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._decoder.device

    @property
    def look_back(self) -> int:
        """Frames that ``pipeline.track`` may hold back, see ``look_back.py``."""
        return self._track.look_back

    @property
    def keyframe_interval(self) -> int:
        """Of how many frames ``pipeline.track`` tracks one, see ``in_between.py``."""
        return self._track.keyframe_interval

    def twin(self) -> Tracker:
        """Another tracker with the same networks and settings, which follows nothing yet."""
        return Tracker(self.encoder, self._decoder, self._personalize, self._track)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects followed, ascending, lost ones included."""
        return tuple(sorted(self._objects))

    @property
    def crops(self) -> bool:
        """Whether of each frame only what is around the objects is encoded.

        The objects of a photo are searched with whole frames.
        """
        return isinstance(self.encoder, PartEncoder) and (
            self._track.method == "track"
            and not self._from_photo
            and self._track.crop_padding > 0
            and self.encoder.encodes_parts
        )

    @property
    def planned(self) -> tuple[Box, ...]:
        """What ``encode`` should be given for each of the next three frames.

        The first two are what had been the last two before this frame: so the encoder can be two
        frames ahead, and the masks are the same whether it is or not.
        """
        return self._planned

    @property
    def encode_at_once(self) -> int:
        """How many frames are best encoded at once, at most two."""
        return self.encoder.encode_at_once if isinstance(self.encoder, ParallelEncoder) else 1

    def encode(self, image_rgb: UInt8Array, box_xyxy: Box = None) -> Embedding:
        """Embed one (H, W, 3) uint8 RGB picture as ``start`` and ``step`` do.

        Args:
            image_rgb: The picture.
            box_xyxy: (4,) float32, the part of it in pixels that is needed; None = everything.
        """
        # "track" gives a box and a mask to every prompt and does as well without the padding;
        # PerSAM does not, which also finds the objects of a photo.
        if self._track.method != "track" or self._from_photo:
            return self._sam_encoder.encode(image_rgb)
        if box_xyxy is not None and isinstance(self.encoder, PartEncoder):
            return self.encoder.encode_part(image_rgb, box_xyxy)
        return self.encoder.encode(image_rgb)

    def look_ahead(self, image_rgb: UInt8Array) -> None:
        """Do what ``step`` does with a picture alone, on another thread that has the time.

        As long as the next picture is known, ``step`` has it compared with the background by a
        thread that works on after its return.

        Args:
            image_rgb: The very (H, W, 3) uint8 RGB array that a frame to come has, in their order.
        """
        if self._background:
            self._background.know(image_rgb)

    def wait(self) -> None:
        """Return when no other thread works for this tracker."""
        if self._background:
            self._background.wait()

    def box_around(self, labels: UInt8Array) -> Box:
        """What ``encode`` should be given for a frame with this (H, W) uint8 label map."""
        ids = object_ids(labels)
        if not (self.crops and ids):
            return None
        return box_around(np.isin(labels, ids), self._track.crop_padding)

    def along_edges(self, labels: UInt8Array, image_rgb: UInt8Array) -> UInt8Array:
        """Draw outlines as ``step`` does, by ``edge_passes``; see ``edges.py``.

        Args:
            labels: (H, W) uint8 label map that was made otherwise.
            image_rgb: (H, W, 3) uint8 RGB picture that it belongs to.

        Returns:
            (H, W) uint8 label map.

        Raises:
            PromptError: Map and picture differ in size.
        """
        passes = self._track.edge_passes if self._track.method == "track" else 0
        return along_edges(labels, image_rgb, passes)

    def _box_ahead(self, frames: int) -> Box:
        """What to encode so many frames later; None = everything."""
        if not self.crops or self._latest is None:
            return None
        frame, embedding = self._latest
        padding = self._track.crop_padding
        return box_ahead(self._in_order(), frames, frame.size_hw, embedding.input_size, padding)

    @torch.inference_mode()
    def start(
        self, frame: Frame, labels: UInt8Array, embedding: Embedding | None = None
    ) -> TrackResult:
        """Begin a clip with the objects of its first frame.

        Args:
            frame: The first frame.
            labels: (H, W) uint8 label map of that frame.
            embedding: Of the frame, as ``encode`` makes it with ``box_around(labels)``, when the
                caller has it already.

        Returns:
            The reference itself, as the result of this frame.

        Raises:
            PromptError: The label map is empty, full, or of another size than the frame.
        """
        self.reset()
        embedding = embedding or self.encode(frame.image_rgb, self.box_around(labels))
        self._latest = frame, embedding
        if self._background:
            self._background.look(frame.image_rgb)
        whole = None if embedding.window is None else self.encode(frame.image_rgb)
        self._learn(labels, embedding, whole=whole)
        if self._background:
            self._background.learn(labels)  # void included: it may be object
        self._planned = tuple(self._box_ahead(1 + i) for i in range(PLANNED))
        return self._result(frame, self._reference_labels(labels))

    @torch.inference_mode()
    def start_from_photo(self, image_rgb: UInt8Array, labels: UInt8Array) -> None:
        """Learn the objects from another picture; ``step`` then searches them in every frame.

        Args:
            image_rgb: (H, W, 3) uint8 RGB.
            labels: (H, W) uint8 label map of that picture.

        Raises:
            PromptError: As for ``start``.
        """
        self.reset()
        self._from_photo = True
        embedding = self.encode(image_rgb)
        self._learn(labels, embedding, in_clip=False)
        for obj in self._objects.values():
            obj.never_seen()

    @torch.inference_mode()
    def step(self, frame: Frame, embedding: Embedding | None = None) -> TrackResult:
        """Find all objects in the next frame.

        Args:
            frame: The frame; it may have another size than the ones before.
            embedding: Of the frame, as ``encode`` makes it with what was ``planned``, when the
                caller has it already. One that does not show enough is made anew.

        Raises:
            PersamError: Nothing was started.
        """
        if not self._objects and self._latest is None:
            raise PersamError("step() before start(): the tracker has no object to follow")
        objects = self._in_order()
        embedding = embedding or self.encode(frame.image_rgb, self._planned[0])
        with shared_on(self._decoder.device):
            change = self._look(objects, frame, embedding)
        if self._background and self._background.cut:
            for obj in objects:
                obj.lose()
        if not shows_expected_places(objects, embedding):
            embedding = self.encode(frame.image_rgb, self._box_ahead(1))
        self._latest = frame, embedding
        with shared_on(self._decoder.device):
            labels = self._segment(objects, frame, embedding, change)
        self._planned = *self._planned[1:], self._box_ahead(PLANNED)
        return self._result(frame, labels)

    def _look(
        self, objects: list[TrackedObject], frame: Frame, embedding: Embedding
    ) -> Change | None:
        """Compare a new frame with the background, and prepare the method for it meanwhile.

        Without a background there is nothing to do meanwhile: the method does it when it is asked.
        """
        background = self._background
        if background is None:
            return None
        if not objects:
            return background.look(frame.image_rgb)
        _, change = side_by_side(
            lambda: self._method.prepare(objects, embedding),
            lambda: background.look(frame.image_rgb),
        )
        return change

    def _segment(
        self,
        objects: list[TrackedObject],
        frame: Frame,
        embedding: Embedding,
        change: Change | None,
    ) -> UInt8Array:
        """(H, W) uint8 label map of a frame; everything learns from it."""
        lost = [obj for obj in objects if obj.frames_lost > 0]
        if change is not None and lost:
            change = change.without_what_has_come()  # it may be the lost one
        if objects:
            self._observe(objects, embedding, change)
        returned = any(obj.frames_lost == 0 for obj in lost)
        # What has returned may have been learnt as background while it was lost.
        own, taken = self._in_pixels(objects, frame, embedding, None if returned else change)

        def conclude() -> UInt8Array:
            self._method.remember(objects, embedding)
            return self.along_edges(own, frame.image_rgb)

        drawn, _ = side_by_side(
            conclude, lambda: self._learn_background(objects, taken, returned=returned)
        )
        return drawn

    def _observe(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None
    ) -> None:
        """Find the masks of a frame, let them compete, and tell each object of its own."""
        lost = any(obj.frames_lost > 0 for obj in objects)
        square = change.over_square(embedding, lost=lost) if change else None
        claimed, scores = self._method.segment(objects, embedding, square)
        rows, columns = (-(-length // 4) for length in embedding.input_hw)
        votes = square.votes if square else None
        with small_steps():
            claimed = without_strays(claimed, objects, (rows, columns), votes)
            logits = claimed
            if len(objects) > 1:
                # In the padding there is nothing to compete for; a cell of it goes on as the
                # picture.
                logits, picture = claimed.clone(), (slice(rows + 1), slice(columns + 1))
                logits[(..., *picture)] = soft_aggregate(claimed[(..., *picture)])
            scores = scores * kept_share(claimed, logits)
            for obj, mask, score in zip(objects, logits, scores.tolist(), strict=True):
                obj.observe(mask, score, self._track)

    def _in_pixels(
        self,
        objects: list[TrackedObject],
        frame: Frame,
        embedding: Embedding,
        change: Change | None,
    ) -> tuple[UInt8Array, UInt8Array]:
        """(H, W) uint8 label map of the objects seen, and the same with what else may be object.

        That was found of one of them, but is no part of its mask: it is void.
        """
        seen = [obj for obj in objects if obj.frames_lost == 0]
        ids = [obj.object_id for obj in seen]
        if not (self._close_ups and seen):
            parts = spread(lambda obj: upscale_inside(obj.logits, embedding), seen)
            labels = label_map(ids, parts, frame.size_hw)
            return labels, labels
        full = upscale_logits(torch.stack([obj.logits for obj in seen])[None], embedding)[0]
        closer = self._close_ups.refine(seen, frame, full, change.votes if change else None)
        everywhere = slice(None), slice(None)
        labels = label_map(ids, [(everywhere, mask) for mask in closer], frame.size_hw)
        found = (full.amax(dim=0) > 0).numpy()
        return labels, labels | VOID * (found & (labels == 0)).view(np.uint8)

    def _learn_background(
        self, objects: list[TrackedObject], taken: UInt8Array, *, returned: bool
    ) -> None:
        """What is 0 in a (H, W) uint8 label map is background; objects learn meanwhile."""
        if self._background is None:
            return
        tracked = all(obj.state is ObjectState.TRACKED for obj in objects)
        self._background.learn(taken, all_tracked=tracked)
        if returned:
            self._background.forget(taken > 0)
        self._background.go_on()

    @torch.inference_mode()
    def add(self, labels: UInt8Array) -> None:
        """Follow more objects from the latest frame on.

        Args:
            labels: (H, W) uint8 label map of the latest frame with the new objects.

        Raises:
            PromptError: An id is followed already, or the map is illegal as for ``start``.
            PersamError: There is no latest frame.
        """
        embedding = self._latest_around(labels, "add")
        taken = sorted(set(object_ids(labels)) & self._objects.keys())
        if taken:
            raise PromptError(f"object ids {taken} are followed already; correct() changes them")
        self._learn(labels, embedding)

    @torch.inference_mode()
    def correct(self, labels: UInt8Array) -> None:
        """Replace the masks of followed objects in the latest frame.

        They are references beside the first ones; what was learnt from other frames is forgotten.

        Args:
            labels: (H, W) uint8 label map of the latest frame; objects not in it stay as they are.

        Raises:
            PromptError: An id is not followed, or the map is illegal as for ``start``.
            PersamError: There is no latest frame.
        """
        embedding = self._latest_around(labels, "correct")
        unknown = sorted(set(object_ids(labels)) - self._objects.keys())
        if unknown:
            raise PromptError(f"object ids {unknown} are not followed; followed: {self.object_ids}")
        ids = object_ids(labels)
        if self._background and self._shown.shape == labels.shape:
            # Before the objects' own places are taken: an edge belongs to them.
            self._background.release(np.isin(self._shown, ids) & ~np.isin(labels, ids))
        self._learn(labels, embedding)

    def remove(self, object_id: int) -> None:
        """Stop following an object; the others keep their ids.

        Raises:
            PromptError: The id is not followed.
        """
        if object_id not in self._objects:
            raise PromptError(f"object {object_id} is not followed; followed: {self.object_ids}")
        del self._objects[object_id]
        if self._close_ups:
            self._close_ups.remove(object_id)

    def labels_from_prompts(
        self, image_rgb: UInt8Array, prompts: Mapping[int, Prompt]
    ) -> UInt8Array:
        """Let SAM make the masks of clicked or boxed objects.

        Args:
            image_rgb: (H, W, 3) uint8 RGB.
            prompts: Object id -> clicks and box in that picture's pixels.

        Returns:
            (H, W) uint8 label map.

        Raises:
            PromptError: A point or box lies outside, or SAM finds no mask for an object.
        """
        embedding = self._prompt_encoder.encode(image_rgb)
        return masks_from_prompts(self._decoder, embedding, prompts)

    def _make_method(self) -> Method:
        if self._track.method == "track":
            return PropagationMethod(self._decoder, self._personalize, self._track)
        learn_scales = self._track.method == "persam_f"
        return PersamMethod(
            self._decoder, self._personalize, self._track, learn_scales=learn_scales
        )

    def _in_order(self) -> list[TrackedObject]:
        """The objects by ascending id. Positions in tensors are positions in this list."""
        return [self._objects[object_id] for object_id in self.object_ids]

    def _latest_around(self, labels: UInt8Array, action: str) -> Embedding:
        """Of the latest frame, encoded like a first frame with these objects."""
        if self._latest is None:
            raise PersamError(f"{action}() needs a frame: call start() or step() first")
        frame, embedding = self._latest
        around = self.box_around(labels) if labels.shape == frame.size_hw else None
        return embedding if around is None else self.encode(frame.image_rgb, around)

    def _learn(
        self,
        labels: UInt8Array,
        embedding: Embedding,
        *,
        in_clip: bool = True,
        whole: Embedding | None = None,
    ) -> None:
        """Make or renew the memory of every object in ``labels``."""
        check_label_map(labels)
        check_mask_size(labels, embedding.source_hw, of="the frame" if in_clip else "its picture")
        side = embedding.input_size // 4
        learnt = []
        for object_id in object_ids(labels):
            mask = labels == object_id
            coverage = grid_coverage(mask, embedding, (side, side))
            # +-8 where a cell is wholly in or out, 0 at half: the mask as the decoder gives it.
            logits = torch.logit(coverage, eps=_REFERENCE_EPS)
            target = make_target(embedding, mask, self._personalize.target)
            obj = TrackedObject(object_id, target, logits, Motion(logits))
            former = self._objects.get(object_id)
            if former is not None and not former.found:  # its references were given
                obj.model, obj.memory = former.model, former.memory
            learnt.append(obj)
        self._method.learn(learnt, embedding, in_clip=in_clip, whole=whole)
        self._objects.update((obj.object_id, obj) for obj in learnt)
        if self._close_ups and in_clip and self._latest:
            self._close_ups.start(self._latest[0].image_rgb, labels, object_ids(labels))
        if self._background and in_clip:
            self._background.forget(labels > 0)

    def _reference_labels(self, labels: UInt8Array) -> UInt8Array:
        """The reference without void pixels."""
        shown = labels.copy()
        shown[~torch.isin(torch.from_numpy(labels), torch.tensor(self.object_ids)).numpy()] = 0
        return shown

    def _result(self, frame: Frame, labels: UInt8Array) -> TrackResult:
        self._shown = labels
        return TrackResult(
            frame_index=frame.index,
            time_s=frame.time_s,
            labels=labels,
            scores={i: self._objects[i].score for i in self.object_ids},
            states={i: self._objects[i].state for i in self.object_ids},
        )
