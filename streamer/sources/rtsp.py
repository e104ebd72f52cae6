"""RTSP beside FFmpeg's client (RFC 2326, RFC 7826): verified TLS, digest with SHA-256, refusals by their number.

FFmpeg's RTSP client accepts every certificate, knows only MD5, and reports most refusals as "4XX". `RtspRelay` stands
between it and such a camera: it proves its identity first, adds the authorisation to FFmpeg's requests, and passes the
rest on. FFmpeg never gets the password. RTP over UDP passes through it, too, where losses are to be noticed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from sinks.address import redact
from sinks.supervision import describe_error, start_thread
from sinks.tls import TlsOptions, TlsOptionsError, tls_cause
from streamer.sources.camera_link import CameraTrouble
from streamer.sources.rtp_relay import DatagramRelay

PORTS = {"rtsp": 554, "rtsps": 322}
_CHUNK = 2**16
_MOST_HEAD = 2**16
_HANDSHAKE_S = 5.0
_FILL_POLL_S = 0.01  # while packets are missing that may still come
_CLIENT_PORTS = re.compile(rb"client_port=(\d+)(?:-(\d+))?")
_SEND_S = 15.0
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "MD5": partial(hashlib.md5, usedforsecurity=False),
    "SHA-256": hashlib.sha256,
    "SHA-512-256": partial(hashlib.new, "sha512_256"),
}
_REFUSALS = {
    400: "it does not understand the request (400)",
    401: "user name or password is missing or wrong (401)",
    403: "access is forbidden (403)",
    404: "there is nothing at this path (404)",
    406: "it sends no description of the stream (406)",
    451: "it does not understand a parameter of the request (451)",
    453: "it has not enough bandwidth for another viewer (453): close one of its other viewers",
    454: "it does not know its own session any more (454)",
    455: "it does not allow this request now (455)",
    457: "it does not play from this position (457)",
    459: "it does not allow one request for all tracks (459)",
    461: "it refuses RTSP over TCP and over UDP (461)",
    503: "it is too busy at present (503)",
    551: "it wants an option that is not supported here (551)",
}


def needs_relay(address: str) -> bool:
    """Whether FFmpeg must not open this address itself."""
    return urlsplit(address).scheme.lower() == "rtsps"


class RtspLogin:
    """User and password of an address, and the answer to a camera's challenge."""

    def __init__(self, url: SplitResult) -> None:
        self._user = unquote(url.username or "")
        self._password = unquote(url.password or "")
        self.is_given = url.username is not None
        self._challenge: dict[str, str] = {}
        self._uses = 0

    @property
    def algorithm(self) -> str:
        """Of the challenge that is answered: `basic`, or the name of a digest's algorithm."""
        return self._challenge.get("algorithm", "")

    def challenge(self, headers: list[tuple[str, str]]) -> bool:
        """Takes the strongest challenge of an answer; False where there is none that can be met."""
        found: list[tuple[int, dict[str, str]]] = []
        for name, value in headers:
            if name != "www-authenticate":
                continue
            scheme, _, rest = value.partition(" ")
            fields = {key.lower(): text for key, text in re.findall(r'([\w-]+)="?([^",]*)"?', rest)}
            if scheme.lower() == "digest":
                fields["algorithm"] = fields.get("algorithm", "MD5").upper()
                if fields["algorithm"] in _HASHES:
                    found.append((1 + len(fields["algorithm"]), fields))
            elif scheme.lower() == "basic":
                found.append((0, {"algorithm": "basic"}))
        if found:
            self._challenge, self._uses = max(found, key=lambda one: one[0])[1], 0
        return bool(found)

    def answer(self, method: str, uri: str) -> str:
        """The Authorization header of a request, "" before any challenge."""
        fields = self._challenge
        if not fields or not self.is_given:
            return ""
        if fields["algorithm"] == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        make = _HASHES[fields["algorithm"]]

        def digest(text: str) -> str:
            return str(make(text.encode()).hexdigest())

        realm, nonce = fields.get("realm", ""), fields.get("nonce", "")
        known, asked = digest(f"{self._user}:{realm}:{self._password}"), digest(f"{method}:{uri}")
        parts = [f'username="{self._user}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{uri}"']
        if "auth" in fields.get("qop", "").split(","):
            self._uses += 1
            count, client = f"{self._uses:08x}", os.urandom(8).hex()
            response = digest(f"{known}:{nonce}:{count}:{client}:auth:{asked}")
            parts += ["qop=auth", f"nc={count}", f'cnonce="{client}"']
        else:
            response = digest(f"{known}:{nonce}:{asked}")
        parts += [f'response="{response}"', f"algorithm={fields['algorithm']}"]
        if "opaque" in fields:
            parts.append(f'opaque="{fields["opaque"]}"')
        return "Digest " + ", ".join(parts)


