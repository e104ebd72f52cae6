"""The pipeline from frames to events: `sources -> merge -> detector thread -> tracker, rules -> spool`.

Two loops share the work, so that the detector never waits for tracking: `Detection` takes the newest frames and runs
the detector on them, `Following` turns what was detected into events, in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import supervision as sv

from detectors import Detector
from sinks.spool.delivery import SinkStatus
from sinks.spool.spool import Spool, StorageStatus
from streamer.analysis.queries import Query, QueryBook, QueryChange
from streamer.analysis.stream_analysis import CoverageMeter
from streamer.enrichment.enricher import Enricher, Enrichment, EnrichTally
from streamer.errors import ConfigError
from streamer.pipeline.detection import Detection, Image
from streamer.pipeline.following import Following, FollowItem, QueriesChanged, StreamEnded
from streamer.pipeline.merge import FrameMerge
from streamer.pipeline.stream import StateRelay, Stream, StreamReport

log = logging.getLogger("groundstream")

_ENRICH_WAIT_S = 120.0
"""How long the end of recordings waits for descriptions that were requested."""

NewEnricher = Callable[[Callable[[Enrichment], None]], Enricher]
"""Makes the enricher of a pipeline, which delivers its results to the given function."""


class Pipeline:
    """Runs streams through one detector until they end or `stop()` is called.

    `relay` is the function that the sources were opened with as `on_state`. An error of one stream ends that stream
    alone: it is in `errors` afterwards. `coverage_every_s` is the length of a coverage stretch.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        detector: Detector,
        spool: Spool,
        relay: StateRelay,
        *,
        batch_size: int = 8,
        max_wait_s: float = 0.01,
        on_frame: Callable[[str], None] | None = None,
        new_enricher: NewEnricher | None = None,
        coverage_every_s: float = 10.0,
    ) -> None:
        self._streams = {stream.name: stream for stream in streams}
        if len(self._streams) < len(streams):
            raise ConfigError("two streams have the same name: give each its own")
        for stream in streams:
            stream.coverage_meter = CoverageMeter(coverage_every_s)
        self._spool = spool
        self._relay = relay
        self._new_enricher = new_enricher
        self._enricher: Enricher | None = None
        self._detection = Detection(detector, self._streams, batch_size=batch_size, max_wait_s=max_wait_s)
        self._following = Following(self._streams, spool, on_frame=on_frame, tick_s=coverage_every_s / 10)
        self._merge: FrameMerge | None = None
        self.stopping = asyncio.Event()  # set once `stop` was called
        self.stopped_at: float | None = None  # by the monotonic clock

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
        loop = asyncio.get_running_loop()

        def add(item: FollowItem) -> None:
            """Queue from other threads: sources and the enricher have their own."""
            loop.call_soon_threadsafe(self._following.add, item)

        try:
            await self._detection.prepare_queries(stream.analysis.queries.at() for stream in self._streams.values())
            if self._new_enricher is not None:
                self._enricher = self._following.enricher = self._new_enricher(add)
            if self._following.is_stopping:
                return
            self._relay.connect(add)
            self._merge = FrameMerge([stream.source for stream in self._streams.values()], on_error=self._note_error)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._detect_all(self._merge), name="detection")
                tasks.create_task(self._following.run(), name="following")
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            await self._aclose()

    async def stop(self) -> None:
        """End all sources; `run` then finishes what was taken, closes open tracks with `shutdown` and returns."""
        self._following.is_stopping = True
        self.stopped_at = self.stopped_at or time.monotonic()
        self.stopping.set()
        if self._merge is not None:
            await self._merge.aclose()

    async def change_queries(self, stream: str, queries: Iterable[Query | str]) -> Sequence[QueryChange]:
        """Detect other words from now on. Raises `PromptError` or `ConfigError` and changes nothing when the new words
        cannot be used."""
        changed = self._streams.get(stream)
        if changed is None:
            raise ConfigError(f"there is no stream {stream!r}; there are {', '.join(self._streams)}")
        wanted = list(queries)
        await self._detection.prepare_queries([QueryBook(wanted).at()])
        changes = changed.analysis.queries.replace(wanted, time_ns=time.time_ns())
        if changes:
            self._following.add(QueriesChanged(changed, changes))
        return changes

    async def detect_images(self, images: Sequence[Image], texts: tuple[str, ...]) -> list[sv.Detections]:
        """Detect `texts` in BGR images of (height, width, 3) with the pipeline's detector, between two batches of
        frames, which become older by one call at most. Raises `DetectorError`."""
        return await self._detection.detect_images(images, texts)

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

    async def _detect_all(self, merge: FrameMerge) -> None:
        """Detect to the end, then let the following side finish."""
        try:
            await self._detection.run(
                merge, self._following.add_batch, lambda stream: self._following.add(StreamEnded(stream))
            )
            if self._enricher is not None:
                if not self._following.is_stopping:
                    await asyncio.to_thread(self._enricher.drain, _ENRICH_WAIT_S)
                await asyncio.to_thread(self._enricher.close)
        finally:
            self._following.finish()

    def _note_error(self, name: str, error: BaseException) -> None:
        log.error("%s: %s", name, error)
        self._streams[name].error = str(error)

    async def _aclose(self) -> None:
        if self._enricher is not None:
            await asyncio.to_thread(self._enricher.close)
        if self._merge is not None:
            await self._merge.aclose()
        for stream in self._streams.values():
            await stream.source.aclose()
            for recorder in stream.recorders:
                await recorder.aclose()
        self._detection.close()
