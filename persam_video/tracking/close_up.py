"""A second look at one object: the window around it alone, encoded at the network's full size.

SAM's decoder and the feature grid are coarse for an object that fills a small part of the frame. In
a window around it the same network sees it larger. What is learnt there is kept apart from what is
learnt in whole frames, since features depend on scale; and the window's answer is averaged with the
whole frame's, since the window has not seen the background that is about to come into it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.config import TrackConfig
from persam_video.geometry import mask_to_box, window_around
from persam_video.sam.decoder import SamDecoder
from persam_video.sam.enlarging import upscale_logits
from persam_video.sam.image_encoder import Encoder
from persam_video.tracking.aggregation import moved_objects, soft_aggregate
from persam_video.tracking.appearance_memory import AppearanceMemory
from persam_video.tracking.cell_scores import cell_scores
from persam_video.tracking.features import FeatureSpace, FrameFeatures, grid_size
from persam_video.tracking.grid import cells_of, on_square, over_square, region_around
from persam_video.tracking.lesson import Lesson
from persam_video.tracking.objects import TrackedObject
from persam_video.tracking.sharpening import sharpened
from persam_video.tracking.target_model import TargetModel
from persam_video.types import (
    VOID,
    BoolArray,
    Embedding,
    Float32Array,
    Frame,
    ObjectState,
    UInt8Array,
    Window,
)

_MARGIN = 1.6
"""Side of the window in lengths of the object."""
_SMALLEST = 1 / 6
"""Shortest window, as a share of the frame's longer side."""
_LARGEST = 0.6
"""Longest window worth an encoder run of its own, as a share of the frame's longer side."""
_STEADY = (0.6, 1.2)
"""The side stays as it is while the wanted one is within these factors of it."""
_DRIFT = 0.06
"""So far, in sides, the object may leave the centre before the window follows."""
_SPECK = 0.05
"""Parts under this share of the largest one do not widen the window."""
_BAND = 9
"""128ths of the window around the whole frame's mask in which the close-up's own models have a say;
farther off they may take a background that they have never seen for the object."""
_STRIDE = 8
"""Input pixels per cell of the feature grid, which shows more of the object than the whole frame's
anyway."""
_OWN = 0.5
"""Its weight against the whole frame there."""
_CERTAIN = 8.0
"""Logit of a pixel of the reference."""


class CloseUps:
    """The close-ups of all objects.

    Args:
        encoder: The network that whole frames go through as well.
        decoder: SAM's decoder.
        config: Settings of method "track".
    """

    def __init__(self, encoder: Encoder, decoder: SamDecoder, config: TrackConfig) -> None:
        self._new = partial(CloseUp, encoder, decoder, config)
        self._config = config
        self._by_id: dict[int, CloseUp] = {}

    def start(self, image_rgb: UInt8Array, labels: UInt8Array, ids: tuple[int, ...]) -> None:
        """Take the objects ``ids`` of a (H, W) uint8 label map as references in this frame."""
        for object_id in ids:
            self._by_id[object_id] = close_up = self._new()
            mask = torch.from_numpy(labels == object_id)
            others = torch.from_numpy((labels != 0) & (labels != VOID)) & ~mask
            logits = torch.where(mask, _CERTAIN, -_CERTAIN)
            if close_up.look(image_rgb, logits):
                close_up.learn(logits, others)

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        self._by_id.pop(object_id, None)

    def refine(
        self,
        objects: list[TrackedObject],
        frame: Frame,
        full: Tensor,
        change: Tensor | None = None,
    ) -> Tensor:
        """Look closer at the objects seen in a frame.

        What the close-up finds is shown, and learnt by the close-up; in whole frames the tracker
        goes on from its own masks, so that a part lost here comes back with the next frame.

        Args:
            objects: N objects.
            frame: The frame.
            full: (N, H, W) float32 logits, the objects as found in the whole frame.
            change: (h', w') float32 in [-1, 1], what ``Background.look`` votes about the frame.

        Returns:
            (N, H, W) float32 logits, after the objects have competed again.
        """
        refined = full.clone()
        moved = torch.zeros_like(full)
        if change is not None:
            size = full.shape[1], full.shape[2]
            large = F.interpolate(change[None, None], size, mode="bilinear")[0, 0]
            moved = moved_objects(full > 0, self._config.background * large)
        looked = []
        for i, obj in enumerate(objects):
            if obj.object_id not in self._by_id:
                self._by_id[obj.object_id] = self._new()
            close_up = self._by_id[obj.object_id]
            if close_up.look(frame.image_rgb, full[i]):
                refined[i] = close_up.refine(full[i], moved[i])
                looked.append((i, obj, close_up))
        if not looked:
            return full
        refined = soft_aggregate(refined)
        taken = refined > 0
        for i, obj, close_up in looked:
            if not taken[i].any():
                # The whole frame has found it; a close-up that sees nothing there is wrong.
                refined[i] = torch.where(taken.any(dim=0), -_CERTAIN, full[i])
            elif obj.state is ObjectState.TRACKED:
                close_up.learn(refined[i], taken.any(dim=0) & ~taken[i])
            close_up.forget_view()
        return refined


