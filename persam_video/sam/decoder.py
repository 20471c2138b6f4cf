"""SAM's prompt encoder and mask decoder, run by our own pass over segment_anything's modules.

The pass differs from ``MaskDecoder.forward`` in three ways: all objects of a frame go through as
one batch, all four masks come back (the single one first), and the two interventions of PerSAM
(Zhang et al., "Personalize Segment Anything Model with One Shot", 2023, section 3.2) have a place.
With both off it computes what SamPredictor computes; a test holds it to that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.sam.compiled import CompiledMaskNetwork
from persam_video.types import Candidates, Embedding


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


class MaskNetwork(nn.Module):
    """The network behind the prompts: tokens and image -> four masks and their predicted IoU.

    Args:
        mask_decoder: As segment_anything builds it.
        image_pe: (1, 256, h, w) float32, positional encoding of the whole square.
    """

    image_pe: Tensor

    def __init__(self, mask_decoder: MaskDecoder, image_pe: Tensor) -> None:
        super().__init__()
        self.mask_decoder = mask_decoder
        self.register_buffer("image_pe", image_pe, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        source: Tensor,
        prior: Tensor | None = None,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the two-way transformer and the heads.

        Args:
            tokens: (N, K, 256) float32, the decoder's own five and then those of the prompt.
            source: (N, 256, rows, columns) float32, embedding plus dense prompt; the first rows and
                columns of the square.
            prior: As ``Guidance.attention_prior``, of these rows and columns.
            target: As ``Guidance.target_embedding``.

        Returns:
            (N, 4, 4 rows, 4 columns) logits and (N, 4) predicted IoU.
        """
        decoder = self.mask_decoder
        hidden, image = self._transform(tokens, source, prior, target)
        upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(source.shape))
        kernels = torch.stack(
            [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)],
            dim=1,
        )
        logits = torch.einsum("nmc,nchw->nmhw", kernels, upscaled)
        return logits, decoder.iou_prediction_head(hidden[:, 0])

    def _transform(
        self, tokens: Tensor, source: Tensor, prior: Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Two-way transformer: tokens (N, K, 256) and image (N, 256, h, w) -> the same, attended.

        The image comes back as (N, h * w, 256).
        """
        transformer = self.mask_decoder.transformer
        keys = source.flatten(2).transpose(1, 2)
        key_pe = self.image_pe[..., : source.shape[2], : source.shape[3]].flatten(2)
        key_pe = key_pe.transpose(1, 2)
        semantic = 0 if target is None else target[:, None]
        queries = tokens
        for layer in transformer.layers:
            queries = queries + semantic
            queries, keys = _two_way_block(layer, queries, keys, tokens, key_pe, prior)
        query = queries + tokens + semantic
        attended = transformer.final_attn_token_to_image(q=query, k=keys + key_pe, v=keys)
        return transformer.norm_final_attn(queries + attended), keys


class SamDecoder:
    """Prompts + embedding -> candidate masks.

    Args:
        prompt_encoder: Built for the embedding's grid.
        mask_decoder: As segment_anything builds it.

    Attributes:
        compiled: Takes the place of ``network`` where prompts are boxes, with masks or without,
            and nothing guides it: what tracking asks in every frame. None: torch does it.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.compiled: CompiledMaskNetwork | None = None
        with torch.inference_mode():
            self.network = MaskNetwork(mask_decoder, prompt_encoder.get_dense_pe())

    @property
    def device(self) -> torch.device:
        """Where prompts must live."""
        return self.network.image_pe.device

    @torch.inference_mode()
    def decode(
        self,
        embedding: Embedding,
        prompts: PromptBatch,
        guidance: Guidance = NO_GUIDANCE,
    ) -> Candidates:
        """Propose four masks for each of N objects in one batched call.

        Args:
            embedding: Of the picture.
            prompts: Where the objects are.
            guidance: PerSAM's interventions.

        Returns:
            Candidates with M = 4: the mask of the single-mask token, then the three of the
            multimask output (whole, part, sub-part in no fixed order).
        """
        points = None
        if prompts.points_xy is not None:
            points = (prompts.points_xy, prompts.point_labels)
        sparse, dense = self.prompt_encoder(
            points=points, boxes=prompts.boxes_xyxy, masks=prompts.mask_logits
        )
        decoder = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        rows, columns = grid = embedding.neck.shape[2:]
        if not embedding.padding:
            rows, columns = cells_of_picture(embedding)
            guidance = _cropped(guidance, grid, (rows, columns))  # itself where there is no prior
        source = embedding.neck[..., :rows, :columns] + dense[..., :rows, :columns]
        boxes_only = prompts.points_xy is None and prompts.boxes_xyxy is not None
        if self.compiled is not None and boxes_only and guidance is NO_GUIDANCE:
            logits, predicted_iou = self.compiled(tokens, source)
        else:
            logits, predicted_iou = self.network(
                tokens, source, guidance.attention_prior, guidance.target_embedding
            )
        assert logits.shape[1] == decoder.num_mask_tokens == predicted_iou.shape[1]
        if not embedding.padding:
            logits = to_square(logits, embedding.input_size // 4)
        return Candidates(logits, predicted_iou)


def _two_way_block(
    layer: Any,
    queries: Tensor,
    keys: Tensor,
    query_pe: Tensor,
    key_pe: Tensor,
    prior: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One block of SAM's two-way transformer, its token-to-image attention guided by ``prior``."""
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(q=queries, k=queries, v=queries)
    else:
        q = queries + query_pe
        queries = queries + layer.self_attn(q=q, k=q, v=queries)
    queries = layer.norm1(queries)

    k = keys + key_pe
    attended = guided_attention(layer.cross_attn_token_to_image, queries + query_pe, k, keys, prior)
    queries = layer.norm2(queries + attended)
    queries = layer.norm3(queries + layer.mlp(queries))

    attended = layer.cross_attn_image_to_token(q=k, k=queries + query_pe, v=queries)
    return queries, layer.norm4(keys + attended)


def guided_attention(
    attention: Any, q: Tensor, k: Tensor, v: Tensor, prior: Tensor | None
) -> Tensor:
    """Cross-attention whose map is modulated by a location prior.

    PerSAM, section 3.2, with the modulation before the softmax: softmax(q k^T / sqrt(d) + alpha S).
    The released code computes softmax(softmax(q k^T / sqrt(d)) + S) instead; over some thousand
    cells that is nearly uniform and loses what SAM attends to (docs/method.md).
    Without a prior it is plain attention.

    Args:
        attention: segment_anything ``Attention`` module.
        q: (N, K, C) tokens.
        k: (N, h * w, C) image cells with their positional encoding.
        v: (N, h * w, C) image cells.
        prior: (N, h * w) alpha S, added to the attention's logits, or None.

    Returns:
        (N, K, C) attended tokens.
    """
    if prior is None:
        plain: Tensor = attention(q=q, k=k, v=v)
        return plain
    query, key, value = (
        attention._separate_heads(project(x), attention.num_heads)
        for project, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    weights = (scores + prior[:, None, None, :]).softmax(dim=-1)
    guided: Tensor = attention.out_proj(attention._recombine_heads(weights @ value))
    return guided


def _cropped(guidance: Guidance, grid: tuple[int, ...], cells: tuple[int, int]) -> Guidance:
    """The guidance for the first rows and columns of a grid."""
    prior = guidance.attention_prior
    if prior is None:
        return guidance
    rows, columns = cells
    prior = prior.view(-1, *grid)[:, :rows, :columns].flatten(1)
    return Guidance(prior, guidance.target_embedding)


def to_square(logits: Tensor, side: int) -> Tensor:
    """(N, M, h, w) logits over a picture -> (N, M, side, side), no object in the padding.

    The last row and column go on for one cell, so that an object cut by the picture's edge reaches
    that edge when its logits are enlarged.
    """
    rows, columns = side - logits.shape[2], side - logits.shape[3]
    edge = F.pad(logits, (0, min(1, columns), 0, min(1, rows)), mode="replicate")
    empty = (0, max(0, columns - 1), 0, max(0, rows - 1))
    return F.pad(edge, empty, value=min(float(logits.min()), -1.0))


def upscale_logits(logits: Tensor, embedding: Embedding) -> Tensor:
    """Logits over the padded square -> logits in source pixels, as SAM's post-processing does.

    Args:
        logits: (N, M, 4h, 4w) float32.
        embedding: The frame's embedding; it knows the sizes.

    Returns:
        (N, M, H, W) float32.
    """
    stride = embedding.input_size // max(logits.shape[2:])
    height, width = embedding.input_hw
    # One cell beyond the picture, which its last pixels are interpolated with.
    cells = logits[..., : -(-height // stride) + 1, : -(-width // stride) + 1]
    pixels = F.interpolate(cells, scale_factor=stride, mode="bilinear", align_corners=False)
    return F.interpolate(
        pixels[..., :height, :width], embedding.source_hw, mode="bilinear", align_corners=False
    )
