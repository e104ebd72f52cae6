"""Analysis settings of a stream, made from its section of the configuration."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

from detectors import Detector
from streamer.analysis.queries import Query, query_slug
from streamer.analysis.stream_analysis import CountPlan, Embed
from streamer.config import (
    Config,
    DistanceRuleConfig,
    LeftRuleConfig,
    RuleConfig,
    SpeedRuleConfig,
    StreamConfig,
    WithoutRuleConfig,
)
from streamer.errors import ConfigError
from streamer.rules.conditions import ClosePair, Condition, ConditionPlan, FastTrack, LeftBehind, MissingThing
from streamer.rules.geometry import Region
from streamer.rules.ground import GroundPlane
from streamer.rules.places import IgnoredRegion, Line, Zone
from streamer.sources.sampling import FrameSampling
from trackers import Tracker, create_tracker

CHANGEABLE = frozenset({"queries", "zones", "lines", "counts", "ignore", "rules", "calibration", "sample", "paused"})
"""Keys of a section that change while the source stays open; any other key opens the source again."""


def make_queries(section: StreamConfig, config: Config) -> list[Query]:
    """The queries of a stream: its own or those for all."""
    chosen = config.queries if section.queries is None else section.queries
    return [
        Query(
            query.text, query.id or query_slug(query.text), query.threshold, tuple(query.unless), is_paused=query.paused
        )
        for query in chosen
    ]


def default_threshold(config: Config, detector: Detector) -> float:
    """The score from which detections of queries without a threshold of their own count."""
    threshold = config.detector.threshold
    return detector.threshold if threshold is None else threshold


def make_places(section: StreamConfig) -> tuple[list[Zone], list[Line], list[IgnoredRegion]]:
    """The zones, lines and masks of a stream, in the order of the configuration. Raises `ConfigError`."""
    zones = [
        Zone(zone.id, zone.polygon, zone.dwell_s, zone.settle_s, holes=zone.holes, anchor=zone.anchor)
        for zone in section.zones
    ]
    lines = [Line(line.id, line.points, line.settle_s, anchor=line.anchor) for line in section.lines]
    return (
        zones,
        lines,
        [IgnoredRegion(mask.id, mask.polygon, mask.holes, anchor=mask.anchor) for mask in section.ignore],
    )


def condition_plans(section: StreamConfig) -> list[ConditionPlan]:
    """The rules of a stream that are conditions on its tracks. Raises `ConfigError`."""
    plane = None if section.calibration is None else section.calibration.plane()
    return [
        ConditionPlan(
            rule.id,
            rule.for_s,
            rule.zone,
            (rule.model_dump_json(), section.calibration and section.calibration.model_dump_json()),
            partial(_make_condition, rule, plane),
        )
        for rule in section.rules
    ]


def _make_condition(rule: RuleConfig, plane: GroundPlane | None, region: Region | None) -> Condition:
    match rule:
        case SpeedRuleConfig():
            assert plane is not None, "the configuration checks it"
            return FastTrack(plane, rule.query, rule.above_kmh, region)
        case DistanceRuleConfig():
            assert plane is not None, "the configuration checks it"
            return ClosePair(plane, rule.query, rule.other or rule.query, rule.below_m, region)
        case WithoutRuleConfig():
            return MissingThing(rule.query, rule.without, region)
        case LeftRuleConfig():
            return LeftBehind(rule.query, rule.thing, plane, rule.away_m, rule.away, region)


def make_tracker(config: Config) -> Tracker:
    """A new tracker for one stream. Raises `TrackerError`."""
    section = config.tracker
    options: dict[str, object] = {} if section.reid is None else {"appearance": True}
    if config.stationary_s is not None:
        options["stationary_s"] = config.stationary_s
    if section.reid_s is not None:
        options["reid_s"] = section.reid_s
    return create_tracker(section.name, **options)


def make_embedder(config: Config) -> Embed | None:
    """The user's function for embeddings, None where there is none. Raises `ConfigError`."""
    reid = config.tracker.reid
    if reid is None or reid == "detector":
        return None
    module, _, name = reid.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # where a user's own module usually lies
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"tracker.reid {reid!r} cannot be imported ({error}): give MODULE:FUNCTION") from error
    if not callable(function):
        raise ConfigError(f"tracker.reid {reid!r} is {type(function).__name__}, not a function: give MODULE:FUNCTION")
    return cast("Embed", function)


def count_plans(section: StreamConfig) -> list[CountPlan]:
    """The counts of a stream."""
    return [CountPlan(count.window_s, count.of, count.query) for count in section.counts]


def make_sampling(section: StreamConfig) -> FrameSampling:
    """The choice of the frames that the detector sees."""
    return FrameSampling(section.sample.every, section.sample.fps)
