"""Durable queue between the rules and the sinks: once `send` returns, the event survives a crash.

This is the event loop's half: admission, the newest events in memory, one delivery per sink. The writer's thread
(`SpoolWriter`) owns the file. Each sink has a cursor; an event leaves the spool when every sink has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sinks.event import Event
from sinks.sink import Sink
from sinks.spool.cursors import adopted_cursor, match_cursors, waiting_events
from sinks.spool.delivery import Numbered, SinkDelivery, SinkStatus, append_dead_letter, numbered
from sinks.spool.open_state import OpenItem
from sinks.spool.schema import DROPPABLE, EventBlock, StoreDamaged, parse_line
from sinks.spool.store import SpoolStore
from sinks.spool.writer import SendRequest, SpoolClosed, SpoolWriter
from sinks.supervision import keep_running, start_task
from sinks.worker import SinkWorker, finish_within

__all__ = ["CLOSE_TIMEOUT_S", "DEFAULT_MAX_BYTES", "Spool", "SpoolClosed", "StorageStatus", "WhenFull"]

log = logging.getLogger("sinks.spool")

WhenFull = Literal["block", "drop_oldest"]
DEFAULT_MAX_BYTES = 1 << 30
CLOSE_TIMEOUT_S = 10.0

_TAIL_EVENTS = 4096
_DOWN_EVENTS = 256
"""Events that stay in memory for sinks that are down, which read the rest from the file: an event takes about 6 kB."""
_RESTART_S = 1.0
"""Pause before a delivery that failed of a defect, not of its sink, is started again."""
_FORGOTTEN_SHARE = 4
"""Sinks that are no longer configured may hold a quarter of `max_bytes`."""


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """The state of the spool itself. `error` says why no event can be stored at present, empty while they are;
    `used_bytes` of `max_bytes` wait for a sink; `forgotten` counts the events that wait for sinks that are no longer
    configured."""

    error: str
    used_bytes: int
    max_bytes: int
    forgotten: int


class Spool:
    """Open it with `Spool.open`; use it from the event loop that opened it."""

    def __init__(
        self,
        store: SpoolStore | None,
        reader: SinkWorker,
        *,
        max_bytes: int,
        when_full: WhenFull,
        dead_letters: Path | None,
        close_timeout_s: float,
        on_reader_gone: Callable[[str], None] | None,
        admits: Callable[[Event], bool] | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._dead_letters = dead_letters
        self._close_timeout_s = close_timeout_s
        self._on_reader_gone = on_reader_gone
        self._admits = admits
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._draining = 0
        self._stored_bytes = store.used if store else 0
        self._sent_bytes = 0  # on their way to the writer
        self._last = store.next - 1 if store else 0  # the newest event's number
        self._tail: list[Event | None] = []  # the newest events; all of them where there is no file
        self._tail_first = self._last + 1
        self._thinned = 0  # before this number there is nothing left to drop (where there is no file)
        self._gate = asyncio.Lock()
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._may_read = asyncio.Event()  # not while events are dropped: what is dropped must not be on its way
        self._may_read.set()
        self._drops: dict[str, Counter[str]] = {}
        self._outgoing: list[SendRequest] = []  # since the loop last turned
        self._deliveries: list[SinkDelivery] = []
        self._tasks: dict[str, asyncio.Task[object]] = {}
        self._forgotten: dict[str, int] = {}  # cursors of sinks that are no longer configured, with waiting events
        self._writer: SpoolWriter | None = None
        if store is not None:
            self._writer = SpoolWriter(
                store,
                drop_when_full=when_full == "drop_oldest",
                cursors=self._read_cursors,
                stored=self._note_stored,
                released=self._note_released,
                given_up=self._note_given_up,
                repaired=self._note_repaired,
            )

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
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        on_reader_gone: Callable[[str], None] | None = None,
        admits: Callable[[Event], bool] | None = None,
    ) -> Self:
        """The spool in the file `path`, delivering to `sinks` by their names; a sink's cursor belongs to its name, and
        outlives a corrected address (see `sinks.spool.cursors`).

        Without a path (None or ":memory:") events live in this process only, which is enough for a job that can be
        run again. `max_bytes` bounds what waits. When it is full, "block" makes `send` wait; "drop_oldest" drops the
        oldest `track.update` and `detections`, and waits when there are none. `sync_each` brings every commit to the
        disk before `send` returns; otherwise a power cut may lose the last 0.2 s, the end of the process nothing.
        Events that a sink never takes go to `dead_letters`, by default PATH.dead.jsonl. `close_timeout_s` bounds all of
        `aclose`. `on_reader_gone(name)` is called when the only reader of a sink has left for good.
        `admits` is asked for each event directly before it is stored; those that it refuses are dropped, counted.
        Raises `SinkError` when the file cannot be used. A damaged file is kept aside, its events are recovered.
        """
        reader = SinkWorker("spool-reader")
        store, dead = None, Path(dead_letters) if dead_letters else None
        try:
            if path is not None and str(path) != ":memory:":
                file = Path(path)
                store = await reader.call(SpoolStore, file, sync_each=sync_each)
                dead = dead or file.with_name(file.name + ".dead.jsonl")
            spool = cls(
                store,
                reader,
                max_bytes=max_bytes,
                when_full=when_full,
                dead_letters=dead,
                close_timeout_s=close_timeout_s,
                on_reader_gone=on_reader_gone,
                admits=admits,
            )
            if spool._writer is not None:
                await reader.call(spool._writer.recover)
        except BaseException:
            if store is not None:
                store.close()
            await reader.aclose()
            raise
        spool._start_deliveries(sinks)
        if spool._writer is not None:
            spool._writer.start()  # not before the cursors are known: it stores them
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
        request = SendRequest(events, lines, sum(map(len, lines)), self._loop.create_future())
        if self._gate.locked() or self.used_bytes + request.size > self._max_bytes:
            async with self._gate:
                await self._wait_for_room(request)
        if self._closed:
            raise SpoolClosed("the spool is closed: nothing more can be sent")
        if (admits := self._admits) is not None:  # asked after the wait, in which the right to send may have ended
            for event, _ in request.take_out(lambda event: not admits(event)):
                self._count_drop("refused", event.data.stream)
            if not request.events:
                return
        if self._writer is None:
            self._stored_bytes += request.size
            self._keep_events(request.events)
        else:
            self._sent_bytes += request.size
            if not self._outgoing:
                self._loop.call_soon(self._hand_over)
            self._outgoing.append(request)
            await request.future

    async def begin_run(self, now_ns: int) -> int:
        """A new number for a run of live streams: milliseconds since 1970, more than any such run before.

        Stored when this returns. Recordings number their runs by their content and need none.
        """
        run = now_ns // 1_000_000
        if self._store is not None and self._writer is not None:
            store = self._store
            run = max(run, store.meta.get("run", 0) + 1)
            await self._writer.call(lambda: store.remember(meta={"run": run}))
        return run

    def open_items(self) -> list[OpenItem]:
        """Everything that earlier runs began and did not end; call it before the first send."""
        return [] if self._writer is None else list(self._writer.open_items)

    def open_tracks(self) -> list[Event]:
        """The last event of every track of earlier runs that has begun and not ended; call it before the first send."""
        return [item.event for item in self.open_items() if item.kind == "track"]

    def dropped(self, stream: str | None = None) -> dict[str, int]:
        """Events that were given up since the spool was opened, by reason; of one stream, or of all. The stream "" has
        those whose stream is not known.

        `full` and `disk_full`: dropped by policy. `damaged`: could not be read from the file. `dead_letter`: a sink
        will never take it. `sink_removed`: waited for a sink that is no longer configured. `undelivered`: still waiting
        when the spool was closed, for a sink or a spool that keeps nothing. `refused`: not admitted.
        """
        total: Counter[str] = Counter()
        for name, drops in self._drops.items():
            if stream is None or name == stream:
                total += drops
        if not stream and self._store is not None and self._store.lost:
            total["damaged"] += self._store.lost
        return dict(total)

    def status(self) -> list[SinkStatus]:
        """The state of every sink."""
        return [delivery.status(self._last) for delivery in self._deliveries]

    def forgotten(self) -> dict[str, int]:
        """How many events wait for each sink that is no longer configured."""
        return waiting_events(self._forgotten, self._forgotten, self._last)

    @property
    def storage_error(self) -> str:
        """Why nothing can be stored at present (a full disk), one sentence; empty while events are stored."""
        return "" if self._writer is None else self._writer.storage_error

    @property
    def used_bytes(self) -> int:
        """The size of the events that wait for a sink."""
        return self._stored_bytes + self._sent_bytes

    def storage(self) -> StorageStatus:
        """The state of the spool itself."""
        return StorageStatus(self.storage_error, self.used_bytes, self._max_bytes, sum(self.forgotten().values()))

    async def drain(self, timeout: float | None = None) -> bool:
        """Waits until every sink has acknowledged everything; False when the time (seconds) was not enough."""
        self._draining += 1
        for delivery in self._deliveries:
            delivery.wake.set()
        try:
            async with asyncio.timeout(timeout):
                while any(not one.finished and one.cursor < self._last for one in self._deliveries):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        finally:
            self._draining -= 1
        return True

    async def add_sink(self, name: str, sink: Sink) -> None:
        """Delivers to one more sink from now on. Events that wait for a sink of this name, or for the only sink of its
        scheme that was removed, are sent first. Raises `ValueError` for a name that is taken."""
        if any(delivery.name == name for delivery in self._deliveries):
            raise ValueError(f"the spool has a sink {name} already")
        old = adopted_cursor(name, list(self._forgotten)) if getattr(sink, "durable", True) else None
        cursor = self._last if old is None else self._forgotten.pop(old)
        self._start_delivery(name, sink, cursor)
        if old is not None and old != name:
            log.warning("sink %s takes over from %s, for which %d events wait", name, old, self._last - cursor)

    async def remove_sink(self, name: str) -> None:
        """Stops delivering to a sink and closes it; events that wait for it are kept for a sink of the same name.

        Raises `KeyError` for a name that is not there."""
        delivery = next((one for one in self._deliveries if one.name == name), None)
        if delivery is None:
            raise KeyError(name)
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.wait([task], timeout=self._close_timeout_s)
        if self._store is not None and delivery.durable and delivery.cursor < self._last:
            self._forgotten[name] = delivery.cursor
        self._deliveries.remove(delivery)
        await self._close_sink(delivery, self._loop.time() + self._close_timeout_s)
        self._note_acknowledged()

    async def aclose(self, timeout_s: float | None = None) -> None:
        """Stops delivering and closes the sinks; events that were not delivered stay in the file. Safe to call twice.

        Everything together takes at most `timeout_s` seconds, by default the `close_timeout_s` of `open`: a sink or a
        disk that does not answer by then is left behind, which is logged.
        """
        if self._closed:
            return
        self._closed = True
        self._room.set()
        deadline = self._loop.time() + (self._close_timeout_s if timeout_s is None else timeout_s)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - self._loop.time()))
        closing = [self._close_sink(delivery, deadline) for delivery in self._deliveries]
        await asyncio.gather(*closing, self._close_reader(deadline), self._close_writer(deadline))
        if self._store is None:
            for _, event in numbered(self._tail, self._tail_first):
                self._count_drop("undelivered", event.data.stream)
        else:
            for delivery in self._deliveries:
                if not delivery.durable and not delivery.finished and delivery.cursor < self._last:
                    self._count_drop("undelivered", "", self._last - delivery.cursor)

    async def _close_writer(self, deadline: float) -> None:
        if self._writer is None:
            return
        self._hand_over()
        if not await self._writer.close(deadline - self._loop.time()):
            log.error("the spool did not close in time: %s", self.storage_error or "its disk does not answer")

    async def _close_reader(self, deadline: float) -> None:
        await finish_within(self._reader.aclose(last=_do_nothing), deadline - self._loop.time())

    async def _close_sink(self, delivery: SinkDelivery, deadline: float) -> None:
        error = await finish_within(delivery.sink.aclose(), deadline - self._loop.time())
        if error is not None:
            log.warning("sink %s did not close: %s", delivery.name, str(error) or type(error).__name__)

    # Sinks and their cursors.

    def _start_deliveries(self, sinks: Mapping[str, Sink]) -> None:
        stored = {} if self._store is None else dict(self._store.cursors)
        durable = [name for name, sink in sinks.items() if getattr(sink, "durable", True)]
        known = [name for name in stored if name in durable or name not in sinks]
        matched = match_cursors(durable, known)
        for name, sink in sinks.items():
            old = matched.get(name)
            self._start_delivery(name, sink, self._first_cursor(old, stored))
            if old is not None and old != name:
                waiting = max(0, self._last - stored[old])
                log.warning("sink %s takes over from %s, for which %d events wait", name, old, waiting)
        left = [name for name in known if name not in matched.values() and not name.startswith("stdout:")]
        for name, count in waiting_events(stored, left, self._last).items():
            self._forgotten[name] = stored[name]
            log.warning(
                "sink %s is no longer configured: %d events wait for it; give it back, or adopt or drop its cursor",
                *(name, count),
            )

    def _start_delivery(self, name: str, sink: Sink, cursor: int) -> None:
        delivery = SinkDelivery(
            *(name, sink, cursor, self._next_events, self._note_acknowledged),
            dead_letter=self._store_dead_letter,
            reader_gone=self._note_reader_gone,
        )
        self._deliveries.append(delivery)
        keeping = keep_running(delivery.run, name=f"the delivery to {name}", pause_s=_RESTART_S)
        self._tasks[name] = start_task(keeping, name=f"sink {name}")

    def _first_cursor(self, old: str | None, stored: Mapping[str, int]) -> int:
        """Where a sink begins: one that the file does not know gets the events from now on."""
        if self._store is None:
            return 0
        if old is not None:
            return min(stored[old], self._last)
        if self._store.salvaged:
            return self._store.first - 1  # a repaired file may have lost the cursor: rather twice than never
        return self._last

    def _read_cursors(self) -> tuple[dict[str, int], int | None]:
        """The cursors to store, and the lowest of all; also runs in the writer's thread."""
        deliveries = [delivery for delivery in tuple(self._deliveries) if not delivery.finished]
        cursors = {delivery.name: delivery.cursor for delivery in deliveries if delivery.durable}
        cursors |= {name: acked for name, acked in dict(self._forgotten).items() if name not in cursors}
        lowest = min([*cursors.values(), *(delivery.cursor for delivery in deliveries)], default=None)
        return cursors, lowest

    def _give_up_forgotten(self) -> bool:
        """Makes room: the events of sinks that are no longer configured go first. True when there were any."""
        given_up, self._forgotten = self._forgotten, {}
        for name, acked in given_up.items():
            log.error("the spool needs room: %d events for sink %s are given up", self._last - acked, name)
            self._count_drop("sink_removed", "", self._last - acked)
        if given_up and self._writer is not None:
            self._writer.nudge()
        return bool(given_up)

    def _note_reader_gone(self, delivery: SinkDelivery) -> None:
        self._note_acknowledged()
        if self._on_reader_gone is not None:
            self._on_reader_gone(delivery.name)

    # Admission, and the newest events.

    def _hand_over(self) -> None:
        """Everything that was sent in one turn of the loop goes to the writer at once: one waking, one commit."""
        if self._outgoing and self._writer is not None:
            self._writer.put(self._outgoing)
            self._outgoing = []

    async def _wait_for_room(self, request: SendRequest) -> None:
        """Waits until there is room for all of it, or for the rest that the policy leaves. One caller at a time, in
        order."""
        while self.used_bytes + request.size > self._max_bytes and self.used_bytes and not self._closed:
            self._give_up_forgotten()
            if self._when_full == "drop_oldest":
                wanted = self.used_bytes + request.size - self._max_bytes
                if await self._drop_oldest(wanted):
                    continue
                if gone := request.thin_out():
                    for event, _ in gone:
                        self._count_drop("full", event.data.stream)
                    continue
                if await self._drop_oldest(wanted, on_their_way=True):
                    continue
            self._room.clear()
            await self._room.wait()

    async def _drop_oldest(self, wanted: int, *, on_their_way: bool = False) -> bool:
        """True when something was dropped. Events that are on their way to a sink, and may arrive all the same, stay
        unless `on_their_way`; those that every sink has only leave the file, and are not counted."""
        self._may_read.clear()
        try:
            sent = 0 if on_their_way else max((delivery.sending_upto for delivery in self._deliveries), default=0)
            return await self._drop_after(sent, wanted)
        finally:
            self._may_read.set()

    async def _drop_after(self, number: int, wanted: int) -> bool:
        if self._store is None or self._writer is None:
            return self._thin_tail(number, wanted)
        store = self._store
        dropped = await self._writer.call(lambda: store.drop_oldest(wanted, after=number))
        _, lowest = self._read_cursors()
        for event in dropped:
            if lowest is not None and event.number > lowest:
                self._count_drop("full", event.stream)
            self._stored_bytes -= event.size
            if event.number >= self._tail_first:
                self._tail[event.number - self._tail_first] = None
        return bool(dropped)

    def _thin_tail(self, after: int, wanted: int) -> bool:
        """As `SpoolStore.drop_oldest`, where events are in memory only."""
        used = self._stored_bytes
        thinned = max(0, self._thinned - self._tail_first)
        first = max(thinned, after + 1 - self._tail_first)
        for index in range(first, len(self._tail)):
            if used - self._stored_bytes >= wanted:
                break
            event = self._tail[index]
            if event is not None and event.type in DROPPABLE:
                self._count_drop("full", event.data.stream)
                self._stored_bytes -= len(event.to_json())
                self._tail[index] = None
            if first == thinned:
                self._thinned = self._tail_first + index + 1
        return self._stored_bytes < used

    def _count_drop(self, reason: str, stream: str, count: int = 1) -> None:
        self._drops.setdefault(stream, Counter())[reason] += count

    def _keep_events(self, events: Sequence[Event]) -> None:
        """The events are safe: keeps them in memory for the sinks, and wakes those."""
        self._tail += events
        self._last += len(events)
        for delivery in self._deliveries:
            delivery.wake.set()
        self._trim_tail()
        if self._forgotten and self._stored_bytes > self._max_bytes // _FORGOTTEN_SHARE:
            self._give_up_forgotten()

    def _trim_tail(self) -> None:
        """Removes events from memory that every sink has, or that are too many and safe in the file."""
        low = min((one.cursor for one in self._deliveries if not one.finished), default=self._last)
        surplus = low + 1 - self._tail_first
        if self._store is None:
            gone = self._tail[: max(0, surplus)]
            if gone:
                self._stored_bytes -= sum(len(event.to_json()) for event in gone if event is not None)
                self._room.set()
        else:
            healthy = (one.cursor for one in self._deliveries if not one.finished and not one.is_down)
            taken = min(healthy, default=self._last) + 1 - self._tail_first
            if taken - max(0, surplus) > 2 * _DOWN_EVENTS:
                surplus = taken - _DOWN_EVENTS
            if len(self._tail) - max(0, surplus) > 2 * _TAIL_EVENTS:
                surplus = len(self._tail) - _TAIL_EVENTS
        if surplus > 0:
            del self._tail[:surplus]
            self._tail_first += surplus

    # What the writer reports; it calls these in the event loop.

    def _note_stored(self, requests: list[SendRequest]) -> None:
        size = sum(request.size for request in requests)
        self._sent_bytes -= size
        self._stored_bytes += size
        self._keep_events([event for request in requests for event in request.events])
        for request in requests:
            if not request.future.done():
                request.future.set_result(None)

    def _note_released(self, size: int) -> None:
        self._stored_bytes -= size
        self._room.set()
        self._trim_tail()

    def _note_given_up(self, reason: str, gone: list[tuple[Event, int]]) -> None:
        for event, size in gone:
            self._count_drop(reason, event.data.stream)
            self._sent_bytes -= size
        self._room.set()

    def _note_repaired(self, size: int) -> None:
        self._stored_bytes = size
        self._room.set()

    # What the deliveries ask for.

    def _note_acknowledged(self) -> None:
        self._progress.set()
        if self._writer is None:
            self._trim_tail()
        else:
            self._writer.nudge()

    async def _next_events(self, delivery: SinkDelivery, limit: int) -> tuple[list[Numbered], int]:
        cursor = delivery.cursor
        while cursor >= self._last:
            delivery.wake.clear()
            await delivery.wake.wait()
        if delivery.linger_s:
            await self._await_batch(delivery, limit)
        await self._may_read.wait()
        delivery.sending_upto = cursor + limit  # what is read now
        if cursor + 1 >= self._tail_first:
            start = cursor + 1 - self._tail_first
            events = self._tail[start : start + limit]
            return numbered(events, cursor + 1), cursor + len(events)
        assert self._store is not None
        assert self._writer is not None
        newest = self._tail_first - 1
        try:
            events_read, upto = await self._reader.call(_read_events, self._store, cursor, limit)
        except StoreDamaged:
            await self._writer.call(self._writer.repair)
            raise
        return events_read, upto if upto > cursor else newest

    async def _await_batch(self, delivery: SinkDelivery, limit: int) -> None:
        """Waits for a larger batch, unless the spool is being drained."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delivery.linger_s):
                while self._last - delivery.cursor < limit and not self._draining:
                    delivery.wake.clear()
                    await delivery.wake.wait()

    async def _store_dead_letter(self, sink: str, event: Event, reason: str) -> None:
        if self._dead_letters is not None:
            await self._reader.call(append_dead_letter, self._dead_letters, sink, event, reason)
        log.warning("sink %s will never take event %s: %s", sink, event.id, reason)
        self._count_drop("dead_letter", event.data.stream)


def _do_nothing() -> None:
    """Wakes a thread, so that it ends after the work before it."""


def _parse_block(block: EventBlock, after: int) -> Iterator[Numbered]:
    for number, line in enumerate(block.lines, block.first):
        if line and number > after and (event := parse_line(line)) is not None:
            yield number, event


def _read_events(store: SpoolStore, after: int, limit: int) -> tuple[list[Numbered], int]:
    """Runs in the reader's thread."""
    blocks = store.read(after, limit)
    events = list(islice((item for block in blocks for item in _parse_block(block, after)), limit))
    if len(events) == limit:
        return events, events[-1][0]
    return events, blocks[-1].last if blocks else after
