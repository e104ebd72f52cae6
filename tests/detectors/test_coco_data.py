"""The reader of data sets names every flaw by file and place, and reads what other programs write."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detectors.coco_data import check_pictures, merge_categories, read_data_set, read_results
from detectors.data_files import DataSetError

DATA: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 90, "height": 60},
        {"id": 2, "file_name": "b.png", "width": 90, "height": 60},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "red car"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 60, 50]},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [30, 10, 20, 45.5]},
    ],
}


def written(folder: Path, data: Any, encoding: str = "utf-8") -> Path:
    path = folder / "train.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding=encoding)
    return path


def spoiled(place: str, value: Any) -> dict[str, Any]:
    """`DATA` with a value at a place such as "images.0.id"; the value is removed where it is `...`."""
    data = copy.deepcopy(DATA)
    *way, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    inner: Any = data
    for part in way:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("images.0.id", 2, r"images\[1\]\.id is 2, the id of an earlier image"),
        ("images.0.id", None, r"images\[0\]\.id is None"),
        ("images.0.file_name", ..., r"images\[0\]\.file_name is None"),
        ("images.1.width", 0, r"images\[1\]\.width is 0"),
        ("images.1.width", 10**400, r"images\[1\]\.width is 10"),
        ("annotations.0.bbox", [0, 0, 10**400, 1], r"annotations\[0\]\.bbox is"),
        (
            "images.0.neg_category_ids",
            [[1]],
            r"images\[0\]\.neg_category_ids is \[\[1\]\]: expected a list",
        ),
        ("annotations.0.image_id", "9" * 5000, r"annotations\[0\]\.image_id is '999"),
        ("images.1", 7, r"images\[1\] is 7: expected an object"),
        ("categories", ..., "categories is missing"),
        ("categories", [], "categories is a list"),
        ("categories.1.id", 1, r"categories\[1\]\.id is 1, the id of an earlier category"),
        ("categories.1.name", "Person ", r"'Person ', which reads like 'person'"),
        ("categories.1.name", "  ", r"categories\[1\]\.name is '  '"),
        ("annotations.1.category_id", 34, r"annotations\[1\]\.category_id is 34, not an id in categories"),
        ("annotations.1.image_id", "2", r"is '2', .*it is a text here and the number 2 there"),
        ("annotations.0.bbox", [1, 2, 3], r"annotations\[0\]\.bbox is \[1, 2, 3\]: expected \[x, y, width, height\]"),
        ("annotations.0.bbox", [5, 5, -3, 4], "cannot be negative"),
        ("annotations.0.bbox", [5, 5, "3", 4], "expected"),
        ("annotations.0.bbox", [200, 5, 20, 20], "outside its picture of 90x60 pixels"),
        ("annotations.0.iscrowd", "no", "expected 0 or 1"),
        ("annotations.0.tokens_positive", [3, 4], "in characters"),
    ],
)
def test_a_flaw_is_named_by_file_and_place(tmp_path: Path, place: str, value: Any, sentence: str) -> None:
    with pytest.raises(DataSetError, match=rf"train\.json: .*{sentence}"):
        read_data_set(written(tmp_path, spoiled(place, value)), for_training=True)


def test_all_flaws_are_named_at_once(tmp_path: Path) -> None:
    data = spoiled("images.0.file_name", 3)
    data["annotations"][1]["category_id"] = 9
    with pytest.raises(DataSetError) as error:
        read_data_set(written(tmp_path, data), for_training=True)
    assert len(str(error.value).splitlines()) == 2
    data["annotations"] += [{"image_id": 5}] * 40
    with pytest.raises(DataSetError, match="and 114 more"):
        read_data_set(written(tmp_path, data), for_training=True)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ([[5 / 90, 5 / 60, 60 / 90, 50 / 60], [0.1, 0.2, 0.3, 0.4]], "boxes in fractions"),
        ([[5, 5, 65, 55], [60, 30, 88, 58]], "as if all boxes were corners"),
    ],
)
def test_boxes_of_another_convention_are_one_flaw(tmp_path: Path, boxes: list[Any], sentence: str) -> None:
    data = copy.deepcopy(DATA)
    for row, box in zip(data["annotations"], boxes, strict=True):
        row["bbox"] = box
    with pytest.raises(DataSetError, match=sentence) as error:
        read_data_set(written(tmp_path, data))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    assert read_data_set(written(tmp_path, DATA, encoding), for_training=True) == DATA


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 1, column 2 is not JSON"),
        ('{"images": [], "annotations": [], "x": NaN}', "NaN is not a number"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "COCO's format"),
        ('{"images": 3, "annotations": []}', "COCO's format"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataSetError, match=sentence):
        read_data_set(written(tmp_path, text))
    with pytest.raises(DataSetError, match="No such file"):
        read_data_set(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe9"}')
    with pytest.raises(DataSetError, match="not UTF-8"):
        read_data_set(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"category_id": 0}, "is 0, not an id in categories .do these results count categories from 0"),
        ({"image_id": "1"}, "a text here and the number 1 there"),
        ({"image_id": 7}, "image_id is 7, not an id in images"),
        ({"score": None}, "score is None: expected a number"),
        ({"bbox": [1, 2]}, "bbox is"),
    ],
)
def test_a_wrong_result_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert read_results(written(tmp_path, [good]), DATA) == [good]
    with pytest.raises(DataSetError, match=rf"result\[1\].*{sentence}"):
        read_results(written(tmp_path, [good, {**good, **change}]), DATA)
    with pytest.raises(DataSetError, match=r"result\[0\] lacks category_id, bbox, score"):
        read_results(written(tmp_path, [{"image_id": 1}]), DATA)
    with pytest.raises(DataSetError, match="not a list of results"):
        read_results(written(tmp_path, {"a": 1}), DATA)


def test_categories_belong_together_by_name(tmp_path: Path) -> None:
    other = copy.deepcopy(DATA)
    other["categories"] = [{"id": 7, "name": "Red  car"}, {"id": 8, "name": "person"}]
    for row, number in zip(other["annotations"], (8, 7), strict=True):
        row["category_id"] = number
    merged = merge_categories(DATA, other, tmp_path / "val.json")
    assert [row["category_id"] for row in merged["annotations"]] == [1, 3]
    other["categories"][0]["name"] = "bus"
    with pytest.raises(DataSetError, match=r"val\.json: categories has 'bus', which the training data lack"):
        merge_categories(DATA, other, tmp_path / "val.json")


def test_pictures_are_checked_before_any_work(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((60, 90, 3), np.uint8))
    assert check_pictures(DATA, tmp_path, tmp_path / "t.json") == {1: False, 2: False}
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((30, 45, 3), np.uint8))
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataSetError) as error:
        check_pictures(DATA, tmp_path, tmp_path / "t.json")
    assert "'a.png', which cannot be read as a picture" in str(error.value)
    assert "images[1] is 90x60 in the data set, but b.png has 45x30 pixels" in str(error.value)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataSetError, match="there is no file"):
        check_pictures(DATA, tmp_path, tmp_path / "t.json")


def test_a_picture_turned_by_its_exif_data_is_read_as_its_boxes_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=exif)
    image = {"id": 1, "file_name": "a.jpg", "width": 90, "height": 60}
    assert check_pictures({"images": [image]}, tmp_path, tmp_path / "t.json") == {1: True}
    upright = {**image, "width": 60, "height": 90}
    assert check_pictures({"images": [upright]}, tmp_path, tmp_path / "t.json") == {1: False}
    with pytest.raises(DataSetError, match="turned by its EXIF orientation; stored as 90x60"):
        check_pictures({"images": [{**image, "width": 91}]}, tmp_path, tmp_path / "t.json")
