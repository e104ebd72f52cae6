"""Closing has one deadline over everything: a sink, a disk or a peer that never answers does not keep the process."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sinks import open_sink, open_sinks
from sinks.event import Event
from sinks.sink import Sink, SinkError
from sinks.spool import Spool
from sinks.sqlite import SqliteSink
from sinks.worker import SinkWorker
from tests.sinks.makes import Recorder, event, events, ids, until
from tests.sinks.test_conformance import NETWORK, Place, look, once, place_of

pytestmark = pytest.mark.anyio

CLOSE_S = 0.5
MANY = 200
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


async def close_while_blocked(path: Path, sinks: dict[str, Sink], *, is_blocked: Callable[[], bool]) -> None:
    """Sends more than any buffer holds, and closes the spool once the sink waits for its peer."""
    spool = await Spool.open(path, sinks, close_timeout_s=CLOSE_S)
    await spool.send_batch(events(MANY))
    await until(is_blocked)
    async with asyncio.timeout(PATIENCE_S):
        await spool.aclose()


async def delivered_later(path: Path, name: str) -> list[str]:
    """What a working sink of the same name gets at the next start."""
    later = Recorder()
    async with await Spool.open(path, {name: later}) as spool:
        assert await spool.drain(20)
    return ids(later.got)


async def test_a_pipe_whose_reader_does_not_read_is_left_behind(tmp_path: Path) -> None:
    pipe = tmp_path / "events.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sinks = open_sinks([f"jsonl:{pipe}"])
    await close_while_blocked(tmp_path / "spool", sinks, is_blocked=lambda: bool(select.select([reader], [], [], 0)[0]))
    os.close(reader)  # which ends the write that was left behind
    assert await delivered_later(tmp_path / "spool", f"jsonl:{pipe}") == ids(events(MANY))


async def test_a_pipe_without_a_reader_gets_its_events_when_one_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "events.jsonl"
    os.mkfifo(pipe)
    async with await Spool.open(None, open_sinks([f"jsonl:{pipe}"])) as spool:
        await spool.send_batch(events(5))
        await until(lambda: spool.status()[0].state == "down")
        assert spool.status()[0].error == f"{pipe} is a pipe without a reader: start the program that reads it"
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        assert await spool.drain(20)
        found = os.read(reader, 1 << 16).splitlines()
        assert [Event.from_json(line).id for line in found] == ids(events(5))
        os.close(reader)
        await spool.send_batch(events(5, first=5))
        await until(lambda: spool.status()[0].state == "down")
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        assert await spool.drain(20)
        os.close(reader)


async def test_a_locked_database_is_left_behind(tmp_path: Path) -> None:
    database = tmp_path / "events.sqlite"
    sinks = open_sinks([f"sqlite:{database}"])
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = threading.Event()
    insert = SqliteSink._insert
    sink = sinks[f"sqlite:{database}"]

    def note(batch: Sequence[Event]) -> None:
        began.set()
        insert(sink, batch)  # type: ignore[arg-type]

    sink._insert = note  # type: ignore[attr-defined]
    await close_while_blocked(tmp_path / "spool", sinks, is_blocked=began.is_set)
    other.close()
    assert await delivered_later(tmp_path / "spool", f"sqlite:{database}") == ids(events(MANY))


async def test_a_disk_below_parquet_files_that_never_answers_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'groundstream[parquet]'")
    began, answer = threading.Event(), threading.Event()

    def write_slowly(_path: Path, _events: Sequence[Event]) -> None:
        began.set()
        answer.wait()

    monkeypatch.setattr("sinks.parquet._write_table", write_slowly)
    address = f"parquet:{tmp_path / 'events'}?seconds=0.1"
    sinks = open_sinks([address])
    await close_while_blocked(tmp_path / "spool", sinks, is_blocked=began.is_set)
    answer.set()
    (name,) = sinks
    assert await delivered_later(tmp_path / "spool", name) == ids(events(MANY))


async def test_parquet_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'groundstream[parquet]'")
    sink = open_sink(f"parquet:{tmp_path / 'events'}")
    await sink.send_batch(events(3))
    await sink.aclose()
    (file,) = (tmp_path / "events").rglob("*.parquet")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["slack", "discord", "teams"])
async def test_a_chat_that_never_answers_is_left_behind(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        address = f"{kind}+http://127.0.0.1:{server.getsockname()[1]}/hook?timeout=300&types=track.begin"
        sinks = open_sinks([address])
        await close_while_blocked(
            tmp_path / "spool", sinks, is_blocked=lambda: bool(select.select([server], [], [], 0)[0])
        )
        (name,) = sinks
    assert await delivered_later(tmp_path / "spool", name) == ids(events(MANY))


async def test_a_database_server_that_never_answers_is_left_behind(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'groundstream[postgres]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"postgresql://me:x@127.0.0.1:{server.getsockname()[1]}/events?timeout=300"
        sinks = open_sinks([address])
        await close_while_blocked(
            tmp_path / "spool", sinks, is_blocked=lambda: bool(select.select([server], [], [], 0)[0])
        )
        (name,) = sinks
    assert await delivered_later(tmp_path / "spool", name) == ids(events(MANY))
