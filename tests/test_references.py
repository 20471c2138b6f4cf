from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persam_video.errors import PromptError
from persam_video.label_maps import write_label_map
from persam_video.references.masks import check_mask_size, read_mask_file, read_masks
from persam_video.references.prompts import parse_prompts
from persam_video.rle import encode_rle
from persam_video.types import Reference

SIZE = (40, 60)


def box_map(*boxes: tuple[int, int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Label map with (value, x1, y1, x2, y2) rectangles."""
    labels = np.zeros(size, np.uint8)
    for value, x1, y1, x2, y2 in boxes:
        labels[y1:y2, x1:x2] = value
    return labels


ONE = box_map((1, 10, 10, 30, 30))
THREE = box_map((1, 5, 5, 15, 15), (2, 20, 5, 30, 15), (3, 35, 5, 36, 35))  # 3 is a thin line
APART = box_map((60, 5, 5, 15, 15), (120, 20, 5, 30, 15))
DISC = cv2.circle(np.zeros(SIZE, np.uint8), (30, 20), 12, 255, -1)
SOFT = cv2.GaussianBlur(DISC, (0, 0), 1.5)


def save_grey(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def save_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def save_palette(path: Path, values: np.ndarray) -> Path:
    write_label_map(path, values)
    return path


def save_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def rle(mask: np.ndarray) -> dict[str, object]:
    return encode_rle(mask.astype(np.bool_)).to_json()


# Pictures and arrays ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save", "name", "values", "expected"),
    [
        pytest.param(save_palette, "m.png", THREE, THREE, id="palette"),
        pytest.param(save_palette, "m.png", ONE * 7, ONE * 7, id="palette-one-id"),
        pytest.param(save_palette, "m.png", ONE * 255, ONE, id="palette-0-255"),
        pytest.param(save_grey, "m.png", THREE, THREE, id="grey-labels"),
        pytest.param(save_grey, "m.png", APART, APART, id="grey-labels-apart"),
        pytest.param(save_grey, "m.png", ONE * 90, ONE * 90, id="grey-one-id"),
        pytest.param(save_grey, "m.PNG", ONE, ONE, id="binary-0-1"),
        pytest.param(save_grey, "m.png", ONE * 255, ONE, id="binary-0-255"),
        pytest.param(save_grey, "m.bmp", ONE * 255, ONE, id="binary-bmp"),
        pytest.param(save_grey, "m.png", ONE.astype(np.uint16) * 65535, ONE, id="binary-16-bit"),
        pytest.param(save_grey, "m.png", ONE.astype(np.bool_), ONE, id="binary-1-bit"),
        pytest.param(save_grey, "m.png", np.dstack([ONE * 255] * 3), ONE, id="rgb-grey"),
        pytest.param(
            save_grey,
            "m.png",
            np.dstack([THREE] * 3 + [np.full(SIZE, 255, np.uint8)]),
            THREE,
            id="rgba-grey",
        ),
        pytest.param(save_npy, "m.npy", ONE.astype(np.bool_), ONE, id="npy-bool"),
        pytest.param(save_npy, "m.npy", THREE.astype(np.int64), THREE, id="npy-int64"),
        pytest.param(save_npy, "m.npy", ONE * 255, ONE, id="npy-0-255"),
        pytest.param(save_npy, "m.npy", ONE.astype(np.float32), ONE, id="npy-whole-floats"),
    ],
)
def test_read_mask_file_every_kind_gives_ids(
    save: object, name: str, values: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    path = save(tmp_path / name, values)  # type: ignore[operator]
    labels = read_mask_file(path)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)


def test_read_mask_file_white_beside_ids_is_void(tmp_path: Path) -> None:
    values = box_map((1, 10, 10, 30, 30), (255, 30, 10, 32, 30))
    for path in (save_grey(tmp_path / "g.png", values), save_palette(tmp_path / "p.png", values)):
        labels = read_mask_file(path)
        np.testing.assert_array_equal(labels, values)
        np.testing.assert_array_equal(
            read_mask_file(path, object_id=9), np.where(values == 1, 9, values)
        )


@pytest.mark.parametrize("values", [ONE, ONE * 255, ONE * 42])
def test_read_mask_file_object_id_renames_the_only_object(
    values: np.ndarray, tmp_path: Path
) -> None:
    path = save_grey(tmp_path / "m.png", values)
    np.testing.assert_array_equal(read_mask_file(path, object_id=5), ONE * 5)


@pytest.mark.parametrize("object_id", [0, 255, -3, 1000])
def test_read_mask_file_illegal_object_id_raises(object_id: int, tmp_path: Path) -> None:
    path = save_grey(tmp_path / "m.png", ONE)
    with pytest.raises(PromptError, match=f"object id {object_id} is not legal: .* 1 to 254"):
        read_mask_file(path, object_id=object_id)


def test_read_mask_file_object_id_for_several_objects_raises(tmp_path: Path) -> None:
    path = save_palette(tmp_path / "m.png", THREE)
    with pytest.raises(PromptError, match=r"id 2 is given .* several objects, \[1, 2, 3\]"):
        read_mask_file(path, object_id=2)


@pytest.mark.parametrize("name", ["m.png", "m.jpg", "m.npy"])
def test_read_mask_file_soft_mask_is_refused_with_values_and_hint(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    (save_npy if name == "m.npy" else save_grey)(path, SOFT)
    with pytest.raises(PromptError) as caught:
        read_mask_file(path)
    message = str(caught.value)
    assert "soft edges" in message
    assert "[0, 1, 2" in message
    assert "different)" in message
    assert "--threshold 12" in message
    assert str(path) in message


def test_read_mask_file_half_size_mask_is_refused_although_it_has_two_values(
    tmp_path: Path,
) -> None:
    values = box_map((255, 10, 10, 30, 30), (128, 9, 10, 10, 30))
    with pytest.raises(PromptError, match=r"found are \[0, 128, 255\]"):
        read_mask_file(save_grey(tmp_path / "m.png", values))


def test_read_mask_file_threshold_binarises_soft_masks(tmp_path: Path) -> None:
    grey = save_grey(tmp_path / "m.png", SOFT)
    np.testing.assert_array_equal(read_mask_file(grey, threshold=128), SOFT >= 128)
    labels = read_mask_file(grey, threshold=128, object_id=4)
    np.testing.assert_array_equal(labels, (SOFT >= 128) * 4)
    shares = save_npy(tmp_path / "m.npy", SOFT.astype(np.float32) / 255)
    np.testing.assert_array_equal(read_mask_file(shares, threshold=0.5), SOFT >= 127.5)


@pytest.mark.parametrize(
    ("values", "hint"),
    [(SOFT / 255, "0.5"), (SOFT / 10 - 7.5, "0"), (SOFT.astype(np.uint16) * 257, "32[0-9]{3}")],
)
def test_read_mask_file_soft_array_hints_at_its_own_range(
    values: np.ndarray, hint: str, tmp_path: Path
) -> None:
    values = values / values.max() if hint == "0.5" else values
    with pytest.raises(PromptError, match=rf"--threshold {hint}\)"):
        read_mask_file(save_npy(tmp_path / "m.npy", values))


@pytest.mark.parametrize(("threshold", "word"), [(300, "no"), (0, "every")])
def test_read_mask_file_threshold_that_splits_nothing_raises(
    threshold: float, word: str, tmp_path: Path
) -> None:
    path = save_grey(tmp_path / "m.png", DISC)
    expected = rf"{word} value reaches the threshold {threshold}; the values found are \[0, 255\]"
    with pytest.raises(PromptError, match=expected):
        read_mask_file(path, threshold=threshold)


def test_read_mask_file_threshold_for_ids_raises(tmp_path: Path) -> None:
    palette = save_palette(tmp_path / "m.png", THREE)
    coded = save_json(tmp_path / "m.json", rle(ONE))
    for path in (palette, coded):
        with pytest.raises(PromptError, match="this file holds ids"):
            read_mask_file(path, threshold=128)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("m.png", ONE * 0, r"empty: .* values are \[0\]"),
        ("m.png", ONE * 0 + 255, "covers all 2400 pixels"),
        ("m.npy", np.ones(SIZE, np.bool_), "covers all 2400 pixels"),
        ("m.npy", ONE.astype(np.int32) * 300, r"1\.\.254 .* got \[300\]"),
        ("m.npy", ONE.astype(np.int32) * -1, r"1\.\.254 .* got \[-1\]"),
        ("m.npy", np.where(ONE, np.nan, 0.0), "NaN"),
        ("m.npy", ONE.astype(np.complex128), "complex128"),
        ("m.npy", np.zeros((3, *SIZE)), r"must be \(H, W\), got \(3, 40, 60\)"),
        ("m.npy", np.zeros((0, 4)), r"got \(0, 4\)"),
    ],
)
def test_read_mask_file_senseless_values_raise_with_the_numbers(
    name: str, values: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    (save_npy if name == "m.npy" else save_grey)(path, values)
    with pytest.raises(PromptError, match=message) as caught:
        read_mask_file(path)
    assert caught.value.path == str(path)


def test_read_mask_file_coloured_picture_raises_with_hint(tmp_path: Path) -> None:
    image = np.dstack([ONE * 128, ONE * 0, ONE * 0])
    with pytest.raises(PromptError, match=r"got 2 colours .*palette PNG"):
        read_mask_file(save_grey(tmp_path / "m.png", image))


def test_read_mask_file_transparent_picture_raises(tmp_path: Path) -> None:
    cut_out = np.dstack([ONE * 200] * 3 + [ONE * 255])
    with pytest.raises(PromptError, match="opaque"):
        read_mask_file(save_grey(tmp_path / "m.png", cut_out))


@pytest.mark.parametrize("name", ["m.png", "m.jpg", "m.npy", "m.json", "m"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n0000", b"\x93NUMPY\x01\x00"])
def test_read_mask_file_damaged_file_raises(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match="not a readable") as caught:
        read_mask_file(path)
    assert caught.value.path == str(path)


def test_read_mask_file_truncated_png_raises(tmp_path: Path) -> None:
    path = save_palette(tmp_path / "m.png", (np.arange(2400) % 250).reshape(SIZE).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PromptError, match="not a readable"):
        read_mask_file(path)


def test_read_mask_file_missing_file_raises(tmp_path: Path) -> None:
    for path in (tmp_path / "no.png", tmp_path):
        with pytest.raises(PromptError, match="there is no such mask file"):
            read_mask_file(path)


def test_read_mask_file_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PromptError, match="not a readable"):
        read_mask_file(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 254), min_size=1, max_size=6, unique=True))
def test_read_mask_file_any_ids_in_a_palette_png_survive(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    labels = np.zeros((4, 8), np.uint8)
    labels[1, : len(ids)] = ids
    path = save_palette(tmp_path_factory.mktemp("ids") / "m.png", labels)
    np.testing.assert_array_equal(read_mask_file(path), labels)


# COCO ---------------------------------------------------------------------------------------


def annotation(mask: np.ndarray, category_id: int, image_id: int = 1) -> dict[str, object]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle(mask)}


def test_read_mask_file_single_rle_is_object_1_or_the_given(tmp_path: Path) -> None:
    runs = {"size": [2, 3], "counts": [1, 2, 3]}
    path = save_json(tmp_path / "m.json", rle(ONE))
    np.testing.assert_array_equal(read_mask_file(path), ONE)
    np.testing.assert_array_equal(read_mask_file(path, object_id=3), ONE * 3)
    np.testing.assert_array_equal(
        read_mask_file(save_json(tmp_path / "runs.json", runs)), [[0, 1, 0], [1, 0, 0]]
    )


@pytest.mark.parametrize("form", ["list", "file", "file-without-images"])
def test_read_mask_file_annotations_give_category_as_id(form: str, tmp_path: Path) -> None:
    entries = [annotation(THREE == 2, 20), annotation(THREE == 1, 10), annotation(THREE == 3, 30)]
    data: object = entries
    if form != "list":
        data = {"annotations": entries}
    if form == "file":
        images = [{"id": 1, "file_name": "00000.jpg"}, {"id": 2, "file_name": "00001.jpg"}]
        data = {"images": images, "annotations": [annotation(ONE, 10, image_id=2), *entries]}
    labels = read_mask_file(save_json(tmp_path / "m.json", data))
    np.testing.assert_array_equal(labels, THREE * 10)


def test_read_mask_file_masks_without_category_are_counted(tmp_path: Path) -> None:
    plain = [rle(THREE == 1), rle(THREE == 2)]
    path = save_json(tmp_path / "m.json", plain)
    np.testing.assert_array_equal(read_mask_file(path), THREE * (THREE < 3))
    nested = [{"segmentation": code, "area": 5} for code in plain]
    path = save_json(tmp_path / "m.json", nested)
    np.testing.assert_array_equal(read_mask_file(path), THREE * (THREE < 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no mask in this file"),
        ({"images": [{"id": 5}], "annotations": [annotation(ONE, 1)]}, "no mask in this file"),
        ({"annotations": 3}, "must be a list, got 3"),
        (7, 'needs the keys "size" and "counts"'),
        ([{"segmentation": [[1, 2, 3, 4, 5, 6]], "category_id": 1}], "mask 1 is a polygon"),
        ([annotation(ONE, 255)], "object id 255 is not legal"),
        ([annotation(ONE, 0)], "object id 0 is not legal"),
        ([{**annotation(ONE, 1), "category_id": "cat"}], "must be an object id, got 'cat'"),
        ([annotation(ONE, 1), annotation(ONE, 1)], "two masks with category_id 1"),
        ([annotation(ONE, 1), annotation(ONE, 2, 9)], "several pictures, image_id 1, 9"),
        ([rle(ONE), rle(ONE[:20])], r"several sizes .* \[\(20, 60\), \(40, 60\)\]"),
        ([rle(ONE), rle(ONE * 0)], "object 2 has no pixel: its mask is empty"),
        ({"size": [40, 60], "counts": [1, 2]}, "add up to 3 pixels"),
    ],
)
def test_read_mask_file_bad_coco_json_raises(data: object, message: str, tmp_path: Path) -> None:
    path = save_json(tmp_path / "m.json", data)
    with pytest.raises(PromptError, match=message) as caught:
        read_mask_file(path)
    assert caught.value.path == str(path)


# Several files ------------------------------------------------------------------------------


def test_read_masks_specs_with_ids_are_merged(tmp_path: Path) -> None:
    first = save_grey(tmp_path / "a=b.png", (THREE == 1) * np.uint8(255))
    second = save_npy(tmp_path / "hat.npy", THREE == 2)
    void = box_map((4, 40, 20, 50, 30), (255, 50, 20, 52, 30), (255, 6, 6, 7, 7))
    third = save_palette(tmp_path / "c.png", void)
    labels = read_masks([str(first), f"2={second}", str(third)])
    expected = np.where(THREE == 3, 0, THREE) + np.where(THREE == 0, void, 0)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8


def test_read_masks_overlap_goes_to_the_later_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    below = box_map((1, 10, 10, 30, 30))
    above = box_map((1, 25, 25, 40, 35))
    first, second = save_grey(tmp_path / "a.png", below), save_grey(tmp_path / "b.png", above)
    with caplog.at_level(logging.WARNING):
        labels = read_masks([f"7={first}", f"3={second}"])
    np.testing.assert_array_equal(labels, np.where(above, 3, below * 7))
    assert [record.getMessage() for record in caplog.records] == [
        "objects 7 and 3 overlap in 25 pixels; these go to object 3, the later one"
    ]


def test_read_masks_hidden_object_raises(tmp_path: Path) -> None:
    small = save_grey(tmp_path / "a.png", box_map((1, 12, 12, 20, 20)))
    large = save_grey(tmp_path / "b.png", ONE)
    with pytest.raises(PromptError, match="object 1 has no pixel: later masks hide it"):
        read_masks([f"1={small}", f"2={large}"])


def test_read_masks_same_object_twice_raises_with_both_names(tmp_path: Path) -> None:
    first, second = save_grey(tmp_path / "a.png", ONE), save_grey(tmp_path / "b.png", ONE)
    with pytest.raises(PromptError, match=r"both .*a\.png and .*b\.png hold object 1.*2=.*b\.png"):
        read_masks([str(first), str(second)])


def test_read_masks_other_sizes_raise_with_both(tmp_path: Path) -> None:
    first = save_grey(tmp_path / "a.png", ONE)
    second = save_grey(tmp_path / "b.png", ONE[:30])
    with pytest.raises(PromptError, match=r"60 x 30 pixels .* the first mask has 60 x 40"):
        read_masks([str(first), f"2={second}"])


@pytest.mark.parametrize("spec", ["0=a.png", "255=a.png", "-1=a.png"])
def test_read_masks_illegal_id_raises(spec: str) -> None:
    with pytest.raises(PromptError, match="is not legal: ids run from 1 to 254"):
        read_masks([spec])


def test_read_masks_nothing_raises() -> None:
    with pytest.raises(PromptError, match="got none"):
        read_masks([])


def test_check_mask_size_other_size_raises_with_the_numbers() -> None:
    with pytest.raises(PromptError, match=r"60 x 40 pixels .* the frame has 854 x 480"):
        check_mask_size(ONE, (480, 854))
    with pytest.raises(PromptError, match=r"60 x 40 pixels .* the frame has 40 x 60"):
        check_mask_size(ONE, (60, 40))
    check_mask_size(ONE, SIZE)


# Points and boxes ---------------------------------------------------------------------------


def test_parse_prompts_points_of_the_manual_give_one_object() -> None:
    prompts = parse_prompts(["120,80;+ 300,40;-"])
    assert list(prompts) == [1]
    np.testing.assert_array_equal(prompts[1].points_xy, [[120, 80], [300, 40]])
    np.testing.assert_array_equal(prompts[1].point_labels, [1, 0])
    assert prompts[1].points_xy.dtype == np.float32
    assert prompts[1].box_xyxy is None


def test_parse_prompts_several_objects_keep_their_items() -> None:
    prompts = parse_prompts(
        ["2=5,6  7.5,8\t2=9,10;-", "2=.5,1.;+"], ["1,2,30,40", "3=10,20,60.5,80"]
    )
    assert list(prompts) == [1, 2, 3]
    np.testing.assert_array_equal(prompts[1].points_xy, [[7.5, 8]])
    np.testing.assert_array_equal(prompts[1].box_xyxy, [1, 2, 30, 40])
    np.testing.assert_array_equal(prompts[2].points_xy, [[5, 6], [9, 10], [0.5, 1]])
    np.testing.assert_array_equal(prompts[2].point_labels, [1, 0, 1])
    assert prompts[3].points_xy.shape == (0, 2)
    np.testing.assert_array_equal(prompts[3].box_xyxy, [10, 20, 60.5, 80])
    assert Reference(prompts=prompts).prompts == prompts


def test_parse_prompts_nothing_gives_nothing() -> None:
    assert parse_prompts() == {}


@pytest.mark.parametrize(
    "item",
    ["120", "120,", "120;80", "1,2,3", "1,2;*", "1,2;", "a=1,2", "nan,1", "1e3,2", "=1,2", "1,2+"],
)
def test_parse_prompts_bad_point_shows_item_and_form(item: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts([f"10,10;+ {item}"])
    assert repr(item) in str(caught.value)
    assert "X,Y;+ or X,Y;-" in str(caught.value)


@pytest.mark.parametrize("item", ["1,2,3", "1,2,3,4,5", "1,2,3,4;+", "a,b,c,d", "1;2;3;4"])
def test_parse_prompts_bad_box_shows_item_and_form(item: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts(boxes=[item])
    assert repr(item) in str(caught.value)
    assert "X1,Y1,X2,Y2" in str(caught.value)


@pytest.mark.parametrize(
    ("points", "boxes", "message"),
    [
        (["  "], [], "a point is expected, got '  '"),
        ([], [""], "a box is expected, got ''"),
        (["0=1,2"], [], "object id 0 is not legal"),
        ([], ["255=1,2,3,4"], "object id 255 is not legal"),
        (["3=1,2;-"], [], "object 3: .* at least one on the object"),
        ([], ["4=10,2,10,5"], r"object 4: .*x1 < x2 .* got \[10\.0, 2\.0, 10\.0, 5\.0\]"),
        ([], ["1,2,3,4", "1=5,6,7,8"], "object 1 has a second box, '1=5,6,7,8'"),
    ],
)
def test_parse_prompts_senseless_prompts_raise(
    points: list[str], boxes: list[str], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        parse_prompts(points, boxes)


def test_parse_prompts_outside_the_frame_is_told_with_the_numbers() -> None:
    prompts = parse_prompts(["60,10", "2=-1,5"], ["3=0,0,61,40"])
    with pytest.raises(PromptError, match=r"point \(60, 10\) .* 0 <= x < 60"):
        prompts[1].check_inside(SIZE, 1)
    with pytest.raises(PromptError, match=r"object 2: point \(-1, 5\)"):
        prompts[2].check_inside(SIZE, 2)
    with pytest.raises(PromptError, match="box 0,0,61,40 leaves the frame"):
        prompts[3].check_inside(SIZE, 3)


coordinates = st.integers(-9999, 9999)
points_lists = st.lists(
    st.tuples(st.integers(1, 254), coordinates, coordinates, st.sampled_from("+-")),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(points_lists)
def test_parse_prompts_written_points_are_read_back(
    points: list[tuple[int, int, int, str]],
) -> None:
    points = points + [(object_id, 0, 0, "+") for object_id, *_ in points]
    prompts = parse_prompts([" ".join(f"{i}={x},{y};{sign}" for i, x, y, sign in points)])
    assert list(prompts) == sorted({i for i, *_ in points})
    for object_id, prompt in prompts.items():
        own = [(x, y, sign) for i, x, y, sign in points if i == object_id]
        assert prompt.points_xy.tolist() == [[x, y] for x, y, _ in own]
        assert prompt.point_labels.tolist() == [int(sign == "+") for *_, sign in own]
