"""The PostgreSQL sink against a real server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks import SinkAddressError, SinkError, open_sink, open_sinks
from sinks.event import EventType, rfc3339
from sinks.spool.spool import Spool
from sinks.subscribe import subscribe
from tests.sinks.broker import Proxy
from tests.sinks.makes import START_NS, event, events, ids, until
from tests.sinks.servers import postgres

psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'groundstream[postgres]'")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, postgres(Path(folder)) as port:
        yield port


@pytest.fixture
def address(port: int, request: pytest.FixtureRequest) -> str:
    table = "t" + str(abs(hash(request.node.name)))
    return f"postgresql://me:sesame@127.0.0.1:{port}/postgres?table={table}"


async def test_what_is_read_is_what_was_written_each_once_in_order(address: str) -> None:
    sent = [*events(10), event(10, kind=EventType.COVERAGE), event(11, kind=EventType.TRACK_END, stream="a\0b")]
    sink = open_sink(address)
    assert "begins with the first event" in await sink.check()  # type: ignore[attr-defined]
    await sink.send_batch(sent)
    await sink.send_batch(sent[5:])
    assert "is there" in await sink.check()  # type: ignore[attr-defined]
    await sink.aclose()
    assert [one async for one in subscribe(address)] == sent
    later = rfc3339(START_NS + 6 * 40_000_000)
    assert ids([one async for one in subscribe(address, since=later)]) == ids(sent[6:])
    assert ids([one async for one in subscribe(address, since=event(8).id)]) == ids(sent[9:])
    with pytest.raises(SinkError, match="has no event"):
        [one async for one in subscribe(address, since="1.gate.1")]


async def test_columns_answer_questions(address: str, port: int) -> None:
    sink = open_sink(address)
    await sink.send_batch([event(0, query="red car"), event(1, query="dog")])
    await sink.aclose()
    table = address.rpartition("=")[2]
    with psycopg.connect(host="127.0.0.1", port=port, user="me", password="sesame", dbname="postgres") as db:
        found = db.execute(f"SELECT sequence, event -> 'data' ->> 'stream' FROM {table} WHERE 'dog' = ANY(queries)")
        assert found.fetchall() == [(1, "gate")]


async def test_following_sees_what_two_writers_add(address: str) -> None:
    first, second = open_sink(address), open_sink(address)
    await first.send_batch(events(1))
    async with subscribe(address, follow=True, since="earliest") as subscription:
        await asyncio.gather(
            *(first.send_batch([event(number)]) for number in range(1, 20)),
            *(second.send_batch([event(number, stream="yard")]) for number in range(20)),
        )
        got = [(await asyncio.wait_for(anext(subscription), 10)).id for _ in range(40)]
    assert len(set(got)) == 40
    await first.aclose()
    await second.aclose()


async def test_an_outage_and_a_frozen_server_lose_nothing(address: str, port: int) -> None:
    proxy = Proxy(port)
    try:
        through = address.replace(f":{port}/", f":{proxy.port}/") + "&timeout=1"
        async with await Spool.open(None, open_sinks([through])) as spool:
            await spool.send_batch(events(20))
            assert await spool.drain(20)
            proxy.cut()
            await spool.send_batch(events(20, first=20))
            await until(lambda: spool.status()[0].state == "down")
            proxy.restore()
            assert await spool.drain(30)
            proxy.freeze()
            await spool.send_batch(events(20, first=40))
            await until(lambda: "does not answer within 1 s" in spool.status()[0].error)
            proxy.thaw()
            assert await spool.drain(30)
        assert ids([one async for one in subscribe(address)]) == ids(events(60))
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("sesame", "hunter2"), "refuses the user or the password"),
        (("/postgres?", "/nowhere?"), "has no such database"),
        (("?table=", "?timeout=2&cafile={ca}&table="), "does not take events|TLS"),
    ],
)
async def test_refusals_are_one_sentence(address: str, tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    from tests.sinks.authority import Authority

    filled = change[1].format(ca=Authority(tmp_path).certificate)
    sink = open_sink(address.replace(change[0], filled, 1))
    with pytest.raises(SinkError, match=sentence) as found:
        await sink.send_batch(events(1))
    assert "\n" not in str(found.value)
    assert "hunter2" not in str(found.value)
    await sink.aclose()


async def test_a_replica_a_foreign_table_and_missing_rights_are_named(address: str, port: int) -> None:
    table = address.rpartition("=")[2]
    with psycopg.connect(host="127.0.0.1", port=port, user="me", password="sesame", dbname="postgres") as db:
        db.execute(f"CREATE TABLE {table} (id text)")
        db.execute(f"DROP ROLE IF EXISTS reader_{table}")
        db.execute(f"CREATE ROLE reader_{table} LOGIN PASSWORD 'x'")
        db.execute(f"CREATE ROLE frozen_{table} SUPERUSER LOGIN PASSWORD 'x'")
        db.execute(f"ALTER ROLE frozen_{table} SET default_transaction_read_only = on")
    sink = open_sink(address)
    with pytest.raises(SinkError, match=f"has another table {table}"):
        await sink.send_batch(events(1))
    await sink.aclose()
    with psycopg.connect(host="127.0.0.1", port=port, user="me", password="sesame", dbname="postgres") as db:
        db.execute(f"DROP TABLE {table}")
    sink = open_sink(address)
    await sink.send_batch(events(1))
    await sink.aclose()
    for user, sentence in (("reader", "does not let this user write"), ("frozen", "is a read-only replica")):
        sink = open_sink(address.replace("me:sesame", f"{user}_{table}:x"))
        with pytest.raises(SinkError, match=sentence):
            await sink.send_batch(events(1))
        await sink.aclose()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("postgresql://h", "write postgresql://HOST/DATABASE"),
        ("postgresql://h/d?table=a;b", "must be NAME or SCHEMA.NAME"),
        ("postgresql://h/d?cafile=/nowhere.pem", "cannot be read"),
        ("postgresql://h/d?colour=red", "unknown option 'colour'"),
    ],
)
def test_a_wrong_address_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SinkAddressError, match=sentence):
        open_sink(text)
