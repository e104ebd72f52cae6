"""Rules over queries: speed, distance, a missing thing, and an object that was left behind.

Each is a condition on the tracks of one frame. It is reported when it has held for a time, as of the moment at which it
began, and again when it no longer holds. All state comes from the observations: recorded ones give the same findings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sinks.event import EventType, RuleInfo
from streamer.rules.geometry import Region
from streamer.rules.ground import GroundPlane
from streamer.rules.rule import Floats, FrameObservation, RuleFinding, anchor_points

Pair = tuple[int, int]
"""A track and the other one that the condition is about; 0 where it is about one track."""
NumberOf = Callable[[str], "int | None"]
"""The number of the query with an id; None while there is none."""

FLICKER_S = 0.5
"""A condition that does not hold for at most this long still counts as held: boxes flicker."""
_SPEED_WINDOW_S = 1.0
_LEAST_WINDOW_S = 0.4  # of sightings, for a speed
_LEAST_SIGHTINGS = 3
_MARGIN = 0.1  # of a box's size, by which a thing that belongs to it may lie outside


@dataclass(frozen=True, slots=True)
class ConditionValue:
    """What was measured, in the rule's unit, and in words."""

    value: float
    text: str


class Condition(Protocol):
    """Measures a condition in one frame."""

    flicker_s: float

    def measure(self, seen: FrameObservation, number_of: NumberOf) -> Mapping[Pair, ConditionValue]:
        """The pairs for which the condition holds."""
        ...

    def is_unknown(self, pair: Pair, seen: FrameObservation) -> bool:
        """Whether nothing can be said of the pair in this frame."""
        ...


@dataclass(slots=True)
class _Holding:
    since_ns: int
    until_ns: int
    frame_index: int
    value: ConditionValue
    is_reported: bool = False


@dataclass(frozen=True, slots=True)
class ConditionPlan:
    """A condition as it is configured: `make` builds it for the region of the zone `zone`; plans with equal `key`s make
    equal conditions."""

    name: str
    for_s: float
    zone: str | None
    key: object
    make: Callable[[Region | None], Condition] = field(compare=False)


class ConditionRule:
    """Reports a condition that holds for `for_s` seconds (`rule.v1` with state `begin`) and its end (`end`).

    `number_of` finds queries by their ids; the value of the event is the one measured when it was certain.
    """

    def __init__(self, name: str, condition: Condition, for_s: float, number_of: NumberOf) -> None:
        self.name = name
        self._condition = condition
        self._for_ns = int(for_s * 1e9)
        self._flicker_ns = int(condition.flicker_s * 1e9)
        self._number_of = number_of
        self._holding: dict[Pair, _Holding] = {}

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        """Findings of one frame."""
        for ended, into in seen.merges:
            self._merge(ended, into)
        holds = self._condition.measure(seen, self._number_of)
        findings = []
        for pair, value in holds.items():
            held = self._holding.get(pair)
            if held is None:
                held = self._holding[pair] = _Holding(seen.time_ns, seen.time_ns, seen.frame_index, value)
            held.until_ns, held.value = seen.time_ns, value
            if not held.is_reported and seen.time_ns - held.since_ns >= self._for_ns:
                held.is_reported = True
                findings.append(self._finding("begin", pair, held, held.since_ns))
        alive = set(seen.alive.tolist()) | set(seen.ids.tolist())
        for pair in [pair for pair in self._holding if pair not in holds]:
            held = self._holding[pair]
            is_gone = pair[0] not in alive or (pair[1] != 0 and pair[1] not in alive)
            is_over = seen.time_ns - held.until_ns > self._flicker_ns and not self._condition.is_unknown(pair, seen)
            if is_gone or is_over:
                findings += self._end(pair)
        return findings

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        """Ends what is reported; tracks to `keep` go on after an interruption."""
        over = [pair for pair in self._holding if pair[0] not in keep]
        return [finding for pair in over for finding in self._end(pair)]

    def _end(self, pair: Pair) -> Iterator[RuleFinding]:
        held = self._holding.pop(pair)
        if held.is_reported:
            yield self._finding("end", pair, held, held.until_ns)

    def _merge(self, ended: int, into: int) -> None:
        for pair in [pair for pair in self._holding if ended in pair]:
            held = self._holding.pop(pair)
            renamed = (into if pair[0] == ended else pair[0], into if pair[1] == ended else pair[1])
            known = self._holding.get(renamed)
            if known is not None:
                held.is_reported |= known.is_reported
                held.since_ns = min(held.since_ns, known.since_ns)
            self._holding[renamed] = held

    def _finding(self, state: str, pair: Pair, held: _Holding, time_ns: int) -> RuleFinding:
        rule = RuleInfo.model_validate(
            {
                "id": self.name,
                "text": held.value.text,
                "value": round(held.value.value, 3),
                "state": state,
                "other": pair[1] or None,
            }
        )
        index = held.frame_index if state == "begin" and held.frame_index >= 0 else None
        return RuleFinding(EventType.RULE, pair[0], {"rule": rule}, time_ns, index)


