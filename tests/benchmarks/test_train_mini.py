"""The training of glip-mini from its command: it writes a model folder that the detector reads."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.glip_mini.card import choose_threshold
from benchmarks.glip_mini.examination import Report
from benchmarks.glip_mini.train import train_mini
from detectors import create_detector
from detectors.detector import Request


def run(work: Path, steps: int, write: Path | None = None) -> None:
    lasting(work, write, steps=steps)


def lasting(work: Path, write: Path | None, minutes: float | None = None, steps: int | None = None) -> None:
    short = {"every": 1, "examine": 0, "pictures": 1}
    train_mini(minutes, steps, work, write, seed=3, batch=4, rate=1e-3, device="cpu", workers=0, **short)


@pytest.mark.timeout(300)
def test_a_run_writes_a_model_that_the_detector_reads(tmp_path: Path) -> None:
    run(tmp_path / "whole", 2, tmp_path / "model")
    state = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    run(tmp_path / "whole", 2, tmp_path / "again")  # nothing is left to do
    first, again = (load_file(tmp_path / name / "weights.safetensors") for name in ("model", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert (tmp_path / "model" / "weights.safetensors").stat().st_size < 20_000_000
    assert "2 steps, 8 crops" in (tmp_path / "model" / "README.md").read_text()
    assert cv2.imread(str(tmp_path / "model" / "sheet.jpg")) is not None

    detector = create_detector("glip-mini", weights=tmp_path / "model")
    picture = np.zeros((384, 640, 3), np.uint8)
    assert detector.detect([Request(picture, detector.prepare(["a red car"]))])[0].xyxy.shape[1] == 4


def test_no_minutes_left_means_nothing_is_trained(tmp_path: Path) -> None:
    lasting(tmp_path, tmp_path / "model", minutes=0.0)
    assert (tmp_path / "model" / "weights.safetensors").is_file()


def test_the_threshold_is_the_lowest_with_few_false_alarms_and_few_wrong_colours() -> None:
    def report(threshold: float, false_alarms: float, refused_colours: float) -> Report:
        return Report(10, 0.9, 0.9, {}, 0.9, 0.9, false_alarms, 0.2, refused_colours, 0.8, threshold)

    reports = [report(0.3, 0.2, 0.5), report(0.4, 0.04, 0.94), report(0.5, 0.02, 0.97), report(0.6, 0.01, 0.99)]
    assert choose_threshold(reports) == 0.5
    assert choose_threshold(reports[:2]) == 0.4
