"""Kafka: the sink that produces events and the reader that consumes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.kafka.sink import open_kafka as open_kafka

__all__ = ["open_kafka"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: kafka-python takes a third of a second to import.
    if name == "open_kafka":
        from sinks.kafka.sink import open_kafka

        return open_kafka
    raise AttributeError(f"module 'sinks.kafka' has no attribute {name!r}")
