"""Gallery of lost tracks: a new track at the predicted place of a lost one continues it."""

from __future__ import annotations

import numpy as np

from trackers.assignment import assign
from trackers.boxes import Floats, Ints
from trackers.tracker import TrackMerge

GALLERY = 256  # ended tracks kept at most, the oldest go first
REACH = 1.0  # distance from the predicted place, in heights, that is allowed at once ...
REACH_PER_S = 0.5  # ... and with every second of absence
SIZE_RATIO = 1.5  # greatest change of the height
WALK_S = 1.0  # how long the last velocity predicts an unseen track


class LostGallery:
    """Lost tracks of the last `keep_s` seconds."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self.rows: Floats = np.empty((0, 8))  # id, last time, cx, cy, w, h, vx, vy

    def add(self, ids: Ints, last_s: Floats, positions: Floats, rates: Floats) -> None:
        """Tracks that ended; `positions` (4, N) cx, cy, w, h and `rates` (4, N) of them per second."""
        new = np.concatenate((ids[None].astype(np.float64), last_s[None], positions, rates[:2])).T
        self.rows = np.concatenate((self.rows, new))[-GALLERY:]

    def claim(self, ids: Ints, first_s: Floats, positions: Floats, now: float) -> list[TrackMerge]:
        """Newly confirmed tracks that continue lost ones; `positions` (4, N) cx, cy, w, h."""
        self.rows = self.rows[now - self.rows[:, 1] <= self._keep_s]
        if not len(self.rows):
            return []
        gap = first_s[None] - self.rows[:, 1:2]
        ahead = np.clip(gap, 0, WALK_S)
        height = np.maximum(self.rows[:, 5:6], positions[3])
        off = np.hypot(
            positions[0] - self.rows[:, 2:3] - self.rows[:, 6:7] * ahead,
            positions[1] - self.rows[:, 3:4] - self.rows[:, 7:8] * ahead,
        )
        cost = off / (height * (REACH + REACH_PER_S * np.maximum(gap, 0)))
        similar = height / np.minimum(self.rows[:, 5:6], positions[3]) <= SIZE_RATIO
        rows, cols = np.nonzero(similar & (gap > 0) & (cost < 1))
        chosen = assign(rows, cols, cost[rows, cols], 1.0)
        rows, cols = rows[chosen], cols[chosen]
        merges = [
            TrackMerge(int(self.rows[row, 0]), int(ids[col]), float(gap[row, col]))
            for row, col in zip(rows, cols, strict=True)
        ]
        self.rows = np.delete(self.rows, rows, axis=0)
        return merges