class CloseUp:
    """Window, features and memory of one object.

    Args:
        encoder: The network that whole frames go through as well.
        decoder: SAM's decoder.
        config: Settings of method "track".
    """

    def __init__(self, encoder: Encoder, decoder: SamDecoder, config: TrackConfig) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._config = config
        self._window: Window | None = None
        self._side = 0.0
        self._space: FeatureSpace | None = None
        self._model: TargetModel | None = None
        self._memory = AppearanceMemory(decoder.dtype)
        self._view: tuple[Window, Embedding, FrameFeatures] | None = None

    def look(self, image_rgb: UInt8Array, logits: Tensor) -> bool:
        """Encode the window around a mask.

        Args:
            image_rgb: (H, W, 3) uint8 RGB, the whole frame.
            logits: (H, W) float32, the object in it.

        Returns:
            Whether there is a close-up: not of an empty mask, nor of an object longer than about
            three eighths of the frame, or, once followed, nearly a half.
        """
        self._view = None
        window = self._follow((logits > 0).numpy())
        if window is None:
            return False
        embedding = self._encoder.encode(window.cut(image_rgb))
        if self._space is None:
            count, dtype = self._config.components, self._decoder.dtype
            self._space = FeatureSpace.fit(embedding, _STRIDE, count, dtype)
        self._view = window, embedding, self._space.features(embedding)
        return True

    def refine(self, logits: Tensor, moved: Tensor) -> Tensor:
        """The object's mask as the close-up has it.

        Args:
            logits: (H, W) float32, the object as found in the whole frame that was looked at.
            moved: (H, W) float32 logits, for the object by what has changed there.

        Returns:
            (H, W) float32 logits; outside the window as they came.
        """
        assert self._view is not None
        window, embedding, frame = self._view
        prior = on_square(self._prior(window, embedding, frame, logits)[None], embedding, _STRIDE)
        inside = over_square(moved[window.slices], embedding)[None]
        sharp = sharpened(prior, inside, embedding, self._decoder, self._config)
        refined = logits.clone()
        refined[window.slices] = upscale_logits(sharp[None], embedding)[0, 0]
        refined[window.slices] += moved[window.slices]
        return refined

    def learn(self, logits: Tensor, rivals: Tensor) -> None:
        """Remember the object in the frame that was looked at; the first time as its reference.

        Args:
            logits: (H, W) float32, the object in it.
            rivals: (H, W) bool, where other objects are.
        """
        assert self._view is not None
        window, embedding, frame = self._view
        if not (logits[window.slices] > 0).any():
            return
        mask = _shrunk(logits.sigmoid()[window.slices], embedding, _STRIDE)
        others = _shrunk(rivals[window.slices].float(), embedding, _STRIDE) > 0.5
        padding = cells_of(self._config.region_padding, embedding, _STRIDE)
        lesson = Lesson.around(mask, region_around(mask, padding), frame)
        lesson = lesson.against(frame, rivals=others)
        if self._model is None:
            self._model = TargetModel(self._config)
            self._model.fit(frame, lesson)
            self._memory.fit(lesson)
        else:
            self._model.update(frame, lesson)
            self._memory.update(lesson)

    def forget_view(self) -> None:
        """Let go of the frame's features, which are large."""
        self._view = None

    def _prior(
        self, window: Window, embedding: Embedding, frame: FrameFeatures, logits: Tensor
    ) -> Tensor:
        """(h, w) logits on the window's feature grid, from the whole frame's and its own model."""
        config, limit = self._config, self._config.logit_limit
        coarse = _shrunk(logits[window.slices], embedding, _STRIDE).clamp(-limit, limit)
        if self._model is None:
            return coarse
        # A thin object fills no cell, so a cell counts that one pixel of it lies in.
        inside = F.adaptive_max_pool2d((logits[window.slices] > 0).float()[None], coarse.shape)
        band = cells_of(_BAND, embedding, _STRIDE)
        rows = F.max_pool2d(inside, (2 * band + 1, 1), stride=1, padding=(band, 0))
        region = F.max_pool2d(rows, (1, 2 * band + 1), stride=1, padding=(0, band))[0] > 0
        score = cell_scores(frame, region, self._model, self._memory, config)
        prior = torch.full_like(coarse, -limit)
        own = (config.gain * score).clamp(-limit, limit)
        prior[region] = torch.lerp(coarse[region], own, _OWN)
        return prior

    def _follow(self, mask: BoolArray) -> Window | None:
        """The window for a (H, W) mask: as before, unless the object moved or changed its size."""
        box = _main_box(mask)
        if box is None:
            return None
        longest = max(mask.shape)
        wanted = max(_SMALLEST * longest, _MARGIN * float((box[2:] - box[:2]).max()))
        if not _STEADY[0] * self._side <= wanted <= _STEADY[1] * self._side:
            self._side, self._window = wanted, None
        if self._side > _LARGEST * longest:
            self._side, self._window = 0.0, None
            return None
        size_hw = (mask.shape[0], mask.shape[1])
        window, old = window_around(box, round(self._side), size_hw), self._window
        if old is None or not old.is_near(window, _DRIFT * self._side):
            self._window = window
        return self._window


def _main_box(mask: BoolArray) -> Float32Array | None:
    """Box of a mask without its specks, or None for an empty mask."""
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = (sizes > _SPECK * sizes.max())[parts]
    return mask_to_box(mask)


def _shrunk(pixels: Tensor, embedding: Embedding, stride: int) -> Tensor:
    """(H, W) float32 of the embedding's picture -> (h, w) averages over its feature grid."""
    height, width = embedding.input_hw
    inside = F.interpolate(pixels[None, None], (height, width), mode="bilinear", antialias=True)
    rows, columns = grid_size(embedding, _STRIDE)
    edge = (0, columns * stride - width, 0, rows * stride - height)
    return F.avg_pool2d(F.pad(inside, edge, mode="replicate"), stride)[0, 0]
