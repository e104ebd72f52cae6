from __future__ import annotations

from typing import Any

import pytest

from detectors import create_detector, detector_names
from detectors.detector import OptionError
from detectors.registry import UnknownDetector, default_detector, detector_options


def test_an_unknown_detector_is_reported_with_the_nearest_names():
    with pytest.raises(UnknownDetector, match=r"'moton'.*did you mean motion"):
        create_detector("moton")


def test_the_names_are_those_of_detectors_and_families():
    assert {"motion", "scripted", "glip-", "grounding-dino-", "owlv2-"} <= set(detector_names())


def test_an_option_that_a_detector_does_not_have_is_reported_with_those_it_has():
    with pytest.raises(ValueError, match=r"'motion' has no option 'weights'.*threshold"):
        create_detector("motion", weights="x")


def test_an_argument_is_refused_where_none_belongs():
    with pytest.raises(ValueError, match="motion:x"):
        create_detector("motion:x")


def test_queries_choose_the_detector_where_none_is_named() -> None:
    assert default_detector(["Anything  that moves"]) == "motion"
    assert default_detector(["anything that moves", "car"]) == "glip-tiny"
    assert default_detector([], "glip-mini") == "glip-mini"


def test_a_detector_lists_its_options() -> None:
    assert detector_options("motion") == {"threshold": "a number", "memory": "a whole number"}
    assert detector_options("glip-mini")["weights"] == "a path"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": "high"}, "option 'threshold' of the detector 'motion' is 'high': expected a number"),
        ({"memory": 1.5}, "expected a whole number"),
        ({"memory": True}, "expected a whole number"),
        ({"treshold": 0.5}, "did you mean 'threshold'"),
    ],
)
def test_options_of_a_wrong_name_or_kind_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        create_detector("motion", **options)


def test_whole_numbers_and_none_are_accepted_for_numbers() -> None:
    assert create_detector("motion", threshold=1, memory=None).threshold == 1
