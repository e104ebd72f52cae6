"""Recovery of a spool: a kill or an error at any moment of a repair loses nothing, and every stored row is guarded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from sinks.event import EventType
from sinks.sink import SinkError
from sinks.spool import Spool, salvage, writer
from sinks.spool.store import SpoolStore
from tests.sinks.makes import Recorder, event, events, ids, until

COUNT = 400


def fill(path: Path, *, uid: str = "A") -> None:
    """A spool with COUNT events that wait."""

    async def run() -> None:
        gate = asyncio.Event()
        async with await Spool.open(path, {"sink": Recorder(lambda _: gate.wait())}) as spool:
            for start in range(0, COUNT, 20):
                await spool.send_batch([event(n, uid=uid, padding=500) for n in range(start, start + 20)])

    asyncio.run(run())


def start_again(path: Path) -> tuple[list[str], int]:
    """(what the sink got, how many are counted as damaged)."""
    sink = Recorder()

    async def run() -> int:
        async with await Spool.open(path, {"sink": sink}) as spool:
            assert await spool.drain(30)
            return spool.dropped().get("damaged", 0)

    damaged = asyncio.run(run())
    return ids(sink.got), damaged


def change_rows(path: Path, sql: str, *values: object) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        count = db.execute(sql, values).rowcount
        db.commit()
    return count


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A spool that was cut short: its repair begins when it is opened."""
    path = tmp_path / "spool.sqlite"
    fill(path)
    os.truncate(path, path.stat().st_size * 6 // 10)
    return path


def repair_until_killed(path: Path, step: int) -> bool:
    """Opens the spool in a process that ends at once at the given step of its repair; whether it got that far."""
    child = os.fork()
    if child == 0:
        taken = 0

        def stop_at(function: Callable[..., object]) -> Callable[..., object]:
            def take(*arguments: object) -> object:
                nonlocal taken
                taken += 1
                if taken == step:
                    os._exit(9)
                return function(*arguments)

            return take

        for name in (
            "connect_file",
            "prepare_tables",
            "_copy_readable",
            "_remove_database",
            "_sync_folder",
            "_is_complete",
        ):
            setattr(salvage, name, stop_at(getattr(salvage, name)))
        for name in ("rename", "unlink", "fsync"):
            setattr(os, name, stop_at(getattr(os, name)))
        with contextlib.suppress(Exception):
            SpoolStore(path)
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.timeout(300)
def test_a_kill_at_any_step_of_a_repair_loses_nothing(damaged: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    whole, lost = start_again(damaged)
    assert len(whole) + lost == COUNT
    assert len(whole) > COUNT / 3
    for step in range(1, 60):
        for file in tmp_path.iterdir():
            file.unlink()
        for name, body in before.items():
            (tmp_path / name).write_bytes(body)
        was_killed = repair_until_killed(damaged, step)
        got, _ = start_again(damaged)
        assert got == whole, f"killed at step {step}"
        if not was_killed:
            break
    assert step > 12, "the repair has steps"
    assert not was_killed, "the last round was not killed"


@pytest.mark.parametrize("name", ["_copy_readable", "prepare_tables"])
@pytest.mark.parametrize(
    "error", [ValueError("odd"), OSError(errno.EIO, "I/O error"), sqlite3.OperationalError("full")]
)
def test_an_error_inside_a_repair_leaves_the_damaged_file_as_it_was(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(salvage, name, fail)
        with pytest.raises((SinkError, ValueError)):
            SpoolStore(damaged)
    got, lost = start_again(damaged)
    assert len(got) + lost == COUNT
    assert len(got) > COUNT / 3


def test_a_damaged_file_without_a_successor_is_recovered(damaged: Path) -> None:
    """As an older version left it that was killed between moving the file away and filling the new one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{damaged}-wal")
    damaged.rename(damaged.with_name(f"{damaged.name}.damaged-1700000000000"))
    got, lost = start_again(damaged)
    assert len(got) + lost == COUNT
    assert len(got) > COUNT / 3


ROWS: dict[str, tuple[str, object]] = {
    "a track that is no event": ("UPDATE tracks SET event = ?", b'{"id": 1}'),
    "a track that is text": ("UPDATE tracks SET event = ?", "gate"),
    "a track of noise": ("UPDATE tracks SET event = ?", b"\xff\xfe\x00"),
    "a track under another key": ("UPDATE tracks SET uid = ?", "B"),
    "a number that is text": ("UPDATE meta SET value = ? WHERE name = 'tracks_upto'", "many"),
    "a next number that is noise": ("UPDATE meta SET value = ? WHERE name = 'next'", b"\xff\x00"),
    "a cursor that is text": ("UPDATE cursors SET acked = ?", "all of them"),
    "a cursor that is a fraction": ("UPDATE cursors SET acked = ?", 0.5),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_damaged_row_is_counted_and_named_and_the_start_goes_on(
    tmp_path: Path, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool.sqlite"
    fill(path)
    sql, value = ROWS[row]
    assert change_rows(path, sql, value) == 1

    async def run() -> int:
        async with await Spool.open(path, {"sink": Recorder()}) as spool:
            await spool.send(event(COUNT))
            assert await spool.drain(20)
            return spool.dropped()["damaged"]

    assert asyncio.run(run()) == 1
    assert "is damaged" in caplog.text
    caplog.clear()
    start_again(path)
    assert "is damaged" not in caplog.text, "reported once, then it is gone"


@pytest.mark.parametrize(
    ("sql", "value", "lost"),
    [
        ("UPDATE blocks SET body = ? WHERE first = 21", "text", 20),
        ("UPDATE blocks SET last = ? WHERE first = 21", 1 << 60, 20),
        ("UPDATE blocks SET last = ? WHERE first = 21", -5, 20),
        ("UPDATE blocks SET crc = ? WHERE first = 21", "none", 0),
    ],
)
def test_a_block_that_makes_no_sense_costs_its_own_events_alone(
    tmp_path: Path, sql: str, value: object, lost: int
) -> None:
    path = tmp_path / "spool.sqlite"
    fill(path)
    assert change_rows(path, sql, value) == 1
    got, damaged = start_again(path)
    assert len(got) == COUNT - lost
    assert damaged == lost


def test_what_a_recovery_found_ended_stays_ended(tmp_path: Path) -> None:
    """The first run ends a track and is killed before it notes that; the second does nothing and is killed, too."""
    code = """
        import asyncio, os, sys
        from sinks.event import EventType
        from sinks.spool import Spool
        from tests.sinks.makes import Recorder, event

        async def main():
            spool = await Spool.open(sys.argv[1], {"sink": Recorder()})
            if sys.argv[2] == "first":
                await spool.send(event(1))
                await asyncio.sleep(0.6)
                await spool.send(event(2, kind=EventType.TRACK_END))
            else:
                await asyncio.sleep(0.6)
            os._exit(9)

        asyncio.run(main())
    """
    for life in ("first", "second"):
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "spool"), life], timeout=30)

    async def count() -> int:
        async with await Spool.open(tmp_path / "spool", {"sink": Recorder()}) as spool:
            return len(spool.open_items())

    assert asyncio.run(count()) == 0


class Trouble:
    """Fails the store's `append` a number of times."""

    def __init__(self, spool: Spool, errors: list[Exception]) -> None:
        assert spool._store is not None
        self._append: Callable[..., int] = spool._store.append
        self._errors = errors
        spool._store.append = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: object) -> int:
        if self._errors:
            raise self._errors.pop(0)
        return self._append(*arguments)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), MemoryError(), sqlite3.ProgrammingError("closed"), KeyError()]
)
async def test_the_writer_survives_any_error_and_reports_it(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Recorder()
    async with await Spool.open(tmp_path / "spool", {"sink": sink}) as spool:
        Trouble(spool, [error, error])
        sending = asyncio.create_task(spool.send_batch(events(5)))
        await until(lambda: bool(spool.storage_error))
        assert type(error).__name__ in spool.storage_error
        assert spool.storage().error == spool.storage_error
        await asyncio.wait_for(sending, 10)
        assert await spool.drain(10)
        assert spool.storage_error == ""
    assert ids(sink.got) == ids(events(5))
    assert type(error).__name__ in caplog.text


@pytest.mark.anyio
async def test_damage_on_a_full_disk_is_repaired_when_there_is_room(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair fails as often as the disk is full; every `send` waits, and goes on afterwards."""
    sink = Recorder()
    full = [sqlite3.OperationalError("database or disk is full")] * 3
    build = salvage._build_repair

    def build_or_fail(*arguments: Path) -> object:
        if full:
            raise full.pop()
        return build(*arguments)

    async with await Spool.open(damaged, {"sink": sink}) as spool:
        monkeypatch.setattr(salvage, "_build_repair", build_or_fail)
        Trouble(spool, [writer.StoreDamaged("the spool is damaged (found by the test)")])
        await asyncio.wait_for(spool.send_batch(events(5, first=COUNT)), 20)
        assert not full
        assert await spool.drain(20)
        assert spool.used_bytes >= 0
    assert ids(sink.got)[-5:] == ids(events(5, first=COUNT))


@pytest.mark.anyio
async def test_a_writer_that_dies_all_the_same_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Spool.open(tmp_path / "spool", {}) as spool:
        Trouble(spool, [SystemExit("gone")])  # type: ignore[list-item]
        with pytest.raises(SinkError, match="writer has failed"):
            await asyncio.wait_for(spool.send(event(1)), 10)
        with pytest.raises(SinkError, match="writer has failed"):
            await asyncio.wait_for(spool.send(event(2)), 10)
        assert "writer has failed" in spool.storage_error
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


@pytest.mark.anyio
async def test_files_with_events_are_for_their_owner_alone(tmp_path: Path) -> None:
    from sinks.sink import PoisonError

    def refuse(_: object) -> None:
        raise PoisonError("never")

    async with await Spool.open(tmp_path / "spool", {"sink": Recorder(refuse)}) as spool:
        await spool.send(event(1, kind=EventType.TRACK_BEGIN))
        assert await spool.drain(10)
        names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}  # noqa: ASYNC240
    assert {"spool", "spool-wal", "spool.lock", "spool.dead.jsonl"} <= set(names)
    assert set(names.values()) == {0o600}, names
