"""Closing has one deadline over everything: a sink, a disk or a peer that never answers does not keep the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from sinks import open_sinks
from sinks.event import Event
from sinks.sink import SinkError
from sinks.spool import Spool
from sinks.worker import SinkWorker
from tests.sinks.makes import Recorder, event, events, ids, until
from tests.sinks.test_conformance import NETWORK, Place, look, once, place_of

pytestmark = pytest.mark.anyio

CLOSE_S = 0.5
PATIENCE_S = 20.0
"""Far more than the deadline, far less than the time-outs of the sinks and for ever."""


class BlockedSink:
    """Its library call never returns, neither for a batch nor at the end; `how` names where it is stuck."""

    def __init__(self, how: str) -> None:
        self._how = how
        self._worker = SinkWorker("blocked")
        self._never = threading.Event()
        self.began = threading.Event()

    async def send_batch(self, events: Sequence[Event]) -> None:
        self.began.set()
        if self._how == "task":
            await asyncio.Event().wait()
        elif self._how == "thread":
            await self._worker.call(self._never.wait)
        elif self._how == "stubborn":
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if self._never.is_set():
                        raise

    async def aclose(self) -> None:
        if self._how == "close":
            await asyncio.Event().wait()
        await self._worker.aclose(last=self._never.wait)

    def release(self) -> None:
        self._never.set()


@pytest.mark.parametrize("how", ["task", "thread", "close", "stubborn"])
async def test_a_sink_that_never_returns_is_left_behind(tmp_path: Path, how: str) -> None:
    blocked, well = BlockedSink(how), Recorder()
    spool = await Spool.open(tmp_path / "spool", {"blocked": blocked, "well": well}, close_timeout_s=CLOSE_S)
    await spool.send_batch(events(10))
    await until(lambda: len(well.got) == 10 and blocked.began.is_set())
    tasks = list(spool._tasks.values())
    async with asyncio.timeout(PATIENCE_S):
        await spool.aclose()
    later = Recorder()
    async with await Spool.open(tmp_path / "spool", {"blocked": later, "well": well}) as spool:
        assert await spool.drain(10)
    assert ids(later.got) == (ids(events(10)) if how != "close" else [])
    assert len(well.got) == 10, "the other sink's cursor was stored"
    blocked.release()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("kind", NETWORK)
async def test_a_peer_that_never_returns_is_left_behind(kind: str, tmp_path: Path) -> None:
    def open_place() -> Place:
        return opened.__enter__()

    opened = place_of(kind, tmp_path)
    place = await asyncio.to_thread(open_place)
    try:
        assert place.proxy is not None
        address = place.address.replace("timeout=1", "timeout=300")
        path = tmp_path / "spool"
        spool = await Spool.open(path, open_sinks([address]), close_timeout_s=CLOSE_S)
        await spool.send_batch(events(10))
        assert await spool.drain(20)
        place.proxy.freeze()
        await spool.send_batch(events(50, first=10))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(PATIENCE_S):
            await spool.aclose()
        place.proxy.thaw()
        async with await Spool.open(path, open_sinks([place.address])) as spool:
            assert await spool.drain(30)
        assert once(await look(place)) == ids(events(60))
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


async def test_a_full_disk_does_not_hold_closing_back(tmp_path: Path) -> None:
    """The sender gets an error for the event that was not stored; stored ones are there at the next start."""
    spool = await Spool.open(tmp_path / "spool", {"sink": Recorder(refuse)}, close_timeout_s=CLOSE_S)
    await spool.send_batch(events(5))
    assert spool._store is not None
    append = spool._store.append

    def fail(*_: object) -> int:
        raise SinkError("the spool cannot grow: free space on the disk")

    spool._store.append = fail  # type: ignore[method-assign, assignment]
    sending = asyncio.create_task(spool.send(event(5)))
    await until(lambda: bool(spool.storage_error))
    async with asyncio.timeout(PATIENCE_S):
        await spool.aclose()
        with pytest.raises(SinkError, match="was not stored: the spool cannot grow"):
            await sending
    spool._store.append = append  # type: ignore[method-assign]
    later = Recorder()
    async with await Spool.open(tmp_path / "spool", {"sink": later}) as spool:
        assert await spool.drain(10)
    assert ids(later.got) == ids(events(5))


async def test_a_disk_that_never_answers_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = await Spool.open(tmp_path / "spool", {}, close_timeout_s=CLOSE_S)
    assert spool._store is not None
    append, answer, asked = spool._store.append, threading.Event(), threading.Event()

    def wait(*arguments: object) -> int:
        asked.set()
        answer.wait()
        return append(*arguments)  # type: ignore[arg-type]

    spool._store.append = wait  # type: ignore[method-assign, assignment]
    sending = asyncio.create_task(spool.send(event(1)))
    await until(asked.is_set)
    async with asyncio.timeout(PATIENCE_S):
        await spool.aclose()
    assert "did not close in time" in caplog.text
    answer.set()
    await asyncio.wait_for(sending, 10)


def refuse(_: object) -> None:
    raise SinkError("down")


@pytest.mark.parametrize("durable", [True, False])
async def test_a_sink_that_keeps_nothing_gets_nothing_of_earlier_runs(tmp_path: Path, durable: bool) -> None:
    class Terminal(Recorder):
        pass

    Terminal.durable = durable  # type: ignore[attr-defined]
    async with await Spool.open(tmp_path / "spool", {"sink": Terminal(refuse)}) as spool:
        await spool.send_batch(events(5))
        await until(lambda: spool.status()[0].state == "down")
    assert spool.dropped() == ({} if durable else {"undelivered": 5})
    later = Terminal()
    async with await Spool.open(tmp_path / "spool", {"sink": later}) as spool:
        await spool.send_batch(events(5, first=5))
        assert await spool.drain(10)
        await until(lambda: spool.used_bytes == 0)
    assert ids(later.got) == ids(events(10) if durable else events(5, first=5))


def test_a_blocked_thread_does_not_keep_the_interpreter() -> None:
    code = """
        import asyncio, threading
        from sinks.spool import Spool
        from tests.sinks.makes import events
        from tests.sinks.test_closing import BlockedSink

        async def main():
            sink = BlockedSink("thread")
            async with await Spool.open(None, {"sink": sink}, close_timeout_s=0.2) as spool:
                await spool.send_batch(events(3))
                await asyncio.to_thread(sink.began.wait)
            print(spool.dropped())

        asyncio.run(main())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "{'undelivered': 3}"
    assert "Traceback" not in found.stderr
