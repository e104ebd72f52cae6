"""One thread of one's own, for libraries that block: a slow disk then holds up its own sink only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class SinkWorker:
    """Calls functions one after the other in a thread that begins with the first call."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._closed = False

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result. A caller who is cancelled leaves the function running to its end."""
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    async def aclose(self, last: Callable[[], object] | None = None) -> None:
        """Wait for what was begun, then for `last`, and end the thread. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if last is not None:
                await asyncio.shield(self.call(last))
        finally:
            self._executor.shutdown(wait=False)
