"""Zones and lines: who enters, stays, leaves and crosses, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sinks.event import CountInfo, EventType, LineInfo, ZoneInfo
from streamer.errors import ConfigError
from streamer.rules.geometry import Inside, crosses_within, polygon, segment, signed_distance
from streamer.rules.rule import Floats, FrameObservation, Rule, RuleFinding

SETTLE_S = 0.2
"""How long a foot must stay on the other side of a zone's edge before that counts: boxes tremble."""
LINE_MARGIN = 0.005
"""How far from a line, in fractions of the frame, a foot must be to be on one side of it."""


@dataclass(slots=True)
class _ZoneVisit:
    since_ns: int
    dwelt: int = 0
    outside_since_ns: int | None = None


class Zone:
    """`zone.enter` when a track's foot point stays inside the polygon, `zone.exit` with the seconds it stayed when it
    leaves or ends, `zone.dwell` once for each of `dwell_s` that it stays. Entering and leaving are told once the foot
    has stayed on its side for `settle_s`; the seconds count from the step over the edge.
    """

    def __init__(
        self, name: str, points: Sequence[Sequence[float]], dwell_s: Iterable[float] = (), settle_s: float = SETTLE_S
    ) -> None:
        self.name = name
        self.corners = polygon(name, points)
        self._inside = Inside(self.corners)
        self.dwell_s = sorted(dwell_s)
        if any(limit <= 0 for limit in self.dwell_s):
            raise ConfigError(f"zone {name!r} has dwell time {self.dwell_s[0]}: give seconds above 0")
        self._settle_ns = int(settle_s * 1e9)
        self._entering: dict[int, int] = {}
        self._visits: dict[int, _ZoneVisit] = {}

    @property
    def occupants(self) -> list[int]:
        """Tracks inside, sorted by id."""
        return sorted(self._visits)

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        happenings: list[RuleFinding] = []
        for track, is_inside in zip(seen.ids.tolist(), self._inside(seen.feet).tolist(), strict=True):
            visit = self._visits.get(track)
            if visit is not None:
                happenings += self._stay(track, visit, is_inside, seen.time_ns)
            elif not is_inside:
                self._entering.pop(track, None)
            elif seen.time_ns - self._entering.setdefault(track, seen.time_ns) >= self._settle_ns:
                self._visits[track] = _ZoneVisit(self._entering.pop(track))
                happenings.append(RuleFinding(EventType.ZONE_ENTER, track, {"zone": ZoneInfo(id=self.name)}))
        alive = set(seen.alive.tolist())
        for track in [track for track in self._visits if track not in alive]:
            happenings.append(self._leave(track, seen.time_ns))
        for track in [track for track in self._entering if track not in alive]:
            del self._entering[track]
        return happenings

    def close(self, time_ns: int) -> list[RuleFinding]:
        self._entering.clear()
        return [self._leave(track, time_ns) for track in self.occupants]

    def _stay(self, track: int, visit: _ZoneVisit, is_inside: bool, time_ns: int) -> list[RuleFinding]:
        if is_inside:
            visit.outside_since_ns = None
        else:
            if visit.outside_since_ns is None:
                visit.outside_since_ns = time_ns
            if time_ns - visit.outside_since_ns >= self._settle_ns:
                return [self._leave(track, time_ns)]
        happenings = []
        stayed_s = (time_ns - visit.since_ns) / 1e9
        while visit.dwelt < len(self.dwell_s) and stayed_s >= self.dwell_s[visit.dwelt]:
            dwell = ZoneInfo(id=self.name, dwell_s=self.dwell_s[visit.dwelt])
            happenings.append(RuleFinding(EventType.ZONE_DWELL, track, {"zone": dwell}))
            visit.dwelt += 1
        return happenings

    def _leave(self, track: int, time_ns: int) -> RuleFinding:
        visit = self._visits.pop(track)
        until_ns = time_ns if visit.outside_since_ns is None else visit.outside_since_ns
        stayed_s = round((until_ns - visit.since_ns) / 1e9, 6)
        return RuleFinding(EventType.ZONE_EXIT, track, {"zone": ZoneInfo(id=self.name, dwell_s=stayed_s)})


class Line:
    """`line.cross` when a track's foot point goes from one side of the line to the other between its two ends.

    `in` is from the left to the right of someone who walks along the line as it is drawn, `out` the other way.
    """

    def __init__(self, name: str, points: Sequence[Sequence[float]], margin: float = LINE_MARGIN) -> None:
        self.name = name
        self.ends = segment(name, points)
        self._margin = margin
        self._last: dict[int, tuple[bool, Floats]] = {}

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        happenings: list[RuleFinding] = []
        feet = seen.feet
        distances = signed_distance(feet, self.ends).tolist()
        for row, (track, distance) in enumerate(zip(seen.ids.tolist(), distances, strict=True)):
            if abs(distance) < self._margin:
                continue
            is_right = distance > 0
            was_right, before = self._last.get(track, (is_right, feet[row]))
            if is_right != was_right and crosses_within(before, feet[row], self.ends):
                crossing = LineInfo(id=self.name, direction="in" if is_right else "out")
                happenings.append(RuleFinding(EventType.LINE_CROSS, track, {"line": crossing}))
            self._last[track] = (is_right, feet[row])
        if len(self._last) > len(seen.alive):
            alive = set(seen.alive.tolist())
            self._last = {track: last for track, last in self._last.items() if track in alive}
        return happenings

    def close(self, time_ns: int) -> list[RuleFinding]:
        self._last.clear()
        return []


@dataclass(slots=True)
class _CountWindow:
    start_ns: int
    last_ns: int
    occupancy: int = 0
    occupancy_max: int = 0
    occupied_ns: int = 0
    entered: int = 0
    left: int = 0
    inside: set[int] = field(default_factory=set)


