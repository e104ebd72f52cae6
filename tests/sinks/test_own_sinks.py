"""The published suite for sinks, with the sinks that keep files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sinks import open_sink
from sinks.conformance import SinkConformance
from sinks.event import Event
from sinks.sink import Sink
from sinks.subscribe import subscribe


class _FileSink(SinkConformance):
    scheme = ""

    def address(self, folder: Path) -> str:
        return f"{self.scheme}:{folder / 'events'}"

    def make_sink(self, folder: Path) -> Sink:
        return open_sink(self.address(folder))

    def read_events(self, folder: Path) -> list[Event]:
        async def read() -> list[Event]:
            return [event async for event in subscribe(self.address(folder))]

        return asyncio.run(read())


class TestJsonLines(_FileSink):
    scheme = "jsonl"


class TestSqlite(_FileSink):
    scheme = "sqlite"
