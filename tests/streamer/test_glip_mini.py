"""The packaged glip-mini: a model that has really learned, from words to boxes to events."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.glip_mini.examination import HELD_OUT, answer_of, examine
from detectors import Detector, create_detector
from streamer.cli import app
from streamer.tasks.demo import show_street

PICTURES = 16


@pytest.fixture(scope="module")
def mini() -> Detector:
    return create_detector("glip-mini", device="cpu")


@pytest.mark.timeout(300)
def test_it_finds_what_is_asked_for_and_little_else_on_streets_it_has_not_seen(mini: Detector) -> None:
    report = examine(answer_of(mini), PICTURES, mini.threshold, seed=HELD_OUT + 1)
    assert report.phrases > 0.8
    assert report.kinds > 0.88
    assert report.recall > 0.6
    assert report.false_alarms < 0.08
    assert report.refused_colours > 0.95
    assert report.right_colour > 0.9


def test_a_word_that_it_never_learned_is_reported(mini: Detector, caplog: pytest.LogCaptureFixture) -> None:
    mini.prepare(["a zebra", "a red car"])
    assert [record.getMessage() for record in caplog.records] == [
        "'zebra' is not in the model's vocabulary: results for it are unreliable"
    ]


def test_the_demo_finds_what_the_user_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = ["a person", "a bus"]
    assert not show_street(queries, tmp_path, seed=5, seconds=2.0)
    rows = sqlite3.connect(tmp_path / "events.sqlite").execute(
        "SELECT DISTINCT queries FROM events WHERE type = 'groundstream.match.begin.v1'"
    )
    reported = {query for (row,) in rows for query in json.loads(row)}
    assert reported == set(queries)
    assert "events.sqlite" in capsys.readouterr().out
    assert next(tmp_path.glob("*/video.mp4")).stat().st_size > 10_000


def test_what_it_labels_teaches_a_smaller_one(tmp_path: Path) -> None:
    """As a user does it: `annotate`, then `tune` with the file that it wrote."""
    street = "synthetic:street?seed=5&size=320x192&fps=1&duration=3"
    labels = tmp_path / "data" / "annotations.json"
    command = CliRunner()
    asked = ["--query", "person", "--detector", "glip-mini"]
    labelled = command.invoke(app, ["annotate", street, *asked, "--fps", "1", "--out", str(labels.parent)])
    assert labelled.exit_code == 0, labelled.output
    assert len(json.loads(labels.read_text())["images"]) == 3
    short = ["--mode", "head", "--short-side", "96", "--epochs", "1"]
    out = tmp_path / "student"
    taught = command.invoke(app, ["tune", str(labels), "--model", "glip-mini", *short, "--out", str(out)])
    assert taught.exit_code == 0, taught.output
    assert create_detector("glip-mini", weights=out).prepare(["person"])
