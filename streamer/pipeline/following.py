"""The second half of a pipeline: detections become tracks, rule findings and events, which go to the spool in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import supervision as sv

from sinks.event import Event
from sinks.spool.spool import Spool
from sinks.supervision import start_task
from streamer.analysis.camera_motion import Affine
from streamer.analysis.event_writer import EventTime
from streamer.enrichment.enricher import Enricher, Enrichment
from streamer.errors import StreamerError
from streamer.frame import Frame
from streamer.media.clips import ClipWriter
from streamer.media.privacy import PictureCover
from streamer.media.snapshots import SnapshotWriter
from streamer.pipeline.detection import DetectedFrame
from streamer.pipeline.stream import Recorder, Stream, StreamChange
from streamer.pipeline.timings import PipelineTimings
from streamer.sources.frame_counter import FrameTally
from streamer.sources.source import Source, SourceState, StateChange

if TYPE_CHECKING:
    from streamer.tracing import FrameTraces

log = logging.getLogger("groundstream")

_CHANGE_WAIT_S = 2.0
"""How long a change waits for a frame captured after it, before it is applied and reported without one."""
_SNAPSHOT_WAIT_S = 2.0
"""How long the end of a stream waits for its last pictures."""
_CLIP_WAIT_S = 10.0
"""How long the end of a stream waits for its last clips."""
_RECORDING_WAIT_S = 30.0
"""How long a recording waits for the pictures and clips that are due at one frame."""
_BATCHES_AHEAD = 2
"""Batches that may wait for tracking: enough to keep the detector busy, few enough to stay fresh."""


@dataclass(frozen=True, slots=True)
class SourceChanged:
    """The state of `source` has changed; ignored where the stream has another source by now."""

    stream: Stream
    source: Source
    change: StateChange


@dataclass(frozen=True, slots=True)
class StreamChanged:
    """The analysis of a stream changes, or its recorders do."""

    stream: Stream
    change: StreamChange | None = None
    added: Mapping[str, Recorder] = field(default_factory=dict)
    removed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StreamAdded:
    """A stream was added; its first frame comes after this."""

    stream: Stream


@dataclass(frozen=True, slots=True, eq=False)
class EventsAwaited:
    """Everything queued before this has become events that are safe once `done` is set."""

    done: asyncio.Event


@dataclass(frozen=True, slots=True)
class StreamPaused:
    """A stream was paused; its last frame was queued before this."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamResumed:
    """A paused camera is watched again; its first frame comes after this."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream has ended, or was removed; its last frame was queued before this."""

    stream: Stream
    is_removed: bool = False


class _ClockTick:
    """Time has passed: coverage of live streams may be due."""


FollowItem = (
    list[DetectedFrame]
    | SourceChanged
    | StreamChanged
    | StreamAdded
    | EventsAwaited
    | StreamPaused
    | StreamResumed
    | StreamEnded
    | Enrichment
    | _ClockTick
)


