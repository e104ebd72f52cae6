"""Orderly end of a command: stop signals, one deadline over everything that closes, and the last resort behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from streamer.pipeline.pipeline import Pipeline

log = logging.getLogger("groundstream")

RUN_SHARE = 0.5
"""The part of the closing time in which a stopped pipeline has to finish the frames that it took."""
_CANCEL_SHARE = 0.1
_GRACE_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_signals(interrupt: Callable[[], object]) -> Iterator[None]:
    """Calls `interrupt` in the event loop at the first Ctrl-C or SIGTERM; the second one ends the process at once.

    The second is left to the kernel, which ends the process also where Python is blocked, and prints no traceback.
    """
    loop = asyncio.get_running_loop()

    def handle_first() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        interrupt()

    for number in _SIGNALS:
        loop.add_signal_handler(number, handle_first)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class ClosingGuard:
    """Runs a pipeline until it ends or a signal stops it, and bounds the time that closing takes.

    The first Ctrl-C or SIGTERM stops the pipeline; the second ends the process at once, by the signal's own default.
    From the moment of the stop (or of the pipeline's own end, with `bounds_own_end`) everything has `timeout_s`
    seconds; then the process ends with exit code 1 and one sentence, whatever blocks. Use it around `open_pipeline`:

        with ClosingGuard(config.close_timeout_s) as guard:
            async with open_pipeline(config) as pipeline:
                await guard.run(pipeline)
    """

    def __init__(self, timeout_s: float, *, bounds_own_end: bool = True) -> None:
        self._timeout_s = timeout_s
        self._bounds_own_end = bounds_own_end
        self._deadline: float | None = None
        self._was_cut_off = False
        self._finished = threading.Event()
        self._signals = contextlib.ExitStack()
        self._stops: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.close()
        is_late = self._deadline is not None and time.monotonic() > self._deadline
        if not (self._was_cut_off or is_late):
            self._finished.set()  # else something may block the interpreter's exit: the last resort stays

    async def run(self, pipeline: Pipeline) -> None:
        """Runs the pipeline to its end. Raises what it raises."""
        self._signals.enter_context(on_signals(lambda: self._stop_pipeline(pipeline)))
        running = asyncio.ensure_future(pipeline.run())
        stopped = asyncio.ensure_future(pipeline.stopping.wait())
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._begin_deadline()
                await self._finish_running(running)
            elif self._bounds_own_end:
                self._begin_deadline()
        finally:
            stopped.cancel()
            if not running.done():
                running.cancel()
        if running.done() and not running.cancelled():
            running.result()

    async def _finish_running(self, running: asyncio.Future[None]) -> None:
        await asyncio.wait({running}, timeout=self._timeout_s * RUN_SHARE)
        if not running.done():
            log.error("the frames in progress were not finished in time and are given up")
            self._was_cut_off = True
            running.cancel()
            await asyncio.wait({running}, timeout=self._timeout_s * _CANCEL_SHARE)

    def _stop_pipeline(self, pipeline: Pipeline) -> None:
        self._stops.append(asyncio.get_running_loop().create_task(pipeline.stop()))

    def _begin_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout_s
            threading.Thread(target=self._end_late_process, name="closing", daemon=True).start()

    def _end_late_process(self) -> None:
        if self._finished.wait(self._timeout_s + _GRACE_S):
            return
        blocked = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ is not None else 2,
            f"groundstream: closing took more than {self._timeout_s:g} s and was cut off (threads still at work: "
            f"{', '.join(blocked)}); undelivered events stay in the spool\n".encode(),
        )
        os._exit(1)