class RtspAnswer:
    """One answer of a camera: its status, its headers (names in lower case) and its bytes as they came."""

    def __init__(self, data: bytes, head_size: int) -> None:
        lines = data[:head_size].decode(errors="replace").split("\r\n")
        code = lines[0].split(" ")[1:2]
        self.data = data
        self.status = int(code[0]) if code and code[0].isdecimal() else 0
        self.headers = [
            (name.strip().lower(), value.strip())
            for name, colon, value in (line.partition(":") for line in lines[1:])
            if colon
        ]

    def header(self, name: str) -> str:
        return next((value for found, value in self.headers if found == name), "")


def split_message(data: bytes) -> int | None:
    """The size of the RTSP message or interleaved packet that `data` begins with; None where it is not whole yet."""
    if data[:1] == b"$":
        return 4 + int.from_bytes(data[2:4], "big") if len(data) >= 4 + int.from_bytes(data[2:4], "big") else None
    head = data.find(b"\r\n\r\n")
    if head < 0:
        if len(data) > _MOST_HEAD:
            raise CameraTrouble("it does not speak RTSP")
        return None
    length = re.search(rb"(?im)^content-length:\s*(\d{1,7})\s*$", data[:head].replace(b"\r", b""))
    size = head + 4 + (int(length[1]) if length else 0)
    return size if len(data) >= size else None


def connect(address: str, tls: TlsOptions, timeout_s: float) -> socket.socket:
    """A connection to a camera, verified where its address asks for TLS. Raises `CameraTrouble`."""
    url = urlsplit(address)
    scheme = url.scheme.lower()
    host, port = url.hostname or "", url.port or PORTS[scheme]
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror:
        raise CameraTrouble(f"the host {host} is not known", final=True) from None
    except ConnectionRefusedError:
        raise CameraTrouble(f"nothing listens at {host}:{port}", final=True) from None
    except OSError:
        raise CameraTrouble(f"{host}:{port} does not answer") from None
    if scheme != "rtsps":
        return connection
    connection.settimeout(min(timeout_s, _HANDSHAKE_S))
    try:
        return tls.context().wrap_socket(connection, server_hostname=host)
    except TlsOptionsError as error:
        connection.close()
        raise CameraTrouble(str(error), final=True) from None
    except OSError as error:
        connection.close()
        cause = tls_cause(error, has_certificate=tls.certfile is not None)
        if not cause:
            raise CameraTrouble(f"{host}:{port} does not answer over TLS: is it a port of plain rtsp?") from None
        raise CameraTrouble(f"{host}:{port} {cause}", final=True) from None


