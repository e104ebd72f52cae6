"""Exports of tracks: what tools read from them are the boxes and numbers of the recording."""

from __future__ import annotations

import asyncio
import json
import shutil
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
import yaml
from typer.testing import CliRunner

from streamer.cli import app
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.jobs.job import ProcessJob
from streamer.jobs.units import identify_settings
from streamer.recorders.coco import CocoJson
from streamer.recorders.label_exports import EXPORTS, check_exports, write_exports

SIZE = (1283, 719)
LABELS = {1: 'a "red" car & <van>', 2: "Straße \x1b[1m"}
FRAMES = 12

Boxes = dict[tuple[int, int], tuple[float, float, float, float]]
"""Box (left, top, right, bottom) by track and frame."""


def scene() -> tuple[Boxes, dict[int, int]]:
    """Three tracks: one throughout, one with a gap, one in a single frame; and their categories."""
    dice = np.random.default_rng(5)
    boxes: Boxes = {}
    for track, frames in ((1, range(FRAMES)), (4, [2, 3, 4, 7, 8]), (9, [5])):
        for index in frames:
            x, y = dice.uniform(0, 900), dice.uniform(0, 500)
            boxes[track, index] = (x, y, x + dice.uniform(3, 300), y + dice.uniform(3, 200))
    return boxes, {1: 1, 4: 2, 9: 2}


def at(index: int) -> Frame:
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    return Frame("gate", index, index * 40_000_000, FrameClock("file_pts"), image, SIZE)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    boxes, kinds = scene()

    async def write() -> None:
        recorder = CocoJson(tmp_path / "coco.json", lambda: LABELS, tmp_path / "images")
        for index in range(FRAMES):
            seen = [(track, box) for (track, when), box in boxes.items() if when == index]
            tracked = sv.Detections(
                xyxy=np.array([box for _, box in seen], np.float32).reshape(-1, 4),
                confidence=np.full(len(seen), 0.75, np.float32),
                class_id=np.array([kinds[track] for track, _ in seen], int),
                tracker_id=np.array([track for track, _ in seen], int),
            )
            await recorder.write(at(index), tracked, analysed=True)
        await recorder.aclose()

    asyncio.run(write())
    write_exports(tmp_path, check_exports(list(EXPORTS)), "night/gate.mp4")
    return tmp_path


def assert_same(found: Boxes, expected: Boxes) -> None:
    assert found.keys() == expected.keys()
    for key, box in found.items():
        assert box == pytest.approx(expected[key], abs=0.01), key


def test_cvat_reads_every_box_and_nothing_in_gaps(results: Path) -> None:
    with zipfile.ZipFile(results / "cvat.zip") as archive:
        root = ElementTree.fromstring(archive.read("annotations.xml"))
    boxes, kinds = scene()
    found: Boxes = {}
    for track in root.iter("track"):
        number = int(track.get("id", ""))
        assert track.get("label") == LABELS[kinds[number]].replace("\x1b", "\ufffd")
        shown: dict[int, ElementTree.Element] = {int(box.get("frame", "")): box for box in track.iter("box")}
        # A reader shows the last key frame until the next one, unless it is outside.
        last = None
        for index in range(FRAMES):
            last = shown.get(index, last)
            if last is not None and last.get("outside") == "0":
                assert index in shown
                x1, y1, x2, y2 = (float(last.get(name, "")) for name in ("xtl", "ytl", "xbr", "ybr"))
                found[number, index] = (x1, y1, x2, y2)
        assert all(index < FRAMES for index in shown)
        assert all(box.get("keyframe") == "1" for box in shown.values())
    assert_same(found, boxes)
    assert root.findtext("meta/task/size") == str(FRAMES)
    assert [root.findtext(f"meta/task/original_size/{name}") for name in ("width", "height")] == ["1283", "719"]
    assert [label.text for label in root.iter("name")] == [text.replace("\x1b", "\ufffd") for text in LABELS.values()]


