"""The contract of a source: the frames of one stream, in the order they were captured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from streamer.frame import Frame
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.handover import FrameQueue


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
        """Stops reading and releases threads and connections. Safe to call twice."""
        ...


class SourceRecipe(NamedTuple):
    """How to make a source once more, in another process: both parts can be pickled."""

    kind: Callable[..., Source]
    arguments: Mapping[str, Any]

    def make(self, on_state: OnState | None = None) -> Source:
        """The source, not yet reading."""
        return self.kind(**self.arguments, on_state=on_state)


@runtime_checkable
class MovableSource(Source, Protocol):
    """A source that a decode worker can read instead.

    `recording` is the file or folder it reads, `remote` the address of a recording elsewhere; both None for cameras.
    """

    recording: Path | None
    remote: str | None

    def recipe(self) -> SourceRecipe: ...


@runtime_checkable
class PushSource(Source, Protocol):
    """A source that reads in a thread of its own and can put its frames anywhere."""

    def start_reading(self, queue: FrameQueue) -> None:
        """Read into `queue` from now on, until the end, `queue` takes no more or `aclose()`. Instead of iterating."""
        ...


@runtime_checkable
class ThreadedSource(Source, Protocol):
    """A recording that several threads can decode."""

    def use_threads(self, count: int) -> None:
        """Decode with up to `count` threads. To be called before the source is read."""
        ...