class RtspRelay:
    """Between FFmpeg and one camera, for one connection. `address` is what FFmpeg opens; a context manager.

    `trouble` is why the camera could not be reached or refused, once FFmpeg has failed.
    """

    def __init__(self, address: str, tls: TlsOptions, timeout_s: float) -> None:
        """Connects, and proves the camera's identity. Raises `CameraTrouble`."""
        url = urlsplit(address)
        self._camera = connect(address, tls, timeout_s)
        self._login = RtspLogin(url)
        self._origin = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        port = self._listener.getsockname()[1]
        self._local_origin = f"rtsp://127.0.0.1:{port}"
        query = f"?{url.query}" if url.query else ""
        self.address = f"{self._local_origin}{url.path}{query}"
        self.trouble: CameraTrouble | None = None
        self._closing = threading.Event()
        self._request = b""
        self._retried = False
        self._is_playing = False
        self._is_h265 = False
        self._datagrams: DatagramRelay | None = None
        self._thread = start_thread(self._run, name="rtsp relay", on_failure=self._note_failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        """Body of the thread."""
        client: socket.socket | None = None
        try:
            self._listener.settimeout(0.1)
            while client is None and not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    client, _ = self._listener.accept()
            self._listener.close()  # one connection and no more: others on this machine have no business here
            if client is not None:
                self._pump(client)
        except CameraTrouble as trouble:
            self.trouble = trouble
        except (OSError, ValueError) as error:
            self.trouble = CameraTrouble(f"the connection broke: {getattr(error, 'strerror', None) or error}".lower())
        finally:
            self._listener.close()
            self._camera.close()
            if self._datagrams is not None:
                self._datagrams.close()
            if client is not None:
                client.close()

    def _note_failure(self, failure: BaseException) -> None:
        self.trouble = CameraTrouble(f"unexpected {describe_error(failure)}")

    def _pump(self, client: socket.socket) -> None:
        from_client = from_camera = b""
        camera = self._camera
        camera.settimeout(_SEND_S)
        client.settimeout(_SEND_S)
        while not self._closing.is_set():
            pending = isinstance(camera, ssl.SSLSocket) and camera.pending() > 0
            ready = self._wait_ready(client, 0.0 if pending else 0.1)
            if pending:
                ready.append(camera)
            if client in ready:
                data = client.recv(_CHUNK)
                if not data:
                    return
                from_client += data
                while (size := split_message(from_client)) is not None:
                    self._forward(from_client[:size])
                    from_client = from_client[size:]
            if camera in ready:
                received = self._receive()
                if received is None:
                    continue
                data = received
                if not data:
                    return
                if self._is_playing:
                    client.sendall(data)
                    continue
                from_camera += data
                while not self._is_playing and (size := split_message(from_camera)) is not None:
                    message, from_camera = from_camera[:size], from_camera[size:]
                    self._return(message, client)
                if self._is_playing and from_camera:
                    client.sendall(from_camera)
                    from_camera = b""

    def _wait_ready(self, client: socket.socket, limit_s: float) -> list[socket.socket]:
        """The connections on which something has come; datagrams are passed on here."""
        datagrams = self._datagrams
        if datagrams is None:
            return select.select([client, self._camera], [], [], limit_s)[0]
        if datagrams.is_waiting:
            limit_s = min(limit_s, _FILL_POLL_S)
        ready: list[socket.socket] = select.select([client, self._camera, *datagrams.sockets], [], [], limit_s)[0]
        now_s = time.monotonic()
        datagrams.forward(ready, now_s)
        datagrams.fill(now_s)
        return ready

    def _receive(self) -> bytes | None:
        """What the camera has sent, b"" at its end; None where TLS had only messages of its own."""
        self._camera.setblocking(False)
        try:
            return self._camera.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        finally:
            self._camera.settimeout(_SEND_S)

    def _forward(self, message: bytes) -> None:
        if message[:1] == b"$":
            self._camera.sendall(message)
            return
        message = message.replace(self._local_origin.encode(), self._origin.encode())
        if message.startswith(b"SETUP "):
            message = self._ask_datagrams(message)
        self._request, self._retried = message, False
        self._camera.sendall(self._authorised(self._request))

    def _ask_datagrams(self, request: bytes) -> bytes:
        """The SETUP request with ports of this relay in the place of FFmpeg's, where it asks for UDP."""
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None
        ports = _CLIENT_PORTS.search(request)
        if ports is None:
            return request
        first = int(ports[1])
        self._datagrams = DatagramRelay(self._camera, (first, int(ports[2] or first + 1)), fills=self._is_h265)
        ours = "client_port={}-{}".format(*self._datagrams.camera_ports).encode()
        return request[: ports.start()] + ours + request[ports.end() :]

    def _authorised(self, request: bytes) -> bytes:
        line, _, rest = request.partition(b"\r\n")
        method, _, target = line.decode(errors="replace").partition(" ")
        given = self._login.answer(method, target.rpartition(" ")[0])
        return request if not given else b"\r\n".join((line, f"Authorization: {given}".encode(), rest))

    def _return(self, message: bytes, client: socket.socket) -> None:
        if message[:1] == b"$" or not message.startswith(b"RTSP/"):
            client.sendall(message)
            return
        head = message.find(b"\r\n\r\n")
        answer = RtspAnswer(message, head)
        if (
            answer.status == 401
            and not self._retried
            and self._login.is_given
            and self._login.challenge(answer.headers)
        ):
            self._retried = True
            self._camera.sendall(self._authorised(self._request))
            return
        if 300 <= answer.status < 400:
            raise _redirect(answer, self._origin)
        if answer.status >= 400:
            self.trouble = refusal(answer.status)
        self._is_playing = answer.status == 200 and self._request.startswith(b"PLAY ")
        if self._request.startswith(b"DESCRIBE "):
            self._is_h265 = b"h265/" in message.lower()
        transport = answer.header("transport")
        if self._datagrams is not None and self._request.startswith(b"SETUP ") and answer.status == 200 and transport:
            message = message.replace(transport.encode(), self._datagrams.answer_setup(transport).encode(), 1)
        client.sendall(message)


def refusal(status: int) -> CameraTrouble:
    """What a status of RTSP means."""
    cause = _REFUSALS.get(status, f"it refuses the request ({status})")
    if status in (401, 403):
        return CameraTrouble(cause, final=True, pause_s=10.0)
    return CameraTrouble(cause, final=status in (404, 461, 551))


def _redirect(answer: RtspAnswer, origin: str) -> CameraTrouble:
    place = answer.header("location")
    if origin.startswith("rtsps") and not place.startswith("rtsps"):
        return CameraTrouble(
            f"it redirects to an address without TLS, {redact(place)}: give that one if you trust the way to it",
            final=True,
        )
    return CameraTrouble(f"it has moved to {redact(place)}: give that address", final=True)


def find_refusal(address: str, tls: TlsOptions, timeout_s: float = 3.0) -> tuple[CameraTrouble | None, str]:
    """Asks a camera once more, as far as PLAY, after FFmpeg has failed: why it refuses, None where it does not.

    The second value is the algorithm of its authentication, "" without.
    """
    url = urlsplit(address)
    login = RtspLogin(url)
    target = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}" + (f"?{url.query}" if url.query else "")
    connection = connect(address, tls, timeout_s)
    sequence, session = 0, ""
    with connection:
        connection.settimeout(timeout_s)

        def ask(method: str, uri: str, *headers: str) -> RtspAnswer:
            nonlocal sequence
            for _ in range(2):
                sequence += 1
                lines = [f"{method} {uri} RTSP/1.0", f"CSeq: {sequence}", *headers]
                if session:
                    lines.append(f"Session: {session}")
                if given := login.answer(method, uri):
                    lines.append(f"Authorization: {given}")
                connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
                answer = _receive(connection, timeout_s)
                if answer.status != 401 or not login.is_given or not login.challenge(answer.headers):
                    break
            return answer

        try:
            described = ask("DESCRIBE", target, "Accept: application/sdp")
            if 300 <= described.status < 400:
                return _redirect(described, target), login.algorithm
            if described.status != 200:
                return refusal(described.status), login.algorithm
            base = described.header("content-base") or described.header("content-location") or target
            control = _video_control(described.data.decode(errors="replace"))
            track = control if "://" in control else f"{base.rstrip('/')}/{control}" if control else base
            for transport in ("RTP/AVP/TCP;unicast;interleaved=0-1", "RTP/AVP;unicast;client_port=50000-50001"):
                made = ask("SETUP", track, f"Transport: {transport}")
                if made.status != 461:
                    break
            if made.status != 200:
                return refusal(made.status), login.algorithm
            session = made.header("session").partition(";")[0]
            played = ask("PLAY", base)
            return (None if played.status == 200 else refusal(played.status)), login.algorithm
        except OSError:
            return None, login.algorithm


def _receive(connection: socket.socket, timeout_s: float) -> RtspAnswer:
    data, deadline = b"", time.monotonic() + timeout_s
    while True:
        while (size := split_message(data)) is not None:
            message, data = data[:size], data[size:]
            if message.startswith(b"RTSP/"):
                return RtspAnswer(message, message.find(b"\r\n\r\n"))
        if time.monotonic() > deadline:
            raise TimeoutError
        piece = connection.recv(_CHUNK)
        if not piece:
            raise ConnectionResetError
        data += piece


def _video_control(description: str) -> str:
    video = description.partition("m=video")[2].partition("\nm=")[0]
    found = re.search(r"(?m)^a=control:(\S+)", video)
    return found[1] if found else ""
