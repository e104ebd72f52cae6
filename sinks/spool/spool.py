"""Stands between the rules and every sink: what `send` has returned for is not lost.

One thread writes: everything that waits is stored in one commit (group commit), so that the event loop never waits
for a disk. Each sink has a cursor and a task of its own; an event leaves the spool when every sink has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from sinks.event import Event
from sinks.sink import Sink, SinkError
from sinks.spool.delivery import Numbered, SinkDelivery, SinkStatus, append_dead_letter, numbered
from sinks.spool.store import DROPPABLE, EventBlock, SpoolStore, StoreDamaged, StoreFull
from sinks.worker import SinkWorker

log = logging.getLogger("sinks.spool")

WhenFull = Literal["block", "drop_oldest"]
DEFAULT_MAX_BYTES = 1 << 30

R = TypeVar("R")

_TAIL_EVENTS = 4096
_BLOCK_EVENTS = 512
_BLOCK_BYTES = 1 << 20
_HOUSEKEEPING_S = 0.25
_RETRY_S = 0.25
_TELL_AGAIN_S = 60.0
_CLOSE_SINK_S = 10.0


class SpoolClosed(SinkError):
    """Nothing more can be sent: the spool was closed."""


class _SendRequest:
    """Events of one call to `send_batch`, on their way to the disk."""

    __slots__ = ("events", "future", "lines", "size")

    def __init__(self, events: Sequence[Event], lines: list[bytes], size: int, future: asyncio.Future[None]) -> None:
        self.events = events
        self.lines = lines
        self.size = size
        self.future = future

    def thin_out(self) -> list[tuple[Event, int]]:
        """Let go of what may be dropped; returns these events with their sizes."""
        pairs = list(zip(self.events, self.lines, strict=True))
        gone = [(event, len(line)) for event, line in pairs if event.type in DROPPABLE]
        self.events = [event for event, _ in pairs if event.type not in DROPPABLE]
        self.lines = [line for event, line in pairs if event.type not in DROPPABLE]
        self.size -= sum(size for _, size in gone)
        return gone


class _WriterCall:
    """Something else for the writer's thread to do."""

    __slots__ = ("function", "future")

    def __init__(self, function: Callable[[], object], future: asyncio.Future[object]) -> None:
        self.function = function
        self.future = future


