"""Plans of changes: the parts to open, change and close on the way from one configuration to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sinks.event import Producer
from sinks.sink import Sink
from streamer.analysis.queries import Query, QueryBook, QuerySet
from streamer.config import Config, StreamConfig
from streamer.errors import ConfigError
from streamer.pipeline.sections import CHANGEABLE, make_places, make_queries, make_sampling
from streamer.pipeline.stream import Recorder, StateRelay, Stream
from streamer.rules.places import IgnoredRegion, Line, Zone
from streamer.sources.source import Source

_VIDEO = "video:"
_CHANGEABLE_KEYS = ("streams", "queries", "sinks", "batch", "detections", "detector")


class PipelineParts(Protocol):
    """Makes the parts that a configuration names; what it makes has no effect before the pipeline uses it."""

    def producer(self, config: Config) -> Producer: ...

    async def open_streams(
        self, config: Config, wanted: Sequence[StreamConfig], taken: Collection[str] = ()
    ) -> list[Stream]:
        """May ask servers what they send, without blocking the event loop."""
        ...

    async def reopen_source(self, section: StreamConfig, name: str, relay: StateRelay) -> Source:
        """As `open_streams`."""
        ...

    def open_sinks(self, addresses: Iterable[str]) -> dict[str, Sink]: ...

    def sink_name(self, address: str) -> str: ...

    def publishes_detections(self, config: Config) -> bool: ...

    def make_videos(self, addresses: Iterable[str], stream: Stream, config: Config) -> dict[str, Recorder]: ...


@dataclass(eq=False, slots=True)
class StreamPlan:
    """The changes of a stream that stays: its new section with the parts made for it. `source` is the new one of a
    camera that is resumed."""

    stream: Stream
    section: StreamConfig
    queries: Sequence[Query]
    zones: Sequence[Zone]
    lines: Sequence[Line]
    masks: Sequence[IgnoredRegion]
    changes_rules: bool
    source: Source | None = None
    relay: StateRelay = field(default_factory=StateRelay)
    videos: Mapping[str, Recorder] = field(default_factory=dict)

    @property
    def is_paused_now(self) -> bool:
        return self.section.paused and not self.stream.is_paused

    @property
    def is_resumed_now(self) -> bool:
        return self.stream.is_paused and not self.section.paused


@dataclass(eq=False, slots=True)
class ChangePlan:
    """All changes that lead from the present configuration to `config`; the new parts are open, nothing has changed.

    `exchanged_sinks` maps addresses to those of sinks at the same place with other options: a file has one writer, so
    the old one has to be closed before the new one opens.
    """

    config: Config
    producer: Producer
    publishes_detections: bool = False
    threshold: float | None = None
    kept: list[StreamPlan] = field(default_factory=list)
    added: list[Stream] = field(default_factory=list)
    removed: list[Stream] = field(default_factory=list)
    sinks: dict[str, Sink] = field(default_factory=dict)
    removed_sinks: list[str] = field(default_factory=list)
    exchanged_sinks: dict[str, str] = field(default_factory=dict)
    removed_videos: list[str] = field(default_factory=list)

    @property
    def query_sets(self) -> list[QuerySet]:
        """The sets of words that the detector has to know."""
        kept = [QueryBook(plan.queries).at() for plan in self.kept]
        return kept + [stream.analysis.queries.at() for stream in self.added]

    async def discard(self) -> None:
        """Close the parts that were opened for a change that is refused."""
        for stream in self.added:
            await stream.source.aclose()
            for recorder in stream.recorders.values():
                await recorder.aclose()
        for plan in self.kept:
            if plan.source is not None:
                await plan.source.aclose()
            for video in plan.videos.values():
                await video.aclose()
        for sink in self.sinks.values():
            await sink.aclose()


async def plan_change(plan: ChangePlan, old: Config, streams: Iterable[Stream], parts: PipelineParts) -> None:
    """Fill in the plan: opens the new parts. Raises what they raise; the plan then holds those to discard."""
    new = plan.config
    _refuse_fixed(old, new)
    plan.threshold = _changed_threshold(old, new)
    old_keys, new_keys = _keys(old.streams), _keys(new.streams)
    added: list[StreamConfig] = []
    present = {key: [stream for stream in streams if stream.section is section] for key, section in old_keys.items()}
    for key, section in new_keys.items():
        before = old_keys.get(key)
        if before is None or _opening(before) != _opening(section) or _is_retried(present[key], section):
            added.append(section)
            continue
        plan.kept += [_plan_stream(stream, before, section, new) for stream in present.pop(key)]
    plan.removed = [stream for gone in present.values() for stream in gone]
    for kept in plan.kept:
        if kept.is_resumed_now and kept.stream.is_live:
            kept.source = await parts.reopen_source(kept.section, kept.stream.name, kept.relay)
            if kept.source is kept.stream.source:
                kept.source = None
                raise ConfigError(
                    f"{kept.stream.name} cannot be resumed: its source was given as an object, which opens only once"
                )
    plan.added = await parts.open_streams(new, added, {kept.stream.name for kept in plan.kept})
    fresh = [address for address in new.sinks if address not in old.sinks]
    for kept in plan.kept:
        kept.videos = parts.make_videos(fresh, kept.stream, new)
    _plan_sinks(plan, old, parts)
    plan.publishes_detections = parts.publishes_detections(new)


def _plan_sinks(plan: ChangePlan, old: Config, parts: PipelineParts) -> None:
    """Open the new sinks, but for those that write where one that goes still writes: they are exchanged later."""
    names = [parts.sink_name(address) for address in plan.config.sinks if not address.startswith(_VIDEO)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"sink {name} is given twice: keep one of them")
    gone = [address for address in old.sinks if address not in plan.config.sinks]
    plan.removed_videos = [address for address in gone if address.startswith(_VIDEO)]
    for address in [address for address in plan.config.sinks if address not in old.sinks]:
        if address.startswith(_VIDEO):
            continue
        former = next((one for one in gone if one.partition("?")[0] == address.partition("?")[0]), None)
        if former is not None:
            plan.exchanged_sinks[former] = address
        else:
            plan.sinks.update(parts.open_sinks([address]))
    plan.removed_sinks = [
        parts.sink_name(address)
        for address in gone
        if not address.startswith(_VIDEO) and address not in plan.exchanged_sinks
    ]


def _is_retried(streams: Iterable[Stream], section: StreamConfig) -> bool:
    """Whether a stream that has ended is resumed: it begins from the start."""
    return not section.paused and any(stream.is_paused and stream.is_closed for stream in streams)


def _plan_stream(stream: Stream, before: StreamConfig, section: StreamConfig, config: Config) -> StreamPlan:
    """The parts for the new section of a stream; zones and lines that stay as they are remain the same objects."""
    queries = make_queries(section, config)
    QueryBook(queries)
    make_sampling(section)
    zones, lines, masks = make_places(section)
    present = stream.analysis.planned_rules
    old_zones = {zone.name: zone for zone in present.zones}
    old_lines = {line.name: line for line in present.lines}
    same_zones = {zone.id for zone in section.zones if zone in before.zones}
    same_lines = {line.id for line in section.lines if line in before.lines}
    zones = [old_zones[zone.name] if zone.name in same_zones else zone for zone in zones]
    lines = [old_lines[line.name] if line.name in same_lines else line for line in lines]
    changes_rules = _rules_of(section) != _rules_of(before)
    return StreamPlan(stream, section, queries, zones, lines, masks, changes_rules)


def _rules_of(section: StreamConfig) -> tuple[object, ...]:
    return section.zones, section.lines, section.counts, section.ignore, section.rules, section.calibration


def place_sentences(before: StreamConfig, after: StreamConfig) -> list[str]:
    """One sentence for each zone, line, count and rule that was added, changed or removed."""
    sentences = []
    for word, old_places, new_places in (("zone", before.zones, after.zones), ("line", before.lines, after.lines)):
        old, new = ({place.id: place for place in places} for places in (old_places, new_places))
        sentences += [f"{word} {name!r} added" for name in new if name not in old]
        sentences += [f"{word} {name!r} changed" for name in new if name in old and old[name] != new[name]]
        sentences += [f"{word} {name!r} removed" for name in old if name not in new]
    if before.counts != after.counts:
        sentences.append("counts changed")
    if before.calibration != after.calibration:
        sentences.append("calibration changed")
    old_rules, new_rules = ({rule.id: rule for rule in rules} for rules in (before.rules, after.rules))
    sentences += [f"rule {name!r} added" for name in new_rules if name not in old_rules]
    sentences += [f"rule {name!r} changed" for name, rule in new_rules.items() if old_rules.get(name, rule) != rule]
    sentences += [f"rule {name!r} removed" for name in old_rules if name not in new_rules]
    if before.ignore != after.ignore:
        sentences.append("regions to ignore changed")
    return sentences


def _keys(sections: Iterable[StreamConfig]) -> dict[tuple[str, int], StreamConfig]:
    """Sections by what they are recognised by: their name, else their address, and a number where that is not one of
    a kind."""
    seen: Counter[str] = Counter()
    keys = {}
    for section in sections:
        key = section.name or section.source
        keys[key, seen[key]] = section
        seen[key] += 1
    return keys


def _opening(section: StreamConfig) -> dict[str, object]:
    """The part of a section that the source is opened with."""
    return section.model_dump(exclude=set(CHANGEABLE))


def _refuse_fixed(old: Config, new: Config) -> None:
    """Raise `ConfigError` for a change of settings that need a restart."""
    for key in type(old).model_fields:
        if key not in _CHANGEABLE_KEYS and getattr(old, key) != getattr(new, key):
            raise ConfigError(f"{key} cannot change while running: restore it, or restart to use the new value")
    before, after = (config.detector.model_dump(exclude={"threshold"}) for config in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise ConfigError(
                f"detector.{key} cannot change from {before.get(key)!r} to {after.get(key)!r} while running: "
                "restore it, or restart to use the new value"
            )


def _changed_threshold(old: Config, new: Config) -> float | None:
    """The new default threshold, None where it stays."""
    if old.detector.threshold == new.detector.threshold:
        return None
    if new.detector.threshold is None:
        raise ConfigError(
            "detector.threshold cannot be removed while running: give the number that shall hold, or restart"
        )
    return new.detector.threshold
