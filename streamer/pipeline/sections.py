"""Analysis settings of a stream, made from its section of the configuration."""

from __future__ import annotations

from streamer.analysis.queries import Query, slug
from streamer.analysis.stream_analysis import CountPlan
from streamer.config import Config, StreamConfig
from streamer.rules.places import Line, Zone
from streamer.sources.sampling import FrameSampling

CHANGEABLE = frozenset({"queries", "zones", "lines", "counts", "sample", "paused"})
"""Keys of a section that change while the source stays open; any other key opens the source again."""


def make_queries(section: StreamConfig, config: Config) -> list[Query]:
    """The queries of a stream: its own or those for all."""
    chosen = config.queries if section.queries is None else section.queries
    return [
        Query(query.text, query.id or slug(query.text), query.threshold, tuple(query.unless), is_paused=query.paused)
        for query in chosen
    ]


def make_places(section: StreamConfig) -> tuple[list[Zone], list[Line]]:
    """The zones and lines of a stream, in the order of the configuration. Raises `ConfigError`."""
    zones = [Zone(zone.id, zone.polygon, zone.dwell_s) for zone in section.zones]
    return zones, [Line(line.id, line.points) for line in section.lines]


def count_plans(section: StreamConfig) -> list[CountPlan]:
    """The counts of a stream."""
    return [CountPlan(count.window_s, count.of, count.query) for count in section.counts]


def make_sampling(section: StreamConfig) -> FrameSampling:
    """The choice of the frames that the detector sees."""
    return FrameSampling(section.sample.every, section.sample.fps)