class Count:
    """`count` at the end of every window of `window_s` seconds of capture time.

    Counts a zone (`entered`, `left`, occupancy), a line (`entered` = in, `left` = out) or, without either, the tracks
    of the whole picture. `query` limits it to one query by number, named `query_text` in the event.
    It must be updated with what the place said of the same frame: see `PlaceRules`.
    """

    def __init__(
        self,
        name: str,
        window_s: float,
        place: Zone | Line | None = None,
        query: int | None = None,
        query_text: str | None = None,
    ) -> None:
        if window_s <= 0:
            raise ConfigError(f"count of {name!r} has window {window_s}: give seconds above 0")
        self._name = name
        self._place = place
        self._window_ns = int(window_s * 1e9)
        self._query = query
        self._query_text = query_text
        self._window: _CountWindow | None = None

    def update(self, seen: FrameObservation, happenings: Iterable[RuleFinding]) -> list[RuleFinding]:
        """`happenings` are those of the place for this frame."""
        if self._window is None:
            self._window = _CountWindow(seen.time_ns, seen.time_ns)
        finished = []
        while seen.time_ns >= (end_ns := self._end_ns(self._window.start_ns)):
            finished.append(self._finish(end_ns))
            if not self._window.occupancy:
                # Skip windows in which nothing can have happened: a day without frames is not 1440 events.
                self._window.start_ns = max(end_ns, seen.time_ns // self._window_ns * self._window_ns)
        window = self._window
        window.occupied_ns += window.occupancy * max(0, seen.time_ns - max(window.last_ns, window.start_ns))
        window.last_ns = seen.time_ns
        if isinstance(self._place, Line):
            for happening in happenings:
                self._count_crossing(window, self._place.name, happening, seen.matched)
        else:
            inside = seen.alive.tolist() if self._place is None else self._place.occupants
            present = {track for track in inside if self._is_wanted(track, seen.matched)}
            window.entered += len(present - window.inside)
            window.left += len(window.inside - present)
            window.inside = present
            window.occupancy = len(present)
        window.occupancy_max = max(window.occupancy_max, window.occupancy)
        return finished

    def close(self, time_ns: int) -> list[RuleFinding]:
        window, self._window = self._window, None
        if window is None or time_ns <= window.start_ns:
            return []
        self._window = window
        end_ns = min(time_ns, self._end_ns(window.start_ns))
        window.occupied_ns += window.occupancy * max(0, end_ns - max(window.last_ns, window.start_ns))
        window.last_ns = end_ns
        window.left += len(window.inside)
        window.inside, window.occupancy = set(), 0
        last = self._finish(end_ns)
        self._window = None
        return [last]

    def _end_ns(self, start_ns: int) -> int:
        """Windows end at whole multiples of their length; the first begins with the first frame."""
        return (start_ns // self._window_ns + 1) * self._window_ns

    def _is_wanted(self, track: int, matched: Mapping[int, AbstractSet[int]]) -> bool:
        return self._query is None or self._query in matched.get(track, ())

    def _count_crossing(
        self, window: _CountWindow, line: str, happening: RuleFinding, matched: Mapping[int, AbstractSet[int]]
    ) -> None:
        crossed: LineInfo | None = happening.data.get("line")
        if crossed is None or crossed.id != line or happening.track is None:
            return
        if self._is_wanted(happening.track, matched):
            window.entered += crossed.direction == "in"
            window.left += crossed.direction == "out"

    def _finish(self, end_ns: int) -> RuleFinding:
        window = self._window
        assert window is not None
        occupied_ns = window.occupied_ns + window.occupancy * max(0, end_ns - max(window.last_ns, window.start_ns))
        info = CountInfo(
            id=self._name,
            query=self._query_text,
            from_ns=window.start_ns,
            to_ns=end_ns,
            occupancy=window.occupancy,
            occupancy_max=window.occupancy_max,
            occupancy_mean=round(occupied_ns / max(1, end_ns - window.start_ns), 6),
            entered=window.entered,
            left=window.left,
        )
        self._window = _CountWindow(end_ns, end_ns, window.occupancy, window.occupancy, inside=window.inside)
        return RuleFinding(EventType.COUNT, None, {"count": info})


class PlaceRules:
    """The zones, lines and counts of one stream as one rule."""

    def __init__(self, zones: Sequence[Zone] = (), lines: Sequence[Line] = (), counts: Sequence[Count] = ()) -> None:
        self.zones = tuple(zones)
        self.lines = tuple(lines)
        self._places: tuple[Rule, ...] = (*self.zones, *self.lines)
        self._counts = tuple(counts)

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        happenings = [happening for place in self._places for happening in place.update(seen)]
        counted = [count for rule in self._counts for count in rule.update(seen, happenings)]
        return happenings + counted

    def replace(
        self, zones: Sequence[Zone], lines: Sequence[Line], counts: Sequence[Count], time_ns: int
    ) -> list[RuleFinding]:
        """Use these from now on. Objects that stay keep their state; the others are closed at `time_ns`."""
        kept = {id(rule) for rule in (*zones, *lines, *counts)}
        present: tuple[Rule | Count, ...] = (*self._places, *self._counts)
        gone = [rule for rule in present if id(rule) not in kept]
        ended = [happening for rule in gone for happening in rule.close(time_ns)]
        self.zones, self.lines, self._counts = tuple(zones), tuple(lines), tuple(counts)
        self._places = (*self.zones, *self.lines)
        return ended

    def close(self, time_ns: int) -> list[RuleFinding]:
        happenings = [happening for place in self._places for happening in place.close(time_ns)]
        return happenings + [count for rule in self._counts for count in rule.close(time_ns)]
