"""A camera that moves is noticed and measured; one that stands still costs a look now and then."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import supervision as sv

from streamer.analysis.camera_motion import CameraWatch
from streamer.frame import Frame, FrameClock

RNG = np.random.default_rng(3)
SCENE = cv2.GaussianBlur(RNG.integers(0, 256, (400, 700, 3), dtype=np.uint8), (7, 7), 2)
NOTHING = sv.Detections.empty()
FPS = 20


def frame(index: int, x: int) -> Frame:
    """What a camera sees that looks `x` pixels further to the right."""
    view = np.ascontiguousarray(SCENE[50:350, x : x + 400])
    return Frame("cam", index, index * 1_000_000_000 // FPS, FrameClock("file_pts"), view, (400, 300))


def looked_at(watch: CameraWatch, xs: list[int], first: int = 0) -> list[tuple[int, float | None]]:
    """(frame, shift in x) of the frames that were looked at."""
    looks = []
    for index, x in enumerate(xs, start=first):
        seen = frame(index, x)
        if watch.wants(seen):
            motion = watch.update(seen, NOTHING)
            looks.append((index, None if motion is None else float(motion[0, 2])))
    return looks


def test_a_still_camera_is_looked_at_ever_more_rarely():
    looks = looked_at(CameraWatch(), [100] * 20 * FPS)
    assert all(shift is None for _, shift in looks)
    begun = [index for index, _ in looks[::2]]
    assert [round((later - earlier) / FPS) for earlier, later in itertools.pairwise(begun)] == [1, 2, 4, 4, 4, 4]


def test_a_pan_is_followed_frame_by_frame_and_its_end_is_noticed():
    watch = CameraWatch()
    looked_at(watch, [100] * FPS)  # the next look comes at once
    pan = looked_at(watch, [100 + 3 * n for n in range(40)], first=FPS)
    shifts = [shift for _, shift in pan if shift is not None]
    assert len(shifts) >= 35
    assert shifts == pytest.approx([-3.0] * len(shifts), abs=0.3)
    still = looked_at(watch, [100 + 3 * 39] * 4 * FPS, first=FPS + 40)
    assert len(still) < FPS + 10
