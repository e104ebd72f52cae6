"""Gallery of lost tracks: a new track at the place of a lost one continues it under the same id.

Tracks that moved are remembered for seconds and expected along their last velocity. Tracks that stood still are
remembered for up to minutes, the longer the longer they had stood, and expected exactly where they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trackers.assignment import assign
from trackers.boxes import Bools, Floats, Ints, from_centre, pair_iou

if TYPE_CHECKING:
    from trackers.options import TrackerOptions

GALLERY = 1024  # lost tracks kept at most, the oldest are dropped first
REACH = 0.5  # allowed distance from the predicted way, in heights, at once ...
REACH_PER_S = 0.2  # ... and with every second of absence
WALK_PER_S = 1.5  # heights that an object walks in a second at most
SIZE_RATIO = 1.5  # greatest change of the height
NEIGHBOURHOOD = 3.0  # heights around a new track ...
MOST_NEIGHBOURS = 1  # ... in which at most this many other tracks may be ...
SOON_S = 2.0  # ... or, for a track that was lost not longer ago than this ...
MOST_NEIGHBOURS_SOON = 4  # ... this many
STAND_S = 2.0  # seconds without movement after which a track is stationary
MEMORY_PER_S = 20.0  # seconds for which a stationary track is remembered, per second that it has stood
SAME_PLACE = 0.5  # IoU with a stationary track of the same class from which a new one continues it ...
SAME_PLACE_OTHER_CLASS = 0.8  # ... and of another class

SAME_LOOK = 0.3  # likeness from which a new track on the way of a lost one continues it, with any company ...
OTHER_LOOK = 0.0  # ... and where nothing else can explain it
SURE_LOOK = 0.6  # likeness from which a new track continues a lost one anywhere within reach of a walk ...
CLEAR_LOOK = 0.15  # ... if no other one is as alike, less this

_ID, _LAST, _POSITION, _VELOCITY, _FIRST, _EXPIRES, _STANDS, _LABEL = 0, 1, slice(2, 6), slice(6, 8), 8, 9, 10, 11
COLUMNS = 12


@dataclass(frozen=True, slots=True)
class LostTracks:
    """Tracks to remember: one array per field, the track along the last axis."""

    id: Ints
    last_s: Floats
    first_s: Floats
    standing_s: Floats  # seconds without movement
    position: Floats  # (4, N) cx, cy, w, h of the last detection
    velocity: Floats  # (2, N) pixels per second
    label: Ints
    looks: Floats  # (N, D) embeddings; D is 0 without


@dataclass(frozen=True, slots=True)
class NewTracks:
    """Tracks that may continue lost ones: one array per field, the track along the last axis but for `likeness`."""

    first_s: Floats
    position: Floats  # (4, N) cx, cy, w, h
    label: Ints
    likeness: Floats | None  # (M, N) to each row of the gallery, -1..1; None without appearance


class LostGallery:
    """Lost tracks, remembered for `relink_s` or, by their appearance, `reid_s` seconds, and stationary ones for up to
    `stationary_s` seconds. With `per_class` only a track of the same class continues a lost one."""

    def __init__(self, options: TrackerOptions) -> None:
        self._per_class = options.per_class
        self._way_s = options.relink_s  # for which the way of a lost track says where it is
        self._keep_s = max(options.relink_s, options.reid_s if options.appearance else 0.0)
        self._stationary_s = options.stationary_s
        self.rows: Floats = np.empty((0, COLUMNS))
        self.looks: Floats = np.empty((0, 0))  # (M, D) embeddings of the rows

    @property
    def ids(self) -> Ints:
        """Ids of the lost tracks, in no order."""
        return self.rows[:, _ID].astype(np.int64)

    def add(self, lost: LostTracks, *, only_stationary: bool = False) -> None:
        """Remembers the tracks as long as their kind allows."""
        stands = (lost.standing_s >= STAND_S - 1e-6) & (self._stationary_s > 0)
        memory_s = np.where(stands, np.minimum(self._stationary_s, MEMORY_PER_S * lost.standing_s), 0.0)
        if not only_stationary:
            memory_s = np.maximum(memory_s, self._keep_s)
        new = np.empty((lost.id.size, COLUMNS))
        new[:, _ID], new[:, _LAST], new[:, _FIRST], new[:, _LABEL] = lost.id, lost.last_s, lost.first_s, lost.label
        new[:, _POSITION], new[:, _VELOCITY] = lost.position.T, lost.velocity.T
        new[:, _EXPIRES], new[:, _STANDS] = lost.last_s + memory_s, stands
        looks = lost.looks[memory_s > 0]
        known = self.looks if self.looks.shape[1] == looks.shape[1] else np.zeros((len(self.rows), looks.shape[1]))
        self.rows = np.concatenate((self.rows, new[memory_s > 0]))[-GALLERY:]
        self.looks = np.concatenate((known, looks))[-GALLERY:]

    def expire(self, now: float) -> None:
        """Drops the tracks whose time is over."""
        if len(self.rows) and self.rows[:, _EXPIRES].min() < now:
            self._keep(self.rows[:, _EXPIRES] >= now)

    def forget(self, ids: Ints) -> None:
        """Drops the tracks with these ids."""
        self._keep(~np.isin(self.rows[:, _ID], ids))

    def forget_moving(self) -> None:
        """Drops the tracks that did not stand still."""
        self._keep(self.rows[:, _STANDS] > 0)

    def _keep(self, those: Bools) -> None:
        self.rows, self.looks = self.rows[those], self.looks[those]

    def follow_camera(self, turn: Floats, shift: Floats, zoom: float) -> None:
        """Moves the remembered places with the camera: x' = turn x + shift."""
        if len(self.rows):
            self.rows[:, 2:4] = self.rows[:, 2:4] @ turn.T + shift.T
            self.rows[:, 4:6] *= zoom
            self.rows[:, _VELOCITY] = self.rows[:, _VELOCITY] @ turn.T

    def claim(self, new: NewTracks, others: Floats) -> tuple[Ints, Ints, Floats]:
        """New tracks that continue lost ones: indices of the new ones, ids and first times of the lost ones, which are
        dropped. `others` (2, K) are the centres of the tracks that were there before.

        A track that moved and was lost for longer than `SOON_S` is continued only where nothing else can explain the
        new one: no second candidate on either side and not more than `MOST_NEIGHBOURS` other tracks around. Of tracks
        that were lost lately the nearest is continued, but not in crowds: there most links are wrong. Appearance, where
        it is known, replaces these two conditions, and finds tracks that did not keep to their way.
        """
        rows = self.rows
        gap = new.first_s[None] - rows[:, _LAST, None]
        stands = rows[:, _STANDS, None] > 0
        cost = np.where(stands, _place_cost(rows, new.position, new.label), _walk_cost(rows, new.position, gap))
        near = (gap > 0) & (cost < 1) & (stands | (gap <= self._way_s))
        if self._per_class:
            near &= rows[:, _LABEL, None] == new.label
        if new.likeness is None:
            neighbours = _neighbours(new.position, others)
            soon = (gap <= SOON_S) & (neighbours <= MOST_NEIGHBOURS_SOON)
            possible = near & (stands | soon | (_alone(near) & (neighbours <= MOST_NEIGHBOURS)))
        else:
            lone = _alone(near) & (_neighbours(new.position, others) <= MOST_NEIGHBOURS)
            possible = near & (stands | (new.likeness >= np.where(lone, OTHER_LOOK, SAME_LOOK)))
            cost = np.where(possible, cost * (1 - new.likeness) / 2, 1.0)
            far = (gap > 0) & ~stands & (rows[:, _LABEL, None] == new.label) & _is_best(new.likeness)
            far &= _is_within_walk(rows, new.position, gap) & ~possible
            cost = np.where(far, 1 - new.likeness / 2, cost)
            possible |= far
        row, col = np.nonzero(possible)
        chosen = assign(row, col, cost[row, col], 1.0)
        row, col = row[chosen], col[chosen]
        ids, firsts = rows[row, _ID].astype(np.int64), rows[row, _FIRST]
        self._keep(~np.isin(np.arange(len(rows)), row))
        return col, ids, firsts


