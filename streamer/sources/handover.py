"""The hand-over of frames from a reading thread to the event loop: a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from streamer.frame import Frame

if TYPE_CHECKING:
    from streamer.sources.sampling import FrameSampling

T = TypeVar("T")


class FrameQueue(Protocol):
    """The end of a hand-over that a reading thread fills.

    Of a live stream, frames that `sampling` does not want are dropped; None: all are taken.
    """

    @property
    def sampling(self) -> FrameSampling | None: ...

    def put(self, frame: Frame) -> bool:
        """Append `frame`, waiting for room; False once no more frames are taken."""
        ...

    def replace(self, frame: Frame) -> int | None:
        """Queue `frame` alone; returns how many older ones it replaced, None once no more frames are taken."""
        ...

    def resize(self, capacity: int) -> None:
        """Let at most `capacity` frames wait."""
        ...

    def finish(self, error: BaseException | None = None) -> None:
        """No more frames follow: what waits is still taken, then `error` is raised or iteration ends."""
        ...

    def call(self, function: Callable[[T], object], argument: T) -> None:
        """Call `function`, before the frames that come after this are taken."""
        ...

    def close(self) -> int:
        """Take no more frames; returns how many were waiting."""
        ...


class Handover:
    """Frames of one stream between the thread that decodes them and the coroutine that takes them.

    `put` keeps every frame and waits for room; `replace` keeps only the newest. Both are for the thread, `get` for the
    event loop that the hand-over was made in, `close` for either.
    """

    sampling: FrameSampling | None = None

    def __init__(self, capacity: int = 1) -> None:
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None
        self._finished = False
        self._error: BaseException | None = None

    def put(self, frame: Frame) -> bool:
        """Append `frame`, waiting for room; False once no more frames are taken."""
        with self._changed:
            while len(self._frames) >= self._capacity and not self._finished:
                self._changed.wait()
            if self._finished:
                return False
            self._frames.append(frame)
            self._wake()
        return True

    def replace(self, frame: Frame) -> int | None:
        """Queue `frame` alone; returns how many older ones it replaced, None once no more frames are taken."""
        with self._changed:
            if self._finished:
                return None
            stale = len(self._frames)
            self._frames.clear()
            self._frames.append(frame)
            self._wake()
        return stale

    def resize(self, capacity: int) -> None:
        with self._changed:
            self._capacity = capacity

    def finish(self, error: BaseException | None = None) -> None:
        """No more frames follow: `get` returns what waits, then raises `error` or ends."""
        with self._changed:
            self._finish(error)

    def call(self, function: Callable[[T], object], argument: T) -> None:
        """Call `function` in the event loop, before the frames that come after this."""
        self._call_in_loop(function, argument)

    async def get(self) -> Frame:
        """The next frame. Raises the error given to `finish`, else `StopAsyncIteration`. Cancelling loses no frame."""
        while True:
            with self._changed:
                if self._frames:
                    self._changed.notify()
                    return self._frames.popleft()
                if self._finished:
                    error, self._error = self._error, None
                    raise error or StopAsyncIteration
                waiter = self._waiter = self._loop.create_future()
            await waiter

    def close(self) -> int:
        """Take no more frames; returns how many were waiting."""
        with self._changed:  # at once with emptying, or a frame that comes between would be counted nowhere
            waiting = len(self._frames)
            self._frames.clear()
            self._error = None
            self._finish(None)
        return waiting

    def _finish(self, error: BaseException | None) -> None:
        if not self._finished:
            self._finished, self._error = True, error
        self._wake()
        self._changed.notify_all()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._call_in_loop(_set_done, waiter)

    def _call_in_loop(self, function: Callable[[T], object], argument: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks with it
            self._loop.call_soon_threadsafe(function, argument)


def _set_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def joined(thread: threading.Thread, limit_s: float) -> bool:
    """Wait for `thread` to end, at most `limit_s` seconds; returns whether it did."""
    deadline = time.monotonic() + limit_s
    while thread.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110  (one that is held up sets no event)
        await asyncio.sleep(0.005)
    return not thread.is_alive()
