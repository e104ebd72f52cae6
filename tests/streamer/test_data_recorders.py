"""Tracks as MOTChallenge text and as COCO JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import supervision as sv

from streamer.frame import Frame, FrameClock
from streamer.recorders.coco import CocoJson
from streamer.recorders.text import MotText


def frame(index: int, size: tuple[int, int] = (64, 48)) -> Frame:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    return Frame("gate", index, index * 40_000_000, FrameClock("file_pts"), image, size)


def tracked(*rows: tuple[int, list[float]], mask: np.ndarray | None = None) -> sv.Detections:
    return sv.Detections(
        xyxy=np.array([box for _, box in rows], np.float32).reshape(-1, 4),
        confidence=np.full(len(rows), 0.5, np.float32),
        class_id=np.ones(len(rows), int),
        tracker_id=np.array([track for track, _ in rows], int),
        mask=mask,
    )


def recorded(recorder, *frames, analysed=None):
    async def run() -> None:
        for index, (size, found) in enumerate(frames):
            await recorder.write(frame(index, size), found, analysed=analysed is None or index in analysed)
        await recorder.aclose()
        await recorder.aclose()

    asyncio.run(run())


SMALL, LARGE = (64, 48), (96, 72)
BOX = [10.0, 10.0, 20.0, 30.0]


def coco(path: Path, *frames, images: Path | None = None, final=None, analysed=None) -> dict:
    recorder = CocoJson(path / "coco.json", lambda: {1: "car"}, images, final or dict)
    recorded(recorder, *frames, analysed=analysed)
    return json.loads((path / "coco.json").read_text())


def test_every_image_has_its_own_size_and_boxes_are_inside(tmp_path: Path) -> None:
    data = coco(tmp_path, (SMALL, tracked((1, [-5, 40, 20, 60]))), (LARGE, tracked((1, [80, 60, 110, 80]))))
    assert [(image["width"], image["height"]) for image in data["images"]] == [SMALL, LARGE]
    assert [one["bbox"] for one in data["annotations"]] == [[0, 40, 20, 8], [80, 60, 16, 12]]


def test_a_box_that_is_predicted_outside_of_the_image_is_no_annotation(tmp_path: Path) -> None:
    data = coco(tmp_path, (SMALL, tracked((1, [70, 10, 80, 20]), (2, BOX))))
    assert [one["track_id"] for one in data["annotations"]] == [2]


def test_annotations_have_what_tools_read(tmp_path: Path) -> None:
    (one,) = coco(tmp_path, (SMALL, tracked((7, BOX))))["annotations"]
    assert one["segmentation"] == [[10, 10, 20, 10, 20, 30, 10, 30]]
    assert one["attributes"] == {"track_id": 7}
    assert (one["area"], one["iscrowd"], one["category_id"]) == (200, 0, 1)


def test_masks_are_run_lengths(tmp_path: Path) -> None:
    mask = np.zeros((1, 48, 64), bool)
    mask[0, 10:20, 10:20] = True
    (one,) = coco(tmp_path, (SMALL, tracked((7, BOX), mask=mask)))["annotations"]
    assert one["segmentation"]["size"] == [48, 64]
    assert one["area"] == 100


def test_with_images_exactly_the_saved_ones_are_listed(tmp_path: Path) -> None:
    frames = [(SMALL, tracked((1, BOX)))] * 7
    data = coco(tmp_path, *frames, images=tmp_path / "images", analysed={0, 3, 6})
    names = [image["file_name"] for image in data["images"]]
    assert (
        names
        == sorted(path.name for path in (tmp_path / "images").iterdir())
        == ["000001.jpg", "000004.jpg", "000007.jpg"]
    )
    assert {one["image_id"] for one in data["annotations"]} == {image["id"] for image in data["images"]}


def test_merged_tracks_get_their_final_number_once_per_image(tmp_path: Path) -> None:
    frames = [
        (SMALL, tracked((1, BOX), (2, [30, 10, 40, 30]))),
        (SMALL, tracked((1, BOX), (3, [30, 10, 40, 30]))),
        (SMALL, tracked((3, BOX), (2, [30, 10, 40, 30]))),
    ]
    data = coco(tmp_path, *frames, final=lambda: {3: 1})
    assert [(one["image_id"], one["track_id"]) for one in data["annotations"]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 1),
        (3, 2),
    ]
    assert data["annotations"][3]["attributes"] == {"track_id": 1}
    assert len(data["images"]) == 3
    recorded(MotText(tmp_path / "tracks.txt", lambda: {3: 1}), *frames)
    rows = [line.split(",")[:2] for line in (tmp_path / "tracks.txt").read_text().splitlines()]
    assert rows == [["1", "1"], ["1", "2"], ["2", "1"], ["3", "1"], ["3", "2"]]
    assert not list(tmp_path.glob("*.part"))


def test_a_recording_without_tracks_is_an_empty_data_set(tmp_path: Path) -> None:
    assert coco(tmp_path, final=lambda: {3: 1}) == {
        "annotations": [],
        "categories": [{"id": 1, "name": "car"}],
        "images": [],
    }
