"""Reading a source to its end, or until enough has come, and what was seen of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.sources import Source, StateChange, open_sources
from tests.support.clips import read_index


class Seen:
    """What came of a source: frames, states and the error."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.changes: list[StateChange] = []
        self.error = ""
        self.live = False

    @property
    def numbers(self) -> list[int | None]:
        return [read_index(frame.image) for frame in self.frames]

    @property
    def states(self) -> list[str]:
        return [change.state.value for change in self.changes]

    @property
    def causes(self) -> str:
        return "; ".join(change.cause for change in self.changes if change.cause)


def read(
    address: str, enough: Callable[[Seen], bool] = lambda seen: False, limit_s: float = 15.0, **options: Any
) -> Seen:
    """Reads until the source ends, `enough` has come, or the time is over."""
    seen = Seen()

    async def work() -> None:
        (source,) = await asyncio.to_thread(open_sources, address, on_state=seen.changes.append, **options)
        seen.live = source.live

        async def take() -> None:
            async for frame in source:
                source.account.analyse()
                seen.frames.append(frame)

        task = asyncio.create_task(take())
        began = time.monotonic()
        while not task.done() and not enough(seen) and time.monotonic() - began < limit_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await source.aclose()
        try:
            await task
        except SourceError as error:
            seen.error = str(error)
        assert source.account.tally().pending == 0

    asyncio.run(work())
    return seen


async def take_all(source: Source) -> list[Frame]:
    """Frames of a source to its end, all counted as analysed."""
    frames = []
    async for frame in source:
        source.account.analyse()
        frames.append(frame)
    return frames


def many(count: int) -> Callable[[Seen], bool]:
    return lambda seen: len(seen.frames) >= count


def failed(seen: Seen) -> bool:
    return bool(seen.causes)
