"""From a camera's bytes to boxes in its pixels, with the packaged weights, against results kept in this repository.

The network and every step around it agree with the reference implementation's tensors (`python -m
detectors.glip.check`); these results were made by that code, so whatever changes them has changed what users get.
After a change that is meant to, write them again: `PYTHONPATH=. python -m tests.detectors.glip.test_assembly`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.detector import Request
from detectors.glip.config import GLIP_T
from detectors.glip.detector import Glip, create

GOLDEN = Path(__file__).parent / "goldens" / "assembly.json"
KEPT = 25  # best detections of each case
CASES: dict[str, dict[str, Any]] = {
    "as packaged": {"size": (384, 640), "queries": ["a person", "a red car", "a bus"]},
    "shrunk, tall": {"size": (901, 517), "queries": ["a red car", "a person"]},
    "enlarged, small": {"size": (101, 173), "queries": ["a bicycle", "a blue car"]},
    "released rule and size": {"size": (240, 400), "queries": ["a person", "a red car"], "released": True},
}


def draw_street(height: int, width: int) -> np.ndarray:
    """Road, sky, a red car with wheels, a person and a blue block, drawn by numbers alone: BGR."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.stack([170 - 60 * y // height, 160 - 50 * y // height, 150 - 30 * x // width], axis=-1)
    image[height // 2 :] = (88, 90, 92)

    def block(left: float, top: float, right: float, low: float, colour: tuple[int, int, int]) -> None:
        image[int(top * height) : int(low * height), int(left * width) : int(right * width)] = colour

    block(0.10, 0.55, 0.38, 0.72, (40, 40, 205))
    block(0.16, 0.48, 0.32, 0.55, (40, 40, 190))
    for wheel in (0.14, 0.30):
        block(wheel, 0.70, wheel + 0.05, 0.76, (20, 20, 20))
    block(0.55, 0.46, 0.585, 0.51, (150, 175, 215))
    block(0.545, 0.51, 0.59, 0.63, (60, 140, 60))
    block(0.55, 0.63, 0.585, 0.75, (90, 60, 40))
    block(0.70, 0.50, 0.95, 0.80, (200, 90, 30))
    return image


def detect(case: dict[str, Any]) -> list[list[float]]:
    """Rows of x1, y1, x2, y2, score, query, best first."""
    glip = create("glip-mini", device="cpu", dtype="float32", threshold=0.0)
    if case.get("released"):
        rule = dataclasses.replace(GLIP_T.postprocess, threshold=0.0)
        glip.model.config = dataclasses.replace(glip.model.config, postprocess=rule, image=GLIP_T.image)
        glip = Glip(glip.model, glip._tokenizer, device="cpu", dtype="float32", threshold=0.0)
    (found,) = glip.detect([Request(draw_street(*case["size"]), glip.prepare(case["queries"]))])
    assert found.confidence is not None
    assert found.class_id is not None
    rows = np.column_stack([found.xyxy, found.confidence, found.class_id])[:KEPT]
    return [[round(float(value), 4) for value in row] for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_the_same_picture_gives_the_same_boxes(name: str) -> None:
    golden = np.array(json.loads(GOLDEN.read_text())[name])
    mine = np.array(detect(CASES[name]))
    assert len(mine) == len(golden) > 5
    # Scores that are nearly equal may change places, and the last one may go for a rival.
    for row in golden[golden[:, 4] > golden[-1, 4] + 1e-3]:
        near = np.abs(mine[:, :4] - row[:4]).max(1) < 0.05
        assert (near & (np.abs(mine[:, 4] - row[4]) < 1e-3) & (mine[:, 5] == row[5])).any(), row
    assert np.allclose(np.sort(mine[:, 4]), np.sort(golden[:, 4]), atol=1e-3)


def test_cases_hold_several_queries_and_clear_scores() -> None:
    for rows in json.loads(GOLDEN.read_text()).values():
        assert len({row[5] for row in rows}) > 1
        assert rows[0][4] > 0.2


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({name: detect(case) for name, case in CASES.items()}, indent=1) + "\n")
