"""MQTT and Redis against Debian's servers: TLS with an own authority, rights, limits."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from sinks import SinkError, open_sink, open_sinks
from sinks.event import EventType
from sinks.spool.spool import Spool
from tests.sinks.authority import Authority
from tests.sinks.makes import event, events
from tests.sinks.servers import find_program, mosquitto, redis_server

# redis-py leaves sockets without a finished handshake to the garbage collector.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

CASES = [
    ({}, "cafile={ca}", ""),
    ({}, "insecure=true", ""),
    ({}, "", "give the certificate of its authority as cafile"),
    ({}, "cafile={other}", "is not trusted"),
    ({"host": "elsewhere.example"}, "cafile={ca}", "certificate for another host"),
    ({"expired": True}, "cafile={ca}", "certificate that has expired"),
    ({"wants_client": True}, "cafile={ca}", "wants a client certificate: give certfile and keyfile"),
    ({"wants_client": True}, "cafile={ca}&certfile={cert}&keyfile={key}&key_password=sesame", ""),
    (None, "cafile={ca}", "TLS handshake: does the port speak TLS"),
]


def fill(options: str, authority: Authority, folder: Path) -> str:
    other = folder / "other"
    other.mkdir()
    cert, key = authority.issue("client")
    places = {"ca": authority.certificate, "other": Authority(other).certificate, "cert": cert}
    return options.format(**places, key=authority.lock(key, "sesame"))


async def deliver(address: str, sentence: str) -> None:
    sink = open_sink(address)
    try:
        if sentence:
            with pytest.raises(SinkError, match=sentence):
                await sink.send_batch(events(2))
        else:
            assert await sink.check()  # type: ignore[attr-defined]
            await sink.send_batch(events(2))
    finally:
        await sink.aclose()


@pytest.mark.parametrize(("server", "options", "sentence"), CASES)
async def test_mosquitto_with_tls(tmp_path: Path, server: dict | None, options: str, sentence: str) -> None:
    authority = Authority(tmp_path)
    lines: list[str] = []
    if server is not None:
        cert, key = authority.issue(server.get("host", "127.0.0.1"), expired=server.get("expired", False))
        lines = [f"certfile {cert}", f"keyfile {key}"]
        if server.get("wants_client"):
            lines += [f"cafile {authority.certificate}", "require_certificate true"]
    with mosquitto(tmp_path, *lines) as port:
        await deliver(f"mqtts://127.0.0.1:{port}/gs?timeout=3&{fill(options, authority, tmp_path)}", sentence)


async def test_mosquitto_without_tls_in_the_address(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("127.0.0.1")
    with mosquitto(tmp_path, f"certfile {cert}", f"keyfile {key}") as port:
        await deliver(f"mqtt://127.0.0.1:{port}/gs?timeout=2", "speaks TLS at this port: write the scheme with s")


@pytest.mark.parametrize(("server", "options", "sentence"), CASES)
async def test_redis_with_tls(tmp_path: Path, server: dict | None, options: str, sentence: str) -> None:
    authority = Authority(tmp_path)
    arguments: list[str] = []
    if server is not None:
        cert, key = authority.issue(server.get("host", "127.0.0.1"), expired=server.get("expired", False))
        arguments = ["--tls-cert-file", str(cert), "--tls-key-file", str(key)]
        arguments += ["--tls-ca-cert-file", str(authority.certificate)]
        arguments += ["--tls-auth-clients", "yes" if server.get("wants_client") else "no"]
    with redis_server(tmp_path, *arguments, tls=server is not None) as port:
        await deliver(f"rediss://127.0.0.1:{port}/gs?timeout=3&{fill(options, authority, tmp_path)}", sentence)


async def test_a_redis_user_who_may_only_add_is_not_called_broken(tmp_path: Path) -> None:
    writer = "writer on >sesame ~* resetchannels -@all +xadd"
    arguments = ["--user", "default", "off", "--user", *writer.split()]
    with redis_server(tmp_path, *arguments) as port:
        sink = open_sink(f"redis://writer:sesame@127.0.0.1:{port}/gs")
        assert "whether it may write, only an event shows" in await sink.check()  # type: ignore[attr-defined]
        await sink.send_batch(events(3))
        await sink.aclose()


async def test_a_read_only_replica_of_redis_is_noticed(tmp_path: Path) -> None:
    with redis_server(tmp_path) as first:
        other = tmp_path / "replica"
        other.mkdir()
        with redis_server(other, "--replicaof", "127.0.0.1", str(first)) as port:
            sink = open_sink(f"redis://127.0.0.1:{port}/gs")
            for call in (sink.check(), sink.send_batch(events(1))):  # type: ignore[attr-defined]
                with pytest.raises(SinkError, match="is a read-only replica: give the address of its primary"):
                    await call
            await sink.aclose()


async def test_an_event_up_to_the_brokers_limit_arrives_and_one_above_it_is_buried(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "max_packet_size 2000") as port:
        small = next(
            event(0, padding=size) for size in range(2000, 0, -1) if _publish_size(event(0, padding=size)) <= 2000
        )
        large = event(1, padding=3000)
        async with await Spool.open(None, open_sinks([f"mqtt://127.0.0.1:{port}/gs"])) as spool:
            await spool.send_batch([small, large, event(2)])
            assert await spool.drain(20)
            assert spool.dropped() == {"dead_letter": 1}


def _publish_size(sent: object) -> int:
    from sinks.mqtt import _packet_size
    from sinks.mqtt_styles import CloudEventStyle

    return max(_packet_size(message) for message in CloudEventStyle("gs").messages_of(sent))  # type: ignore[arg-type]


def retained(port: int, topic: str) -> dict[str, str]:
    """What a late subscriber gets at once, by mosquitto's own client."""
    command = [
        find_program("mosquitto_sub"),
        "-p",
        str(port),
        "-t",
        topic,
        "-v",
        "-W",
        "1",
        "--retained-only",
        "-F",
        "%t %p",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


async def test_a_late_subscriber_knows_the_state_and_the_end(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as port:
        sink = open_sink(f"mqtt://127.0.0.1:{port}/gs")
        kinds = [EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE, EventType.COVERAGE]
        await sink.send_batch([event(number, kind=kind) for number, kind in enumerate(kinds)])
        state = await asyncio.to_thread(retained, port, "gs/#")
        assert state["gs/status"] == "online"
        assert json.loads(state["gs/gate/state"])["type"] == EventType.STREAM_OFFLINE.value
        await sink.aclose()
        assert (await asyncio.to_thread(retained, port, "gs/status")) == {"gs/status": "offline"}
