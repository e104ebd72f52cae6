"""Captions of pictures: the forms of their files, and `annotate --captions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detectors.data_files import DataSetError
from streamer.errors import ConfigError
from streamer.tasks.annotate import AnnotateTask, run_annotate
from streamer.tasks.caption_files import read_captions

TWO = {"1.jpg": ["a dog on a sofa"], "2.jpg": ["two people, one ladder", "a red car"]}
COCO = {
    "images": [{"id": 1, "file_name": "train/1.jpg"}, {"id": 2, "file_name": "train/2.jpg"}],
    "annotations": [
        {"image_id": 2, "caption": "two people, one ladder"},
        {"image_id": 1, "caption": "a dog\n on a sofa "},
        {"image_id": 2, "caption": "a red car"},
    ],
}
FORMS = {
    "object": json.dumps({"1.jpg": "a dog on a sofa", "2.jpg": ["two people, one ladder", "a red car"]}),
    "COCO": json.dumps(COCO),
    "data set": json.dumps(
        {
            "images": [
                {"id": 1, "file_name": "1.jpg", "caption": "a dog on a sofa"},
                {"id": 2, "file_name": "2.jpg", "caption": "two people, one ladder"},
                {"id": 3, "file_name": "2.jpg", "caption": "a red car"},
            ],
            "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}],
        }
    ),
    "JSON lines": '{"file_name": "1.jpg", "text": "a dog on a sofa"}\n'
    '{"file_name": "2.jpg", "text": ["two people, one ladder", "a red car"]}\n',
    "Flickr30k": "1.jpg#0\ta dog on a sofa\n2.jpg#0\ttwo people, one ladder\n2.jpg#1\ta red car\n",
    "Flickr8k": 'image,caption\n1.jpg,a dog on a sofa\n2.jpg,"two people, one ladder"\n2.jpg,a red car\n',
    "byte order mark": "\ufeff1.jpg\ta dog on a sofa\r\n2.jpg\ttwo people, one ladder\r\n2.jpg\ta red car\r\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_captions(form: str, tmp_path: Path) -> None:
    file = tmp_path / "captions"
    file.write_text(FORMS[form], encoding="utf-8")
    assert read_captions(file) == TWO


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("", "holds no captions"),
        ("1.jpg\n", r"line 1 is '1\.jpg'.*NAME<tab>CAPTION"),
        ("1.jpg\t \n", r"caption of 1\.jpg at line 1 is ' '"),
        ('{"1.jpg": 3}', r"caption of 1\.jpg at '1\.jpg' is 3"),
        ('[{"file": "1.jpg"}]', r"\[0\] is .*file_name and caption"),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "is 2, not",
        ),
        ('{"annotations": []}', "holds no captions"),
        ("{", "not JSON"),
    ],
)
def test_a_flaw_is_named_by_its_place(text: str, flaw: str, tmp_path: Path) -> None:
    file = tmp_path / "captions"
    file.write_text(text)
    with pytest.raises(DataSetError, match=flaw):
        read_captions(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 4):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((60, 90, 3), 40 * number, np.uint8))
    return folder


def annotate(pictures: Path, captions: Any, **options: Any) -> tuple[dict[str, Any], Path]:
    script = pictures.parent / "script.json"
    box = {"confidence": 0.9, "box": [5, 5, 40, 40]}
    found = [{"query": name, **box} for name in ("a dog", "two people", "a red car")]
    script.write_text(json.dumps({"frames": [found] * 8}))
    file = pictures.parent / "captions.json"
    file.write_text(json.dumps(captions))
    out = pictures.parent / "out"
    run_annotate(AnnotateTask([str(pictures)], [], [f"scripted:{script}"], out, captions=file, **options), as_json=True)
    return json.loads((out / "annotations.json").read_text()), out


def test_in_each_picture_what_its_captions_name_is_labelled(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = {**TWO, "3.jpg": "running", "9.jpg": "a cat"}
    data, out = annotate(pictures, captions, gligen=True)
    by_id = {image["id"]: image for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}
    rows = [
        (Path(by_id[row["image_id"]]["source"]).name, row["phrase"], names[row["category_id"]])
        for row in data["annotations"]
    ]
    assert rows == [("1.jpg", "a dog", "dog"), ("2.jpg", "two people", "people"), ("2.jpg", "a red car", "red car")]
    for row in data["annotations"]:
        caption = by_id[row["image_id"]]["caption"]
        assert [caption[start:end] for start, end in row["tokens_positive"]] == [row["phrase"]]
    assert sorted(path.name for path in (out / "images").iterdir()) == ["pictures-000000.jpg", "pictures-000001.jpg"]
    assert json.loads(capsys.readouterr().out)["captions"] == {
        "pictures_without_a_caption": 0,
        "captions_of_no_picture_here": 1,
        "captions_that_name_nothing": 1,
        "captions_that_a_detector_refused": 0,
    }
    gligen = [json.loads(line) for line in (out / "gligen.jsonl").read_text().splitlines()]
    assert [entry["caption"] for entry in gligen] == ["a dog on a sofa", "two people, one ladder", "a red car"]


def test_a_caption_that_the_model_cannot_read_is_counted_and_reported(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectors import PromptError
    from detectors.scripted import ScriptedDetector

    def refuse(self: Any, queries: Any) -> Any:
        raise PromptError("it is too long")

    monkeypatch.setattr(ScriptedDetector, "prepare", refuse)
    data, _ = annotate(pictures, TWO)
    printed = capsys.readouterr()
    assert not data["images"]
    assert json.loads(printed.out)["captions"]["captions_that_a_detector_refused"] == 3
    assert "the caption 'a dog on a sofa' is left out: it is too long" in printed.err


def test_captions_go_neither_with_queries_nor_with_tracks(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="--captions FILE"):
        run_annotate(AnnotateTask([str(pictures)], [], ["motion"], pictures))
    with pytest.raises(ConfigError, match="--captions FILE"):
        run_annotate(AnnotateTask([str(pictures)], ["a dog"], ["motion"], pictures, captions=pictures))
    with pytest.raises(ConfigError, match="--tracks"):
        annotate(pictures, TWO, tracker="default")
