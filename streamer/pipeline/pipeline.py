"""The pipeline from frames to events: `sources -> merge -> detector thread -> tracker, rules -> spool`.

Two loops share the work, so that the detector never waits for tracking: `DetectionLoop` runs the detector on the newest
frames, `FollowingLoop` turns its detections into events, in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import supervision as sv

from detectors import Detector, DetectorError
from sinks.event import Producer
from sinks.sink import SinkError
from sinks.spool.delivery import SinkStatus
from sinks.spool.spool import Spool, StorageStatus
from sinks.supervision import start_task
from streamer.analysis.stream_analysis import AnalysisChange, CoverageMeter
from streamer.config import BatchConfig, Config
from streamer.enrichment.enricher import Enricher, Enrichment, EnrichTally
from streamer.errors import ConfigError, StreamerError
from streamer.media.clips import ClipWriter
from streamer.media.media_writer import SnapshotTally
from streamer.media.privacy import PictureCover
from streamer.media.snapshots import SnapshotWriter
from streamer.pipeline.changes import ChangePlan, PipelineParts, StreamPlan, place_sentences, plan_change
from streamer.pipeline.detection import DetectionLoop, Image
from streamer.pipeline.following import (
    EventsAwaited,
    FollowingLoop,
    FollowItem,
    SourceChanged,
    StreamAdded,
    StreamChanged,
    StreamEnded,
    StreamPaused,
    StreamResumed,
)
from streamer.pipeline.loop_lag import LoopLag
from streamer.pipeline.merge import FrameMerge
from streamer.pipeline.sections import condition_plans, count_plans, default_threshold, make_sampling
from streamer.pipeline.stream import Stream, StreamChange, StreamReport
from streamer.pipeline.terms import StreamTerms, TermTally
from streamer.pipeline.timings import PipelineTimings
from streamer.sources.source import SourceState
from streamer.tracing import FrameTraces
from trackers import TrackerError

log = logging.getLogger("groundstream")

_ENRICH_WAIT_S = 120.0
"""How long the end of recordings waits for descriptions that were requested."""

_BATCH = BatchConfig()
_ENDED = "the pipeline has ended: nothing can change any more"

NewEnricher = Callable[[Callable[[Enrichment], None]], Enricher]
"""Makes the enricher of a pipeline, which delivers its results to the given function."""


class Pipeline:
    """Runs streams through one detector until they end or `stop()` is called.

    An error of one stream ends that stream alone: it is in `errors` afterwards. With `config`, which the streams were
    made from, and `parts`, everything can be changed while it runs: see `apply`. `snapshots` writes pictures of
    events, `clips` their clips; both are closed at the end.
    `cover` changes every picture before it is shown or stored. `coverage_every_s` is the length of a coverage stretch.
    With `hold_open` it also runs while it has no streams. `terms` say for how long it may have each of them.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        detector: Detector,
        spool: Spool,
        *,
        config: Config | None = None,
        parts: PipelineParts | None = None,
        batch: BatchConfig = _BATCH,
        on_frame: Callable[[str], None] | None = None,
        new_enricher: NewEnricher | None = None,
        snapshots: SnapshotWriter | None = None,
        clips: ClipWriter | None = None,
        cover: PictureCover | None = None,
        coverage_every_s: float = 10.0,
        traces: FrameTraces | None = None,
        hold_open: bool = False,
        terms: StreamTerms | None = None,
    ) -> None:
        self._streams = {stream.name: stream for stream in streams}
        if len(self._streams) < len(streams):
            raise ConfigError("two streams have the same name: give each its own")
        self._config = config
        self._parts = parts
        self._spool = spool
        self._new_enricher = new_enricher
        self._enricher: Enricher | None = None
        self._snapshots = snapshots
        self._clips = clips
        self._keeps_packets = clips is not None and cover is None  # packets cannot be covered
        self._coverage_every_s = coverage_every_s
        self._hold_open = hold_open
        self._terms = terms
        batch = batch if config is None else config.batch
        self.timings = PipelineTimings()
        self._detection = DetectionLoop(
            detector,
            self._streams,
            batch_size=batch.size,
            max_wait_s=batch.wait_ms / 1000,
            timings=self.timings,
            traces=traces,
        )
        self._threshold = detector.threshold if config is None else default_threshold(config, detector)
        self._producer = None if config is None or parts is None else parts.producer(config)
        self._following = FollowingLoop(
            self._streams,
            spool,
            on_frame=on_frame,
            on_failed=self._end_failed,
            snapshots=snapshots,
            clips=clips,
            cover=cover,
            tick_s=coverage_every_s / 10,
            timings=self.timings,
            traces=traces,
        )
        self.loop_lag = LoopLag()
        self._merge: FrameMerge | None = None
        self.stopping = asyncio.Event()  # set once `stop` was called
        self.stopped_at: float | None = None  # by the monotonic clock
        self.ended = asyncio.Event()  # set once `run` has finished
        self._is_running = asyncio.Event()
        self._changing = asyncio.Lock()
        self._leaving: set[str] = set()  # streams whose end the pipeline itself reports
        for stream in streams:
            stream.coverage_meter = CoverageMeter(coverage_every_s)

    @property
    def config(self) -> Config:
        """The present configuration. Raises `RuntimeError` for a pipeline that was built without one."""
        if self._config is None:
            raise RuntimeError("this pipeline was built without a configuration")
        return self._config

    @property
    def producer(self) -> Producer | None:
        """What its events say of this program; None for a pipeline that was built without a configuration."""
        return self._producer

    @property
    def streams(self) -> Sequence[Stream]:
        return tuple(self._streams.values())

    @property
    def errors(self) -> dict[str, str]:
        """The latest error of every stream that has one, by stream."""
        return {name: stream.error for name, stream in self._streams.items() if stream.error}

    @property
    def event_counts(self) -> dict[str, Counter[str]]:
        """Events sent so far, by stream and type."""
        return {name: stream.event_counts for name, stream in self._streams.items()}

    async def run(self) -> None:
        """Run until every source has ended. Raises `PromptError` before the first frame when words cannot be read."""
        try:
            await self._detection.prepare_queries(stream.analysis.queries.at() for stream in self._streams.values())
            if self._new_enricher is not None:
                self._enricher = self._following.enricher = self._new_enricher(self._add_from_thread())
            if self._following.is_stopping:
                return
            watched = [stream for stream in self._streams.values() if not stream.is_paused]
            for stream in self._streams.values():
                self._connect(stream)
            self._merge = FrameMerge(
                [stream.source for stream in watched], on_error=self._note_error, on_end=self._end_stream
            )
            self._merge.is_held_open = self._waits_for_streams
            self._is_running.set()
            probe = start_task(self.loop_lag.run(), name="loop lag")
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._detect_all(self._merge), name="detection")
                    tasks.create_task(self._following.run(), name="following")
            finally:
                probe.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            self._following.is_stopping = True
            self._is_running.set()
            self.ended.set()
            await self._aclose()

    async def stop(self) -> None:
        """End all sources; `run` then finishes what was taken, closes open tracks with `shutdown` and returns."""
        self._following.is_stopping = True
        self.stopped_at = self.stopped_at or time.monotonic()
        self.stopping.set()
        if self._merge is not None:
            self._merge.is_held_open = False
            await self._merge.aclose()

    async def apply(self, config: Config) -> Sequence[str]:
        """Change everything that differs between the present configuration and `config`, while it runs.

        Streams, queries, zones, lines, counts, thresholds, sampling, batches and sinks are added, changed, paused and
        removed; streams and tracks that are not concerned go on undisturbed. Changes of queries and rules are in force
        for frames captured from now on. Returns one sentence for each change. Raises `ConfigError` and changes nothing
        where any part of `config` cannot be used.
        """
        if self._parts is None:
            raise RuntimeError("this pipeline was built without a configuration")
        async with self._changing:
            await self._is_running.wait()
            if self._merge is None or self._following.is_stopping:
                raise ConfigError(_ENDED)
            plan = ChangePlan(config, self._parts.producer(config))
            try:
                await plan_change(plan, self.config, list(self._streams.values()), self._parts)
                if self._merge is None or self._following.is_stopping:
                    raise ConfigError(_ENDED)
                await self._detection.prepare_queries(plan.query_sets)
                exchanged = await self._exchange_sinks(plan, self._parts)
            except BaseException as error:
                await plan.discard()
                if isinstance(error, asyncio.CancelledError) and self._following.is_stopping:
                    raise ConfigError(_ENDED) from error  # the detector's thread ended before it took the words
                if isinstance(error, (StreamerError, DetectorError, SinkError, TrackerError)):
                    raise ConfigError(str(error)) from error
                raise
            commit = asyncio.create_task(self._commit(plan, self._merge), name="apply")
            try:
                return exchanged + await asyncio.shield(commit)
            except asyncio.CancelledError:
                await commit  # the change is carried out whole, even where the caller gives up
                raise

    async def _exchange_sinks(self, plan: ChangePlan, parts: PipelineParts) -> list[str]:
        """Replace sinks by others at the same place. Raises `ConfigError` with all of the old ones back."""
        sentences = []
        done: list[tuple[str, str]] = []
        for former, address in plan.exchanged_sinks.items():
            await self._spool.remove_sink(parts.sink_name(former))
            try:
                [(name, sink)] = parts.open_sinks([address]).items()
            except SinkError:
                await self._restore_sink(former, parts)
                for old, new in reversed(done):
                    await self._spool.remove_sink(parts.sink_name(new))
                    await self._restore_sink(old, parts)
                raise
            await self._spool.add_sink(name, sink)
            done.append((former, address))
            sentences.append(f"sink {name} changed")
        return sentences

    async def _restore_sink(self, address: str, parts: PipelineParts) -> None:
        """Open a sink again that was closed for a change that is refused."""
        try:
            for name, sink in parts.open_sinks([address]).items():
                await self._spool.add_sink(name, sink)
        except SinkError as error:
            log.error("%s cannot be opened again: %s", parts.sink_name(address), error)

    async def _commit(self, plan: ChangePlan, merge: FrameMerge) -> list[str]:
        """Carry out a plan whose parts are open. Nothing in it can fail."""
        merge.is_held_open = True  # a source may go before another one comes
        old, self._config = self.config, plan.config
        producer, self._producer = self._producer, plan.producer
        sentences = [] if plan.config.batch == old.batch else ["batches changed"]
        self._detection.batch_size = plan.config.batch.size
        self._detection.max_wait_s = plan.config.batch.wait_ms / 1000
        if plan.threshold is not None:
            self._threshold = plan.threshold
            sentences.append(f"default threshold is {plan.threshold}")
        paused = [kept.stream for kept in plan.kept if kept.is_paused_now]
        resumed = [kept for kept in plan.kept if kept.is_resumed_now]
        for kept in plan.kept:
            sentences += self._change_stream(kept, plan, is_new_producer=producer != plan.producer)
        for name in plan.removed_sinks:
            await self._spool.remove_sink(name)
            sentences.append(f"sink {name} removed")
        for name, sink in plan.sinks.items():
            await self._spool.add_sink(name, sink)
            sentences.append(f"sink {name} added")
        await asyncio.gather(*(self._remove_stream(stream, merge) for stream in plan.removed))
        sentences += [f"{stream.name}: removed" for stream in plan.removed]
        await asyncio.gather(*(self._pause_stream(stream, merge) for stream in paused))
        for kept in resumed:
            await self._resume_stream(kept, merge)
        for stream in plan.added:
            await self._add_stream(stream, merge)
            sentences.append(f"{stream.name}: added")
        merge.is_held_open = self._waits_for_streams and not self._following.is_stopping
        return sentences

    def _change_stream(self, plan: StreamPlan, whole: ChangePlan, *, is_new_producer: bool) -> list[str]:
        """Change the settings of a stream that stays, for frames captured from now on."""
        stream, section, analysis = plan.stream, plan.section, plan.stream.analysis
        assert stream.section is not None
        sentences = []
        if plan.is_paused_now or plan.is_resumed_now:
            sentences.append(f"{stream.name}: {'paused' if section.paused else 'resumed'}")
        if section.sample != stream.section.sample or plan.videos or whole.removed_videos:
            left = set(stream.recorders) - set(whole.removed_videos)
            stream.choose_frames(make_sampling(section), has_recorders=bool(left or plan.videos))
        if section.sample != stream.section.sample:
            sentences.append(f"{stream.name}: sampling changed")
        sentences += [f"{stream.name}: {text}" for text in place_sentences(stream.section, section)]
        stream.section = section
        analysis.publishes_detections = whole.publishes_detections
        since_ns = stream.change_time_ns()
        queries = analysis.queries.replace(plan.queries, time_ns=since_ns)
        sentences += [f"{stream.name}: query {changed.query.text!r} {changed.change}" for changed in queries]
        rules = None
        if plan.changes_rules or (queries and section.counts):
            rules = analysis.plan_rules(
                plan.zones, plan.lines, count_plans(section), plan.masks, condition_plans(section)
            )
        change = None
        if queries or rules is not None or whole.threshold is not None or is_new_producer:
            is_blind = bool(queries) and not analysis.queries.at()
            stream.changed_ns = since_ns
            settings = AnalysisChange(self._threshold, whole.producer, queries, rules, is_blind)
            change = StreamChange(since_ns, settings)
        if change is not None or plan.videos or whole.removed_videos:
            self._following.add(StreamChanged(stream, change, plan.videos, whole.removed_videos))
        return sentences

    async def _add_stream(self, stream: Stream, merge: FrameMerge) -> None:
        if self._following.is_stopping:
            await _close_stream(stream)
            return
        stream.coverage_meter = CoverageMeter(self._coverage_every_s)
        self._streams[stream.name] = stream
        self._connect(stream)
        self._following.add(StreamAdded(stream))
        if not stream.is_paused:
            merge.add(stream.source)

    async def _remove_stream(self, stream: Stream, merge: FrameMerge) -> None:
        await self._stop_source(stream, merge)
        self._detection.forget_stream(stream.name)
        self._following.add(StreamEnded(stream, is_removed=True))
        del self._streams[stream.name]

    async def _pause_stream(self, stream: Stream, merge: FrameMerge) -> None:
        """Disconnect a camera; hold a recording back."""
        if stream.is_live:
            await self._stop_source(stream, merge)
        else:
            merge.pause(stream.name)
        if not stream.is_closed:
            stream.state = SourceState.PAUSED
            self._following.add(StreamPaused(stream))

    async def _resume_stream(self, plan: StreamPlan, merge: FrameMerge) -> None:
        """Connect to a camera with its new source; let a recording go on."""
        stream = plan.stream
        if self._following.is_stopping:
            if plan.source is not None:
                await plan.source.aclose()
        elif plan.source is not None:
            stream.replace_source(plan.source)
            stream.choose_frames(make_sampling(plan.section))
            stream.relay = plan.relay
            stream.state = SourceState.CONNECTING
            self._connect(stream)
            self._following.add(StreamResumed(stream))
            merge.add(stream.source)
        elif not stream.is_closed:
            stream.state = SourceState.CONNECTING if stream.last is None else SourceState.LIVE
            if stream.name in merge.streams:
                merge.resume(stream.name)
            else:
                merge.add(stream.source)

    async def _stop_source(self, stream: Stream, merge: FrameMerge) -> None:
        """Close the source of a stream, and wait until its last frame is queued for following."""
        self._leaving.add(stream.name)
        try:
            await merge.remove(stream.name)
            await stream.source.aclose()
        except Exception as error:
            log.error("%s: the source did not close: %s", stream.name, error, exc_info=True)
        await self._detection.wait_for_batch()
        self._leaving.discard(stream.name)

    async def wait_followed(self) -> None:
        """Wait until the events of everything taken and changed so far are safe, or the pipeline ends."""
        done = asyncio.Event()
        self._following.add(EventsAwaited(done))
        waits = [asyncio.ensure_future(done.wait()), asyncio.ensure_future(self.ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def detect_images(
        self, images: Sequence[Image], texts: tuple[str, ...], threshold: float | None = None
    ) -> list[sv.Detections]:
        """Detect `texts` in BGR images of (height, width, 3) with the pipeline's detector, between two batches of
        frames, which become older by one call at most. `threshold` is the present default where it is left out.
        Raises `DetectorError`."""
        return await self._detection.detect_images(images, texts, self._threshold if threshold is None else threshold)

    def report(self) -> list[StreamReport]:
        """State and counts of every stream now."""
        return [stream.report() for stream in self._streams.values()]

    def sinks(self) -> list[SinkStatus]:
        """State and backlog of every sink."""
        return self._spool.status()

    def dropped_events(self, stream: str) -> dict[str, int]:
        """A stream's events that were given up, by reason."""
        return self._spool.dropped(stream)

    def storage(self) -> StorageStatus:
        """Whether events can be stored, and how much waits for the sinks."""
        return self._spool.storage()

    def enrichment(self) -> EnrichTally | None:
        """Counts of the requests for descriptions; None without enrichment."""
        return None if self._enricher is None else self._enricher.tally()

    def snapshots(self) -> SnapshotTally | None:
        """Counts of the events for which pictures are wanted; None where none are stored."""
        return None if self._snapshots is None else self._snapshots.tally()

    def clips(self) -> SnapshotTally | None:
        """Counts of the events for which clips are wanted; None where none are stored."""
        return None if self._clips is None else self._clips.tally()

    def terms(self) -> TermTally | None:
        """Counts of the terms of the streams; None where they have none."""
        return None if self._terms is None else self._terms.tally()

    @property
    def is_ready(self) -> bool:
        """Whether events can be stored and sent, and at least one stream has not failed. Without a stream a pipeline
        that waits for some is ready."""
        if self.storage().error or ((tally := self.terms()) is not None and not tally.is_valid):
            return False
        reports = self.report()
        failed = (SourceState.WAITING, SourceState.STALLED)
        return (self._hold_open and not reports) or any(report.state not in failed for report in reports)

    @property
    def _waits_for_streams(self) -> bool:
        """Whether the end of every present source is not the end of the pipeline."""
        return self._hold_open or any(stream.is_paused for stream in self._streams.values())

    def _add_from_thread(self) -> Callable[[FollowItem], None]:
        """A function that queues items from other threads: sources and the enricher have their own."""
        loop = asyncio.get_running_loop()

        def add(item: FollowItem) -> None:
            loop.call_soon_threadsafe(self._following.add, item)

        return add

    def _connect(self, stream: Stream) -> None:
        """Queue the state changes of the stream's present source, and have it keep its packets for clips."""
        add, source = self._add_from_thread(), stream.source
        if self._clips is not None:
            if stream.cutter is not None:  # of the source before
                self._clips.retire(stream.name, stream.cutter)
                stream.cutter = None
            if self._keeps_packets:
                stream.keep_packets(self._clips.span.packet_limits())
        stream.relay.connect(stream.name, lambda change: add(SourceChanged(stream, source, change)))

    async def _detect_all(self, merge: FrameMerge) -> None:
        """Detect to the end, then let the following side finish."""
        try:
            await self._detection.run(merge, self._following.add_batch)
            if self._enricher is not None:
                if not self._following.is_stopping:
                    await asyncio.to_thread(self._enricher.drain, _ENRICH_WAIT_S)
                await asyncio.to_thread(self._enricher.close)
        finally:
            self._following.finish()

    def _end_stream(self, name: str) -> None:
        """Report the end of a source by itself, after its last frame."""
        stream = self._streams.get(name)
        if stream is not None and name not in self._leaving:
            self._detection.call_after_batch(lambda: self._following.add(StreamEnded(stream)))
            self._detection.call_after_batch(lambda: self._detection.forget_stream(name))

    def _end_failed(self, stream: Stream) -> None:
        """Close the source of a stream that cannot be followed; its end is then reported like any other."""
        assert self._merge is not None
        start_task(self._merge.remove(stream.name), name=f"end of {stream.name}")

    def _note_error(self, name: str, error: Exception) -> None:
        log.error("%s: %s", name, error)
        if (stream := self._streams.get(name)) is not None:
            stream.error = str(error)

    async def _aclose(self) -> None:
        if self._enricher is not None:
            await asyncio.to_thread(self._enricher.close)
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.close)
        if self._clips is not None:
            await asyncio.to_thread(self._clips.close)
        if self._merge is not None:
            await self._merge.aclose()
        for stream in self._streams.values():
            await _close_stream(stream)
        self._detection.close()


async def _close_stream(stream: Stream) -> None:
    await stream.source.aclose()
    for recorder in stream.recorders.values():
        await recorder.aclose()
