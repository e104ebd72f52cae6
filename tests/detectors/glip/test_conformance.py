"""GLIP keeps what every detector keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors import Detector
from detectors.conformance import DetectorConformance
from detectors.glip.detector import create


class TestGlip(DetectorConformance):
    queries = ("person", "red car")

    @pytest.fixture(autouse=True)
    def _weights(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> Detector:
        return create("glip-mini", weights=self.folder)
