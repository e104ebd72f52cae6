"""Webhooks under real conditions: exact addresses, slow and endless answers, gateways, TLS, proxies and chats."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sinks import PoisonError, SinkAddressError, SinkError, open_sink, open_sinks
from sinks.event import Event, EventType
from sinks.spool.spool import Spool
from tests.sinks.authority import Authority
from tests.sinks.makes import event, events, ids, until
from tests.sinks.peers import Peer, drip, raw_server, serving, web_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def web() -> Iterator[Peer]:
    with web_server() as peer:
        yield peer


async def send(address: str, sent: list[Event]) -> None:
    sink = open_sink(address)
    try:
        await sink.send_batch(sent)
    finally:
        await sink.aclose()


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a%2Fb/c?x=1&x=2", "/a%2Fb/c?x=1&x=2"),
        ("/hook?a=b;c=d&e=f+g", "/hook?a=b;c=d&e=f+g"),
        ("/hook?signature=%2B%2f&flag&timeout=5&empty=", "/hook?signature=%2B%2f&flag&empty="),
        ("/caf\u00e9 x", "/caf%C3%A9%20x"),
        ("?batch=1&a=1", "/?a=1"),
        ("", "/"),
        ("/@me/in", "/@me/in"),
    ],
)
async def test_the_address_goes_out_as_it_is_written(web: Peer, written: str, sent: str) -> None:
    await send(f"http://127.0.0.1:{web.port}{written}", [event(0)])
    assert web.requests[0][0] == sent


@pytest.mark.parametrize(
    "talk",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        lambda _connection: time.sleep(20),
    ],
)
async def test_an_answer_that_does_not_end_is_given_up(talk: Callable[[socket.socket], object]) -> None:
    with raw_server(talk) as port:
        begun = time.monotonic()
        with pytest.raises(SinkError, match=r"does not finish an answer within 0\.5 s"):
            await send(f"http://127.0.0.1:{port}/?timeout=0.5", [event(0)])
        assert time.monotonic() - begun < 10


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    sent = [0]

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while True:
            sent[0] += connection.send(b"x" * 65536)

    with raw_server(flood) as port:
        await send(f"http://127.0.0.1:{port}/", [event(0)])
    assert sent[0] < 50 << 20


async def test_closing_does_not_wait_for_an_answer() -> None:
    with raw_server(lambda _connection: time.sleep(20)) as port:
        sink = open_sink(f"http://127.0.0.1:{port}/?timeout=20")
        task = asyncio.create_task(sink.send_batch([event(0)]))
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        await sink.aclose()
        with pytest.raises(SinkError, match="closed while it sent"):
            await task
        assert time.monotonic() - begun < 5


async def test_a_peer_that_refuses_everything_has_a_wrong_address(web: Peer, caplog: pytest.LogCaptureFixture) -> None:
    web.answers = [(400, {})] * 10_000
    async with await Spool.open(None, open_sinks([f"http://127.0.0.1:{web.port}/in"])) as spool:
        await spool.send_batch(events(30))
        await until(lambda: spool.status()[0].failures > 2)
        assert spool.dropped() == {}
        assert "has not taken any event yet" in spool.status()[0].error
        assert len([one for one in caplog.records if "is down" in one.message]) == 1
        web.answers.clear()
        assert await spool.drain(20)
    assert ids(web.events) == ids(events(30))


async def test_a_peer_that_turns_bad_costs_one_event_at_most(web: Peer) -> None:
    async with await Spool.open(None, open_sinks([f"http://127.0.0.1:{web.port}/in"])) as spool:
        await spool.send_batch(events(5))
        assert await spool.drain(10)
        web.answers = [(400, {})] * 10_000
        for number in range(5, 10):
            await spool.send_batch([event(number)])
            await asyncio.sleep(0.05)
        await until(lambda: spool.status()[0].state == "down")
        assert sum(spool.dropped().values()) <= 1
        web.answers.clear()
        assert await spool.drain(20)


@pytest.mark.parametrize("batch", [1, 20])
async def test_the_first_event_may_be_the_bad_one(web: Peer, batch: int) -> None:
    web.answers = [(422, {}), (422, {})] if batch > 1 else [(422, {})]
    with pytest.raises(PoisonError) as found:
        await send(f"http://127.0.0.1:{web.port}/?batch={batch}", events(4))
    assert list(found.value.reasons) == [event(0).id]
    assert ids(web.events) == ids(events(3, first=1))


@pytest.mark.parametrize("secret", ["whsec_a", "whsec_", "whsec_@@@@", "", "%20"])
def test_a_secret_that_cannot_sign_is_refused(secret: str) -> None:
    with pytest.raises(SinkAddressError, match="option secret") as found:
        open_sink(f"https://127.0.0.1/x?secret={secret}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://h/x?cafile=ca.pem", "option cafile is about TLS, which this scheme does not use"),
        ("https://h/x?template=a", "add format=text, slack, discord or teams"),
        ("https://h/x?format=text&template={colour}", "template has no field {colour}: there are sentence, time"),
        ("slack+https://h/x?format=discord", "contradicts the scheme"),
        ("https://h/x?token=a%0Ab", "option token is empty or holds characters that cannot be sent"),
        ("https://h/x?keyfile=k", "keyfile needs certfile"),
    ],
)
def test_options_that_cannot_work_are_refused(address: str, sentence: str) -> None:
    with pytest.raises(SinkAddressError) as found:
        open_sink(address)
    assert sentence in str(found.value)


@contextlib.contextmanager
def secure_server(context: ssl.SSLContext) -> Iterator[Any]:
    """The web server behind TLS."""
    with web_server() as peer:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=pass_on, args=(connection,), daemon=True).start()

        def pass_on(connection: socket.socket) -> None:
            with (
                contextlib.suppress(OSError),
                connection,
                context.wrap_socket(connection, server_side=True) as secure,
                socket.create_connection(("127.0.0.1", peer.port)) as inner,
            ):
                threading.Thread(target=pump, args=(secure, inner), daemon=True).start()
                pump(inner, secure)

        def pump(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield SimpleNamespace(events=peer.events, requests=peer.requests, port=listener.getsockname()[1])
        finally:
            listener.close()


@pytest.mark.parametrize(
    ("server", "options", "sentence"),
    [
        ({}, "cafile={ca}", ""),
        ({}, "insecure=true", ""),
        ({}, "", "give the certificate of its authority as cafile"),
        ({"host": "elsewhere.example"}, "cafile={ca}", "certificate for another host"),
        ({"expired": True}, "cafile={ca}", "certificate that has expired"),
        ({"wants_client": True}, "cafile={ca}", "wants a client certificate: give certfile and keyfile"),
        ({"wants_client": True}, "cafile={ca}&certfile={cert}&keyfile={key}&key_password=sesame", ""),
        (None, "cafile={ca}", "does not speak TLS at this port"),
    ],
)
async def test_tls_works_and_its_troubles_are_named(
    tmp_path: Path, server: dict | None, options: str, sentence: str
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("client")
    filled = options.format(ca=authority.certificate, cert=cert, key=authority.lock(key, "sesame"))
    with web_server() if server is None else secure_server(authority.server_context(**server)) as peer:
        address = f"https://127.0.0.1:{peer.port}/in?timeout=3&{filled}"
        if sentence:
            with pytest.raises(SinkError, match=sentence):
                await send(address, [event(0)])
        else:
            await send(address, events(2))
            assert ids(peer.events) == ids(events(2))
            assert peer.requests[0][0] == "/in"


async def test_http_typed_for_https_is_named(tmp_path: Path) -> None:
    named = pytest.raises(SinkError, match="speaks TLS at this port: write the scheme with s")
    with secure_server(Authority(tmp_path).server_context()) as peer, named:
        await send(f"http://127.0.0.1:{peer.port}/in", [event(0)])


@contextlib.contextmanager
def proxy_server() -> Iterator[tuple[int, list[tuple[str, str | None]]]]:
    """An HTTP proxy: the requests it got, as line and Proxy-Authorization."""
    seen: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            seen.append((self.requestline, self.headers["Proxy-Authorization"]))
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as inner:
                self.send_response(200)
                self.end_headers()
                threading.Thread(target=self.pump, args=(self.connection, inner), daemon=True).start()
                self.pump(inner, self.connection)

        def do_POST(self) -> None:
            seen.append((self.requestline, self.headers["Proxy-Authorization"]))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        @staticmethod
        def pump(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    with serving(server):
        yield server.server_address[1], seen


async def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Peer) -> None:
    authority = Authority(tmp_path)
    with proxy_server() as (port, seen), secure_server(authority.server_context()) as peer:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40w@127.0.0.1:{port}")
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "")
        await send(f"https://127.0.0.1:{peer.port}/in?cafile={authority.certificate}", [event(0)])
        assert ids(peer.events) == ids([event(0)])
        await send("http://inside.example/in?a=1", [event(0)])
        credentials = "Basic " + base64.b64encode(b"me:p@w").decode()
        assert seen == [
            (f"CONNECT 127.0.0.1:{peer.port} HTTP/1.0", None),
            ("POST http://inside.example/in?a=1 HTTP/1.1", credentials),
        ]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        await send(f"http://127.0.0.1:{web.port}/in", [event(0)])
        assert len(seen) == 2
        assert ids(web.events) == ids([event(0)])


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:hunter2@127.0.0.1:1080")
    with pytest.raises(SinkAddressError, match=r"HTTPS_PROXY=.* give http://HOST:PORT") as found:
        open_sink("https://hook.example/in")
    assert "hunter2" not in str(found.value)


@contextlib.contextmanager
def chat_server(kind: str) -> Iterator[Peer]:
    """Takes what the service takes, and answers 400 to everything else, as it does."""
    peer = Peer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            text = chat_text(kind, body)
            if text:
                peer.requests.append(text)
            self.send_response(200 if text else 400)
            self.end_headers()
            self.wfile.write(b"ok" if text else b"no_text")

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    peer.port = server.server_address[1]
    with serving(server):
        yield peer


def chat_text(kind: str, body: bytes) -> str:
    if kind == "text":
        return body.decode()
    found = json.loads(body)
    if kind == "teams":
        (attachment,) = found.get("attachments") or [None]
        return attachment["content"]["body"][0]["text"] if attachment else ""
    if kind == "discord":
        assert found.get("allowed_mentions", {"parse": []}) == {"parse": []}
        assert len(found.get("content", "")) <= 2000
    return found.get({"slack": "text", "discord": "content"}[kind], "")


@pytest.mark.parametrize("kind", ["slack", "discord", "teams"])
async def test_chats_get_sentences(kind: str) -> None:
    seen = event(1, kind=EventType.MATCH_BEGIN, query="a <red> car")
    away = event(2, kind=EventType.STREAM_OFFLINE)
    with chat_server(kind) as peer:
        await send(f"{kind}+http://127.0.0.1:{peer.port}/hook", [event(0), seen, event(3, kind=EventType.COVERAGE)])
        assert len(peer.requests) == 1, "track.begin and coverage are not for people"
        shown = "a &lt;red&gt; car" if kind == "slack" else "a <red> car"
        assert f"gate: {shown} seen, 2023-11-14 22:13:20 UTC" in peer.requests[0]
        await send(f"{kind}+http://127.0.0.1:{peer.port}/hook?types=stream", [seen, away])
        assert "the stream is not seen" in peer.requests[1]


async def test_many_events_are_one_message_and_the_rest_is_counted() -> None:
    with chat_server("discord") as peer:
        many = [event(number, kind=EventType.MATCH_BEGIN, query="x" * 300) for number in range(50)]
        await send(f"discord+http://127.0.0.1:{peer.port}/hook", many)
        assert len(peer.requests) == 1
        assert "more" in peer.requests[0].splitlines()[-1]


async def test_a_template_makes_the_line() -> None:
    with chat_server("text") as peer:
        address = f"http://127.0.0.1:{peer.port}/topic?format=text&template={{stream}}:+{{queries}}+{{score}}"
        await send(address, [event(0, kind=EventType.ZONE_ENTER, query="dog\x1b[2J")])
        assert peer.requests == ["gate: dog [2J 0.90"]


async def test_the_rate_is_kept_and_what_comes_meanwhile_is_one_message() -> None:
    with chat_server("slack") as peer:
        async with await Spool.open(None, open_sinks([f"slack+http://127.0.0.1:{peer.port}/hook?rate=60"])) as spool:
            begun = time.monotonic()
            for number in range(10):
                await spool.send_batch([event(number, kind=EventType.MATCH_BEGIN)])
                await asyncio.sleep(0.02)
            assert await spool.drain(10)
            assert time.monotonic() - begun >= 0.9
        assert len(peer.requests) <= 3
        assert sum(len(text.splitlines()) for text in peer.requests) == 10


async def test_a_chat_address_without_its_format_waits_and_says_so() -> None:
    with chat_server("slack") as peer:
        async with await Spool.open(None, open_sinks([f"http://127.0.0.1:{peer.port}/hook"])) as spool:
            await spool.send_batch(events(12))
            await until(lambda: spool.status()[0].state == "down")
            assert spool.dropped() == {}
            assert "check the address, its scheme and its format" in spool.status()[0].error


def test_the_hosts_of_chat_services_are_known() -> None:
    for address in ("https://hooks.slack.com/services/T/B/x", "https://discord.com/api/webhooks/1/x"):
        assert open_sink(address)._sink.is_chat  # type: ignore[attr-defined]


async def test_a_test_message_is_sent_when_it_is_asked_for(web: Peer) -> None:
    with chat_server("slack") as peer:
        sink = open_sink(f"slack+http://127.0.0.1:{peer.port}/hook")
        assert await sink.send_test(event(0)) == "took a test message (200 OK)"  # type: ignore[attr-defined]
        await sink.aclose()
        assert "test message" in peer.requests[0]
        sink = open_sink(f"http://127.0.0.1:{peer.port}/hook")
        with pytest.raises(SinkError, match="answers 400"):
            await sink.send_test(event(0))  # type: ignore[attr-defined]
        await sink.aclose()
    sink = open_sink(f"http://127.0.0.1:{web.port}/hook")
    await sink.send_test(event(0))  # type: ignore[attr-defined]
    await sink.aclose()
    assert ids(web.events) == ids([event(0)])


async def test_what_the_peer_says_shows_no_secret_and_no_escape_sequence() -> None:
    def talk(connection: socket.socket) -> None:
        body = b"\x1b[2Jtoken sesame12, Bearer sesame12"
        connection.sendall(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(talk) as port, pytest.raises(SinkError) as found:
        await send(f"http://127.0.0.1:{port}/?token=sesame12", [event(0)])
    assert "sesame" not in str(found.value)
    assert "\x1b" not in str(found.value)