@dataclass(slots=True)
class FastTrack:
    """Tracks of a query that are faster than `above_kmh`, in a region if one is given.

    The speed is the slope of a line through the places of the last second.
    """

    plane: GroundPlane
    query: str
    above_kmh: float
    region: Region | None = None
    flicker_s: float = FLICKER_S
    _places: dict[int, deque[tuple[int, float, float]]] = field(default_factory=dict)

    def measure(self, seen: FrameObservation, number_of: NumberOf) -> Mapping[Pair, ConditionValue]:
        """The fast tracks, km/h."""
        feet = _feet(seen)
        places = self.plane.locate(feet)
        for ended, into in seen.merges:
            if ended in self._places:
                self._places.setdefault(into, self._places.pop(ended))
        wanted = _rows_of(seen, number_of(self.query), feet, self.region)
        found = {}
        for row, track in enumerate(seen.ids.tolist()):
            history = self._places.setdefault(track, deque())
            if np.isfinite(places[row]).all():
                history.append((seen.time_ns, *places[row].tolist()))
            while history and seen.time_ns - history[0][0] > _SPEED_WINDOW_S * 1e9:
                history.popleft()
            if row in wanted and (speed := _speed(history)) is not None and 3.6 * speed > self.above_kmh:
                found[track, 0] = ConditionValue(3.6 * speed, f"{3.6 * speed:.0f} km/h")
        alive = {*seen.alive.tolist(), *seen.ids.tolist()}
        for track in self._places.keys() - alive:
            del self._places[track]
        return found

    def is_unknown(self, pair: Pair, seen: FrameObservation) -> bool:
        """A track that is not seen has no speed, and may still be fast."""
        return pair[0] not in seen.ids


@dataclass(slots=True)
class ClosePair:
    """Tracks of a query that are closer than `below_m` to one of another query, or of the same."""

    plane: GroundPlane
    query: str
    other: str
    below_m: float
    region: Region | None = None
    flicker_s: float = FLICKER_S

    def measure(self, seen: FrameObservation, number_of: NumberOf) -> Mapping[Pair, ConditionValue]:
        """The close pairs, metres. Of two tracks of the same query, the one with the smaller number comes first."""
        feet = _feet(seen)
        places = self.plane.locate(feet)
        first = _rows_of(seen, number_of(self.query), feet, self.region)
        second = _rows_of(seen, number_of(self.other), feet, None)
        ids = seen.ids.tolist()
        found = {}
        for a in first:
            for b in second:
                if ids[a] == ids[b] or (self.query == self.other and ids[a] > ids[b] and b in first):
                    continue
                apart = float(np.hypot(*(places[a] - places[b])))
                if apart < self.below_m:
                    found[ids[a], ids[b]] = ConditionValue(apart, f"{apart:.1f} m apart")
        return found

    def is_unknown(self, pair: Pair, seen: FrameObservation) -> bool:
        """A pair of which one is not seen may still be close."""
        return not np.isin(pair, seen.ids).all()


