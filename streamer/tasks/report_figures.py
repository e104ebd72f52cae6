"""Figures of a report: counts per hour, dwell times, positions and queries of every stream, from its events."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sinks.event import Event, EventType, TrackInfo
from streamer.tasks.event_table import UNDATED

HOUR_NS = 3_600_000_000_000
MINUTE_NS = 60_000_000_000
GRID_COLUMNS = 64
"""Columns of a heat map; its rows follow from the shape of the frame."""
_DEFAULT_SHAPE = (16, 9)


@dataclass(slots=True)
class QueryFigures:
    """What a stream's events say about one query."""

    text: str
    tracks: set[str] = field(default_factory=set)
    zone_entries: int = 0
    crossings: Counter[str] = field(default_factory=Counter)
    best_score: float = 0.0
    first_ns: int | None = None
    last_ns: int = 0


@dataclass(slots=True)
class StreamFigures:
    """Figures of one stream. Times are nanoseconds since 1970 (UTC), dwell times seconds, cells (column, row)."""

    name: str
    first_ns: int | None = None
    last_ns: int = 0
    is_dated: bool = False
    shape: tuple[int, int] | None = None
    tracks: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    crossings: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    entries: Counter[tuple[int, str]] = field(default_factory=Counter)
    exits: Counter[tuple[int, str]] = field(default_factory=Counter)
    dwell_s: dict[str, list[float]] = field(default_factory=dict)
    queries: dict[str, QueryFigures] = field(default_factory=dict)
    presence_s: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    blind_s: float = 0.0
    merged: dict[str, str] = field(default_factory=dict)
    newest: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of the heat map."""
        width, height = self.shape or _DEFAULT_SHAPE
        return GRID_COLUMNS, max(1, round(GRID_COLUMNS * height / width))

    @property
    def zones(self) -> list[str]:
        """The zones that something entered or left, by name."""
        return sorted({zone for _, zone in self.entries} | set(self.dwell_s))

    @property
    def lines(self) -> list[str]:
        """The lines that something crossed, by name."""
        return sorted({line for _, line, _ in self.crossings})

    def resolve_track(self, uid: str) -> str:
        """Returns the id under which a track goes on after merges."""
        while uid in self.merged:
            uid = self.merged[uid]
        return uid

    def count_tracks(self, uids: set[str]) -> int:
        """Counts tracks, those that were merged as one."""
        return len({self.resolve_track(uid) for uid in uids})

    @property
    def track_count(self) -> int:
        """How many tracks began, those that were merged as one."""
        return self.count_tracks({uid for uids in self.tracks.values() for uid in uids})


class ReportFigures:
    """Adds up events, one at a time, in the order in which they were stored."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamFigures] = {}
        self.events = 0

    def add_event(self, event: Event) -> None:
        """Counts one event."""
        data, time_ns = event.data, parse_time(event.time)
        stream = self.streams.setdefault(data.stream, StreamFigures(data.stream))
        self.events += 1
        stream.first_ns = time_ns if stream.first_ns is None else min(stream.first_ns, time_ns)
        stream.last_ns = max(stream.last_ns, time_ns)
        stream.is_dated = stream.is_dated or data.clock.basis != "file_pts" or event.time[:10] != UNDATED
        if data.frame is not None and stream.shape is None:
            stream.shape = (data.frame.width, data.frame.height)
        minute = time_ns // MINUTE_NS
        match event.type:
            case EventType.TRACK_BEGIN:
                stream.tracks[minute].add(event.subject)
            case EventType.TRACK_MERGE if data.track is not None and data.track.merged_into:
                _add_merge(stream, data.track.uid, data.track.merged_into)
            case EventType.ZONE_ENTER if data.zone is not None:
                stream.entries[minute, data.zone.id] += 1
                stream.dwell_s.setdefault(data.zone.id, [])
            case EventType.ZONE_EXIT if data.zone is not None:
                stream.exits[minute, data.zone.id] += 1
                dwells = stream.dwell_s.setdefault(data.zone.id, [])
                if data.zone.dwell_s is not None:
                    dwells.append(data.zone.dwell_s)
            case EventType.LINE_CROSS if data.line is not None:
                stream.crossings[minute, data.line.id, data.line.direction] += 1
            case EventType.COVERAGE if data.coverage is not None and data.coverage.state == "blind":
                stream.blind_s += (data.coverage.to_ns - data.coverage.from_ns) / 1e9
        _add_queries(stream, event, time_ns)
        if data.track is not None:
            _add_position(stream, event, data.track)


def parse_time(text: str) -> int:
    """Returns an event's time as nanoseconds since 1970."""
    moment = datetime.fromisoformat(text)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def format_time(time_ns: int, *, is_dated: bool) -> str:
    """Returns a time as text: UTC, or the time since the start for a recording without a date."""
    seconds = time_ns // 1_000_000_000
    if is_dated:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _add_merge(stream: StreamFigures, ended: str, into: str) -> None:
    if stream.resolve_track(into) != ended:
        stream.merged[ended] = into
    stream.newest.pop(ended, None)


def _add_queries(stream: StreamFigures, event: Event, time_ns: int) -> None:
    for match in event.data.matches or ():
        figures = stream.queries.setdefault(match.query_id, QueryFigures(match.text))
        figures.text = match.text
        figures.best_score = max(figures.best_score, match.score)
        figures.first_ns = time_ns if figures.first_ns is None else min(figures.first_ns, time_ns)
        figures.last_ns = max(figures.last_ns, time_ns)
        if event.data.track is not None:
            figures.tracks.add(event.data.track.uid)
        if event.type is EventType.ZONE_ENTER:
            figures.zone_entries += 1
        elif event.type is EventType.LINE_CROSS and event.data.line is not None:
            figures.crossings[event.data.line.direction] += 1


def _add_position(stream: StreamFigures, event: Event, track: TrackInfo) -> None:
    """Adds the time since the track's last position to the cells on the straight line between the two.

    A position is the middle of the lower edge of the box, where an object stands on the ground.
    """
    box = track.box
    x, y, now_ns = (box.x1 + box.x2) / 2, box.y2, track.last_seen_ns
    last = stream.newest.get(track.uid)
    if last is not None and now_ns > last[0]:
        columns, rows = stream.grid
        then_ns, old_x, old_y = last
        steps = max(1, math.ceil(2 * max(abs(x - old_x) * columns, abs(y - old_y) * rows)))
        share_s = (now_ns - then_ns) / 1e9 / steps
        for step in range(steps):
            part = (step + 0.5) / steps
            column = min(int((old_x + (x - old_x) * part) * columns), columns - 1)
            row = min(int((old_y + (y - old_y) * part) * rows), rows - 1)
            stream.presence_s[column, row] += share_s
    if event.type in (EventType.TRACK_END, EventType.TRACK_MERGE):
        stream.newest.pop(track.uid, None)
    elif last is None or now_ns > last[0]:
        stream.newest[track.uid] = (now_ns, x, y)
