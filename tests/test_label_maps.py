"""Label maps on disk and run-length codes: round trips, golden values, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from persam_video.errors import DatasetError, PersamError
from persam_video.label_maps import davis_palette, object_color, read_label_map, write_label_map
from persam_video.rle import Rle, decode_rle, encode_rle
from persam_video.types import VOID, UInt8Array, object_ids

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
label_maps = sizes.flatmap(lambda size: arrays(np.uint8, size))
masks = sizes.flatmap(lambda size: arrays(np.bool_, size))


def grey_png(bits: int, rows: list[bytes], width: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@given(label_maps)
def test_object_ids_are_all_values_but_background_and_void(labels: UInt8Array) -> None:
    for view in (labels, labels[:, ::-1], labels[::2], labels[labels % 3 > 0], labels[:, :0]):
        assert object_ids(view) == tuple(sorted(set(view.ravel().tolist()) - {0, VOID}))


def test_davis_palette_first_entries_are_those_of_davis() -> None:
    golden = [
        *[(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)],
        *[(0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0)],
    ]
    palette = davis_palette()
    assert [tuple(color) for color in palette[: len(golden)].tolist()] == golden
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(color) for color in palette.tolist()}) == 256


@pytest.mark.needs_davis
def test_davis_palette_against_the_files_of_davis_is_equal(davis_root: Path) -> None:
    file = davis_root / "Annotations/480p/dogs-jump/00000.png"
    with Image.open(file) as image:
        stored = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(stored, davis_palette())
    assert np.unique(read_label_map(file)).tolist() == [0, 1, 2, 3]


def test_object_color_of_frequent_ids_is_bright_and_distinct() -> None:
    colors = [object_color(object_id) for object_id in range(1, 8)]
    assert len(set(colors)) == 7
    assert all(np.dot(color, (0.299, 0.587, 0.114)) >= 95 for color in colors)


def test_object_color_every_id_has_one() -> None:
    """White, that of object 7, has nothing to be lifted by (it was a division by zero)."""
    for object_id in range(256):
        assert all(0 <= value <= 255 for value in object_color(object_id))
    assert object_color(7) == (255, 255, 255)


def test_object_color_beyond_uint8_is_refused() -> None:
    with pytest.raises(PersamError, match=r"0\.\.255, got 256"):
        object_color(256)


@given(labels=label_maps)
def test_label_map_written_and_read_is_equal(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("labels") / "map.png"
    write_label_map(path, labels)
    assert np.array_equal(read_label_map(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().ravel().tolist()


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [(1, b"\x50", [0, 1, 0, 1]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15])],
)
def test_label_map_in_grey_of_few_bits_keeps_its_values(
    tmp_path: Path, bits: int, row: bytes, expected: list[int]
) -> None:
    path = tmp_path / "few.png"
    path.write_bytes(grey_png(bits, [row], 4))
    assert read_label_map(path).tolist() == [expected]


def test_label_map_of_16_bits_is_read_up_to_255(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 255]], np.uint16)).save(path)
    assert read_label_map(path).tolist() == [[0, 255]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(path)
    with pytest.raises(DatasetError, match=r"0\.\.255, got a 16-bit PNG with 300"):
        read_label_map(path)


@pytest.mark.parametrize("channels", [3, 4])
def test_label_map_in_colour_is_refused_with_its_mode(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "colour.png"
    Image.fromarray(np.zeros((2, 2, channels), np.uint8)).save(path)
    with pytest.raises(DatasetError, match="colour picture \\(mode RGB") as caught:
        read_label_map(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("damage", ["missing", "text", "jpeg", "cut off", "bad chunk"])
def test_label_map_that_is_no_whole_png_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    if damage == "text":
        path.write_text("no picture")
    elif damage == "jpeg":
        Image.fromarray(noise).save(path, format="JPEG")
    elif damage != "missing":
        write_label_map(path, noise)
        data = path.read_bytes()
        flipped = data.replace(b"IDAT", b"ID\x00T")
        path.write_bytes(flipped if damage == "bad chunk" else data[: len(data) // 2])
    with pytest.raises(DatasetError, match=r"broken\.png"):
        read_label_map(path)


def test_label_map_of_wrong_type_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PersamError, match="int64"):
        write_label_map(tmp_path / "map.png", np.zeros((2, 2), np.int64))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# pycocotools' own decoder, used only here to compare, is not quite ready for numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(mask=masks)
def test_rle_encoded_and_decoded_is_equal(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert np.array_equal(decode_rle(rle), mask)
    assert Rle.from_json(rle.to_json()) == rle
    coco = {"size": list(mask.shape), "counts": rle.counts.encode()}
    assert np.array_equal(coco_mask.decode(coco).astype(bool), mask)


def test_rle_with_a_list_of_runs_reads_down_the_columns() -> None:
    rle = Rle.from_json({"size": [2, 3], "counts": [1, 2, 3]})
    assert decode_rle(rle).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", '"size" and "counts", got \'text\''),
        ({"size": [2, 2]}, "got keys \\['size'\\]"),
        ({"size": [2], "counts": ""}, "must be \\[height, width\\]"),
        ({"size": [2, True], "counts": ""}, "must be \\[height, width\\]"),
        ({"size": [0, 2], "counts": ""}, "height 0"),
        ({"size": [2**20, 2**20], "counts": ""}, "at most"),
        ({"size": [2, 2], "counts": 7}, "text or a list of runs, got 7"),
        ({"size": [2, 2], "counts": [1, -1, 4]}, "text or a list of runs"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3 pixels, its size 2 x 2 needs 4"),
        ({"size": [2, 2], "counts": [10**30]}, "add up to"),
    ],
)
def test_rle_json_that_is_malformed_is_refused(data: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Rle.from_json(data)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "add up to 0"),
        ("5", "add up to 5"),
        ("P", "middle of a number"),
        ("\n", "illegal character"),
        ("é", "illegal character"),
        ("o" * 40, "illegal character"),
        ("O5", "a run of -1"),
    ],
)
def test_rle_with_damaged_counts_is_refused(counts: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        decode_rle(Rle((2, 2), counts))


@given(counts=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_rle_with_any_text_gives_a_mask_or_a_clear_error(counts: str) -> None:
    try:
        mask = decode_rle(Rle((3, 4), counts))
    except DatasetError as error:
        assert "RLE" in str(error)
    else:
        assert mask.shape == (3, 4)


def test_rle_of_wrong_type_is_refused() -> None:
    with pytest.raises(PersamError, match="uint8"):
        encode_rle(np.zeros((2, 2), np.uint8))  # type: ignore[arg-type]
