"""Parts that the recordings of a job share: one detector for all, and sinks that stay open between recordings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from detectors import Detector, Prompt, Request
from sinks.event import Event
from sinks.sink import Sink

if TYPE_CHECKING:
    import supervision as sv


class SharedDetector:
    """One loaded model for several recordings that run at the same time; calls come from several threads.

    On a CPU every recording keeps its own batches, so that its results do not depend on the others. `combine` joins
    the waiting batches of all recordings into one call, which keeps a GPU busy.
    """

    def __init__(self, detector: Detector, name: str, *, combine: bool) -> None:
        """`name` is the detector's name in events."""
        self.name = name
        self._detector = detector
        self._combine = combine
        self._lock = threading.Lock()
        self._waiting: list[_WaitingBatch] = []
        self._waiting_lock = threading.Lock()
        self._prompts: dict[tuple[str, ...], Prompt] = {}

    @property
    def threshold(self) -> float:
        return self._detector.threshold

    def prepare(self, queries: Sequence[str]) -> Prompt:
        """Prepares the words once for all recordings."""
        key = tuple(queries)
        with self._lock:
            if key not in self._prompts:
                self._prompts[key] = self._detector.prepare(queries)
            return self._prompts[key]

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """Detects in the requests, alone or together with those of other threads."""
        if not self._combine:
            with self._lock:
                return self._detector.detect(requests)
        batch = _WaitingBatch(requests)
        with self._waiting_lock:
            self._waiting.append(batch)
        with self._lock:  # the thread that gets it serves everything that waits
            if not batch.done:
                with self._waiting_lock:
                    together, self._waiting = self._waiting, []
                self._serve(together)
        return batch.result()

    def forget(self, stream: str) -> None:
        """Lets the detector drop what it remembers of a recording that has ended."""
        if (forget := getattr(self._detector, "forget", None)) is not None:
            with self._lock:
                forget(stream)

    def _serve(self, batches: Sequence[_WaitingBatch]) -> None:
        try:
            found = self._detector.detect([request for batch in batches for request in batch.requests])
        except Exception:
            for batch in batches:  # a fault of one recording is not another's
                try:
                    batch.finish(self._detector.detect(batch.requests))
                except Exception as error:
                    batch.fail(error)
            return
        for batch in batches:
            batch.finish(found[: len(batch.requests)])
            found = found[len(batch.requests) :]


class _WaitingBatch:
    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.done = False
        self._found: list[sv.Detections] = []
        self._error: Exception | None = None

    def finish(self, found: list[sv.Detections]) -> None:
        self._found, self.done = found, True

    def fail(self, error: Exception) -> None:
        self._error, self.done = error, True

    def result(self) -> list[sv.Detections]:
        if self._error is not None:
            raise self._error
        return self._found


class SharedSink:
    """A sink that several recordings write to, one batch at a time; `aclose` of a recording leaves it open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = asyncio.Lock()

    async def send_batch(self, events: Sequence[Event]) -> None:
        async with self._lock:
            await self._sink.send_batch(events)

    async def aclose(self) -> None:
        pass


def share_sinks(sinks: Mapping[str, Sink]) -> dict[str, Sink]:
    """Wraps every sink for the use by several recordings."""
    return {name: SharedSink(sink) for name, sink in sinks.items()}
