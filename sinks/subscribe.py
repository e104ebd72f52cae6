"""Subscriptions: events read from where a sink wrote them, each once and typed, with gaps reported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import Literal, Self

from sinks.address import SinkAddress, parse_address
from sinks.event import Event, rfc3339
from sinks.filters import EventFilter
from sinks.sink import SinkAddressError

# scheme -> "module:function"; a reader takes the address and a StartPosition, whether to follow, and a group
_READERS: dict[str, str] = {
    "jsonl": "sinks.readers:read_jsonl",
    "sqlite": "sinks.readers:read_sqlite",
    "postgresql": "sinks.postgres:read_postgres",
    "parquet": "sinks.readers:read_parquet",
    "kafka": "sinks.kafka.reader:read_kafka",
    "kafkas": "sinks.kafka.reader:read_kafka",
    "http": "sinks.http_reader:read_http",
    "https": "sinks.http_reader:read_http",
}
_ID = re.compile(r"\d+\..+\.\d+")
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_AGO_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MOST_HOLES = 1000
_MOST_STREAMS = 1000
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class StartPosition:
    """Where reading begins: `at` is "earliest", "latest", "time" (with an RFC 3339 time) or "id" (after that event)."""

    at: Literal["earliest", "latest", "time", "id"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """Something that stands among the events and is none; `reason` is one sentence."""

    reason: str


Reader = AsyncGenerator[Event | UnreadableEvent, None]


@dataclass(frozen=True, slots=True)
class SequenceGap:
    """Events `first` to `last` of a stream's run were not there: lost, dropped by policy, or filtered by the sink."""

    stream: str
    run: int
    first: int
    last: int

    def __str__(self) -> str:
        count = self.last - self.first + 1
        return (
            f"{count} event{'s' * (count > 1)} of {self.stream} missing: {self.first} to {self.last} of run {self.run}"
        )


