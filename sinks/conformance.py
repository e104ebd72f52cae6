"""Tests that every sink passes: subclass `SinkConformance` in a test file and provide a factory and a reader.

    class TestMySink(SinkConformance):
        def make_sink(self, folder: Path) -> Sink:
            return MySink(folder / "events")

        def read_events(self, folder: Path) -> list[Event]:
            return my_reader(folder / "events")

Needs pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sinks.event import (
    Clock,
    Event,
    EventData,
    EventType,
    FrameInfo,
    Producer,
    event_id,
    format_sequence,
    rfc3339,
)
from sinks.sink import Sink

_RUN = 1_700_000_000_000
_START_NS = 1_700_000_000_000_000_000


def sample_events(count: int, *, first: int = 0, stream: str = "gate") -> list[Event]:
    """`count` valid events of one stream, numbered from `first`, 40 ms apart."""
    return [_sample_event(number, stream) for number in range(first, first + count)]


def _sample_event(number: int, stream: str) -> Event:
    time_ns = _START_NS + number * 40_000_000
    return Event(
        id=event_id(_RUN, stream, number),
        source=f"/streams/{stream}",
        type=EventType.STREAM_ONLINE,
        subject=stream,
        time=rfc3339(time_ns),
        partitionkey=stream,
        sequence=format_sequence(number),
        data=EventData(
            stream=stream,
            run=_RUN,
            clock=Clock(basis="arrival", uncertainty_ms=40, captured_ns=time_ns, received_ns=time_ns),
            frame=FrameInfo(index=number, width=1280, height=720),
            producer=Producer(version="1", detector="scripted", tracker="default", config_hash="x"),
        ),
    )


class SinkConformance:
    """Order, re-sent events, empty batches and closing."""

    def make_sink(self, folder: Path) -> Sink:
        """Returns a sink that keeps its events in or for `folder`; called again, one that continues there."""
        raise NotImplementedError

    def read_events(self, folder: Path) -> list[Event]:
        """Returns everything that the sinks of `folder` have acknowledged, in the order in which it is stored."""
        raise NotImplementedError

    def send(self, folder: Path, *batches: Sequence[Event]) -> None:
        """Sends the batches through one sink and closes it."""

        async def run() -> None:
            sink = self.make_sink(folder)
            try:
                for batch in batches:
                    await sink.send_batch(batch)
            finally:
                await sink.aclose()

        asyncio.run(run())

    def test_events_arrive_unchanged_and_in_the_order_of_each_stream(self, tmp_path: Path) -> None:
        """Two streams in turns."""
        pairs = zip(sample_events(50), sample_events(50, stream="yard"), strict=True)
        self.send(tmp_path, [event for pair in pairs for event in pair])
        found = self.read_events(tmp_path)
        for stream in ("gate", "yard"):
            assert [event for event in found if event.data.stream == stream] == sample_events(50, stream=stream)

    def test_a_sent_batch_is_there_before_the_sink_is_closed(self, tmp_path: Path) -> None:
        """What `send_batch` returned for is delivered."""

        async def run() -> list[Event]:
            sink = self.make_sink(tmp_path)
            try:
                await sink.send_batch(sample_events(10))
                return await asyncio.to_thread(self.read_events, tmp_path)
            finally:
                await sink.aclose()

        assert [event.id for event in asyncio.run(run())] == [event.id for event in sample_events(10)]

    def test_events_that_are_sent_again_keep_their_ids(self, tmp_path: Path) -> None:
        """Duplicates are allowed, other ids are not."""
        self.send(tmp_path, sample_events(20), sample_events(30, first=10))
        ids = [event.id for event in self.read_events(tmp_path)]
        assert list(dict.fromkeys(ids)) == [event.id for event in sample_events(40)]

    def test_a_second_sink_continues_where_the_first_ended(self, tmp_path: Path) -> None:
        """Nothing of an earlier run is lost."""
        self.send(tmp_path, sample_events(5))
        self.send(tmp_path, sample_events(5, first=5))
        ids = [event.id for event in self.read_events(tmp_path)]
        assert list(dict.fromkeys(ids)) == [event.id for event in sample_events(10)]

    def test_an_empty_batch_is_taken(self, tmp_path: Path) -> None:
        """It changes nothing."""
        self.send(tmp_path, [], sample_events(1), [])
        assert [event.id for event in self.read_events(tmp_path)] == [event.id for event in sample_events(1)]

    def test_closing_twice_is_safe(self, tmp_path: Path) -> None:
        """As the contract says."""

        async def run() -> None:
            sink = self.make_sink(tmp_path)
            await sink.aclose()
            await sink.aclose()

        asyncio.run(run())
