"""Sources, detectors and sinks that do exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import supervision as sv

from detectors import Prompt, Request
from detectors.detector import clean_queries, detections
from sinks.event import Event, Producer
from sinks.spool.spool import Spool
from streamer.analysis.event_writer import StreamIdentity
from streamer.analysis.queries import QueryBook
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.config import BatchConfig
from streamer.frame import Frame, FrameClock
from streamer.pipeline import Pipeline, StateRelay, Stream
from streamer.rules.track_ids import derived_uids
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.sampling import FrameSampling
from trackers import create_tracker

SIZE = (64, 48)
BLACK = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)


class FakeSource:
    """`count` frames, `period_s` apart in capture time; a live one gives them at that pace, keeping the newest.

    `fail_at` raises before that frame; a live one with `count` None never ends by itself.
    """

    def __init__(
        self,
        name: str = "cam",
        *,
        count: int | None = 10,
        live: bool = False,
        period_s: float = 0.04,
        fail_at: int | None = None,
    ) -> None:
        self.name = name
        self.live = live
        self.account = FrameCounter()
        self.expected_frames = count
        self._count = count
        self._period_s = period_s
        self._fail_at = fail_at
        self._fails = False
        self._closed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        if self.live:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), self._period_s)
        number = self.account.tally().received
        if self._closed.is_set() or number == self._count:
            raise StopAsyncIteration
        if number == self._fail_at or self._fails:
            raise OSError("the cable was cut")
        index = self.account.receive()
        if self.live:
            now = time.time_ns()
            return Frame(self.name, index, now, FrameClock("arrival", 1.0, now), BLACK, SIZE)
        return Frame(self.name, index, round(index * self._period_s * 1e9), FrameClock("file_pts"), BLACK, SIZE)

    def fail_now(self) -> None:
        """Raise instead of giving the next frame."""
        self._fails = True

    async def aclose(self) -> None:
        self._closed.set()


class FakeDetector:
    """Finds one box per query, or what `answer` says; counts what it was asked."""

    threshold = 0.5

    def __init__(self, answer: Callable[[Request], sv.Detections] | None = None, delay_s: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self._answer = answer
        self._delay_s = delay_s

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(clean_queries(queries))

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        time.sleep(self._delay_s)
        self.threads.add(threading.get_ident())
        self.batches.append([request.stream for request in requests])
        return [(self._answer or one_box_per_query)(request) for request in requests]


def one_box_per_query(request: Request) -> sv.Detections:
    count = len(request.prompt.queries)
    boxes = [[10 + 20 * number, 10, 20 + 20 * number, 30] for number in range(count)]
    return detections(boxes, [0.9] * count, range(count), request.prompt.queries)


class ListSink:
    """Keeps what it is sent; `broken` refuses until it is repaired, `delay_s` makes it slow."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.events: list[Event] = []
        self._delay_s = delay_s

    async def send_batch(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(self._delay_s)
        self.events += events

    async def aclose(self) -> None:
        pass


PRODUCER = Producer(version="0", detector="fake", tracker="bytetrack", config_hash="0")


def camera(source: FakeSource, queries: Sequence[str] = ("person",), *, threshold: float = 0.5, **options) -> Stream:
    """A stream around a source; `options` are those of `StreamAnalysis`."""
    sampling = options.pop("sampling", FrameSampling())
    recorders = options.pop("recorders", ())
    identity = StreamIdentity(source.name, f"/streams/{source.name}", 1, PRODUCER, derived_uids(source.name))
    analysis = StreamAnalysis(identity, create_tracker("bytetrack"), QueryBook(queries), threshold, **options)
    return Stream(source, analysis, sampling, {str(number): recorder for number, recorder in enumerate(recorders)})


class Bench:
    """A pipeline over fake parts: `async with Bench([...]) as bench: await bench.run()`."""

    def __init__(self, cameras: Sequence[Stream], detector: FakeDetector | None = None, **options) -> None:
        self.sink = options.pop("sink", ListSink())
        self.relay = StateRelay()
        self.detector = detector or FakeDetector()
        self._cameras = cameras
        if "batch_size" in options:
            options["batch"] = BatchConfig(size=options.pop("batch_size"))
        self._options = options
        for made in cameras:
            made.relay = self.relay

    async def __aenter__(self) -> Self:
        self.spool = await Spool.open(None, {"list": self.sink})
        self.pipeline = Pipeline(self._cameras, self.detector, self.spool, **self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.spool.aclose()

    async def run(self) -> list[Event]:
        """Run to the end; the events in the order in which they were sent."""
        await self.pipeline.run()
        assert await self.spool.drain(5)
        return self.sink.events

    async def until(self, kind: str, times: int = 1, seconds: float = 15.0) -> None:
        """Wait for the `times`-th event of a kind."""
        async with asyncio.timeout(seconds):
            while self.kinds().count(kind) < times:  # noqa: ASYNC110 - a sink has no event to wait for
                await asyncio.sleep(0.01)

    def kinds(self, stream: str | None = None) -> list[str]:
        """'track.begin', ... of the events sent so far."""
        return [
            event.type.removeprefix("groundstream.").rpartition(".")[0]
            for event in self.sink.events
            if stream in (None, event.data.stream)
        ]
