"""The blend of prior and SAM's mask, and decoding in windows of the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.sam.decoder import PromptBatch, SamDecoder
from persam_video.sam.models import load_sam
from persam_video.tracking.sharpening import _windows_around, sharpened
from persam_video.types import Candidates, Embedding, UInt8Array, Window

SIDE = 256  # of the network's input; masks have 64 x 64, the embedding 16 x 16 cells


def embedding_of(height: int, width: int, padding: bool = False) -> Embedding:
    """Of a picture of this size, with nothing in it."""
    neck = torch.zeros(1, 256, SIDE // 16, SIDE // 16)
    return Embedding(neck, (), (height, width), (height, width), SIDE, padding)


class FixedDecoder:
    """Gives one mask for every prompt, sure of it."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def decode_in_windows(
        self, embedding: Embedding, prompts: PromptBatch, windows: list[Window]
    ) -> Candidates:
        return Candidates(self.mask.expand(1, 4, -1, -1), torch.ones(1, 4))


def test_sam_takes_nothing_away_where_something_has_come() -> None:
    prior = torch.full((64, 64), -4.0)
    prior[10:40, 10:40] = 4.0
    without_ear = prior * 2
    without_ear[10:20, 10:16] = -8.0
    moved = torch.zeros(64, 64)
    moved[:, :13] = 2.0
    decoder = FixedDecoder(without_ear)

    blend = sharpened(
        prior[None],
        moved[None],
        embedding_of(SIDE, SIDE),
        decoder,  # type: ignore[arg-type]
        TrackConfig(agreement_low=0.0),
    )[0]

    assert (blend[10:20, 10:13] == 4).all()
    assert (blend[10:20, 13:16] < 0).all()
    assert (blend[20:40, 10:40] > 4).all()
    assert (blend[:10] < 0).all()  # what has come is not the object for that alone


@pytest.mark.parametrize(("height", "width"), [(256, 256), (144, 256), (256, 100)])
def test_windows_lie_in_the_picture_and_hold_their_boxes(height: int, width: int) -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [width - 5, height - 3, width - 1, height - 1], [40, 60, 80, 130]]
    )
    windows = _windows_around(boxes, embedding_of(height, width))
    for window, (x1, y1, x2, y2) in zip(windows, (boxes / 16).long().tolist(), strict=True):
        assert window.width % 8 == 0 or window.width == -(-width // 16)
        assert window.height % 8 == 0 or window.height == -(-height // 16)
        assert 0 <= window.left <= x1 <= x2 < window.left + window.width <= -(-width // 16)
        assert 0 <= window.top <= y1 <= y2 < window.top + window.height <= -(-height // 16)


# SAM's decoder in windows


@pytest.fixture(scope="module", params=[False, True], ids=["cropped", "padded"])
def scene(request: pytest.FixtureRequest, vit_t_weights: Path) -> tuple[SamDecoder, Embedding]:
    """A decoder for a picture with two discs of different colours."""
    config = EncoderConfig(input_size=SIDE, padding=request.param, dtype="float32")
    encoder, decoder = load_sam(config, progress=False)
    rows, columns = np.mgrid[:144, :256]
    image: UInt8Array = np.full((144, 256, 3), 90, np.uint8)
    image[(rows - 50) ** 2 + (columns - 60) ** 2 < 30**2] = (220, 40, 40)
    image[(rows - 100) ** 2 + (columns - 200) ** 2 < 25**2] = (40, 60, 230)
    return decoder, encoder.encode(image)


BOXES = torch.tensor([[30.0, 20, 90, 80], [175, 75, 225, 125]])
MASKS = torch.full((2, 1, 64, 64), -4.0)
MASKS[0, 0, 5:20, 8:22] = MASKS[1, 0, 19:31, 44:56] = 4.0
PROMPTS = PromptBatch(boxes_xyxy=BOXES, mask_logits=MASKS)


@pytest.mark.needs_weights
@pytest.mark.parametrize("masked", [False, True])
def test_decode_in_a_window_of_the_whole_picture_is_decoding_it(
    scene: tuple[SamDecoder, Embedding], masked: bool
) -> None:
    decoder, embedding = scene
    rows = 16 if embedding.padding else 9
    prompts = PROMPTS if masked else PromptBatch(boxes_xyxy=BOXES)
    whole = decoder.decode(embedding, prompts)
    window = decoder.decode(embedding, prompts, windows=[Window(0, 0, 16, rows)] * 2)
    assert torch.equal(whole.logits, window.logits)
    assert torch.equal(whole.predicted_iou, window.predicted_iou)


@pytest.mark.needs_weights
@pytest.mark.parametrize("masked", [False, True])
def test_decode_each_object_in_its_own_window(
    scene: tuple[SamDecoder, Embedding], masked: bool
) -> None:
    decoder, embedding = scene
    masks = MASKS if masked else None
    windows = [Window(0, 0, 8, 7), Window(8, 2, 8, 7)]
    got = decoder.decode(
        embedding, PromptBatch(boxes_xyxy=BOXES, mask_logits=masks), windows=windows
    )
    whole = decoder.decode(embedding, PROMPTS).logits[:, 0] > 0
    for i, window in enumerate(windows):
        one = PromptBatch(
            boxes_xyxy=BOXES[i : i + 1], mask_logits=None if masks is None else masks[i : i + 1]
        )
        alone = decoder.decode(embedding, one, windows=[window])
        here, there = got.logits[i, 0, :36], alone.logits[0, 0, :36]  # without the padding
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-3)
        outside = torch.ones(36, 64, dtype=torch.bool)
        outside[window.scaled(4).slices] = False
        assert (here[outside] == -8).all()
        found = got.logits[i, 0] > 0
        assert (found & whole[i]).sum() / (found | whole[i]).sum() > 0.9


@pytest.mark.needs_weights
def test_decode_in_windows_of_several_sizes_keeps_the_order(
    scene: tuple[SamDecoder, Embedding],
) -> None:
    decoder, embedding = scene
    places = [0, 1, 0]
    windows = [Window(0, 0, 8, 7), Window(8, 2, 8, 7), Window(0, 0, 16, 9)]
    got = decoder.decode_in_windows(embedding, PROMPTS.of(places), [windows[i] for i in (0, 2, 1)])
    for i, (place, window) in enumerate(zip(places, (0, 2, 1), strict=True)):
        one = decoder.decode(embedding, PROMPTS.of([place]), windows=[windows[window]])
        here, there = got.logits[i, :, :36], one.logits[0, :, :36]
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(got.predicted_iou[i], one.predicted_iou[0], rtol=1e-4, atol=1e-4)
