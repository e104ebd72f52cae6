"""Work of `groundstream replay --rules`: rules of a configuration on recorded events, as if they had been there.

The recorded per-frame detections (`detections: true`) give the boxes, the other events what a track matches, its
identity and when it ends. The rules are the same objects as in a pipeline, so the findings are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from sinks.event import Event, EventType, RuleInfo, TrackInfo, rfc3339
from streamer.analysis.queries import query_slug
from streamer.config import Config, StreamConfig
from streamer.errors import ConfigError
from streamer.pipeline.sections import condition_plans, make_places
from streamer.rules.conditions import ConditionRule
from streamer.rules.rule import FrameObservation, RuleFinding

_ENDED_KEPT = 10_000
"""Tracks that have ended whose identity is kept for the ends of their rules."""


@dataclass(slots=True)
class _TrackMemory:
    """What the events said of the tracks of one run of a stream."""

    infos: dict[int, TrackInfo] = field(default_factory=dict)
    ended: dict[int, TrackInfo] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    matched: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    merges: list[tuple[int, int]] = field(default_factory=list)

    def note(self, event: Event, number_of: Callable[[str], int]) -> None:
        """Takes an event that is no frame into account."""
        track = event.data.track
        if track is None:
            return
        self.infos[track.number] = track
        self.numbers[track.uid] = track.number
        queries = {number_of(match.query_id) for match in event.data.matches or ()}
        if event.type in (EventType.MATCH_BEGIN, EventType.TRACK_UPDATE):
            self.matched[track.number] |= queries
        elif event.type is EventType.MATCH_END:
            self.matched[track.number] -= queries
        elif event.type is EventType.TRACK_MERGE and track.merged_into in self.numbers:
            self.merges.append((track.number, self.numbers[track.merged_into]))
        if event.type in (EventType.TRACK_END, EventType.TRACK_MERGE):
            self.ended[track.number] = self.infos.pop(track.number)
            if len(self.ended) > _ENDED_KEPT:
                del self.ended[next(iter(self.ended))]
            self.matched.pop(track.number, None)


class RuleReplay:
    """Rules of the streams of a configuration, fed with events in their order.

    Events of streams that the configuration does not have are ignored. `frames` counts the frames that were read.
    """

    def __init__(self, config: Config) -> None:
        """Raises `ConfigError` for a configuration without rules."""
        self.frames = 0
        self._sections = {section.name or section.source: section for section in config.streams}
        if not any(section.rules for section in config.streams):
            raise ConfigError("the configuration has no rules: give `rules` to one of its streams")
        self._numbers: dict[str, int] = {}
        self._rules: dict[tuple[str, int], list[ConditionRule]] = {}
        self._memory: dict[tuple[str, int], _TrackMemory] = defaultdict(_TrackMemory)
        self._last: dict[tuple[str, int], Event] = {}

    def take(self, event: Event) -> Iterator[Event]:
        """The events that the rules make of one more event."""
        section = self._sections.get(event.data.stream)
        if section is None or not section.rules:
            return
        key = (event.data.stream, event.data.run)
        memory = self._memory[key]
        if event.type is not EventType.DETECTIONS:
            memory.note(event, self._number_of)
            return
        self.frames += 1
        self._last[key] = event
        if key not in self._rules:
            self._rules[key] = self._make_rules(section)
        seen = self._observe(event, memory)
        memory.merges = []
        findings = [finding for rule in self._rules[key] for finding in rule.update(seen)]
        yield from self._write(event, memory, findings)

    def finish(self) -> Iterator[Event]:
        """The ends of what still holds after the last event."""
        for key, rules in self._rules.items():
            last = self._last[key]
            findings = [found for rule in rules for found in rule.close(last.data.clock.captured_ns)]
            yield from self._write(last, self._memory[key], findings, part="close")

    def _make_rules(self, section: StreamConfig) -> list[ConditionRule]:
        zones = {zone.name: zone for zone in make_places(section)[0]}
        return [
            ConditionRule(
                plan.name, plan.make(zones[plan.zone].region if plan.zone else None), plan.for_s, self._number_of
            )
            for plan in condition_plans(section)
        ]

    def _number_of(self, query_id: str) -> int:
        return self._numbers.setdefault(query_id, len(self._numbers))

    def _observe(self, event: Event, memory: _TrackMemory) -> FrameObservation:
        tracked = [one for one in event.data.detections or () if one.track is not None]
        found = sorted(tracked, key=lambda one: one.track or 0)
        named = [self._number_of(one.query_id or query_slug(one.query)) for one in found]
        labels = np.arange(len(self._numbers))
        scores = np.array([one.score for one in found])
        label_scores = np.zeros((len(found), len(labels)))
        label_scores[np.arange(len(found)), named] = scores
        ids = np.array([one.track for one in found], np.int64)
        boxes = np.array([(one.box.x1, one.box.y1, one.box.x2, one.box.y2) for one in found]).reshape(-1, 4)
        alive = np.array(sorted({*memory.infos, *ids.tolist()}), np.int64)
        still = np.zeros(len(found), np.bool_)
        return FrameObservation(
            event.data.clock.captured_ns,
            ids,
            boxes,
            scores,
            labels,
            label_scores,
            still,
            alive,
            memory.merges,
            matched=memory.matched,
            frame_index=event.data.frame.index if event.data.frame else -1,
        )

    def _write(
        self, frame: Event, memory: _TrackMemory, findings: list[RuleFinding], part: str = "rule"
    ) -> Iterator[Event]:
        """Events of the findings of a frame; their ids follow from its own, so that they repeat."""
        for place, finding in enumerate(findings):
            rule: RuleInfo = finding.data["rule"]
            time_ns = finding.time_ns or frame.data.clock.captured_ns
            number = finding.track or 0
            track = memory.infos.get(number) or memory.ended.get(number)
            data = frame.data.model_copy(
                update={
                    "detections": None,
                    "rule": rule,
                    "track": track,
                    "clock": frame.data.clock.model_copy(update={"captured_ns": time_ns}),
                }
            )
            yield frame.model_copy(
                update={
                    "id": f"{frame.id}.{part}.{place}",
                    "type": EventType.RULE,
                    "subject": frame.data.stream if track is None else track.uid,
                    "time": rfc3339(time_ns),
                    "data": data,
                }
            )
