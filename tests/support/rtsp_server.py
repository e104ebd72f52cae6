"""An RTSP camera for tests: plays a video file in a loop on 127.0.0.1, and misbehaves on demand.

H.264 and H.265 (RFC 6184, RFC 7798), RTP over TCP (interleaved) and UDP, RTCP sender reports (RFC 3550), digest
authentication (RFC 2617). The server has a thread and an event loop of its own, so that a test can kill it at any
moment as a power cut would: connections are reset, nothing is said goodbye to.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import re
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import av

_REALM = "camera"
_RTP_CLOCK = 90_000
_MTU = 1400
_NTP_EPOCH = 2_208_988_800  # seconds from 1900 to 1970
_STATUS = {
    200: "OK",
    401: "Unauthorized",
    404: "Not Found",
    453: "Not Enough Bandwidth",
    454: "Session Not Found",
    461: "Unsupported Transport",
    455: "Method Not Valid in This State",
}


@dataclass
class Faults:
    """What the camera does wrong, from now on; change it at any time, from any thread."""

    stall: bool = False  # keeps the connection, sends no picture
    freeze_timestamps: bool = False  # sends the same key picture again and again, with the same timestamp
    still_timestamps: bool = False  # sends new pictures, but their timestamps no longer move
    corrupt: float = 0.0  # share of RTP packets with some bytes overwritten
    drop: float = 0.0  # share of RTP packets that are not sent
    drop_ends: float = 0.0  # share of pictures of several packets whose last packet is not sent
    reorder: float = 0.0  # share of RTP packets that are sent after the next one
    drop_pictures: float = 0.0  # share of whole pictures, key frames apart, that are not sent
    silent: bool = False  # accepts connections and never answers
    reports: bool = True  # RTCP sender reports
    clock_offset_s: float = 0.0  # how far the camera's own clock is off
    mutate: Callable[[bytes], bytes] | None = None  # changes each unit before it is packed
    timestamp_jump_s: float = 0.0  # added to the RTP timestamps


@dataclass(frozen=True)
class Media:
    """Encoded pictures of one file."""

    codec: str  # "h264" or "hevc"
    units: list[list[bytes]]  # the NAL units of each picture, in decoding order
    times_s: list[float]  # presentation time of each picture
    duration_s: float
    parameter_sets: list[bytes]

    @classmethod
    def load(cls, path: Path | str) -> Media:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            codec = stream.codec_context.name
            to_annex_b = av.BitStreamFilterContext(
                {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}[codec], stream
            )
            units, times_s = [], []
            for packet in container.demux(stream):
                for out in to_annex_b.filter(packet if packet.size else None):
                    assert out.pts is not None
                    units.append(_nal_units(bytes(out)))
                    times_s.append(float(out.pts * stream.time_base))
        step_s = (max(times_s) - min(times_s)) / max(len(times_s) - 1, 1)
        wanted = (7, 8) if codec == "h264" else (32, 33, 34)
        sets = [next(nal for unit in units for nal in unit if _nal_type(codec, nal) == kind) for kind in wanted]
        start_s = min(times_s)
        return cls(codec, units, [t - start_s for t in times_s], max(times_s) - start_s + step_s, sets)

    def sdp(self) -> str:
        encoded = [base64.b64encode(nal).decode() for nal in self.parameter_sets]
        if self.codec == "h264":
            profile = self.parameter_sets[0][1:4].hex()
            sets = f"packetization-mode=1;profile-level-id={profile};sprop-parameter-sets={','.join(encoded)}"
            form = f"H264/{_RTP_CLOCK}\r\na=fmtp:96 {sets}"
        else:
            form = (
                f"H265/{_RTP_CLOCK}\r\na=fmtp:96 sprop-vps={encoded[0]};sprop-sps={encoded[1]};sprop-pps={encoded[2]}"
            )
        return (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {form}\r\na=control:track0\r\n"
        )

    def payloads(self, unit: list[bytes]) -> list[bytes]:
        return [part for nal in unit for part in _fragments(self.codec, nal)]

    def is_key(self, unit: list[bytes]) -> bool:
        kinds = {_nal_type(self.codec, nal) for nal in unit}
        return bool(kinds & ({5} if self.codec == "h264" else set(range(16, 22))))


class RtspServer:
    """Serves `mounts` (name -> video files played one after the other, looping). A context manager.

    `sent` remembers when each picture last left: (mount, picture number in the mount) -> `time.time()`; `captured`
    every moment at which it was filmed, by a right clock. On a loaded machine it may leave much later.
    """

    def __init__(
        self,
        mounts: Mapping[str, Path | str | list[Path]],
        *,
        auth: tuple[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.faults = Faults()
        self.sent: dict[tuple[str, int], float] = {}
        self.captured: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self.port = 0
        self.sessions = 0  # number of PLAY requests
        self.refusals: dict[str, int] = {}  # status of SETUP, by transport or by method
        self.transports: list[str] = []  # what was set up
        self.requests: list[str] = []  # methods
        self.algorithm, self.qop = "MD5", False
        self.moved_to = ""  # answer to DESCRIBE
        self.host = host
        self._context = context
        self._auth = auth
        self._mounts: dict[str, list[Media]] = {}
        for name, paths in mounts.items():
            self.mount(name, paths)
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rtsp server", daemon=True)

    def capture_error_s(self, name: str, number: int, time_s: float) -> float:
        """How far a capture time is from the nearest moment at which this picture was filmed."""
        return min(abs(time_s - moment) for moment in self.captured[name, number])

    def mount(self, name: str, paths: Path | str | list[Path]) -> None:
        """Play something else from the next connection on."""
        self._mounts[name] = [Media.load(path) for path in (paths if isinstance(paths, list) else [paths])]

    def url(self, name: str = "cam", *, user: str | None = None, password: str = "") -> str:
        login = f"{user}:{password}@" if user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rtsp{'s' if self._context else ''}://{login}{host}:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._start())

    def kill(self) -> None:
        """Reset every connection and stop to listen, at once."""
        self._run(self._kill())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connection, self.host, self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _kill(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        self._server = None
        current = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not current]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        session = _Session(self, reader, writer)
        try:
            await session.serve()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            session.close()
            self._connections.discard(writer)
            writer.close()

    def check(self, nonce: str, method: str, header: str) -> bool:
        """Whether a request's Authorization header proves that its sender knows the password."""
        if self._auth is None:
            return True
        user, password = self._auth
        given = dict(re.findall(r'(\w+)="?([^",]*)"?', header[7:]))
        make = hashlib.sha256 if self.algorithm == "SHA-256" else partial(hashlib.md5, usedforsecurity=False)

        def digest(text: str) -> str:
            return make(text.encode()).hexdigest()

        known, asked = digest(f"{user}:{_REALM}:{password}"), digest(f"{method}:{given.get('uri', '')}")
        used = f":{given.get('nc')}:{given.get('cnonce')}:auth" if self.qop else ""
        return given.get("username") == user and given.get("response") == digest(f"{known}:{nonce}{used}:{asked}")

    def challenge(self, nonce: str) -> str:
        """The header that asks for a password."""
        extra = (', qop="auth"' if self.qop else "") + (
            f", algorithm={self.algorithm}" if self.algorithm != "MD5" else ""
        )
        return f'WWW-Authenticate: Digest realm="{_REALM}", nonce="{nonce}"{extra}'

    def media(self, name: str) -> list[Media] | None:
        return self._mounts.get(name)