def _alone(possible: Bools) -> Bools:
    """(M, N) pairs of which neither side has a second candidate."""
    alone: Bools = (possible.sum(axis=1, keepdims=True) == 1) & (possible.sum(axis=0) == 1)
    return possible & alone


def _is_best(likeness: Floats) -> Bools:
    """(M, N) pairs that are alike beyond doubt, and clearly more than either is like any other."""
    best = likeness >= SURE_LOOK
    for axis in (0, 1):
        if likeness.shape[axis] > 1:
            second = np.partition(likeness, -2, axis=axis).take([-2], axis=axis)
            best &= likeness >= second + CLEAR_LOOK
    return best


def _is_within_walk(rows: Floats, positions: Floats, gap: Floats) -> Bools:
    """(M, N) whether the object can have come from the place where it was lost."""
    height = np.maximum(rows[:, 5:6], positions[3])
    apart = np.hypot(positions[0] - rows[:, 2:3], positions[1] - rows[:, 3:4])
    is_similar = height / np.minimum(rows[:, 5:6], positions[3]) <= 2 * SIZE_RATIO
    within: Bools = is_similar & (apart <= height * (REACH + WALK_PER_S * np.maximum(gap, 0)))
    return within


def _walk_cost(rows: Floats, positions: Floats, gap: Floats) -> Floats:
    """(M, N) distance from the predicted way, as a share of the allowed one; 1: too far away, or another size."""
    height = np.maximum(rows[:, 5:6], positions[3])
    x, y = positions[0] - rows[:, 2:3], positions[1] - rows[:, 3:4]
    way_x, way_y = rows[:, 6:7] * gap, rows[:, 7:8] * gap  # up to here it would have moved
    share = np.clip((x * way_x + y * way_y) / np.maximum(way_x**2 + way_y**2, 1e-9), 0.0, 1.0)
    off = np.hypot(x - share * way_x, y - share * way_y)
    is_similar = height / np.minimum(rows[:, 5:6], positions[3]) <= SIZE_RATIO
    cost: Floats = np.where(is_similar, off / (height * (REACH + REACH_PER_S * np.maximum(gap, 0))), 1.0)
    return cost


def _neighbours(positions: Floats, others: Floats) -> Ints:
    """(N,) number of other tracks within `NEIGHBOURHOOD` heights."""
    apart = np.hypot(positions[0][:, None] - others[0], positions[1][:, None] - others[1])
    near: Ints = (apart < NEIGHBOURHOOD * positions[3][:, None]).sum(axis=1)
    return near


def _place_cost(rows: Floats, positions: Floats, labels: Ints) -> Floats:
    """(M, N) 1 - IoU; 1 where the boxes are not at the same place."""
    row, col = np.indices((len(rows), positions.shape[1])).reshape(2, -1)
    overlap = pair_iou(from_centre(rows[:, _POSITION].T), from_centre(positions), row, col)
    overlap = overlap.reshape(len(rows), -1)
    needed = np.where(rows[:, _LABEL, None] == labels, SAME_PLACE, SAME_PLACE_OTHER_CLASS)
    cost: Floats = np.where(overlap >= needed, 1.0 - overlap, 1.0)
    return cost
