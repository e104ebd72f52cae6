"""A damaged spool: what can be read is delivered, what cannot is counted, the damaged file is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import sqlite3
from pathlib import Path

import pytest

from sinks.sink import SinkError
from sinks.spool.spool import Spool
from tests.sinks.makes import Recorder, event, events, ids

COUNT = 3000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A spool that holds COUNT events that no sink has taken yet."""
    path = tmp_path / "spool.sqlite"

    async def fill() -> None:
        gate = asyncio.Event()
        async with await Spool.open(path, {"sink": Recorder(lambda _: gate.wait())}) as spool:
            for start in range(0, COUNT, 20):
                await spool.send_batch([event(n, padding=500) for n in range(start, start + 20)])

    asyncio.run(fill())
    return path


def start_again(path: Path) -> tuple[list[str], int, int]:
    """(what the sink got, how many are counted as damaged, how many came after the start)."""
    sink = Recorder()

    async def run() -> int:
        async with await Spool.open(path, {"sink": sink}) as spool:
            await spool.send_batch(events(10, first=COUNT))
            assert await spool.drain(30)
            return spool.dropped().get("damaged", 0)

    damaged = asyncio.run(run())
    got = ids(sink.got)
    assert got[-10:] == ids(events(10, first=COUNT)), "the spool goes on"
    assert len(set(got)) == len(got)
    assert got == sorted(got, key=lambda one: int(one.rpartition(".")[2])), "in order"
    return got[:-10], damaged, 10


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_sound_file_loses_nothing(path: Path) -> None:
    got, damaged, _ = start_again(path)
    assert got == ids(events(COUNT))
    assert damaged == 0


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_file_that_was_cut_short(path: Path, share: float) -> None:
    size = path.stat().st_size
    os.truncate(path, int(size * share))
    got, damaged, _ = start_again(path)
    assert len(got) + damaged == COUNT
    assert got
    assert list(path.parent.glob("spool.sqlite.damaged-*"))


@pytest.mark.parametrize("seed", range(4))
def test_pages_of_noise(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    pages = path.stat().st_size // 4096
    for page in dice.sample(range(1, pages), 6):
        overwrite(path, page * 4096, dice.randbytes(4096))
    got, damaged, _ = start_again(path)
    assert len(got) + damaged == COUNT
    assert len(got) > COUNT / 4


def test_a_few_bits_in_the_middle_of_the_events(path: Path) -> None:
    body = path.read_bytes()
    at = body.index(b'"sequence":"00000000000000001500"')
    overwrite(path, at, b"\xff")
    got, damaged, _ = start_again(path)
    assert damaged == 1
    assert set(ids(events(COUNT))) - set(got) == {event(1500).id}


def test_a_head_of_noise(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overwrite(path, 0, random.Random(1).randbytes(100))
    got, damaged, _ = start_again(path)
    assert len(got) + damaged == COUNT
    assert len(got) > COUNT * 0.9
    assert "the damaged file is kept as" in caplog.text


def test_the_copy_of_a_file_without_its_head_is_for_its_owner_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def note_copy(source: str, target: str) -> None:
        copied.append(os.stat(target).st_mode & 0o777)
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr("sinks.spool.salvage.shutil.copyfile", note_copy)
    overwrite(path, 0, random.Random(1).randbytes(100))
    start_again(path)
    assert copied
    assert set(copied) == {0o600}


def test_a_file_of_nothing_but_noise_is_moved_aside_and_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(random.Random(1).randbytes(100_000))
    got, _, _ = start_again(path)
    assert got == []
    assert "0 events recovered, 0 or more lost" in caplog.text
    kept = list(path.parent.glob("spool.sqlite.damaged-*"))
    assert len(kept) == 1
    assert kept[0].stat().st_size == 100_000


def test_a_recovery_that_finds_the_disk_full_is_tried_again_by_the_next_start(path: Path) -> None:
    """A full disk in the middle of a recovery, here a limit on the size of files."""
    os.truncate(path, path.stat().st_size // 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(SinkError, match="cannot be opened"):
            start_again(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(path.parent.glob("spool.sqlite.damaged-*"))
    got, damaged, _ = start_again(path)
    assert got
    assert len(got) + damaged == COUNT


def test_an_empty_file_is_a_new_spool(path: Path) -> None:
    path.write_bytes(b"")
    assert start_again(path)[0] == []


def test_damage_that_shows_while_it_runs(path: Path) -> None:
    """A page that only a delivery reads: the block is lost and counted, the others arrive."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        first, last = db.execute("SELECT first, last FROM blocks ORDER BY first LIMIT 1 OFFSET 40").fetchone()
        db.execute("UPDATE blocks SET body = zeroblob(10) WHERE first = ?", (first,))
        db.commit()
    got, damaged, _ = start_again(path)
    assert damaged == last - first + 1
    assert len(got) == COUNT - damaged
