"""What rules noticed becomes events: numbered, timed and told with the state of the track it happened to."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

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
from streamer.frame import Frame, FrameClock
from streamer.prompts import QueryBook
from streamer.rules.rule import Happening
from streamer.rules.tracks import Matches, Tracks

_LAST = (EventType.ZONE_EXIT, EventType.MATCH_END, EventType.TRACK_END)
_ORDER = {EventType.TRACK_BEGIN: 0, EventType.MATCH_BEGIN: 1, **{kind: 3 + rank for rank, kind in enumerate(_LAST)}}


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happened: a capture time, how far it can be trusted, and the frame, if there was one."""

    time_ns: int
    clock: FrameClock
    frame: FrameInfo | None = None

    @classmethod
    def of(cls, frame: Frame) -> Moment:
        return cls(frame.time_ns, frame.clock, FrameInfo(index=frame.index, width=frame.width, height=frame.height))


class Journal:
    """Writes the events of one stream. `source` is the CloudEvents source; sequences begin at 1 in every run."""

    def __init__(
        self,
        stream: str,
        source: str,
        run: int,
        producer: Producer,
        tracks: Tracks,
        matches: Matches,
        queries: QueryBook,
        default_threshold: float,
    ) -> None:
        self._stream = stream
        self._source = source
        self._run = run
        self._producer = producer
        self._tracks = tracks
        self._matches = matches
        self._queries = queries
        self._default_threshold = default_threshold
        self._sequence = 0

    def write(self, happenings: Iterable[Happening], moment: Moment) -> list[Event]:
        """The events in order: within a frame things begin first, then happen, then end."""
        ordered = sorted(happenings, key=lambda happening: _ORDER.get(happening.type, 2))
        return [self._event(happening, moment) for happening in ordered]

    def _event(self, happening: Happening, moment: Moment) -> Event:
        self._sequence += 1
        fields = dict(happening.data)
        subject = self._stream
        if happening.track is not None:
            record = self._tracks.find(happening.track)
            assert record is not None, f"rule {happening.type} speaks of track {happening.track}, which never began"
            subject = record.uid
            fields["track"] = record.describe()
            fields["matches"] = self._told_matches(happening.track, fields.pop("query_number", None))
        data = EventData.model_construct(
            stream=self._stream,
            run=self._run,
            clock=self._clock(moment),
            frame=moment.frame,
            producer=self._producer,
            **fields,
        )
        return Event.model_construct(
            id=event_id(self._run, self._stream, self._sequence),
            source=self._source,
            type=happening.type,
            subject=subject,
            time=rfc3339(moment.time_ns),
            partitionkey=self._stream,
            sequence=format_sequence(self._sequence),
            data=data,
        )

    def _clock(self, moment: Moment) -> Clock:
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
            query = self._queries.known(number)
            threshold = self._default_threshold if query.threshold is None else query.threshold
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