class Spool:
    """Open it with `Spool.open`; use it from the event loop that opened it."""

    def __init__(
        self,
        store: SpoolStore | None,
        sinks: Mapping[str, Sink],
        max_bytes: int,
        when_full: WhenFull,
        dead_letters: Path | None,
    ) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._dead_letters = dead_letters
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._draining = 0
        self._used = store.used if store else 0
        self._last = store.next - 1 if store else 0  # the newest event's number
        self._tail: list[Event | None] = []  # the newest events; all of them where there is no file
        self._tail_first = self._last + 1
        self._thinned = 0  # before this number there is nothing left to drop (where there is no file)
        self._gate = asyncio.Lock()
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._drops: dict[str, Counter[str]] = {}
        self._storage_error = ""
        self._told_at = float("-inf")
        self._outgoing: list[_SendRequest] = []  # since the loop last turned
        self._queue: queue.SimpleQueue[list[_SendRequest] | _WriterCall | None] = queue.SimpleQueue()
        self._nudged = False
        self._releasable = 0  # every event up to this number may be forgotten
        self._shrinking = False  # whether the file may have pages to give back
        self._open_tracks: dict[str, Event] = {}
        self._changed_tracks: dict[str, Event | None] = {}
        self._deliveries = [
            SinkDelivery(name, sink, self._start_of(name), self._next_events, self._acknowledged, self._bury)
            for name, sink in sinks.items()
        ]
        self._reader = SinkWorker("spool-reader")
        self._writer = threading.Thread(target=self._write_all, name="spool-writer", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        path: str | Path | None,
        sinks: Mapping[str, Sink],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        when_full: WhenFull = "block",
        sync_each: bool = False,
        dead_letters: str | Path | None = None,
    ) -> Self:
        """The spool in the file `path`, delivering to `sinks` by their names; the names are what cursors belong to.

        Without a path (None or ":memory:") events live in this process only, which is enough for a job that can be
        run again. `max_bytes` bounds what waits. When it is full, "block" makes `send` wait; "drop_oldest" drops the
        oldest `track.update` and `detections`, and waits when there are none. `sync_each` brings every commit to the
        disk before `send` returns; otherwise a power cut may lose the last 0.2 s, the end of the process nothing.
        What a sink never takes goes to `dead_letters`, by default PATH.dead.jsonl.
        Raises `SinkError` when the file cannot be used. A damaged file is moved aside, and what can be read of it is
        kept.
        """
        if path is None or str(path) == ":memory:":
            spool = cls(None, sinks, max_bytes, when_full, Path(dead_letters) if dead_letters else None)
        else:
            file = Path(path)
            store = await asyncio.to_thread(SpoolStore, file, sync_each=sync_each)
            dead = Path(dead_letters) if dead_letters else file.with_name(file.name + ".dead.jsonl")
            spool = cls(store, sinks, max_bytes, when_full, dead)
            await asyncio.to_thread(spool._recover)
            spool._writer.start()
        spool._tasks = [
            asyncio.create_task(delivery.run(), name=f"sink {delivery.name}") for delivery in spool._deliveries
        ]
        return spool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def send(self, event: Event) -> None:
        """Returns when the event is safe. Raises `SpoolClosed`."""
        await self.send_batch((event,))

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Returns when all the events are safe; they keep their order. Raises `SpoolClosed`."""
        if not events:
            return
        lines = [event.to_json() for event in events]
        send = _SendRequest(events, lines, sum(map(len, lines)), self._loop.create_future())
        if self._gate.locked() or self._used + send.size > self._max_bytes:
            async with self._gate:
                await self._wait_for_room(send)
        if self._closed:
            raise SpoolClosed("the spool is closed: nothing more can be sent")
        self._used += send.size
        if self._store is None:
            self._keep(send.events)
        else:
            if not self._outgoing:
                self._loop.call_soon(self._hand_over)
            self._outgoing.append(send)
            await send.future

    async def begin_run(self, now_ns: int) -> int:
        """The number of this run: milliseconds since 1970, more than any run before. Safe when this returns."""
        run = now_ns // 1_000_000
        if self._store is not None:
            store = self._store
            run = max(run, store.meta.get("run", 0) + 1)
            await self._call(lambda: store.remember(meta={"run": run}))
        return run

    def open_tracks(self) -> list[Event]:
        """The last event of every track of earlier runs that has begun and not ended; call it before the first send."""
        return list(self._open_tracks.values())

    def dropped(self, stream: str | None = None) -> dict[str, int]:
        """Events that were given up since the spool was opened, by reason; of one stream, or of all.

        `full` and `disk_full`: dropped by policy. `damaged`: could not be read from the file. `dead_letter`: a sink
        will never take it. `undelivered`: still waiting when a spool without a file was closed.
        """
        total: Counter[str] = Counter()
        for name, drops in self._drops.items():
            if stream is None or name == stream:
                total += drops
        if stream is None and self._store is not None and self._store.lost:
            total["damaged"] += self._store.lost
        return dict(total)

    def status(self) -> list[SinkStatus]:
        """Where every sink stands."""
        return [delivery.status(self._last) for delivery in self._deliveries]

    @property
    def storage_error(self) -> str:
        """Why nothing can be stored at present (a full disk), one sentence; empty while all is well."""
        return self._storage_error

    @property
    def used_bytes(self) -> int:
        """What waits for a sink."""
        return self._used

    async def drain(self, timeout: float | None = None) -> bool:
        """Waits until every sink has acknowledged everything; False when the time (seconds) was not enough."""
        self._draining += 1
        for delivery in self._deliveries:
            delivery.wake.set()
        try:
            async with asyncio.timeout(timeout):
                while any(delivery.cursor < self._last for delivery in self._deliveries):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        finally:
            self._draining -= 1
        return True

    async def aclose(self) -> None:
        """Stop delivering and close the sinks; what was not delivered stays in the file. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._room.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._close_sink(delivery) for delivery in self._deliveries))
        await self._reader.aclose(last=_nothing)
        if self._store is not None:
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(self._writer.join)
        else:
            for _, event in numbered(self._tail, self._tail_first):
                self._count("undelivered", event.data.stream)

    # The loop's side: admission, the newest events, the sinks.

    def _hand_over(self) -> None:
        """Everything that was sent in one turn of the loop goes to the writer at once: one waking, one commit."""
        if self._outgoing:
            self._queue.put(self._outgoing)
            self._outgoing = []

    async def _wait_for_room(self, send: _SendRequest) -> None:
        """Waits until there is room for all of it, or for what the policy leaves. One caller at a time, in order."""
        while self._used + send.size > self._max_bytes and self._used and not self._closed:
            if self._when_full == "drop_oldest":
                if await self._drop_oldest(self._used + send.size - self._max_bytes):
                    continue
                if gone := send.thin_out():
                    for event, _ in gone:
                        self._count("full", event.data.stream)
                    continue
            self._room.clear()
            await self._room.wait()

    async def _drop_oldest(self, wanted: int) -> bool:
        """True when something was dropped."""
        if self._store is None:
            return self._thin_tail(wanted)
        store = self._store
        dropped = await self._call(lambda: store.drop_oldest(wanted))
        for event in dropped:
            self._count("full", event.stream)
            self._used -= event.size
            if event.number >= self._tail_first:
                self._tail[event.number - self._tail_first] = None
        return bool(dropped)

    def _thin_tail(self, wanted: int) -> bool:
        """As `SpoolStore.drop_oldest`, where events are in memory only."""
        used = self._used
        for index in range(max(0, self._thinned - self._tail_first), len(self._tail)):
            if used - self._used >= wanted:
                break
            event = self._tail[index]
            if event is not None and event.type in DROPPABLE:
                self._count("full", event.data.stream)
                self._used -= len(event.to_json())
                self._tail[index] = None
            self._thinned = self._tail_first + index + 1
        return self._used < used

    def _count(self, reason: str, stream: str) -> None:
        self._drops.setdefault(stream, Counter())[reason] += 1

    def _given_up(self, reason: str, gone: list[tuple[Event, int]]) -> None:
        for event, size in gone:
            self._count(reason, event.data.stream)
            self._used -= size
        self._room.set()

    def _keep(self, events: Sequence[Event]) -> None:
        """The events are safe: remember them for the sinks, and wake those."""
        self._tail += events
        self._last += len(events)
        for delivery in self._deliveries:
            delivery.wake.set()
        self._forget()

    def _stored(self, sends: list[_SendRequest]) -> None:
        self._keep([event for send in sends for event in send.events])
        for send in sends:
            if not send.future.done():
                send.future.set_result(None)

    def _forget(self) -> None:
        """Let go of events in memory that every sink has, or that are too many and safe in the file."""
        low = min((delivery.cursor for delivery in self._deliveries), default=self._last)
        surplus = low + 1 - self._tail_first
        if self._store is None:
            gone = self._tail[: max(0, surplus)]
            if gone:
                self._used -= sum(len(event.to_json()) for event in gone if event is not None)
                self._room.set()
        elif len(self._tail) - max(0, surplus) > 2 * _TAIL_EVENTS:
            surplus = len(self._tail) - _TAIL_EVENTS
        if surplus > 0:
            del self._tail[:surplus]
            self._tail_first += surplus

    def _acknowledged(self) -> None:
        self._progress.set()
        if self._store is None:
            self._forget()
        elif not self._nudged:
            self._nudged = True
            self._queue.put(_WriterCall(_nothing, self._loop.create_future()))

    async def _next_events(self, delivery: SinkDelivery, limit: int) -> tuple[list[Numbered], int]:
        cursor = delivery.cursor
        while cursor >= self._last:
            delivery.wake.clear()
            await delivery.wake.wait()
        if delivery.linger_s:
            await self._linger(delivery, limit)
        if cursor + 1 >= self._tail_first:
            start = cursor + 1 - self._tail_first
            events = self._tail[start : start + limit]
            return numbered(events, cursor + 1), cursor + len(events)
        assert self._store is not None
        newest = self._tail_first - 1
        events_read, upto = await self._reader.call(_read_events, self._store, cursor, limit)
        return events_read, upto if upto > cursor else newest

    async def _linger(self, delivery: SinkDelivery, limit: int) -> None:
        """Waits for a larger batch, unless somebody drains the spool."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delivery.linger_s):
                while self._last - delivery.cursor < limit and not self._draining:
                    delivery.wake.clear()
                    await delivery.wake.wait()

    async def _bury(self, sink: str, event: Event, reason: str) -> None:
        if self._dead_letters is not None:
            await self._reader.call(append_dead_letter, self._dead_letters, sink, event, reason)
        log.warning("sink %s will never take event %s: %s", sink, event.id, reason)
        self._count("dead_letter", event.data.stream)

    async def _close_sink(self, delivery: SinkDelivery) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SINK_S):
                await delivery.sink.aclose()
        except Exception as error:
            log.warning("sink %s did not close: %s", delivery.name, str(error) or type(error).__name__)

    def _start_of(self, name: str) -> int:
        """A sink that the file does not know gets what comes from now on."""
        if self._store is None:
            return 0
        newest = self._store.next - 1
        if self._store.salvaged and name not in self._store.cursors:
            return self._store.first - 1  # a damaged file may have forgotten who had what: rather twice than never
        return min(self._store.cursors.get(name, newest), newest)

    async def _call(self, function: Callable[[], R]) -> R:
        """Runs the function in the writer's thread."""
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.put(_WriterCall(function, future))  # type: ignore[arg-type]
        return await future

    # The writer's side: everything below runs in its thread.

    def _recover(self) -> None:
        """What earlier runs left behind: open tracks; and cursors of sinks that are gone hold nothing back."""
        store = self._store
        assert store is not None
        tracks = {uid: Event.from_json(line) for uid, line in store.tracks().items()}
        for event in _events_after(store, store.meta.get("tracks_upto", 0)):
            track = event.data.track
            if track is not None and track.state == "ended":
                tracks.pop(track.uid, None)
            elif track is not None:
                tracks[track.uid] = event
        self._open_tracks = tracks
        self._changed_tracks = dict(tracks)
        names = {delivery.name for delivery in self._deliveries}
        for name, acked in store.cursors.items():
            if name not in names and acked < store.next - 1:
                log.warning("sink %s is gone: %d events were not delivered to it", name, store.next - 1 - acked)

    def _write_all(self) -> None:
        store = self._store
        assert store is not None
        tidy_at = time.monotonic()
        tidied = False
        while True:
            is_busy = self._can_release(store) or self._shrinking
            wait_s = 0.0 if is_busy else None if tidied else max(0.0, tidy_at - time.monotonic())
            try:
                item = self._queue.get(timeout=wait_s)
            except queue.Empty:
                if not self._release(store) and not self._shrink(store) and time.monotonic() >= tidy_at:
                    tidied = self._tidy(store)
                    tidy_at = time.monotonic() + _HOUSEKEEPING_S
                continue
            if item is None:
                break
            tidied = False
            while item is not None:
                item = self._take(store, item)
            self._release(store)
            if time.monotonic() > tidy_at:
                self._tidy(store)
                self._shrink(store)
                tidy_at = time.monotonic() + _HOUSEKEEPING_S
        self._tidy(store)
        while self._release(store):
            pass
        self._refuse_rest()
        store.close()

    def _take(
        self, store: SpoolStore, item: list[_SendRequest] | _WriterCall
    ) -> list[_SendRequest] | _WriterCall | None:
        """Stores all that waits behind the item too, as far as it fits one block; returns what comes next."""
        if isinstance(item, _WriterCall):
            self._do(item)
            return None
        sends = item
        count, size = _measure(sends)
        following: list[_SendRequest] | _WriterCall | None = None
        while count < _BLOCK_EVENTS and size < _BLOCK_BYTES:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)  # the end: for `_write_all`
            if not isinstance(following, list):
                break
            sends += following
            more_count, more_size = _measure(following)
            count += more_count
            size += more_size
            following = None
        self._append(store, sends)
        return following

    def _append(self, store: SpoolStore, sends: list[_SendRequest]) -> None:
        while lines := [line for send in sends for line in send.lines]:
            try:
                store.append(lines, sum(event.type in DROPPABLE for send in sends for event in send.events))
                break
            except StoreDamaged:
                store.reopen()
            except SinkError as error:
                self._storage_error = str(error)
                if time.monotonic() - self._told_at > _TELL_AGAIN_S:
                    log.error("%s", error)
                    self._told_at = time.monotonic()
                if self._closed:
                    for send in sends:
                        self._tell(_fail, send.future, error)
                    return
                if isinstance(error, StoreFull) and self._when_full == "drop_oldest":
                    self._tell(self._given_up, "disk_full", [pair for send in sends for pair in send.thin_out()])
                time.sleep(_RETRY_S)
        if self._storage_error:
            log.info("the spool stores events again")
            self._storage_error = ""
        for send in sends:
            for event in send.events:
                track = event.data.track
                if track is not None:
                    # What comes after a track's end, such as its merge, does not open it again.
                    self._changed_tracks[track.uid] = None if track.state == "ended" else event
        self._tell(self._stored, sends)

    def _do(self, call: _WriterCall) -> None:
        try:
            result = call.function()
        except Exception as error:
            self._tell(_fail, call.future, error)
        else:
            self._tell(_resolve, call.future, result)

    def _tidy(self, store: SpoolStore) -> bool:
        """Store the cursors and the open tracks, and find out what may be forgotten; False where it failed."""
        self._nudged = False
        cursors = {delivery.name: delivery.cursor for delivery in self._deliveries}
        changed, self._changed_tracks = self._changed_tracks, {}
        lines = {uid: None if event is None else event.to_json() for uid, event in changed.items()}
        try:
            if changed or cursors != store.cursors:
                store.remember(cursors=cursors, tracks=lines, meta={"tracks_upto": store.next - 1})
            # only now: the cursors and the tracks that these events tell of are stored
            self._releasable = min(cursors.values(), default=store.next - 1)
            self._shrinking = True
            return True
        except StoreDamaged:
            store.reopen()
        except SinkError as error:
            log.debug("%s", error)
        self._changed_tracks = {**changed, **self._changed_tracks}
        return False

    def _can_release(self, store: SpoolStore) -> bool:
        return self._releasable >= store.first

    def _release(self, store: SpoolStore) -> bool:
        """Forget some of what every sink has; False when there is no more."""
        if not self._can_release(store):
            return False
        first = store.first
        freed = self._step(store, lambda: store.release(self._releasable))
        if freed is None or store.first == first:  # the rest is part of a block of which something is still wanted
            self._releasable = 0
            return False
        self._tell(self._released, freed)
        return True

    def _shrink(self, store: SpoolStore) -> bool:
        """Give some free pages back to the file system; False when there are no more."""
        self._shrinking = self._shrinking and bool(self._step(store, store.shrink))
        return self._shrinking

    def _step(self, store: SpoolStore, step: Callable[[], R]) -> R | None:
        """None where it failed: it is tried again after the next tidying."""
        try:
            return step()
        except StoreDamaged:
            store.reopen()
        except SinkError as error:
            log.debug("%s", error)
        return None

    def _released(self, size: int) -> None:
        self._used -= size
        self._room.set()
        self._forget()

    def _refuse_rest(self) -> None:
        """Whoever sent while the spool closed is told."""
        error = SpoolClosed("the spool was closed before the event was stored")
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                for one in item if isinstance(item, list) else [item]:
                    if one is not None:
                        self._tell(_fail, one.future, error)

    def _tell(self, function: Callable[..., object], *values: object) -> None:
        """Calls the function in the event loop, which may be gone already."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *values)


def _measure(sends: list[_SendRequest]) -> tuple[int, int]:
    """How many events, and bytes."""
    return sum([len(send.lines) for send in sends]), sum([send.size for send in sends])


def _nothing() -> None:
    """Wakes a thread, so that it looks at what else there is to do."""


def _resolve(future: asyncio.Future[object], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _parse(block: EventBlock, after: int) -> Iterator[Numbered]:
    for number, line in enumerate(block.lines, block.first):
        if line and number > after:
            yield number, Event.from_json(line)


def _read_events(store: SpoolStore, after: int, limit: int) -> tuple[list[Numbered], int]:
    blocks = store.read(after, limit)
    events = list(islice((item for block in blocks for item in _parse(block, after)), limit))
    if len(events) == limit:
        return events, events[-1][0]
    return events, blocks[-1].last if blocks else after


def _events_after(store: SpoolStore, after: int) -> Iterator[Event]:
    while blocks := store.read(after, 1):
        for _, event in _parse(blocks[0], after):
            yield event
        after = blocks[0].last
