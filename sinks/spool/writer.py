"""The writer thread's half of the spool: it alone touches the file, except for reading.

Everything that waits is stored in one commit (group commit), so that the event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sinks.event import Event
from sinks.sink import SinkError
from sinks.spool.open_state import OpenItem, OpenState
from sinks.spool.schema import DROPPABLE, StoreDamaged, StoreFull, parse_line
from sinks.spool.store import SpoolStore
from sinks.supervision import new_thread

log = logging.getLogger("sinks.spool")

R = TypeVar("R")

_BLOCK_EVENTS = 512
_BLOCK_BYTES = 1 << 20
_HOUSEKEEPING_S = 0.25
_RETRY_S = 0.25
_REPORT_AGAIN_S = 60.0


class SpoolClosed(SinkError):
    """Nothing more can be sent: the spool was closed, or its writer has failed."""


class SendRequest:
    """The events of one call to `send_batch`, on their way to the disk."""

    __slots__ = ("events", "future", "lines", "size")

    def __init__(self, events: Sequence[Event], lines: list[bytes], size: int, future: asyncio.Future[None]) -> None:
        self.events = events
        self.lines = lines
        self.size = size
        self.future = future

    def thin_out(self) -> list[tuple[Event, int]]:
        """Removes the events that may be dropped; returns them with their sizes."""
        return self.take_out(lambda event: event.type in DROPPABLE)

    def take_out(self, unwanted: Callable[[Event], bool]) -> list[tuple[Event, int]]:
        """Removes the events that are unwanted; returns them with their sizes."""
        marked = [(event, line, unwanted(event)) for event, line in zip(self.events, self.lines, strict=True)]
        gone = [(event, len(line)) for event, line, is_gone in marked if is_gone]
        self.events = [event for event, _, is_gone in marked if not is_gone]
        self.lines = [line for _, line, is_gone in marked if not is_gone]
        self.size -= sum(size for _, size in gone)
        return gone


class WriterCall:
    """A function for the writer's thread to run; without a future, its result is of no interest."""

    __slots__ = ("function", "future")

    def __init__(self, function: Callable[[], object], future: asyncio.Future[object] | None = None) -> None:
        self.function = function
        self.future = future


_Item = list[SendRequest] | WriterCall


