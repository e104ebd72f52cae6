"""A Python program and the command line read a monitor's events over HTTP."""

from __future__ import annotations

import asyncio
import threading

import pytest

import groundstream
from sinks.event import EventType
from sinks.sink import SinkAddressError, SinkError
from sinks.subscribe import subscribe
from streamer.config import WebConfig
from streamer.web.client import ApiError
from streamer.web.event_store import EventStore
from streamer.web.server import WebServerThread
from tests.web.rooms import VIEWER, event, match, room, serving


@pytest.fixture
def served():
    store = EventStore(None)
    store.add_events([event(n, EventType.MATCH_BEGIN, matches=[match("red car")]) for n in range(1, 6)])
    with serving(room(store, WebConfig(port=0))) as server:
        yield server, store


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def numbers(events, count: int | None = None) -> list[int]:
    found = []
    async with events:
        async for each in events:
            found.append(int(each.sequence))
            if len(found) == count:
                break
    return found


def test_stored_events_are_read_once_in_order(served):
    server, _ = served
    monitor = groundstream.connect(server.address.url, token=VIEWER)
    assert run(numbers(monitor.subscribe())) == [1, 2, 3, 4, 5]
    assert run(numbers(monitor.subscribe(since="1.gate.3"))) == [4, 5]
    assert run(numbers(monitor.subscribe(queries=["blue"]))) == []


def test_following_waits_for_what_comes(served):
    server, store = served
    monitor = groundstream.connect(server.address.url, token=VIEWER)
    threading.Timer(1.0, lambda: store.add_events([event(6), event(7)])).start()
    assert run(numbers(monitor.subscribe(follow=True), 2)) == [6, 7]


def test_a_lost_connection_is_resumed_without_a_gap(served):
    server, store = served
    port = int(server.address.url.rsplit(":", 1)[1].strip("/"))
    gaps = []

    async def go() -> list[int]:
        monitor = groundstream.connect(server.address.url, token=VIEWER)
        events = monitor.subscribe(since="earliest", follow=True, on_gap=gaps.append)
        found = []
        async with events:
            async for each in events:
                found.append(int(each.sequence))
                if len(found) == 5:
                    await asyncio.to_thread(server.stop)
                    store.add_events([event(6), event(7)])
                    again = WebServerThread(room(store, WebConfig(port=port)))
                    again.start()
                if len(found) == 7:
                    break
        await asyncio.to_thread(again.stop)
        return found

    assert run(go()) == [1, 2, 3, 4, 5, 6, 7]
    assert gaps == []


def test_a_wrong_token_and_an_absent_monitor_are_reported_apart(served):
    server, _ = served
    host = server.address.url.removeprefix("http://").strip("/")
    with pytest.raises(SinkAddressError, match="GROUNDSTREAM_TOKEN"):
        run(numbers(subscribe(f"http://:wrong@{host}")))
    with pytest.raises(SinkError, match="does not answer"):
        run(numbers(subscribe("http://127.0.0.1:9")))


def test_the_client_reads_and_reports_refusals(served):
    server, _ = served
    monitor = groundstream.connect(server.address.url, token=VIEWER)
    assert [stream["name"] for stream in run(monitor.list_streams())] == ["gate", "yard"]
    assert len(run(monitor.list_events(q="red", limit=3))) == 3
    with pytest.raises(ApiError, match="role operator") as caught:
        run(monitor.set_query("gate", "dog", "a dog"))
    assert caught.value.status == 403


@pytest.mark.parametrize("url", ["", "gate", "ftp://h", "http://", "http://[::1"])
def test_an_address_of_no_monitor_is_refused(url):
    with pytest.raises(ApiError, match="write http://HOST:8090"):
        groundstream.connect(url)
