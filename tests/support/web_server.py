"""A web server for tests: any answer at any path, with authentication, redirects, TLS and IPv6 on demand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from tests.support.clips import draw

_REALM, _NONCE = "camera", "6b8b4567"


@dataclass
class Answer:
    """One answer: a body with its length, or pieces that are sent as they come, without one."""

    body: bytes | Callable[[], Iterable[bytes]] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    ranges: bool = False


class WebServer:
    """Serves `answers` (path -> answer) on loopback; `asked` remembers each request as (path, Authorization).

    `login` is (user, password); `scheme` `basic` or the name of a digest's algorithm. A context manager.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer | Callable[[], Answer]],
        *,
        login: tuple[str, str] | None = None,
        scheme: str = "basic",
        certificate: tuple[Path, Path] | None = None,
        client_authority: Path | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, str]] = []
        self._login = login
        self._scheme = scheme
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    server._answer(self)

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, *_: object) -> None: ...

        self._server = Server((host, 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            if client_authority is not None:
                context.load_verify_locations(client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self._place = f"[{host}]" if ":" in host else host
        self._prefix = "https" if certificate else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def url(self, path: str, *, login: str = "", host: str | None = None) -> str:
        return f"{self._prefix}://{login + '@' if login else ''}{host or self._place}:{self.port}{path}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        given = request.headers.get("Authorization", "")
        self.asked.append((path, given))
        if self._login is not None and not self._proves(given):
            request.send_response(401)
            challenge = f'Basic realm="{_REALM}"'
            if self._scheme != "basic":
                challenge = f'Digest realm="{_REALM}", nonce="{_NONCE}", qop="auth", algorithm={self._scheme}'
            request.send_header("WWW-Authenticate", challenge)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        found = self.answers.get(path, Answer(status=404))
        answer = found() if callable(found) else found
        body = answer.body
        first, end, is_part = 0, None, False
        if answer.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))):
            first, end, is_part = int(asked[1]), int(asked[2]) + 1 if asked[2] else None, True
        request.send_response(206 if is_part else answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        if isinstance(body, bytes):
            if answer.ranges:
                request.send_header("Accept-Ranges", "bytes")
                request.send_header("Content-Range", f"bytes {first}-{(end or len(body)) - 1}/{len(body)}")
            request.send_header("Content-Length", str(len(body[first:end])))
        request.send_header("Connection", "close")
        request.end_headers()
        for piece in [body[first:end]] if isinstance(body, bytes) else body():
            request.wfile.write(piece)

    def _proves(self, given: str) -> bool:
        assert self._login is not None
        user, password = self._login
        if self._scheme == "basic":
            return given == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        algorithm = hashlib.sha256 if self._scheme == "SHA-256" else hashlib.md5

        def digest(text: str) -> str:
            return algorithm(text.encode()).hexdigest()

        values = dict(re.findall(r'(\w+)="?([^",]*)"?', given))
        known, asked = digest(f"{user}:{_REALM}:{password}"), digest(f"GET:{values.get('uri', '')}")
        rest = f"{values.get('nc', '')}:{values.get('cnonce', '')}:{values.get('qop', '')}"
        return values.get("response") == digest(f"{known}:{_NONCE}:{rest}:{asked}")


def jpeg(number: int) -> bytes:
    """A numbered picture as JPEG."""
    return cv2.imencode(".jpg", draw(number))[1].tobytes()


def multipart(
    numbers: Iterable[int], *, pause_s: float = 0.03, kind: str = "image/jpeg", first: bool = True, length: bool = True
) -> Answer:
    """A camera's endless answer; without `first` the boundary follows each part, without `length` parts have none."""

    def pieces() -> Iterator[bytes]:
        for number in numbers:
            picture = jpeg(number)
            head = f"Content-Type: {kind}\r\n".encode()
            if length:
                head += f"Content-Length: {len(picture)}\r\n".encode()
            part = head + b"\r\n" + picture + b"\r\n"
            yield b"--next\r\n" + part if first else part + b"--next\r\n"
            time.sleep(pause_s)

    return Answer(pieces, {"Content-Type": "multipart/x-mixed-replace; boundary=next"})
