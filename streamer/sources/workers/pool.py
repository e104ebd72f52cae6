"""The pool of decode workers: starts them, shares the sources among them, and replaces those that die.

Sources of a worker that dies are read by a new one. Where workers die under the same sources again, the sources are
divided, half by half, until the one whose data makes a decoder crash is alone in its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

from sinks.supervision import keep_running, start_task
from streamer.sources.source import MovableSource, OnState, Source
from streamer.sources.workers.protocol import MessageDecoder, RingOpened, WorkerLogged, encode_message
from streamer.sources.workers.proxy import WorkerLink, WorkerSource
from streamer.threads import plan_threads

log = logging.getLogger("groundstream")

_READ_BYTES = 16384  # some 100 frames: what is handled in one piece of the event loop
_DESCRIPTORS = 8
_CHECK_S = 2.0
_SILENT_CHECKS = 5
"""After this many checks in a row without a sign of life, a worker counts as frozen and is replaced."""
_DEATHS_WITHIN_S = 60.0
_LONGEST_PAUSE_S = 0.8
_END_S = 1.0
_RESTART_S = 1.0


def can_move_sources() -> bool:
    """Whether this system can pass memory between processes as the workers do (POSIX)."""
    return hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")


class DecodePool:
    """Decode workers for the sources of one pipeline. Made, used and closed in one event loop.

    At most `most_workers` processes serve all sources, by default one for each core; more only while sources under
    which workers die have to be kept apart.
    """

    def __init__(self, most_workers: int | None = None) -> None:
        self._most = most_workers or plan_threads().decode_workers
        self._workers: list[_WorkerProcess] = []
        self._numbers = 0
        self._moved = 0
        self._replacing: set[asyncio.Task[object]] = set()
        self._checking: asyncio.Task[object] | None = None
        self._closed = False
        self._said: set[str] = set()  # by workers, of what is said once

    def move(self, source: Source, on_state: OnState | None = None) -> Source:
        """`source` as one that is read by a worker; `source` itself where it can only be read in this process."""
        if not can_move_sources() or not isinstance(source, MovableSource):
            return source
        self._moved += 1
        return WorkerSource(source, self._attach, self._detach, on_state)

    def start_workers(self) -> None:
        """Start the workers that the moved sources need before they are iterated, so that their first frames wait for
        no start of a process. Raises `OSError`."""
        while len(self._workers) < min(self._moved, self._most):
            self._start()

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that run now."""
        return [worker.process.pid for worker in self._workers]

    def process_of(self, source: Source) -> int:
        """The process that reads `source` now, 0 where there is none at the moment."""
        return next((worker.process.pid for worker in self._workers if source in worker.sources.values()), 0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all workers and wait for them."""
        self._closed = True
        if self._checking is not None:
            self._checking.cancel()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.disconnect()
        await asyncio.gather(*self._replacing, *(asyncio.to_thread(worker.end) for worker in workers))

    def _attach(self, source: WorkerSource) -> WorkerLink:
        """The least busy worker, a new one while there may be more. Raises `OSError`."""
        if self._closed:
            raise OSError("the decode workers have been ended")
        shared = [worker for worker in self._workers if not worker.is_apart]
        idle = [worker for worker in shared if not worker.sources]
        worker = idle[0] if idle else None
        if worker is None:
            worker = self._start() if len(shared) < self._most else min(shared, key=lambda one: len(one.sources))
        return self._assign(source, worker)

    def _assign(self, source: WorkerSource, worker: _WorkerProcess) -> WorkerLink:
        self._numbers += 1
        source.number = self._numbers
        worker.sources[source.number] = source
        source.threads = plan_threads().recording_threads(sum(len(one.sources) for one in self._workers))
        return worker

    def _detach(self, source: WorkerSource) -> None:
        for worker in self._workers:
            if worker.sources.pop(source.number, None) is not None and worker.is_apart and not worker.sources:
                self._workers.remove(worker)
                worker.disconnect()
                self._run(asyncio.to_thread(worker.end))

    def _start(self, *, is_apart: bool = False) -> _WorkerProcess:
        worker = _WorkerProcess(is_apart, self._note_death, self._log_record)
        self._workers.append(worker)
        if self._checking is None:
            checking = keep_running(self._check_workers, name="the check of the decode workers", pause_s=_RESTART_S)
            self._checking = start_task(checking, name="decode worker check")
        return worker

    def _note_death(self, worker: _WorkerProcess) -> None:
        if not self._closed and worker in self._workers:
            self._workers.remove(worker)
            self._run(self._replace(worker))

    def _log_record(self, record: WorkerLogged) -> None:
        if record.is_said_once:
            if record.text in self._said:
                return
            self._said.add(record.text)
        logging.getLogger(record.logger).log(record.level, "%s", record.text)

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        task = start_task(work, name="replace a decode worker")
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, worker: _WorkerProcess) -> None:
        code = await asyncio.to_thread(worker.end)
        cause = f"its decode worker {_explain(code)}"
        log.warning("%s: %s", ", ".join(source.name for source in worker.sources.values()) or "no source", cause)
        homeless = [source for source in list(worker.sources.values()) if source.lose_worker(cause)]
        worker.sources.clear()
        deaths = max((_recent_deaths(source) for source in homeless), default=0)
        if deaths > 2:  # the first replacements come at once
            await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.05 * 2 ** min(deaths - 2, 8)))
        if deaths < 2:
            groups = [homeless]
        else:
            half = (len(homeless) + 1) // 2
            groups = [homeless[:half], homeless[half:]]
        for group in groups:
            self._reopen(group, is_apart=worker.is_apart or deaths >= 2)

    def _reopen(self, sources: Sequence[WorkerSource], *, is_apart: bool) -> None:
        if not sources:
            return
        try:
            if self._closed:
                raise OSError("the decode workers have been ended")
            worker = self._start(is_apart=is_apart)
        except OSError as error:
            for source in sources:
                source.fail(error)
            return
        for source in sources:
            source.reopen(lambda one, worker=worker: self._assign(one, worker))  # type: ignore[misc]

    async def _check_workers(self) -> None:
        """Replace workers that give no sign of life."""
        while True:
            await asyncio.sleep(_CHECK_S)
            for worker in list(self._workers):
                if worker.is_silent_for(_SILENT_CHECKS):
                    log.error(
                        "a decode worker gave no sign of life for %g s: it is replaced", _CHECK_S * _SILENT_CHECKS
                    )
                    worker.process.kill()


class _WorkerProcess:
    """One worker and the socket to it."""

    def __init__(
        self, is_apart: bool, on_death: Callable[[_WorkerProcess], None], on_log: Callable[[WorkerLogged], None]
    ) -> None:
        self.is_apart = is_apart
        self.sources: dict[int, WorkerSource] = {}
        self._on_death = on_death
        self._on_log = on_log
        self._loop = asyncio.get_running_loop()
        self._decoder = MessageDecoder()
        self._descriptors: deque[int] = deque()
        self._unsent = bytearray()
        self._silent_checks = 0
        self._is_connected = True
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with other:
            try:
                self.process = _start_process(other)
            except OSError:
                self._socket.close()
                raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    def send(self, item: object) -> None:
        """Queue an item. Items for a worker that has died are dropped: its sources hear of its death."""
        if not self._is_connected:
            return
        is_behind = bool(self._unsent)
        self._unsent += encode_message([item])
        if not is_behind:
            self._write()

    def is_silent_for(self, checks: int) -> bool:
        self._silent_checks += 1
        return self._silent_checks > checks

    def disconnect(self) -> None:
        """Close the socket: the worker ends itself."""
        if self._is_connected:
            self._is_connected = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            while self._descriptors:
                os.close(self._descriptors.popleft())

    def end(self) -> int:
        """Wait for the process, killing one that does not end; returns its exit status. Blocks."""
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _write(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError:  # it has died: reading finds out
            self._unsent.clear()
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, _DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors.extend(descriptors)
        self._silent_checks = 0
        if not data:
            self.disconnect()
            self._on_death(self)
            return
        try:
            self._handle(data)
        except Exception:  # as where there are no more descriptors: what the message held is lost
            log.exception("a message of a decode worker could not be handled: the worker is replaced")
            self.process.kill()
            self.disconnect()
            self._on_death(self)

    def _handle(self, data: bytes) -> None:
        for item in self._decoder.feed(data):
            if isinstance(item, WorkerLogged):
                self._on_log(item)
                continue
            source = self.sources.get(item.source)
            if source is not None:
                source.receive(item, self._descriptors)
            elif isinstance(item, RingOpened):
                os.close(self._descriptors.popleft())


def _start_process(connection: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker that is served over `connection`."""
    path = os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry))
    level = logging.getLevelName(logging.getLogger().level)
    environment = {**os.environ, "PYTHONPATH": path, "GROUNDSTREAM_WORKER_LOG": level}
    command = [sys.executable, "-P", "-m", "streamer.sources.workers.worker", str(connection.fileno())]
    return subprocess.Popen(
        command,
        pass_fds=[connection.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _recent_deaths(source: WorkerSource) -> int:
    since = time.monotonic() - _DEATHS_WITHIN_S
    return sum(death > since for death in source.deaths)


def _explain(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
