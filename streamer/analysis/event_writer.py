"""What rules noticed becomes events: numbered, timed and told with the state of the track it happened to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sinks.event import (
    Clock,
    Event,
    EventData,
    EventType,
    FrameInfo,
    Match,
    Producer,
    event_id,
    format_sequence,
    rfc3339,
)
from streamer.analysis.queries import Query
from streamer.frame import Frame, FrameClock
from streamer.rules.matches import QueryMatches
from streamer.rules.rule import RuleFinding
from streamer.rules.track_ids import NewUid
from streamer.rules.tracks import TrackLives

_LAST = (EventType.ZONE_EXIT, EventType.MATCH_END, EventType.TRACK_END)
_ORDER = {EventType.TRACK_BEGIN: 0, EventType.MATCH_BEGIN: 1, **{kind: 3 + rank for rank, kind in enumerate(_LAST)}}


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
    """What the events of a stream say of where they come from. `source` is the CloudEvents source; `written` counts
    the events that this run already has of the stream."""

    stream: str
    source: str
    run: int
    producer: Producer
    new_uid: NewUid
    written: int = 0


def close_crashed(open_tracks: Iterable[Event], run: int) -> list[Event]:
    """Ends for the tracks of earlier runs that never ended, as the first events of this run on their streams.

    `open_tracks` are the last events of these tracks.
    """
    ends = []
    written: Counter[str] = Counter()
    for last in open_tracks:
        stream, track = last.data.stream, last.data.track
        assert track is not None
        written[stream] += 1
        ended = track.model_copy(update={"state": "ended", "end_reason": "crashed", "revision": track.revision + 1})
        ends.append(
            last.model_copy(
                update={
                    "id": event_id(run, stream, written[stream]),
                    "sequence": format_sequence(written[stream]),
                    "type": EventType.TRACK_END,
                    "data": last.data.model_copy(update={"run": run, "track": ended, "zone": None, "line": None}),
                }
            )
        )
    return ends


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
        """The events in order: within a frame things begin first, then happen, then end."""
        ordered = sorted(happenings, key=lambda happening: _ORDER.get(happening.type, 2))
        return [self._event(happening, moment) for happening in ordered]

    def _event(self, happening: RuleFinding, moment: EventTime) -> Event:
        self._sequence += 1
        identity = self._identity
        fields = dict(happening.data)
        subject = identity.stream
        if happening.track is not None:
            record = self._tracks.find(happening.track)
            assert record is not None, f"rule {happening.type} speaks of track {happening.track}, which never began"
            subject = record.uid
            fields["track"] = record.describe()
            fields["matches"] = self._told_matches(happening.track, fields.pop("query_number", None))
        # The fields are made of checked models: checking them again would cost more than making them.
        return Event.model_construct(
            id=event_id(identity.run, identity.stream, self._sequence),
            source=identity.source,
            type=happening.type,
            subject=subject,
            time=rfc3339(moment.time_ns),
            partitionkey=identity.stream,
            sequence=format_sequence(self._sequence),
            data=EventData.model_construct(
                stream=identity.stream,
                run=identity.run,
                clock=self._clock(moment),
                frame=moment.frame,
                producer=identity.producer,
                **fields,
            ),
        )

    def _clock(self, moment: EventTime) -> Clock:
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

    def _told_matches(self, track: int, only: int | None) -> list[Match] | None:
        scores = self._matches.scores(track)
        if only is not None:
            scores = {only: self._matches.score(track, only)}
        told = []
        for number, score in sorted(scores.items()):
            query = self._queries[number]
            threshold = query.least_score(self._default_threshold)
            told.append(
                Match(
                    query_id=query.id,
                    query_rev=query.revision,
                    text=query.text,
                    score=round(min(1.0, score), 6),
                    threshold=threshold,
                )
            )
        return told or None
