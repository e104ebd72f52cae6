"""The examples run as they stand, and their own parts keep the contracts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from detectors import Detector
from detectors.conformance import DetectorConformance
from sinks.conformance import sample_events
from streamer.conformance import RuleConformance, SourceConformance
from streamer.examples.count_line import count_crossings
from streamer.examples.own_detector import BrightRegions
from streamer.examples.own_rule import Crowd
from streamer.examples.own_sink import EventCounter
from streamer.rules.rule import Rule
from streamer.sources.file import FileSource
from streamer.sources.source import Source
from tests.support.clips import make_clip

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "walk.mp4", frames=60, fps=10)


def run_example(name: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", f"streamer.examples.{name}", *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["count_line", "own_detector", "own_sink"])
def test_the_examples_print_what_they_found(name: str, clip: Path, tmp_path: Path) -> None:
    assert run_example(name, clip, cwd=tmp_path).strip()


@pytest.mark.timeout(300)
def test_the_rule_writes_its_events(tmp_path: Path) -> None:
    street = "synthetic:street?seed=5&size=320x192&fps=6&duration=8"
    lines = run_example("own_rule", street, cwd=tmp_path).splitlines()
    assert lines
    assert {json.loads(line)["data"]["rule"]["id"] for line in lines} == {"crowd"}


@pytest.mark.timeout(300)
def test_the_notebook_example_draws_frames(clip: Path, tmp_path: Path) -> None:
    run_example("frames_with_boxes", clip, cwd=tmp_path)
    assert len(list((tmp_path / "frames").glob("*.jpg"))) == 6


@pytest.mark.timeout(300)
def test_one_image_is_searched_for_words(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((120, 200, 3), 127, np.uint8))
    run_example("one_image", tmp_path / "grey.png", "a person", cwd=tmp_path)


def test_crossings_of_the_street_are_counted_by_direction() -> None:
    crossings = count_crossings("synthetic:street?seed=5&size=320x192&fps=6&duration=8")
    assert set(crossings) <= {"in", "out"}
    assert sum(crossings.values()) > 0


class TestBrightRegions(DetectorConformance):
    def make(self) -> Detector:
        return BrightRegions()


class TestCrowd(RuleConformance):
    def make_rule(self) -> Rule:
        return Crowd(1)

    def test_a_crowd_is_reported_once(self) -> None:
        assert [finding.type for finding in self.run_rule()] == ["groundstream.rule.v1"]


class TestFileSource(SourceConformance):
    @pytest.fixture(autouse=True)
    def _clip(self, clip: Path) -> None:
        self.path = clip

    def make_source(self) -> Source:
        return FileSource(str(self.path), "walk")


@pytest.mark.anyio
async def test_the_sink_counts_events() -> None:
    counter = EventCounter()
    await counter.send_batch(sample_events(3))
    assert counter.counts == {"stream.online": 3}
