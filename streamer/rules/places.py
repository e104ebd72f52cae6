"""Places of a stream: its zones, lines and counts as one rule, and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from streamer.rules.conditions import ConditionRule
from streamer.rules.counts import Count
from streamer.rules.geometry import Points, Region
from streamer.rules.lines import Line
from streamer.rules.rule import Anchor, Bools, Floats, FrameObservation, RuleFinding, anchor_points
from streamer.rules.zones import Zone, checked_anchor

__all__ = ["Count", "IgnoredRegion", "Line", "PlaceRules", "Zone"]


class IgnoredRegion:
    """Region of the frame to ignore: detections whose `anchor` lies in it are left out before tracking."""

    def __init__(self, name: str, points: Points, holes: Sequence[Points] = (), *, anchor: Anchor = "feet") -> None:
        self.name = name
        self.region = Region(f"mask {name!r}", points, holes)
        self.anchor = checked_anchor(f"mask {name!r}", anchor)

    def covers(self, boxes: Floats) -> Bools:
        """(N,) which of the `boxes` (N, 4), in fractions of the frame, are hidden; with `any_corner` those of which
        all corners are."""
        points = anchor_points(boxes, self.anchor)
        hidden: Bools = self.region(points.reshape(-1, 2)).reshape(points.shape[:2]).min(axis=1, initial=True)
        return hidden


class PlaceRules:
    """The zones, lines, counts and conditions of one stream as one rule."""

    def __init__(
        self,
        zones: Sequence[Zone] = (),
        lines: Sequence[Line] = (),
        counts: Sequence[Count] = (),
        conditions: Sequence[ConditionRule] = (),
    ) -> None:
        self.zones = tuple(zones)
        self.lines = tuple(lines)
        self._places: tuple[Zone | Line, ...] = (*self.zones, *self.lines)
        self._counts = tuple(counts)
        self._conditions = tuple(conditions)

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        findings = [finding for place in self._places for finding in place.update(seen)]
        counted = [count for rule in self._counts for count in rule.update(seen, findings)]
        return findings + counted + [found for rule in self._conditions for found in rule.update(seen)]

    def replace(
        self,
        zones: Sequence[Zone],
        lines: Sequence[Line],
        counts: Sequence[Count],
        conditions: Sequence[ConditionRule],
        time_ns: int,
    ) -> list[RuleFinding]:
        """Use these from now on. Objects that stay keep their state; the others are closed at `time_ns`."""
        kept = {id(rule) for rule in (*zones, *lines, *counts, *conditions)}
        present: tuple[Zone | Line | Count | ConditionRule, ...] = (*self._places, *self._counts, *self._conditions)
        gone = [rule for rule in present if id(rule) not in kept]
        findings = [finding for rule in gone for finding in rule.close(time_ns)]
        self.zones, self.lines, self._counts = tuple(zones), tuple(lines), tuple(counts)
        self._conditions = tuple(conditions)
        self._places = (*self.zones, *self.lines)
        return findings

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        findings = [finding for place in self._places for finding in place.close(time_ns, keep)]
        findings += [count for rule in self._counts for count in rule.close(time_ns, keep)]
        return findings + [end for rule in self._conditions for end in rule.close(time_ns, keep)]