def test_label_studio_reads_every_box_and_the_end_of_each_stretch(results: Path) -> None:
    [task] = json.loads((results / "label-studio" / "tasks.json").read_text())
    [prediction] = task["predictions"]
    boxes, kinds = scene()
    found: Boxes = {}
    ends = []
    for region in prediction["result"]:
        number = int(region["id"].removeprefix("track-"))
        value: dict[str, Any] = region["value"]
        assert value["labels"] == [LABELS[kinds[number]].replace("\x1b", "\ufffd")]
        assert (value["framesCount"], value["duration"]) == (FRAMES, pytest.approx(FRAMES * 0.04))
        for point in value["sequence"]:
            left, top = point["x"] / 100 * SIZE[0], point["y"] / 100 * SIZE[1]
            right, bottom = left + point["width"] / 100 * SIZE[0], top + point["height"] / 100 * SIZE[1]
            found[number, point["frame"] - 1] = (left, top, right, bottom)
            assert point["time"] == pytest.approx((point["frame"] - 1) * 0.04)
            if not point["enabled"]:
                ends.append((number, point["frame"] - 1))
    assert_same(found, boxes)
    assert ends == [(1, 11), (4, 4), (4, 8), (9, 5)]
    assert task["data"] == {"video": "night/gate.mp4"}
    config = ElementTree.parse(results / "label-studio" / "config.xml")
    names = {element.get("name") for element in config.iter()}
    assert {"box", "video"} <= names
    assert {label.get("value") for label in config.iter("Label")} == {
        text.replace("\x1b", "\ufffd") for text in LABELS.values()
    }


def test_yolo_reads_the_boxes_of_every_picture(results: Path) -> None:
    folder = results / "yolo"
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["names"] == dict(enumerate(LABELS.values()))
    pictures = sorted((folder / data["train"]).iterdir())
    assert len(pictures) == FRAMES
    boxes, kinds = scene()
    for index, picture in enumerate(pictures):
        # Ultralytics finds the labels of a picture by these two replacements.
        text = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt").read_text()
        found = []
        for line in text.splitlines():
            number, x, y, width, height = line.split()
            middle, size = np.array([float(x), float(y)]) * SIZE, np.array([float(width), float(height)]) * SIZE
            found.append((int(number), *(middle - size / 2), *(middle + size / 2)))
        expected = [(kinds[track] - 1, *box) for (track, when), box in boxes.items() if when == index]
        assert sorted(found) == [pytest.approx(one, abs=0.01) for one in sorted(expected)]


def test_datumaro_imports_cvat_yolo_and_coco(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another reader of the three formats."""
    dm = pytest.importorskip("datumaro", reason="datumaro is not installed: pip install datumaro")
    folder = tmp_path_factory.mktemp("datumaro")
    zipfile.ZipFile(results / "cvat.zip").extractall(folder / "cvat")
    (folder / "coco/annotations").mkdir(parents=True)
    shutil.copy(results / "coco.json", folder / "coco/annotations/instances_train.json")
    shutil.copytree(results / "images", folder / "coco/images/train")
    boxes, kinds = scene()
    expected = sorted((index, kinds[track] - 1, [round(v) for v in box]) for (track, index), box in boxes.items())
    for name, place in (("cvat", folder / "cvat"), ("yolo", results / "yolo"), ("coco", folder / "coco")):
        data = dm.Dataset.import_from(str(place), name)
        found = [
            (int(item.id.rpartition("_")[2]) - (name != "cvat"), one.label, [round(v) for v in one.points])
            for item in data
            for one in item.annotations
            if one.type == dm.AnnotationType.bbox and not one.attributes.get("outside", False)
        ]
        assert len(data) == FRAMES
        assert [one[:2] for one in sorted(found)] == [one[:2] for one in expected]
        apart = [np.subtract(a[2], b[2]) for a, b in zip(sorted(found), expected, strict=True)]
        assert np.abs(apart).max() <= 1, name  # rounding of pixels


def test_fiftyone_reads_coco_yolo_and_cvat(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its own importers; a data set of FiftyOne needs a MongoDB, which they do not."""
    pytest.importorskip("fiftyone", reason="fiftyone is not installed: pip install fiftyone")
    from fiftyone.utils.coco import COCODetectionDatasetImporter
    from fiftyone.utils.cvat import CVATVideoDatasetImporter
    from fiftyone.utils.yolo import YOLOv5DatasetImporter

    boxes, kinds = scene()
    expected = sorted((index, LABELS[kinds[track]], *box) for (track, index), box in boxes.items())

    def row(index: int, one: Any) -> tuple[int, str, float, float, float, float]:
        x, y, width, height = np.multiply(one.bounding_box, SIZE * 2).tolist()
        return index, one.label, x, y, x + width, y + height

    coco = COCODetectionDatasetImporter(
        data_path=str(results / "images"), labels_path=str(results / "coco.json"), label_types="detections"
    )
    yolo = YOLOv5DatasetImporter(dataset_dir=str(results / "yolo"), yaml_path="data.yaml", split="train")
    for importer in (coco, yolo):
        with importer:
            found = [
                row(int(Path(path).stem) - 1, one)
                for path, _, label in importer
                for one in (label.detections if label is not None else ())
            ]
        assert len(importer) == FRAMES
        assert [one[:2] for one in sorted(found)] == [one[:2] for one in expected]
        assert np.allclose([one[2:] for one in sorted(found)], [one[2:] for one in expected], atol=0.02)

    folder = tmp_path_factory.mktemp("fiftyone")
    (folder / "data").mkdir()
    (folder / "data/gate.mp4").touch()
    (folder / "labels").mkdir()
    with zipfile.ZipFile(results / "cvat.zip") as archive:
        (folder / "labels/gate.xml").write_bytes(archive.read("annotations.xml"))
    importer = CVATVideoDatasetImporter(dataset_dir=str(folder))
    with importer:
        [(_, _, _, frames)] = list(importer)
    tracks = sorted(
        (number - 1, int(one.index), *row(0, one)[2:])
        for number, labels in frames.items()
        for one in labels["detections"].detections
    )
    by_track = sorted((index, track, *box) for (track, index), box in boxes.items())
    assert [one[:2] for one in tracks] == [one[:2] for one in by_track]
    assert np.allclose([one[2:] for one in tracks], [one[2:] for one in by_track], atol=1.0)  # it rounds to pixels


def test_the_label_studio_sdk_accepts_tasks_and_predictions(results: Path) -> None:
    sdk = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="it is not installed: pip install label-studio-sdk"
    )
    interface = sdk.LabelInterface((results / "label-studio" / "config.xml").read_text())
    [task] = json.loads((results / "label-studio" / "tasks.json").read_text())
    assert interface.validate_task({"data": task["data"]})
    assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []


