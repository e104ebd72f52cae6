"""Daemon threads and bounded waits for libraries that block: a slow disk or peer delays its sink, never the exit."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from sinks.sink import SinkError
from sinks.supervision import start_thread

P = ParamSpec("P")
R = TypeVar("R")


async def finish_within(work: Coroutine[object, object, None], seconds: float) -> BaseException | None:
    """Runs the coroutine for `seconds` at most, then cancels it and does not wait for it; returns its error."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=max(0.0, seconds))
    if not done:
        task.cancel()
        return TimeoutError("it did not answer in time")
    error: BaseException | None = None if task.cancelled() else task.exception()
    return error


class ExchangeLimit:
    """Time limit for each whole exchange with the peer `where`, however slowly it sends.

    `shut_down` breaks the connection in use: it is called when the `seconds` are over and by `interrupt`, from another
    thread than the one that waits for the peer, which then sees an error; `is_late` and `is_closed` say why.
    """

    def __init__(self, where: str, seconds: float, shut_down: Callable[[], None]) -> None:
        self.where = where
        self.seconds = seconds
        self.is_late = False
        self.is_closed = False
        self._shut_down = shut_down

    @contextlib.contextmanager
    def limit_exchange(self) -> Iterator[None]:
        """One exchange. Raises `SinkError` once the sink is closed."""
        if self.is_closed:
            raise self.closed_error()
        self.is_late = False
        timer = threading.Timer(self.seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def interrupt(self) -> None:
        """Ends an exchange in progress and refuses further ones; may be called from another thread."""
        self.is_closed = True
        self._shut_down()

    def closed_error(self) -> SinkError:
        """The error of an exchange that `interrupt` ended."""
        return SinkError(f"{self.where}: the sink was closed while it sent")

    def _expire(self) -> None:
        self.is_late = True
        self._shut_down()


class SinkWorker:
    """Calls functions one after the other in a daemon thread that begins with the first call.

    The interpreter does not wait for the thread: a call that never returns does not keep the process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result. A caller who is cancelled leaves the function running to its end."""
        return await asyncio.wrap_future(self._submit_call(lambda: function(*args, **kwargs)))

    async def aclose(self, last: Callable[[], object] | None = None) -> None:
        """Waits for calls in progress, then for `last`, and ends the thread. Safe to call twice."""
        if self._closed:
            return
        try:
            if last is not None:
                final = self._submit_call(last)
                self._closed = True
                await asyncio.shield(asyncio.wrap_future(final))
        finally:
            self._closed = True
            self._queue.put(None)

    def _submit_call(self, function: Callable[[], R]) -> Future[R]:
        if self._closed:
            raise RuntimeError(f"{self._name} is closed: it takes no more calls")
        if self._thread is None:
            self._thread = start_thread(self._run_calls, name=self._name)
        future: Future[R] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        self._queue.put(run)
        return future

    def _run_calls(self) -> None:
        while (run := self._queue.get()) is not None:
            # the event loop that waits for the result may have ended
            with contextlib.suppress(RuntimeError):
                run()
            del run
