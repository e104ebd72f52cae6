"""Events in files: lines of JSON, SQLite, Parquet, and how they are read again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sinks import SinkAddressError, SinkError, open_sink
from sinks.event import EventType, rfc3339
from sinks.files import JsonlSink
from sinks.sqlite import SqliteSink
from sinks.subscribe import SequenceGap, subscribe
from tests.sinks.makes import START_NS, event, events, ids, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["jsonl", "sqlite", "parquet"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:{tmp_path / 'events'}"


async def write(address: str, found: list) -> None:
    sink = open_sink(address)
    await sink.send_batch(found)
    await sink.aclose()


async def test_what_is_read_is_what_was_written(address: str) -> None:
    sent = [event(0), event(1, kind=EventType.COVERAGE), event(2, kind=EventType.TRACK_END)]
    await write(address, sent)
    assert [one async for one in subscribe(address)] == sent


async def test_each_event_is_read_once_and_gaps_are_reported(address: str) -> None:
    await write(address, events(5))
    await write(address, events(4, first=3))
    await write(address, events(2, first=9))
    gaps: list[SequenceGap] = []
    subscription = subscribe(address, on_gap=gaps.append)
    assert ids([one async for one in subscription]) == ids([*events(7), *events(2, first=9)])
    assert [str(gap) for gap in gaps] == ["2 events of gate missing: 7 to 8 of run 1700000000000"]
    assert subscription.missing == 2


async def test_a_late_event_closes_its_gap(tmp_path: Path) -> None:
    address = f"jsonl:{tmp_path / 'events'}"
    await write(address, [event(0), event(3), event(1), event(2), event(1)])
    subscription = subscribe(address)
    assert ids([one async for one in subscription]) == ids([event(0), event(3), event(1), event(2)])
    assert subscription.missing == 0
    assert subscription.duplicates == 1


async def test_events_are_chosen_by_type_stream_and_words(address: str) -> None:
    sent = [
        event(0, query="red car"),
        event(1, kind=EventType.ZONE_ENTER, query="Person with an umbrella"),
        event(0, stream="yard", query="red car"),
        event(2, kind=EventType.ZONE_EXIT),
    ]
    await write(address, sent)

    async def chosen(**wanted: list[str]) -> list[int]:
        return sorted([sent.index(one) async for one in subscribe(address, **wanted)])

    assert await chosen(types=["zone.*"]) == [1, 3]
    assert await chosen(types=["zone"]) == [1, 3]
    assert await chosen(types=["groundstream.track.begin.v1"]) == [0, 2]
    assert await chosen(streams=["ya*"]) == [2]
    assert await chosen(queries=["person"]) == [1]
    assert await chosen(queries=["red car"], streams=["gate"]) == [0, 3]


async def test_reading_begins_at_a_time_or_behind_an_id(address: str) -> None:
    await write(address, events(10))
    later = rfc3339(START_NS + 6 * 40_000_000)
    assert ids([one async for one in subscribe(address, since=later)]) == ids(events(4, first=6))
    moment = datetime.fromtimestamp(START_NS // 10**9, UTC)
    assert len([one async for one in subscribe(address, since=moment)]) == 10
    assert ids([one async for one in subscribe(address, since=event(6).id)]) == ids(events(3, first=7))
    with pytest.raises(SinkError, match=r"has no event 1\.gate\.1"):
        [one async for one in subscribe(address, since="1.gate.1")]


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
async def test_following_sees_what_comes_and_ends_cleanly(kind: str, tmp_path: Path) -> None:
    address = f"{kind}:{tmp_path / 'events'}"
    await write(address, events(3))
    seen: list[str] = []

    async def follow() -> None:
        async with subscribe(address, follow=True, since=event(1).id) as subscription:
            async for one in subscription:
                seen.extend([one.id])

    task = asyncio.create_task(follow())
    await until(lambda: len(seen) == 1)
    await write(address, events(3, first=3))
    await until(lambda: len(seen) == 4)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert seen == ids(events(4, first=2))


async def test_following_without_since_begins_now(tmp_path: Path) -> None:
    path = tmp_path / "events"
    await write(f"jsonl:{path}", events(3))
    async with subscribe(f"jsonl:{path}", follow=True) as subscription:
        first = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0.1)
        path.unlink()
        await write(f"jsonl:{path}", events(1, first=3))
        assert (await asyncio.wait_for(first, 10)).id == event(3).id, (
            "also in a file that took the place of the old one"
        )


async def test_what_is_no_event_is_passed_over_and_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [event(0).to_json(), b'{"half": ', b"", event(1).to_json().replace(b'"1.0"', b'"2.0"'), event(2).to_json()]
    path.write_bytes(b"\n".join(lines) + b"\n" + event(3).to_json()[:50])
    subscription = subscribe(f"jsonl:{path}")
    assert ids([one async for one in subscription]) == ids([event(0), event(2)])
    assert [reason.partition(" of ")[0] for reason in subscription.unreadable] == ["line 2", "line 4", "line 6"]


@pytest.mark.parametrize(
    ("address", "options", "sentence"),
    [
        ("jsonl:/nowhere/e.jsonl", {}, "cannot be read (No such file"),
        ("sqlite:/nowhere/e.sqlite", {}, "there is no such file"),
        ("parquet:/nowhere", {}, "there is no such folder"),
        ("mqtt://host/in", {}, "events cannot be read from there: known are jsonl, sqlite"),
        ("jsonl:e", {"since": "yesterday"}, "since 'yesterday' is no time: write earliest, 10m"),
        ("jsonl:e", {"types": ["zone.entr"]}, "no event type is called 'zone.entr'"),
        ("jsonl:e", {"group": "g"}, "has no groups, only Kafka has"),
        ("parquet:/tmp", {"follow": True}, "cannot be followed"),
    ],
)
async def test_what_cannot_be_read_is_one_sentence(address: str, options: dict, sentence: str) -> None:
    with pytest.raises(SinkError) as found:
        [one async for one in subscribe(address, **options)]
    assert sentence in str(found.value)


async def test_a_line_that_a_crash_cut_short_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0).to_json() + b"\n" + event(1).to_json()[:100])
    await write(f"jsonl:{path}", [event(1)])
    assert path.read_bytes() == event(0).to_json() + b"\n" + event(1).to_json() + b"\n"


async def test_sqlite_keeps_each_event_once_and_answers_questions(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    sink = SqliteSink(path)
    await sink.send_batch(events(10))
    await sink.send_batch(events(10, first=5))
    await sink.aclose()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*), count(DISTINCT id) FROM events").fetchone() == (15, 15)
        question = "SELECT sequence FROM events, json_each(queries) AS q WHERE q.value = 'red car' AND time >= ?"
        found = db.execute(question + " ORDER BY position", (rfc3339(START_NS + 12 * 40_000_000),)).fetchall()
        assert found == [(12,), (13,), (14,)]
        plan = db.execute("EXPLAIN QUERY PLAN SELECT * FROM events WHERE type = 'x' AND time > 'y'").fetchall()
        assert "events_by_type" in plan[0][3]


@pytest.mark.anyio
async def test_a_closed_database_is_one_file_that_reading_leaves_alone(tmp_path: Path) -> None:
    database = tmp_path / "events.sqlite"
    sink, other = open_sink(f"sqlite:{database}"), open_sink(f"sqlite:{database}")
    await sink.send_batch([event(1)])
    await other.send_batch([event(2)])
    await sink.aclose()  # while the other one still writes
    await other.send_batch([event(3)])
    await other.aclose()
    assert os.listdir(tmp_path) == ["events.sqlite"]
    assert [found.id async for found in subscribe(f"sqlite:{database}", follow=False)] == [
        event(n).id for n in (1, 2, 3)
    ]
    assert os.listdir(tmp_path) == ["events.sqlite"]


async def test_duckdb_reads_the_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("duckdb", reason="needs DuckDB: pip install duckdb")
    await write(f"parquet:{tmp_path}", [*events(5), *events(3, stream="yard/north side")])
    # In a process of its own: DuckDB's binding reports objects that it did not free at the end of an interpreter.
    code = f"""
        import duckdb, json, os, sys
        sql = "SELECT stream, count(*), max(score), any_value(queries) FROM read_parquet('{tmp_path}/**/*.parquet', "
        with duckdb.connect() as db:
            rows = db.execute(sql + "hive_partitioning=true) GROUP BY stream ORDER BY stream").fetchall()
        sys.stdout.write(json.dumps(rows))
        sys.stdout.flush()
        os._exit(0)
    """
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50
    )
    assert json.loads(done.stdout) == [["gate", 5, 0.9, ["red car"]], ["yard/north side", 3, 0.9, ["red car"]]]


FULL = """
    import asyncio, resource, sys
    from sinks import open_sink, SinkError
    from tests.sinks.makes import events

    async def main():
        sink = open_sink(sys.argv[1])
        await sink.send_batch(events(10))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try:
            await sink.send_batch(events(500, first=10))
        except SinkError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await sink.send_batch(events(500, first=10))
        await sink.aclose()

    asyncio.run(main())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(address: str) -> None:
    found = run_python(FULL, address)
    assert found.returncode == 0, found.stderr
    if not address.startswith("parquet"):  # compressed, it fits
        assert "cannot be written" in found.stdout

    async def read() -> list[str]:
        return ids([one async for one in subscribe(address)])

    assert asyncio.run(read()) == ids(events(510))


