"""The blend of prior and SAM's mask, and decoding in windows of the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from persam_video.config import EncoderConfig, TrackConfig
from persam_video.sam.decoder import PromptBatch, SamDecoder
from persam_video.sam.enlarging import upscale_inside, upscale_logits
from persam_video.sam.models import load_sam
from persam_video.tracking.sharpening import _windows_around, sharpened
from persam_video.types import Candidates, Embedding, UInt8Array, Window

SIDE = 256  # of the network's input; masks have 64 x 64, the embedding 16 x 16 cells


def embedding_of(height: int, width: int, side: int = SIDE) -> Embedding:
    """Of a picture of this size, with nothing in it."""
    neck = torch.zeros(1, 256, side // 16, side // 16)
    return Embedding(neck, (), (height, width), (height, width), side, False)


class FixedDecoder:
    """Gives what is in the window of one mask for every prompt, sure of it."""

    def __init__(self, *masks: Tensor) -> None:
        self.masks = masks
        self.calls: list[int] = []

    def decode(
        self, embedding: Embedding, prompts: PromptBatch, *, windows: list[Window]
    ) -> Candidates:
        assert prompts.boxes_xyxy is not None
        self.calls.append(len(windows))
        # Which object it is, the box tells.
        first = [int(x1 >= SIDE / 2) for x1 in prompts.boxes_xyxy[:, 0].tolist()]
        parts = [self.masks[i][w.scaled(4).slices] for i, w in zip(first, windows, strict=True)]
        return Candidates(
            torch.stack(parts)[:, None].expand(-1, 4, -1, -1), torch.ones(len(parts), 4)
        )


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


def test_each_object_is_sharpened_in_its_window_and_is_nowhere_else() -> None:
    """Two objects with windows of two sizes, in a picture whose lower edge cuts the second."""
    prior = torch.full((2, 128, 128), -4.0)
    prior[0, 4:16, 4:16] = prior[1, 40:72, 60:120] = 4.0
    masks = 1.5 * prior
    masks[0, 4:16, 14:18], masks[1, 40:72, 56:60] = -6.0, 6.0
    masks[0, 4:16, 112:] = 6.0  # outside its window
    decoder = FixedDecoder(*masks)

    blend = sharpened(
        prior,
        torch.zeros_like(prior),
        embedding_of(288, 512, 512),
        decoder,  # type: ignore[arg-type]
        TrackConfig(agreement_low=0.0),
    )

    assert decoder.calls == [1, 1]
    expected = masks[:, :72] > 0
    expected[0, :, 112:] = False
    assert torch.equal(blend[:, :72] > 0, expected)
    assert torch.equal(blend[:, 72], blend[:, 71])  # for those who enlarge it
    assert (blend[:, 73:] < 0).all()


@pytest.mark.parametrize(
    ("area", "completed"),
    [
        (0.0, False),  # it was not missed: the prior is believed
        (900.0, True),
        (500.0, False),  # SAM's mask is larger than the object ever was
        (5000.0, False),  # it is a small part of the object itself
    ],
)
def test_object_that_comes_back_is_completed_by_a_mask_of_its_size(
    area: float, completed: bool
) -> None:
    prior, whole = torch.full((64, 64), -4.0), torch.full((64, 64), -8.0)
    prior[12:20, 12:20] = 4.0
    whole[10:40, 10:40] = 8.0
    decoder = FixedDecoder(whole)
    blend = sharpened(
        prior[None],
        torch.zeros(1, 64, 64),
        embedding_of(SIDE, SIDE),
        decoder,  # type: ignore[arg-type]
        TrackConfig(),
        torch.tensor([area]),
    )[0]
    assert torch.equal(blend > 0, (whole if completed else prior) > 0)


def test_sam_is_not_asked_for_an_object_of_which_nothing_is_seen() -> None:
    decoder = FixedDecoder(torch.full((64, 64), 8.0))
    prior = torch.full((1, 64, 64), -4.0)
    missed = torch.tensor([900.0])
    blend = sharpened(
        prior,
        torch.zeros_like(prior),
        embedding_of(SIDE, SIDE),
        decoder,  # type: ignore[arg-type]
        TrackConfig(agreement_low=1.0),
        missed,
    )
    assert not decoder.calls and (blend < 0).all()


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (576, 1024), (1024, 720)])
def test_windows_lie_in_the_picture_and_hold_their_boxes(height: int, width: int) -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [width - 5, height - 3, width - 1, height - 1],
            [40, 60, 80, 130],
            [180, 250, 220, 330],
        ]
    )
    rows, columns = -(-height // 16), -(-width // 16)
    windows = _windows_around(boxes, embedding_of(height, width, 1024))
    assert any(window.width < columns and window.height < rows for window in windows)
    for window, (x1, y1, x2, y2) in zip(windows, (boxes / 16).long().tolist(), strict=True):
        right, bottom = window.left + window.width, window.top + window.height
        assert window.width % 14 == 0 or window.width == columns
        assert window.height % 14 == 0 or window.height == rows
        assert 0 <= window.left <= max(0, x1 - 7) and min(columns, x2 + 8) <= right <= columns
        assert 0 <= window.top <= max(0, y1 - 7) and min(rows, y2 + 8) <= bottom <= rows


@pytest.mark.parametrize("source_hw", [(480, 854), (72, 128), (1080, 1922)], ids=str)
@pytest.mark.parametrize("kind", ["some", "one cell", "at the edges", "all", "none"])
def test_upscale_inside_is_upscale_logits_where_it_can_be_positive(
    source_hw: tuple[int, int], kind: str
) -> None:
    logits = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) - 7
    place = {
        "some": (slice(9, 20), slice(30, 60)),
        "one cell": (slice(9, 10), slice(30, 31)),
        "at the edges": (slice(30, 36), slice(60, 64)),
        "all": (slice(None), slice(None)),
        "none": (slice(0), slice(0)),
    }[kind]
    logits[place] += 20
    embedding = Embedding(torch.zeros(1, 256, 16, 16), (), source_hw, (144, 256), SIDE, False)
    whole = upscale_logits(logits[None, None], embedding)[0, 0]
    inside, part = upscale_inside(logits, embedding)
    torch.testing.assert_close(part, whole[inside], rtol=1e-4, atol=1e-4)
    found = torch.zeros(source_hw, dtype=torch.bool)
    found[inside] = part > 0
    assert torch.equal(found, whole > 0)
    assert found.any() == (kind != "none")


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
    assert torch.equal(whole.logits[:, :, : 4 * rows], window.logits)
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
        torch.testing.assert_close(got.logits[i], alone.logits[0], rtol=1e-4, atol=1e-3)
        found = torch.zeros(64, 64, dtype=torch.bool)
        found[window.scaled(4).slices] = got.logits[i, 0] > 0
        assert (found & whole[i]).sum() / (found | whole[i]).sum() > 0.9
