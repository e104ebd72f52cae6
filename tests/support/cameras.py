"""Cameras for a pipeline that is changed while it runs: opened anew as often as a configuration asks for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sinks.event import Event, EventType
from streamer.errors import ConfigError
from streamer.pipeline import Pipeline
from tests.support.fakes import FakeSource


class FakeCameras(Mapping[str, FakeSource]):
    """A new source whenever one is opened, as an address gives it; there is nothing called `gone`."""

    def __init__(self, **options: Any) -> None:
        self.opened: list[FakeSource] = []
        self._options = {"count": None, "live": True, "period_s": 0.01, **options}

    def __getitem__(self, name: str) -> FakeSource:
        if name == "gone":
            raise ConfigError("there is nothing at this address")
        self.opened.append(FakeSource(name, **self._options))
        return self.opened[-1]

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def stream_section(name: str, **settings: Any) -> dict[str, Any]:
    """The section of a stream whose source is one of `FakeCameras`."""
    return {"source": "x", "name": name, **settings}


async def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a sink has no event to wait for
            await asyncio.sleep(0.01)


def check_books(events: list[Event], pipeline: Pipeline) -> None:
    """Every begin has its end, numbers are used once and in order, every frame is accounted for."""
    begun = Counter(event.subject for event in events if event.type is EventType.TRACK_BEGIN)
    ended = Counter(event.subject for event in events if event.type is EventType.TRACK_END)
    assert begun == ended
    for stream in {event.data.stream for event in events}:
        numbers = [int(event.sequence) for event in events if event.data.stream == stream]
        assert numbers == list(range(1, len(numbers) + 1)), stream
    assert all(report.tally.pending == 0 for report in pipeline.report())