def test_stdout_takes_lines_and_reports_that_its_reader_left(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from sinks import open_sink, SinkError
        from tests.sinks.makes import events

        async def main():
            sink = open_sink("stdout:")
            try:
                for start in range(0, 3000, 100):
                    await sink.send_batch(events(100, first=start))
            except SinkError as error:
                print(error, file=sys.stderr)
            await sink.aclose()

        asyncio.run(main())
        sys.stdout = None
    """
    found = run_python(code)
    assert [json.loads(line)["id"] for line in found.stdout.splitlines()] == ids(events(3000))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    broken = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=50)
    os.close(writer)
    assert "closed by its reader" in broken.stderr


def test_a_second_writer_does_not_disturb_the_first(tmp_path: Path) -> None:
    """Two processes may share an SQLite file: the monitor writes, a replay adds."""

    async def both() -> None:
        first, second = SqliteSink(tmp_path / "e.sqlite"), SqliteSink(tmp_path / "e.sqlite")
        await asyncio.gather(first.send_batch(events(500)), second.send_batch(events(500, stream="yard")))
        await first.aclose()
        await second.aclose()

    asyncio.run(both())
    with contextlib.closing(sqlite3.connect(tmp_path / "e.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM events").fetchone() == (1000,)


def test_an_address_without_rights_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="Is a directory"):
        JsonlSink(tmp_path)
    with pytest.raises(SinkAddressError, match="takes no path"):
        open_sink("stdout:x")


async def test_a_renamed_deleted_or_replaced_file_is_written_anew(tmp_path: Path) -> None:
    for kind in ("jsonl", "sqlite"):
        path, old = tmp_path / kind / "events", tmp_path / kind / "old"
        sink = open_sink(f"{kind}:{path}")
        await sink.send_batch(events(3))
        path.rename(old)
        await sink.send_batch(events(3, first=3))
        path.unlink()
        await sink.send_batch(events(3, first=6))
        path.unlink()
        path.parent.rename(tmp_path / f"{kind}-gone")
        await sink.send_batch(events(3, first=9))
        await sink.aclose()
        moved = tmp_path / f"{kind}-gone" / "old"
        assert ids([one async for one in subscribe(f"{kind}:{moved}")]) == ids(events(3))
        assert ids([one async for one in subscribe(f"{kind}:{path}")]) == ids(events(3, first=9))
        assert path.stat().st_mode & 0o077 == 0


async def test_a_file_that_is_cut_goes_on_with_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events"
    sink = open_sink(f"jsonl:{path}")
    await sink.send_batch(events(3))
    os.truncate(path, 0)
    await sink.send_batch(events(3, first=3))
    assert b"\0" not in path.read_bytes()
    os.truncate(path, path.stat().st_size - 30)
    await sink.send_batch(events(1, first=6))
    await sink.aclose()
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ids([*events(2, first=3), event(6)])


async def test_a_deleted_write_ahead_log_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    sink = SqliteSink(path)
    await sink.send_batch(events(3))
    (tmp_path / "events.sqlite-wal").unlink()
    await sink.send_batch(events(3, first=3))
    await sink.aclose()
    assert ids([one async for one in subscribe(f"sqlite:{path}")]) == ids(events(6))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"milk\nbread", b"milk\nbread\n"),
        (b"milk", b"milk\n"),
        (b'{"mine": 1}', b'{"mine": 1}\n'),
        (event(7).to_json(), event(7).to_json() + b"\n"),
        (event(7).to_json()[:40], b""),
        (b'{"spec', b""),
        (b"x" * 200_000, b"x" * 200_000 + b"\n"),
    ],
)
async def test_text_that_is_not_ours_stays(tmp_path: Path, text: bytes, kept: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    await write(f"jsonl:{path}", [event(0)])
    assert path.read_bytes() == kept + event(0).to_json() + b"\n"


async def test_a_second_writer_of_a_lines_file_is_refused(tmp_path: Path) -> None:
    sink = open_sink(f"jsonl:{tmp_path}/e")
    with pytest.raises(SinkAddressError, match="is being written by another groundstream: give each its own file"):
        open_sink(f"jsonl:{tmp_path}/e")
    await sink.aclose()
    await open_sink(f"jsonl:{tmp_path}/e").aclose()


async def test_a_foreign_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "crm.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE events (id, name)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(SinkError, match="it has another table called events"):
        SqliteSink(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_a_last_line_without_its_end_and_a_byte_order_mark_are_read(tmp_path: Path, newline: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + newline.join(one.to_json() for one in events(5)))
    subscription = subscribe(f"jsonl:{path}")
    assert ids([one async for one in subscription]) == ids(events(5))
    assert subscription.unreadable == []


async def test_text_in_utf_16_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(event(0).to_json().decode(), encoding="utf-16")
    with pytest.raises(SinkError, match="save it as UTF-8"):
        [one async for one in subscribe(f"jsonl:{path}")]


async def test_a_line_that_is_too_long_or_too_deep_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.readers._LONGEST_LINE", 100_000)
    path = tmp_path / "events.jsonl"
    deep = b'{"data": ' + b"[" * 50_000 + b"]" * 50_000
    path.write_bytes(b"\n".join([event(0).to_json(), b"x" * 3_000_000, deep, event(1).to_json(), b"x" * 500_000]))
    subscription = subscribe(f"jsonl:{path}")
    assert ids([one async for one in subscription]) == ids(events(2))
    assert len(subscription.unreadable) >= 2


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
async def test_following_goes_on_in_a_file_that_was_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "events"
    await write(f"{kind}:{path}", events(3))
    async with subscribe(f"{kind}:{path}", follow=True, since="earliest") as subscription:
        assert ids([await anext(subscription) for _ in range(3)]) == ids(events(3))
        following = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0.5)
        await write(f"{kind}:{tmp_path}/new", events(2, first=10))
        path.unlink()
        await asyncio.sleep(0.5)
        (tmp_path / "new").rename(path)
        assert (await asyncio.wait_for(following, 10)).id == event(10).id
