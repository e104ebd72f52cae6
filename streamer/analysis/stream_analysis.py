"""Analysis of one stream: from the detections of a frame to tracks, findings of the rules and events."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from sinks.event import Box, CoverageInfo, Detection, Event, EventType, OutageInfo, Producer, QueryInfo
from streamer.analysis.event_writer import EventTime, EventWriter, StreamIdentity
from streamer.analysis.frame_sizes import FrameSizes
from streamer.analysis.label_scores import for_tracker
from streamer.analysis.queries import Query, QueryBook, QueryChange, QuerySet
from streamer.rules.conditions import ConditionPlan, ConditionRule
from streamer.rules.matches import QueryMatches
from streamer.rules.places import Count, IgnoredRegion, Line, PlaceRules, Zone
from streamer.rules.rule import FrameObservation, Rule, RuleFinding
from streamer.rules.tracks import EndReason, TrackLives
from streamer.sources.frame_counter import FrameTally

if TYPE_CHECKING:
    import supervision as sv

    from streamer.analysis.camera_motion import Affine
    from streamer.enrichment.enricher import Enrichment
    from streamer.frame import Frame
    from streamer.media.media_writer import Snapshot
    from trackers import Tracker


Embed = Callable[["npt.NDArray[np.uint8]", "npt.NDArray[np.float32]"], "npt.NDArray[np.floating[Any]]"]
"""A BGR image and boxes (N, 4) in its pixels -> embeddings (N, D) of what is in the boxes."""


@dataclass(frozen=True, slots=True)
class CountPlan:
    """One count: of the zone or line `of`, or of the whole frame; `query` limits it to one query's id."""

    window_s: float
    of: str | None = None
    query: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PlannedCount:
    """A count with what it was made from."""

    plan: CountPlan
    place: Zone | Line | None
    query_text: str | None
    count: Count


@dataclass(frozen=True, slots=True, eq=False)
class PlannedCondition:
    """A condition with what it was made from."""

    plan: ConditionPlan
    zone: Zone | None
    rule: ConditionRule


