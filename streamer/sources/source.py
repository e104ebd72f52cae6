"""The contract of a source: the frames of one stream, in the order they were captured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from streamer.frame import Frame
from streamer.sources.frame_counter import FrameCounter


class SourceState(StrEnum):
    """State of a live source. Files are `LIVE` until they are `CLOSED`; a stream is `PAUSED` by its configuration."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALLED = "stalled"
    WAITING = "waiting"
    CLOSED = "closed"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class StateChange:
    """`stream` went to `state` at `time_ns` (UTC); `cause` is one sentence without credentials."""

    stream: str
    state: SourceState
    time_ns: int
    cause: str = ""


OnState = Callable[[StateChange], None]


class Source(Protocol):
    """Frames of one stream, until it ends or `aclose()`.

    A file keeps every frame and waits for the reader; a live source keeps only its newest frame and counts the
    others as dropped, `stale`, in its account. Raises `SourceError` where it cannot go on.
    """

    name: str
    live: bool
    account: FrameCounter
    expected_frames: int | None  # by a recording's own account; None where it is unknown or has no end

    def __aiter__(self) -> AsyncIterator[Frame]: ...

    async def aclose(self) -> None:
        """Stop reading and let go of threads and connections. Safe to call twice."""
        ...