def test_a_recording_without_tracks_has_whole_exports(tmp_path: Path) -> None:
    async def write() -> None:
        await CocoJson(tmp_path / "coco.json", lambda: LABELS).aclose()

    asyncio.run(write())
    write_exports(tmp_path, list(EXPORTS), "gate.mp4")
    with zipfile.ZipFile(tmp_path / "cvat.zip") as archive:
        assert list(ElementTree.fromstring(archive.read("annotations.xml")).iter("track")) == []
    assert json.loads((tmp_path / "label-studio" / "tasks.json").read_text())[0]["predictions"][0]["result"] == []
    assert list((tmp_path / "yolo" / "labels" / "train").iterdir()) == []


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--export 'coco' is not a format: choose cvat, label-studio, yolo"):
        check_exports(["cvat", "coco"])
    assert check_exports(["yolo", "cvat", "yolo"]) == ("cvat", "yolo")


def test_exports_belong_to_the_settings_of_a_result() -> None:
    job = ProcessJob(["a.mp4"], ["car"], Path("out"))
    with_cvat = ProcessJob(["a.mp4"], ["car"], Path("out"), exports=["cvat"])
    assert identify_settings(job, "x") != identify_settings(with_cvat, "x")


def test_process_writes_them_into_each_result_folder(tmp_path: Path) -> None:
    words = ["process", "synthetic:street?seed=7&duration=0.6", "-q", "anything that moves", "--detector", "motion"]
    exports = ["--export", "cvat", "--export", "label-studio", "--export", "yolo"]
    done = CliRunner().invoke(app, [*words, *exports, "--no-video", "--quiet", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "street"
    boxes = {
        (int(track), int(index) - 1, float(left), float(top))
        for index, track, left, top, *_ in (
            line.split(",") for line in (folder / "tracks.txt").read_text().splitlines()
        )
    }
    with zipfile.ZipFile(folder / "cvat.zip") as archive:
        root = ElementTree.fromstring(archive.read("annotations.xml"))
    found = {
        (int(track.get("id", "")), int(box.get("frame", "")))
        for track in root.iter("track")
        for box in track.iter("box")
        if box.get("outside") == "0"
    }
    assert found
    assert found <= {(track, index) for track, index, _, _ in boxes}
    assert (folder / "label-studio" / "tasks.json").is_file()
    assert (folder / "yolo" / "data.yaml").is_file()
