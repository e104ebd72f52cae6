"""Labelled pictures in the forms of other tools, and corrections made there read back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from detectors.coco_data import check_pictures, read_data_set
from detectors.data_files import DataSetError
from streamer.cli import app
from streamer.errors import ConfigError
from streamer.recorders.picture_exports import PICTURE_EXPORTS, check_picture_exports, write_picture_exports

LABELS = ["a red car", 'odd "<&> ünï']
CORRECTED = {"cvat": "cvat.zip", "label-studio": "label-studio/tasks.json", "yolo": "yolo/data.yaml"}


def data_set(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(4)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number, (width, height) in enumerate(((640, 360), (97, 201), (320, 180)), 1):
        name = f"cam-{number:06d}.jpg"
        cv2.imwrite(str(folder / "images" / name), random.integers(0, 255, (height, width, 3), np.uint8))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for _ in range(0 if number == 3 else 3):
            x, y = random.uniform(0, 0.5, 2) * (width, height)
            w, h = random.uniform(0.1, 0.5, 2) * (width, height)
            box = [round(float(value), 2) for value in (x, y, w, h)]
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + len(annotations) % 2}
            annotations.append({**one, "bbox": box, "score": 0.5 + len(annotations) / 20})
    categories = [{"id": number, "name": name} for number, name in enumerate(LABELS, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def boxes(data: dict[str, Any]) -> list[tuple[str, str, tuple[float, ...]]]:
    files = {image["id"]: image["file_name"] for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}
    return sorted((files[a["image_id"]], names[a["category_id"]], tuple(a["bbox"])) for a in data["annotations"])


@pytest.mark.parametrize("name", list(CORRECTED))
def test_every_box_comes_back_to_a_hundredth_of_a_pixel(name: str, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write_picture_exports(tmp_path, [name], data)
    found = read_data_set(tmp_path / CORRECTED[name], for_training=True)
    assert [image["file_name"] for image in found["images"]] == [image["file_name"] for image in data["images"]]
    check_pictures(found, tmp_path / "images", tmp_path)
    assert len(boxes(found)) == 6
    for got, wanted in zip(boxes(found), boxes(data), strict=True):
        assert got[:2] == wanted[:2]
        assert np.allclose(got[2], wanted[2], atol=0.01)


def test_datumaro_has_every_picture_and_box(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write_picture_exports(tmp_path, ["datumaro"], data)
    found = json.loads((tmp_path / "datumaro" / "annotations" / "default.json").read_text())
    assert [label["name"] for label in found["categories"]["label"]["labels"]] == LABELS
    got = [(item["image"]["path"], tuple(one["bbox"])) for item in found["items"] for one in item["annotations"]]
    assert got == [(data["images"][a["image_id"] - 1]["file_name"], tuple(a["bbox"])) for a in data["annotations"]]
    assert len(list((tmp_path / "datumaro" / "images" / "default").iterdir())) == 3


def test_a_person_in_label_studio_stands_over_the_prediction(tmp_path: Path) -> None:
    write_picture_exports(tmp_path, ["label-studio"], data_set(tmp_path))
    file = tmp_path / "label-studio" / "tasks.json"
    tasks = json.loads(file.read_text())
    kept = tasks[0]["predictions"][0]["result"][:1]
    tasks[0]["annotations"] = [{"was_cancelled": True, "result": []}, {"result": kept}]
    tasks[0]["data"]["image"] = "/data/upload/3/0a1b2c3d-cam-000001.jpg"
    tasks[1]["annotations"] = [{"result": []}]
    file.write_text(json.dumps(tasks))
    found = read_data_set(file)
    assert [name for name, _, _ in boxes(found)] == ["cam-000001.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.xml", "<annotations><image", "cannot read"),
        ("a.xml", "<x/>", "root is <x>, expected <annotations>"),
        ("a.xml", "<annotations><track/></annotations>", "export it from CVAT as `CVAT for images 1.1`"),
        ("a.xml", "<!DOCTYPE a []><annotations/>", "holds a document type"),
        ("a.xml", '<annotations><image name="x" width="a" height="2"/></annotations>', "width of image 0 is 'a'"),
        ("a.xml", '<annotations><image name="x" width="4" height="2"><box label="a"/></image></annotations>', "xtl of"),
        ("a.json", '[{"data": {}}, 1]', "task 1 has no data"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "[1]", "not a data set in COCO's format"),
        ("a.yaml", "names: [a]", "needs names and train"),
        ("a.yaml", "names: [a]\ntrain: nowhere", "holds no pictures"),
        ("a.zip", "no zip", "cannot read"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataSetError) as caught:
        read_data_set(tmp_path / name)
    assert sentence in str(caught.value)
    assert name in str(caught.value)


def test_a_wrong_line_and_an_archive_without_labels_are_named(tmp_path: Path) -> None:
    write_picture_exports(tmp_path, ["yolo"], data_set(tmp_path))
    (tmp_path / "yolo" / "labels" / "train" / "cam-000001.txt").write_text("0 0.5 0.5 0.1 0.1\n7 0.1 0.1 0.1 0.1\n")
    with pytest.raises(DataSetError, match=r"line 2 is '7 0\.1"):
        read_data_set(tmp_path / "yolo" / "data.yaml")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(DataSetError, match=r"holds no annotations\.xml"):
        read_data_set(tmp_path / "b.zip")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="'coco' is not a format: choose cvat, datumaro, label-studio, yolo"):
        check_picture_exports(["coco"])


def test_annotate_writes_every_format_and_evaluates_its_own_corrections(tmp_path: Path) -> None:
    out = tmp_path / "set"
    names = [part for name in PICTURE_EXPORTS for part in ("--export", name)]
    command = ["annotate", "synthetic:street?seed=5&duration=2&fps=5&size=320x192", "-q", "anything that moves"]
    found = CliRunner().invoke(app, [*command, "--every", "1", "--out", str(out), "--json", *names])
    assert found.exit_code == 0, found.output
    data = json.loads((out / "annotations.json").read_text())
    assert len(data["annotations"]) > 0
    for name in CORRECTED.values():
        assert len(read_data_set(out / name)["annotations"]) == len(data["annotations"])
    again = CliRunner().invoke(app, [*command, "--every", "5", "--out", str(out), "--json", *names])
    assert again.exit_code == 0, again.output
    assert len(read_data_set(out / "yolo" / "data.yaml")["images"]) == 2
