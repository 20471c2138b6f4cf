"""Methods "persam" and "persam_f" through time.

Each frame: location prior from the reference's features, refined by where the object was; points
from the prior, the box and the innermost point of the previous mask; guided, cascaded decoding.
"""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import PersonalizeConfig, TrackConfig
from persam_video.personalize.cascade import boxes_of_logits, cascade
from persam_video.personalize.location_prior import (
    cell_centres_xy,
    likeness,
    normalised_prior,
    renewed,
    similarity_maps,
    spread_points,
)
from persam_video.personalize.scale_weights import fit_scale_weights
from persam_video.personalize.target import Target, valid_cells
from persam_video.sam.decoder import Guidance, PromptBatch, SamDecoder
from persam_video.tracking.background import Change
from persam_video.tracking.objects import TrackedObject
from persam_video.types import Embedding

_UNLIKE = 0.6
"""Share of the running likeness that scores 0; other salient things of the picture reach it."""
_LOOK_RATE = 0.2
"""Share of a new frame in what an object looked like of late."""


class PersamMethod:
    """PerSAM (training-free) or, with ``scale_weights``, PerSAM-F.

    Args:
        decoder: SAM's decoder.
        personalize: Which parts are on.
        track: ``box_margin`` is used.
        learn_scales: Fit PerSAM-F's two weights on the reference.
    """

    def __init__(
        self,
        decoder: SamDecoder,
        personalize: PersonalizeConfig,
        track: TrackConfig,
        *,
        learn_scales: bool,
    ) -> None:
        self._decoder = decoder
        self._personalize = personalize
        self._track = track
        self._learn_scales = learn_scales

    def learn(
        self,
        objects: list[TrackedObject],
        embedding: Embedding,
        *,
        in_clip: bool = True,
        whole: Embedding | None = None,
    ) -> None:
        """Take each object's ``logits`` as its reference mask in this picture."""
        if not self._learn_scales:
            return
        prompts, guidance = self._prompts(objects, embedding)
        candidates = self._decoder.decode(embedding, prompts, guidance)
        for obj, logits in zip(objects, candidates.logits, strict=True):
            obj.scale_weights = fit_scale_weights(logits[1:], (obj.logits > 0).float())

    def prepare(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Do nothing: ``segment`` does all of it, without a ``change``."""

    def segment(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of N objects in a new frame: (N, 4h, 4w) logits and (N,) scores in [0, 1].

        ``change`` is for method "track"; the paper's method looks at single frames.
        """
        prompts, guidance = self._prompts(objects, embedding)
        weights = None
        if self._learn_scales:
            weights = torch.stack([w for o in objects if (w := o.scale_weights) is not None])
        logits, iou = cascade(
            self._decoder,
            embedding,
            prompts,
            guidance,
            scale_weights=weights,
            passes=self._personalize.passes,
        )
        alike = relative_likeness(objects, logits, embedding)
        return logits, iou.clamp(0, 1) * ((alike - _UNLIKE) / (1 - _UNLIKE)).clamp(0, 1)

    def remember(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Follow the objects' likeness; PerSAM's target is the reference's and stays as it is."""
        remember_likeness(objects, embedding)

    def _prompts(
        self, objects: list[TrackedObject], embedding: Embedding
    ) -> tuple[PromptBatch, Guidance]:
        targets = [o.target for o in objects]
        maps = similarity_maps(targets, embedding)
        grid_hw = (maps.shape[1], maps.shape[2])
        stride = embedding.input_size / grid_hw[1]
        previous = torch.stack([o.expected_logits() for o in objects])
        lost = torch.tensor([o.frames_lost > 0 for o in objects])
        maps = _without_taken_cells(maps, previous, lost)
        margin = self._track.box_margin * embedding.input_hw[0] / embedding.source_hw[0]
        boxes = _grow(boxes_of_logits(previous, embedding), margin, embedding)
        likely = torch.stack([_likeliest_patch(m, t) for m, t in zip(maps, targets, strict=True)])
        boxes = torch.where(lost[:, None], boxes_of_logits(likely, embedding), boxes)

        valid = valid_cells(embedding, grid_hw)
        inside = _cells_inside(boxes, grid_hw, stride) & valid
        refined = torch.where(inside, maps, -torch.inf)
        config = self._personalize
        positive = spread_points(refined, config.positive_points, config.point_separation)
        points = [
            cell_centres_xy(positive, stride),
            _innermost_points(previous, maps, lost, embedding),
        ]
        labels = [torch.ones(points[0].shape[:2]), torch.ones(len(objects), 1)]
        if config.negative_points:
            # The least likely cells near the object: far-away ones tell SAM nothing.
            around = _cells_inside(_grow(boxes, 4 * margin, embedding), grid_hw, stride)
            away = torch.where(around & valid, -maps, -torch.inf)
            negative = spread_points(away, config.negative_points, config.point_separation)
            points.append(cell_centres_xy(negative, stride))
            labels.append(torch.zeros(points[-1].shape[:2]))
        prompts = PromptBatch(
            points_xy=torch.cat(points, dim=1),
            point_labels=torch.cat(labels, dim=1),
            boxes_xyxy=boxes,
        )
        return prompts, self._guidance(targets, maps)

    def _guidance(self, targets: list[Target], maps: Tensor) -> Guidance:
        config = self._personalize
        return Guidance(
            config.attention * normalised_prior(maps).flatten(1) if config.attention else None,
            torch.stack([t.embedding for t in targets]) if config.semantic else None,
        )


def relative_likeness(objects: list[TrackedObject], logits: Tensor, embedding: Embedding) -> Tensor:
    """Likeness of N masks (N, 4h, 4w) to their targets, as a share of its running value: (N,)."""
    running = torch.tensor([o.likeness for o in objects])
    return likeness([o.target for o in objects], logits, embedding) / running


def greater_likeness(objects: list[TrackedObject], logits: Tensor, embedding: Embedding) -> Tensor:
    """The greater of ``relative_likeness`` and that to what the objects looked like of late: (N,).

    The reference says little of an object that has turned; what it was a moment ago does.
    """
    looks = [*(o.target for o in objects), *(o.recent for o in objects)]
    to_target, of_late = likeness(looks, logits, embedding).view(2, -1)
    running = torch.tensor([o.likeness for o in objects])
    return torch.maximum(to_target / running, of_late)


def remember_likeness(objects: list[TrackedObject], embedding: Embedding) -> None:
    """Update the running likeness of the objects seen in this frame."""
    seen = [o for o in objects if o.frames_lost == 0]
    if seen:
        logits = torch.stack([o.logits for o in seen])
        values = likeness([o.target for o in seen], logits, embedding)
        for obj, value in zip(seen, values.tolist(), strict=True):
            obj.learn_likeness(value)


def remember_looks(objects: list[TrackedObject], embedding: Embedding) -> None:
    """Let what the objects look like follow their masks in this frame."""
    # numpy takes a fraction of torch's time for this.
    seen = [o for o in objects if (o.logits.numpy() > 0).any()]
    if seen:
        logits = torch.stack([o.logits for o in seen])
        looks = renewed([o.recent for o in seen], logits, embedding, _LOOK_RATE)
        for obj, look in zip(seen, looks, strict=True):
            obj.recent = look


def _without_taken_cells(maps: Tensor, previous: Tensor, lost: Tensor) -> Tensor:
    """(N, h, w) similarity maps in which no lost object may be where another one is."""
    if not lost.any() or lost.all():
        return maps
    seen = (previous[~lost] > 0).float().amax(dim=0)
    taken = F.adaptive_max_pool2d(seen[None], (maps.shape[1], maps.shape[2]))[0] > 0
    lowest = maps.amin(dim=(1, 2), keepdim=True)
    return torch.where(taken & lost[:, None, None], lowest, maps)


def _likeliest_patch(similarity: Tensor, target: Target) -> Tensor:
    """Where to look for a lost object: the connected cells around the most similar one.

    A cell belongs to the patch when it is more like the object than like the reference's
    background.

    Args:
        similarity: (h, w) float32 map of one object.
        target: Its target.

    Returns:
        (h, w) float32, +1 in the patch and -1 elsewhere.
    """
    threshold = (target.self_similarity + target.background_similarity) / 2
    best = int(similarity.argmax())
    above = similarity >= min(threshold, float(similarity.max()))
    parts, _ = ndimage.label(above.numpy())
    patch = torch.from_numpy(parts == parts.flat[best])
    return patch.float() * 2 - 1


def _grow(boxes_xyxy: Tensor, margin: float, embedding: Embedding) -> Tensor:
    """(N, 4) boxes in input pixels grown on all sides and clipped to the frame."""
    height, width = embedding.input_hw
    grown = boxes_xyxy + torch.tensor([-margin, -margin, margin, margin])
    limits = torch.tensor([width, height, width, height]) - 1.0
    return torch.minimum(grown.clamp_min(0), limits)


def _cells_inside(boxes_xyxy: Tensor, grid_hw: tuple[int, int], stride: float) -> Tensor:
    """(N, h, w) bool, cells that touch the boxes (N, 4) in input pixels."""
    top = torch.arange(grid_hw[0]) * stride
    left = torch.arange(grid_hw[1]) * stride
    x1, y1, x2, y2 = (boxes_xyxy[:, i, None] for i in range(4))
    rows = (top + stride > y1) & (top <= y2)
    columns = (left + stride > x1) & (left <= x2)
    return rows[:, :, None] & columns[:, None, :]


def _innermost_points(previous: Tensor, maps: Tensor, lost: Tensor, embedding: Embedding) -> Tensor:
    """One point per object well inside its previous mask: (N, 1, 2) x, y in input pixels.

    A mean of the mask may lie off a ring or a bow; the highest logit lies on the object. A lost
    object takes the likeliest cell instead.
    """
    smooth = F.avg_pool2d(previous.sigmoid()[:, None], 9, stride=1, padding=4)[:, 0]
    inner = cell_centres_xy(spread_points(smooth, 1, 1.0), embedding.input_size / previous.shape[2])
    likely = cell_centres_xy(spread_points(maps, 1, 1.0), embedding.input_size / maps.shape[2])
    return torch.where(lost[:, None, None], likely, inner)
