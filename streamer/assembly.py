"""Parts of a pipeline made from its configuration: streams with their sources, rules and recorders, and sinks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from detectors import Detector
from groundstream import __version__
from sinks.address import redact
from sinks.event import Producer
from sinks.registry import open_sinks, sink_name, wants_detections
from sinks.sink import Sink
from streamer.analysis.event_writer import StreamIdentity
from streamer.analysis.queries import QueryBook
from streamer.analysis.stream_analysis import StreamAnalysis, config_hash
from streamer.config import Config, StreamConfig
from streamer.errors import ConfigError
from streamer.pipeline import Recorder, StateRelay, Stream
from streamer.pipeline.sections import (
    condition_plans,
    count_plans,
    default_threshold,
    make_embedder,
    make_places,
    make_queries,
    make_sampling,
    make_tracker,
)
from streamer.pipeline.terms import StreamTerms
from streamer.recorders.video import AnnotatedVideo
from streamer.rules.rule import Rule
from streamer.rules.track_ids import derived_run, derived_uids, random_uids
from streamer.sources import OnState, Source, open_sources
from streamer.sources.clock import ClockLimits
from streamer.sources.identity import identify_recording
from streamer.sources.source import MovableSource
from streamer.sources.workers.pool import DecodePool
from streamer.sources.workers.proxy import WorkerSource
from streamer.tracing import FrameTraces, trace_sinks

VIDEO = "video:"
_CONNECTION = {"source", "transport", "stall_s", "poll_s", "clock", "tls", "decode"}
"""Settings of a stream that say how its frames get here, not which frames they are."""

MakeRecorders = Callable[[Source, StreamAnalysis], Sequence[Recorder]]
"""Makes the recorders of one stream, when it is added; they are closed when it ends."""


MakeRules = Callable[[str], Sequence[Rule]]
"""Makes further rules for the stream of a name."""


class OpenSources(Protocol):
    """Opens the sources of one stream of the configuration; reading begins when one is iterated."""

    def __call__(
        self, stream: StreamConfig, *, name: str | None, on_state: StateRelay, taken: Collection[str]
    ) -> Sequence[Source]: ...


@dataclass(frozen=True, slots=True)
class OpenedSection:
    """The sources of one stream of the configuration, with the relay of their state changes."""

    section: StreamConfig
    relay: StateRelay
    sources: Sequence[Source]


class StreamAssembly:
    """Makes the parts that a configuration names, at the start and when it changes while the pipeline runs.

    `own_detector` is true where the detector was given as an object; `start_time_ns` (UTC) is when recordings began,
    where that was given. With `terms` each live stream has a run of its own. A source opens nothing
    before it is iterated.
    """

    def __init__(
        self,
        detector: Detector,
        open_sources: OpenSources,
        *,
        own_detector: bool = False,
        start_time_ns: int | None = None,
        make_rules: MakeRules | None = None,
        make_recorders: MakeRecorders | None = None,
        terms: StreamTerms | None = None,
        traces: FrameTraces | None = None,
    ) -> None:
        self._detector = detector
        self._own_detector = own_detector
        self._start_time_ns = start_time_ns
        self._run = 1
        self._written: Mapping[str, int] = {}
        self._make_rules = make_rules
        self._make_recorders = make_recorders
        self._terms = terms
        self._traces = traces
        self._open = open_sources
        self._opened: Counter[str] = Counter()
        self._identities: dict[str, str] = {}

    def begin_run(self, run: int, written: Mapping[str, int]) -> None:
        """Number the live streams that are made from now on as `run`, which has `written` events by stream already."""
        self._run = run
        self._written = written

    def recording_runs(self, config: Config, opened: Iterable[OpenedSection]) -> dict[str, int]:
        """The run numbers of recordings by stream."""
        producer = self.producer(config)
        return {
            source.name: self._recording_run(config, section.section, source, producer)
            for section in opened
            for source in section.sources
            if not source.live
        }

    def producer(self, config: Config) -> Producer:
        """The producer in the events of this configuration."""
        name = config.detector.name
        if self._own_detector:  # which may have a name
            name = str(getattr(self._detector, "name", type(self._detector).__name__))
        return Producer(
            version=__version__,
            detector=name.partition(":")[0],
            tracker=config.tracker.name,
            config_hash=settings_hash(config),
        )

    async def open_streams(
        self, config: Config, wanted: Sequence[StreamConfig], taken: Collection[str] = ()
    ) -> list[Stream]:
        """The streams of `wanted`, sections of `config`; none of them gets a name that is `taken`.

        Raises what the parts raise.
        """
        return self.make_streams(config, await open_sections(self._open, wanted, taken))

    def make_streams(self, config: Config, opened: Sequence[OpenedSection]) -> list[Stream]:
        """The streams around sources that are open. Raises what the parts raise."""
        producer = self.producer(config)
        several = sum(len(section.sources) for section in opened) > 1 or len(config.streams) > 1
        return [
            self._make_stream(config, section, source, producer, several=several)
            for section in opened
            for source in section.sources
        ]

    async def reopen_source(self, stream: StreamConfig, name: str, relay: StateRelay) -> Source:
        """A new source in the place of one that was closed, for a live stream that is resumed."""
        [source] = await asyncio.to_thread(self._open, stream, name=name, on_state=relay, taken=())
        return source

    def open_sinks(self, addresses: Iterable[str]) -> dict[str, Sink]:
        """The sinks for events among the addresses, by their public names."""
        sinks = open_sinks(address for address in addresses if not address.startswith(VIDEO))
        return trace_sinks(sinks, self._traces)

    def sink_name(self, address: str) -> str:
        """The name of a sink, under which the spool knows it."""
        return sink_name(address)

    def publishes_detections(self, config: Config) -> bool:
        """Whether the detections of every frame are events: by the configuration, or because a sink needs them."""
        return config.detections or wants_detections(config.sinks)

    def make_videos(self, addresses: Iterable[str], stream: Stream, config: Config) -> dict[str, Recorder]:
        """The annotated videos of a stream among the addresses of sinks, by address."""
        return self._videos(addresses, stream.source, stream.analysis, several=len(config.streams) > 1)

    @staticmethod
    def _videos(
        addresses: Iterable[str], source: Source, analysis: StreamAnalysis, *, several: bool
    ) -> dict[str, Recorder]:
        return {
            address: annotated_video(video_path(address, source.name, several=several), source, analysis)
            for address in addresses
            if address.startswith(VIDEO)
        }

    def _recording_run(self, config: Config, section: StreamConfig, source: Source, producer: Producer) -> int:
        """The run number of a recording: the same whenever the same work is done, whatever else is done beside it."""
        shared = config.model_dump(include={"queries", "tracker", "batch", "enrich"})
        detector = config.detector.model_dump(exclude={"device"})
        own = section.model_dump(exclude={"name", "paused", *_CONNECTION})
        settings = config_hash(own, shared, detector, self._start_time_ns)
        content = self._identify(section, source)
        return derived_run(content, source.name, settings, producer.detector, producer.version)

    def _identify(self, section: StreamConfig, source: Source) -> str:
        """The identity of a recording, asked for once: of a remote one the server has to answer."""
        if not isinstance(source, WorkerSource | MovableSource):
            return redact(section.source)
        if source.recording is not None:
            return identify_recording(str(source.recording))
        if source.remote is None:
            return redact(section.source)
        if source.remote not in self._identities:
            self._identities[source.remote] = identify_recording(source.remote, section.tls.options())
        return self._identities[source.remote]

    def _make_stream(
        self,
        config: Config,
        opened: OpenedSection,
        source: Source,
        producer: Producer,
        *,
        several: bool,
    ) -> Stream:
        stream = opened.section
        self._opened[source.name] += 1
        new_uid, run, written = random_uids(), self._run, self._written.get(source.name, 0)
        term = None
        if self._terms is not None and stream.name is not None:
            term = self._terms.find_term(stream.name)
            run, written = term.run, 0
        if not source.live:
            again = [str(self._opened[source.name])] if self._opened[source.name] > 1 else []
            new_uid = derived_uids(self._identify(stream, source), source.name, producer.config_hash, *again)
            run, written = self._recording_run(config, stream, source, producer), 0
        zones, lines, masks = make_places(stream)
        kind = "streams" if source.live else "files"
        analysis = StreamAnalysis(
            StreamIdentity(source.name, f"/{kind}/{source.name}", run, producer, new_uid, written),
            make_tracker(config),
            QueryBook(make_queries(stream, config)),
            default_threshold(config, self._detector),
            zones,
            lines,
            count_plans(stream),
            self._make_rules(source.name) if self._make_rules is not None else (),
            masks,
            condition_plans(stream),
            make_embedder(config),
        )
        analysis.publishes_detections = self.publishes_detections(config)
        made = self._make_recorders(source, analysis) if self._make_recorders is not None else ()
        recorders: dict[str, Recorder] = {f"recorder {number}": recorder for number, recorder in enumerate(made, 1)}
        recorders.update(self._videos(config.sinks, source, analysis, several=several))
        made_stream = Stream(source, analysis, recorders=recorders, relay=opened.relay, section=stream, term=term)
        made_stream.choose_frames(make_sampling(stream))
        return made_stream


async def open_sections(
    open_sources: OpenSources, wanted: Sequence[StreamConfig], taken: Collection[str] = ()
) -> list[OpenedSection]:
    """The sources of every stream, each with a name of its own; given names go before those that are made.

    Servers may be asked for some seconds what they send: `open_sources` is called in a thread.
    """
    given = [stream.name for stream in wanted if stream.name is not None]
    for name in given:
        if given.count(name) > 1 or name in taken:
            raise ConfigError(f"two streams are called {name!r}: give one of them another name")
    used = {*taken, *given}
    opened = []
    for stream in wanted:
        relay = StateRelay()
        taken_now = used - {stream.name}
        sources = await asyncio.to_thread(open_sources, stream, name=stream.name, on_state=relay, taken=taken_now)
        used.update(source.name for source in sources)
        opened.append(OpenedSection(stream, relay, sources))
    return opened


def check_parts(config: Config) -> None:
    """Make what costs nothing once, so that a mistake shows before models are loaded or anything is written."""
    make_tracker(config)
    for stream in config.streams:
        QueryBook(make_queries(stream, config))
        make_places(stream)


def open_stream(
    stream: StreamConfig,
    *,
    name: str | None = None,
    on_state: OnState | None = None,
    start_time_ns: int | None = None,
    strict: bool = False,
    taken: Collection[str] = (),
) -> list[Source]:
    """The sources of a section of the configuration, by its own settings. Raises what `open_sources` raises."""
    return open_sources(
        stream.source,
        name=name,
        on_state=on_state,
        start_time_ns=start_time_ns,
        transport=stream.transport,
        live=stream.live,
        track=stream.track,
        decode=stream.decode,
        stall_s=stream.stall_s,
        poll_s=stream.poll_s,
        clock=ClockLimits(stream.clock.latency_s, stream.clock.synchronised),
        tls=stream.tls.options(),
        strict=strict,
        taken=taken,
    )


def source_opener(
    own: Mapping[str, Source], pool: DecodePool, *, start_time_ns: int | None = None, strict: bool = False
) -> OpenSources:
    """Opens the source that the address of a stream names, to be read by a worker of `pool`; streams named in `own`
    have their source there."""

    def open_moved(
        stream: StreamConfig, *, name: str | None, on_state: StateRelay, taken: Collection[str]
    ) -> Sequence[Source]:
        if name is not None and name in own:
            return [own[name]]
        opened = open_stream(
            stream, name=name, on_state=on_state, start_time_ns=start_time_ns, strict=strict, taken=taken
        )
        return [pool.move(source, on_state) for source in opened]

    return open_moved


def annotated_video(path: Path, source: Source, analysis: StreamAnalysis) -> AnnotatedVideo:
    """A recorder that draws the tracks, zones and lines of a stream into an MP4 file."""
    return AnnotatedVideo(
        path,
        lambda number: analysis.queries.known(number).text,
        lambda: (analysis.zones, analysis.lines),
        wait=not source.live,
    )


def video_path(address: str, stream: str, *, several: bool) -> Path:
    """The file of `video:PATH`: with several streams each has its name before the suffix, or in place of `{stream}`."""
    path = address.removeprefix(VIDEO)
    if not path:
        raise ConfigError("sink video: has no path: write video:FILE.mp4")
    if "{stream}" in path:
        return Path(path.replace("{stream}", stream))
    plain = Path(path)
    return plain.with_name(f"{plain.stem}-{stream}{plain.suffix}") if several else plain


def settings_hash(config: Config) -> str:
    """A hash of everything in the configuration that results depend on."""
    return config_hash(_settings(config))


def _settings(config: Config) -> dict[str, Any]:
    """The settings that results depend on: neither where recordings lie (their content counts), nor where events go."""
    elsewhere = {"sinks", "spool", "metrics_port", "metrics_host", "web", "media", "privacy"}
    plain = config.model_copy(update={"close_timeout_s": Config.model_fields["close_timeout_s"].default})
    return plain.model_dump(exclude={"streams": {"__all__": _CONNECTION}, **dict.fromkeys(elsewhere, True)})