@dataclass(frozen=True, slots=True, eq=False)
class RuleSet:
    """The zones, lines, counts, masks and conditions of a stream."""

    zones: tuple[Zone, ...] = ()
    lines: tuple[Line, ...] = ()
    counts: tuple[PlannedCount, ...] = ()
    masks: tuple[IgnoredRegion, ...] = ()
    conditions: tuple[PlannedCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class AnalysisChange:
    """Settings of a stream that change together between two frames. `rules` None leaves them as they are; `is_blind`
    where no query is left that is not paused."""

    default_threshold: float
    producer: Producer
    queries: Sequence[QueryChange] = ()
    rules: RuleSet | None = None
    is_blind: bool = False


class StreamAnalysis:
    """Tracker, rules and event writer of one stream. Not thread-safe; frames must come in their order."""

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
        masks: Sequence[IgnoredRegion] = (),
        conditions: Sequence[ConditionPlan] = (),
        embed: Embed | None = None,
    ) -> None:
        """`embed` gives the tracker the embeddings of detections; None where the detector does, or without them."""
        self.queries = queries
        self.tracks = TrackLives(identity.new_uid)
        self.matches = QueryMatches()
        self._tracker = tracker
        self._embed = embed
        self.tracked_ns = 0  # UTC, when the tracker had the latest frame
        self._sizes = FrameSizes()
        self.default_threshold = default_threshold
        self._stream = identity.stream
        self.run = identity.run
        self.planned_rules = RuleSet()
        planned = self._place_rules = self.plan_rules(zones, lines, counts, masks, conditions)
        self._places = PlaceRules(
            zones, lines, [each.count for each in planned.counts], [each.rule for each in planned.conditions]
        )
        self._rules = tuple(rules)
        self.publishes_detections = False  # an event with the detections of each analysed frame
        self.masked_detections = 0  # detections left out because a mask covers them
        self._known_queries: dict[int, Query] = {}
        self._writer = EventWriter(identity, self.tracks, self.matches, self._known_queries, default_threshold)
        self._threshold_cache: tuple[QuerySet, np.ndarray, np.ndarray] | None = None

    @property
    def zones(self) -> tuple[Zone, ...]:
        return self._place_rules.zones

    @property
    def lines(self) -> tuple[Line, ...]:
        return self._place_rules.lines

    def analyse(
        self, frame: Frame, found: sv.Detections, queries: QuerySet, moved: Affine | None = None
    ) -> tuple[sv.Detections, list[Event]]:
        """Tracks seen in one frame, from the detections that were made with `queries`, and the events of the frame.

        `moved` is the camera's motion since the last analysed frame, (2, 3), None for a still camera.
        The tracks' `class_id` is the number of a query, `data["label_scores"]` (N, K) the score for each query asked.
        """
        numbers, thresholds = self._query_arrays(queries)
        if self._place_rules.masks and len(found):
            found = self._without_masked(found, frame)
        named, scores = for_tracker(found, numbers, thresholds)
        if self._embed is not None and len(named):
            named.data["embedding"] = self._embed(frame.image, np.asarray(named.xyxy, np.float32))
        tracked = self._sizes.update(self._tracker, named, frame, moved)
        self.tracked_ns = time.time_ns()
        if len(tracked):
            tracked.confidence = scores[tracked.data["detection_index"]]
        seen = self._without_departed(FrameObservation.of(tracked, self._tracker, numbers, frame))
        findings = self.tracks.update(seen)
        for finding in (matched := self.matches.update(seen)):
            if finding.type is EventType.MATCH_BEGIN and finding.track in self.tracks.records:
                self.tracks.records[finding.track].is_asked_for = True
        findings += matched
        matching = replace(seen, matched=self.matches.matched)
        findings += self._places.update(matching)
        for rule in self._rules:
            findings += rule.update(matching)
        if self.publishes_detections:
            findings = [*findings, RuleFinding(EventType.DETECTIONS, None, {"detections": self._describe_seen(seen)})]
        return tracked, self._writer.write(findings, EventTime.of(frame)) if findings else []

    def _describe_seen(self, seen: FrameObservation) -> list[Detection]:
        """The tracks seen in a frame, each with the query that it answers best."""
        described = []
        inside = {zone.name: set(zone.occupants) for zone in self._place_rules.zones}
        for row, number in enumerate(seen.ids.tolist()):
            record = self.tracks.find(number)
            scores = seen.label_scores[row]
            query = self._known_queries.get(int(seen.labels[int(np.argmax(scores))])) if scores.size else None
            x1, y1, x2, y2 = seen.boxes[row].tolist()
            described.append(
                Detection(
                    box=Box(x1=x1, y1=y1, x2=x2, y2=y2),
                    score=round(float(seen.scores[row]), 4),
                    query="" if query is None else query.text,
                    query_id=None if query is None else query.id,
                    query_rev=None if query is None else query.revision,
                    track=number,
                    uid=None if record is None else record.uid,
                    zones=[name for name, tracks in inside.items() if number in tracks] or None,
                )
            )
        return described

    def place_counts(self) -> dict[str, dict[str, int]]:
        """Crossings of each line by direction, and tracks that have entered and left each zone, since the start."""
        lines = {line.name: {way: line.counts[way] for way in ("in", "out")} for line in self.lines}
        return lines | {zone.name: {way: zone.counts[way] for way in ("entered", "left")} for zone in self.zones}

    def _without_masked(self, found: sv.Detections, frame: Frame) -> sv.Detections:
        size = np.array((frame.width, frame.height, frame.width, frame.height), np.float64)
        boxes = np.clip(np.asarray(found.xyxy, np.float64) / size, 0.0, 1.0)
        masked = np.zeros(len(found), np.bool_)
        for mask in self._place_rules.masks:
            masked |= mask.covers(boxes)
        self.masked_detections += int(np.count_nonzero(masked))
        return cast("sv.Detections", found[~masked])

    def _without_departed(self, seen: FrameObservation) -> FrameObservation:
        """The observation without tracks that the tracker remembers although they will not be seen again."""
        departed = np.array(self.tracks.departed(seen), np.int64)
        if not departed.size:
            return seen
        self._tracker.forget(departed)
        return replace(seen, alive=np.setdiff1d(seen.alive, departed))

    def predict(self, frame: Frame) -> sv.Detections:
        """Predicted tracks of a frame that is not analysed. Rules do not read predictions."""
        return self._sizes.from_tracker(self._tracker.predict(frame.time_s), frame)

    def close(self, moment: EventTime, reason: EndReason) -> list[Event]:
        """Ends everything that is open: the stream ended or is shut down."""
        findings = self._places.close(moment.time_ns) + self.matches.close(moment.time_ns)
        for rule in self._rules:
            findings += rule.close(moment.time_ns)
        findings += self.tracks.close(moment.time_ns, reason=reason)
        self._tracker.reset()
        return self._writer.write(findings, moment)

    def outage(self, moment: EventTime, cause: str, since_ns: int) -> list[Event]:
        """The stream is interrupted: tracks end with `stream_down`, but for stationary ones, which are remembered."""
        self._tracker.suspend()
        keep = frozenset(self._tracker.alive_ids.tolist())
        findings = self._places.close(moment.time_ns, keep) + self.matches.close(moment.time_ns, keep)
        findings += self.tracks.close(moment.time_ns, keep, "stream_down")
        return self._writer.write(findings, moment) + self.offline(moment, cause, since_ns)

    def offline(self, moment: EventTime, cause: str, since_ns: int) -> list[Event]:
        """The stream delivers no frames since `since_ns` (UTC nanoseconds)."""
        data = {"outage": OutageInfo(cause=cause, since_ns=since_ns)}
        return self._writer.write([RuleFinding(EventType.STREAM_OFFLINE, None, data)], moment)

    def online(self, moment: EventTime, cause: str = "", since_ns: int | None = None) -> list[Event]:
        """The stream delivers frames, for the first time or again after the outage that began at `since_ns`."""
        outage = None if since_ns is None else OutageInfo(cause=cause, since_ns=since_ns, until_ns=moment.time_ns)
        data = {} if outage is None else {"outage": outage}
        return self._writer.write([RuleFinding(EventType.STREAM_ONLINE, None, data)], moment)

    def enriched(self, result: Enrichment) -> list[Event]:
        """Event for a description or a mask that arrived later than its subject."""
        number = result.subject.track_number
        record = None if number is None else self.tracks.find(number)
        known = number if record is not None and record.uid == result.subject.track_uid else None
        data = {"description": result.description, "cause": result.cause}
        return self._writer.write([RuleFinding(EventType.ENRICH, known, data)], result.moment)

    def pictured(self, snapshot: Snapshot) -> list[Event]:
        """Event for pictures or a clip that were written later than the event that they belong to, perhaps after the
        end of the track."""
        record = self.tracks.find(snapshot.track_number)
        known = snapshot.track_number if record is not None and record.uid == snapshot.track_uid else None
        data = {"media": list(snapshot.media), "cause": snapshot.cause}
        finding = RuleFinding(EventType.MEDIA, known, data, subject=snapshot.track_uid)
        return self._writer.write([finding], snapshot.moment)

    def coverage(self, moment: EventTime, info: CoverageInfo) -> list[Event]:
        return self._writer.write([RuleFinding(EventType.COVERAGE, None, {"coverage": info})], moment)

    @property
    def events_written(self) -> int:
        """The sequence number of the latest event of this run."""
        return self._writer.written

    def continue_after(self, written: int) -> None:
        """Number the next event after `written` events that this run already has of the stream."""
        self._writer.continue_after(written)

    def plan_rules(
        self,
        zones: Sequence[Zone],
        lines: Sequence[Line],
        counts: Sequence[CountPlan],
        masks: Sequence[IgnoredRegion],
        conditions: Sequence[ConditionPlan],
    ) -> RuleSet:
        """Rules for a later `change`. What stays as it is of the rules planned last keeps its state."""
        present = {(rule.plan, id(rule.place), rule.query_text): rule for rule in self.planned_rules.counts}
        planned = []
        for plan in counts:
            made = self._plan_count(plan, zones, lines)
            planned.append(present.get((made.plan, id(made.place), made.query_text), made))
        held = {(rule.plan, id(rule.zone)): rule for rule in self.planned_rules.conditions}
        by_name = {zone.name: zone for zone in zones}
        conditioned = []
        for condition in conditions:
            zone = None if condition.zone is None else by_name[condition.zone]
            conditioned.append(held.get((condition, id(zone))) or self._plan_condition(condition, zone))
        self.planned_rules = RuleSet(tuple(zones), tuple(lines), tuple(planned), tuple(masks), tuple(conditioned))
        return self.planned_rules

    def change(self, change: AnalysisChange, moment: EventTime, ended: EventTime) -> list[Event]:
        """Changes settings between two frames; returns the events of the change.

        Whatever the change ends (matches of a removed query, visits to a removed zone) ends at `ended`, the change
        itself is reported at `moment`.
        """
        events = []
        if change.rules is not None:
            rules = self._place_rules = change.rules
            counts = [planned.count for planned in rules.counts]
            conditions = [planned.rule for planned in rules.conditions]
            gone = self._places.replace(rules.zones, rules.lines, counts, conditions, ended.time_ns)
            events += self._writer.write(gone, ended)
        withdrawn = [changed.query.number for changed in change.queries if changed.change != "added"]
        if change.default_threshold != self.default_threshold:
            withdrawn += [query.number for query in self._known_queries.values() if query.threshold is None]
        for number in withdrawn:
            events += self._writer.write(self._withdraw_query(number), ended)
        if change.is_blind:
            events += self.close(ended, "query_removed")
        self.default_threshold = change.default_threshold
        self._writer.change_settings(change.default_threshold, change.producer)
        self._threshold_cache = None
        return events + self._writer.write([self._query_finding(changed) for changed in change.queries], moment)

    def _withdraw_query(self, number: int) -> list[RuleFinding]:
        """The ends of the matches of a query that no longer holds as it was."""
        withdrawn = self.matches.withdraw(number)
        for finding in withdrawn:
            if finding.track in self.tracks.records and not self.matches.scores(finding.track):
                self.tracks.records[finding.track].is_asked_for = False
        return withdrawn

    def _query_finding(self, change: QueryChange) -> RuleFinding:
        query = change.query
        threshold = query.least_score(self.default_threshold)
        info = QueryInfo(id=query.id, rev=query.revision, text=query.text, threshold=threshold, change=change.change)
        return RuleFinding(EventType.QUERY, None, {"query": info})

    def _query_arrays(self, queries: QuerySet) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and thresholds of the queries, (K,) each; cached while the set stays the same."""
        cached = self._threshold_cache
        if cached is None or cached[0] is not queries:
            self._known_queries.update({query.number: query for query in queries})
            numbers = np.array([query.number for query in queries], np.int64)
            thresholds = np.array([query.least_score(self.default_threshold) for query in queries])
            self.matches.thresholds = dict(zip(numbers.tolist(), thresholds.tolist(), strict=True))
            by_text = {query.text: query.number for query in queries}
            self.matches.denied_by = {
                query.number: tuple(by_text[text] for text in query.unless) for query in queries if query.unless
            }
            self.matches.denials = frozenset(query.number for query in queries if query.is_denial)
            cached = self._threshold_cache = (queries, numbers, thresholds)
        return cached[1], cached[2]

    def _plan_condition(self, plan: ConditionPlan, zone: Zone | None) -> PlannedCondition:
        condition = plan.make(None if zone is None else zone.region)
        return PlannedCondition(plan, zone, ConditionRule(plan.name, condition, plan.for_s, self._number_of))

    def _number_of(self, query_id: str) -> int | None:
        query = self.queries.find(query_id)
        return None if query is None else query.number

    def _plan_count(self, plan: CountPlan, zones: Sequence[Zone], lines: Sequence[Line]) -> PlannedCount:
        places: dict[str, Zone | Line] = {zone.name: zone for zone in zones}
        places.update({line.name: line for line in lines})
        place = None if plan.of is None else places[plan.of]
        query = None if plan.query is None else self.queries.find(plan.query)
        number, text = (None, None) if query is None else (query.number, query.text)
        count = Count(plan.of or self._stream, plan.window_s, place, number, text)
        return PlannedCount(plan, place, text, count)


class CoverageMeter:
    """Turns a stream's frame counts into `coverage` periods of `every_s` seconds."""

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
        """Frames received, analysed and dropped since the last call; all arguments count from the start."""
        before, from_ns = self._before, self._from_ns if self._from_ns is not None else time_ns
        analysed = tally.analysed - before.analysed
        dropped = _counter_increases(tally.dropped, before.dropped)
        events_lost = _counter_increases(events_dropped, self._events_dropped)
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


def _counter_increases(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Increases of counters, without those that have not risen."""
    return {key: count - before.get(key, 0) for key, count in sorted(now.items()) if count > before.get(key, 0)}


def config_hash(*parts: object) -> str:
    """Twelve hex digits that change with the settings."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
