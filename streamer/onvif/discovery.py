"""WS-Discovery of ONVIF devices: a SOAP probe by UDP multicast, and the answers to it.

Source: OASIS WS-Discovery 1.0 (namespace of April 2005) as the ONVIF Core Specification, section 7, uses it.
"""

from __future__ import annotations

import re
import select
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from streamer.errors import StreamerError

MULTICAST = ("239.255.255.250", 3702)
"""Address and port of WS-Discovery."""
_MAX_ANSWER = 65_535  # bytes: the longest UDP datagram
_MAX_DEVICES = 4_096
_REPEAT_S = 0.5  # a probe may be lost: it is sent again as often as the time allows, at most three times
_NAMESPACES = {
    "soap": "http://www.w3.org/2003/05/soap-envelope",
    "wsa": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "wsd": "http://schemas.xmlsoap.org/ws/2005/04/discovery",
}
_TYPES = (
    ("dn", "http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter"),
    ("tds", "http://www.onvif.org/ver10/device/wsdl", "Device"),
)
"""Some cameras answer only one of these types, so each has a probe of its own."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A device that answered a probe: service address, and the name, hardware and location that it gives itself."""

    address: str
    host: str
    name: str = ""
    hardware: str = ""
    location: str = ""


def discover_devices(timeout_s: float = 3.0, interfaces: Sequence[str] = ()) -> list[FoundDevice]:
    """Returns the ONVIF devices that answer within `timeout_s` seconds, each once, sorted by host.

    `interfaces` are the IPv4 addresses of this machine to probe from; all that can be found when empty. Raises
    `StreamerError` when no probe can be sent.
    """
    sockets = list(_open_sockets(interfaces or _own_addresses()))
    if not sockets:
        raise StreamerError(
            f"no probe can be sent from {', '.join(interfaces) or 'this machine'}: it has no such IPv4 address or no "
            "network; give the address of an interface with --interface"
            if interfaces
            else "no probe can be sent: this machine has no IPv4 network with multicast"
        )
    try:
        return sorted(_collect(sockets, timeout_s), key=lambda device: (device.host, device.address))
    finally:
        for each in sockets:
            each.close()


def _own_addresses() -> list[str]:
    """IPv4 addresses of this machine; the default route's first, loopback last."""
    found: dict[str, None] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(MULTICAST)  # sends nothing: chooses the route
            found[probe.getsockname()[0]] = None
        except OSError:
            pass
    try:
        for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
            found[str(info[4][0])] = None
    except OSError:
        pass
    found["127.0.0.1"] = None
    return list(found)


def _open_sockets(addresses: Sequence[str]) -> Iterator[socket.socket]:
    for address in addresses:
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            each.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            each.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            each.bind((address, 0))
            each.setblocking(False)
            _send_probes(each)
        except OSError:
            each.close()
        else:
            yield each


def _send_probes(each: socket.socket) -> None:
    for prefix, namespace, name in _TYPES:
        message = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<s:Envelope xmlns:s="{_NAMESPACES["soap"]}" xmlns:a="{_NAMESPACES["wsa"]}" '
            f'xmlns:d="{_NAMESPACES["wsd"]}"><s:Header>'
            f"<a:Action>{_NAMESPACES['wsd']}/Probe</a:Action><a:MessageID>uuid:{uuid.uuid4()}</a:MessageID>"
            "<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To></s:Header><s:Body><d:Probe>"
            f'<d:Types xmlns:{prefix}="{namespace}">{prefix}:{name}</d:Types>'
            "</d:Probe></s:Body></s:Envelope>"
        )
        each.sendto(message.encode(), MULTICAST)


def _collect(sockets: Sequence[socket.socket], timeout_s: float) -> list[FoundDevice]:
    found: dict[str, FoundDevice] = {}
    end = time.monotonic() + timeout_s
    repeats = [time.monotonic() + _REPEAT_S * (at + 1) for at in range(2)]
    while (left := end - time.monotonic()) > 0 and len(found) < _MAX_DEVICES:
        if repeats and time.monotonic() >= repeats[0]:
            repeats.pop(0)
            for each in sockets:
                try:
                    _send_probes(each)
                except OSError:
                    continue  # the interface went down: the others go on
        ready, _, _ = select.select(sockets, (), (), min(left, 0.1))
        for each in ready:
            try:
                data = each.recv(_MAX_ANSWER)
            except OSError:
                continue
            for device in read_answer(data):
                found.setdefault(device.address, device)
    return list(found.values())


def read_answer(data: bytes) -> list[FoundDevice]:
    """Returns the devices of one answer to a probe; none where it is no such answer.

    Anything on the network can send one, so a document type, which may hold entities that grow without bound, and
    everything malformed are ignored.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return []
    try:
        root = ElementTree.fromstring(data)  # without a document type nothing expands  # nosec B314
    except (ElementTree.ParseError, ValueError, LookupError):
        return []
    devices = []
    for match in root.iter(f"{{{_NAMESPACES['wsd']}}}ProbeMatch"):
        addresses = (match.findtext("wsd:XAddrs", "", _NAMESPACES) or "").split()
        scopes = (match.findtext("wsd:Scopes", "", _NAMESPACES) or "").split()
        if address := _choose_address(addresses):
            host = urlsplit(address).hostname or ""
            named = {part: _read_scope(scopes, part) for part in ("name", "hardware", "location")}
            devices.append(FoundDevice(address, host, **named))
    return devices


def _choose_address(addresses: Sequence[str]) -> str:
    """The first service address by http or https with an IPv4 host; another one where there is none."""
    usable = []
    for address in addresses:
        try:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                usable.append((not re.fullmatch(r"[\d.]+", parts.hostname), address))
        except ValueError:
            continue  # no address at all
    return min(usable, default=(True, ""), key=lambda pair: pair[0])[1]


def _read_scope(scopes: Sequence[str], part: str) -> str:
    prefix = f"onvif://www.onvif.org/{part}/"
    return next((unquote(scope[len(prefix) :]) for scope in scopes if scope.lower().startswith(prefix)), "")
