"""Events against labels: pairs counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamer.tasks.evaluate_events import LabelError, LabelledEvent, read_labelled_events, score_events, shift_events


def cross(
    time_s: float, place: str = "gate", direction: str | None = "in", published_s: float | None = None
) -> LabelledEvent:
    return LabelledEvent(time_s, "line.cross", place, direction, "cam", published_s)


def test_found_missed_and_made_up_events_are_counted() -> None:
    truth = [cross(1), cross(5), cross(9), cross(12, "door")]
    reported = [cross(1.2), cross(5.1), cross(30), cross(9, direction="out")]
    score = score_events(truth, reported, tolerance_s=1)
    assert (score.right, score.missed, score.false) == (2, 2, 2)
    assert (score.precision, score.recall) == (0.5, 0.5)
    assert score.offset_median_s == pytest.approx(0.15)


def test_as_many_pairs_as_possible_are_made() -> None:
    # The nearest pair (1.9 with 2.0) would leave both others alone.
    assert score_events([cross(1.0), cross(2.0)], [cross(1.9), cross(2.9)], tolerance_s=1).right == 2


def test_the_delay_is_from_the_happening_to_its_telling() -> None:
    score = score_events([cross(1), cross(2)], [cross(1, published_s=1.5), cross(2, published_s=3.5)])
    assert score.delay_median_s == pytest.approx(1.0)
    assert np.isnan(score_events([cross(1)], [cross(1)]).delay_median_s)


def test_nothing_reported_has_no_precision() -> None:
    score = score_events([cross(1)], [])
    assert np.isnan(score.precision)
    assert score.recall == 0


def test_labels_and_events_are_read_side_by_side(tmp_path: Path) -> None:
    event = {
        "specversion": "1.0",
        "type": "groundstream.zone.enter.v1",
        "time": "1970-01-01T00:00:07.500000Z",
        "data": {"stream": "cam", "clock": {"emitted_ns": 8_000_000_000}, "zone": {"id": "yard"}},
    }
    begin = {**event, "type": "groundstream.track.begin.v1"}
    (tmp_path / "reported.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(begin) + "\n")
    label = {"time_s": 2.5, "type": "zone.enter", "place": "yard"}
    (tmp_path / "truth.jsonl").write_text(json.dumps(label) + "\n")
    reported = read_labelled_events(tmp_path / "reported.jsonl")
    truth = shift_events(read_labelled_events(tmp_path / "truth.jsonl"), 5.0, "cam")
    score = score_events(truth, reported)
    assert (score.right, score.false, score.offset_median_s) == (1, 0, 0.0)
    assert score.delay_median_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"time_s": 1}', "line 2 is not an event or a label: expected a text as 'type', found None"),
        ("[1]", "expected a JSON object"),
        ("nonsense", "line 2 is not an event or a label"),
        ('{"time_s": NaN, "type": "zone.exit", "place": "yard"}', "expected a finite number as 'time_s', found nan"),
        ('{"time_s": 1e400, "type": "zone.exit", "place": "yard"}', "expected a finite number as 'time_s', found inf"),
        ('{"time_s": true, "type": "zone.exit", "place": "yard"}', "expected a finite number as 'time_s', found True"),
        ('{"time_s": 1, "type": "zone.exit", "place": {}}', "expected a text as 'place', found {}"),
        (
            '{"specversion": "1.0", "type": "groundstream.zone.exit.v1", "time": "yesterday", "data": []}',
            "expected an object as 'data', found []",
        ),
        (
            '{"specversion": "1.0", "type": "groundstream.zone.exit.v1", "time": "yesterday", '
            '"data": {"stream": "a", "clock": {}, "zone": {"id": "yard"}}}',
            "yesterday",
        ),
    ],
)
def test_a_line_that_is_neither_is_named_with_its_mistake(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"time_s": 1, "type": "zone.exit", "place": "yard"}}\n{line}\n')
    with pytest.raises(LabelError, match=r"bad\.jsonl, line 2 is not") as raised:
        read_labelled_events(path)
    assert sentence in str(raised.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('\ufeff{"time_s": 1, "type": "zone.exit", "place": "yard"}\n')
    assert len(read_labelled_events(path)) == 1


@pytest.mark.parametrize("direction", [["in"], {}, 3, True])
def test_a_direction_that_is_no_text_is_named(tmp_path: Path, direction: object) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"time_s": 1, "type": "line.cross", "place": "gate", "direction": direction}))
    with pytest.raises(LabelError, match=r"line 1 .* expected a text as 'direction'"):
        read_labelled_events(path)
