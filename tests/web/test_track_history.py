"""Score histograms, suggested thresholds, and trials of zones and lines on stored positions."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
from hypothesis import given
from hypothesis import strategies as st

from streamer.analysis.queries import Query
from streamer.rules.lines import Line
from streamer.rules.zones import Zone
from streamer.web.preview import link_detections
from streamer.web.track_history import TrackHistory, score_histogram, suggest_threshold

STEP_NS = 200_000_000
CENTRE = [[0.4, 0.4], [0.6, 0.4], [0.6, 0.6], [0.4, 0.6]]


def walk(
    history: TrackHistory, number: int, points: list[tuple[float, float]], scores: list[float] | None = None
) -> None:
    """A track whose feet go through the points, five a second."""
    for step, (x, y) in enumerate(points):
        row = (scores or [0.6])[min(step, len(scores or [0.6]) - 1)]
        seen = sv.Detections(
            np.array([[x, y - 0.1, x, y]]), tracker_id=np.array([number]), data={"label_scores": np.array([[row]])}
        )
        tracks = [{"number": number, "box": [x - 0.05, y - 0.2, x + 0.05, y]}]
        history.add((number * 1000 + step) * STEP_NS, seen, tracks, [Query("person", "person", number=1)])


def path(first: float, last: float) -> list[tuple[float, float]]:
    """Feet from left to right at the middle of the frame."""
    return [(x, 0.5) for x in np.linspace(first, last, 40).tolist()]


def test_tracks_that_would_have_entered_a_zone_are_counted_once():
    history = TrackHistory()
    walk(history, 1, path(0.1, 0.9) + path(0.9, 0.1))
    walk(history, 2, path(0.1, 0.3))
    assert history.try_zone(Zone("trial", CENTRE)) == 1
    assert history.try_zone(Zone("trial", [[0.0, 0.0], [1, 0], [1, 1], [0, 1]])) == 2


def test_tracks_that_would_have_crossed_a_line_are_counted():
    history = TrackHistory()
    walk(history, 1, path(0.1, 0.9))
    walk(history, 2, path(0.1, 0.3))
    assert history.try_line(Line("trial", [[0.5, 0.0], [0.5, 1.0]])) == 1


def test_the_best_score_of_each_track_is_kept():
    history = TrackHistory()
    walk(history, 1, path(0.1, 0.2), (0.3, 0.8, 0.5))
    walk(history, 2, path(0.1, 0.2), (0.2,))
    assert sorted(history.best_scores("person")) == [0.2, 0.8]
    assert history.best_scores("dog") == []


def test_what_is_older_than_an_hour_is_forgotten():
    history = TrackHistory()
    walk(history, 1, path(0.1, 0.9))
    walk(history, 60, path(0.1, 0.2))
    assert history.try_zone(Zone("trial", CENTRE)) == 0


def test_the_suggested_threshold_lies_in_the_gap():
    assert suggest_threshold([0.1, 0.12, 0.15, 0.7, 0.75, 0.8]) == pytest.approx(0.42, abs=0.02)


@pytest.mark.parametrize("scores", [[], [0.5], [0.1, 0.9], [0.5] * 20, [0.50, 0.51, 0.52, 0.53]])
def test_no_threshold_is_suggested_without_a_gap(scores):
    assert suggest_threshold(scores) is None


@given(st.lists(st.floats(0, 1)))
def test_a_histogram_counts_every_score(scores):
    assert sum(score_histogram(scores)) == len(scores)


@given(st.lists(st.floats(0, 1)))
def test_a_suggestion_separates_scores(scores):
    suggested = suggest_threshold(scores)
    assert suggested is None or min(scores) <= suggested + 0.01 <= max(scores) + 0.01


def test_detections_of_one_object_are_linked_by_track_and_by_overlap():
    def frame(*detections):
        return {"detections": [{"box": box, "score": score, "track": number} for box, score, number in detections]}

    left, right = [0.1, 0.1, 0.2, 0.4], [0.7, 0.1, 0.8, 0.4]
    results = [
        frame((left, 0.5, 3), (right, 0.2, None)),
        frame((left, 0.7, 3), (right, 0.3, None)),
        frame(([0.5, 0.1, 0.6, 0.4], 0.6, 3)),
    ]
    assert sorted(link_detections(results)) == [0.3, 0.7]
