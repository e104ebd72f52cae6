"""`evaluate` and `tune` as a user meets them: tables, JSON, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from streamer.commands import evaluate
from streamer.commands.tune import tune
from streamer.errors import ConfigError
from tests.detectors.glip.conftest import CONFIG, PIECES, tiny_model

BOX = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]}


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "one.png"), np.full((64, 96, 3), 90, np.uint8))
    image = {"id": 1, "file_name": "one.png", "width": 96, "height": 64, "caption": "a dog"}
    row = {**BOX, "tokens_positive": [[0, 5]]}
    data = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": "dog"}]}
    return written(tmp_path / "truth.json", data)


def asked(*arguments: object) -> str:
    result = CliRunner().invoke(evaluate.app, [str(argument) for argument in arguments])
    assert result.exception is None, result.exception
    return result.stdout


def test_detection_prints_a_table_or_json(truth: Path, tmp_path: Path) -> None:
    results = written(tmp_path / "found.json", [{**BOX, "score": 0.9}])
    assert json.loads(asked("detection", truth, results, "--json"))["ap"] == pytest.approx(1)
    assert json.loads(asked("detection", truth, results, "--lvis", "--json"))["ap50"] == pytest.approx(1)
    assert "dog" in asked("detection", truth, results)


def test_grounding_reads_phrases_of_captions(truth: Path, tmp_path: Path) -> None:
    results = written(tmp_path / "found.json", [{**BOX, "score": 0.9, "phrase": "a dog"}])
    assert json.loads(asked("grounding", truth, results, "--json")) == {
        "at_1": 1.0,
        "at_5": 1.0,
        "at_10": 1.0,
        "phrases": 1,
    }
    assert "at 10" in asked("grounding", truth, results, "--protocol", "merged")


def test_events_without_delays_say_null(tmp_path: Path) -> None:
    label = json.dumps({"time_s": 3.0, "type": "line.cross", "place": "gate", "direction": "in"})
    (tmp_path / "labels.jsonl").write_text(label + "\n")
    score = json.loads(asked("events", tmp_path / "labels.jsonl", tmp_path / "labels.jsonl", "--json"))
    assert (score["precision"], score["recall"], score["delay_median_s"]) == (1.0, 1.0, None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from detectors.glip.model_files import write_folder

    (tmp_path / "pieces.txt").write_text("\n".join(PIECES) + "\n")
    write_folder(tmp_path / "model", CONFIG, tiny_model().state_dict(), tmp_path / "pieces.txt")
    return tmp_path / "model"


def tuned(*arguments: object) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(tune)
    result = CliRunner().invoke(app, [*map(str, arguments), "--model", "glip-mini", "--device", "cpu", "--json"])
    if result.exception is not None:
        raise result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_words_are_tuned_to_a_file_and_a_whole_model_to_a_folder(truth: Path, model: Path, tmp_path: Path) -> None:
    from detectors.glip.detector import create

    words, folder = tmp_path / "words.safetensors", tmp_path / "tuned"
    assert tuned(truth, "--weights", model, "--epochs", 1, "--out", words)["mode"] == "prompt"
    assert create("glip-mini", weights=model, tuned=words).prepare(["dog"]).queries == ("dog",)
    tuned(truth, "--weights", model, "--mode", "full", "--shots", 1, "--epochs", 1, "--out", folder)
    assert create("glip-mini", weights=folder).prepare(["a red car"]).queries == ("a red car",)


def test_a_student_sees_smaller_pictures(truth: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    full = ("--mode", "full", "--shots", 1, "--epochs", 1)
    tuned(truth, "--weights", model, *full, "--short-side", 64, "--out", folder)
    usual, small = (json.loads((place / "config.json").read_text())["image"] for place in (model, folder))
    assert small["min_side"] == 64
    assert small["max_side"] == round(64 * usual["max_side"] / usual["min_side"])
    with pytest.raises(ConfigError, match="needs --mode full, head or linear"):
        tuned(truth, "--weights", model, "--short-side", 64, "--out", tmp_path / "words.safetensors")


def test_no_shots_and_a_description_make_a_file_of_edited_words(truth: Path, model: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.safetensors"
    answer = tuned(truth, "--weights", model, "--shots", 0, "--describe", "dog=, a red one", "--out", words)
    assert answer["pictures"] == 0
    assert words.is_file()
    with pytest.raises(ConfigError, match="expected NAME=WORDS"):
        tuned(truth, "--weights", model, "--describe", "dog", "--out", words)
