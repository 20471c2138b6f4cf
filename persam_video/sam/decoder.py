"""Prompts and a picture's embedding -> masks, by SAM's prompt encoder and mask decoder.

All objects of a frame go through as one batch, and PerSAM's two interventions have a place
(``mask_network.py``). With both off this computes what SamPredictor computes; a test holds it to
that. An object can be decoded in a window of the picture's cells instead of all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from persam_video.sam.cuda_graphs import Replayed
from persam_video.sam.enlarging import to_square
from persam_video.sam.mask_network import MaskNetwork
from persam_video.types import Candidates, Embedding, Window

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts for N objects in pixels of the network's input.

    Attributes:
        points_xy: (N, K, 2) float32, or None.
        point_labels: (N, K) int, 1 = on the object, 0 = off it, -1 = padding; None as points_xy.
        boxes_xyxy: (N, 4) float32 in SAM's convention (last pixel inside), or None.
        mask_logits: (N, 1, 4h, 4w) float32, or None.
    """

    points_xy: Tensor | None = None
    point_labels: Tensor | None = None
    boxes_xyxy: Tensor | None = None
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        """Number of objects."""
        prompts = (self.points_xy, self.boxes_xyxy, self.mask_logits)
        return next((len(prompt) for prompt in prompts if prompt is not None), 0)

    def of(self, places: list[int]) -> PromptBatch:
        """The prompts of some of the objects."""
        fields = (self.points_xy, self.point_labels, self.boxes_xyxy, self.mask_logits)
        return PromptBatch(*(None if field is None else field[places] for field in fields))


@dataclass(frozen=True, slots=True)
class Guidance:
    """PerSAM's two interventions for N objects.

    Attributes:
        attention_prior: (N, h * w) float32, normalised location prior times its strength, added to
            the logits of the token-to-image cross-attention (target-guided attention), or None.
        target_embedding: (N, 256) float32, added to every token before each layer
            (target-semantic prompting), or None.
    """

    attention_prior: Tensor | None = None
    target_embedding: Tensor | None = None


NO_GUIDANCE = Guidance()


