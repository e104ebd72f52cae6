"""The Python API: what the command line does, in a loop of your own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sinks.event import Event
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.pipeline import Pipeline

_AHEAD = 1024


class _Loop:
    """A sink that hands events to whoever iterates, and waits while they are slow."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(_AHEAD)
        self._left = False

    async def send_batch(self, events: Sequence[Event]) -> None:
        for event in events:
            if not self._left:
                await self.queue.put(event)

    async def aclose(self) -> None:
        pass

    def leave(self) -> None:
        """Nobody iterates any more: what comes now is let go."""
        self._left = True
        while not self.queue.empty():
            self.queue.get_nowait()


async def watch(
    source: str | Sequence[str],
    queries: Sequence[str | Mapping[str, Any]],
    *,
    detector: str | Mapping[str, Any] = "glip-tiny",
    tracker: str = "default",
    sinks: Sequence[str] = (),
    stream: Mapping[str, Any] | None = None,
) -> AsyncIterator[Event]:
    """Watch files or cameras for what `queries` name; yields events until all sources have ended.

    `source`: addresses as in the configuration file; `queries`: words, or mappings with `text`, `id`, `threshold`;
    `sinks`: further addresses that get the events too; `stream`: more settings for every source as in the
    configuration file (`zones`, `lines`, `counts`, `sample`, `transport`). Leaving the loop stops the cameras.
    Raises `ConfigError` and what the parts raise: `SourceError`, `DetectorError`, `TrackerError`, `SinkError`.
    """
    sources = [source] if isinstance(source, str) else list(source)
    raw = {
        "streams": [{"source": address, **(stream or {})} for address in sources],
        "queries": list(queries),
        "detector": dict(detector) if isinstance(detector, Mapping) else detector,
        "tracker": tracker,
        "sinks": list(sinks),
    }
    config = parse_config(raw, "watch()")
    loop = _Loop()
    pipelines: list[Pipeline] = []

    async def run() -> None:
        try:
            async with open_pipeline(config, more_sinks={"loop": loop}, patience_s=None) as pipeline:
                pipelines.append(pipeline)
                await pipeline.run()
        finally:
            await loop.queue.put(None)

    running = asyncio.create_task(run())
    try:
        while (event := await loop.queue.get()) is not None:
            yield event
    finally:
        loop.leave()
        for pipeline in pipelines:
            await pipeline.stop()
        await running
