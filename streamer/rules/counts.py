"""Counts: occupancy and traffic of a zone, a line or the whole frame in windows of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sinks.event import CountInfo, EventType, LineInfo, ZoneInfo
from streamer.errors import ConfigError
from streamer.rules.lines import Line
from streamer.rules.rule import FrameObservation, RuleFinding
from streamer.rules.zones import Zone

MISSED_NS = 1_000_000_000
"""A track that was not detected for at most this long still counts as present."""
MOST_UNKNOWN = 60
"""Unknown windows in a row that are reported one by one; a longer stretch without frames is one event."""


@dataclass(slots=True)
class _CountWindow:
    start_ns: int
    frames: int = 0
    occupancy_max: int = 0
    occupied_ns: int = 0
    entered: int = 0
    left: int = 0


@dataclass(slots=True)
class _Presence:
    """A counted track: `until_ns` is the last time at which it was inside, `counted_ns` up to where that is summed."""

    until_ns: int
    counted_ns: int


@dataclass(slots=True)
class _CountState:
    window: _CountWindow
    present: dict[int, _Presence] = field(default_factory=dict)


class Count:
    """`count` at the end of every window of `window_s` seconds of capture time.

    Counts a zone (`entered`, `left`, occupancy), a line (`entered` = in, `left` = out) or, without either, the tracks
    of the whole frame. `query` limits it to one query by number, named `query_text` in the event. Tracks are present
    until they were last seen. A window without an analysed frame is reported with `state` "unknown" and without
    occupancy. Must be updated with the findings of the place for the same frame: see `PlaceRules`.
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
        self._state: _CountState | None = None

    def update(self, seen: FrameObservation, findings: Iterable[RuleFinding]) -> list[RuleFinding]:
        """`findings` are those of the place for this frame."""
        if self._state is None:
            self._state = _CountState(_CountWindow(seen.time_ns))
        state = self._state
        stays = self._stays(seen)
        for ended, into in seen.merges:
            if ended in state.present:
                state.present.setdefault(into, state.present.pop(ended))
        for track, presence in state.present.items():
            if track in stays:
                presence.until_ns = stays[track][1]
        findings = list(findings)
        for finding in findings:
            if self._is_exit(finding) and finding.track in state.present:
                state.present[finding.track].until_ns = finding.time_ns or seen.time_ns
        finished = self._finish_windows(state, seen.time_ns)
        window = state.window
        window.frames += 1
        if isinstance(self._place, Line):
            for finding in findings:
                self._count_crossing(window, self._place.name, finding, seen.matched)
            return finished
        for track in stays.keys() - state.present.keys():
            since_ns, until_ns = stays[track]
            state.present[track] = _Presence(until_ns, since_ns)
            window.entered += 1
        gone = [state.present.pop(track) for track in state.present.keys() - stays.keys()]
        _sum_presences(window, gone, seen.time_ns)
        window.left += len(gone)
        _sum_presences(window, state.present.values(), seen.time_ns)
        window.occupancy_max = max(window.occupancy_max, _occupancy(state, seen.time_ns))
        return finished

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        """Ends the last window; after an interruption, in which tracks are kept, the windows continue."""
        state = self._state
        if state is None or keep:
            return []
        finished = self._finish_windows(state, time_ns)
        if time_ns > state.window.start_ns:
            _sum_presences(state.window, state.present.values(), time_ns)
            state.window.left += len(state.present)
            state.present.clear()
            finished.append(self._finding(state, time_ns))
        self._state = None
        return finished

    def _stays(self, seen: FrameObservation) -> dict[int, tuple[int, int]]:
        """Times from and up to which each wanted track is inside, for all that have not left."""
        if isinstance(self._place, Line):
            return {}
        if self._place is not None:
            inside = {track: self._place.stay_of(track) for track in self._place.occupants}
        else:
            known = {} if self._state is None else self._state.present
            inside = {
                track: (known[track].until_ns, known[track].until_ns) for track in seen.alive.tolist() if track in known
            }
            inside |= dict.fromkeys(seen.ids.tolist(), (seen.time_ns, seen.time_ns))
        if self._query is None:
            return inside
        return {track: stay for track, stay in inside.items() if self._is_wanted(track, seen.matched)}

    def _finish_windows(self, state: _CountState, time_ns: int) -> list[RuleFinding]:
        """Reports the windows that ended up to `time_ns`. They end at whole multiples of their length."""
        finished = []
        while time_ns >= (end_ns := self._end_ns(state.window.start_ns)):
            unknown = (time_ns - end_ns) // self._window_ns
            if not state.window.frames and unknown >= MOST_UNKNOWN:
                end_ns = time_ns // self._window_ns * self._window_ns
            _sum_presences(state.window, state.present.values(), end_ns)
            finished.append(self._finding(state, end_ns))
            state.window = _CountWindow(end_ns)
        return finished

    def _end_ns(self, start_ns: int) -> int:
        return (start_ns // self._window_ns + 1) * self._window_ns

    def _is_exit(self, finding: RuleFinding) -> bool:
        zone: ZoneInfo | None = finding.data.get("zone")
        return finding.type is EventType.ZONE_EXIT and zone is not None and zone.id == self._name

    def _is_wanted(self, track: int, matched: Mapping[int, AbstractSet[int]]) -> bool:
        return self._query is None or self._query in matched.get(track, ())

    def _count_crossing(
        self, window: _CountWindow, line: str, finding: RuleFinding, matched: Mapping[int, AbstractSet[int]]
    ) -> None:
        crossed: LineInfo | None = finding.data.get("line")
        if crossed is None or crossed.id != line or finding.track is None:
            return
        if self._is_wanted(finding.track, matched):
            window.entered += crossed.direction == "in"
            window.left += crossed.direction == "out"

    def _finding(self, state: _CountState, end_ns: int) -> RuleFinding:
        window = state.window
        is_known = window.frames > 0
        info = CountInfo(
            id=self._name,
            query=self._query_text,
            from_ns=window.start_ns,
            to_ns=end_ns,
            state=None if is_known else "unknown",
            occupancy=_occupancy(state, end_ns) if is_known else None,
            occupancy_max=window.occupancy_max if is_known else None,
            occupancy_mean=(round(window.occupied_ns / max(1, end_ns - window.start_ns), 6) if is_known else None),
            entered=window.entered,
            left=window.left,
        )
        return RuleFinding(EventType.COUNT, None, {"count": info}, end_ns)


def _sum_presences(window: _CountWindow, presences: Iterable[_Presence], end_ns: int) -> None:
    """Adds the time inside since it was last added, as far as it lies in the window."""
    start_ns = window.start_ns
    for presence in presences:  # each track of each frame: without calls
        until_ns, counted_ns = presence.until_ns, presence.counted_ns
        if until_ns > end_ns:
            until_ns = end_ns
        if until_ns > counted_ns:
            presence.counted_ns = until_ns
            begin_ns = max(start_ns, counted_ns)
            if until_ns > begin_ns:
                window.occupied_ns += until_ns - begin_ns


def _occupancy(state: _CountState, now_ns: int) -> int:
    """Tracks present at `now_ns`: seen inside not long ago, and in this window."""
    since_ns = max(now_ns - MISSED_NS, state.window.start_ns)
    return sum(presence.until_ns >= since_ns for presence in state.present.values())
