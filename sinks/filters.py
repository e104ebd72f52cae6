"""Filters of events by type, stream and words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sinks.sink import PoisonError, Sink, SinkAddressError, SinkError
from sinks.spool.delivery import BATCH_EVENTS

if TYPE_CHECKING:
    from sinks.event import Event


def event_types(patterns: Collection[str]) -> frozenset[str]:
    """The full types that `track.begin`, `zone.*`, `track` (all of them) or a full type stand for.

    Raises `SinkAddressError` for a pattern that no type answers to.
    """
    from sinks.event import EventType

    chosen: set[str] = set()
    kinds = {kind.value.removeprefix("groundstream.").rpartition(".")[0]: kind.value for kind in EventType}
    for pattern in patterns:
        short = pattern.strip().removeprefix("groundstream.").removesuffix(".v1")
        found = {full for kind, full in kinds.items() if fnmatchcase(kind, short) or kind.startswith(short + ".")}
        if not found:
            raise SinkAddressError(f"no event type is called {pattern!r}: there are {', '.join(kinds)}; * is allowed")
        chosen |= found
    return frozenset(chosen)


class EventFilter:
    """Says whether an event is wanted; an empty list lets every event through.

    `types` as in `event_types`, `streams` by name or pattern, `queries` by words: without regard to case, anywhere in
    one of the event's queries. `track.begin` has none yet: with `queries` the first event of a track is `match.begin`.
    """

    def __init__(
        self, types: Collection[str] = (), streams: Collection[str] = (), queries: Collection[str] = ()
    ) -> None:
        self.types = event_types(types)
        self.streams = tuple(streams)
        self.queries = tuple(query.casefold() for query in queries)

    def __bool__(self) -> bool:
        return bool(self.types or self.streams or self.queries)

    def __call__(self, event: Event) -> bool:
        if self.types and event.type not in self.types:
            return False
        if self.streams and not any(fnmatchcase(event.data.stream, pattern) for pattern in self.streams):
            return False
        if not self.queries:
            return True
        texts = [text.casefold() for text in event.queries]
        return any(query in text for query in self.queries for text in texts)


class FilteredSink:
    """Passes the wanted events on to a sink; the others count as delivered."""

    def __init__(self, sink: Sink, wanted: EventFilter) -> None:
        self._sink = sink
        self._wanted = wanted
        self.batch_events: int = getattr(sink, "batch_events", BATCH_EVENTS)
        self.linger_s: float = getattr(sink, "linger_s", 0.0)
        self.durable: bool = getattr(sink, "durable", True)

    async def send_batch(self, events: Sequence[Event]) -> None:
        positions = [position for position, event in enumerate(events) if self._wanted(event)]
        if not positions:
            return
        try:
            await self._sink.send_batch([events[position] for position in positions])
        except PoisonError:
            raise
        except SinkError as error:
            error.delivered = positions[min(error.delivered, len(positions) - 1)]
            raise

    async def check(self) -> str:
        """As the sink's own, where it has one."""
        check = getattr(self._sink, "check", None)
        return "" if check is None else str(await check())

    async def send_test(self, event: Event) -> str:
        """As the sink's own. Raises `SinkError` where it has none."""
        send_test = getattr(self._sink, "send_test", None)
        if send_test is None:
            raise SinkError("this kind of sink sends no test messages")
        return str(await send_test(event))

    async def aclose(self) -> None:
        await self._sink.aclose()
