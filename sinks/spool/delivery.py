"""Delivery to one sink: in order, retried until acknowledged; a failing sink delays no other."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sinks.address import redact
from sinks.histogram import Histogram
from sinks.permissions import open_private
from sinks.sink import PoisonError, ReaderGone, Sink, SinkError

if TYPE_CHECKING:
    from sinks.event import Event

log = logging.getLogger("sinks")

BATCH_EVENTS = 1024
_RETRY_EVENTS = 64  # after a failure: large batches that are read in vain take time from the working sinks
_BACK_OFF_S = (0.1, 30.0)

Numbered = tuple[int, "Event"]
"""An event and its number in the spool."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """The state of a sink. `error` is one sentence without secrets, empty while it takes events; `backlog` counts the
    events that wait for it."""

    name: str
    state: Literal["up", "down"]
    since_ns: int
    error: str
    delivered: int
    dead: int
    failures: int
    backlog: int
    send_seconds: Histogram
    """Durations of the batches that the sink took."""


class SinkDelivery:
    """Sends the events behind its cursor to its sink.

    `next_events(delivery, limit)` waits for events after the cursor and returns them with the number up to which there
    are no others; `acknowledged()` is called whenever the cursor has moved; `dead_letter(sink, event, reason)` stores
    an event that the sink will never take; `reader_gone(delivery)` is called when the sink is finished for good.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        cursor: int,
        next_events: Callable[[SinkDelivery, int], Awaitable[tuple[list[Numbered], int]]],
        acknowledged: Callable[[], None],
        dead_letter: Callable[[str, Event, str], Awaitable[None]],
        reader_gone: Callable[[SinkDelivery], None],
    ) -> None:
        self.name = name
        self.sink = sink
        self.cursor = cursor
        self.finished = False
        self.sending_upto = 0  # events up to this number may be on their way to the sink; 0: none is
        self.durable: bool = getattr(sink, "durable", True)
        self.wake = asyncio.Event()
        self.batch_events: int = getattr(sink, "batch_events", BATCH_EVENTS)
        self.linger_s: float = getattr(sink, "linger_s", 0.0)
        self._next_events = next_events
        self._acknowledged = acknowledged
        self._dead_letter = dead_letter
        self._reader_gone = reader_gone
        self._delivered = self._dead = self._failures = 0
        self.send_seconds = Histogram()
        self._error = ""
        self._since_ns = time.time_ns()

    @property
    def is_down(self) -> bool:
        """Whether the sink did not take the last batch."""
        return bool(self._error)

    def status(self, last: int) -> SinkStatus:
        """`last` is the number of the newest event in the spool."""
        return SinkStatus(
            self.name,
            "down" if self._error else "up",
            self._since_ns,
            self._error,
            self._delivered,
            self._dead,
            self._failures,
            0 if self.finished else max(0, last - self.cursor),
            self.send_seconds,
        )

    async def run(self) -> None:
        """Runs until cancelled or the sink is finished. Any exception of a sink, bugs included, is logged and the
        batch is retried with back-off."""
        wait_s = _BACK_OFF_S[0]
        while True:
            before = self.cursor
            try:
                await self._deliver_batch()
            except ReaderGone as error:
                log.info("sink %s is finished: %s", self.name, error)
                self.finished = True
                self._reader_gone(self)
                return
            except Exception as error:
                self._note_failure(error)
                if self.cursor > before:
                    wait_s = _BACK_OFF_S[0]
                await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))
                wait_s = min(2 * wait_s, _BACK_OFF_S[1])
            else:
                self._note_success()
                wait_s = _BACK_OFF_S[0]

    async def _deliver_batch(self) -> None:
        limit = min(self.batch_events, _RETRY_EVENTS) if self._error else self.batch_events
        try:
            events, upto = await self._next_events(self, limit)
            if events:
                self.sending_upto = upto
                await self._send_events(events)
        finally:
            self.sending_upto = 0
        self._move_cursor(upto)

    async def _send_events(self, events: list[Numbered]) -> None:
        began_s = time.monotonic()
        try:
            await self.sink.send_batch([event for _, event in events])
            self.send_seconds.observe(time.monotonic() - began_s)
        except PoisonError as poison:
            if not poison.reasons and len(events) > 1:
                for item in events:  # one of them is poison, and it is not known which
                    await self._send_events([item])
                return
            reasons = poison.reasons or {events[0][1].id: str(poison)}
            for _, event in events:
                if event.id in reasons:
                    await self._dead_letter(self.name, event, redact(reasons[event.id]))
                    self._dead += 1
            self._delivered -= len(reasons)
        except SinkError as error:
            if error.delivered:
                self._delivered += error.delivered
                self._move_cursor(events[error.delivered - 1][0])
            raise
        self._delivered += len(events)
        self._move_cursor(events[-1][0])

    def _move_cursor(self, number: int) -> None:
        if number > self.cursor:
            self.cursor = number
            self._acknowledged()

    def _note_failure(self, error: Exception) -> None:
        sentence = redact(str(error)) or type(error).__name__
        if not isinstance(error, SinkError):
            sentence = f"{type(error).__name__}: {sentence}"
        self._failures += 1
        if not self._error:
            self._since_ns = time.time_ns()
            log.warning("sink %s is down, events wait for it: %s", self.name, sentence)
        self._error = sentence

    def _note_success(self) -> None:
        if self._error:
            down_s = (time.time_ns() - self._since_ns) / 1e9
            log.warning("sink %s is up again after %.1f s", self.name, down_s)
            self._error = ""
            self._since_ns = time.time_ns()


def append_dead_letter(path: Path, sink: str, event: Event, reason: str) -> None:
    """Appends one line of JSON with the event as it is, to a file that only its owner can read.

    Raises `SinkError` where the file cannot be written."""
    head = json.dumps({"sink": sink, "reason": reason, "buried_ns": time.time_ns()}, ensure_ascii=False)
    try:
        with open(path, "ab", opener=open_private) as file:
            file.write(head[:-1].encode() + b', "event": ' + event.to_json() + b"}\n")
    except OSError as error:
        raise SinkError(f"the dead letters {path} cannot be written ({error.strerror}): the sink waits") from None


def numbered(events: Sequence[Event | None], first: int) -> list[Numbered]:
    """The events with their numbers; None stands for one that was dropped."""
    return [(first + index, event) for index, event in enumerate(events) if event is not None]
