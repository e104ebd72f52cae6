"""What is particular to webhooks, MQTT and Redis: signatures, answers, retained state, refusals."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks import PoisonError, SinkError, open_sink, open_sinks
from sinks.event import EventType
from sinks.spool.spool import Spool
from streamer.tasks.doctor import _check_sink
from tests.sinks.broker import free_port
from tests.sinks.makes import event, events, ids
from tests.sinks.peers import Peer, mqtt_broker, redis_server, web_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def web() -> Iterator[Peer]:
    with web_server() as peer:
        yield peer


@pytest.fixture
def mqtt() -> Iterator[Peer]:
    with mqtt_broker() as peer:
        yield peer


@pytest.fixture
def redis() -> Iterator[Peer]:
    with redis_server() as peer:
        yield peer


async def send(address: str, sent: list) -> None:
    sink = open_sink(address)
    try:
        await sink.send_batch(sent)
    finally:
        await sink.aclose()


async def test_a_webhook_is_signed_and_carries_the_event(web: Peer) -> None:
    await send(f"http://me:pw@127.0.0.1:{web.port}/in/here?secret=sesame&site=a%20b", [event(0)])
    ((path, headers, body),) = web.requests
    assert path == "/in/here?site=a%20b"
    assert json.loads(body)["id"] == event(0).id
    assert headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
    signed = f"{event(0).id}.{headers['Webhook-Timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"sesame", signed, hashlib.sha256).digest()).decode()
    assert headers["Webhook-Signature"] == f"v1,{expected}"
    assert abs(int(headers["Webhook-Timestamp"]) - time.time()) < 60


async def test_a_batch_is_one_request(web: Peer) -> None:
    await send(f"http://127.0.0.1:{web.port}/?batch=4&token=sesame", events(10))
    assert [len(json.loads(body)) for _, _, body in web.requests] == [4, 4, 2]
    assert web.requests[0][1]["Content-Type"] == "application/cloudevents-batch+json; charset=utf-8"
    assert web.requests[0][1]["Authorization"] == "Bearer sesame"
    assert ids(web.events) == ids(events(10))


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_malformed_event_is_poison_and_the_others_arrive(web: Peer, batch: int) -> None:
    refused = (422, {})
    web.answers = [None, refused] if batch == 1 else [refused, None, refused]
    with pytest.raises(PoisonError) as found:
        await send(f"http://127.0.0.1:{web.port}/?batch={batch}", events(4))
    assert list(found.value.reasons) == [event(1).id]
    assert "answers 422" in found.value.reasons[event(1).id]
    assert ids(web.events) == ids([event(0), event(2), event(3)])


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {}, "check user, password or token"),
        (302, {"Location": "/there"}, "it has moved"),
        (503, {}, "answers 503 Service Unavailable"),
        (404, {}, "answers 404 Not Found"),
    ],
)
async def test_other_answers_mean_later(web: Peer, status: int, headers: dict, sentence: str) -> None:
    web.answers = [None, (status, headers)]
    with pytest.raises(SinkError, match=sentence) as found:
        await send(f"http://127.0.0.1:{web.port}/", events(4))
    assert not isinstance(found.value, PoisonError)
    assert found.value.delivered == 1


async def test_a_secret_in_the_path_is_reported_nowhere(
    web: Peer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web.repeats_path = True
    web.answers = [(503, {}), (404, {}), (422, {})]
    address = f"http://127.0.0.1:{web.port}/services/T0ABCDEF/p%C3%A4ssSESAME?key-of-mine=hunter22"
    async with await Spool.open(tmp_path / "spool.sqlite", open_sinks([address])) as spool:
        await spool.send_batch(events(2))
        errors = []
        while not await spool.drain(0.02):
            errors.append(spool.status()[0].error)
        reported = repr(spool.status())
    assert len(web.requests) == 4
    assert "answers 503 Service Unavailable (Cannot POST /***/***/***?***=***)" in errors[-1] + errors[0]
    letters = (tmp_path / "spool.sqlite.dead.jsonl").read_text()
    assert letters.count("Cannot POST") == 1
    found = await asyncio.to_thread(_check_sink, address)
    assert found.state == "works"
    for place in (reported, letters, caplog.text, str(found), *errors):
        for secret in ("SESAME", "T0ABCDEF", "hunter22"):
            assert secret not in place
    assert spool.status()[0].name.startswith(f"http://127.0.0.1:{web.port}/***#")


async def test_a_pause_that_was_asked_for_is_kept(web: Peer) -> None:
    web.answers = [(429, {"Retry-After": "1"})]
    async with await Spool.open(None, open_sinks([f"http://127.0.0.1:{web.port}/"])) as spool:
        begun = time.monotonic()
        await spool.send_batch(events(3))
        assert await spool.drain(10)
    assert time.monotonic() - begun >= 1
    assert len(web.requests) == 4, "no request came in between"


async def test_a_connection_that_the_peer_closed_is_opened_again(web: Peer) -> None:
    web.answers = [(204, {"Connection": "close"}), (204, {"Connection": "close"})]
    await send(f"http://127.0.0.1:{web.port}/", events(4))
    assert ids(web.events) == ids(events(4))


async def test_mqtt_topics_report_stream_and_kind_and_state_is_retained(mqtt: Peer) -> None:
    await send(f"mqtt://me:pw@127.0.0.1:{mqtt.port}/site", [event(0, stream="a/b+"), event(1, kind=EventType.COVERAGE)])
    connect, *published = mqtt.requests
    assert b"site/status" in connect
    assert b"offline" in connect, "the last will"
    assert b"pw" in connect
    assert [(topic, retained) for topic, _, retained in published] == [
        ("site/status", True),
        ("site/a_b_/track/begin", False),
        ("site/gate/coverage", False),
        ("site/gate/state", True),
        ("site/status", True),
    ]
    assert (published[0][1], published[-1][1]) == (b"online", b"offline")


async def test_mqtt_refusals(mqtt: Peer) -> None:
    address = f"mqtt://127.0.0.1:{mqtt.port}/site"
    mqtt.answers = [0, 0, 0x87]
    with pytest.raises(SinkError, match="this user may not write there") as found:
        await send(address, events(4))
    assert found.value.delivered == 1
    mqtt.answers = [0, 0, 0x99]
    with pytest.raises(PoisonError) as poison:
        await send(address, events(4, first=10))
    assert list(poison.value.reasons) == [event(11).id]


async def test_redis_refusals(redis: Peer) -> None:
    address = f"redis://me:pw@127.0.0.1:{redis.port}/place"
    redis.answers = [None, None, "OOM command not allowed when used memory > 'maxmemory'."]
    with pytest.raises(SinkError, match=r"refuses .*maxmemory") as found:
        await send(address, events(4))
    assert found.value.delivered == 0
    assert redis.events == [], "all of a batch or nothing"
    assert [b"AUTH", b"me", b"pw"] in redis.requests
    redis.answers = ["WRONGTYPE Operation against a key holding the wrong kind of value"]
    with pytest.raises(SinkError, match="place is not a stream"):
        await send(address, events(1))


async def test_a_redis_user_without_transactions_gets_each_entry_alone(redis: Peer) -> None:
    redis.has_no_transactions = True
    sink = open_sink(f"redis://127.0.0.1:{redis.port}/place")
    await sink.send_batch(events(5))
    first = list(dict.fromkeys(ids(redis.events)))
    assert first == ids(events(5))
    redis.events.clear()
    await sink.send_batch(events(5))
    assert ids(redis.events) == ids(events(5))
    redis.answers = [None, None, "OOM command not allowed when used memory > 'maxmemory'."]
    with pytest.raises(SinkError) as found:
        await sink.send_batch(events(5, first=5))
    assert found.value.delivered == 2
    await sink.aclose()


async def test_an_event_on_which_the_broker_hangs_up_is_tried_alone_and_then_buried(mqtt: Peer) -> None:
    mqtt.hangs_up_over = 2000
    sent = [event(0), event(1), event(2, padding=3000), event(3), event(4)]
    async with await Spool.open(None, open_sinks([f"mqtt://127.0.0.1:{mqtt.port}/site"])) as spool:
        await spool.send_batch(sent)
        assert await spool.drain(20)
        assert spool.dropped() == {"dead_letter": 1}
    assert list(dict.fromkeys(ids(mqtt.events))) == ids([event(0), event(1), event(3), event(4)])


async def test_a_broker_that_hangs_up_on_everything_gets_nothing_buried(mqtt: Peer) -> None:
    mqtt.hangs_up_over = 1
    async with await Spool.open(None, open_sinks([f"mqtt://127.0.0.1:{mqtt.port}/site"])) as spool:
        await spool.send_batch(events(3))
        await asyncio.sleep(1.5)
        assert spool.status()[0].state == "down"
        assert spool.dropped() == {}
        mqtt.hangs_up_over = 0
        assert await spool.drain(20)


async def test_a_stream_that_ended_stays_offline(mqtt: Peer) -> None:
    kinds = [EventType.STREAM_ONLINE, EventType.COVERAGE, EventType.STREAM_OFFLINE, EventType.COVERAGE]
    sent = [event(number, kind=kind) for number, kind in enumerate(kinds)]
    await send(f"mqtt://127.0.0.1:{mqtt.port}/site", sent)
    states = [json.loads(request[1])["type"] for request in mqtt.requests[1:] if request[0].endswith("/state")]
    assert states == [kind.value for kind in kinds[:3]]


async def look(address: str) -> str:
    sink = open_sink(address)
    try:
        return await sink.check()  # type: ignore[attr-defined]
    finally:
        await sink.aclose()


async def test_looking_at_a_webhook_sends_nothing(web: Peer) -> None:
    assert (
        await look(f"http://127.0.0.1:{web.port}/in")
        == "a server answers there; only a test message shows that it takes events"
    )
    assert web.requests == []
    with pytest.raises(SinkError, match=r"does not answer \(Connection refused\)"):
        await look(f"http://127.0.0.1:{free_port()}/in")
    with pytest.raises(SinkError, match="does not speak TLS at this port"):
        await look(f"https://127.0.0.1:{web.port}/in")


async def test_looking_at_mqtt_reports_nobody(mqtt: Peer) -> None:
    address = f"mqtt://me:pw@127.0.0.1:{mqtt.port}/site?client_id=gate"
    assert "the broker accepts the connection" in await look(address)
    (connect,) = mqtt.requests
    assert b"me" in connect
    assert b"gate" not in connect, "a client of that name may be at work"
    assert b"offline" not in connect
    mqtt.welcome = 0x86
    with pytest.raises(SinkError, match="check user and password"):
        await look(address)


async def test_looking_at_redis_writes_nothing(redis: Peer) -> None:
    address = f"redis://127.0.0.1:{redis.port}/"
    assert await look(address + "place") == "answers; place begins with the first event"
    await send(address + "place", events(3))
    assert await look(address + "place") == "answers; place holds 3 entries"
    with pytest.raises(SinkError, match="text is not a stream"):
        await look(address + "text")
    assert ids(redis.events) == ids(events(3))


async def test_a_parquet_file_waits_for_company_unless_the_spool_is_drained(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    async with await Spool.open(None, open_sinks([f"parquet:{folder}?seconds=30"])) as spool:
        for one in events(20):
            await spool.send(one)
            await asyncio.sleep(0.01)
        assert not list(folder.rglob("*.parquet"))
        assert await spool.drain(5)
    assert len(list(folder.rglob("*.parquet"))) == 1
