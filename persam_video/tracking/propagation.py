"""Method "track": a location prior learnt online, one decoder call, and a blend of the two.

PerSAM's prior says "this looks like the object" but not "and unlike what is around it". Here the
prior is the score of a model that learns the difference (``target_model.py``) and of a memory of
single cells (``appearance_memory.py``), on a fine grid around the moved previous mask. It prompts
SAM's decoder with its box and its logits; where the two agree, SAM sharpens the mask, where they do
not, the prior is believed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import PersonalizeConfig, TrackConfig
from persam_video.personalize.cascade import boxes_of_logits
from persam_video.sam.decoder import PromptBatch, SamDecoder
from persam_video.tracking.features import GRID_STRIDE, FeatureSpace, FrameFeatures, grid_size
from persam_video.tracking.objects import TrackedObject
from persam_video.tracking.persam import PersamMethod, relative_likeness, remember_likeness
from persam_video.tracking.target_model import TargetModel
from persam_video.types import Candidates, Embedding, ObjectState

_ALIKE = 0.5
"""Share of the running likeness from which on the features do not speak against the object."""

_BELIEF = 0.3
"""Weight of SAM's predicted IoU against the agreement with the prior."""


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
        self._frame: tuple[Embedding, FrameFeatures] | None = None

    def learn(
        self, objects: list[TrackedObject], embedding: Embedding, *, in_clip: bool = True
    ) -> None:
        """Take each object's ``logits`` as its reference mask in this picture.

        A photo from elsewhere says nothing about this clip's background: its objects get their
        target model when they are first found.
        """
        if not in_clip:
            return
        for obj, lesson in zip(objects, self._lessons(objects, embedding), strict=True):
            self._fit(obj, embedding, *lesson)

    def _fit(
        self, obj: TrackedObject, embedding: Embedding, mask: Tensor, region: Tensor, rivals: Tensor
    ) -> None:
        """Take the frame as the object's reference; the last three as ``_lessons`` gives them."""
        frame = self._features(embedding)
        obj.model = TargetModel(self._config)
        obj.model.fit(frame, mask, region, rivals)
        obj.memory.fit(frame.looks, mask, region)

    def _features(self, embedding: Embedding) -> FrameFeatures:
        """The frame's features, computed once; the first frame asked for sets the statistics."""
        if self._space is None:
            self._space = FeatureSpace.fit(embedding)
        if self._frame is None or self._frame[0] is not embedding:
            self._frame = embedding, self._space.features(embedding)
        return self._frame[1]

    def segment(self, objects: list[TrackedObject], embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Masks of N objects in a new frame: (N, 4h, 4w) logits and (N,) scores in [0, 1]."""
        side = embedding.input_size // 4
        logits = torch.zeros((len(objects), side, side), device=embedding.neck.device)
        scores = torch.zeros(len(objects), device=embedding.neck.device)
        for method, known in ((self._propagate, True), (self._persam.segment, False)):
            places = [i for i, o in enumerate(objects) if (o.model is not None) is known]
            if places:
                logits[places], scores[places] = method([objects[i] for i in places], embedding)
        return logits, scores

    def _propagate(
        self, objects: list[TrackedObject], embedding: Embedding
    ) -> tuple[Tensor, Tensor]:
        """``segment`` for objects that have a target model."""
        prior = torch.stack([self._prior(obj, embedding) for obj in objects])
        prior = self._on_square(prior, embedding)

        boxes = boxes_of_logits(prior, embedding)
        candidates = self._decoder.decode(
            embedding, PromptBatch(boxes_xyxy=boxes, mask_logits=prior[:, None])
        )
        refined, share = self._best_candidate(prior, candidates)
        limit = self._config.sam_logit_limit
        logits = torch.lerp(prior, refined.clamp(-limit, limit), share[:, None, None])
        alike = relative_likeness(objects, logits, embedding)
        return logits, _certainty(logits) * (alike / _ALIKE).clamp(0, 1)

    def _prior(self, obj: TrackedObject, embedding: Embedding) -> Tensor:
        """(h, w) logits on the feature grid; the lowest ones outside the search region."""
        assert obj.model is not None
        config, frame = self._config, self._features(embedding)
        region = self._search_region(obj, embedding)
        score = obj.model.weights @ frame.cells[:, region]
        if config.memory_share and obj.frames_lost == 0:
            # In a whole frame single cells find their like: a lost object is searched by the model.
            remembered = obj.memory.score(frame.looks[:, region])
            score = torch.lerp(score, remembered, config.memory_share)
        limit = config.logit_limit
        prior = torch.full(region.shape, -limit, device=region.device)
        prior[region] = (config.gain * score).clamp(-limit, limit)
        return prior

    def remember(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Let the objects that were found with confidence learn from this frame."""
        remember_likeness(objects, embedding)
        for obj, lesson in zip(objects, self._lessons(objects, embedding), strict=True):
            if obj.state is not ObjectState.TRACKED:
                continue
            if obj.model is None:
                self._fit(obj, embedding, *lesson)
                continue
            frame, (mask, region, rivals) = self._features(embedding), lesson
            obj.model.update(frame, mask, region, rivals)
            obj.memory.update(frame.looks, mask, region)

    def _best_candidate(self, prior: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """SAM's mask and its share in the blend, which is 0 where it disagrees with the prior.

        Args:
            prior: (N, 4h, 4w) logits.
            candidates: SAM's four masks of each object.

        Returns:
            (N, 4h, 4w) logits of the masks that agree best with the prior and that SAM itself
            believes in, and (N,) shares in [0, 1].
        """
        p, q = prior.sigmoid()[:, None], candidates.logits.sigmoid()
        agreement = torch.minimum(p, q).sum(dim=(2, 3)) / torch.maximum(p, q).sum(dim=(2, 3))
        best = (agreement + _BELIEF * candidates.predicted_iou).argmax(dim=1)
        row = torch.arange(len(best), device=best.device)
        share = self._config.agreement_slope * (agreement[row, best] - self._config.agreement_low)
        return candidates.logits[row, best], share.clamp(0, 1)

    def _lessons(
        self, objects: list[TrackedObject], embedding: Embedding
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What each object learns from a frame, on the feature grid.

        Returns:
            Per object (h, w) share of each cell that is the object; (h, w) bool cells around it and
            of the other objects that are seen; (h, w) bool cells of these others.
        """
        masks = self._on_grid(torch.stack([o.logits for o in objects]).sigmoid(), embedding)
        seen = torch.tensor([o.frames_lost == 0 for o in objects], device=masks.device)
        taken = (masks > 0.5) & seen[:, None, None]
        lessons = []
        for i, mask in enumerate(masks):
            rivals = torch.cat([taken[:i], taken[i + 1 :]]).any(dim=0)
            lessons.append((mask, self._region(mask) | rivals, rivals))
        return lessons

    def _search_region(self, obj: TrackedObject, embedding: Embedding) -> Tensor:
        """(h, w) bool cells in which the object may be; all of them once it is lost."""
        mask = self._on_grid(obj.expected_logits().sigmoid()[None], embedding)[0]
        if obj.frames_lost > 0:
            return torch.ones_like(mask, dtype=torch.bool)
        return self._region(mask)

    def _region(self, mask: Tensor) -> Tensor:
        """(h, w) share of each cell -> bool cells of the mask's box grown by the padding."""
        inside = mask > 0.5
        if not inside.any():
            inside = mask >= mask.max()
        pad = self._config.region_padding
        rows = torch.nonzero(inside.any(dim=1)).flatten()
        columns = torch.nonzero(inside.any(dim=0)).flatten()
        region = torch.zeros_like(inside)
        region[
            max(0, int(rows[0]) - pad) : int(rows[-1]) + 1 + pad,
            max(0, int(columns[0]) - pad) : int(columns[-1]) + 1 + pad,
        ] = True
        return region

    @staticmethod
    def _on_grid(square: Tensor, embedding: Embedding) -> Tensor:
        """(N, 4h, 4w) over the padded square -> (N, rows, columns), averaged over cells."""
        height, width = grid_size(embedding)
        cells = embedding.input_size // GRID_STRIDE
        return F.adaptive_avg_pool2d(square, cells)[:, :height, :width]

    @staticmethod
    def _on_square(grid: Tensor, embedding: Embedding) -> Tensor:
        """(N, rows, columns) of the feature grid -> (N, 4h, 4w) over the padded square."""
        cells, side = embedding.input_size // GRID_STRIDE, embedding.input_size // 4
        padding = (0, cells - grid.shape[2], 0, cells - grid.shape[1])
        padded = F.pad(grid, padding, value=float(grid.min()))
        return F.interpolate(padded[:, None], (side, side), mode="bilinear")[:, 0]


def _certainty(logits: Tensor) -> Tensor:
    """Mean certainty of N masks over their own pixels: (N, h, w) -> (N,) in [0, 1], 0 if empty."""
    inside = logits > 0
    certainty = (2 * logits.sigmoid() - 1) * inside
    return certainty.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1)
