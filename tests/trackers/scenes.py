"""Detections for the trackers' tests: things that walk straight, seen by a detector that may blink."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import supervision as sv

from trackers import Tracker

EMPTY = sv.Detections.empty()


def boxes(*rows: Sequence[float]) -> sv.Detections:
    """Detections from rows x1, y1, x2, y2[, score]."""
    table = np.array([(*row, 0.9) if len(row) == 4 else row for row in rows], dtype=np.float64)
    return sv.Detections(xyxy=table[:, :4], confidence=table[:, 4], class_id=np.zeros(len(table), dtype=np.int64))


def walker(x: float, y: float = 100, score: float = 0.9) -> tuple[float, float, float, float, float]:
    """A person whose left edge is at `x`."""
    return (x, y, x + 40, y + 100, score)


def ids(tracker: Tracker, frames: Iterable[sv.Detections], fps: float = 30.0, start_s: float = 0.0) -> list[list[int]]:
    """The ids shown in every frame."""
    shown = []
    for number, detections in enumerate(frames):
        tracked = tracker.update(detections, start_s + number / fps)
        assert tracked.tracker_id is not None
        shown.append(tracked.tracker_id.tolist())
    return shown


def crowd(seed: int, things: int, frames: int, size: tuple[int, int] = (1280, 720)) -> list[sv.Detections]:
    """Things that drift about, with jitter, misses and low scores."""
    random = np.random.default_rng(seed)
    extent = np.array(size, dtype=np.float64)
    height = random.uniform(60, 160, things)
    half = np.column_stack((height * 0.2, height * 0.5))
    centre, speed = random.uniform(0.1, 0.9, (things, 2)) * extent, random.normal(0, 3, (things, 2))
    scene = []
    for _ in range(frames):
        speed += random.normal(0, 0.3, (things, 2))
        centre += speed
        out = (centre < 0) | (centre > extent)
        speed[out] *= -1
        xyxy = np.column_stack((centre - half, centre + half)) + random.normal(0, 1, (things, 4))
        score = np.clip(random.normal(0.75, 0.2, things), 0.02, 0.99)
        seen = random.random(things) < 0.92
        scene.append(
            sv.Detections(
                xyxy=xyxy[seen].astype(np.float32),
                confidence=score[seen].astype(np.float32),
                class_id=np.zeros(int(seen.sum()), dtype=np.int64),
            )
        )
    return scene
