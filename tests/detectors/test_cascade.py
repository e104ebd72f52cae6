from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import supervision as sv

from detectors import Detector, Request, create_detector
from detectors.cascade import CascadeDetector
from detectors.conformance import DetectorConformance
from detectors.detector import DetectorError, OptionError
from detectors.registry import ANYTHING_THAT_MOVES
from detectors.scripted import ScriptedDetector

IMAGE = np.zeros((100, 200, 3), np.uint8)


class TestCascadeConforms(DetectorConformance):
    sees_colours = False
    remembers = True
    queries = (ANYTHING_THAT_MOVES,)
    other_queries = (ANYTHING_THAT_MOVES,)

    def make(self) -> Detector:
        return CascadeDetector(create_detector("motion"), create_detector("motion"), [ANYTHING_THAT_MOVES])


def frames(boxes: Sequence[Sequence[Sequence[float]]]) -> list[list[dict[str, object]]]:
    return [[{"query": "thing", "box": list(box), "confidence": 0.9} for box in frame] for frame in boxes]


class Street:
    """A cascade of two scripted detectors: boxes of the gate by picture, those of the large one by analysis."""

    def __init__(
        self, gate: Sequence[Sequence[Sequence[float]]], analysed: Sequence[Sequence[Sequence[float]]], **options
    ):
        self.cascade = CascadeDetector(
            ScriptedDetector(frames(analysed)), ScriptedDetector(frames(gate)), ["thing"], **options
        )
        self.prompt = self.cascade.prepare(["thing"])

    def show(self, image: np.ndarray = IMAGE, thresholds: Sequence[float] | None = None) -> list[list[float]]:
        [found] = self.cascade.detect([Request(image, self.prompt, "gate", thresholds)])
        return found.xyxy.tolist()

    def analysed_of(self, pictures: int) -> list[int]:
        """Shows pictures; gives the numbers of those that the large detector analysed."""
        numbers = []
        for number in range(pictures):
            before = self.cascade.analysed
            self.show()
            if self.cascade.analysed > before:
                numbers.append(number)
        return numbers


STANDING = [10.0, 10.0, 30.0, 50.0]


def test_a_still_street_is_analysed_first_and_then_rarely():
    assert Street([[]] * 25, [[]] * 25, still_every=10).analysed_of(25) == [0, 10, 20]


def test_a_new_thing_is_analysed_at_once():
    assert Street([[]] * 5 + [[STANDING]] * 3, [[]] * 9, moving_every=4).analysed_of(8) == [0, 5]


def test_what_moves_is_analysed_every_few_pictures():
    walk = [[[10.0 + 2 * step, 10, 30 + 2 * step, 50]] for step in range(12)]
    assert Street(walk, [[]] * 12, moving_every=4).analysed_of(12) == [0, 4, 8]


def test_a_thing_that_is_gone_for_some_pictures_is_analysed_once():
    analysed = Street([[STANDING]] * 3 + [[]] * 12, [[]] * 15, moving_every=50, still_every=50).analysed_of(15)
    assert len(analysed) == 2
    assert 3 < analysed[1] <= 8


def test_a_box_that_flickers_parts_or_joins_is_nothing_new():
    parted = [[10.0, 10.0, 30.0, 28.0], [10.0, 32.0, 30.0, 50.0]]
    gate = [[STANDING], [], [STANDING], parted, [STANDING], [[8.0, 8.0, 60.0, 60.0]], [STANDING], []] * 3
    assert Street(gate, [[]] * 30, moving_every=100, still_every=100).analysed_of(24) == [0]


