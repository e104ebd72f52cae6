"""Parts that the recordings of a job share: one detector for all, and sinks that stay open between recordings."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from detectors import Detector, Prompt, Request
from sinks.event import Event
from sinks.sink import Sink

if TYPE_CHECKING:
    import supervision as sv


_WAIT_SHARE, _LONGEST_WAIT_S, _WAIT_STEP_S = 0.2, 0.05, 0.0005
"""How long a call waits for batches of other recordings: a share of the last call's time, at most so many seconds."""


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
        self._served = threading.Condition()
        self._is_serving = False
        self._company = 1  # recordings that had a batch in the last call or waited at its end
        self._call_s = 0.0
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
        with self._served:
            self._waiting.append(batch)
            while self._is_serving and not batch.done:
                self._served.wait()
            if batch.done:
                return batch.result()
            self._is_serving = True  # this thread serves everything that waits
        try:
            self._await_company()
            with self._served:
                together, self._waiting = self._waiting, []
            started = time.monotonic()
            with self._lock:
                self._serve(together)
            self._call_s = time.monotonic() - started
            self._company = len(together) + len(self._waiting)
        finally:
            with self._served:
                self._is_serving = False
                self._served.notify_all()
        return batch.result()

    def forget(self, stream: str) -> None:
        """Lets the detector drop what it remembers of a recording that has ended."""
        if (forget := getattr(self._detector, "forget", None)) is not None:
            with self._lock:
                forget(stream)

    def _await_company(self) -> None:
        """Waits a moment for the recordings that the last call served: they come back one after the other."""
        deadline = time.monotonic() + min(_LONGEST_WAIT_S, self._call_s * _WAIT_SHARE)
        while len(self._waiting) < self._company and time.monotonic() < deadline:
            time.sleep(_WAIT_STEP_S)

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
