"""Labels that are voted over the life of a track."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv

from trackers import TrackerInputError
from trackers.labels import LabelVotes

ALIVE = np.array([1, 2], dtype=np.int64)


def named(*labels: int, score: float = 0.8) -> sv.Detections:
    """Tracks 1, 2, ... each called by one query."""
    count = len(labels)
    return sv.Detections(
        xyxy=np.tile([0.0, 0, 10, 10], (count, 1)),
        confidence=np.full(count, score),
        class_id=np.array(labels),
        tracker_id=np.arange(1, count + 1),
    )


def test_a_label_does_not_flicker() -> None:
    votes = LabelVotes(2)
    said = [0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0]
    heard = [votes.update(named(label), frame / 30, ALIVE) for frame, label in enumerate(said)]
    assert [int(labels.label[0]) for labels in heard] == [0] * len(said)
    assert not any(labels.changed[0] for labels in heard)


def test_a_label_changes_once_when_the_detector_has_changed_its_mind() -> None:
    votes = LabelVotes(2)
    said = [0] * 10 + [1] * 60
    heard = [votes.update(named(label), frame / 30, ALIVE) for frame, label in enumerate(said)]
    assert int(heard[-1].label[0]) == 1
    assert sum(bool(labels.changed[0]) for labels in heard) == 1
    assert heard[-1].share[0] > 0.6


def test_a_negative_query_is_decided_on_the_track() -> None:
    """Query 1 is "a poster of a person", said more often than not of track 1 and once of track 2."""
    votes = LabelVotes(2, negatives={1: 0})
    for frame in range(12):
        heard = votes.update(named(1 if frame % 3 else 0, 1 if frame == 5 else 0), frame / 30, ALIVE)
    assert heard.rejected.tolist() == [True, False]
    assert heard.label[1] == 0


def test_whole_distributions_count_where_a_detector_gives_them() -> None:
    votes = LabelVotes(3, calibration=[1.0, 0.2, 1.0])
    tracked = named(0)
    tracked.data["query_scores"] = np.array([[0.3, 0.9, 0.4]])
    heard = votes.update(tracked, 0.0, ALIVE)
    assert heard.label.tolist() == [2]
    assert heard.share[0] == pytest.approx(0.4 / (0.3 + 0.18 + 0.4))


def test_tracks_that_ended_are_forgotten() -> None:
    votes = LabelVotes(2)
    for frame in range(10):
        votes.update(named(0), frame / 30, ALIVE[:1])
    votes.update(named(1, 1)[[1]], 0.4, np.array([2]))
    assert votes.update(named(1), 0.5, ALIVE[:1]).label.tolist() == [1]


def test_votes_fade_with_time_not_with_frames() -> None:
    slow, fast = LabelVotes(2), LabelVotes(2)
    for vote in (slow, fast):
        vote.update(named(0), 0.0, ALIVE)
    assert slow.update(named(1), 10.0, ALIVE).share[0] < 0.05
    assert fast.update(named(1), 0.01, ALIVE).share[0] > 0.4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"queries": 0}, "give at least one"),
        ({"queries": 2, "negatives": {1: 5}}, "indices from 0 to 1"),
        ({"queries": 2, "negatives": {0: 1, 1: 0}}, "cannot be denied itself"),
        ({"queries": 2, "calibration": [1.0]}, "give 2 factors"),
        ({"queries": 2, "half_life_s": 0.0}, "seconds above 0"),
    ],
)
def test_votes_that_cannot_be_held_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(TrackerInputError, match=words):
        LabelVotes(**arguments)  # type: ignore[arg-type]


def test_a_label_beyond_the_queries_is_refused() -> None:
    with pytest.raises(TrackerInputError, match="queries are 0 to 1"):
        LabelVotes(2).update(named(2), 0.0, ALIVE)
