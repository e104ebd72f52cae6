"""Zones: tracks that enter, stay in and leave a region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sinks.event import EventType, ZoneInfo
from streamer.errors import ConfigError
from streamer.rules.geometry import Points, Region
from streamer.rules.rule import ANCHORS, Anchor, Bools, FrameObservation, RuleFinding, anchor_points

SETTLE_S = 0.5
"""Seconds for which a track must stay on its new side of an edge before that counts: boxes jitter and feet are hidden
for moments."""


@dataclass(slots=True)
class _ZoneVisit:
    """Presence of one track: pending until it has `entered`. Each moment is (capture time, frame index)."""

    since: tuple[int, int]
    until: tuple[int, int]
    has_entered: bool = False
    is_outside: bool = False
    dwell_count: int = 0


class Zone:
    """`zone.enter` when a track stays inside for `settle_s`, `zone.exit` when it stays outside as long or ends,
    `zone.dwell` once for each of `dwell_s` seconds that it stays.

    Times are those of the first frame inside and the first frame outside, or of the last frame in which a track that
    ended was seen inside. `anchor` names the point of a box that decides.
    """

    def __init__(
        self,
        name: str,
        points: Points,
        dwell_s: Iterable[float] = (),
        settle_s: float = SETTLE_S,
        *,
        holes: Sequence[Points] = (),
        anchor: Anchor = "feet",
    ) -> None:
        self.name = name
        self.region = Region(f"zone {name!r}", points, holes)
        self.anchor = checked_anchor(f"zone {name!r}", anchor)
        self.dwell_s = sorted(set(dwell_s))
        if any(limit <= 0 for limit in self.dwell_s):
            raise ConfigError(f"zone {name!r} has dwell time {self.dwell_s[0]}: give seconds above 0")
        self._settle_ns = settle_time(f"zone {name!r}", settle_s)
        self.counts: Counter[str] = Counter()  # tracks that have "entered" and "left"
        self._visits: dict[int, _ZoneVisit] = {}

    @property
    def occupants(self) -> list[int]:
        """Tracks that have entered and not left, sorted by id."""
        return sorted(track for track, visit in self._visits.items() if visit.has_entered)

    def stay_of(self, track: int) -> tuple[int, int]:
        """Times in nanoseconds from which and up to which an occupant is known to be inside."""
        visit = self._visits[track]
        return visit.since[0], visit.until[0]

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        findings = [finding for ended, into in seen.merges for finding in self._merge_visits(ended, into)]
        moment = (seen.time_ns, seen.frame_index)
        points = anchor_points(seen.boxes, self.anchor)
        inside: Bools = self.region(points.reshape(-1, 2)).reshape(points.shape[:2]).max(axis=1, initial=False)
        for track, is_inside in zip(seen.ids.tolist(), inside.tolist(), strict=True):
            if is_inside or track in self._visits:
                findings += self._follow_track(track, is_inside, moment)
        if self._visits:
            gone = self._visits.keys() - set(seen.alive.tolist())
            findings += [end for track in sorted(gone) for end in self._end_visit(track)]
        return findings

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        return [end for track in sorted(self._visits.keys() - keep) for end in self._end_visit(track)]

    def _follow_track(self, track: int, is_inside: bool, moment: tuple[int, int]) -> list[RuleFinding]:
        """Takes one sighting of a track that is inside or has been into account."""
        visit = self._visits.get(track)
        if visit is None:
            visit = self._visits[track] = _ZoneVisit(moment, moment)
        if not visit.is_outside:
            visit.until = moment
        if not is_inside:
            visit.is_outside = True
            is_settled = moment[0] - visit.until[0] >= self._settle_ns
            return self._end_visit(track) if is_settled or not visit.has_entered else []
        visit.until, visit.is_outside = moment, False
        findings = []
        if not visit.has_entered and moment[0] - visit.since[0] >= self._settle_ns:
            visit.has_entered = True
            self.counts["entered"] += 1
            findings.append(self._finding(EventType.ZONE_ENTER, track, None, visit.since))
        stayed_s = (moment[0] - visit.since[0]) / 1e9
        while (
            visit.has_entered and visit.dwell_count < len(self.dwell_s) and stayed_s >= self.dwell_s[visit.dwell_count]
        ):
            findings.append(self._finding(EventType.ZONE_DWELL, track, self.dwell_s[visit.dwell_count], moment))
            visit.dwell_count += 1
        return findings

    def _end_visit(self, track: int) -> list[RuleFinding]:
        visit = self._visits.pop(track)
        if not visit.has_entered:
            return []
        self.counts["left"] += 1
        stayed_s = round((visit.until[0] - visit.since[0]) / 1e9, 6)
        return [self._finding(EventType.ZONE_EXIT, track, stayed_s, visit.until)]

    def _merge_visits(self, ended: int, into: int) -> list[RuleFinding]:
        """The visit of `ended` continues under `into`; where both have entered, that of `ended` ends."""
        visit, other = self._visits.get(ended), self._visits.get(into)
        if visit is None:
            return []
        if other is None or not other.has_entered:
            del self._visits[ended]
            self._visits[into] = visit
            return []
        ends = self._end_visit(ended)
        if visit.has_entered and visit.since < other.since:
            other.since, other.dwell_count = visit.since, max(visit.dwell_count, other.dwell_count)
        return ends

    def _finding(self, kind: EventType, track: int, dwell_s: float | None, moment: tuple[int, int]) -> RuleFinding:
        return RuleFinding(kind, track, {"zone": ZoneInfo(id=self.name, dwell_s=dwell_s)}, *moment)


def settle_time(owner: str, settle_s: float) -> int:
    """Nanoseconds. Raises `ConfigError` for a negative time."""
    if not settle_s >= 0:
        raise ConfigError(f"{owner} has settle_s {settle_s}: give seconds from 0 on")
    return int(settle_s * 1e9)


def checked_anchor(owner: str, anchor: Anchor) -> Anchor:
    """The anchor itself. Raises `ConfigError` for an unknown one."""
    if anchor not in ANCHORS:
        raise ConfigError(f"{owner} has anchor {anchor!r}: use one of {', '.join(ANCHORS)}")
    return anchor
