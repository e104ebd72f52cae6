"""The second half of a pipeline: detections become tracks, rule findings and events, which go to the spool in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sinks.event import Event
from sinks.spool.spool import Spool
from streamer.analysis.event_writer import EventTime
from streamer.analysis.queries import QueryChange
from streamer.enrichment.enricher import Enricher, Enrichment
from streamer.frame import Frame
from streamer.pipeline.detection import DetectedFrame
from streamer.pipeline.stream import Stream
from streamer.sources.frame_counter import FrameTally
from streamer.sources.source import SourceState, StateChange

_BATCHES_AHEAD = 2
"""Batches that may wait for tracking: enough to keep the detector busy, few enough to stay fresh."""


@dataclass(frozen=True, slots=True)
class QueriesChanged:
    """The queries of a stream have changed."""

    stream: Stream
    changes: Sequence[QueryChange]


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The last frame of a stream has been followed."""

    stream: Stream


class _ClockTick:
    """Time has passed: coverage of live streams may be due."""


FollowItem = list[DetectedFrame] | StateChange | QueriesChanged | StreamEnded | Enrichment | _ClockTick


class Following:
    """Follows what was detected, one item after the other, and sends the events to the spool.

    One task alone handles everything that makes events, so that the events of a stream are numbered in order.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        spool: Spool,
        *,
        on_frame: Callable[[str], None] | None = None,
        tick_s: float = 1.0,
    ) -> None:
        self.enricher: Enricher | None = None
        self.is_stopping = False
        self._streams = streams
        self._spool = spool
        self._on_frame = on_frame
        self._tick_s = tick_s
        self._items: asyncio.Queue[FollowItem | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_BATCHES_AHEAD)

    async def add_batch(self, batch: list[DetectedFrame]) -> None:
        """Queue the frames of a batch, waiting while too many batches are ahead."""
        await self._room.acquire()
        self._items.put_nowait(batch)

    def add(self, item: FollowItem) -> None:
        """Queue anything else; it is handled after what was queued before."""
        self._items.put_nowait(item)

    def finish(self) -> None:
        """Let `run` return once everything queued has been handled."""
        self._items.put_nowait(None)

    async def run(self) -> None:
        """Handle items until `finish`, then close every stream."""
        ticker = asyncio.create_task(self._tick(), name="coverage clock")
        try:
            while (item := await self._items.get()) is not None:
                await self._handle(item)
            for stream in self._streams.values():
                await self._close(stream)
        finally:
            ticker.cancel()

    async def _handle(self, item: FollowItem) -> None:
        if isinstance(item, list):
            self._room.release()
            await self._follow(item)
        elif isinstance(item, StateChange):
            stream = self._streams[item.stream]
            await self._send(stream, self._change_state(stream, item))
        elif isinstance(item, QueriesChanged):
            analysis, moment = item.stream.analysis, item.stream.event_time()
            events = [event for change in item.changes for event in analysis.changed(change, moment)]
            await self._send(item.stream, events)
        elif isinstance(item, Enrichment):
            stream = self._streams[item.stream]
            await self._send(stream, stream.analysis.enriched(item))
        elif isinstance(item, StreamEnded):
            await self._close(item.stream)
        else:
            await self._cover_live()

    async def _follow(self, batch: Sequence[DetectedFrame]) -> None:
        events: list[Event] = []
        for found in batch:
            if found.stream.dark_since_ns is None:  # else its tracks have been ended: the frame comes too late
                events += await self._follow_frame(found)
        await self._spool_batch(events)

    async def _follow_frame(self, found: DetectedFrame) -> list[Event]:
        stream, frame, events = found.stream, found.frame, []
        if not stream.is_live and not stream.is_begun:
            events += stream.analysis.online(EventTime.of(frame))
            stream.is_begun = True
        if found.detections is None:
            tracked = stream.analysis.predict(frame)
            stream.not_sampled += not found.queries
            stream.failed += bool(found.queries)
        else:
            moved = None
            if stream.camera_watch.wants(frame):
                moved = await asyncio.to_thread(stream.camera_watch.update, frame, found.detections)
            tracked, happened = stream.analysis.analyse(frame, found.detections, found.queries, moved)
            events += happened
            stream.analysed += 1
            if self.enricher is not None:
                self.enricher.offer(frame, happened)
        events += self._note_frame(stream, frame)
        for recorder in stream.recorders:
            await recorder.write(frame, tracked, analysed=found.detections is not None)
        if self._on_frame is not None:
            self._on_frame(frame.stream)
        return events

    def _note_frame(self, stream: Stream, frame: Frame) -> list[Event]:
        """Remember the frame as the last one; returns the coverage of a recording where it is due."""
        stream.last = EventTime.of(frame)
        if stream.first_ns is None:
            stream.first_ns = frame.time_ns
        if stream.is_live:
            stream.age_s = (time.time_ns() - frame.time_ns) / 1e9
        elif stream.coverage_meter.due(frame.time_ns):
            return self._cover(stream, stream.followed_tally(frame.index + 1))
        return []

    @staticmethod
    def _change_state(stream: Stream, change: StateChange) -> list[Event]:
        """Events for a stream that went dark or is seen again: one pair per outage."""
        stream.state = change.state
        if not stream.is_live:
            return []
        moment = stream.arrival_time(change.time_ns)
        if change.state is SourceState.LIVE and (not stream.is_begun or stream.dark_since_ns is not None):
            events = stream.analysis.online(moment, stream.dark_cause, stream.dark_since_ns)
            stream.is_begun, stream.dark_since_ns, stream.dark_cause = True, None, ""
            return events
        if change.state in (SourceState.STALLED, SourceState.WAITING) and stream.dark_since_ns is None:
            stream.dark_since_ns, stream.dark_cause = change.time_ns, change.cause
            return stream.analysis.outage(moment, change.cause, change.time_ns)
        return []

    async def _tick(self) -> None:
        """Coverage of live streams is due by the system clock, because it must come when no frame does. It goes
        through the queue like everything else."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.add(_ClockTick())

    async def _cover_live(self) -> None:
        now_ns = time.time_ns()
        for stream in self._streams.values():
            if stream.is_live and not stream.is_closed and stream.coverage_meter.due(now_ns):
                await self._send(stream, self._cover(stream, stream.source.account.tally()))

    def _cover(self, stream: Stream, tally: FrameTally) -> list[Event]:
        moment = stream.event_time()
        info = stream.coverage_meter.measure(tally, moment.time_ns, self._spool.dropped(stream.name))
        return stream.analysis.coverage(moment, info)

    async def _close(self, stream: Stream) -> None:
        """End what is open in a stream, send its last coverage, and `offline` as the newest event of the stream."""
        if stream.is_closed:
            return
        stream.is_closed = True
        stream.state = SourceState.CLOSED
        for recorder in stream.recorders:
            await recorder.aclose()
        if stream.last is None and not stream.is_live:
            return
        moment = stream.event_time()
        is_over = self.is_stopping or not stream.is_live
        events = stream.analysis.close(moment, "shutdown" if is_over else "stream_down")
        events += self._cover(stream, stream.source.account.tally())
        cause = "shutdown" if self.is_stopping else "the camera ended the stream" if stream.is_live else "end of file"
        since_ns = moment.time_ns if stream.dark_since_ns is None else stream.dark_since_ns
        events += stream.analysis.offline(moment, stream.dark_cause or stream.error or cause, since_ns)
        await self._send(stream, events)

    async def _send(self, stream: Stream, events: Sequence[Event]) -> None:
        """Send the events of one stream to the spool."""
        if events:
            await self._spool.send_batch(events)
            stream.event_counts.update(event.type for event in events)

    async def _spool_batch(self, events: Sequence[Event]) -> None:
        """Send the events of several streams to the spool."""
        if events:
            await self._spool.send_batch(events)
            for event in events:
                self._streams[event.data.stream].event_counts[event.type] += 1
