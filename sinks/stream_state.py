"""The newest state of each stream, for sinks that keep one: retained MQTT messages, compacted Kafka topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinks.event import EventType

if TYPE_CHECKING:
    from sinks.event import Event


class StreamStates:
    """Says which events are the new state of their stream.

    `stream.online` and `stream.offline` are; `coverage` is as long as the stream is not offline, so that a stream that
    ended stays offline whatever is reported about its last seconds.
    """

    def __init__(self) -> None:
        self._offline: set[str] = set()

    def is_state(self, event: Event) -> bool:
        """Whether the event is the new state of its stream; remembers it."""
        stream = event.data.stream
        if event.type is EventType.STREAM_ONLINE:
            self._offline.discard(stream)
            return True
        if event.type is EventType.STREAM_OFFLINE:
            self._offline.add(stream)
            return True
        return event.type is EventType.COVERAGE and stream not in self._offline
