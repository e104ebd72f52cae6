"""Supervision of what runs beside a pipeline: a task that fails ends the command with its reason, never in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from sinks.supervision import describe_error
from streamer.errors import StreamerError

log = logging.getLogger("groundstream")


MakeTask = Callable[[], Coroutine[Any, Any, None]]


class SideTaskError(StreamerError):
    """A side task has failed, and the command with it."""


class SideTasks:
    """Tasks that run beside a pipeline and end with it.

    A task that raises is logged at once; unless it is started with `restart_s`, `stop` is called and leaving the
    context raises `SideTaskError` with the reason.
    """

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stop = stop
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: SideTaskError | None = None

    def start(self, name: str, make: MakeTask, *, restart_s: float | None = None) -> None:
        """Runs the coroutine that `make` returns; `name` says in errors what it does. With `restart_s` it is made
        again so many seconds after it has failed."""
        self._tasks.append(asyncio.create_task(self._watch_task(name, make, restart_s), name=name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None and error is None:
            raise self._failure

    async def _watch_task(self, name: str, make: MakeTask, restart_s: float | None) -> None:
        while True:
            try:
                await make()
                return
            except Exception as error:
                sentence = f"{name} has failed ({describe_error(error)})"
                if restart_s is None:
                    log.critical("%s: groundstream ends", sentence, exc_info=error)
                    self._failure = self._failure or SideTaskError(sentence)
                    await self._stop()
                    return
                log.error("%s: it is started again", sentence, exc_info=error)
                await asyncio.sleep(restart_s)
