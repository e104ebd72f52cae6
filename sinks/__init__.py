"""groundstream's events and sinks: the event schema, the durable spool and the adapters to other systems.

The package is independent of video, models and trackers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.event import Event
    from sinks.registry import open_sink, open_sinks
    from sinks.sink import PoisonError, Sink, SinkAddressError, SinkError

__all__ = ["Event", "PoisonError", "Sink", "SinkAddressError", "SinkError", "open_sink", "open_sinks"]

_MODULES = {"Event": "sinks.event", "open_sink": "sinks.registry", "open_sinks": "sinks.registry"}


def __getattr__(name: str) -> Any:
    # Imported when used: a process that only decodes needs `sinks.address`, and not what checks events.
    if name in __all__:
        return getattr(importlib.import_module(_MODULES.get(name, "sinks.sink")), name)
    raise AttributeError(f"module 'sinks' has no attribute {name!r}")
