from __future__ import annotations

import pytest

from detectors import create_detector, detector_names
from detectors.registry import UnknownDetector


def test_an_unknown_detector_is_told_with_the_nearest_names():
    with pytest.raises(UnknownDetector, match=r"'moton'.*did you mean motion"):
        create_detector("moton")


def test_the_names_are_those_of_detectors_and_families():
    assert {"motion", "scripted", "glip-", "grounding-dino-", "owlv2-"} <= set(detector_names())


def test_an_option_that_a_detector_does_not_have_is_told_with_those_it_has():
    with pytest.raises(ValueError, match=r"'motion' has no option 'weights'.*threshold"):
        create_detector("motion", weights="x")


def test_an_argument_is_refused_where_none_belongs():
    with pytest.raises(ValueError, match="motion:x"):
        create_detector("motion:x")
