"""Method "track": a location prior learnt online, one decoder call, and a blend of the two.

PerSAM's prior says "this looks like the object" but not "and unlike what is around it". Here the
prior is the score of a model that learns the difference (``target_model.py``) and of a memory of
single cells (``appearance_memory.py``), on a fine grid around the moved previous mask. It prompts
SAM's decoder with its box and its logits; where the two agree, SAM sharpens the mask, where they do
not, the prior is believed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from persam_video.config import PersonalizeConfig, TrackConfig
from persam_video.sam.decoder import SamDecoder, cells_of_picture, window_seen
from persam_video.tracking.aggregation import moved_objects
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.background import Change
from persam_video.tracking.cell_scores import Scored, best_place, cell_scores
from persam_video.tracking.features import FeatureSpace, FrameFeatures, grid_stride
from persam_video.tracking.grid import (
    cells_in,
    cells_of,
    on_grid,
    on_square,
    rectangle_of,
    region_around,
)
from persam_video.tracking.lesson import Lesson
from persam_video.tracking.objects import TrackedObject
from persam_video.tracking.persam import (
    PersamMethod,
    greater_likeness,
    remember_likeness,
    remember_looks,
)
from persam_video.tracking.sharpening import sharpened
from persam_video.tracking.side_by_side import small_steps, spread
from persam_video.tracking.sums import Sums
from persam_video.tracking.target_model import TargetModel
from persam_video.types import Embedding, ObjectState

_ALIKE = 0.5
"""Share of the running likeness from which on the features do not speak against the object."""

_NEARLY = -0.5
"""Score of the target model from which on a cell away from the object looks like it."""

_LESSONS = 8
"""Most objects that learn from one frame, once they have learnt a first time; more take turns. With
fewer, the masks of objects that change fast get worse."""

_GAP = 2
"""128ths of the input's side by which parts of one place are grown, so that those nearer than twice
that are one."""


class PropagationMethod:
    """Online target model, appearance memory and gated SAM decoder.

    Args:
        decoder: SAM's decoder.
        personalize: Settings of PerSAM, which finds the objects of a photo.
        track: Settings marked "track".
    """

    def __init__(
        self, decoder: SamDecoder, personalize: PersonalizeConfig, track: TrackConfig
    ) -> None:
        self._decoder = decoder
        self._config = track
        self._persam = PersamMethod(decoder, personalize, track, learn_scales=False)
        self._space: FeatureSpace | None = None
        self._far_off: Sums | None = None
        self._frame: tuple[Embedding, FrameFeatures] | None = None
        self._prepared: Scored | None = None

    def learn(
        self,
        objects: list[TrackedObject],
        embedding: Embedding,
        *,
        in_clip: bool = True,
        whole: Embedding | None = None,
    ) -> None:
        """Take each object's ``logits`` as its reference mask in this picture.

        A photo from elsewhere says nothing about this clip's background: its objects get their
        target model when they are first found.

        Args:
            objects: The objects.
            embedding: Of the picture.
            in_clip: Whether it is a frame of the clip.
            whole: Of the whole frame, where ``embedding`` is of a part of the first one. What is
                far from all objects comes near later, or is where a lost one is searched.
        """
        if not in_clip:
            return
        space = self._space_of(embedding)  # its statistics are those of the clip
        if whole is not None:
            self._far_off, self._frame = space.sums(whole, _outside(embedding, whole)), None
        frame, lessons = self._lessons(objects, embedding, objects)
        for obj, lesson in zip(objects, lessons, strict=True):
            self._fit(obj, frame, lesson)

    def _fit(self, obj: TrackedObject, frame: FrameFeatures, lesson: Lesson) -> None:
        """Take the frame as the object's reference, or as one more."""
        if obj.model is None:
            obj.model = TargetModel(self._config)
            obj.memory = AppearanceMemory(self._decoder.dtype)
        obj.model.fit(frame, lesson)
        obj.memory.fit(lesson)
        obj.frames_untaught = 0

    def _space_of(self, embedding: Embedding) -> FeatureSpace:
        """The clip's feature space; the first embedding asked about sets its statistics."""
        if self._space is None:
            stride = grid_stride(self._config, embedding)
            count, dtype = self._config.components, self._decoder.dtype
            self._space = FeatureSpace.fit(embedding, stride, count, dtype)
        return self._space

    def _features(self, embedding: Embedding) -> FrameFeatures:
        """The frame's features, computed once; only one thread at a time may ask for them."""
        if self._frame is None or self._frame[0] is not embedding:
            features = self._space_of(embedding).features(embedding)
            if embedding.window is not None and self._far_off is not None:
                features = replace(features, sums=features.sums + self._far_off)
            self._frame = embedding, features
        return self._frame[1]

    def prepare(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Compute the features of a new frame, and of a single object where it could be in it.

        Several objects are shared out among threads by ``segment``.
        """
        self._prepared = None  # the models may have learnt since
        if self._space is None:
            return
        frame = self._features(embedding)
        if len(objects) == 1 and objects[0].model is not None:
            with small_steps():
                self._prepared = self._scored(objects[0], frame, embedding)

    def segment(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of N objects in a new frame.

        Args:
            objects: The objects.
            embedding: Of the frame.
            change: What ``Background.look`` says about the frame, over the padded square.

        Returns:
            (N, 4h, 4w) float32 logits and (N,) scores in [0, 1].
        """
        side = embedding.input_size // 4
        logits = torch.zeros((len(objects), side, side))
        scores = torch.zeros(len(objects))
        for method, known in ((self._propagate, True), (self._persam.segment, False)):
            places = [i for i, o in enumerate(objects) if (o.model is not None) is known]
            if places:
                logits[places], scores[places] = method(
                    [objects[i] for i in places], embedding, change
                )
        return logits, scores

    def _propagate(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None
    ) -> tuple[Tensor, Tensor]:
        """``segment`` for objects that have a target model."""
        frame = self._features(embedding)
        with small_steps():
            return self._blended(objects, embedding, frame, change)

    def _blended(
        self,
        objects: list[TrackedObject],
        embedding: Embedding,
        frame: FrameFeatures,
        change: Change | None,
    ) -> tuple[Tensor, Tensor]:
        """``_propagate`` once the frame's features are known: priors, and SAM's masks of them."""
        moved = self._moved(objects, embedding, change)
        stride = grid_stride(self._config, embedding)
        near = on_grid(moved, embedding, stride)
        priors = spread(
            lambda each: self._prior(*each, frame, embedding), zip(objects, near, strict=True)
        )
        prior = on_square(torch.stack(priors), embedding, stride)
        tracked = ObjectState.TRACKED
        missed = prior.new_tensor([0 if o.state is tracked else o.area for o in objects])
        logits = sharpened(prior, moved, embedding, self._decoder, self._config, missed) + moved
        alike = greater_likeness(objects, logits, embedding)
        return logits, _certainty(logits) * (alike / _ALIKE).clamp(0, 1)

    def _moved(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None
    ) -> Tensor:
        """(N, 4h, 4w) logits for each of the objects, from what has changed in the frame.

        A lost object can have been learnt as background; only where the background was seen before
        it was lost, and is as it was, it cannot be, whatever its looks.
        """
        expected = torch.stack([obj.expected_logits() > 0 for obj in objects])
        if change is None:
            return torch.zeros_like(expected, dtype=torch.float32)
        # No more than the prior's limit, which is all that speaks against a place far away.
        limit = self._config.logit_limit
        most = min(self._config.background, limit)
        moved = moved_objects(expected, most * change.votes)
        lost = torch.tensor([obj.frames_lost > 0 for obj in objects])
        if not lost.any():
            return moved
        return torch.where(lost[:, None, None], -2 * limit * change.empty, moved)

    def _scored(self, obj: TrackedObject, frame: FrameFeatures, embedding: Embedding) -> Scored:
        """Score the cells of the region in which an object is searched."""
        if self._prepared is not None and self._prepared.holds_for(obj, embedding):
            return self._prepared
        assert obj.model is not None
        region, lost = self._search_region(obj, embedding), obj.frames_lost > 0
        # In a whole frame single cells find their like: a lost object is searched by the model.
        memory = None if lost else obj.memory
        scores = cell_scores(frame, region, obj.model, memory, self._config)
        return Scored(embedding, obj, lost, region, scores)

    def _prior(
        self, obj: TrackedObject, moved: Tensor, frame: FrameFeatures, embedding: Embedding
    ) -> Tensor:
        """(h, w) logits on the feature grid; the lowest ones outside the search region.

        Args:
            obj: The object.
            moved: (h, w) logits of ``_moved`` on the feature grid.
            frame: Features of the frame.
            embedding: Of the frame.
        """
        config = self._config
        scored = self._scored(obj, frame, embedding)
        region, limit = scored.region, config.logit_limit
        cells, nowhere = cells_in(region), torch.full(region.shape, -limit).flatten()
        found = (config.gain * scored.scores).clamp(-limit, limit)
        found += moved.flatten().index_select(0, cells)
        found.clamp_(-limit, limit)
        prior = nowhere.index_copy_(0, cells, found).view(region.shape)
        if obj.frames_lost > 0:
            gap = cells_of(_GAP, embedding, grid_stride(config, embedding))
            memory = obj.memory if config.memory_share else None
            prior = torch.where(best_place(prior, frame, memory, gap), prior, -limit)
        return prior

    def remember(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Let the objects that were found with confidence learn from this frame."""
        remember_likeness(objects, embedding)
        for obj in objects:
            obj.frames_untaught += 1
        tracked = [obj for obj in objects if obj.state is ObjectState.TRACKED]
        if not tracked:
            return
        remember_looks(tracked, embedding)
        pupils = _in_turn(tracked)
        seen = [obj for obj in objects if obj.frames_lost == 0]
        frame, lessons = self._lessons(pupils, embedding, seen)
        spread(lambda each: self._learn(*each, frame), zip(pupils, lessons, strict=True))

    def _learn(self, obj: TrackedObject, lesson: Lesson, frame: FrameFeatures) -> None:
        """Learn from a frame; the first time, of the object of a photo, as from a reference."""
        if obj.model is None:
            self._fit(obj, frame, lesson)
            obj.found = True
        else:
            obj.model.update(frame, lesson)
            obj.memory.update(lesson)
            obj.frames_untaught = 0

    def _lessons(
        self, pupils: list[TrackedObject], embedding: Embedding, seen: list[TrackedObject]
    ) -> tuple[FrameFeatures, list[Lesson]]:
        """The features of a frame, and what each of some objects seen in it learns from them.

        Args:
            pupils: They learn.
            embedding: Of the frame.
            seen: All objects that are seen in it, the pupils among them.
        """
        stride = grid_stride(self._config, embedding)
        masks = on_grid(torch.stack([o.logits for o in seen]).sigmoid(), embedding, stride)
        frame = self._features(embedding)
        learning = {obj.object_id for obj in pupils}
        # The others teach what they are themselves, and nothing of what is beside them.
        regions = [
            self._around(mask, embedding) if obj.object_id in learning else mask >= mask.max() / 2
            for obj, mask in zip(seen, masks, strict=True)
        ]
        lessons = Lesson.around_each([*masks], regions, frame)
        # numpy takes a thirtieth of torch's time for this.
        itself = [lesson.itself.numpy() for lesson in lessons]
        everybody = torch.from_numpy(np.logical_or.reduce(itself))
        together = sum((lesson.own for lesson in lessons[1:]), start=lessons[0].own)
        complete = []
        for obj, lesson in zip(seen, lessons, strict=True):
            if obj.object_id in learning:
                rivals, rival_sums = everybody & ~lesson.itself, together - lesson.own
                alike = self._alike(obj, lesson.region | everybody, frame)
                complete.append(
                    lesson.against(frame, rivals=rivals, rival_sums=rival_sums, alike=alike)
                )
        return frame, complete

    def _alike(self, obj: TrackedObject, taken: Tensor, frame: FrameFeatures) -> Tensor | None:
        """Samples of the frame that the target model nearly takes for the object, (n, C).

        What looks like it will be taken for it when it comes near; it is learnt before.

        Args:
            obj: The object.
            taken: (h, w) bool, where it or another object may be.
            frame: Features of the frame.
        """
        if obj.model is None:
            return None
        elsewhere = frame.sampled(~taken)
        nearly = (elsewhere @ obj.model.weights > _NEARLY).nonzero()[:, 0]
        return elsewhere.index_select(0, nearly)

    def _search_region(self, obj: TrackedObject, embedding: Embedding) -> Tensor:
        """(h, w) bool cells in which the object may be; all of them once it is lost."""
        stride = grid_stride(self._config, embedding)
        mask = on_grid(obj.expected_logits().sigmoid()[None], embedding, stride)[0]
        if obj.frames_lost > 0:
            return torch.ones_like(mask, dtype=torch.bool)
        return self._around(mask, embedding)

    def _around(self, mask: Tensor, embedding: Embedding) -> Tensor:
        """(h, w) bool cells of a mask on the feature grid and around it."""
        stride = grid_stride(self._config, embedding)
        return region_around(mask, cells_of(self._config.region_padding, embedding, stride))


def _in_turn(objects: list[TrackedObject]) -> list[TrackedObject]:
    """Those that learn from a frame: all that never did, and some that have waited the longest."""
    taught = [obj for obj in objects if obj.model is not None]
    longest = sorted(taught, key=lambda obj: -obj.frames_untaught)[:_LESSONS]
    chosen = {obj.object_id for obj in longest}
    return [obj for obj in objects if obj.model is None or obj.object_id in chosen]


def _outside(part: Embedding, whole: Embedding) -> Tensor:
    """(h, w) bool, the cells of a whole frame that are not in a part of it."""
    rows, columns = cells_of_picture(whole)
    outside = torch.ones(rows, columns, dtype=torch.bool)
    outside[window_seen(part).slices] = False
    return outside


def _certainty(logits: Tensor) -> Tensor:
    """Mean certainty of N masks over their own pixels: (N, h, w) -> (N,) in [0, 1], 0 if empty."""
    means = []
    for mask in logits:
        near = mask[rectangle_of((mask > 0).numpy())]
        inside = near > 0
        means.append((2 * near[inside].sigmoid() - 1).sum() / inside.sum().clamp_min(1))
    return torch.stack(means)
