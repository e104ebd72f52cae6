"""The packaged glip-mini: a model that has really learned, from words to boxes to events."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from detectors import Detector, create_detector
from streamer.demo.examination import HELD_OUT, answer_of, examine
from streamer.showcase import show_street

PICTURES = 16


@pytest.fixture(scope="module")
def mini() -> Detector:
    return create_detector("glip-mini", device="cpu")


@pytest.mark.timeout(300)
def test_it_finds_what_is_asked_for_and_little_else_on_streets_it_has_not_seen(mini: Detector) -> None:
    report = examine(answer_of(mini), PICTURES, mini.threshold, seed=HELD_OUT + 1)
    assert report.phrases > 0.7
    assert report.kinds > 0.75
    assert report.false_alarms < 0.1
    assert report.right_colour > 0.85


def test_a_word_that_it_never_learned_is_told(mini: Detector, caplog: pytest.LogCaptureFixture) -> None:
    mini.prepare(["a zebra", "a red car"])
    assert [record.getMessage() for record in caplog.records] == [
        "the model has never learned the word 'zebra': what it finds for it means little"
    ]


def test_the_demo_finds_what_the_user_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = ["a person", "a bus"]
    assert not show_street(queries, tmp_path, seed=5, seconds=2.0)
    rows = sqlite3.connect(tmp_path / "events.sqlite").execute(
        "SELECT DISTINCT queries FROM events WHERE type = 'groundstream.match.begin.v1'"
    )
    told = {query for (row,) in rows for query in json.loads(row)}
    assert told == set(queries)
    assert "events.sqlite" in capsys.readouterr().out
    assert next(tmp_path.glob("*/video.mp4")).stat().st_size > 10_000
