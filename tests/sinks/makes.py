"""Events and sinks for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from sinks.event import (
    Box,
    Clock,
    Event,
    EventData,
    EventType,
    FrameInfo,
    Match,
    Producer,
    TrackInfo,
    event_id,
    format_sequence,
    rfc3339,
)

RUN = 1_700_000_000_000
START_NS = 1_700_000_000_000_000_000
UID = "01HZX3V5Q8M4T7W9Y2B6C8D0E1"


def event(
    sequence: int,
    *,
    stream: str = "gate",
    kind: EventType = EventType.TRACK_BEGIN,
    run: int = RUN,
    uid: str = UID,
    query: str = "red car",
    padding: int = 0,
) -> Event:
    """An event of a track, or of the stream where the type speaks of no track; `padding` makes it larger."""
    time_ns = START_NS + sequence * 40_000_000
    track = None
    if kind.value.split(".")[1] in {"track", "match", "zone", "line", "enrich", "media"}:
        track = TrackInfo(
            uid=uid,
            number=3,
            state="ended" if kind is EventType.TRACK_END else "confirmed",
            revision=sequence + 1,
            first_seen_ns=START_NS,
            last_seen_ns=time_ns,
            box=Box(x1=0.1, y1=0.2, x2=0.3, y2=0.4),
            score=0.9,
            end_reason="left_view" if kind is EventType.TRACK_END else None,
        )
    return Event(
        id=event_id(run, stream, sequence),
        source=f"/streams/{stream}",
        type=kind,
        subject=uid if track else stream,
        time=rfc3339(time_ns),
        partitionkey=stream,
        sequence=format_sequence(sequence),
        data=EventData(
            stream=stream,
            run=run,
            clock=Clock(basis="arrival", uncertainty_ms=40, captured_ns=time_ns, received_ns=time_ns),
            frame=FrameInfo(index=sequence, width=1280, height=720),
            track=track,
            matches=[Match(query_id="q1", query_rev=1, text=query, score=0.8, threshold=0.3)] if track else None,
            producer=Producer(version="0.1", detector="glip-tiny", tracker="bytetrack", config_hash="x" * padding),
        ),
    )


def events(count: int, *, first: int = 0, stream: str = "gate") -> list[Event]:
    return [event(sequence, stream=stream) for sequence in range(first, first + count)]


def ids(found: Iterable[Event]) -> list[str]:
    return [event.id for event in found]


class Recorder:
    """A sink that remembers what it got. `answer` may raise, or wait, before a batch counts as delivered."""

    def __init__(self, answer: Callable[[Sequence[Event]], object] | None = None) -> None:
        self.got: list[Event] = []
        self.closed = False
        self.answer = answer

    async def send_batch(self, events: Sequence[Event]) -> None:
        result = self.answer(events) if self.answer else None
        if asyncio.iscoroutine(result):
            await result
        self.got += events

    async def aclose(self) -> None:
        self.closed = True


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something to become true; the test fails when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for is no event of asyncio
            await asyncio.sleep(0.01)
