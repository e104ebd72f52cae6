"""Lines: tracks that cross from one side to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sinks.event import EventType, LineInfo
from streamer.rules.geometry import Points, crosses_within, room_beside, segment, signed_distance
from streamer.rules.rule import Anchor, Floats, FrameObservation, RuleFinding, anchor_points
from streamer.rules.zones import SETTLE_S, checked_anchor, settle_time

LINE_MARGIN = 0.005
"""Least distance from a line, in fractions of the frame, at which a point is on one side of it."""
BOX_MARGIN = 0.05
"""The same as a share of the box's size: the jitter of a box grows with it."""
LEAST_SIGHTINGS = 2
"""Frames on a side that a track needs there before it can cross from it, or that prove a crossing when it ends."""


@dataclass(slots=True)
class _PendingCrossing:
    """A change of sides that has not yet settled. Moments are (capture time, frame index)."""

    moment: tuple[int, int]
    held_from_ns: int
    is_within: bool
    sightings: int = 0
    frames: int = 0


@dataclass(slots=True)
class _SideState:
    """Settled side of one track. `is_whole`: all its points have been on this side; `before` are its points (K, 2) when
    it was last seen there; `left_at` is the moment at which it passed the line since then."""

    is_right: bool
    before: Floats
    is_whole: bool
    sightings: int = 0
    left_at: tuple[int, int] | None = None
    pending: _PendingCrossing | None = None


