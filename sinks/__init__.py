"""Where events go: the event's schema and the sinks. This package knows nothing of video, models or trackers."""

from sinks.event import Event
from sinks.registry import open_sink, open_sinks
from sinks.sink import PoisonError, Sink, SinkAddressError, SinkError

__all__ = ["Event", "PoisonError", "Sink", "SinkAddressError", "SinkError", "open_sink", "open_sinks"]
