"""The flow from frames to events: `sources -> merge -> detector thread -> tracker, rules -> spool`.

Two loops share the work, so that the detector never waits for tracking: one takes the newest frames and has them
looked at by the thread that owns the detector, the other follows what was found, in order. Live frames wait nowhere
in between: they are taken when the detector is free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import supervision as sv

from detectors import Detector, DetectorError, Prompt, Request
from sinks.event import Event
from sinks.spool.delivery import SinkStatus
from sinks.spool.spool import Spool
from streamer.analysis.camera_motion import CameraWatch
from streamer.analysis.event_writer import EventTime
from streamer.analysis.queries import Query, QueryBook, QueryChange, QuerySet
from streamer.analysis.stream_analysis import CoverageMeter, StreamAnalysis
from streamer.enrichment.enricher import Enricher, Enrichment, EnrichTally
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.pipeline.merge import FrameMerge
from streamer.sources.frame_counter import FrameTally
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import Source, SourceState, StateChange

log = logging.getLogger("groundstream")

COVERAGE_EVERY_S = 10.0
_AHEAD = 2
"""Batches that may wait for tracking: enough to keep the detector busy, few enough to stay fresh."""
_PROMPTS_KEPT = 256
_FRESH_NS = 2_000_000_000
_ENRICH_WAIT_S = 120.0
"""How long the end of recordings waits for descriptions that were asked for."""


class Recorder(Protocol):
    """Keeps something of every frame of one stream: tracks as text, an annotated video."""

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        """`tracked` are the frame's tracks; guesses from their motion where the frame was not `analysed`."""
        ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Camera:
    """One stream and all that is done with it. `origin` tells which part of a configuration it came from; it may hold
    an address with credentials, so it is not shown."""

    source: Source
    analysis: StreamAnalysis
    sampling: FrameSampling = field(default_factory=FrameSampling)
    recorders: Sequence[Recorder] = ()
    origin: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return self.source.name


@dataclass(slots=True)
class _FollowState:
    """What following a stream has to remember."""

    meter: CoverageMeter = field(default_factory=lambda: CoverageMeter(COVERAGE_EVERY_S))
    watch: CameraWatch = field(default_factory=CameraWatch)
    first_ns: int | None = None
    last: EventTime | None = None
    begun: bool = False
    dark_since_ns: int | None = None
    dark_cause: str = ""
    analysed: int = 0
    not_sampled: int = 0
    failed: int = 0
    closed: bool = False

    @property
    def seen_s(self) -> float:
        """Seconds of capture time from the first frame to the last."""
        return 0.0 if self.first_ns is None or self.last is None else (self.last.time_ns - self.first_ns) / 1e9


@dataclass(frozen=True, slots=True)
class _DetectedFrame:
    """A frame with what was found in it for `queries`: no queries where nobody looked, no detections where the
    detector failed."""

    frame: Frame
    queries: QuerySet
    detections: sv.Detections | None


@dataclass(frozen=True, slots=True)
class _QueriesChanged:
    stream: str
    changes: Sequence[QueryChange]


@dataclass(frozen=True, slots=True)
class _StreamEnded:
    stream: str


class _ClockTick:
    """Time has passed: coverage of live streams may be due."""


_Item = list[_DetectedFrame] | StateChange | _QueriesChanged | _StreamEnded | Enrichment | _ClockTick

NewEnricher = Callable[[Callable[[Enrichment], None]], Enricher]
"""Makes the enricher of a pipeline, which delivers what it has to tell to the given function."""


@dataclass(frozen=True, slots=True)
class StreamReport:
    """How one stream is doing. `age_s` is how old the last frame was when it had been followed, None for recordings;
    `seen_s` the capture time from the first frame to the last."""

    stream: str
    live: bool
    state: SourceState
    tally: FrameTally
    age_s: float | None
    tracks: int
    seen_s: float
    error: str = ""


class StateRelay:
    """Carries state changes from the sources' threads to the pipeline that is built after them."""

    def __init__(self) -> None:
        self._waiting: list[StateChange] = []
        self._deliver: Callable[[StateChange], object] = self._waiting.append

    def __call__(self, change: StateChange) -> None:
        self._deliver(change)

    def connect(self, deliver: Callable[[StateChange], object]) -> None:
        self._deliver = deliver
        for change in self._waiting:
            deliver(change)


