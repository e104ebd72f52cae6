from __future__ import annotations

import json

import numpy as np
import pytest

from detectors import Detector, Prompt, Request, create_detector
from detectors.conformance import DetectorConformance
from detectors.scripted import ScriptedDetector, ScriptError

PERSON = {"query": "person", "box": [1, 2, 3, 4], "confidence": 0.9}
CAR = {"query": "red car", "box": [5, 6, 7, 8]}


def no_picture() -> np.ndarray:
    raise AssertionError("the scripted detector looked at a picture")


def names(detector: ScriptedDetector, prompt: Prompt, stream: str = "gate") -> list[str]:
    [found] = detector.detect([Request(no_picture, prompt, stream)])
    return list(found.data["class_name"])


class TestScriptedConforms(DetectorConformance):
    sees_colours = False

    def make(self) -> Detector:
        tiny = [{"query": query, "box": [0, 0, 1, 1], "confidence": 0.5} for query in ("person", "dog", "red car")]
        return ScriptedDetector([tiny], repeat=True)


def test_each_stream_gets_its_frames_in_order_without_a_look_at_the_picture():
    detector = ScriptedDetector([[PERSON], [], [PERSON, CAR]])
    prompt = detector.prepare(["person", "red car"])
    for stream in ("gate", "yard"):
        assert [names(detector, prompt, stream) for _ in range(4)] == [["person"], [], ["person", "red car"], []]


def test_boxes_scores_and_classes_are_those_written():
    detector = ScriptedDetector([[PERSON, CAR]])
    [found] = detector.detect([Request(no_picture, detector.prepare(["red car", "person"]))])
    assert found.xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.confidence.tolist() == pytest.approx([0.9, 1.0])
    assert found.class_id.tolist() == [1, 0]


def test_a_repeated_script_begins_again():
    detector = ScriptedDetector([[PERSON], []], repeat=True)
    prompt = detector.prepare(["person"])
    assert [names(detector, prompt) for _ in range(5)] == [["person"], [], ["person"], [], ["person"]]


def test_a_query_that_is_not_in_the_script_finds_nothing():
    detector = ScriptedDetector([[PERSON]])
    assert names(detector, detector.prepare(["unicorn"])) == []


def test_a_stream_has_its_own_script_or_that_of_all_others():
    detector = ScriptedDetector({"gate": [[PERSON]], "*": [[CAR]]})
    prompt = detector.prepare(["person", "red car"])
    assert names(detector, prompt, "gate") == ["person"]
    assert names(detector, prompt, "yard") == ["red car"]


def test_a_stream_without_a_script_finds_nothing():
    detector = ScriptedDetector({"gate": [[PERSON]]})
    assert names(detector, detector.prepare(["person"]), "yard") == []


@pytest.mark.parametrize("script", [[[PERSON]], {"frames": [[PERSON]]}, {"streams": {"*": [[PERSON]]}}])
def test_a_script_is_read_from_a_file_in_each_of_its_forms(tmp_path, script):
    file = tmp_path / "script.json"
    file.write_text(json.dumps(script))
    detector = create_detector(f"scripted:{file}")
    prompt = detector.prepare(["person"])
    assert [names(detector, prompt) for _ in range(2)] == [["person"], []]


def test_a_file_may_ask_for_repetition_and_the_option_decides(tmp_path):
    file = tmp_path / "script.json"
    file.write_text(json.dumps({"frames": [[PERSON]], "repeat": True}))
    repeated, once = create_detector(f"scripted:{file}"), create_detector(f"scripted:{file}", repeat=False)
    assert [names(repeated, repeated.prepare(["person"])) for _ in range(2)] == [["person"], ["person"]]
    assert [names(once, once.prepare(["person"])) for _ in range(2)] == [["person"], []]


@pytest.mark.parametrize(
    ("answers", "reported"),
    [
        ([[{"query": "person", "box": [1, 2, 3]}]], "box"),
        ([[{"query": "person", "box": [3, 2, 1, 4]}]], "x1 <= x2"),
        ([[{"query": "person", "box": [1, 2, 3, float("nan")]}]], "box"),
        ([[{"query": "person", "box": [1, 2, 3, 10**400]}]], "box and confidence must be numbers"),
        ([[{"query": "", "box": [1, 2, 3, 4]}]], "query"),
        ([[PERSON | {"confidence": 1.5}]], "confidence"),
        ([[PERSON | {"score": 1}]], "score"),
        ([[PERSON], "person"], "frame 1"),
        ([["person"]], "frame 0"),
        ({"gate": 3}, "gate"),
    ],
)
def test_a_wrong_script_names_the_place_and_what_is_allowed(answers, reported):
    with pytest.raises(ScriptError, match=reported):
        ScriptedDetector(answers)


@pytest.mark.parametrize("text", ["not json", '{"frame": []}', '{"frames": [], "loop": true}', "3"])
def test_a_wrong_file_is_named(tmp_path, text):
    file = tmp_path / "script.json"
    file.write_text(text)
    with pytest.raises(ScriptError, match=r"script\.json"):
        ScriptedDetector.load(file)


def test_a_missing_file_and_a_missing_script_are_reported(tmp_path):
    with pytest.raises(ScriptError, match=r"none\.json"):
        create_detector(f"scripted:{tmp_path / 'none.json'}")
    with pytest.raises(ScriptError, match=r"scripted:FILE\.json"):
        create_detector("scripted")
