"""Our sort, bytetrack and ocsort against what the original implementations gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import supervision as sv

from trackers import create_tracker

SYNTHETIC = ["crossing", "gap", "low_score", "birth_score", "tentative", "turn_in_gap"]
REAL = ["tud_campus", "kitti_17", "mot17_09_val"]


@pytest.mark.parametrize("name", ["sort", "bytetrack", "ocsort"])
@pytest.mark.parametrize("case", SYNTHETIC + REAL)
def test_boxes_and_ids_are_those_of_the_original(shared: Path, case: str, name: str) -> None:
    golden = json.loads((shared / "goldens" / "trackers" / f"{case}.json").read_text())
    tolerance = 0.5 if case in SYNTHETIC else 1.0
    tracker = create_tracker(name)
    ours: dict[int, int] = {}
    theirs: dict[int, int] = {}
    expected = golden["expected"][name]["tracks"]
    assert any(expected)
    for frame, (found, rows) in enumerate(zip(golden["detections"], expected, strict=True)):
        boxes = np.array(found, dtype=np.float64).reshape(-1, 5)
        tracked = tracker.update(sv.Detections(xyxy=boxes[:, :4], confidence=boxes[:, 4]), frame / golden["fps"])
        assert tracked.tracker_id is not None
        assert len(tracked) == len(rows), frame
        left = list(range(len(tracked)))
        for their_id, *box in rows:
            nearest = min(left, key=lambda row: float(np.abs(tracked.xyxy[row] - box).max()))
            assert np.abs(tracked.xyxy[nearest] - box).max() <= tolerance, frame
            left.remove(nearest)
            our_id = int(tracked.tracker_id[nearest])
            assert ours.setdefault(their_id, our_id) == our_id, frame
            assert theirs.setdefault(our_id, their_id) == their_id, frame
