"""Python API: events and tracked frames as iterators, with or without an event loop of the caller's."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sinks.event import Event
from sinks.supervision import start_thread
from streamer.build import open_pipeline
from streamer.config import Config, parse_config
from streamer.frame import Frame
from streamer.jobs import ProcessJob, StreamSummary
from streamer.pipeline import Pipeline, Recorder
from streamer.tasks.process import process_files

if TYPE_CHECKING:
    import supervision as sv

    from detectors import Detector

Address = str | os.PathLike[str]
Query = str | Mapping[str, Any]
Item = TypeVar("Item")

_QUEUED_EVENTS = 1024
_LEAVE_S = 30.0
"""Longest wait for the thread of a plain iterator that was left; it ends by itself after that."""
_QUEUED_FRAMES = 4
"""Frames hold images: a few keep the consumer busy, more would only age."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame:
    """A frame with its tracks: `detections` carry `tracker_id`, `class_id` and `data["class_name"]`.

    `analysed` is False where the detector did not run (sampling): boxes are then predicted from motion.
    """

    frame: Frame
    detections: sv.Detections
    analysed: bool


class _Channel(Generic[Item]):
    """A bounded queue from the pipeline to the caller's loop; after `leave` items are discarded."""

    def __init__(self, bound: int) -> None:
        self.items: asyncio.Queue[Item | None] = asyncio.Queue(bound)
        self._left = False

    async def put(self, item: Item | None) -> None:
        if not self._left:
            await self.items.put(item)

    def leave(self) -> None:
        self._left = True
        while not self.items.empty():
            self.items.get_nowait()


class _EventSink:
    """Sink that puts events into a channel."""

    def __init__(self, channel: _Channel[Event]) -> None:
        self._channel = channel

    async def send_batch(self, events: Sequence[Event]) -> None:
        for event in events:
            await self._channel.put(event)

    async def aclose(self) -> None:
        pass


class _FrameRecorder:
    """Recorder that puts tracked frames into a channel."""

    def __init__(self, channel: _Channel[TrackedFrame]) -> None:
        self._channel = channel

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        await self._channel.put(TrackedFrame(frame, tracked, analysed))

    async def aclose(self) -> None:
        pass


