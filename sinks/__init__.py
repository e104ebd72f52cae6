"""groundstream's events and sinks: the event schema, the durable spool and the adapters to other systems.

The package is independent of video, models and trackers.
"""

from sinks.event import Event
from sinks.registry import open_sink, open_sinks
from sinks.sink import PoisonError, Sink, SinkAddressError, SinkError

__all__ = ["Event", "PoisonError", "Sink", "SinkAddressError", "SinkError", "open_sink", "open_sinks"]
