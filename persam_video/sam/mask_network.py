"""SAM's mask decoder: our own pass over segment_anything's modules.

It differs from ``MaskDecoder.forward`` in three ways: all objects of a frame go through as one
batch, all four masks come back (the single one first), and the two interventions of PerSAM (Zhang
et al., "Personalize Segment Anything Model with One Shot", 2023, section 3.2) have a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from persam_video.sam.attention import cells_to_tokens, tokens_to_cells, tokens_to_tokens

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder


class MaskNetwork:
    """Tokens of prompts and cells of an image -> masks and how good they are.

    Args:
        mask_decoder: As segment_anything builds it, in the number format that it is to run in.
    """

    def __init__(self, mask_decoder: MaskDecoder) -> None:
        self._decoder = mask_decoder
        self.dtype: torch.dtype = mask_decoder.iou_token.weight.dtype
        """Number format that it runs in."""
        first, self._norm, _, second, _ = mask_decoder.output_upscaling
        with torch.inference_mode():
            self._upscaling = _as_product(first), _as_product(second)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._upscaling[0][0].device

    def __call__(
        self,
        sparse: Tensor,
        neck: Tensor,
        dense: Tensor,
        image_pe: Tensor,
        prior: Tensor | None,
        target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Decode N objects, each in h x w cells of the image.

        Args:
            sparse: (N, K, 256) tokens of points and boxes.
            neck: (N, h, w, 256), the cells' embeddings.
            dense: (N, h, w, 256), what the mask prompts add to them.
            image_pe: (N, h, w, 256), their positional encoding.
            prior: (N, h * w), added to the logits of the token-to-image attention, or None.
            target: (N, 256), added to every token before each layer, or None.

        Returns:
            (N, M, 4h, 4w) float32 logits, and (N, M) float32 predicted IoU.
        """
        decoder = self._decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(self.dtype)], dim=1)
        # Cells one after the other, their channels side by side: every step is a matrix product.
        image = (neck + dense).to(self.dtype).flatten(1, 2)
        hidden, image = self._transform(tokens, image, image_pe.flatten(1, 2), prior, target)
        kernels = [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        logits = self._masks(image, torch.stack(kernels, dim=1), neck.shape[1:3]).float()
        predicted_iou = decoder.iou_prediction_head(hidden[:, 0]).float()
        assert logits.shape[1] == decoder.num_mask_tokens == predicted_iou.shape[1]
        return logits, predicted_iou

    def _transform(
        self,
        tokens: Tensor,
        image: Tensor,
        image_pe: Tensor,
        prior: Tensor | None,
        target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Two-way transformer: tokens (N, K, 256) and image (N, h * w, 256) -> both, attended.

        ``image_pe`` is (N, h * w, 256), the positional encoding of the image's cells.
        """
        transformer = self._decoder.transformer
        semantic = 0 if target is None else target[:, None]
        queries, keys = tokens, image
        for layer in transformer.layers:
            queries = queries + semantic
            queries, keys = _two_way_block(layer, queries, keys, tokens, image_pe, prior)
        query = queries + tokens + semantic
        attended = tokens_to_cells(
            transformer.final_attn_token_to_image, query, keys + image_pe, keys
        )
        return transformer.norm_final_attn(queries + attended), keys

    def _masks(self, image: Tensor, kernels: Tensor, grid_hw: Sequence[int]) -> Tensor:
        """Enlarge the image's cells fourfold and look for each mask's kernel in them.

        The same as SAM's two transposed convolutions and the product with the kernels. Each
        convolution makes 2 x 2 cells of one and none of them overlap, so it is a matrix product;
        cells are put in their places when they are one number per mask, not 32 channels.

        Args:
            image: (N, h * w, 256).
            kernels: (N, M, 32).
            grid_hw: h and w.

        Returns:
            (N, M, 4h, 4w) logits.
        """
        first, second = self._upscaling
        norm = self._norm
        x = F.linear(image, *first).reshape(len(image), -1, norm.weight.shape[0])
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(F.linear(x, *second)).reshape(len(image), -1, kernels.shape[2])
        height, width = grid_hw
        # (rows, columns, rows and columns of the first 2 x 2, rows and columns of the second)
        cells = torch.bmm(kernels, x.transpose(1, 2))
        cells = cells.view(*kernels.shape[:2], height, width, 2, 2, 2, 2)
        return cells.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2, 4).flatten(3, 5)


def _as_product(convolution: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """A 2 x 2 transposed convolution of stride 2 as weight (4 * C', C) and bias (4 * C',)."""
    weight, bias = convolution.weight, convolution.bias
    assert convolution.kernel_size == convolution.stride == (2, 2) and bias is not None
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), bias.repeat(4)


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
        queries = tokens_to_tokens(layer.self_attn, queries, queries, queries)
    else:
        q = queries + query_pe
        queries = queries + tokens_to_tokens(layer.self_attn, q, q, queries)
    queries = layer.norm1(queries)

    k = keys + key_pe
    attended = tokens_to_cells(layer.cross_attn_token_to_image, queries + query_pe, k, keys, prior)
    queries = layer.norm2(queries + attended)
    queries = layer.norm3(queries + layer.mlp(queries))

    attended = cells_to_tokens(layer.cross_attn_image_to_token, k, queries + query_pe, queries)
    return queries, layer.norm4(keys + attended)