class SpoolWriter:
    """Stores events, cursors and open state, and deletes what every sink has, in a thread of its own.

    The callbacks run in the event loop: `stored(requests)` when the requests are in the file, `released(size)` when
    bytes were given back, `given_up(reason, [(event, size)])` for events dropped by policy, `repaired(size)` when the
    file was repaired and holds `size` bytes now. `cursors()` runs in the writer's thread: the
    cursors to store, and the lowest of all, None without sinks.

    The first part of the methods belongs to the event loop, the part behind `_run` to the thread.
    """

    def __init__(
        self,
        store: SpoolStore,
        *,
        drop_when_full: bool,
        cursors: Callable[[], tuple[dict[str, int], int | None]],
        stored: Callable[[list[SendRequest]], None],
        released: Callable[[int], None],
        given_up: Callable[[str, list[tuple[Event, int]]], None],
        repaired: Callable[[int], None],
    ) -> None:
        self.storage_error = ""  # why nothing can be stored at present, one sentence
        self.failure: BaseException | None = None  # what ended the thread
        self.open_items: list[OpenItem] = []  # what earlier runs left open, once `recover` has run
        self._store = store
        self._drop_when_full = drop_when_full
        self._cursors = cursors
        self._stored = stored
        self._released = released
        self._given_up = given_up
        self._repaired = repaired
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._nudged = False
        self._closing = threading.Event()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = new_thread(self._run, name="spool-writer")
        # The thread's own:
        self._state = OpenState()
        self._reported_at = float("-inf")
        self._releasable = 0  # every event up to this number may be deleted
        self._shrinking = False  # whether the file may have pages to give back
        self._tidy_at = 0.0
        self._is_tidy = False

    # The event loop's side.

    def start(self) -> None:
        """Begins the thread, after `recover`."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, requests: list[SendRequest]) -> None:
        """Hands over events; their futures are resolved when they are stored."""
        self._queue.put(requests)
        if self.failure is not None:
            self._refuse_rest()

    async def call(self, function: Callable[[], R]) -> R:
        """Runs the function in the writer's thread, between two commits."""
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.put(WriterCall(function, future))  # type: ignore[arg-type]
        if self.failure is not None:
            self._refuse_rest()
        return await future

    def nudge(self) -> None:
        """Cursors have moved: there may be something to delete."""
        if not self._nudged:
            self._nudged = True
            self._queue.put(WriterCall(_do_nothing))

    async def close(self, timeout_s: float) -> bool:
        """Stores what is on its way and the cursors, and ends the thread; False when the time was not enough.

        The thread is a daemon: a disk that never answers does not keep the process.
        """
        self._closing.set()
        self._queue.put(None)
        done, _ = await asyncio.wait([self._ended], timeout=max(0.0, timeout_s))
        return bool(done)

    # The thread's side: everything below runs in it, but for `recover`, which runs before it begins.

    def recover(self) -> None:
        """Reads what earlier runs left open. Changes that recovery found in the events are stored with the next
        tidying, so that the next start does not need those events."""
        store = self._store
        store.lost += self._state.load(store.open_rows(), store.path)
        after = store.meta.get("tracks_upto", 0)
        while blocks := store.read(after, 1):
            lines = zip(range(blocks[0].first, blocks[0].last + 1), blocks[0].lines, strict=True)
            for number, line in lines:
                event = parse_line(line) if line and number > after else None
                if event is not None:
                    self._state.note(event)
            after = blocks[0].last
        self.open_items = self._state.items()

    def _run(self) -> None:
        try:
            self._write_until_closed()
            self._finish_work()
        except BaseException as error:
            self.failure = error
            self.storage_error = f"the spool's writer has failed ({type(error).__name__}: {error}): start again"
            log.critical("%s", self.storage_error, exc_info=error)
            self._refuse_rest()
        finally:
            with contextlib.suppress(Exception):
                self._store.close()
            self._notify_loop(_resolve_future, self._ended, None)

    def _write_until_closed(self) -> None:
        while True:
            try:
                item = self._next_item()
                if item is None:
                    return
                self._handle_item(item)
            except Exception as error:  # a defect: what was sent is stored or refused by `_append_events` itself
                self._report_trouble(f"the spool's writer met {type(error).__name__}: {error}", error)
                self._closing.wait(_RETRY_S)

    def _next_item(self) -> _Item | None:
        """Waits for the next item; deletes and tidies up in the meantime."""
        while True:
            is_busy = self._can_release() or self._shrinking
            wait_s = 0.0 if is_busy else None if self._is_tidy else max(0.0, self._tidy_at - time.monotonic())
            try:
                return self._queue.get(timeout=wait_s)
            except queue.Empty:
                if not self._release_blocks() and not self._shrink_file() and time.monotonic() >= self._tidy_at:
                    self._is_tidy = self._store_progress()
                    self._tidy_at = time.monotonic() + _HOUSEKEEPING_S

    def _handle_item(self, first: _Item) -> None:
        self._is_tidy = False
        item: _Item | None = first
        while item is not None:
            item = self._take_batch(item)
        self._release_blocks()
        if time.monotonic() > self._tidy_at:
            self._store_progress()
            self._shrink_file()
            self._tidy_at = time.monotonic() + _HOUSEKEEPING_S

    def _finish_work(self) -> None:
        self._store_progress()
        while self._release_blocks():
            pass
        self._refuse_rest()

    def _take_batch(self, item: _Item) -> _Item | None:
        """Stores all that waits behind the item too, as far as it fits one block; returns what comes next."""
        if isinstance(item, WriterCall):
            self._run_call(item)
            return None
        requests = item
        count, size = _measure(requests)
        following: _Item | None = None
        while count < _BLOCK_EVENTS and size < _BLOCK_BYTES:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)  # the end: for `_write_until_closed`
            if not isinstance(following, list):
                break
            requests += following
            more_count, more_size = _measure(following)
            count += more_count
            size += more_size
            following = None
        self._append_events(requests)
        return following

    def _append_events(self, requests: list[SendRequest]) -> None:
        """Stores the events, however long the disk is full or the file is being repaired; refuses them when the spool
        is closed meanwhile."""
        while lines := [line for request in requests for line in request.lines]:
            try:
                droppable = sum(event.type in DROPPABLE for request in requests for event in request.events)
                self._store.append(lines, droppable)
                break
            except Exception as error:
                if isinstance(error, StoreDamaged) and self.repair():
                    continue
                sentence = str(error) if isinstance(error, SinkError) else f"{type(error).__name__}: {error}"
                self._report_trouble(sentence, None if isinstance(error, SinkError) else error)
                if self._closing.is_set():
                    self._refuse_items(requests, f"the event was not stored: {sentence}")
                    return
                if isinstance(error, StoreFull) and self._drop_when_full:
                    gone = [pair for request in requests for pair in request.thin_out()]
                    self._notify_loop(self._given_up, "disk_full", gone)
                self._closing.wait(_RETRY_S)
            except BaseException as error:  # it ends the thread
                self._refuse_items(requests, f"the spool's writer has failed ({type(error).__name__}: {error})")
                raise
        if self.storage_error:
            log.warning("the spool stores events again")
            self.storage_error = ""
        for request in requests:
            self._state.note_all(request.events)
        self._notify_loop(self._stored, requests)

    def repair(self) -> bool:
        """Repairs the damaged file; False where that is not possible at present: it is tried again. For the event loop
        by `call`, when a reader has found damage."""
        try:
            self._store.reopen()
            self._notify_loop(self._repaired, self._store.stored_bytes())
        except Exception as error:
            self._report_trouble(str(error), None if isinstance(error, SinkError) else error)
            return False
        self.storage_error = ""
        return True

    def _run_call(self, call: WriterCall) -> None:
        try:
            result = call.function()
        except BaseException as error:
            self._notify_loop(
                _fail_future, call.future, error if isinstance(error, Exception) else SpoolClosed(str(error))
            )
            if not isinstance(error, Exception):
                raise
        else:
            self._notify_loop(_resolve_future, call.future, result)

    def _report_trouble(self, sentence: str, error: Exception | None = None) -> None:
        """Shows the trouble at once, and logs it once a minute."""
        self.storage_error = sentence
        if time.monotonic() - self._reported_at > _REPORT_AGAIN_S:
            log.error("%s", sentence, exc_info=error)
            self._reported_at = time.monotonic()

    def _store_progress(self) -> bool:
        """Stores the cursors and the open state, and finds out what may be deleted; False where it failed."""
        self._nudged = False
        cursors, lowest = self._cursors()
        changed = self._state.take_changes()
        lines = {key: None if event is None else event.to_json() for key, event in changed.items()}
        store = self._store
        try:
            if changed or cursors != store.cursors:
                store.remember(cursors=cursors, tracks=lines, meta={"tracks_upto": store.next - 1})
        except Exception as error:
            self._state.restore_changes(changed)
            self._after_error(error)
            return False
        # only now: the cursors and the state that these events describe are stored
        self._releasable = store.next - 1 if lowest is None else lowest
        self._shrinking = True
        return True

    def _can_release(self) -> bool:
        return self._releasable >= self._store.first

    def _release_blocks(self) -> bool:
        """Deletes some of what every sink has; False when there is no more."""
        if not self._can_release():
            return False
        first = self._store.first
        freed = self._try_step(lambda: self._store.release(self._releasable))
        if freed is None or self._store.first == first:  # the rest is part of a block of which something is needed
            self._releasable = 0
            return False
        self._notify_loop(self._released, freed)
        return True

    def _shrink_file(self) -> bool:
        """Gives some free pages back to the file system; False when there are no more."""
        self._shrinking = self._shrinking and bool(self._try_step(self._store.shrink))
        return self._shrinking

    def _try_step(self, step: Callable[[], R]) -> R | None:
        """None where it failed: it is tried again after the next tidying."""
        try:
            return step()
        except Exception as error:
            self._after_error(error)
        return None

    def _after_error(self, error: Exception) -> None:
        """Repairs the file where it is damaged; other trouble passes or shows itself with the next event."""
        if isinstance(error, StoreDamaged):
            self.repair()
        elif isinstance(error, SinkError):
            log.debug("%s", error)
        else:
            self._report_trouble(f"the spool's writer met {type(error).__name__}: {error}", error)

    def _refuse_rest(self) -> None:
        """Answers those that sent while the spool closed."""
        reason = self.storage_error if self.failure is not None else "the spool was closed before the event was stored"
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    self._refuse_items(item if isinstance(item, list) else [item], reason)

    def _refuse_items(self, items: Sequence[SendRequest | WriterCall], reason: str) -> None:
        for item in items:
            self._notify_loop(_fail_future, item.future, SpoolClosed(reason))

    def _notify_loop(self, function: Callable[..., object], *values: object) -> None:
        """Calls the function in the event loop, which may have ended already."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *values)


def _measure(requests: list[SendRequest]) -> tuple[int, int]:
    """How many events, and bytes."""
    return sum([len(request.lines) for request in requests]), sum([request.size for request in requests])


def _do_nothing() -> None:
    """Wakes the thread, so that it checks for other work."""


def _resolve_future(future: asyncio.Future[object] | None, result: object) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail_future(future: asyncio.Future[object] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
