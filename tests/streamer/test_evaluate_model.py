"""`evaluate --model`: data sets of COCO, LVIS and Flickr30k, results, interruption and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from detectors import Request, create_detector
from detectors.data_files import DataSetError
from detectors.flickr import read_flickr
from detectors.scripted import ScriptedDetector
from streamer.commands import evaluate
from streamer.errors import ConfigError
from streamer.tasks import evaluate_model
from tests.detectors.glip.conftest import CONFIG, PIECES, tiny_model

BOX = [10, 10, 30, 20]
CORNERS = [10, 10, 40, 30]


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((60, 90, 3), 40 + number, np.uint8))


def script(folder: Path, *names: str) -> str:
    frames = [[{"query": name, "box": CORNERS, "confidence": 0.9} for name in names]] * 9
    return f"scripted:{written(folder / 'script.json', {'frames': frames})}"


def asked(*arguments: object) -> Any:
    result = CliRunner().invoke(evaluate.app, [*map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def coco(folder: Path) -> Path:
    pictures(folder, *(f"{number}.jpg" for number in range(1, 6)))
    images = [{"id": 100 + n, "file_name": f"{n}.jpg", "width": 90, "height": 60} for n in range(1, 6)]
    rows = [{"image_id": image["id"], "category_id": 18, "bbox": BOX} for image in images]
    return written(
        folder / "instances.json", {"images": images, "annotations": rows, "categories": [{"id": 18, "name": "dog"}]}
    )


def test_a_model_over_coco_writes_results_with_its_ids(tmp_path: Path) -> None:
    truth, out = coco(tmp_path), tmp_path / "new" / "found.json"
    score = asked("detection", truth, "--model", script(tmp_path, "dog"), "--images", tmp_path, "--out", out)
    assert score["ap"] == pytest.approx(1)
    rows = json.loads(out.read_text())
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (100 + n, 18, BOX) for n in range(1, 6)
    ]
    assert asked("detection", truth, out)["ap"] == pytest.approx(1), "the results can be scored again"
    with pytest.raises(ConfigError, match=r"found\.json exists: score it with"):
        asked("detection", truth, "--model", script(tmp_path, "dog"), "--images", tmp_path, "--out", out)


def test_lvis_pictures_are_found_by_their_addresses_and_alike_names_share_words(tmp_path: Path) -> None:
    pictures(tmp_path, "val2017/000000000009.jpg", "000000000010.jpg")
    address = "http://images.example/{}/{}.jpg"
    images = [
        {"id": 9, "coco_url": address.format("val2017", "000000000009"), "neg_category_ids": []},
        {"id": 10, "coco_url": address.format("train2017", "000000000010"), "neg_category_ids": []},
    ]
    categories = [
        {"id": 1, "name": "bow_(weapon)", "frequency": "r"},
        {"id": 2, "name": "bow_(decorative_ribbons)", "frequency": "c"},
        {"id": 3, "name": "traffic_light", "frequency": "f"},
    ]
    rows = [{"image_id": 9, "category_id": 2, "bbox": BOX}, {"image_id": 10, "category_id": 3, "bbox": BOX}]
    truth = written(tmp_path / "lvis.json", {"images": images, "annotations": rows, "categories": categories})
    model = script(tmp_path, "bow", "traffic light")
    score = asked("detection", truth, "--lvis", "--model", model, "--images", tmp_path, "--out", tmp_path / "f.json")
    assert score["categories"]["traffic_light"] == pytest.approx(1)
    assert score["frequencies"]["common"] == pytest.approx(1)
    found = {(row["image_id"], row["category_id"]) for row in json.loads((tmp_path / "f.json").read_text())}
    assert found == {(image, category) for image in (9, 10) for category in (1, 2, 3)}


def flickr(folder: Path) -> Path:
    pictures(folder / "pictures", "36979.jpg")
    (folder / "Sentences").mkdir()
    (folder / "Sentences" / "36979.txt").write_text(
        "[/EN#1/people A man] throws [/EN#2/other a ball] to [/EN#3/people a man] in [/EN#0/notvisual the morning] .\n"
    )
    (folder / "Annotations").mkdir()
    box = "<bndbox><xmin>{}</xmin><ymin>10</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox>"
    (folder / "Annotations" / "36979.xml").write_text(
        "<annotation><size><width>90</width><height>60</height></size>"
        f"<object><name>1</name>{box.format(10, 40)}</object><object><name>3</name>{box.format(50, 80)}</object>"
        "<object><name>2</name><scene>0</scene><nobndbox>1</nobndbox></object></annotation>"
    )
    (folder / "test.txt").write_text("36979\n")
    return folder / "test.txt"


def test_flickr_s_own_files_are_read_with_phrases_in_their_places(tmp_path: Path) -> None:
    data = read_flickr(flickr(tmp_path))
    [image] = data["images"]
    assert image["caption"] == "A man throws a ball to a man in the morning ."
    named = [(row["bbox"], image["caption"][slice(*row["tokens_positive"][0])]) for row in data["annotations"]]
    assert named == [([10, 10, 30, 20], "A man"), ([50, 10, 30, 20], "a man")]
    assert read_flickr(tmp_path) == data


@pytest.mark.parametrize(
    ("file", "text", "flaw"),
    [
        ("test.txt", "7\n", "cannot read .*7.xml"),
        ("test.txt", "", "names no pictures"),
        ("Annotations/36979.xml", "<annotation>", "36979.xml as Flickr30k Entities"),
    ],
)
def test_a_damaged_part_of_flickr_is_named(file: str, text: str, flaw: str, tmp_path: Path) -> None:
    truth = flickr(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataSetError, match=flaw):
        read_flickr(truth)


def test_equal_phrases_of_a_caption_are_grounded_in_their_places(tmp_path: Path) -> None:
    """A model that reads sentences answers for each place; others give the same boxes to both."""
    truth = flickr(tmp_path)
    model = script(tmp_path, "A man")
    given = ["--images", tmp_path / "pictures", "--out", tmp_path / "found.json"]
    score = asked("grounding", truth, "--model", model, *given)
    assert (score["phrases"], score["at_1"]) == (2, 0.5)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["phrase"], row["tokens_positive"]) for row in rows] == [("A man", [[0, 5]]), ("a man", [[23, 28]])]


def test_glip_grounds_the_phrases_of_captions(tmp_path: Path) -> None:
    from detectors.glip.model_files import write_folder

    (tmp_path / "words").write_text("\n".join(PIECES))
    write_folder(tmp_path / "model", CONFIG, tiny_model().state_dict(), tmp_path / "words")
    glip = create_detector("glip-tiny", weights=tmp_path / "model")
    prompt = glip.prepare_text("a dog and a dog", ["a dog", "a dog"], [[(0, 5)], [(10, 15)]])  # type: ignore[attr-defined]
    assert prompt.queries == ("a dog", "a dog")
    pictures(tmp_path, "1.jpg")
    row = {"image_id": 1, "category_id": 1, "bbox": BOX, "tokens_positive": [[0, 5]]}
    data = {"images": [{"id": 1, "file_name": "1.jpg", "caption": "a dog and a dog"}],
            "annotations": [row, {**row, "tokens_positive": [[10, 15]]}]}  # fmt: skip
    truth, out = written(tmp_path / "truth.json", data), tmp_path / "found.json"
    score = asked("grounding", truth, "--model", "glip-tiny", "--weights", tmp_path / "model", "--images", tmp_path,
                  "--out", out)  # fmt: skip
    assert score["phrases"] == 2
    assert {tuple(row["tokens_positive"][0]) for row in json.loads(out.read_text())} <= {(0, 5), (10, 15)}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, out = coco(tmp_path), tmp_path / "found.json"
    command = ["detection", truth, "--model", script(tmp_path, "dog"), "--images", tmp_path, "--out", out]
    plain, seen = ScriptedDetector.detect, []

    def fail_at_third(self: Any, requests: Sequence[Request]) -> Any:
        seen.extend(request.stream for request in requests)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, requests)

    monkeypatch.setattr(ScriptedDetector, "detect", fail_at_third)
    with pytest.raises(AssertionError):  # the exit code
        asked(*command, "--batch", 1)
    assert not out.exists()
    partial = tmp_path / "found.json.partial"
    assert len(partial.read_text().splitlines()) == 3
    with partial.open("a") as file:
        file.write('{"image": 103, "ro')  # as a crash leaves it
    assert asked(*command, "--batch", 1)["ap"] == pytest.approx(1)
    assert seen == ["101", "102", "103", "103", "104", "105"]
    assert not partial.exists()


def test_a_partial_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    truth, out = coco(tmp_path), tmp_path / "found.json"
    (tmp_path / "found.json.partial").write_text('{"task": "grounding"}\n')
    with pytest.raises(ConfigError, match="of another data set, model or options"):
        asked("detection", truth, "--model", script(tmp_path, "dog"), "--images", tmp_path, "--out", out)


def test_a_stop_signal_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, out = coco(tmp_path), tmp_path / "found.json"

    class StopAtOnce:
        def __init__(self, stop: Any) -> None:
            stop()

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(evaluate_model, "SignalWatch", StopAtOnce)
    model = script(tmp_path, "dog")
    result = CliRunner().invoke(
        evaluate.app,
        ["detection", str(truth), "--model", model, "--images", str(tmp_path), "--out", str(out), "--batch", "2"],
    )
    assert result.exit_code == 130
    assert "interrupted: 2 of 5 images" in result.output


@pytest.mark.parametrize(
    ("more", "flaw"),
    [
        ([], "neither results nor a model"),
        (["found.json", "--model", "motion"], "both results and a model"),
        (["--model", "motion"], "--images DIR"),
        (["found.json", "--images", "."], "--images needs --model"),
    ],
)
def test_results_or_a_model_are_given(more: list[str], flaw: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=flaw):
        asked("detection", coco(tmp_path), *more)


def test_missing_pictures_are_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    truth = coco(tmp_path)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(DataSetError, match=r"images\[1\].file_name is '2\.jpg', but there is no file"):
        asked("detection", truth, "--model", "no-such-model", "--images", tmp_path)
