"""GLIP keeps what every detector keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detectors import Detector
from detectors.conformance import DetectorConformance
from detectors.glip.detector import create
from streamer.street import sample_picture, words


class TestGlip(DetectorConformance):
    queries = ("person", "red car")

    @pytest.fixture(autouse=True)
    def _weights(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> Detector:
        return create("glip-mini", weights=self.folder)


class TestGlipMini(DetectorConformance):
    """With the packaged weights, which know colours."""

    queries = ("person", "red car")
    large = (1080, 1920)

    def make(self) -> Detector:
        return create("glip-mini", device="cpu", dtype="float32")

    def red_thing(self) -> tuple[np.ndarray, str]:
        """A street with one red car and no blue one."""
        for seed in range(1000):
            picture = sample_picture(seed, 0)
            seen = picture.truth.seen
            phrases = [phrase for one in seen for phrase in words.true_phrases(one, seen)]
            large = any(one.area > 1500 and "a red car" in words.true_phrases(one, seen) for one in seen)
            if large and not any("blue" in phrase for phrase in phrases):
                return picture.image, "a red car"
        raise AssertionError("no street shows a large red car and nothing blue")
