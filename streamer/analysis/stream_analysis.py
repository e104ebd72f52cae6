"""One stream's way from detections to events: tracker, rules and journal, plain functions of the frames in order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sinks.event import CoverageInfo, Event, EventType, OutageInfo, QueryInfo
from streamer.analysis.event_writer import EventTime, EventWriter, StreamIdentity
from streamer.analysis.label_scores import for_tracker
from streamer.analysis.queries import QueryBook, QueryChange, QuerySet
from streamer.rules.matches import QueryMatches
from streamer.rules.places import Count, Line, PlaceRules, Zone
from streamer.rules.rule import FrameObservation, Rule, RuleFinding
from streamer.rules.tracks import EndReason, TrackLives
from streamer.sources.frame_counter import FrameTally

if TYPE_CHECKING:
    import supervision as sv

    from streamer.analysis.camera_motion import Affine
    from streamer.enrichment.enricher import Enrichment
    from streamer.frame import Frame
    from trackers import Tracker


@dataclass(frozen=True, slots=True)
class CountPlan:
    """What to count: the zone or line called `of`, or the whole picture; `query` limits it to one query's id."""

    window_s: float
    of: str | None = None
    query: str | None = None


class StreamAnalysis:
    """Tracker, rules and journal of one stream. Not thread-safe; call it in the order of the frames."""

    def __init__(
        self,
        identity: StreamIdentity,
        tracker: Tracker,
        queries: QueryBook,
        default_threshold: float,
        zones: Sequence[Zone] = (),
        lines: Sequence[Line] = (),
        counts: Sequence[CountPlan] = (),
        rules: Sequence[Rule] = (),
    ) -> None:
        self.queries = queries
        self.zones = tuple(zones)
        self.lines = tuple(lines)
        self.tracks = TrackLives(identity.new_uid)
        self.matches = QueryMatches()
        self._tracker = tracker
        self._default_threshold = default_threshold
        self._places = PlaceRules(zones, lines, [self._count(identity.stream, plan) for plan in counts])
        self._rules = tuple(rules)
        self._journal = EventWriter(identity, self.tracks, self.matches, queries, default_threshold)
        self._resumed: dict[int, int] = {}
        self._threshold_cache: tuple[QuerySet, np.ndarray, np.ndarray] | None = None

    def analyse(
        self, frame: Frame, found: sv.Detections, queries: QuerySet, moved: Affine | None = None
    ) -> tuple[sv.Detections, list[Event]]:
        """Detections of one frame, found with `queries` -> the tracks seen in it and what happened.

        `moved` is the camera's own motion since the last analysed frame, (2, 3), None for one that stands still.
        The tracks' `class_id` is the number of a query, `data["label_scores"]` (N, K) the score for each query asked.
        """
        numbers, thresholds = self._asked(queries)
        named, scores = for_tracker(found, numbers, thresholds)
        tracked = self._tracker.update(named, frame.time_s, moved)
        if len(tracked):
            tracked.confidence = scores[tracked.data["detection_index"]]
        seen = self._resume(FrameObservation.of(tracked, self._tracker, numbers, frame))
        if len(tracked):
            tracked.tracker_id = seen.ids
        happenings = self.tracks.update(seen)
        for happening in (matched := self.matches.update(seen)):
            if happening.type is EventType.MATCH_BEGIN and happening.track in self.tracks.records:
                self.tracks.records[happening.track].is_asked_for = True
        happenings += matched
        matching = replace(seen, matched=self.matches.matched)
        happenings += self._places.update(matching)
        for rule in self._rules:
            happenings += rule.update(matching)
        return tracked, self._journal.write(happenings, EventTime.of(frame)) if happenings else []

    def _resume(self, seen: FrameObservation) -> FrameObservation:
        """A thing that the tracker found again, and gave a new id, before its end was told goes on under its old one:
        one object, one begin."""
        merges = []
        for ended, into in seen.merges:
            number = self._resumed.get(ended, ended)
            if number in self.tracks.records and number not in seen.ids and into not in self.tracks.records:
                self._resumed[into] = number
            else:
                merges.append((number, into))
        if not self._resumed:
            return seen
        alive = set(seen.alive.tolist())
        self._resumed = {new: old for new, old in self._resumed.items() if new in alive}
        ids, alive_ids = (
            np.array([self._resumed.get(number, number) for number in numbers.tolist()], np.int64)
            for numbers in (seen.ids, seen.alive)
        )
        return replace(seen, ids=ids, alive=np.unique(alive_ids), merges=merges)

    def predict(self, frame: Frame) -> sv.Detections:
        """Where the tracks would be in a frame that no detector looks at. Rules do not see guesses."""
        tracked = self._tracker.predict(frame.time_s)
        if self._resumed and tracked.tracker_id is not None:
            ids = [self._resumed.get(number, number) for number in tracked.tracker_id.tolist()]
            tracked.tracker_id = np.array(ids, np.int64)
        return tracked

    def close(self, moment: EventTime, reason: EndReason) -> list[Event]:
        """End everything that is open: the stream ended, went dark or is shut down."""
        happenings = self._places.close(moment.time_ns) + self.matches.close(moment.time_ns)
        for rule in self._rules:
            happenings += rule.close(moment.time_ns)
        happenings += self.tracks.close(moment.time_ns, reason)
        self._tracker.reset()
        self._resumed.clear()
        return self._journal.write(happenings, moment)

    def outage(self, moment: EventTime, cause: str, since_ns: int) -> list[Event]:
        """The stream went dark: what was seen ends with `stream_down`."""
        return self.close(moment, "stream_down") + self.offline(moment, cause, since_ns)

    def offline(self, moment: EventTime, cause: str, since_ns: int) -> list[Event]:
        """The stream gives no frames since `since_ns` (UTC nanoseconds)."""
        data = {"outage": OutageInfo(cause=cause, since_ns=since_ns)}
        return self._journal.write([RuleFinding(EventType.STREAM_OFFLINE, None, data)], moment)

    def online(self, moment: EventTime, cause: str = "", since_ns: int | None = None) -> list[Event]:
        """The stream is seen, for the first time or again after the outage that began at `since_ns`."""
        outage = None if since_ns is None else OutageInfo(cause=cause, since_ns=since_ns, until_ns=moment.time_ns)
        data = {} if outage is None else {"outage": outage}
        return self._journal.write([RuleFinding(EventType.STREAM_ONLINE, None, data)], moment)

    def enriched(self, told: Enrichment) -> list[Event]:
        """A description or a mask that came later than what it explains."""
        number = told.subject.track_number
        known = number if number is not None and self.tracks.find(number) is not None else None
        data = {"description": told.description, "cause": told.cause}
        return self._journal.write([RuleFinding(EventType.ENRICH, known, data)], told.moment)

    def coverage(self, moment: EventTime, info: CoverageInfo) -> list[Event]:
        return self._journal.write([RuleFinding(EventType.COVERAGE, None, {"coverage": info})], moment)

    def changed(self, change: QueryChange, moment: EventTime) -> list[Event]:
        """A query was added, changed, paused, resumed or removed."""
        query = change.query
        withdrawn = self.matches.withdraw(query.number) if change.change != "added" else []
        for happening in withdrawn:
            if happening.track in self.tracks.records and not self.matches.scores(happening.track):
                self.tracks.records[happening.track].is_asked_for = False
        threshold = query.least_score(self._default_threshold)
        info = QueryInfo(id=query.id, rev=query.revision, text=query.text, threshold=threshold, change=change.change)
        told = RuleFinding(EventType.QUERY, None, {"query": info})
        return self._journal.write(withdrawn, moment) + self._journal.write([told], moment)

    def _asked(self, queries: QuerySet) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and thresholds of the queries, (K,) each; made anew only when the set is another one."""
        cached = self._threshold_cache
        if cached is None or cached[0] is not queries:
            numbers = np.array([query.number for query in queries], np.int64)
            thresholds = np.array([query.least_score(self._default_threshold) for query in queries])
            self.matches.thresholds = dict(zip(numbers.tolist(), thresholds.tolist(), strict=True))
            by_text = {query.text: query.number for query in queries}
            self.matches.denied_by = {
                query.number: tuple(by_text[text] for text in query.unless) for query in queries if query.unless
            }
            self.matches.denials = frozenset(query.number for query in queries if query.is_denial)
            cached = self._threshold_cache = (queries, numbers, thresholds)
        return cached[1], cached[2]

    def _count(self, stream: str, plan: CountPlan) -> Count:
        places: dict[str, Zone | Line] = {zone.name: zone for zone in self.zones}
        places.update({line.name: line for line in self.lines})
        place = places[plan.of] if plan.of is not None else None
        asked = {query.id: query for query in self.queries.at()}
        query = asked[plan.query] if plan.query is not None else None
        return Count(
            plan.of or stream,
            plan.window_s,
            place,
            None if query is None else query.number,
            None if query is None else query.text,
        )


class CoverageMeter:
    """Turns a stream's account into `coverage` stretches of `every_s` seconds."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_ns = int(every_s * 1e9)
        self._from_ns: int | None = None
        self._before = FrameTally(0, 0, {})
        self._events_dropped: dict[str, int] = {}

    def due(self, time_ns: int) -> bool:
        if self._from_ns is None:
            self._from_ns = time_ns
        return time_ns - self._from_ns >= self._every_ns

    def measure(self, tally: FrameTally, time_ns: int, events_dropped: Mapping[str, int]) -> CoverageInfo:
        """What was received, analysed and dropped since the last measure; all arguments count from the start."""
        before, from_ns = self._before, self._from_ns if self._from_ns is not None else time_ns
        analysed = tally.analysed - before.analysed
        dropped = _risen(tally.dropped, before.dropped)
        events_lost = _risen(events_dropped, self._events_dropped)
        self._before, self._from_ns, self._events_dropped = tally, time_ns, dict(events_dropped)
        harmed = events_lost or any(reason != "not_sampled" for reason in dropped)
        return CoverageInfo(
            from_ns=from_ns,
            to_ns=max(from_ns, time_ns),
            state="blind" if not analysed else "degraded" if harmed else "seeing",
            received=tally.received - before.received,
            analysed=analysed,
            dropped=dropped,
            pending=tally.pending,
            events_dropped=events_lost,
        )


def _risen(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """By how much counters have risen, without those that have not."""
    return {key: count - before.get(key, 0) for key, count in sorted(now.items()) if count > before.get(key, 0)}


def config_hash(*parts: object) -> str:
    """Twelve hex digits that change with the settings."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