async def watch(
    source: Address | Sequence[Address],
    queries: Query | Sequence[Query],
    *,
    detector: str | Mapping[str, Any] | Detector | None = None,
    tracker: str | Mapping[str, Any] = "default",
    sinks: Sequence[str] = (),
    stream: Mapping[str, Any] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yields the events of files or cameras until all sources have ended.

    - `source`: one or several addresses or paths, as in the configuration file;
    - `queries`: words (one text or several), or mappings with `text`, `id`, `threshold`;
    - `detector`: a name, a `detector:` section of the configuration, or an object with the `Detector` contract;
      by default `motion` for "anything that moves", else `glip-tiny`;
    - `sinks`: addresses that get the events as well;
    - `stream`: further settings of every source as in the configuration file (`zones`, `lines`, `counts`, `sample`).

        async for event in groundstream.watch("gate.mp4", ["a red car"], stream={"lines": [...]}):
            print(event.time, event.type, event.subject)

    Leaving the loop stops the cameras. Raises `ConfigError` and the errors of the parts, all `GroundstreamError`s.
    """
    config, own = _read_arguments("watch()", source, queries, detector, tracker, sinks, stream)
    channel: _Channel[Event] = _Channel(_QUEUED_EVENTS)
    async with aclosing(_run_into(channel, config, more_sinks={"loop": _EventSink(channel)}, detector=own)) as items:
        async for event in items:
            yield event


async def watch_frames(
    source: Address | Sequence[Address],
    queries: Query | Sequence[Query],
    *,
    detector: str | Mapping[str, Any] | Detector | None = None,
    tracker: str | Mapping[str, Any] = "default",
    sinks: Sequence[str] = (),
    stream: Mapping[str, Any] | None = None,
) -> AsyncGenerator[TrackedFrame, None]:
    """Yields every frame with its tracks, in order for each stream; arguments and errors as for `watch`.

        async for item in groundstream.watch_frames("gate.mp4", "a red car"):
            annotator.annotate(item.frame.image.copy(), item.detections)

    A slow loop slows recordings down; of cameras it then gets fewer, but fresh frames.
    """
    config, own = _read_arguments("watch_frames()", source, queries, detector, tracker, sinks, stream)
    channel: _Channel[TrackedFrame] = _Channel(_QUEUED_FRAMES)

    def record(*_: object) -> Sequence[Recorder]:
        return (_FrameRecorder(channel),)

    async with aclosing(_run_into(channel, config, recorders=record, detector=own)) as items:
        async for item in items:
            yield item


def watch_sync(
    source: Address | Sequence[Address], queries: Query | Sequence[Query], **options: Any
) -> Iterator[Event]:
    """`watch` as a plain iterator, for scripts and notebooks; a thread of its own runs the event loop."""
    return _iterate_in_thread(lambda: watch(source, queries, **options))


def watch_frames_sync(
    source: Address | Sequence[Address], queries: Query | Sequence[Query], **options: Any
) -> Iterator[TrackedFrame]:
    """`watch_frames` as a plain iterator, for scripts and notebooks; a thread of its own runs the event loop."""
    return _iterate_in_thread(lambda: watch_frames(source, queries, **options))


def process(
    videos: Address | Sequence[Address], queries: str | Sequence[str], out: Address = "out", **options: Any
) -> list[StreamSummary]:
    """Turns recordings into result folders below `out`, as `groundstream process` does; returns their summaries.

    `options` are the fields of `streamer.jobs.ProcessJob`: `detector`, `zones`, `lines`, `video`, `every`, ...
    """
    sources = [os.fspath(video) for video in _as_list(videos)]
    return process_files(ProcessJob(videos=sources, queries=_as_list(queries), out=Path(out), **options))


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | os.PathLike | Mapping) else list(value)


def _read_arguments(
    caller: str,
    source: Address | Sequence[Address],
    queries: Query | Sequence[Query],
    detector: str | Mapping[str, Any] | Detector | None,
    tracker: str | Mapping[str, Any],
    sinks: Sequence[str],
    stream: Mapping[str, Any] | None,
) -> tuple[Config, Detector | None]:
    """Returns the configuration, and the detector where it was given as an object."""
    raw: dict[str, Any] = {
        "streams": [{"source": os.fspath(address), **(stream or {})} for address in _as_list(source)],
        "queries": _as_list(queries),
        "tracker": tracker if isinstance(tracker, str) else dict(tracker),
        "sinks": list(sinks),
    }
    own = None
    if isinstance(detector, str | Mapping):
        raw["detector"] = detector if isinstance(detector, str) else dict(detector)
    else:
        own = detector
    return parse_config(raw, caller), own


async def _run_into(channel: _Channel[Item], config: Config, **parts: Any) -> AsyncGenerator[Item, None]:
    """Runs a pipeline that fills the channel; yields from it and stops the pipeline when the caller leaves."""
    pipelines: list[Pipeline] = []

    async def run() -> None:
        try:
            async with open_pipeline(config, patience_s=None, **parts) as pipeline:
                pipelines.append(pipeline)
                await pipeline.run()
        finally:
            await channel.put(None)

    running = asyncio.create_task(run())
    try:
        while (item := await channel.items.get()) is not None:
            yield item
    finally:
        channel.leave()
        if not pipelines:  # it is being opened, which may take long, and is not wanted any more
            running.cancel()
        for pipeline in pipelines:
            await pipeline.stop()
        try:
            await running
        except asyncio.CancelledError:
            if not running.cancelled():
                raise


def _iterate_in_thread(start: Callable[[], AsyncGenerator[Item, None]]) -> Iterator[Item]:
    """Iterates over an async iterator that runs in a thread; errors are raised here, leaving the loop ends it."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(1)
    left = threading.Event()
    cancel: list[Callable[[], object]] = []

    def hand_over(item: Item | None, error: BaseException | None = None) -> None:
        while not left.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            break

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if left.is_set():
            return
        async with aclosing(start()) as items:
            async for item in items:
                await asyncio.to_thread(hand_over, item)

    def work() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(run())
        except BaseException as raised:
            error = raised
        hand_over(None, error)

    thread = start_thread(work, name="groundstream")
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        left.set()
        for end in cancel:  # also where no item comes that could be refused
            with suppress(RuntimeError):  # the loop has ended
                end()
        thread.join(_LEAVE_S)
