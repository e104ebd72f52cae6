from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from detectors.detector import DetectorError
from streamer.tasks.annotate import AnnotateTask, run_annotate
from streamer.tasks.review_page import review_page
from trackers import TrackerError

CAR = {"query": "red car", "confidence": 0.9}
MAN = {"query": "man", "confidence": 0.8, "box": [50, 10, 70, 50]}


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Four pictures in a folder, and a script in which a car drives right; the man is seen once, and badly after."""
    folder = tmp_path / "street"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (60, 90, 3), dtype=np.uint8))
    frames = [[{**CAR, "box": [x, 20, x + 30, 45]}] for x in (5, 8, 11, 14)]
    frames[0].append(MAN)
    frames[1].append({**MAN, "confidence": 0.2})
    (tmp_path / "script.json").write_text(json.dumps(frames))
    return folder


def make(street: Path, **options: Any) -> Path:
    out = street.parent / "out"
    script = f"scripted:{street.parent / 'script.json'}"
    chosen: dict[str, Any] = {"threshold": None, **options}
    run_annotate(AnnotateTask([str(street)], ["red car", "man"], [script], out, **chosen), quiet=True)
    return out


def test_sampled_frames_become_a_coco_data_set(street: Path) -> None:
    out = make(street)
    coco = COCO(str(out / "annotations.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["red car", "man"]
    assert len(coco.getImgIds()) == 4
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [(entry["phrase"], entry["bbox"], entry["score"]) for entry in first] == [
        ("red car", [5.0, 20.0, 30.0, 25.0], 0.9),
        ("man", [50.0, 10.0, 20.0, 40.0], 0.8),
    ]
    for image in coco.loadImgs(coco.getImgIds()):
        assert cv2.imread(str(out / "images" / image["file_name"])).shape == (60, 90, 3)


def test_phrases_are_found_in_the_caption_by_their_characters(street: Path) -> None:
    data = json.loads((make(street) / "annotations.json").read_text())
    captions = {image["id"]: image["caption"] for image in data["images"]}
    for annotation in data["annotations"]:
        ((start, end),) = annotation["tokens_positive"]
        assert captions[annotation["image_id"]][start:end] == annotation["phrase"]


def test_boxes_below_the_threshold_are_left_out(street: Path) -> None:
    data = json.loads((make(street, threshold=0.85) / "annotations.json").read_text())
    assert {entry["phrase"] for entry in data["annotations"]} == {"red car"}


def test_only_every_nth_frame_is_labelled(street: Path) -> None:
    data = json.loads((make(street, every=2) / "annotations.json").read_text())
    assert [image["frame_index"] for image in data["images"]] == [0, 2]


def test_tracks_give_boxes_an_identity_and_take_none_away(street: Path) -> None:
    script = street.parent / "script.json"
    frames = json.loads(script.read_text())
    frames[3].append(frames[0].pop())  # the man comes last: nothing confirms him any more
    script.write_text(json.dumps(frames))
    plain = json.loads((make(street) / "annotations.json").read_text())["annotations"]
    tracked = json.loads((make(street, tracker="sort") / "annotations.json").read_text())["annotations"]
    identities = [(entry["phrase"], entry.pop("track_id", None)) for entry in tracked]
    attributes = [entry.pop("attributes", {}).get("track_id") for entry in tracked]
    assert attributes == [track for _, track in identities]
    assert tracked == plain
    assert ("man", None) in identities
    assert len({track for phrase, track in identities if phrase == "red car"} - {None}) == 1


def test_gligen_reads_phrases_and_fractions(street: Path) -> None:
    lines = (make(street, gligen=True) / "gligen.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["caption"], first["phrases"]) == ("A picture of a red car and a man.", ["red car", "man"])
    assert first["boxes"][0] == pytest.approx([5 / 90, 20 / 60, 35 / 90, 45 / 60], abs=1e-6)


def test_the_review_page_shows_every_box_and_can_carry_any_words(street: Path) -> None:
    page = (make(street) / "review.html").read_text()
    assert page.count("<g data-id=") == 5
    image = {"id": 1, "file_name": "a.jpg", "width": 9, "height": 9, "time_s": 0.0}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0, "phrase": "</script><b>"}
    page = review_page({"images": [image], "annotations": [box], "info": {}}, "images")
    assert page.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;" in page


def test_what_cannot_be_done_is_reported(street: Path) -> None:
    with pytest.raises(DetectorError, match="no detector is called"):
        run_annotate(AnnotateTask([str(street)], ["man"], ["glop"], street.parent / "out"), quiet=True)
    with pytest.raises(TrackerError):
        make(street, tracker="unknown")
