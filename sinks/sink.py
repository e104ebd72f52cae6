"""The contract of a sink, which takes events, and its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from groundstream import GroundstreamError

if TYPE_CHECKING:
    from sinks.event import Event


class SinkError(GroundstreamError):
    """An event could not be delivered for now: the peer is down, slow or refusing. Sending again may work.

    `delivered` is the number of events, from the batch's beginning, that the peer has acknowledged all the same.
    """

    def __init__(self, message: str, *, delivered: int = 0) -> None:
        super().__init__(message)
        self.delivered = delivered


class PoisonError(SinkError):
    """Events that will never be taken (too large, refused as malformed): they belong in the dead-letter file.

    `reasons` maps their ids to why; all other events of the batch were delivered. Without `reasons` it is not known
    which event it was, and none counts as delivered.
    """

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class ReaderGone(SinkError):
    """The only reader of the events has left and will not come back, such as the other end of a pipe: the sink is
    finished, and sending again is of no use."""


class SinkAddressError(SinkError, ValueError):
    """The sink's address cannot be used: what was found, what is allowed, what to do."""


class Sink(Protocol):
    """Takes events in order. An event counts as delivered when `send_batch` has returned.

    A sink may have two attributes that ask for larger batches: `batch_events` (int), the most events that it wants at
    once, and `linger_s` (float), how many seconds of waiting it accepts to get that many. `durable` (bool, true when
    absent) says whether events that it has not taken are kept for it over a restart. It may have a coroutine `check()`
    that finds out whether events could go there, without sending or creating anything: it returns the state in a few
    words, empty where it cannot be known, and raises `SinkError`.
    """

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Deliver the events in their order; return when the peer has acknowledged every one of them.

        Raises `SinkError` when it has to be tried again later, `PoisonError` for events that are never taken, and
        `ReaderGone` when nothing will ever be taken again.
        """
        ...

    async def aclose(self) -> None:
        """Closes files and connections, also in the middle of a batch. Safe to call twice."""
        ...
