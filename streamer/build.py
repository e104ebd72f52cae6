"""From a configuration to a pipeline that is ready to run: the one place that connects all the parts."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from detectors import Detector
from groundstream import __version__
from sinks.address import redact
from sinks.event import Producer
from sinks.registry import open_sinks
from sinks.sink import Sink
from streamer.analysis.event_writer import StreamIdentity, close_crashed
from streamer.analysis.queries import Query, QueryBook, slug
from streamer.analysis.stream_analysis import CountPlan, StreamAnalysis, config_hash
from streamer.config import Config, EnrichConfig, StreamConfig
from streamer.detector_choice import load_detector
from streamer.enrichment.describers import Describer, GlammDescriber, MaskDescriber
from streamer.enrichment.enricher import CallBudget, Enricher, EnrichPlan
from streamer.errors import ConfigError
from streamer.pipeline.pipeline import NewEnricher, Pipeline
from streamer.pipeline.stream import Recorder, StateRelay, Stream
from streamer.recorders.video import AnnotatedVideo
from streamer.rules.places import Line, Mask, Zone
from streamer.rules.rule import Rule
from streamer.rules.track_ids import derived_run, derived_uids, fingerprint, random_uids
from streamer.sources import Source, open_sources
from streamer.sources.address import natural
from streamer.sources.images import image_names
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import MovableSource
from streamer.sources.workers.pool import DecodePool
from streamer.sources.workers.proxy import WorkerSource
from streamer.spooling import open_spool
from streamer.threads import limit_opencv, set_environment
from trackers import Tracker, create_tracker

log = logging.getLogger("groundstream")

VIDEO = "video:"
PATIENCE_S = 10.0
"""Seconds that the end waits for sinks that take nothing, where events are in memory."""

Outputs = Callable[[Source, StreamAnalysis], Sequence[Recorder]]
"""What to keep of the frames of one stream."""


def settle() -> None:
    """What set-up has made stays to the end: Python's collector need not walk a model's objects amid a stream."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def open_pipeline(
    config: Config,
    *,
    detector: Detector | None = None,
    sources: Mapping[str, Source] | None = None,
    rules: Callable[[str], Sequence[Rule]] | None = None,
    spool_path: Path | None = None,
    outputs: Outputs | None = None,
    start_time_ns: int | None = None,
    on_frame: Callable[[str], None] | None = None,
    strict: bool = False,
    more_sinks: Mapping[str, Sink] | None = None,
    open_results: Callable[[], Mapping[str, Sink]] | None = None,
    patience_s: float | None = PATIENCE_S,
) -> AsyncIterator[Pipeline]:
    """A pipeline that does what `config` says; its events are delivered to all sinks when the context is left.

    Own parts: `detector` is used instead of the one that `config` names; `sources` by stream name instead of opening
    the addresses of these streams; `rules` makes further rules for the stream of a name.
    `spool_path` is where events are safe until then; None keeps them in memory, for jobs that can be run again.
    `strict` lets a live source that refuses us (401, 404) end with an error instead of being tried again.
    `more_sinks` get the events beside those of the configuration, and so do those of `open_results`, which is called
    when everything else could be opened: it may overwrite what an earlier job left. At the end, sinks that lag are
    waited for within `close_timeout_s` of the configuration where the spool is a file, else until they have taken
    nothing for `patience_s`. When the reader of standard output leaves, the pipeline is stopped.
    Raises what the parts raise: `SourceError`, `DetectorError`, `TrackerError`, `SinkError`, `ConfigError`.
    """
    set_environment()
    limit_opencv()
    async with DecodePool() as pool:
        relay = StateRelay()
        streams = _open_all(config, relay, sources or {}, pool, start_time_ns=start_time_ns, strict=strict)
        _check_parts(config)
        pool.start_workers()
        used_detector = load_detector(config.detector) if detector is None else detector
        sinks = {
            **open_sinks(address for address in config.sinks if not address.startswith(VIDEO)),
            **(more_sinks or {}),
        }
        if open_results is not None:
            sinks |= open_results()
        async with open_spool(config, spool_path, sinks) as opened:
            spool = opened.spool
            producer = Producer(
                version=__version__,
                detector=config.detector.name.partition(":")[0] if detector is None else type(detector).__name__,
                tracker=config.tracker,
                config_hash=config_hash(_settings(config)),
            )
            runs = {
                source.name: _recording_run(config, section, source, producer, start_time_ns)
                for section, source in streams
                if not source.live
            }
            run = await spool.begin_run(time.time_ns())
            # A recording that runs again repeats the events of its earlier run, and so ends what that one left open.
            left_open = [item for item in spool.open_items() if item.event.data.run != runs.get(item.event.data.stream)]
            crashed = close_crashed(left_open, run)
            await spool.send_batch(crashed)
            written = Counter(event.data.stream for event in crashed)
            made = [
                _make_stream(
                    config,
                    stream,
                    source,
                    used_detector,
                    producer,
                    runs.get(source.name, run),
                    written[source.name] if source.live else 0,
                    outputs,
                    rules,
                    several=len(streams) > 1,
                )
                for stream, source in streams
            ]
            pipeline = Pipeline(
                made,
                used_detector,
                spool,
                relay,
                batch_size=config.batch.size,
                max_wait_s=config.batch.wait_ms / 1000,
                on_frame=on_frame,
                new_enricher=None if config.enrich is None else enricher_of(config.enrich),
            )
            opened.watch(pipeline)
            yield pipeline
            await opened.finish(pipeline, patience_s)