def painted(x: int, y: int, width: int = 40, height: int = 60) -> np.ndarray:
    """A textured thing with its left upper corner at (x, y) before a textured background, BGR, 200 by 320 pixels."""
    coarse = np.random.default_rng(5).integers(60, 190, (50, 80, 3), dtype=np.uint8)
    canvas = np.zeros((400, 640, 3), np.uint8)
    canvas[:200, :320] = cv2.resize(coarse, (320, 200), interpolation=cv2.INTER_CUBIC)
    thing = cv2.resize(coarse[5 : 5 + height // 4, 9 : 9 + width // 4, ::-1], (width, height))
    canvas[y : y + height, x : x + width] = thing
    return canvas[:200, :320]


def test_boxes_move_with_what_moves_below_them_and_others_stay():
    parked = [200.0, 20.0, 290.0, 80.0]
    places = [(20 + 5 * step, 30 + 2 * step) for step in range(5)]
    boxes = [[float(x), float(y), x + 40.0, y + 60.0] for x, y in places]
    street = Street([[box] for box in boxes], [[boxes[0], parked]], moving_every=10)
    found = [street.show(painted(x, y)) for x, y in places]
    assert street.cascade.analysed == 1
    np.testing.assert_allclose(found[-1], [boxes[-1], parked], atol=1)


def test_a_box_is_cut_at_the_border_and_ends_when_its_thing_has_left():
    places = [245 + 12 * step for step in range(7)]
    boxes = [[float(x), 30.0, min(x + 40.0, 320.0), 90.0] for x in places]
    street = Street([[box] for box in boxes[:-1]] + [[]] * 7, [[boxes[0]]], moving_every=20, still_every=20)
    found = [street.show(painted(x, 30)) for x in places + [320] * 6]
    np.testing.assert_allclose(found[2], [boxes[2]], atol=2)
    assert all(box[2] <= 320 for frame in found for box in frame)
    assert street.cascade.analysed == 2
    assert found[-1] == []


@pytest.mark.parametrize("change", ["words", "thresholds", "size"])
def test_a_change_of_words_thresholds_or_size_is_analysed(change):
    street = Street([[]] * 4, [[]] * 4)
    street.show()
    street.show()
    assert street.cascade.analysed == 1
    if change == "words":
        street.prompt = street.cascade.prepare(["thing", "other"])
    street.show(
        np.zeros((50, 60, 3), np.uint8) if change == "size" else IMAGE, [0.2] if change == "thresholds" else None
    )
    assert street.cascade.analysed == 2


def test_streams_of_one_batch_are_decided_apart_and_keep_their_order():
    cascade = CascadeDetector(
        ScriptedDetector({"a": frames([[STANDING]] * 3), "b": frames([[]] * 3)}),
        ScriptedDetector({"a": frames([[]] * 3), "b": frames([[], [STANDING], []])}),
        ["thing"],
    )
    prompt = cascade.prepare(["thing"])
    batch = [Request(IMAGE, prompt, name) for name in ("a", "b", "a", "b")]
    assert [len(found) for found in cascade.detect(batch)] == [1, 0, 1, 0]
    assert (cascade.analysed, cascade.pictures) == (3, 4)


def test_after_a_failure_the_next_picture_is_analysed():
    class Failing:
        threshold = 0.5
        calls = 0

        def prepare(self, queries):
            return create_detector("motion").prepare([ANYTHING_THAT_MOVES])

        def detect(self, requests) -> list[sv.Detections]:
            self.calls += 1
            if self.calls == 1:
                raise DetectorError("out of memory")
            return [sv.Detections.empty() for _ in requests]

    cascade = CascadeDetector(Failing(), ScriptedDetector(frames([[]] * 3)), ["thing"])
    request = Request(IMAGE, cascade.prepare(["thing"]), "gate")
    with pytest.raises(DetectorError, match="out of memory"):
        cascade.detect([request])
    assert [len(found) for found in cascade.detect([request])] == [0]
    assert cascade.analysed == 1


def test_a_forgotten_stream_is_analysed_again():
    street = Street([[]] * 4, [[]] * 4)
    street.show()
    street.cascade.forget("gate")
    street.show()
    assert street.cascade.analysed == 2


@pytest.mark.parametrize(("moving", "still"), [(0, 10), (5, 4)])
def test_impossible_intervals_are_refused(moving, still):
    with pytest.raises(OptionError, match="expected 1 <= gate_moving_every <= gate_still_every"):
        Street([[]], [[]], moving_every=moving, still_every=still)