class Line:
    """`line.cross` when a track goes from one side of the line to the other between its two ends.

    `in` is from the left to the right of the line as seen from its first end, `out` the other way. A crossing counts
    once the track has stayed on the new side for `settle_s`, or ended there; its time is that of the first frame
    beyond the line. `anchor` names the point of a box that decides; with `any_corner` a track crosses with its first
    corner, and crosses back when a corner returns after the whole box had passed, or when the whole box returns.
    """

    def __init__(
        self,
        name: str,
        points: Points,
        settle_s: float = SETTLE_S,
        *,
        anchor: Anchor = "feet",
        margin: float = LINE_MARGIN,
    ) -> None:
        self.name = name
        self.ends = segment(f"line {name!r}", points)
        self.anchor = checked_anchor(f"line {name!r}", anchor)
        self.counts: Counter[str] = Counter()  # crossings "in" and "out"
        self._settle_ns = settle_time(f"line {name!r}", settle_s)
        self._margin = margin
        self._room = room_beside(self.ends)
        along = np.abs(self.ends[1] - self.ends[0]) / np.hypot(*(self.ends[1] - self.ends[0]))
        self._box_weight = BOX_MARGIN * along[::-1]  # of width and height, seen across the line
        self._sides: dict[int, _SideState] = {}

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        for ended, into in seen.merges:
            self._merge_sides(ended, into)
        findings: list[RuleFinding] = []
        points = anchor_points(seen.boxes, self.anchor)
        distances = signed_distance(points, self.ends)  # (N, K)
        margins = np.maximum(self._margin, (seen.boxes[:, 2:] - seen.boxes[:, :2]) @ self._box_weight)
        findings += self._follow_tracks(seen, points, distances, margins)
        if len(self._sides) > len(seen.ids):
            gone = self._sides.keys() - set(seen.alive.tolist())
            findings += [finding for track in sorted(gone) for finding in self._end_track(track)]
        return findings

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        return [finding for track in sorted(self._sides.keys() - keep) for finding in self._end_track(track)]

    def _follow_tracks(
        self, seen: FrameObservation, points: Floats, distances: Floats, margins: Floats
    ) -> list[RuleFinding]:
        """Takes the sightings of one frame into account: their points (N, K, 2), the signed distances of these (N, K),
        and the margins (N,)."""
        findings: list[RuleFinding] = []
        left_room, right_room = (room / 2 for room in self._room)
        moment = (seen.time_ns, seen.frame_index)
        rows = zip(
            seen.ids.tolist(),
            distances.min(axis=1).tolist(),
            distances.max(axis=1).tolist(),
            np.minimum(margins, left_room).tolist(),
            np.minimum(margins, right_room).tolist(),
            strict=True,
        )
        for row, (track, least, most, left_margin, right_margin) in enumerate(rows):
            state = self._sides.get(track)
            if state is None:
                middle = float(distances[row].mean())
                if not -left_margin <= middle <= right_margin:
                    self._sides[track] = _new_side(middle > 0, points[row], (least, most))
                continue
            own_margin, new_margin = (right_margin, left_margin) if state.is_right else (left_margin, right_margin)
            reach = _reach_across(state, least, most)
            if reach <= 0:
                state.left_at = None
            elif state.left_at is None:
                state.left_at = moment
            if reach < -own_margin:
                state.before, state.pending = points[row], None
                state.sightings += 1
                state.is_whole = state.is_whole or _are_all_beyond(least, most, state.is_right)
            elif reach > new_margin:
                findings += self._follow_across(track, state, points[row], distances[row], moment)
            elif state.pending is not None:
                state.pending.frames += 1
        return findings

    def _follow_across(
        self, track: int, state: _SideState, points: Floats, distance: Floats, moment: tuple[int, int]
    ) -> list[RuleFinding]:
        """Takes one sighting beyond the line into account: its points (K, 2) and their signed distances (K,)."""
        span = (float(distance.min()), float(distance.max()))
        if state.sightings < LEAST_SIGHTINGS:
            self._sides[track] = _new_side(not state.is_right, points, span)
            return []
        pending = state.pending or self._begin_crossing(state, points, distance, moment)
        pending.frames += 1
        pending.sightings += 1
        if moment[0] - pending.held_from_ns >= self._settle_ns and 2 * pending.sightings >= pending.frames:
            self._sides[track] = _new_side(not state.is_right, points, span)
            self._sides[track].sightings = pending.sightings + LEAST_SIGHTINGS
            return self._finding(track, state, pending)
        return []

    def _begin_crossing(
        self, state: _SideState, points: Floats, distance: Floats, moment: tuple[int, int]
    ) -> _PendingCrossing:
        corner = int(distance.argmin() if state.is_right else distance.argmax())
        is_within = crosses_within(state.before[corner], points[corner], self.ends)
        state.pending = _PendingCrossing(state.left_at or moment, moment[0], is_within)
        return state.pending

    def _end_track(self, track: int) -> list[RuleFinding]:
        """A track that ends beyond the line has crossed it, unless a single frame is the only evidence."""
        state = self._sides.pop(track)
        pending = state.pending
        if pending is None or pending.sightings < LEAST_SIGHTINGS or 2 * pending.sightings < pending.frames:
            return []
        return self._finding(track, state, pending)

    def _finding(self, track: int, state: _SideState, pending: _PendingCrossing) -> list[RuleFinding]:
        if not pending.is_within:
            return []
        direction: Literal["in", "out"] = "out" if state.is_right else "in"
        self.counts[direction] += 1
        return [
            RuleFinding(
                EventType.LINE_CROSS, track, {"line": LineInfo(id=self.name, direction=direction)}, *pending.moment
            )
        ]

    def _merge_sides(self, ended: int, into: int) -> None:
        """The side of `ended` continues under `into`, unless that one has settled on a side before."""
        state, other = self._sides.pop(ended, None), self._sides.get(into)
        if state is not None and (other is None or other.sightings <= state.sightings):
            self._sides[into] = state


def _new_side(is_right: bool, points: Floats, span: tuple[float, float]) -> _SideState:
    """`span` holds the least and the greatest signed distance of the points."""
    return _SideState(is_right, points, _are_all_beyond(*span, is_right), 1)


def _are_all_beyond(least: float, most: float, is_right: bool) -> bool:
    return least > 0 if is_right else most < 0


def _reach_across(state: _SideState, least: float, most: float) -> float:
    """How far the track reaches to the other side: its first point does, or its last one while the box has not been
    wholly on its own side."""
    if state.is_right:
        return -least if state.is_whole else -most
    return most if state.is_whole else least
