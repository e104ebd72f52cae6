"""Start of threads and tasks that no other code waits for: one that fails is reported at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("groundstream.supervision")

OnFailure = Callable[[BaseException], object]

_tasks: set[asyncio.Task[Any]] = set()
"""Running tasks: the event loop itself does not keep them from being collected."""


def new_thread(target: Callable[[], object], *, name: str, on_failure: OnFailure | None = None) -> threading.Thread:
    """Returns a daemon thread, not yet started. When `target` raises, that is logged as critical with its cause, then
    `on_failure` is called with the error in the thread."""

    def run() -> None:
        try:
            target()
        except BaseException as error:
            _report_failure(f"the thread {name}", error, on_failure)

    return threading.Thread(target=run, name=name, daemon=True)


def start_thread(target: Callable[[], object], *, name: str, on_failure: OnFailure | None = None) -> threading.Thread:
    """Starts a thread of `new_thread` and returns it."""
    thread = new_thread(target, name=name, on_failure=on_failure)
    thread.start()
    return thread


def start_task(
    work: Coroutine[Any, Any, object], *, name: str, on_failure: OnFailure | None = None
) -> asyncio.Task[object]:
    """Starts a task in the running event loop and keeps it until it ends. When it raises, that is logged as critical
    with its cause, then `on_failure` is called with the error."""

    def note_end(ended: asyncio.Task[object]) -> None:
        _tasks.discard(ended)
        if not ended.cancelled() and (error := ended.exception()) is not None:
            _report_failure(f"the task {name}", error, on_failure)

    task = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(note_end)
    return task


async def keep_running(make: Callable[[], Coroutine[Any, Any, None]], *, name: str, pause_s: float) -> None:
    """Runs the coroutine that `make` returns until it ends by itself; one that fails is logged and made again after
    `pause_s` seconds."""
    while True:
        try:
            await make()
        except Exception as error:
            log.error("%s has failed (%s) and is started again", name, describe_error(error), exc_info=error)
            await asyncio.sleep(pause_s)
        else:
            return


def describe_error(error: BaseException) -> str:
    """The kind of an error and its text."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _report_failure(what: str, error: BaseException, on_failure: OnFailure | None) -> None:
    log.critical("%s has failed (%s)", what, describe_error(error), exc_info=error)
    if on_failure is not None:
        on_failure(error)
