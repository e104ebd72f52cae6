"""The contract of a sink: somewhere that events go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sinks.event import Event


class SinkError(Exception):
    """An event could not be delivered for now: the peer is down, slow or refusing. Sending again may work."""


class PoisonError(SinkError):
    """This one event will never be taken (too large, refused as malformed): it belongs in the dead-letter file."""


class SinkAddressError(SinkError, ValueError):
    """The sink's address cannot be used: what was found, what is allowed, what to do."""


class Sink(Protocol):
    """Takes events in order. An event counts as delivered when `send_batch` has returned."""

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Deliver the events in their order; return when the peer has acknowledged every one of them."""
        ...

    async def aclose(self) -> None:
        """Finish what was begun and let go of files and connections. Safe to call twice."""
        ...
