from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detectors import Request
from detectors.cascade import CascadeDetector
from detectors.detector import OptionError
from streamer.config import load_config, parse_config
from streamer.detector_choice import DetectorChoice, load_detector, parse_options
from streamer.errors import ConfigError
from streamer.jobs.job import ProcessJob, job_config
from streamer.tasks.monitor import MonitorOptions


def written(folder: Path, detector: Any) -> Path:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump({"streams": [{"source": "a.mp4"}], "queries": ["person"], "detector": detector}))
    return file


def test_any_option_of_a_detector_stands_in_the_configuration(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, {"name": "glip-mini", "dtype": "bfloat16", "short_side": 256}))
    assert config.detector.model_extra == {"dtype": "bfloat16", "short_side": 256}
    detector = load_detector(config.detector)
    assert (detector.precision.dtype.itemsize, detector._size.min_side) == (2, 256)


@pytest.mark.parametrize(
    ("detector", "sentence"),
    [
        ({"name": "glip-mini", "short_sid": 256}, "did you mean 'short_side'"),
        ({"name": "glip-mini", "dtype": 16}, "option 'dtype' of the detector 'glip-mini' is 16: expected a text"),
        ({"name": "motion", "tuned": "x.safetensors"}, "'motion' has no option 'tuned'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, detector: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        load_detector(load_config(written(tmp_path, detector)).detector)


def test_texts_become_values() -> None:
    given = ["short-side=544", "dtype=bfloat16", "chunking=false", "named={a red car: 0.3}"]
    assert parse_options(given) == {
        "short_side": 544,
        "dtype": "bfloat16",
        "chunking": False,
        "named": {"a red car": 0.3},
    }
    for wrong, sentence in (["short_side"], "NAME=VALUE"), (["a=1", "a=2"], "given twice"):
        with pytest.raises(ConfigError, match=sentence):
            parse_options(wrong)


def test_an_option_given_by_two_ways_is_refused() -> None:
    with pytest.raises(ConfigError, match="by --detector-option and by --threshold"):
        DetectorChoice(threshold=0.5, options=["threshold=0.6"]).section()


def test_one_rule_chooses_the_detector_in_every_command() -> None:
    moving = ["anything that moves"]
    assert job_config(ProcessJob(["a.mp4"], moving, Path("out"))).detector.name == "motion"
    watched = MonitorOptions(DetectorChoice(), sources=["a.mp4"], queries=moving)
    assert watched.load_config().detector.name == "motion"
    assert parse_config({"streams": [{"source": "a"}], "queries": moving}).detector.name == "motion"
    assert parse_config({"streams": [{"source": "a"}], "queries": ["dog"]}).detector.name == "glip-tiny"
    own = {"streams": [{"source": "a", "queries": ["dog"]}], "queries": moving}
    assert parse_config(own).detector.name == "glip-tiny"


def test_options_reach_the_detector_of_a_job(tmp_path: Path) -> None:
    script = tmp_path / "s.json"
    script.write_text(json.dumps({"frames": []}))
    config = job_config(
        ProcessJob(["a.mp4"], ["x"], tmp_path, detector=f"scripted:{script}", detector_options=["repeat=true"])
    )
    assert load_detector(config.detector).threshold == 0.5


def test_a_gate_is_an_option_of_every_detector(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text("[[], []]")
    options = ["gate=motion", "gate_moving_every=2", "gate_still_every=3"]
    detector = DetectorChoice(f"scripted:{script}", options=options).load(["person"])
    assert isinstance(detector, CascadeDetector)
    still = Request(np.zeros((90, 120, 3), np.uint8), detector.prepare(["person"]), "camera")
    detector.detect([still] * 6)
    assert (detector.analysed, detector.pictures) == (2, 6)


def test_a_gate_before_a_detector_as_cheap_is_refused() -> None:
    with pytest.raises(ConfigError, match="motion needs no gate: leave `gate` out"):
        DetectorChoice("motion", options=["gate=coco-nano"]).load(["anything that moves"])
