"""The first half of a pipeline: frames of all streams, in batches, through the thread that owns the detector."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import supervision as sv

from detectors import Detector, DetectorError, Prompt, Request
from streamer.analysis.queries import QuerySet
from streamer.frame import Frame
from streamer.pipeline.merge import FrameMerge
from streamer.pipeline.stream import Stream
from streamer.pipeline.timings import PipelineTimings

if TYPE_CHECKING:
    from streamer.tracing import FrameTraces

log = logging.getLogger("groundstream")

Image = npt.NDArray[np.uint8]

_PROMPTS_KEPT = 256


@dataclass(frozen=True, slots=True)
class DetectedFrame:
    """A frame with the detections for `queries`: no queries where the frame was not sampled, no detections where the
    detector failed."""

    stream: Stream
    frame: Frame
    queries: QuerySet
    detections: sv.Detections | None


DeliverBatch = Callable[[list[DetectedFrame]], Awaitable[None]]
"""Takes the frames of a batch in order, waiting while too many batches are ahead."""


class DetectionLoop:
    """Takes the newest frames of all streams and runs the detector on them, in the one thread that owns it.

    Live frames wait nowhere after this: they are taken when the detector is free. Every frame that is taken is
    counted as analysed or dropped, and delivered. `batch_size` and `max_wait_s` may be changed while it runs.
    """

    def __init__(
        self,
        detector: Detector,
        streams: Mapping[str, Stream],
        *,
        batch_size: int = 8,
        max_wait_s: float = 0.01,
        timings: PipelineTimings | None = None,
        traces: FrameTraces | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.max_wait_s = max_wait_s
        self._detector = detector
        self._streams = streams
        self._timings = timings or PipelineTimings()
        self._traces = traces
        self._is_busy = False
        self._calls: list[Callable[[], None]] = []
        self._prompts: dict[tuple[str, ...], Prompt] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")

    async def prepare_queries(self, sets: Iterable[QuerySet]) -> None:
        """Encode the words of all the sets in the detector's thread, between two batches. Raises `PromptError`."""
        wanted = {_texts_of(queries) for queries in sets} - {()}
        if wanted:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare_all, wanted)

    async def detect_images(
        self, images: Sequence[Image], texts: tuple[str, ...], threshold: float
    ) -> list[sv.Detections]:
        """Detect `texts` in BGR images of (height, width, 3), between two batches of frames. Raises `DetectorError`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._detect_images, images, texts, threshold)

    def call_after_batch(self, function: Callable[[], None]) -> None:
        """Call `function` in the event loop once the frames that were taken before have been delivered."""
        self._calls.append(function)
        asyncio.get_running_loop().call_soon(self._make_calls)

    async def wait_for_batch(self) -> None:
        """Wait until the frames that were taken before have been delivered."""
        delivered = asyncio.Event()
        self.call_after_batch(delivered.set)
        await delivered.wait()

    def forget_stream(self, stream: str) -> None:
        """Let a detector that remembers the frames of a stream drop them, after the frames that were taken before."""
        if (forget := getattr(self._detector, "forget", None)) is not None:
            with suppress(RuntimeError):  # the thread has ended, and the detector goes with the pipeline
                self._thread.submit(_call_and_report, forget, stream)

    async def run(self, merge: FrameMerge, deliver: DeliverBatch) -> None:
        """Detect until every source has ended."""
        loop = asyncio.get_running_loop()
        try:
            while frames := await merge.take(self.batch_size, self.max_wait_s):
                self._is_busy = True
                batch = [self._choose_queries(frame) for frame in frames]
                wanted = [chosen for chosen in batch if chosen[2]]
                began_ns = time.time_ns()
                found = await loop.run_in_executor(self._thread, self._detect_batch, wanted) if wanted else []
                counted = self._count_batch(batch, found)
                if self._traces is not None:
                    analysed = [each.frame for each in counted if each.detections is not None]
                    self._traces.note_batch(analysed, began_ns, time.time_ns())
                await deliver(counted)
                self._is_busy = False
                self._make_calls()
        finally:
            self._is_busy = False
            self._make_calls()

    def close(self) -> None:
        """Let the detector's thread end; work that has not begun is cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _choose_queries(self, frame: Frame) -> tuple[Stream, Frame, QuerySet]:
        """The frame with the queries to detect in it, none when it is not sampled."""
        stream = self._streams[frame.stream]
        stream.taken_ns = frame.time_ns if stream.taken_ns is None else max(stream.taken_ns, frame.time_ns)
        stream.in_flight += 1
        if not stream.sampling.wants(frame):
            return stream, frame, ()
        return stream, frame, stream.analysis.queries.at(frame.time_ns)

    def _make_calls(self) -> None:
        if not self._is_busy:
            calls, self._calls = self._calls, []
            for call in calls:
                call()

    def _count_batch(
        self, batch: Sequence[tuple[Stream, Frame, QuerySet]], found: Sequence[sv.Detections | Exception]
    ) -> list[DetectedFrame]:
        """Count every frame of a batch as analysed or dropped; `found` holds the results of those with queries."""
        results = iter(found)
        counted = []
        for stream, frame, queries in batch:
            account = stream.source.account
            detections: sv.Detections | None = None
            if not queries:
                account.drop("not_sampled")
            elif isinstance(result := next(results), Exception):
                account.drop("detector_error")
                _report_failure(stream, result)
            else:
                account.analyse()
                detections = result
            counted.append(DetectedFrame(stream, frame, queries, detections))
        return counted

    # Everything below runs in the detector's thread.

    def _detect_batch(self, batch: Sequence[tuple[Stream, Frame, QuerySet]]) -> list[sv.Detections | Exception]:
        """Detections per frame. When a batch fails, each frame is tried alone: a fault of one camera stays there."""
        requests = [self._request(*each) for each in batch]
        began_s = time.monotonic()
        try:
            found: list[sv.Detections | Exception] = list(self._detector.detect(requests))
            self._timings.note_batch(len(requests), time.monotonic() - began_s)
            return found
        except Exception as error:
            if len(requests) == 1:
                return [error]
        return [self._detect_alone(request) for request in requests]

    def _request(self, stream: Stream, frame: Frame, queries: QuerySet) -> Request:
        thresholds = [query.least_score(stream.analysis.default_threshold) for query in queries]
        return Request(lambda: frame.image, self._prompt(_texts_of(queries)), frame.stream, thresholds)

    def _detect_alone(self, request: Request) -> sv.Detections | Exception:
        try:
            return self._detector.detect([request])[0]
        except Exception as error:
            return error

    def _detect_images(self, images: Sequence[Image], texts: tuple[str, ...], threshold: float) -> list[sv.Detections]:
        prompt, thresholds = self._prompt(texts), [threshold] * len(texts)
        # A name of its own: detectors that remember a stream's frames must not mix these in.
        return self._detector.detect([Request(image, prompt, "trial", thresholds) for image in images])

    def _prepare_all(self, sets: Iterable[tuple[str, ...]]) -> None:
        for texts in sets:
            self._prompt(texts)

    def _prompt(self, texts: tuple[str, ...]) -> Prompt:
        prompt = self._prompts.get(texts)
        if prompt is None:
            if len(self._prompts) >= _PROMPTS_KEPT:
                del self._prompts[next(iter(self._prompts))]
            prompt = self._prompts[texts] = self._detector.prepare(texts)
        return prompt


def _call_and_report(forget: Callable[[str], None], stream: str) -> None:
    try:
        forget(stream)
    except Exception as error:
        log.error("%s: the detector could not forget the stream: %s", stream, error, exc_info=True)


def _texts_of(queries: QuerySet) -> tuple[str, ...]:
    return tuple(query.text for query in queries)


def _report_failure(stream: Stream, error: Exception) -> None:
    """Log the first failure of a stream; its report shows the latest."""
    if not stream.error:
        log.error("%s: the detector failed: %s", stream.name, error, exc_info=not isinstance(error, DetectorError))
    stream.error = f"the detector failed: {error}"
