"""Peers of the network sinks on loopback: a web server, and the little of MQTT 5 and Redis that the sinks speak."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sinks.event import Event


class Peer:
    """What arrived, and how to answer the next requests."""

    def __init__(self) -> None:
        self.port = 0
        self.events: list[Event] = []
        self.requests: list[Any] = []
        self.answers: list[Any] = []  # used up one by one; empty: all is well
        self.welcome = 0  # how an MQTT broker answers a client that connects
        self.has_no_transactions = False  # a Redis user without the right to MULTI
        self.hangs_up_over = 0  # an MQTT broker that ends the connection on larger messages
        self.repeats_path = False  # a web server that says what it did not find, as many do
        self.lock = threading.Lock()

    def answer(self) -> Any:
        with self.lock:
            return self.answers.pop(0) if self.answers else None

    def take(self, raw: bytes) -> None:
        with self.lock:
            self.events.append(Event.from_json(raw))


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that does with each connection, after the request has come, what `talk` does; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(100_000)
                talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def drip(head: bytes, drop: bytes) -> Callable[[socket.socket], object]:
    """Sends without an end, slowly: no single wait is long."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    return talk


@contextlib.contextmanager
def web_server() -> Iterator[Peer]:
    """Takes CloudEvents by POST. An answer is (status, headers)."""
    peer = Peer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = peer.answer() or (204, {})
            peer.requests.append((self.path, dict(self.headers), body))
            if status < 300 and "ce-id" not in self.headers:
                found = json.loads(body)
                for one in found if isinstance(found, list) else [found]:
                    peer.take(json.dumps(one).encode())
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            said = f"Cannot POST {self.path}".encode() if peer.repeats_path and status >= 300 else b""
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *arguments: object) -> None:
            pass  # cut connections are what is tested

    server = Server(("127.0.0.1", 0), Handler)
    peer.port = server.server_address[1]
    with serving(server):
        yield peer


class _Handler(socketserver.StreamRequestHandler):
    server: Any

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.server.talk(self.rfile, self.wfile, self.server.peer)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


@contextlib.contextmanager
def _tcp_server(talk: Any) -> Iterator[Peer]:
    peer = Peer()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.talk, server.peer = talk, peer  # type: ignore[attr-defined]
    peer.port = server.server_address[1]
    with serving(server):
        yield peer


def mqtt_broker() -> Any:
    """MQTT 5: CONNECT, PUBLISH with QoS 1, PINGREQ, DISCONNECT. An answer is the reason code of a PUBACK, `welcome`
    that of a CONNACK.
    """
    return _tcp_server(_talk_mqtt)


def _talk_mqtt(reader: Any, writer: Any, peer: Peer) -> None:
    """https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html, chapters 2 and 3"""
    while True:
        head = _exactly(reader, 1)[0]
        body = _exactly(reader, _varint(reader))
        kind = head >> 4
        if kind == 1:
            peer.requests.append(body)
            writer.write(bytes([0x20, 3, 0, peer.welcome, 0]))
        elif kind == 3:
            length = struct.unpack(">H", body[:2])[0]
            topic = body[2 : 2 + length].decode()
            rest = body[2 + length :]
            mid, rest = rest[:2], rest[2:]
            payload = rest[1 + rest[0] :]
            code = peer.answer() or 0
            if peer.hangs_up_over and len(body) > peer.hangs_up_over:
                return
            peer.requests.append((topic, payload, bool(head & 1)))
            if code < 0x80 and payload.startswith(b"{") and not topic.endswith("/state"):
                peer.take(payload)
            writer.write(bytes([0x40, 3]) + mid + bytes([code]))
        elif kind == 12:
            writer.write(bytes([0xD0, 0]))
        elif kind == 14:
            return
        writer.flush()


def _varint(reader: Any) -> int:
    value = shift = 0
    while True:
        byte = _exactly(reader, 1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _exactly(reader: Any, count: int) -> bytes:
    data = reader.read(count)
    if len(data) < count:
        raise EOFError
    return bytes(data)


def redis_server() -> Any:
    """RESP: XADD in transactions, XLEN, TYPE, and what a client sends to introduce itself.

    An answer is the text of an error, which ends the transaction.
    """
    return _tcp_server(_talk_redis)


def _talk_redis(reader: Any, writer: Any, peer: Peer) -> None:
    """https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    held: list[bytes] | None = None
    aborted = False
    while line := reader.readline():
        words = []
        for _ in range(int(line[1:])):
            length = int(reader.readline()[1:])
            words.append(_exactly(reader, length + 2)[:-2])
        name = words[0].upper()
        if name == b"XADD":
            error = peer.answer()
            if error:
                aborted = True
                writer.write(f"-{error}\r\n".encode())
            elif held is not None:
                held.append(words[-1])
                writer.write(b"+QUEUED\r\n")
            else:
                peer.take(words[-1])
                writer.write(b"$3\r\n1-1\r\n")
        elif name == b"MULTI" and peer.has_no_transactions:
            writer.write(b"-NOPERM this user has no permissions to run the 'multi' command\r\n")
        elif name == b"MULTI":
            held, aborted = [], False
            writer.write(b"+OK\r\n")
        elif name == b"EXEC" and held is None:
            writer.write(b"-NOPERM this user has no permissions to run the 'exec' command\r\n")
        elif name == b"EXEC":
            if aborted:
                writer.write(b"-EXECABORT Transaction discarded because of previous errors.\r\n")
            else:
                for raw in held or ():
                    peer.take(raw)
                writer.write(b"*%d\r\n" % len(held or ()) + b"$3\r\n1-1\r\n" * len(held or ()))
            held = None
        elif name == b"TYPE":
            writer.write(b"+string\r\n" if words[1] == b"text" else b"+stream\r\n" if peer.events else b"+none\r\n")
        elif name == b"XLEN":
            writer.write(f":{len(peer.events)}\r\n".encode())
        elif name == b"HELLO":
            writer.write(b"-ERR unknown command\r\n")
        else:
            peer.requests.append(words)
            writer.write(b"+OK\r\n")
        writer.flush()