def enricher_of(config: EnrichConfig) -> NewEnricher:
    """Loads the model that describes; raises what loading raises."""
    if config.model == "sam":
        from detectors.glamm.box_masks import BoxMasks

        describe: Describer = MaskDescriber(BoxMasks.load(device=config.device))
    else:
        from detectors.glamm.segmenter import Glamm

        describe = GlammDescriber(Glamm.load(config.model, clip=config.clip, device=config.device))
    zones = None if config.zones is None else frozenset(config.zones)
    plan = EnrichPlan(config.tracks, zones, config.every_s)
    budget = CallBudget(config.per_minute, config.per_stream_minute)
    return lambda deliver: Enricher(describe, deliver, plan, budget)


def origin(stream: StreamConfig) -> str:
    """What a stream is recognised by when its configuration file was edited."""
    return stream.name or stream.source


def make_queries(stream: StreamConfig, config: Config) -> list[Query]:
    """The words that a stream looks for: its own or those for all."""
    chosen = config.queries if stream.queries is None else stream.queries
    return [Query(query.text, query.id or slug(query.text), query.threshold, tuple(query.unless)) for query in chosen]


def _open_all(
    config: Config,
    relay: StateRelay,
    own: Mapping[str, Source],
    pool: DecodePool,
    *,
    start_time_ns: int | None,
    strict: bool,
) -> list[tuple[StreamConfig, Source]]:
    """The sources of every stream, each with a name of its own; names that were given go before those that are made."""
    given = [stream.name for stream in config.streams if stream.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise ConfigError(f"two streams are called {name!r}: give one of them another name")
    taken = set(given)
    opened = []
    for stream in config.streams:
        if stream.name is not None and stream.name in own:
            opened.append((stream, own[stream.name]))
            continue
        sources = open_sources(
            stream.source,
            name=stream.name,
            on_state=relay,
            start_time_ns=start_time_ns,
            transport=stream.transport,
            strict=strict,
            taken=taken - {stream.name},
        )
        taken.update(source.name for source in sources)
        opened += [(stream, pool.move(source, relay)) for source in sources]
    return opened


def _check_parts(config: Config) -> None:
    """Make what costs nothing once, so that a mistake is told before models are loaded or anything is written."""
    _make_tracker(config)
    for stream in config.streams:
        QueryBook(make_queries(stream, config))
        _make_places(stream)


def _make_places(stream: StreamConfig) -> tuple[list[Zone], list[Line], list[Mask]]:
    zones = [
        Zone(zone.id, zone.polygon, zone.dwell_s, zone.settle_s, holes=zone.holes, anchor=zone.anchor)
        for zone in stream.zones
    ]
    lines = [Line(line.id, line.points, line.settle_s, anchor=line.anchor) for line in stream.lines]
    return zones, lines, [Mask(mask.id, mask.polygon, mask.holes, anchor=mask.anchor) for mask in stream.ignore]


def _make_tracker(config: Config) -> Tracker:
    options = {} if config.stationary_s is None else {"stationary_s": config.stationary_s}
    return create_tracker(config.tracker, **options)


def _recording_run(
    config: Config, section: StreamConfig, source: Source, producer: Producer, start_time_ns: int | None
) -> int:
    """The run number of a recording: the same whenever the same work is done, whatever else is done beside it."""
    shared = config.model_dump(include={"queries", "tracker", "batch", "enrich"})
    detector = config.detector.model_dump(exclude={"device"})
    settings = config_hash(section.model_dump(exclude={"source", "name"}), shared, detector, start_time_ns)
    content = _recording(section.source, source)
    return derived_run(content, source.name, settings, producer.detector, producer.version)


def _settings(config: Config) -> dict[str, Any]:
    """What results depend on: neither where recordings lie (their content counts), nor where events go."""
    elsewhere = {"sinks", "spool", "metrics_port", "metrics_host", "web"}
    return config.model_dump(exclude={"streams": {"__all__": {"source"}}, **dict.fromkeys(elsewhere, True)})


def _make_stream(
    config: Config,
    stream: StreamConfig,
    source: Source,
    detector: Detector,
    producer: Producer,
    run: int,
    written: int,
    outputs: Outputs | None,
    rules: Callable[[str], Sequence[Rule]] | None,
    *,
    several: bool,
) -> Stream:
    new_uid = random_uids()
    if not source.live:
        new_uid = derived_uids(_recording(stream.source, source), source.name, producer.config_hash)
    zones, lines, masks = _make_places(stream)
    kind = "streams" if source.live else "files"
    identity = StreamIdentity(source.name, f"/{kind}/{source.name}", run, producer, new_uid, written)
    analysis = StreamAnalysis(
        identity,
        _make_tracker(config),
        QueryBook(make_queries(stream, config)),
        detector.threshold,
        zones,
        lines,
        [CountPlan(count.window_s, count.of, count.query) for count in stream.counts],
        rules(source.name) if rules is not None else (),
        masks=masks,
    )
    recorders = list(outputs(source, analysis)) if outputs is not None else []
    for address in config.sinks:
        if address.startswith(VIDEO):
            path = video_path(address, source.name, several=several)
            recorders.append(annotated_video(path, source, analysis))
    sampling = FrameSampling(stream.sample.every, stream.sample.fps)
    if isinstance(source, WorkerSource) and not recorders:  # recorders write the frames between, too
        sampling = source.sample_in_worker(sampling)
    return Stream(source, analysis, sampling, recorders, origin(stream))


def annotated_video(path: Path, source: Source, analysis: StreamAnalysis) -> AnnotatedVideo:
    return AnnotatedVideo(
        path,
        lambda number: analysis.queries.known(number).text,
        analysis.zones,
        analysis.lines,
        wait=not source.live,
    )


def video_path(address: str, stream: str, *, several: bool) -> Path:
    """Where `video:PATH` goes: with several streams each has its name before the suffix, or where `{stream}` stands."""
    path = address.removeprefix(VIDEO)
    if not path:
        raise ConfigError("sink video: has no path: write video:FILE.mp4")
    if "{stream}" in path:
        return Path(path.replace("{stream}", stream))
    plain = Path(path)
    return plain.with_name(f"{plain.stem}-{stream}{plain.suffix}") if several else plain


def _recording(address: str, source: Source) -> str:
    """What tells one recording from another: the content of a file, the images of a folder, else the address."""
    path = source.recording if isinstance(source, WorkerSource | MovableSource) else None
    try:
        if path is None:
            return redact(address)
        if path.is_dir():
            return "\n".join(f"{name} {(path / name).stat().st_size}" for name in natural(image_names(path)))
        return fingerprint(path)
    except OSError:
        return str(path)  # reading it will tell what is wrong
