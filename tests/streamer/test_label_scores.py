"""Label scores: one detection per object, with its score for every query."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.detector import detections
from streamer.analysis.label_scores import for_tracker
from streamer.boxes import box_ious, overlaps_among

PERSON, MAN = 0, 1
BOX = [300, 200, 340, 300]


def merged(*rows):
    """Label scores of what is left of rows (box, query, score)."""
    boxes, words, scores = zip(*rows, strict=True)
    found = detections(boxes, scores, words, ("person", "man"))
    left, _ = for_tracker(found, np.array([1, 2]), np.array([0.5, 0.5]))
    return left.data["label_scores"].tolist()


def shifted(dx, dy):
    return [BOX[0] + dx, BOX[1] + dy, BOX[2] + dx, BOX[3] + dy]


def test_one_object_under_two_words_is_one_detection_with_both_scores():
    assert merged((BOX, PERSON, 0.9), (shifted(6, 6), MAN, 0.8)) == [pytest.approx([0.9, 0.8])]


def test_one_object_found_twice_under_one_word_is_one_detection():
    assert merged((BOX, PERSON, 0.9), (shifted(2, 5), PERSON, 0.7)) == [pytest.approx([0.9, 0])]


def test_a_part_of_an_object_under_the_same_word_is_no_object_of_its_own():
    assert merged((BOX, PERSON, 0.6), ([302, 200, 338, 250], PERSON, 0.5)) == [pytest.approx([0.6, 0])]
    assert merged((BOX, PERSON, 0.5), ([302, 200, 338, 250], PERSON, 0.6)) == [pytest.approx([0.6, 0])]


def test_a_much_smaller_box_inside_another_is_an_object_farther_away():
    assert len(merged((BOX, PERSON, 0.9), ([310, 210, 325, 240], PERSON, 0.8))) == 2


def test_a_box_of_another_word_inside_another_stays():
    assert len(merged((BOX, PERSON, 0.9), ([302, 200, 338, 250], MAN, 0.8))) == 2


def test_neighbours_in_a_crowd_stay():
    assert len(merged((BOX, PERSON, 0.9), (shifted(12, 0), PERSON, 0.8))) == 2
    assert len(merged((BOX, PERSON, 0.9), (shifted(14, 0), MAN, 0.8))) == 2


def test_doubtful_answers_do_not_lower_the_score_of_a_sure_one():
    assert merged((BOX, PERSON, 0.9), (BOX, PERSON, 0.2), (BOX, MAN, 0.3)) == [pytest.approx([0.9, 0.3])]


@given(st.lists(st.tuples(*[st.integers(0, 40)] * 4), max_size=12))
def test_overlaps_among_boxes_are_those_of_each_pair(corners: list[tuple[int, int, int, int]]) -> None:
    boxes = np.array([(x, y, x + width, y + height) for x, y, width, height in corners], float).reshape(-1, 4)
    overlaps = overlaps_among(boxes)
    ious = box_ious(boxes, boxes)
    apart = ious[~np.eye(len(boxes), dtype=bool)]
    if overlaps is None:
        assert not apart.any()
    else:
        assert apart.any()
        assert np.array_equal(overlaps[0], ious)
        inside = [[_is_within(one, other) for other in boxes] for one in boxes]
        assert (overlaps[1][np.array(inside)] == 1).all()


def _is_within(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the first box has an area and lies in the second one."""
    return bool((one[2:] > one[:2]).all() and (one[:2] >= other[:2]).all() and (one[2:] <= other[2:]).all())