class SequenceChecker:
    """Finds duplicates and gaps by the sequence numbers of every stream and run, in bounded memory."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, str], int] = {}
        self._holes: dict[tuple[int, str], list[tuple[int, int]]] = {}

    def take(self, event: Event) -> bool | SequenceGap:
        """True for the next event, False for a duplicate, the gap that an event leaves before it."""
        key = (event.data.run, event.data.stream)
        number = int(event.sequence)
        newest = self._newest.get(key)
        if newest is None or number == newest + 1:
            self._newest[key] = number
            return True
        if number <= newest:
            return self._fill_gap(key, number)
        self._newest[key] = number
        holes = self._holes.setdefault(key, [])
        holes.append((newest + 1, number - 1))
        del holes[:-_MOST_HOLES]
        return SequenceGap(event.data.stream, event.data.run, newest + 1, number - 1)

    @property
    def missing(self) -> int:
        """How many events are missing at present: one that comes late closes its gap."""
        return sum(last - first + 1 for holes in self._holes.values() for first, last in holes)

    def _fill_gap(self, key: tuple[int, str], number: int) -> bool:
        holes = self._holes.get(key, [])
        for index, (first, last) in enumerate(holes):
            if first <= number <= last:
                holes[index : index + 1] = [
                    hole for hole in ((first, number - 1), (number + 1, last)) if hole[0] <= hole[1]
                ]
                return True
        return False


class Subscription:
    """Iterate it for events; `aclose`, or leaving `async with`, lets go of files and connections."""

    def __init__(
        self, reader: Reader, wanted: EventFilter, since: StartPosition, on_gap: Callable[[SequenceGap], object] | None
    ) -> None:
        self._reader = reader
        self._wanted = wanted
        self._not_before = since.value if since.at == "time" else ""
        self._on_gap = on_gap
        self._sequences = SequenceChecker()
        self.duplicates = 0
        self.read = self.chosen = 0  # events that were read, and those of them that match
        self._types: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self.unreadable: list[str] = []  # the newest reasons

    @property
    def missing(self) -> int:
        """How many events are missing in the sequences that were read."""
        return self._sequences.missing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = await anext(self._reader)
            if isinstance(event, UnreadableEvent):
                self.unreadable = [*self.unreadable[-99:], event.reason]
                continue
            taken = self._sequences.take(event)
            if not taken:
                self.duplicates += 1
                continue
            if isinstance(taken, SequenceGap) and self._on_gap is not None:
                self._on_gap(taken)
            self._count_event(event)
            if event.time >= self._not_before and self._wanted(event):
                self.chosen += 1
                return event

    def summary(self) -> str:
        """Which types and streams were read, the most frequent first."""
        types = ", ".join(f"{name} ({count})" for name, count in self._types.most_common(_SHOWN))
        return f"types {types}; streams {', '.join(name for name, _ in self._streams.most_common(_SHOWN))}"

    def _count_event(self, event: Event) -> None:
        self.read += 1
        self._types[event.kind] += 1
        if len(self._streams) < _MOST_STREAMS:
            self._streams[event.data.stream] += 1

    async def aclose(self) -> None:
        """Closes files and connections."""
        await self._reader.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def subscribe(
    address: str,
    *,
    types: Collection[str] = (),
    streams: Collection[str] = (),
    queries: Collection[str] = (),
    since: str | datetime | None = None,
    follow: bool = False,
    group: str | None = None,
    on_gap: Callable[[SequenceGap], object] | None = None,
) -> Subscription:
    """The events at `sqlite:PATH`, `jsonl:PATH`, `parquet:FOLDER` or `kafka://HOST:PORT/TOPIC`, each once.

        async for event in subscribe("sqlite:events.sqlite", types=["zone.*"], since="10m"):
            ...

    `types`, `streams` and `queries` choose as `EventFilter` does. `since` is "earliest", a time (RFC 3339, or `10m`,
    `2h`, `1d` ago), or the id of the last event that was seen. `follow` waits for what comes; without `since` it
    begins now. A `group` (Kafka) goes on where it committed. `on_gap` is called for every gap in a sequence.
    Raises `SinkAddressError` for what cannot be understood, and while iterating `SinkError`.
    """
    parts = parse_address(address)
    target = _READERS.get(parts.scheme)
    if target is None:
        raise SinkAddressError(f"{parts.public}: events cannot be read from there: known are {', '.join(_READERS)}")
    start = parse_since(since, follow, group)
    if group is not None and not parts.scheme.startswith("kafka"):
        raise SinkAddressError(f"{parts.public} has no groups, only Kafka has: to resume, give the last id as since")
    module, _, name = target.partition(":")
    read: Callable[[SinkAddress, StartPosition, bool, str | None], Reader] = getattr(import_module(module), name)
    return Subscription(read(parts, start, follow, group), EventFilter(types, streams, queries), start, on_gap)


def parse_since(since: str | datetime | None, follow: bool, group: str | None) -> StartPosition:
    """Returns the start position. Raises `SinkAddressError` for a text that is neither a time nor an id."""
    if since is None:
        return StartPosition("latest" if follow and group is None else "earliest")
    if isinstance(since, datetime):
        return StartPosition("time", _to_rfc3339(since))
    text = since.strip()
    if text in {"earliest", "latest"}:
        return StartPosition("earliest" if text == "earliest" else "latest")
    if match := _AGO.fullmatch(text):
        ago = timedelta(**{_AGO_UNITS[match[2]]: float(match[1])})
        return StartPosition("time", _to_rfc3339(datetime.now(UTC) - ago))
    if _ID.fullmatch(text):
        return StartPosition("id", text)
    try:
        return StartPosition("time", _to_rfc3339(datetime.fromisoformat(text)))
    except ValueError:
        raise SinkAddressError(
            f"since {text!r} is no time: write earliest, 10m, 2h, 2026-05-01T12:00:00Z, or the id of an event"
        ) from None


def _to_rfc3339(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return rfc3339(int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000)
