"""The first implementation's way of following objects, as a yardstick for speed.

What PerSAM's video script does for every frame (Zhang et al., 2023; https://github.com/
ZrrSkywalker/Personalize-SAM), written anew around segment_anything's ``SamPredictor``:

- a square input, padded, contiguous (N, C, H, W), float32 on every device;
- objects one after the other; for each a cosine map of its target (half mean, half maximum of the
  first frame's features, never updated), brought to source pixels: its two highest pixels and the
  centre of the previous box are the points;
- three decoder passes per object, each waiting for the one before: points and the previous box
  grown by 10 pixels; points and the logits; points, the new mask's box and its logits. Every pass
  brings all of its masks to full resolution and hands them over as numpy arrays;
- full-resolution logits of all objects and a plane of zeros, and the largest wins;
- nothing overlaps: read, encode, decode, write, next frame (``run_in_turn``).

Kept from this package, all of it in favour of this way: TinyViT in inference form (batch norm
folded in, fused attention), one encoder run for the first frame (there: one per object), streaming
frames (there: the whole clip in memory). Left out: target-guided attention and target-semantic
prompting in the first pass, which ``SamPredictor`` has no place for and which cost next to nothing;
J&F is therefore that of this path, not a figure of the paper. Where the script fails, this goes on:
an object that covers no grid cell takes the best covered one, and one whose mask is empty keeps its
box.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

import persam_video as pv
from persam_video.pipeline import reference_labels
from persam_video.sam.architecture import build_sam
from persam_video.sam.checkpoints import load_state_dict
from persam_video.sam.image_encoder import TRAINED_INPUT_SIZE
from persam_video.sam.models import resolve_device
from persam_video.sam.tiny_vit import TinyViT
from persam_video.sinks import MultiSink
from persam_video.types import object_ids
from persam_video.writing import peak_memory

if TYPE_CHECKING:
    from segment_anything import SamPredictor

_BOX_MARGIN = 10


class ContiguousTinyViT(nn.Module):
    """TinyViT without the change of memory layout at its front: (B, 3, S, S) -> (B, 256, h, w)."""

    def __init__(self, network: TinyViT, input_size: int) -> None:
        super().__init__()
        self.network = network
        self.img_size = input_size  # segment_anything's name for it

    def forward(self, x: Tensor) -> Tensor:
        """The embedding alone."""
        x = self.network.patch_embed(x.contiguous())
        for layer in self.network.layers:
            _, x = layer(x)
        embedding: Tensor = self.network.neck(x)
        return embedding


class PredictorEncoder:
    """``SamPredictor``'s pre-processing and encoder with this package's face."""

    def __init__(self, predictor: SamPredictor) -> None:
        self.predictor = predictor

    def encode(self, image_rgb: NDArray[np.uint8]) -> pv.Embedding:
        """Embed one (H, W, 3) uint8 RGB picture; the predictor keeps it."""
        predictor = self.predictor
        predictor.set_image(image_rgb)
        size = predictor.model.image_encoder.img_size
        return pv.Embedding(
            predictor.features, (), predictor.original_size, predictor.input_size, size
        )


@dataclass(slots=True)
class _Followed:
    """One object: (256,) unit target and its last box, x1, y1, x2, y2 in source pixels."""

    object_id: int
    target: Tensor
    box_xyxy: NDArray[np.float64]


class FirstWay:
    """``start`` with a label map, then ``step`` per frame, as ``pv.Tracker``.

    Args:
        config: Model, checkpoint, device and input size; its number format is float32.

    Raises:
        CheckpointError: The weights cannot be had.
        ConfigError: The device is not there.
    """

    encode_at_once, look_back = 1, 0
    """As of ``pv.Tracker``."""

    def __init__(self, config: pv.EncoderConfig) -> None:
        checkpoint = None if config.checkpoint is None else Path(config.checkpoint)
        sam = build_sam(config.model, load_state_dict(config.model, checkpoint, progress=False))
        size = config.input_size or TRAINED_INPUT_SIZE
        if isinstance(sam.image_encoder, TinyViT):
            sam.image_encoder = ContiguousTinyViT(sam.image_encoder, size)
        sam.prompt_encoder.image_embedding_size = (size // 16, size // 16)
        sam.prompt_encoder.input_image_size = (size, size)
        sam.prompt_encoder.mask_input_size = (size // 4, size // 4)
        sam.to(resolve_device(config.device)).requires_grad_(False).eval()
        from segment_anything import SamPredictor  # takes torchvision, which not all have

        predictor = SamPredictor(sam)
        predictor.transform.target_length = size
        self.encoder = PredictorEncoder(predictor)
        self._predictor = predictor
        self._objects: list[_Followed] = []

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects followed, ascending."""
        return tuple(obj.object_id for obj in self._objects)

    @property
    def planned(self) -> tuple[None, ...]:
        """As of ``pv.Tracker``: it encodes whole frames."""
        return None, None, None

    def encode(self, image_rgb: NDArray[np.uint8], box_xyxy: None = None) -> pv.Embedding:
        """Embed one (H, W, 3) uint8 RGB picture."""
        return self.encoder.encode(image_rgb)

    @torch.inference_mode()
    def start(self, frame: pv.Frame, labels: NDArray[np.uint8]) -> pv.TrackResult:
        """Take the objects of a (H, W) uint8 label map of the first frame."""
        self.encoder.encode(frame.image_rgb)
        self._objects = [
            _Followed(object_id, self._target(labels == object_id), _box_of(labels == object_id))
            for object_id in object_ids(labels)
        ]
        shown = np.where(np.isin(labels, self.object_ids), labels, 0).astype(np.uint8)
        return _result(frame, shown, dict.fromkeys(self.object_ids, 1.0))

    @torch.inference_mode()
    def step(self, frame: pv.Frame) -> pv.TrackResult:
        """Find all objects in the next frame."""
        self.encoder.encode(frame.image_rgb)
        planes, scores = [np.zeros(frame.size_hw, np.float32)], {}
        for obj in self._objects:
            logits, scores[obj.object_id] = self._find(obj)
            planes.append(logits)
        winner = np.argmax(np.stack(planes), axis=0)
        labels = np.array([0, *self.object_ids], np.uint8)[winner]
        for obj in self._objects:
            mask = labels == obj.object_id
            if mask.any():
                obj.box_xyxy = _box_of(mask)
        return _result(frame, labels, scores)

    def _target(self, mask: NDArray[np.bool_]) -> Tensor:
        """(256,) unit vector: half mean, half maximum of the features under a (H, W) mask."""
        predictor = self._predictor
        picture = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        resized = torch.from_numpy(predictor.transform.apply_image(picture)).to(predictor.device)
        size = predictor.model.image_encoder.img_size
        height, width = resized.shape[:2]
        square = F.pad(resized[..., 0].float() / 255, (0, size - width, 0, size - height))
        features = predictor.features[0]
        grid = F.interpolate(square[None, None], features.shape[1:], mode="bilinear")[0, 0]
        inside = grid >= min(0.5, float(grid.max()))
        cells = features[:, inside]
        return F.normalize((cells.mean(dim=1) + cells.amax(dim=1)) / 2, dim=0)

    def _find(self, obj: _Followed) -> tuple[NDArray[np.float32], float]:
        """(H, W) float32 logits of an object, and SAM's own estimate of their IoU."""
        predict = self._predictor.predict
        x1, y1, x2, y2 = obj.box_xyxy
        points = np.concatenate([self._likeliest(obj.target), [[(x1 + x2) / 2, (y1 + y2) / 2]]])
        prompt: dict[str, Any] = {"point_coords": points, "point_labels": np.ones(3, np.int64)}
        grown = obj.box_xyxy + np.array([-1, -1, 1, 1]) * _BOX_MARGIN
        _, _, low = predict(**prompt, box=grown, multimask_output=False, return_logits=True)
        masks, scores, low = predict(**prompt, mask_input=low, return_logits=True)
        best = int(np.argmax(scores))
        mask = masks[best] > 0
        tight = _box_of(mask) if mask.any() else obj.box_xyxy
        masks, scores, _ = predict(
            **prompt, box=tight, mask_input=low[best : best + 1], return_logits=True
        )
        best = int(np.argmax(scores))
        return masks[best], float(np.clip(scores[best], 0, 1))

    def _likeliest(self, target: Tensor) -> NDArray[np.float64]:
        """(2, 2) x, y of the two source pixels that are most like a target."""
        predictor = self._predictor
        features = F.normalize(predictor.features[0], dim=0)
        similarity = torch.einsum("c,chw->hw", target, features)[None, None]
        finer = F.interpolate(similarity, scale_factor=4, mode="bilinear")
        full = predictor.model.postprocess_masks(
            finer, input_size=predictor.input_size, original_size=predictor.original_size
        )[0, 0]
        top = full.flatten().topk(2).indices.cpu().numpy()
        return np.stack([top % full.shape[1], top // full.shape[1]], axis=1).astype(np.float64)


def run_in_turn(
    source: Iterable[pv.Frame],
    tracker: Any,
    reference: pv.Reference,
    sinks: Sequence[pv.Sink] = (),
    on_progress: Callable[[pv.TrackResult], None] | None = None,
) -> pv.RunSummary:
    """``pv.run`` without any overlap: every frame is read, tracked and written, then the next."""
    begun, frames = time.perf_counter(), 0
    states: dict[int, Counter[pv.ObjectState]] = {}
    with MultiSink(sinks) as sink:
        for frame in source:
            if frames:
                result = tracker.step(frame)
            else:
                labels = reference_labels(tracker, reference, frame.image_rgb)
                result = tracker.start(frame, labels)
            if on_progress is not None:
                on_progress(result)
            sink.write(frame, result)
            frames += 1
            for object_id, state in result.states.items():
                states.setdefault(object_id, Counter())[state] += 1
    return pv.RunSummary(frames, time.perf_counter() - begun, peak_memory(), states)


def _box_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(4,) x1, y1, x2, y2 of a (H, W) mask with some pixel, the last pixel inside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float64)


def _result(frame: pv.Frame, labels: NDArray[np.uint8], scores: dict[int, float]) -> pv.TrackResult:
    """What is found counts as tracked; this way knows no doubt."""
    there = set(object_ids(labels))
    states = {i: pv.ObjectState.TRACKED if i in there else pv.ObjectState.LOST for i in scores}
    return pv.TrackResult(frame.index, frame.time_s, labels, scores, states)
