"""Feeds of a job: where its recordings come from, a list or the records of a Kafka topic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sinks.address import redact
from streamer.errors import ConfigError, SourceAddressError, SourceError, StreamerError
from streamer.jobs.job import ProcessJob
from streamer.jobs.units import RecordingUnit, list_units
from streamer.sources.address import stream_name

if TYPE_CHECKING:
    from sinks.kafka.work_queue import KafkaWorkQueue, WorkRecord

log = logging.getLogger("groundstream")

_KEEP_S = 1.0
_REPEAT_S = 0.2
_JOIN_S = 30.0
_MOST_READY = 100
"""Recordings that wait for others of the same name, before no more records are taken."""
_LONGEST_RECORD = 16_384


def is_queue(address: str) -> bool:
    """Whether an address of `--from` is a queue of addresses, not a file."""
    return address.startswith(("kafka://", "kafkas://"))


def open_queue(job: ProcessJob) -> QueueFeed:
    """Returns the feed of a job that takes its recordings from a queue. Raises `ConfigError`, `SinkAddressError`."""
    from sinks.kafka.work_queue import KafkaWorkQueue

    if job.shard is not None:
        raise ConfigError("--shard divides lists; a queue is divided by its consumer group: leave --shard out")
    assert job.queue is not None
    return QueueFeed(KafkaWorkQueue(job.queue), job)


class UnitFeed(Protocol):
    """Gives the recordings of a job to its workers; several call it at a time."""

    invalid: int

    async def open(self) -> None: ...
    async def take(self) -> RecordingUnit | None:
        """Returns the next recording, None where there is none any more."""

    async def finish(self, unit: RecordingUnit) -> None:
        """Takes note that a recording is complete or has failed for good."""

    def stop(self) -> None:
        """Gives no more recordings; ends a wait in `take`."""

    async def aclose(self) -> None: ...


class ListFeed:
    """The recordings of a list, in its order."""

    invalid = 0

    def __init__(self, units: Sequence[RecordingUnit]) -> None:
        self._waiting = deque(units)

    async def open(self) -> None:
        pass

    async def take(self) -> RecordingUnit | None:
        return self._waiting.popleft() if self._waiting else None

    async def finish(self, unit: RecordingUnit) -> None:
        pass

    def stop(self) -> None:
        self._waiting.clear()

    async def aclose(self) -> None:
        pass


@dataclass
class _OpenRecord:
    """A record whose recordings are not all finished."""

    record: WorkRecord
    left: int


class QueueFeed:
    """Recordings whose addresses are the records of a queue; a record is committed when all its recordings are done.

    A record is an address as text, or a JSON object with `source` and, where two recordings would have the same name,
    `name`. Records that are neither are counted as `invalid`, reported and passed over.
    """

    def __init__(self, queue: KafkaWorkQueue, job: ProcessJob) -> None:
        self.invalid = 0
        self._queue = queue
        self._job = replace(job, shard=None)
        self._ready: deque[RecordingUnit] = deque()
        self._records: dict[int, _OpenRecord] = {}  # by the identity of each of their units
        self._at_work: set[str] = set()
        self._lock = asyncio.Lock()
        self._is_stopped = False
        self._opened_at = self._last_record = time.monotonic()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._queue.open()
        self._opened_at = self._last_record = time.monotonic()
        self._keeper = asyncio.create_task(self._keep_membership())

    async def take(self) -> RecordingUnit | None:
        async with self._lock:
            while not self._is_stopped:
                if (unit := self._next_ready()) is not None:
                    return unit
                if self._keeper is not None and self._keeper.done():
                    self._keeper.result()  # raises why the membership was lost
                if len(self._ready) >= _MOST_READY:
                    await asyncio.sleep(_REPEAT_S)
                    continue
                record = await self._queue.take()
                if record is not None:
                    self._last_record = time.monotonic()
                    await self._open_record(record)
                elif self._is_idle():
                    self._is_stopped = True
        return None

    def _next_ready(self) -> RecordingUnit | None:
        """The first recording whose name no other one at work has: the same address may come twice."""
        for unit in self._ready:
            if unit.name not in self._at_work:
                self._ready.remove(unit)
                self._at_work.add(unit.name)
                return unit
        return None

    async def finish(self, unit: RecordingUnit) -> None:
        self._at_work.discard(unit.name)
        opened = self._records.pop(id(unit))
        opened.left -= 1
        self._last_record = time.monotonic()
        if not opened.left:
            await self._queue.finish(opened.record)

    def stop(self) -> None:
        self._is_stopped = True

    async def aclose(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError, StreamerError):
                await self._keeper
        await self._queue.aclose()

    def _is_idle(self) -> bool:
        if not self._queue.has_partitions and time.monotonic() < self._opened_at + _JOIN_S:
            self._last_record = time.monotonic()  # joining a group takes some seconds
        return bool(self._queue.idle_s) and not self._records and self._waited_s() >= self._queue.idle_s

    def _waited_s(self) -> float:
        return time.monotonic() - self._last_record

    async def _open_record(self, record: WorkRecord) -> None:
        try:
            address, name = parse_record(record.value)
            units = await asyncio.to_thread(_list_recordings, self._job, address)
            if any(unit.live for unit in units):
                raise ConfigError(f"{redact(address)} is a camera, which has no end: give it to groundstream monitor")
            if name is not None:
                if len(units) != 1:
                    raise ConfigError(f"name {name!r} stands for {len(units)} recordings: leave it out")
                units = [replace(units[0], name=name)]
        except (ConfigError, SourceAddressError) as error:
            self.invalid += 1
            log.warning("record %s is passed over: %s", record.where, error)
            await self._queue.finish(record)
            return
        opened = _OpenRecord(record, len(units))
        self._records.update({id(unit): opened for unit in units})
        self._ready.extend(units)

    async def _keep_membership(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_S)
            await self._queue.keep_membership()


def _list_recordings(job: ProcessJob, address: str) -> list[RecordingUnit]:
    try:
        return list_units(replace(job, videos=[address]))
    except SourceAddressError:
        raise
    except SourceError as error:
        return [RecordingUnit(stream_name(address), address, error=str(error))]


def parse_record(value: bytes) -> tuple[str, str | None]:
    """Returns the address in a record, and the name of the stream where it gives one. Raises `ConfigError`."""
    expected = "expected an address, or a JSON object with source and name"
    if len(value) > _LONGEST_RECORD:
        raise ConfigError(f"it has {len(value)} bytes: {expected}")
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"it is no UTF-8 text: {expected}") from None
    source: object = text
    name: object = None
    if text.startswith(("{", "[", '"')):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError(f"it is no JSON: {expected}") from None
        if isinstance(found, dict):
            source, name = found.get("source"), found.get("name")
        else:
            source = found
    if not isinstance(source, str) or not source.strip() or not isinstance(name, str | None):
        raise ConfigError(f"it names no recording: {expected}")
    if "\n" in source or "\0" in source:
        raise ConfigError(f"it has several lines: {expected}")
    if name is not None and (name in ("", ".", "..") or "/" in name or "\0" in name):
        raise ConfigError(f"name {name!r} cannot be a folder: {expected}")
    return source.strip(), name
