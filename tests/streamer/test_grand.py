from __future__ import annotations

import numpy as np
import supervision as sv

from detectors.detector import GroundedSpan, GroundedText, detections
from streamer.tasks.grand_records import GrandObject, ground_exactly, vote_objects


def found(*rows: tuple[str, float, list[float]]) -> sv.Detections:
    names = [name for name, _, _ in rows]
    return detections([box for *_, box in rows], [score for _, score, _ in rows], range(len(rows)), names)


def described(*phrases: tuple[str, tuple[int, int, int, int]]) -> GroundedText:
    """A description whose phrases fill boxes of a picture of 100x100."""
    text, spans = "", []
    masks = np.zeros((len(phrases), 100, 100), bool)
    for number, (phrase, (x1, y1, x2, y2)) in enumerate(phrases):
        masks[number, y1 : y2 + 1, x1 : x2 + 1] = True
        spans.append(GroundedSpan(len(text), len(text) + len(phrase), phrase, (number,)))
        text += phrase + " "
    return GroundedText(text.strip(), tuple(spans), masks, "")


def test_what_two_saw_is_an_object_and_what_one_saw_floats() -> None:
    things = vote_objects(
        {"glip": found(("car", 0.9, [10, 10, 50, 50]), ("dog", 0.7, [60, 60, 90, 90]))},
        described(("a red car", (11, 10, 50, 50))),
    )
    assert [(thing.label, thing.is_object, sorted(thing.votes)) for thing in things] == [
        ("car", True, ["glamm", "glip"]),
        ("dog", False, ["glip"]),
    ]
    assert things[0].as_json(0)["labels"] == ["car", "a red car"]


def test_the_better_score_gives_box_and_label() -> None:
    (thing,) = vote_objects(
        {"a": found(("cat", 0.5, [10, 10, 50, 50])), "b": found(("dog", 0.8, [12, 10, 50, 50]))}, described()
    )
    assert (thing.label, thing.source, thing.box.tolist()) == ("dog", "b", [12, 10, 50, 50])
    assert thing.votes == {"a": "cat", "b": "dog"}


def test_a_person_that_one_detector_is_sure_of_needs_no_second() -> None:
    sure, unsure = vote_objects(
        {"glip": found(("man", 0.8, [0, 0, 20, 40]), ("woman", 0.7, [50, 0, 70, 40]))}, described()
    )
    assert (sure.label, sure.is_object) == ("person", True)
    assert not unsure.is_object


def test_a_box_seen_twice_by_one_voter_counts_once() -> None:
    (thing,) = vote_objects(
        {"glip": found(("car", 0.9, [10, 10, 50, 50]), ("car", 0.6, [10, 10, 51, 50]))}, described()
    )
    assert not thing.is_object


def test_one_thing_gets_one_vote_of_a_voter_and_neighbours_stay_apart() -> None:
    things = vote_objects(
        {
            "a": found(("cup", 0.9, [10, 10, 30, 30])),
            "b": found(("cup", 0.8, [10, 10, 30, 33]), ("cup", 0.7, [10, 12, 30, 30])),
        },
        described(),
    )
    assert [len(thing.votes) for thing in things] == [2, 1]


def test_labels_are_found_in_a_caption_the_longest_first() -> None:
    things = {
        0: GrandObject(np.array([0.0, 0, 1, 1]), "car", 0.9, "a"),
        1: GrandObject(np.array([2.0, 0, 3, 1]), "red car", 0.9, "a"),
        2: GrandObject(np.array([4.0, 0, 5, 1]), "dog", 0.9, "a"),
    }
    details = ground_exactly("Two dogs beside a red car and scarce cars.", things)
    assert [(detail["phrase"], detail["id"]) for detail in details] == [("dogs", 2), ("red car", 1), ("cars", 0)]
    assert details[0]["tokens_positive"] == [4, 8]
