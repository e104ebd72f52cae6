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
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sinks.supervision import start_task, start_thread

if TYPE_CHECKING:
    from streamer.pipeline.pipeline import Pipeline

log = logging.getLogger("groundstream")

R = TypeVar("R")

INTERRUPTED = 130
"""Exit code of a command that a signal has ended before its work was complete."""
CLOSE_TIMEOUT_S = 10.0
"""Seconds that closing may take altogether where no option gives another time."""
RUN_SHARE = 0.5
"""The part of the closing time in which a stopped pipeline has to finish the frames that it took."""
_CANCEL_SHARE = 0.1
_GRACE_S = 1.0
_REPEAT_S = 0.5
"""Some senders (`timeout`, a terminal's whole process group) deliver one order to stop twice in this time."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_THREAD = "signals"
_SHOW_CURSOR = b"\x1b[?25h\n"

_process_deadline: float | None = None
"""The monotonic time at which the process has to have ended, once a command began to close."""


class SignalWatch:
    """Context that calls `first` at the first Ctrl-C or SIGTERM; a later one ends the process at once.

    A thread of its own waits for the signals, so both work also while the main thread is inside native code. `first`
    runs in that thread. The process ends with exit code 128 + the signal's number, as a shell reports it, without a
    traceback. Enter it in the main thread; `handle` runs there for each signal as soon as Python code is executed.
    """

    def __init__(self, first: Callable[[], object], handle: Callable[[], object] | None = None) -> None:
        self._first = first
        self._handle = handle
        self._before: dict[int, Any] = {}
        self._received = 0
        self._received_at = 0.0

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        start_thread(self._await_signals, name=_SIGNAL_THREAD)
        self._before_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # After a first signal the next one ends the process, also where this context is left already.
            signal.signal(number, signal.SIG_DFL if self._received else handler)
        signal.set_wakeup_fd(self._before_descriptor)
        os.close(self._writer)

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._handle is not None:
            self._handle()

    def _await_signals(self) -> None:
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                if number in _SIGNALS:
                    self._take_signal(number)
        os.close(self._reader)

    def _take_signal(self, number: int) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
            self._first()
        elif now - self._received_at >= _REPEAT_S:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(128 + number)


class ClosingDeadline:
    """Context of a command that has to end within `timeout_s` seconds of the order to stop, whatever blocks.

    The time begins with the first Ctrl-C or SIGTERM, or when the work of `run` has ended by itself. It bounds closing
    sinks and files, the thread pool of the event loop, what the command does up to the end of the context after a
    signal, and, where `bound_exit` is used, the end of the interpreter. When it is over, the process ends with one
    sentence and exit code 1, or `interrupted_code` after a signal.
    """

    def __init__(self, timeout_s: float = CLOSE_TIMEOUT_S, *, interrupted_code: int = 1, kept: str = "") -> None:
        """`kept`: what became of work that closing did not complete, for the end of the sentence."""
        self.timeout_s = timeout_s
        self._interrupted_code = interrupted_code
        self._kept = kept
        self._begin_lock = threading.Lock()
        self._has_begun = False
        self._was_signalled = False
        self._is_handled = False  # in the main thread
        self._finished = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()

    def run(self, main: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine in an event loop of its own, like `asyncio.run`, and returns its result.

        The first signal calls what `on_stop` names, else it raises KeyboardInterrupt in the main thread. Outside the
        main thread, signals are left alone.
        """
        in_main = threading.current_thread() is threading.main_thread()
        with SignalWatch(self.stop, self._raise_unless_handled) if in_main else contextlib.nullcontext():
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                result = runner.run(self._run_bounded(main))
            if not self._was_signalled:
                self._finished.set()
            return result

    @contextlib.contextmanager
    def on_stop(self, stop: Callable[[], object]) -> Iterator[None]:
        """Context in which the first signal calls `stop` in the event loop of `run`."""
        self._stop = stop
        try:
            if self._was_signalled:
                stop()
            yield
        finally:
            self._stop = None

    def begin(self) -> None:
        """Begins the time that closing may take, from any thread; later calls change nothing."""
        global _process_deadline
        with self._begin_lock:
            if self._has_begun:
                return
            self._has_begun = True
        _process_deadline = time.monotonic() + self.timeout_s + _GRACE_S
        start_thread(self._end_late_process, name="closing")

    async def _run_bounded(self, main: Coroutine[Any, Any, R]) -> R:
        try:
            return await main
        finally:
            self.begin()

    def stop(self) -> None:
        """Does what the first signal does, from any thread."""
        self._was_signalled = True
        self.begin()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._call_stop)

    def _call_stop(self) -> None:
        if self._stop is not None:
            stop, self._stop = self._stop, lambda: None
            stop()

    def _raise_unless_handled(self) -> None:
        is_first, self._is_handled = not self._is_handled, True
        if is_first and self._stop is None:
            raise KeyboardInterrupt

    def _end_late_process(self) -> None:
        if not self._finished.wait(self.timeout_s + _GRACE_S):
            kept = f"; {self._kept}" if self._kept else ""
            _end_process(
                f"closing took more than {self.timeout_s:g} s and was cut off",
                kept,
                self._interrupted_code if self._was_signalled else 1,
            )


def bound_exit(code: int) -> None:
    """Bounds the end of the interpreter, which waits for threads: the process ends with `code` where one is stuck.

    It takes what is left of the command's closing time, and `CLOSE_TIMEOUT_S` where no command began to close. The
    time begins when the main thread ends.
    """
    left_s = 0.0 if _process_deadline is None else _process_deadline - time.monotonic()

    def end_process() -> None:
        threading.main_thread().join()
        time.sleep(max(_GRACE_S, left_s) if left_s > 0 else CLOSE_TIMEOUT_S)
        _end_process("the end of the program was held up and is forced", "", code)

    start_thread(end_process, name="exit")


def _end_process(reason: str, kept: str, code: int) -> None:
    own = {threading.current_thread(), threading.main_thread()}
    names = [thread.name for thread in threading.enumerate() if thread not in own]
    blocked = [name for name in names if name != _SIGNAL_THREAD and "_do_shutdown" not in name]
    at_work = f" (threads still at work: {', '.join(blocked)})" if blocked else ""
    with contextlib.suppress(OSError, ValueError):
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        os.set_blocking(descriptor, False)  # a pipe that is not read must not hold the last resort up
        os.write(descriptor, f"groundstream: {reason}{at_work}{kept}\n".encode())
    os._exit(code)


async def run_until_stopped(pipeline: Pipeline, deadline: ClosingDeadline) -> None:
    """Runs a pipeline until it ends or a signal stops it; frames in progress get `RUN_SHARE` of the closing time.

    Raises what the pipeline raises.
    """

    def stop() -> None:
        start_task(pipeline.stop(), name="stop")

    running = asyncio.ensure_future(pipeline.run())
    stopped = asyncio.ensure_future(pipeline.stopping.wait())
    with deadline.on_stop(stop):
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            deadline.begin()
            if not running.done():
                await _finish_running(running, deadline.timeout_s)
        finally:
            stopped.cancel()
            if not running.done():
                running.cancel()
        # The first signal is handled until here; what closes after it is bounded by the deadline.
        if running.done() and not running.cancelled():
            running.result()


async def _finish_running(running: asyncio.Future[None], timeout_s: float) -> None:
    await asyncio.wait({running}, timeout=timeout_s * RUN_SHARE)
    if not running.done():
        log.error("the frames in progress were not finished in time and are given up")
        running.cancel()
        await asyncio.wait({running}, timeout=timeout_s * _CANCEL_SHARE)
