from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from detectors import PromptError
from streamer.commands.detect import detect
from streamer.errors import ConfigError, SourceError

app = typer.Typer()
app.command()(detect)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    files = [tmp_path / "gate.png", tmp_path / "yard.jpg"]
    for file in files:
        cv2.imwrite(str(file), np.full((60, 80, 3), 90, np.uint8))
    return [str(file) for file in files]


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "script.json"
    person = {"query": "person", "box": [10, 10, 30, 50], "confidence": 0.9}
    doubtful = {"query": "red car", "box": [40, 20, 70, 40], "confidence": 0.2}
    file.write_text(json.dumps({"frames": [[person, doubtful]]}))
    return f"scripted:{file}"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


def test_a_table_reports_what_was_found(pictures, script):
    line = run(pictures[0], "-q", "person", "--detector", script).splitlines()[1].split()
    assert line[1:] == ["person", "0.90", "10", "10", "30", "50"]


def test_json_holds_every_picture_in_order_with_what_is_beyond_doubt(pictures, script):
    reported = json.loads(run(*pictures, "-q", "person", "-q", "red car", "--detector", script, "--json"))
    assert [each["image"] for each in reported] == pictures
    for each in reported:
        assert each["detections"] == [{"query": "person", "confidence": 0.9, "box": [10, 10, 30, 50]}]


def test_a_lower_threshold_reports_more(pictures, script):
    reported = json.loads(
        run(pictures[0], "-q", "person", "-q", "red car", "--detector", script, "--threshold", "0.1", "--json")
    )
    assert [found["query"] for found in reported[0]["detections"]] == ["person", "red car"]


def test_annotated_pictures_show_the_boxes(pictures, script, tmp_path):
    run(*pictures, "-q", "person", "--detector", script, "--out", str(tmp_path / "out"))
    for name in ("gate.png", "yard.jpg"):
        drawn = cv2.imread(str(tmp_path / "out" / name))
        assert drawn.shape == (60, 80, 3)
        assert (np.abs(drawn.astype(int) - 90) > 40).any()


def test_pictures_of_one_name_do_not_overwrite_one_another(pictures, script, tmp_path):
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other" / "gate.png"), np.full((30, 30, 3), 90, np.uint8))
    run(
        pictures[0], str(tmp_path / "other" / "gate.png"), "-q", "x", "--detector", script, "--out", str(tmp_path / "o")
    )
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["2-gate.png", "gate.png"]


def test_what_is_no_picture_is_reported_by_its_name(script, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for file in (text, tmp_path / "none.png"):
        result = CliRunner().invoke(app, [str(file), "-q", "person", "--detector", script])
        assert isinstance(result.exception, SourceError)
        assert file.name in str(result.exception)


def test_an_empty_query_is_refused(pictures, script):
    result = CliRunner().invoke(app, [pictures[0], "-q", " ", "--detector", script])
    assert isinstance(result.exception, PromptError)


def test_a_sentence_s_things_are_detected_and_tied_to_their_places(pictures, tmp_path):
    script = tmp_path / "sentence.json"
    box = {"confidence": 0.9, "box": [4, 4, 20, 20]}
    script.write_text(json.dumps({"frames": [[{"query": "a ladder", **box}]]}))
    sentence = "two people carry a ladder"
    given = ["--sentence", sentence, "--detector", f"scripted:{script}"]
    [first] = json.loads(run(pictures[0], *given, "--json"))
    assert first["sentence"] == sentence
    assert [named["text"] for named in first["phrases"]] == ["two people", "a ladder"]
    [row] = first["detections"]
    [[start, end]] = row["spans"]
    assert sentence[start:end] == row["query"] == "a ladder"
    assert run(pictures[0], *given).startswith("phrases: two people, a ladder")


@pytest.mark.parametrize("more", [[], ["--query", "man", "--sentence", "a man"]])
def test_either_queries_or_a_sentence_are_given(pictures, script, more):
    with pytest.raises(ConfigError, match="--sentence TEXT"):
        run(*pictures, *more, "--detector", script)