class Pipeline:
    """Runs cameras through one detector until they end or `stop()` is called.

    `relay` is what the sources were opened with as `on_state`. Errors of one camera end that camera alone: they are
    in `errors` by stream afterwards.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        detector: Detector,
        spool: Spool,
        relay: StateRelay,
        *,
        batch_size: int = 8,
        max_wait_s: float = 0.01,
        on_frame: Callable[[str], None] | None = None,
        new_enricher: NewEnricher | None = None,
    ) -> None:
        self.errors: dict[str, str] = {}
        self.event_counts: dict[str, Counter[str]] = {camera.name: Counter() for camera in cameras}
        self._cameras = {camera.name: camera for camera in cameras}
        if len(self._cameras) < len(cameras):
            raise ConfigError("two streams have the same name: give each its own")
        self._detector = detector
        self._spool = spool
        self._relay = relay
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s
        self._on_frame = on_frame
        self._new_enricher = new_enricher
        self._enricher: Enricher | None = None
        self._follows = {name: _FollowState() for name in self._cameras}
        self._states = dict.fromkeys(self._cameras, SourceState.CONNECTING)
        self._ages: dict[str, float] = {}
        self._prompts: dict[tuple[str, ...], Prompt] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")
        self._merge: FrameMerge | None = None
        self._items: asyncio.Queue[_Item | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AHEAD)
        self._stopping = False

    @property
    def cameras(self) -> Sequence[Camera]:
        return tuple(self._cameras.values())

    async def run(self) -> None:
        """Until every source has ended. Raises `PromptError` before the first frame when words cannot be read."""
        loop = asyncio.get_running_loop()

        def put(item: _Item) -> None:
            """From other threads: sources and the enricher have theirs."""
            loop.call_soon_threadsafe(self._items.put_nowait, item)

        try:
            await self._prepare({self._texts(camera.analysis.queries.at()) for camera in self._cameras.values()})
            if self._new_enricher is not None:
                self._enricher = self._new_enricher(put)
            if self._stopping:
                return
            self._relay.connect(put)
            self._merge = FrameMerge([camera.source for camera in self._cameras.values()], on_error=self._fail)
            async with asyncio.TaskGroup() as tasks:
                ticker = tasks.create_task(self._tick())
                tasks.create_task(self._detect_and_end())
                await tasks.create_task(self._follow_all())
                ticker.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            await self._aclose()

    async def stop(self) -> None:
        """End all sources; `run` then finishes what was taken, closes open tracks with `shutdown` and returns."""
        self._stopping = True
        if self._merge is not None:
            await self._merge.aclose()

    async def change_queries(self, stream: str, queries: Iterable[Query | str]) -> Sequence[QueryChange]:
        """Look for other words from now on. Raises `PromptError` or `ConfigError` and changes nothing when the new
        words cannot be used."""
        camera = self._cameras.get(stream)
        if camera is None:
            raise ConfigError(f"there is no stream {stream!r}; there are {', '.join(self._cameras)}")
        wanted = list(queries)
        await self._prepare({self._texts(QueryBook(wanted).at())})
        changes = camera.analysis.queries.replace(wanted, time_ns=time.time_ns())
        if changes:
            self._items.put_nowait(_QueriesChanged(stream, changes))
        return changes

    def report(self) -> list[StreamReport]:
        """How every stream is doing now."""
        return [
            StreamReport(
                name,
                camera.source.live,
                self._states[name],
                camera.source.account.tally(),
                self._ages.get(name),
                len(camera.analysis.tracks.records),
                self._follows[name].seen_s,
                self.errors.get(name, ""),
            )
            for name, camera in self._cameras.items()
        ]

    def sinks(self) -> list[SinkStatus]:
        """Where every sink stands."""
        return self._spool.status()

    def dropped_events(self, stream: str) -> dict[str, int]:
        """A stream's events that were given up, by reason."""
        return self._spool.dropped(stream)

    def enrichment(self) -> EnrichTally | None:
        """What became of the requests for descriptions; None where nobody describes."""
        return None if self._enricher is None else self._enricher.tally()

    # From frames to detections.

    async def _detect_and_end(self) -> None:
        """Detect to the end, then let the followers know that nothing more comes."""
        try:
            await self._detect_all()
            if self._enricher is not None:
                if not self._stopping:
                    await asyncio.to_thread(self._enricher.drain, _ENRICH_WAIT_S)
                await asyncio.to_thread(self._enricher.close)
        finally:
            self._items.put_nowait(None)

    async def _detect_all(self) -> None:
        assert self._merge is not None
        loop = asyncio.get_running_loop()
        going = self._merge.streams
        while frames := await self._merge.take(self._batch_size, self._max_wait_s):
            batch = [self._ask(frame) for frame in frames]
            wanted = [asked for asked in batch if asked[1]]
            found = await loop.run_in_executor(self._thread, self._look, wanted) if wanted else {}
            await self._room.acquire()
            self._items.put_nowait(self._settle(batch, found))
            for name in going - (still := self._merge.streams):
                self._items.put_nowait(_StreamEnded(name))
            going = still

    def _ask(self, frame: Frame) -> tuple[Frame, QuerySet]:
        """The frame with the words to look for, none when it is not to be looked at."""
        camera = self._cameras[frame.stream]
        if not camera.sampling.wants(frame):
            return frame, ()
        return frame, camera.analysis.queries.at(frame.time_ns if camera.source.live else None)

    def _look(self, asked: Sequence[tuple[Frame, QuerySet]]) -> dict[int, sv.Detections | Exception]:
        """Detections by position in `asked`. When a batch fails, each frame is tried alone: one camera's trouble is
        not another's. Runs in the detector's thread."""
        requests = [
            Request(lambda frame=frame: frame.image, self._prompt(self._texts(queries)), frame.stream)  # type: ignore[misc]
            for frame, queries in asked
        ]
        try:
            return dict(enumerate(self._detector.detect(requests)))
        except Exception as error:
            if len(requests) == 1:
                return {0: error}
        results: dict[int, sv.Detections | Exception] = {}
        for position, request in enumerate(requests):
            try:
                results[position] = self._detector.detect([request])[0]
            except Exception as error:
                results[position] = error
        return results

    def _settle(
        self, batch: Sequence[tuple[Frame, QuerySet]], found: dict[int, sv.Detections | Exception]
    ) -> list[_DetectedFrame]:
        """Account for every frame of a batch."""
        settled = []
        position = 0
        for frame, queries in batch:
            account = self._cameras[frame.stream].source.account
            detections: sv.Detections | None = None
            if not queries:
                account.drop("not_sampled")
            else:
                result = found[position]
                position += 1
                if isinstance(result, Exception):
                    account.drop("detector_error")
                    self._tell_detector_error(frame.stream, result)
                else:
                    account.analyse()
                    detections = result
            settled.append(_DetectedFrame(frame, queries, detections))
        return settled

    def _tell_detector_error(self, stream: str, error: Exception) -> None:
        if stream not in self.errors:
            log.error("%s: the detector failed: %s", stream, error, exc_info=not isinstance(error, DetectorError))
        self.errors[stream] = f"the detector failed: {error}"

    async def _prepare(self, sets: Iterable[tuple[str, ...]]) -> None:
        loop = asyncio.get_running_loop()
        for texts in sets:
            if texts:
                await loop.run_in_executor(self._thread, self._prompt, texts)

    def _prompt(self, texts: tuple[str, ...]) -> Prompt:
        prompt = self._prompts.get(texts)
        if prompt is None:
            if len(self._prompts) >= _PROMPTS_KEPT:
                del self._prompts[next(iter(self._prompts))]
            prompt = self._prompts[texts] = self._detector.prepare(texts)
        return prompt

    @staticmethod
    def _texts(queries: QuerySet) -> tuple[str, ...]:
        return tuple(query.text for query in queries)

    # From detections to events.

    async def _follow_all(self) -> None:
        while (item := await self._items.get()) is not None:
            if isinstance(item, list):
                self._room.release()
                await self._follow(item)
            elif isinstance(item, StateChange):
                await self._spool_all(self._turn(item))
            elif isinstance(item, _QueriesChanged):
                moment = self._now(item.stream)
                analysis = self._cameras[item.stream].analysis
                await self._spool_all([event for change in item.changes for event in analysis.changed(change, moment)])
            elif isinstance(item, _ClockTick):
                await self._cover_live()
            elif isinstance(item, Enrichment):
                await self._spool_all(self._cameras[item.stream].analysis.enriched(item))
            else:
                await self._close(item.stream)
        for name in self._cameras:
            await self._close(name)

    async def _follow(self, batch: Sequence[_DetectedFrame]) -> None:
        events: list[Event] = []
        for found in batch:
            frame = found.frame
            camera, follow = self._cameras[frame.stream], self._follows[frame.stream]
            if follow.dark_since_ns is not None:
                continue  # it was on its way when the stream went dark; its tracks have been ended
            if not camera.source.live and not follow.begun:
                events += camera.analysis.online(EventTime.of(frame))
                follow.begun = True
            if found.detections is None:
                tracked = camera.analysis.predict(frame)
                follow.not_sampled += not found.queries
                follow.failed += bool(found.queries)
            else:
                moved = None
                if follow.watch.wants(frame):
                    moved = await asyncio.to_thread(follow.watch.update, frame, found.detections)
                tracked, happened = camera.analysis.analyse(frame, found.detections, found.queries, moved)
                events += happened
                follow.analysed += 1
                if self._enricher is not None:
                    self._enricher.offer(frame, happened)
            follow.last = EventTime.of(frame)
            if follow.first_ns is None:
                follow.first_ns = frame.time_ns
            if camera.source.live:
                self._ages[frame.stream] = (time.time_ns() - frame.time_ns) / 1e9
            elif follow.meter.due(frame.time_ns):
                events += self._cover(camera, self._file_tally(follow, frame.index + 1))
            for recorder in camera.recorders:
                await recorder.write(frame, tracked, analysed=found.detections is not None)
            if self._on_frame is not None:
                self._on_frame(frame.stream)
        await self._spool_all(events)

    def _turn(self, change: StateChange) -> list[Event]:
        """Events for a stream that went dark or is seen again: one pair per outage."""
        self._states[change.stream] = change.state
        camera, follow = self._cameras[change.stream], self._follows[change.stream]
        if not camera.source.live:
            return []
        moment = EventTime(change.time_ns, self._arrival(follow), follow.last.frame if follow.last else None)
        if change.state is SourceState.LIVE and (not follow.begun or follow.dark_since_ns is not None):
            events = camera.analysis.close(moment, "stream_down") if follow.dark_since_ns is not None else []
            events += camera.analysis.online(moment, follow.dark_cause, follow.dark_since_ns)
            follow.begun, follow.dark_since_ns, follow.dark_cause = True, None, ""
            return events
        if change.state in (SourceState.STALLED, SourceState.WAITING) and follow.dark_since_ns is None:
            follow.dark_since_ns, follow.dark_cause = change.time_ns, change.cause
            return camera.analysis.outage(moment, change.cause, change.time_ns)
        return []

    async def _tick(self) -> None:
        """Coverage of live streams is told by the clock on the wall: it must come when no frame does. It goes the way
        of everything else, so that one task alone numbers the events of a stream."""
        while True:
            await asyncio.sleep(COVERAGE_EVERY_S / 10)
            self._items.put_nowait(_ClockTick())

    async def _cover_live(self) -> None:
        now_ns = time.time_ns()
        for camera in self._cameras.values():
            follow = self._follows[camera.name]
            if camera.source.live and not follow.closed and follow.meter.due(now_ns):
                await self._spool_all(self._cover(camera, camera.source.account.tally()))

    def _cover(self, camera: Camera, tally: FrameTally) -> list[Event]:
        moment = self._now(camera.name)
        meter = self._follows[camera.name].meter
        return camera.analysis.coverage(moment, meter.measure(tally, moment.time_ns, self._spool.dropped(camera.name)))

    @staticmethod
    def _file_tally(follow: _FollowState, received: int) -> FrameTally:
        """A recording's account as of the frame that is followed: the reader may be ahead by any number."""
        lost = received - follow.analysed - follow.not_sampled - follow.failed
        dropped = {"corrupt": lost, "detector_error": follow.failed, "not_sampled": follow.not_sampled}
        return FrameTally(received, follow.analysed, {reason: count for reason, count in dropped.items() if count})

    async def _close(self, stream: str) -> None:
        """The last words of a stream: what is open ends, and its account is told."""
        camera, follow = self._cameras[stream], self._follows[stream]
        if follow.closed:
            return
        follow.closed = True
        self._states[stream] = SourceState.CLOSED
        for recorder in camera.recorders:
            await recorder.aclose()
        if follow.last is None and not camera.source.live:
            return
        moment = self._now(stream)
        over = self._stopping or not camera.source.live
        events = camera.analysis.close(moment, "shutdown" if over else "stream_down")
        await self._spool_all(events + self._cover(camera, camera.source.account.tally()))

    def _now(self, stream: str) -> EventTime:
        """The time of what concerns the stream as a whole: that of its last frame while frames come, so that the times
        of its events rise; else the clock on the wall."""
        follow, now_ns = self._follows[stream], time.time_ns()
        last = follow.last
        if last is not None:
            is_fresh = follow.dark_since_ns is None and now_ns - last.time_ns < _FRESH_NS
            if is_fresh or not self._cameras[stream].source.live:
                return last
        return EventTime(now_ns, self._arrival(follow), last.frame if last else None)

    @staticmethod
    def _arrival(follow: _FollowState) -> FrameClock:
        connection = follow.last.clock.connection if follow.last else 0
        return FrameClock("arrival", 0.0, time.time_ns(), connection)

    async def _spool_all(self, events: Sequence[Event]) -> None:
        if events:
            await self._spool.send_batch(events)
            for event in events:
                self.event_counts[event.data.stream][event.type] += 1

    def _fail(self, stream: str, error: BaseException) -> None:
        log.error("%s: %s", stream, error)
        self.errors[stream] = str(error)

    async def _aclose(self) -> None:
        if self._enricher is not None:
            await asyncio.to_thread(self._enricher.close)
        if self._merge is not None:
            await self._merge.aclose()
        for camera in self._cameras.values():
            await camera.source.aclose()
            for recorder in camera.recorders:
                await recorder.aclose()
        self._thread.shutdown(wait=False, cancel_futures=True)
