"""Start of a pipeline from a configuration: the place where detector, spool and streams are joined."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from detectors import Detector
from sinks.registry import open_sinks
from sinks.sink import Sink
from streamer.analysis.event_writer import close_crashed
from streamer.assembly import VIDEO, MakeRecorders, MakeRules, StreamAssembly, check_parts, open_sections, source_opener
from streamer.config import Config, EnrichConfig
from streamer.detector_choice import load_detector
from streamer.enrichment.describers import Describer, GlammDescriber, MaskDescriber
from streamer.enrichment.enricher import CallBudget, Enricher, EnrichPlan
from streamer.errors import ConfigError
from streamer.media.clips import ClipSpan, ClipWriter
from streamer.media.privacy import PictureCover
from streamer.media.snapshots import SnapshotWriter
from streamer.pipeline import NewEnricher, Pipeline
from streamer.pipeline.terms import StreamTerms
from streamer.sources import Source
from streamer.sources.workers.pool import DecodePool
from streamer.spooling import media_store, open_spool
from streamer.threads import limit_opencv, set_environment
from streamer.tracing import trace_sinks, tracing

log = logging.getLogger("groundstream")

PATIENCE_S = 10.0
"""Seconds that the end waits for sinks that take nothing, where events are in memory."""


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
    rules: MakeRules | None = None,
    spool_path: Path | None = None,
    recorders: MakeRecorders | None = None,
    start_time_ns: int | None = None,
    on_frame: Callable[[str], None] | None = None,
    strict: bool = False,
    more_sinks: Mapping[str, Sink] | None = None,
    patience_s: float | None = PATIENCE_S,
    decode_pool: DecodePool | None = None,
    terms: StreamTerms | None = None,
    hold_open: bool = False,
) -> AsyncIterator[Pipeline]:
    """A pipeline that does what `config` says; its events are delivered to all sinks when the context is left.

    Own parts: `detector` is used instead of the one that `config` names; `sources` by stream name instead of opening
    the addresses of these streams; `rules` makes further rules for the stream of a name; `recorders` makes the
    recorders of a stream. The latter two are called for streams that are added while it runs, too.
    `spool_path` is where events are safe until then; None keeps them in memory, for jobs that can be run again.
    `strict` lets a live source that refuses us (401, 404) end with an error instead of being tried again.
    `more_sinks` get the events beside those of the configuration. At the end, sinks that lag are waited for within
    `close_timeout_s` of the configuration where the spool is a file, else until they have taken nothing for
    `patience_s`. When the reader of standard output leaves, the pipeline is stopped.
    `decode_pool`: decode workers that outlive the pipeline, None for its own.
    `terms` give each stream its run and say how long its events may be sent; with them, or with `hold_open`, the
    pipeline goes on without streams.
    Raises what the parts raise: `SourceError`, `DetectorError`, `TrackerError`, `SinkError`, `ConfigError`.
    """
    set_environment()
    limit_opencv()
    async with (
        tracing() as traces,
        DecodePool() if decode_pool is None else nullcontext(decode_pool) as pool,
    ):
        own_sources = {} if sources is None else sources
        opener = source_opener(own_sources, pool, start_time_ns=start_time_ns, strict=strict)
        sections = await open_sections(opener, config.streams)
        check_parts(config)
        pool.start_workers()
        used_detector = load_detector(config.detector) if detector is None else detector
        sinks = {
            **open_sinks(address for address in config.sinks if not address.startswith(VIDEO)),
            **(more_sinks or {}),
        }
        async with open_spool(config, spool_path, trace_sinks(sinks, traces), terms=terms) as opened:
            spool = opened.spool
            assembly = StreamAssembly(
                used_detector,
                opener,
                own_detector=detector is not None,
                start_time_ns=start_time_ns,
                make_rules=rules,
                make_recorders=recorders,
                terms=terms,
                traces=traces,
            )
            runs = assembly.recording_runs(config, sections)
            run = await spool.begin_run(time.time_ns())
            # A recording that runs again repeats the events of its earlier run, and so ends what that one left open.
            left_open = [item for item in spool.open_items() if item.event.data.run != runs.get(item.event.data.stream)]
            crashed = close_crashed(left_open, run if terms is None else None)
            await spool.send_batch(crashed)
            assembly.begin_run(run, Counter(event.data.stream for event in crashed))
            media = open_media(config)
            pipeline = Pipeline(
                assembly.make_streams(config, sections),
                used_detector,
                spool,
                config=config,
                parts=assembly,
                on_frame=on_frame,
                new_enricher=None if config.enrich is None else enricher_of(config.enrich),
                snapshots=media.snapshots,
                clips=media.clips,
                cover=open_cover(config),
                hold_open=hold_open or terms is not None,
                terms=terms,
                traces=traces,
            )
            opened.watch(pipeline)
            yield pipeline
            await opened.finish(pipeline, patience_s)


@dataclass(frozen=True, slots=True)
class MediaWriters:
    """The writers of pictures and clips of events, None where the configuration stores none."""

    snapshots: SnapshotWriter | None = None
    clips: ClipWriter | None = None


def open_media(config: Config) -> MediaWriters:
    """The writers of pictures and clips of events. Raises `ConfigError` for a folder that cannot be used."""
    settings = config.media
    if (
        settings is None
        or config.privacy.pictures == "none"
        or (settings.snapshots == "none" and settings.clips is None)
    ):
        return MediaWriters()
    folder = media_store(config)
    _make_writable(folder.local_path)
    return MediaWriters(
        None if settings.snapshots == "none" else SnapshotWriter(folder, settings.snapshots),
        None
        if settings.clips is None
        else ClipWriter(folder, ClipSpan(settings.clips.before_s, settings.clips.after_s)),
    )


def _make_writable(path: Path) -> None:
    """Makes the folder of media where it is not there. Raises `ConfigError`."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"media.folder {path} cannot be made: {error.strerror}; give a folder that can be written"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"media.folder {path} cannot be written: give a folder that this user may write to")


def open_cover(config: Config) -> PictureCover | None:
    """What covers pictures before they are shown or stored, None where they stay as they came."""
    privacy = config.privacy
    return None if privacy.pictures == "all" else PictureCover(privacy.pictures, privacy.blur)


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
