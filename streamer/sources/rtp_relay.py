"""RTP over UDP between a camera and FFmpeg (RFC 3550), which makes the loss of H.265 packets visible to the decoder.

FFmpeg's depacketiser joins what is left of a picture, and its H.265 decoder does not notice that the end of a slice is
missing. In the place of each lost packet, FFmpeg gets a slice that cannot be decoded, so the decoder reports the
picture as damaged. Packets that arrive are passed on unchanged, in the order of their arrival.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterable

_REORDER_S = 0.05  # how late a packet may come; FFmpeg itself waits for 0.1 s
_MOST_MISSING = 200  # a larger leap of the numbers is a new beginning
_HEADER = struct.Struct(">BBHII")
_MARKER = 0x80
_TRIES = 20
# A slice of H.265 (7.3.6.1) that is not the first of its picture and names a picture parameter set above the last
# possible one: NAL unit header 02 01, then first_slice_segment_in_pic_flag 0 and slice_pic_parameter_set_id 64.
_UNDECODABLE = bytes((0x02, 0x01, 0x01, 0x07, 0x80))


class LossFiller:
    """Follows the sequence numbers of one RTP stream, and makes a packet for each one that is lost."""

    def __init__(self) -> None:
        self.lost = 0
        self._last: tuple[int, int, int, int] | None = None  # newest packet: second byte, number, timestamp, source
        self._missing: dict[int, tuple[float, tuple[int, int, int, int]]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether packets are missing that may still come."""
        return bool(self._missing)

    def note(self, packet: bytes, now_s: float) -> None:
        """A packet was received at `now_s` (seconds, monotonic)."""
        if len(packet) < _HEADER.size or packet[0] >> 6 != 2:
            return
        _, kind, number, timestamp, source = _HEADER.unpack_from(packet)
        newest, last = (kind, number, timestamp, source), self._last
        if last is None or source != last[3]:
            self._missing.clear()
            self._last = newest
            return
        ahead = (number - last[1]) & 0xFFFF
        if ahead >= 0x8000 or ahead == 0:
            self._missing.pop(number, None)  # late, or twice
            return
        if ahead <= _MOST_MISSING:
            for step in range(1, ahead):
                self._missing[(last[1] + step) & 0xFFFF] = (now_s, last)
        self._last = newest

    def fill(self, now_s: float) -> list[bytes]:
        """Packets in the place of those that have not come in time.

        They belong to the picture that was being received; where its last packet had come, nothing is known to be
        missing of it, and a picture that is lost whole is noticed by the next one.
        """
        overdue = [number for number, (since_s, _) in self._missing.items() if now_s - since_s >= _REORDER_S]
        packets = []
        for number in overdue:
            _, (kind, _, timestamp, source) = self._missing.pop(number)
            self.lost += 1
            if not kind & _MARKER:
                packets.append(_HEADER.pack(0x80, kind, number, timestamp, source) + _UNDECODABLE)
        return packets


class DatagramRelay:
    """Two pairs of UDP sockets, RTP and RTCP: one towards the camera, one towards FFmpeg on this machine."""

    def __init__(self, camera: socket.socket, client_ports: tuple[int, int], *, fills: bool) -> None:
        """`camera` is the RTSP connection; with `fills`, lost packets are replaced. Raises `OSError`."""
        peer = camera.getpeername()
        self._camera_host, self._scope = peer[0], peer[2:]
        self._hosts = {self._camera_host}
        family = socket.AF_INET6 if ":" in self._camera_host else socket.AF_INET
        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # other hosts' packets are ignored  # nosec B104
        self._far, self.camera_ports = _bind_pair(everywhere, family)
        try:
            self._near, self.local_ports = _bind_pair("127.0.0.1", socket.AF_INET)
        except OSError:
            for one in self._far:
                one.close()
            raise
        self._client_ports = client_ports
        self._server_ports: tuple[int, int] | None = None
        self._filler = LossFiller() if fills else None

    @property
    def sockets(self) -> list[socket.socket]:
        return [*self._far, *self._near]

    @property
    def is_waiting(self) -> bool:
        """Whether `fill` may have something to do soon."""
        return self._filler is not None and self._filler.is_waiting

    def answer_setup(self, transport: str) -> str:
        """Takes the camera's ports from its Transport header; returns the header for FFmpeg."""
        if source := re.search(r"source=([^;\s]+)", transport):
            self._hosts.add(source[1])
        if ports := re.search(r"server_port=(\d+)(?:-(\d+))?", transport):
            first = int(ports[1])
            self._server_ports = first, int(ports[2] or first + 1)
        kept = [part for part in transport.split(";") if not re.match(r"\s*(?:source|destination|\w+_port)=", part)]
        return ";".join(
            [
                *kept,
                "client_port={}-{}".format(*self._client_ports),
                "server_port={}-{}".format(*self.local_ports),
            ]
        )

    def forward(self, ready: Iterable[object], now_s: float) -> None:
        """Passes on what has come."""
        for channel in (0, 1):
            if self._far[channel] in ready:
                for data, sender in _received(self._far[channel]):
                    if sender[0].partition("%")[0] not in self._hosts:
                        continue
                    if channel == 0 and self._filler is not None:
                        self._filler.note(data, now_s)
                    self._send_near(channel, data)
            if self._near[channel] in ready:
                for data, _ in _received(self._near[channel]):
                    if self._server_ports is not None:
                        with contextlib.suppress(OSError):  # unreachable for now: as if it was lost
                            self._far[channel].sendto(
                                data, (self._camera_host, self._server_ports[channel], *self._scope)
                            )

    def fill(self, now_s: float) -> None:
        """Sends packets in the place of lost ones."""
        if self._filler is not None:
            for packet in self._filler.fill(now_s):
                self._send_near(0, packet)

    def close(self) -> None:
        for one in self.sockets:
            one.close()

    def _send_near(self, channel: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # FFmpeg has closed its port
            self._near[channel].sendto(data, ("127.0.0.1", self._client_ports[channel]))


def _received(one: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    found: list[tuple[bytes, tuple[str, int]]] = []
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        while len(found) < 1000:
            found.append(one.recvfrom(2**16))
    return found


def _bind_pair(host: str, family: socket.AddressFamily) -> tuple[list[socket.socket], tuple[int, int]]:
    """Two sockets at neighbouring ports, the first even, as RTP has it. Raises `OSError`."""
    for attempt in range(_TRIES):
        first, second = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
        try:
            first.bind((host, 0))
            port = first.getsockname()[1]
            if port % 2 == 0:
                second.bind((host, port + 1))
                for one in (first, second):
                    one.setblocking(False)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**21)
                return [first, second], (port, port + 1)
        except OSError:
            if attempt == _TRIES - 1:
                first.close()
                second.close()
                raise
        first.close()
        second.close()
    raise OSError("no pair of free UDP ports")