@dataclass
class _Request:
    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def mount(self) -> str:
        path = self.url.partition("://")[2].partition("/")[2]
        return path.partition("/")[0].partition("?")[0]


def _transport(request: _Request) -> str:
    return "tcp" if "TCP" in request.headers.get("transport", "") else "udp"


class _Session:
    """One client's conversation."""

    def __init__(self, server: RtspServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._nonce = os.urandom(8).hex()
        self._id = os.urandom(4).hex()
        self._mount = ""
        self._sockets: list[asyncio.DatagramTransport] = []  # RTP and RTCP, where the client wants UDP
        self._client_port = 0
        self._player: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        while (request := await self._next_request()) is not None:
            while self._server.faults.silent:  # noqa: ASYNC110  (set from another thread)
                await asyncio.sleep(0.02)
            if request.method == "TEARDOWN":
                self._reply(request, 200)
                return
            await self._answer(request)
            await self._writer.drain()

    def close(self) -> None:
        if self._player is not None:
            self._player.cancel()
        for socket in self._sockets:
            socket.close()

    async def _next_request(self) -> _Request | None:
        first = await self._reader.readexactly(1)
        while first == b"$":  # RTCP from the client, interleaved
            length = int.from_bytes((await self._reader.readexactly(3))[1:], "big")
            await self._reader.readexactly(length)
            first = await self._reader.readexactly(1)
        lines = (first + await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, url, _ = lines[0].split(" ", 2)
        headers = {
            key.strip().lower(): value.strip()
            for key, colon, value in (line.partition(":") for line in lines[1:])
            if colon
        }
        await self._reader.readexactly(int(headers.get("content-length", 0)))
        return _Request(method, url, headers)

    async def _answer(self, request: _Request) -> None:
        self._server.requests.append(request.method)
        if request.method == "OPTIONS":
            self._reply(request, 200, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
        elif not self._server.check(self._nonce, request.method, request.headers.get("authorization", "")):
            self._reply(request, 401, self._server.challenge(self._nonce))
        elif request.method == "DESCRIBE" and self._server.moved_to:
            self._reply(request, 302, f"Location: {self._server.moved_to}")
        elif request.method == "DESCRIBE":
            media = self._server.media(request.mount)
            if media is None:
                self._reply(request, 404)
            else:
                self._reply(
                    request, 200, f"Content-Base: {request.url}/", "Content-Type: application/sdp", body=media[0].sdp()
                )
        elif request.method in self._server.refusals:
            self._reply(request, self._server.refusals[request.method])
        elif request.method == "SETUP" and _transport(request) in self._server.refusals:
            self._reply(request, self._server.refusals[_transport(request)])
        elif request.method == "SETUP":
            self._server.transports.append(_transport(request))
            self._mount = request.mount
            transport = await self._set_up(request.headers["transport"])
            self._reply(request, 200, f"Transport: {transport}", f"Session: {self._id};timeout=60")
        elif request.method == "PLAY":
            self._reply(request, 200, f"Session: {self._id}", "Range: npt=0-")
            self._player = asyncio.create_task(self._play())
        else:
            self._reply(request, 200, f"Session: {self._id}")

    async def _set_up(self, wanted: str) -> str:
        if "TCP" in wanted:
            return "RTP/AVP/TCP;unicast;interleaved=0-1"
        self._client_port = int(wanted.partition("client_port=")[2].partition("-")[0])
        loop = asyncio.get_running_loop()
        for _ in range(2):
            socket, _protocol = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=(self._server.host, 0)
            )
            self._sockets.append(socket)
        ports = "-".join(str(socket.get_extra_info("sockname")[1]) for socket in self._sockets)
        return f"RTP/AVP;unicast;client_port={self._client_port}-{self._client_port + 1};server_port={ports}"

    def _reply(self, request: _Request, code: int, *headers: str, body: str = "") -> None:
        lines = [
            f"RTSP/1.0 {code} {_STATUS.get(code, 'Refused')}",
            f"CSeq: {request.headers.get('cseq', '0')}",
            *headers,
        ]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _send(self, channel: int, packet: bytes) -> None:
        """Channel 0 is RTP, 1 is RTCP."""
        if self._sockets:
            self._sockets[channel].sendto(packet, (self._server.host, self._client_port + channel))
        else:
            self._writer.write(struct.pack(">cBH", b"$", channel, len(packet)) + packet)

    async def _play(self) -> None:
        media = self._server.media(self._mount)
        assert media is not None
        self._server.sessions += 1
        faults = self._server.faults
        ssrc, sequence, sent_packets, sent_bytes = random.getrandbits(32), random.getrandbits(16), 0, 0
        began, began_s, skipped_s = time.monotonic(), time.time(), 0.0
        reported = timestamp = None
        for number, clip, unit, at_s, due_s in _endless(media):
            while faults.stall:
                await asyncio.sleep(0.01)
                # The camera hangs: what it would have seen meanwhile never existed.
                skipped_s = max(skipped_s, time.monotonic() - began - due_s)
            at_s, due_s = at_s + skipped_s, due_s + skipped_s
            await asyncio.sleep(began + due_s - time.monotonic())
            frozen = faults.freeze_timestamps and timestamp is not None
            if frozen:
                unit = next(one for one in clip.units if clip.is_key(one))
            if not (frozen or faults.still_timestamps) or timestamp is None:
                timestamp = int((at_s + faults.timestamp_jump_s) * _RTP_CLOCK) & 0xFFFFFFFF
            if faults.reports and (reported is None or due_s - reported >= 1):
                reported = due_s
                # The report ties the camera's wall clock to the timestamp of this picture.
                now = began_s + at_s + faults.clock_offset_s + _NTP_EPOCH
                fraction = int(now % 1 * 2**32)
                report = (0x80, 200, 6, ssrc, int(now), fraction, timestamp, sent_packets, sent_bytes & 0xFFFFFFFF)
                self._send(1, struct.pack(">BBHIIIIII", *report))
            self._server.captured[self._mount, number].append(began_s + at_s)
            if faults.drop_pictures and not clip.is_key(unit) and random.random() < faults.drop_pictures:
                sequence = (sequence + 1) & 0xFFFF
                continue
            if faults.mutate is not None:
                unit = [changed for nal in unit if (changed := faults.mutate(nal))]
            payloads = clip.payloads(unit)
            cut = len(payloads) > 1 and random.random() < faults.drop_ends
            held: bytes | None = None
            for n, payload in enumerate(payloads):
                sequence = (sequence + 1) & 0xFFFF
                if random.random() < faults.drop or (cut and n == len(payloads) - 1):
                    continue
                marker = 0x80 if n == len(payloads) - 1 else 0
                header = struct.pack(">BBHII", 0x80, 96 | marker, sequence, timestamp, ssrc)
                packet = header + (_garbled(payload) if random.random() < faults.corrupt else payload)
                if held is None and n < len(payloads) - 1 and random.random() < faults.reorder:
                    held = packet
                    continue
                self._send(0, packet)
                if held is not None:
                    self._send(0, held)
                    held = None
                sent_packets += 1
                sent_bytes += len(payload)
            self._server.sent[self._mount, number] = time.time()
            if not self._sockets:
                await self._writer.drain()


def _endless(media: list[Media]) -> Iterator[tuple[int, Media, list[bytes], float, float]]:
    """Picture number (within one round), clip, NAL units, presentation and sending time (seconds), for ever."""
    base_s = 0.0
    while True:
        number = 0
        for clip in media:
            due_s = sorted(clip.times_s)  # B-pictures are sent before the pictures that are shown before them
            for n, unit in enumerate(clip.units):
                sets = clip.parameter_sets if n == 0 else []
                # Presentation order is sending order in cameras; where it is not, the number is that of the time.
                yield (
                    number + due_s.index(clip.times_s[n]),
                    clip,
                    sets + unit,
                    base_s + clip.times_s[n],
                    base_s + due_s[n],
                )
            number += len(clip.units)
            base_s += clip.duration_s


def _nal_units(annex_b: bytes) -> list[bytes]:
    parts = annex_b.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return [part.rstrip(b"\0") for part in parts if part.rstrip(b"\0")]


def _nal_type(codec: str, nal: bytes) -> int:
    return nal[0] & 31 if codec == "h264" else nal[0] >> 1 & 63


def _fragments(codec: str, nal: bytes) -> list[bytes]:
    """RTP payloads of one NAL unit: itself, or fragmentation units (FU-A of RFC 6184, FU of RFC 7798)."""
    if len(nal) <= _MTU:
        return [nal]
    kind = _nal_type(codec, nal)
    if codec == "h264":
        header, body = bytes([nal[0] & 0xE0 | 28]), nal[1:]
    else:
        header, body = bytes([nal[0] & 0x81 | 49 << 1, nal[1]]), nal[2:]
    parts = [body[i : i + _MTU] for i in range(0, len(body), _MTU)]
    last = len(parts) - 1
    return [header + bytes([(n == 0) << 7 | (n == last) << 6 | kind]) + part for n, part in enumerate(parts)]


def _garbled(payload: bytes) -> bytes:
    start = random.randrange(min(3, len(payload)), len(payload) + 1)
    length = min(40, len(payload) - start)
    return payload[:start] + os.urandom(length) + payload[start + length :]
