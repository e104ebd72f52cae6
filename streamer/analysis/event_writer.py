"""Turns rule findings into events with sequence number, capture time and track state; closes what a crash left open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from sinks.event import (
    Clock,
    Event,
    EventData,
    EventType,
    FrameInfo,
    Match,
    OutageInfo,
    Producer,
    TrackInfo,
    ZoneInfo,
    event_id,
    format_epoch,
    format_sequence,
    rfc3339,
)
from sinks.spool.open_state import OpenItem
from streamer.analysis.queries import Query
from streamer.frame import Frame, FrameClock
from streamer.rules.matches import QueryMatches
from streamer.rules.rule import RuleFinding
from streamer.rules.track_ids import NewUid
from streamer.rules.tracks import TrackLives

CRASH_CAUSE = "groundstream ended without closing the stream"
"""The cause of the outage that the first start after a crash reports."""

_LAST = (EventType.ZONE_EXIT, EventType.MATCH_END, EventType.TRACK_END)
_ORDER = {EventType.TRACK_BEGIN: 0, EventType.MATCH_BEGIN: 1, **{kind: 3 + rank for rank, kind in enumerate(_LAST)}}
_CRASH_TYPES = {
    "rule": EventType.RULE,
    "visit": EventType.ZONE_EXIT,
    "match": EventType.MATCH_END,
    "track": EventType.TRACK_END,
    "stream": EventType.STREAM_OFFLINE,
}
_CRASH_ORDER = list(_CRASH_TYPES)


@dataclass(frozen=True, slots=True)
class EventTime:
    """When something happened: a capture time, how far it can be trusted, and the frame, if there was one."""

    time_ns: int
    clock: FrameClock
    frame: FrameInfo | None = None

    @classmethod
    def of(cls, frame: Frame) -> EventTime:
        return cls(frame.time_ns, frame.clock, FrameInfo(index=frame.index, width=frame.width, height=frame.height))


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """The fields that all events of a stream share. `source` is the CloudEvents source; `written` counts the events
    that this run has written for the stream already."""

    stream: str
    source: str
    run: int
    producer: Producer
    new_uid: NewUid
    written: int = 0


def close_crashed(items: Iterable[OpenItem], run: int | None) -> list[Event]:
    """The ends of everything that earlier runs left open, as the first events of this run on their streams; without a
    run as the last events of the runs that they belong to, because a later run may be that of another process.

    In each stream the findings of rules end first (`rule`), then the visits (`zone.exit`), the matches (`match.end`),
    the tracks (`track.end`, `crashed`) and the stream itself (`stream.offline`), all at the time of the stream's last
    known event.
    """

    def place_of(item: OpenItem) -> tuple[str, int]:
        return item.event.data.stream, item.event.data.run if run is None else run

    ordered = sorted(items, key=lambda item: (place_of(item), _CRASH_ORDER.index(item.kind), item.key))
    ends: list[Event] = []
    for (_, used_run), group in groupby(ordered, key=place_of):
        left = list(group)
        written = max(int(item.event.sequence) for item in left) if run is None else 0
        ends += _CrashedStream(left, used_run, written).close()
    return ends


class _CrashedStream:
    """The open items of one stream, sorted in the order of their ends; `run` has `written` events of it already."""

    def __init__(self, items: list[OpenItem], run: int, written: int) -> None:
        self._items = items
        self._run = run
        self._written = written
        self._last = max((item.event for item in items), key=lambda event: event.data.clock.captured_ns)
        self._tracks = {item.key: item.event for item in items if item.kind == "track"}
        self._revisions: dict[str, int] = {}

    def close(self) -> list[Event]:
        return [self._make_end(item, sequence) for sequence, item in enumerate(self._items, self._written + 1)]

    def _make_end(self, item: OpenItem, sequence: int) -> Event:
        last, data = self._last, item.event.data
        fields = dict(self._end_fields(item))
        clock = last.data.clock
        if clock.received_ns is not None:
            clock = clock.model_copy(update={"emitted_ns": time.time_ns()})
        return Event(
            id=event_id(self._run, data.stream, sequence),
            source=item.event.source,
            type=_CRASH_TYPES[item.kind],
            subject=data.stream if item.kind == "stream" else item.event.subject,
            time=last.time,
            partitionkey=data.stream,
            sequence=format_sequence(sequence),
            epoch=format_epoch(self._run),
            data=EventData(
                stream=data.stream,
                run=self._run,
                clock=clock,
                frame=last.data.frame,
                producer=data.producer,
                **fields,
            ),
        )

    def _end_fields(self, item: OpenItem) -> Iterator[tuple[str, object]]:
        """What the end of an item says beside the common fields."""
        if item.kind == "stream":
            since_ns = self._last.data.clock.captured_ns
            yield "outage", OutageInfo(cause=CRASH_CAUSE, since_ns=since_ns)
            return
        data = item.event.data
        track = self._newest_track(item)
        if item.kind == "visit" and data.zone is not None:
            stayed_s = max(0, track.last_seen_ns - data.clock.captured_ns) / 1e9
            yield "zone", ZoneInfo(id=data.zone.id, dwell_s=round(stayed_s, 6))
        if item.kind == "rule" and data.rule is not None:
            yield "rule", data.rule.model_copy(update={"state": "end"})
        if item.kind == "track":
            track = track.model_copy(update={"state": "ended", "end_reason": "crashed"})
        yield "track", track
        yield "matches", self._open_matches(track.uid) if item.kind == "track" else data.matches

    def _newest_track(self, item: OpenItem) -> TrackInfo:
        """The track as it was last known, with the next revision."""
        track = item.event.data.track
        assert track is not None
        newest = self._tracks.get(track.uid)
        if newest is not None and newest.data.track is not None:
            track = newest.data.track
        revision = self._revisions[track.uid] = self._revisions.get(track.uid, track.revision) + 1
        return track.model_copy(update={"revision": revision})

    def _open_matches(self, uid: str) -> list[Match] | None:
        items = [item for item in self._items if item.kind == "match" and item.event.subject == uid]
        return [match for item in items for match in item.event.data.matches or ()] or None


class EventWriter:
    """Writes the events of one stream; sequences begin at 1 in every run.

    `queries` holds each query by number as it was in force for the frame that is written about.
    """

    def __init__(
        self,
        identity: StreamIdentity,
        tracks: TrackLives,
        matches: QueryMatches,
        queries: Mapping[int, Query],
        default_threshold: float,
    ) -> None:
        self._identity = identity
        self._epoch = format_epoch(identity.run)
        self._tracks = tracks
        self._matches = matches
        self._queries = queries
        self._default_threshold = default_threshold
        self._sequence = identity.written

    @property
    def written(self) -> int:
        """The sequence number of the latest event of this run."""
        return self._sequence

    def continue_after(self, written: int) -> None:
        """Number the next event after `written` events that this run already has of the stream."""
        self._sequence = max(self._sequence, written)

    def change_settings(self, default_threshold: float, producer: Producer) -> None:
        """Write these into all later events."""
        self._default_threshold = default_threshold
        self._identity = replace(self._identity, producer=producer)

    def write(self, happenings: Iterable[RuleFinding], moment: EventTime) -> list[Event]:
        """The events in order: within a frame begins come first, then changes, then ends."""
        ordered = sorted(happenings, key=lambda happening: _ORDER.get(happening.type, 2))
        return [self._make_event(happening, moment) for happening in ordered]

    def _make_event(self, happening: RuleFinding, moment: EventTime) -> Event:
        self._sequence += 1
        moment = _moment_of(happening, moment)
        identity = self._identity
        fields = dict(happening.data)
        subject = happening.subject or identity.stream
        if happening.track is not None:
            record = self._tracks.find(happening.track)
            assert record is not None, f"rule {happening.type} speaks of track {happening.track}, which never began"
            subject = record.uid
            fields["track"] = record.describe()
            fields["matches"] = self._describe_matches(happening.track, fields.pop("query_number", None))
        # The fields are made of checked models: checking them again would cost more than making them.
        return Event.model_construct(
            id=event_id(identity.run, identity.stream, self._sequence),
            source=identity.source,
            type=happening.type,
            subject=subject,
            time=rfc3339(moment.time_ns),
            partitionkey=identity.stream,
            sequence=format_sequence(self._sequence),
            epoch=self._epoch,
            data=EventData.model_construct(
                stream=identity.stream,
                run=identity.run,
                clock=self._make_clock(moment),
                frame=moment.frame,
                producer=identity.producer,
                **fields,
            ),
        )

    def _make_clock(self, moment: EventTime) -> Clock:
        clock = moment.clock
        return Clock(
            basis=clock.basis,
            uncertainty_ms=clock.uncertainty_ms,
            captured_ns=moment.time_ns,
            received_ns=clock.received_ns,
            # A recording's events are the same each time they are made.
            emitted_ns=None if clock.received_ns is None else time.time_ns(),
            connection=clock.connection,
        )

    def _describe_matches(self, track: int, only: int | None) -> list[Match] | None:
        scores = self._matches.scores(track)
        if only is not None:
            scores = {only: self._matches.score(track, only)}
        described = []
        for number, score in sorted(scores.items()):
            query = self._queries[number]
            threshold = query.least_score(self._default_threshold)
            described.append(
                Match(
                    query_id=query.id,
                    query_rev=query.revision,
                    text=query.text,
                    score=round(min(1.0, score), 6),
                    threshold=threshold,
                )
            )
        return described or None


def _moment_of(finding: RuleFinding, moment: EventTime) -> EventTime:
    """The time of the finding itself where it is earlier than the frame in which it became certain."""
    if finding.time_ns is None or finding.time_ns == moment.time_ns:
        return moment
    frame = moment.frame
    if frame is not None and finding.frame_index is not None:
        frame = frame.model_copy(update={"index": finding.frame_index})
    return replace(moment, time_ns=finding.time_ns, frame=frame)