class FollowingLoop:
    """Follows what was detected, one item after the other, and sends the events to the spool.

    One task alone handles everything that makes events, so that the events of a stream are numbered in order. A stream
    whose frames cannot be followed is handed to `on_failed`, which ends its source; the others go on.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        spool: Spool,
        *,
        on_frame: Callable[[str], None] | None = None,
        on_failed: Callable[[Stream], None] | None = None,
        snapshots: SnapshotWriter | None = None,
        clips: ClipWriter | None = None,
        cover: PictureCover | None = None,
        tick_s: float = 1.0,
        timings: PipelineTimings | None = None,
        traces: FrameTraces | None = None,
    ) -> None:
        self.enricher: Enricher | None = None
        self.is_stopping = False
        self._streams = streams
        self._spool = spool
        self._on_frame = on_frame
        self._on_failed = on_failed
        self._snapshots = snapshots
        self._clips = clips
        self._picture_cover = cover
        self._tick_s = tick_s
        self._timings = timings or PipelineTimings()
        self._traces = traces
        self._written: dict[tuple[str, int], int] = {}  # events of streams that were removed, by name and run
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
        ticker = start_task(self._tick(), name="coverage clock")
        try:
            while (item := await self._items.get()) is not None:
                await self._handle(item)
            for stream in list(self._streams.values()):
                await self._close(stream)
        finally:
            ticker.cancel()

    async def _handle(self, item: FollowItem) -> None:
        match item:
            case list():
                self._room.release()
                await self._follow(item)
            case SourceChanged(stream, source, change):
                if source is stream.source and not stream.is_closed and not stream.is_paused:
                    await self._send(stream, self._change_state(stream, change))
            case StreamChanged(stream):
                await self._change(item)
            case StreamAdded(stream):
                stream.analysis.continue_after(self._written.get((stream.name, stream.analysis.run), 0))
                await self._take_over(stream)
            case EventsAwaited(done):
                done.set()
            case StreamPaused(stream):
                await self._pause(stream)
            case StreamResumed(stream):
                stream.is_begun = False
                await self._send(stream, self._cover(stream, stream.tally()))
            case StreamEnded(stream):
                await self._close(stream, is_removed=item.is_removed)
            case Enrichment():
                await self._enrich(item)
            case _:
                await self._cover_live()

    async def _follow(self, batch: Sequence[DetectedFrame]) -> None:
        sent: list[tuple[Stream, list[Event]]] = []
        failed: dict[Stream, Exception] = {}
        moved = await _measure_motion(batch)
        for position, found in enumerate(batch):
            stream, events = found.stream, list[Event]()
            stream.in_flight -= 1
            if stream.is_closed or stream.has_failed:
                continue
            sent.append((stream, events))
            try:
                events += self._apply_changes(stream, found.frame.time_ns)
                if stream.dark_since_ns is None or not stream.is_begun:  # else it comes too late
                    await self._follow_frame(found, moved.get(position), events)
            except Exception as error:
                stream.has_failed = True
                failed[stream] = error
        began_ns = time.time_ns()
        await self._spool.send_batch([event for _, events in sent for event in events])
        if self._traces is not None:
            for found in batch:
                self._traces.note_sent(found.frame, began_ns)
        for stream, events in sent:
            stream.event_counts.update(event.type for event in events)
        for stream, reason in failed.items():
            self._fail(stream, reason)

    def _fail(self, stream: Stream, error: Exception) -> None:
        """End a stream whose frames cannot be followed; the others go on."""
        stream.error = _error_text(error)
        log.error("%s: the stream ends: %s", stream.name, stream.error, exc_info=_traceback_of(error))
        if self._on_failed is not None:
            self._on_failed(stream)

    async def _record(self, stream: Stream, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        """Hand a frame to the recorders. A failing one is switched off for a camera, and ends a recording: its results
        would not be whole."""
        for name, recorder in list(stream.recorders.items()):
            try:
                await recorder.write(frame, tracked, analysed=analysed)
            except Exception as error:
                if not stream.is_live:
                    raise
                del stream.recorders[name]
                text = _error_text(error)
                log.error("%s: %s is switched off: %s", stream.name, name, text, exc_info=_traceback_of(error))
                await _close_recorder(stream, recorder)

    async def _change(self, item: StreamChanged) -> None:
        """Queue a change of the analysis for the frames that it is for, and change the recorders."""
        stream = item.stream
        if item.change is not None and not stream.is_closed:
            stream.changes.append(item.change)
        stream.recorders.update(item.added)
        for name in item.removed:
            recorder = stream.recorders.pop(name, None)
            if recorder is not None:
                await _close_recorder(stream, recorder)

    @staticmethod
    def _apply_changes(stream: Stream, time_ns: int | None = None) -> list[Event]:
        """Apply the changes in force at `time_ns`, all of them without a time; returns their events."""
        events: list[Event] = []
        while stream.changes and (time_ns is None or stream.changes[0].since_ns <= time_ns):
            due = stream.changes.popleft()
            events += stream.analysis.change(due.change, stream.event_time(), stream.time_before(due.since_ns))
        return events

    async def _apply_overdue(self) -> None:
        """Apply changes of streams from which no frame has come since, so that they are reported all the same."""
        latest_s = time.monotonic() - _CHANGE_WAIT_S
        for stream in self._streams.values():
            if stream.changes and not stream.in_flight and stream.changes[0].queued_s < latest_s:
                await self._send(stream, self._apply_changes(stream))

    async def _enrich(self, item: Enrichment) -> None:
        stream = self._streams.get(item.stream)
        if stream is None:
            log.info("%s: a description came after the stream was removed and is dropped", item.stream)
        else:
            await self._send(stream, stream.analysis.enriched(item))

    async def _follow_frame(self, found: DetectedFrame, moved: Affine | None, events: list[Event]) -> None:
        """Follow one frame; its events are added to `events` as they come."""
        stream, frame = found.stream, found.frame
        if not stream.is_begun:
            events += stream.analysis.online(EventTime.of(frame), stream.dark_cause, stream.dark_since_ns)
            stream.is_begun, stream.dark_since_ns, stream.dark_cause = True, None, ""
        happened: list[Event] = []
        if found.detections is None:
            tracked = stream.analysis.predict(frame)
            stream.not_sampled += not found.queries
            stream.failed += bool(found.queries)
        else:
            began_ns = time.time_ns()
            tracked, happened = stream.analysis.analyse(frame, found.detections, found.queries, moved)
            if self._traces is not None:
                self._traces.note_followed(frame, began_ns, stream.analysis.tracked_ns, happened)
            events += happened
            stream.analysed += 1
            if self.enricher is not None:
                self.enricher.offer(frame, happened)
        if self._picture_cover is not None:
            matches = stream.analysis.matches
            frame = self._picture_cover.cover(frame, tracked, found.detections, found.queries, matches)
        await self._offer_pictures(found, frame, tracked, happened)
        events += self._report_snapshots(stream)
        events += self._note_frame(stream, frame)
        events += self._report_clips(stream)
        await self._record(stream, frame, tracked, analysed=found.detections is not None)
        if self._on_frame is not None:
            self._on_frame(frame.stream)

    async def _offer_pictures(
        self, found: DetectedFrame, frame: Frame, tracked: sv.Detections, happened: Sequence[Event]
    ) -> None:
        """Offer a frame, as it may be shown, to the writers of pictures and clips.

        A recording can wait: it gets every picture and clip, and the same ones each time.
        """
        stream = found.stream
        writers: list[SnapshotWriter | ClipWriter] = []
        shots = None if found.detections is None else self._snapshots
        if shots is not None and shots.offer(frame, tracked, happened) and not stream.is_live:
            writers.append(shots)
        if self._clips is not None and self._clips.offer(frame, happened, stream.cutter, is_live=stream.is_live):
            writers.append(self._clips)
        for writer in writers:
            await asyncio.to_thread(writer.drain, stream.name, _RECORDING_WAIT_S)

    def _report_snapshots(self, stream: Stream) -> list[Event]:
        """Events for the pictures of a stream that were written meanwhile."""
        if self._snapshots is None:
            return []
        return [
            event for shot in self._snapshots.take_finished(stream.name) for event in stream.analysis.pictured(shot)
        ]

    def _report_clips(self, stream: Stream) -> list[Event]:
        """Events for the clips of a stream that were written meanwhile, at the present time of the stream."""
        clips = [] if self._clips is None else self._clips.take_finished(stream.name)
        moment = stream.event_time()
        return [event for clip in clips for event in stream.analysis.pictured(replace(clip, moment=moment))]

    def _note_frame(self, stream: Stream, frame: Frame) -> list[Event]:
        """Remember the frame as the last one; returns the coverage of a recording where it is due."""
        stream.last = EventTime.of(frame)
        if stream.first_ns is None:
            stream.first_ns = frame.time_ns
        if stream.is_live:
            stream.age_s = (time.time_ns() - frame.time_ns) / 1e9
            self._timings.note_frame(stream.name, stream.age_s)
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
            _log_return(stream, change.time_ns)
            stream.is_begun, stream.dark_since_ns, stream.dark_cause = True, None, ""
            return events
        if change.state in (SourceState.STALLED, SourceState.WAITING) and stream.dark_since_ns is None:
            log.warning("%s: the camera gives no pictures: %s", stream.name, change.cause or change.state.value)
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
        await self._apply_overdue()
        if self._clips is not None:
            self._clips.finish_overdue()
        for stream in list(self._streams.values()):
            if not stream.is_closed:
                await self._send(stream, self._report_snapshots(stream) + self._report_clips(stream))
            if stream.is_live and not stream.is_closed and not stream.is_paused and stream.coverage_meter.due(now_ns):
                await self._send(stream, self._cover(stream, stream.tally()))

    def _cover(self, stream: Stream, tally: FrameTally) -> list[Event]:
        moment = stream.event_time()
        info = stream.coverage_meter.measure(tally, moment.time_ns, self._spool.dropped(stream.name))
        return stream.analysis.coverage(moment, info)

    async def _take_over(self, stream: Stream) -> None:
        """Report the time in which a camera was not watched, because its former holder may have been lost."""
        term = stream.term
        if term is None or term.outage_since_ns is None or not stream.is_live:
            return
        stream.dark_since_ns, stream.dark_cause = term.outage_since_ns, term.outage_cause
        if not term.is_outage_reported:
            moment = stream.arrival_time(time.time_ns())
            await self._send(stream, stream.analysis.offline(moment, term.outage_cause, term.outage_since_ns))

    async def _pause(self, stream: Stream) -> None:
        """End what is open in a camera that was paused; a recording only waits."""
        if not stream.is_live or stream.is_closed:
            return
        if self._clips is not None:
            self._clips.finish(stream.name)
        events = self._apply_changes(stream)
        if stream.is_begun and stream.dark_since_ns is None:
            moment = stream.event_time()
            stream.dark_since_ns, stream.dark_cause = moment.time_ns, "paused"
            events += stream.analysis.outage(moment, "paused", moment.time_ns)
        await self._send(stream, events + self._cover(stream, stream.tally()))

    async def _close(self, stream: Stream, *, is_removed: bool = False) -> None:
        """End what is open in a stream, send its last coverage, and `offline` as the newest event of the stream."""
        if not stream.is_closed:
            stream.is_closed = True
            stream.state = SourceState.CLOSED
            for recorder in stream.recorders.values():
                await _close_recorder(stream, recorder)
            if self._picture_cover is not None:
                self._picture_cover.forget(stream.name)
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.drain, stream.name, _SNAPSHOT_WAIT_S)
                await self._send(stream, self._report_snapshots(stream))
                self._snapshots.forget(stream.name)
            if self._clips is not None:
                await self._close_clips(stream, self._clips)
            if stream.is_begun or stream.is_live:
                await self._send_last(stream, is_removed=is_removed)
        if is_removed:
            self._written[stream.name, stream.analysis.run] = stream.analysis.events_written

    async def _close_clips(self, stream: Stream, clips: ClipWriter) -> None:
        """Write and report the last clips of a stream, then release the packets that they are made of."""
        clips.finish(stream.name)
        limit_s = _CLIP_WAIT_S if stream.is_live else _RECORDING_WAIT_S
        await asyncio.to_thread(clips.drain, stream.name, limit_s)
        await self._send(stream, self._report_clips(stream))
        clips.forget(stream.name)
        if stream.cutter is not None:
            stream.cutter.release()

    async def _send_last(self, stream: Stream, *, is_removed: bool) -> None:
        try:
            events = self._last_events(stream, is_removed=is_removed)
        except Exception as error:  # what failed before may fail again: the other streams close all the same
            stream.error = stream.error or _error_text(error)
            log.error("%s: the stream cannot be closed: %s", stream.name, error, exc_info=_traceback_of(error))
        else:
            await self._send(stream, events)

    def _last_events(self, stream: Stream, *, is_removed: bool) -> list[Event]:
        events = self._apply_changes(stream)
        moment = stream.event_time()
        is_over = self.is_stopping or is_removed or not stream.is_live
        events += stream.analysis.close(moment, "shutdown" if is_over else "stream_down")
        events += self._cover(stream, stream.tally())
        cause = "the camera ended the stream" if stream.is_live else "end of file"
        if is_removed or self.is_stopping:
            cause = (stream.leaving_cause or "removed") if is_removed else "shutdown"
        since_ns = moment.time_ns if stream.dark_since_ns is None else stream.dark_since_ns
        return events + stream.analysis.offline(moment, stream.dark_cause or stream.error or cause, since_ns)

    async def _send(self, stream: Stream, events: Sequence[Event]) -> None:
        """Send the events of one stream to the spool."""
        if events:
            await self._spool.send_batch(events)
            stream.event_counts.update(event.type for event in events)


async def _measure_motion(batch: Sequence[DetectedFrame]) -> dict[int, Affine | None]:
    """The motion of the cameras that are due, by position in the batch.

    All in one call of a thread: with many cameras, a change of threads for each would take longer than the work. One
    live camera at most begins in each batch, so that a machine that is behind spends its time on tracking.
    """
    due: set[str] = set()
    wanted: list[tuple[int, DetectedFrame]] = []
    has_begun = False
    for position, found in enumerate(batch):
        stream, watch = found.stream, found.stream.camera_watch
        if stream.name not in due and found.detections is not None and watch.is_due(found.frame):
            if stream.is_live and not watch.is_checking:
                if has_begun:
                    continue
                has_begun = True
            due.add(stream.name)
        if stream.name in due:
            wanted.append((position, found))
    return await asyncio.to_thread(_update_watches, wanted) if wanted else {}


def _update_watches(wanted: Sequence[tuple[int, DetectedFrame]]) -> dict[int, Affine | None]:
    moved: dict[int, Affine | None] = {}
    for position, found in wanted:
        if found.detections is not None and found.stream.camera_watch.wants(found.frame):
            moved[position] = found.stream.camera_watch.update(found.frame, found.detections)
    return moved


def _log_return(stream: Stream, time_ns: int) -> None:
    if stream.dark_since_ns is None:
        log.info("%s: the camera is connected", stream.name)
    else:
        away_s = (time_ns - stream.dark_since_ns) / 1e9
        log.warning("%s: the camera is back after %.1f s (%s)", stream.name, away_s, stream.dark_cause)


async def _close_recorder(stream: Stream, recorder: Recorder) -> None:
    """Close a recorder; an error is the stream's, whose other parts close all the same."""
    try:
        await recorder.aclose()
    except Exception as error:
        stream.error = stream.error or _error_text(error)
        log.error("%s: a recorder did not close: %s", stream.name, error, exc_info=_traceback_of(error))


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, StreamerError) else f"{type(error).__name__}: {error}"


def _traceback_of(error: Exception) -> Exception | None:
    """The error where its traceback belongs into the log: a fault of the program and not of its input."""
    return None if isinstance(error, StreamerError) else error