@dataclass(slots=True)
class MissingThing:
    """Tracks of a query with no track of another one upon them: persons without a helmet."""

    query: str
    without: str
    region: Region | None = None
    flicker_s: float = 0.0  # one sight of the thing is enough: detectors miss small things more often than they invent

    def measure(self, seen: FrameObservation, number_of: NumberOf) -> Mapping[Pair, ConditionValue]:
        """The tracks without the thing; the value is always 1."""
        thing = number_of(self.without)
        if thing is None:
            return {}
        wearers = _rows_of(seen, number_of(self.query), _feet(seen), self.region)
        # Small things are often not tracked long enough to match: what the detector calls one now counts, too.
        column = np.flatnonzero(seen.labels == thing)
        named = set(np.flatnonzero(seen.label_scores[:, column].max(axis=1, initial=0.0) > 0.0).tolist())
        things = (named | set(_rows_of(seen, thing, None, None))) - set(wearers)
        boxes = seen.boxes
        margin = _MARGIN * (boxes[:, 2:] - boxes[:, :2])
        low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        found = {}
        for row in wearers:
            has_thing = any((low[row] <= middle[at]).all() and (middle[at] <= high[row]).all() for at in things)
            is_both = thing in seen.matched.get(int(seen.ids[row]), ())
            if not has_thing and not is_both:
                found[int(seen.ids[row]), 0] = ConditionValue(1.0, f"without {self.without}")
        return found

    def is_unknown(self, pair: Pair, seen: FrameObservation) -> bool:
        """Of a track that is not seen nothing can be said."""
        return pair[0] not in seen.ids


@dataclass(slots=True)
class LeftBehind:
    """Tracks of the query `thing` that a track of `query` was near, and that none has been near since.

    Near is within `away_m` on the ground, without a plane within `away` heights of the person's box in the frame.
    """

    query: str
    thing: str
    plane: GroundPlane | None = None
    away_m: float = 2.0
    away: float = 1.0
    region: Region | None = None
    flicker_s: float = FLICKER_S
    _attendant: dict[int, int] = field(default_factory=dict)

    def measure(self, seen: FrameObservation, number_of: NumberOf) -> Mapping[Pair, ConditionValue]:
        """The things left behind; the value is the distance to the nearest person in units of near, 0 without one."""
        feet = _feet(seen)
        places = feet if self.plane is None else self.plane.locate(feet)
        people = _rows_of(seen, number_of(self.query), None, None)
        things = [row for row in _rows_of(seen, number_of(self.thing), feet, self.region) if row not in people]
        ids = seen.ids.tolist()
        for ended, into in seen.merges:
            if ended in self._attendant:
                self._attendant.setdefault(into, self._attendant.pop(ended))
            for thing, person in self._attendant.items():
                if person == ended:
                    self._attendant[thing] = into
        found = {}
        for row in things:
            nearest, person = self._nearest(row, people, places, seen.boxes)
            if nearest <= 1.0:
                self._attendant[ids[row]] = ids[person]
            elif ids[row] in self._attendant:
                alone = nearest if np.isfinite(nearest) else 0.0
                found[ids[row], 0] = ConditionValue(alone, f"left behind by track {self._attendant[ids[row]]}")
        alive = {*seen.alive.tolist(), *ids}
        for track in self._attendant.keys() - alive:
            del self._attendant[track]
        return found

    def is_unknown(self, pair: Pair, seen: FrameObservation) -> bool:
        """A thing that is not seen may still be there."""
        return pair[0] not in seen.ids

    def _nearest(self, row: int, people: list[int], places: Floats, boxes: Floats) -> tuple[float, int]:
        """Distance to the nearest person in units of what counts as near, and the person's row."""
        best = (np.inf, -1)
        for person in people:
            apart = float(np.hypot(*(places[row] - places[person])))
            limit = self.away_m if self.plane is not None else self.away * (boxes[person, 3] - boxes[person, 1])
            if apart / limit < best[0]:
                best = (apart / limit, person)
        return best


def _feet(seen: FrameObservation) -> Floats:
    return anchor_points(seen.boxes, "feet")[:, 0]


def _rows_of(seen: FrameObservation, query: int | None, feet: Floats | None, region: Region | None) -> list[int]:
    """Rows of the tracks that match the query over time and stand in the region."""
    if query is None:
        return []
    rows = [row for row, track in enumerate(seen.ids.tolist()) if query in seen.matched.get(track, ())]
    if region is None or feet is None or not rows:
        return rows
    inside = region(feet[rows])
    return [row for row, is_inside in zip(rows, inside.tolist(), strict=True) if is_inside]


def _speed(history: deque[tuple[int, float, float]]) -> float | None:
    """Metres a second by least squares; None while there are too few sightings."""
    if len(history) < _LEAST_SIGHTINGS or history[-1][0] - history[0][0] < _LEAST_WINDOW_S * 1e9:
        return None
    rows = np.array(history, np.float64)
    time_s = (rows[:, 0] - rows[0, 0]) / 1e9
    time_s -= time_s.mean()
    slopes = time_s @ rows[:, 1:] / (time_s @ time_s)
    return float(np.hypot(*slopes))