def cells_of_picture(embedding: Embedding) -> tuple[int, int]:
    """Rows and columns of ``embedding.neck`` that show the picture, without the padding."""
    stride = embedding.input_size // max(embedding.neck.shape[2:])
    height, width = embedding.input_hw
    return -(-height // stride), -(-width // stride)


def window_seen(embedding: Embedding) -> Window:
    """Cells of ``embedding.neck`` that show anything: the picture, or what was encoded of it."""
    rows, columns = cells_of_picture(embedding)
    return embedding.window or Window(0, 0, columns, rows)


class SamDecoder:
    """Prompts + embedding -> candidate masks.

    Args:
        prompt_encoder: Built for the grid of most embeddings; others have it resized. It stays in
            float32, since it works on coordinates.
        mask_decoder: As segment_anything builds it, in the number format that it is to run in.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self._network = MaskNetwork(mask_decoder)
        self._propose = Replayed(self._network)
        self._sized: dict[tuple[int, int], _Sized] = {}
        with torch.inference_mode():
            grid = prompt_encoder.image_embedding_size
            self._sized[grid] = _Sized.of(prompt_encoder, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._network.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format that it runs in."""
        return self._network.dtype

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        prompts: PromptBatch,
        guidance: Guidance = NO_GUIDANCE,
        windows: Sequence[Window] | None = None,
    ) -> Candidates:
        """Propose four masks for each of N objects in one batched call.

        Args:
            embedding: Of the picture.
            prompts: Where the objects are, on any device.
            guidance: PerSAM's interventions, on any device.
            windows: N windows of one size in cells of ``embedding.neck``, inside the picture. Each
                object is decoded in its window alone; the time goes with the window's area. None =
                everywhere.

        Returns:
            Candidates with M = 4: the mask of the single-mask token, then the three of the
            multimask output (whole, part, sub-part in no fixed order). The logits are of the
            windows (four of them to a cell, across), or of the padded square. They are on the
            processor, where the tracker works on masks: there are few of them, and on an
            accelerator each small step would be asked for and waited for.
        """
        grid = embedding.neck.shape[2:]
        rows, columns = grid if embedding.padding else cells_of_picture(embedding)
        where = windows
        if where is None:
            where = [Window(0, 0, columns, rows)] * len(prompts)
        sized = self._for_grid(embedding)
        sparse, dense = _prompt_tokens(sized, prompts, where, self.device)
        neck, pe = _cells(_by_channels(embedding.neck), where), _cells(sized.grid_pe, where)
        prior = guidance.attention_prior
        if prior is not None:
            prior = cut(prior.view(-1, 1, *grid), where).flatten(1).to(self.device, self.dtype)
        target = guidance.target_embedding
        target = None if target is None else target.to(self.device, self.dtype)
        proposed = self._propose(sparse, neck, _by_channels(dense), pe, prior, target)
        logits, predicted_iou = (x.cpu() for x in proposed)
        if windows is None and not embedding.padding:
            logits = to_square(logits, embedding.input_size // 4)
        return Candidates(logits, predicted_iou)

    def _for_grid(self, embedding: Embedding) -> _Sized:
        """The prompt encoder with the embedding's size."""
        rows, columns = embedding.neck.shape[2:]
        if (rows, columns) not in self._sized:
            prompt_encoder = copy.copy(self.prompt_encoder)  # shares its weights
            prompt_encoder.image_embedding_size = rows, columns
            prompt_encoder.input_image_size = (embedding.input_size, embedding.input_size)
            self._sized[rows, columns] = _Sized.of(prompt_encoder, self.dtype)
        return self._sized[rows, columns]


class _Sized(NamedTuple):
    """SAM's prompt encoder for a grid of cells.

    Attributes:
        encoder: The whole of it.
        boxes_and_masks: The same without points, whose steps depend on what they are.
        grid_pe: (1, h, w, 256) positional encoding of the cells, in the decoder's number format.
    """

    encoder: PromptEncoder
    boxes_and_masks: Replayed
    grid_pe: Tensor

    @classmethod
    def of(cls, encoder: PromptEncoder, dtype: torch.dtype) -> _Sized:
        """Make what a prompt encoder has for its size."""

        def without_points(boxes: Tensor | None, masks: Tensor | None) -> tuple[Tensor, ...]:
            tokens: tuple[Tensor, ...] = encoder(points=None, boxes=boxes, masks=masks)
            return tokens

        grid_pe = _by_channels(encoder.get_dense_pe()).to(dtype).contiguous()
        return cls(encoder, Replayed(without_points), grid_pe)


def _prompt_tokens(
    sized: _Sized,
    prompts: PromptBatch,
    windows: Sequence[Window],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """SAM's prompt encoder: (N, K, 256) tokens, and (N, 256, h, w) to add to the image."""
    points, boxes, masks = None, prompts.boxes_xyxy, prompts.mask_logits
    if prompts.points_xy is not None:
        assert prompts.point_labels is not None
        points = prompts.points_xy.to(device), prompts.point_labels.to(device)
    if boxes is not None:
        boxes = boxes.to(device)
    if masks is not None:
        # Its convolutions have no padding, so that a part of the mask gives that part.
        masks = cut(masks, [window.scaled(4) for window in windows]).to(device)
    if points is None:
        sparse, dense = sized.boxes_and_masks(boxes, masks)
    else:
        sparse, dense = sized.encoder(points=points, boxes=boxes, masks=masks)
    if masks is None:
        dense = cut(dense, windows)  # the same everywhere
    return sparse, dense


def _by_channels(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), a view."""
    return maps.permute(0, 2, 3, 1)


def _cells(maps: Tensor, windows: Sequence[Window]) -> Tensor:
    """(N or 1, H, W, C) -> (N, h, w, C), cells of N windows of one size; maps as for ``cut``."""
    parts = [maps[(i % len(maps), *w.slices)] for i, w in enumerate(windows)]
    return torch.stack(parts)


def cut(maps: Tensor, windows: Sequence[Window]) -> Tensor:
    """(N or 1, C, H, W) -> (N, C, h, w), of each map, or of the one, the N windows of one size."""
    return torch.stack([maps[i % len(maps), ..., *w.slices] for i, w in enumerate(windows)])
