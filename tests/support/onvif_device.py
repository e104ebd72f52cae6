"""A small ONVIF camera: answers probes by multicast and the calls of the device and media services over HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.etree import ElementTree

SOAP = "http://www.w3.org/2003/05/soap-envelope"
DEVICE = "http://www.onvif.org/ver10/device/wsdl"
MEDIA = "http://www.onvif.org/ver10/media/wsdl"
SCHEMA = "http://www.onvif.org/ver10/schema"
SECURITY = "{http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd}"
UTILITY = "{http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd}"
PROFILES = (("main", "Main stream", "H264", 1920, 1080, 25), ("sub", "Sub stream", "H264", 640, 360, 10))


@dataclass
class OnvifDevice:
    """The camera; its clock is `clock_ahead` ahead of this machine's, and it checks accounts by that clock."""

    user: str = "admin"
    password: str = "pass"
    clock_ahead: timedelta = timedelta()
    profiles: tuple[tuple[str, str, str, int, int, int], ...] = PROFILES
    has_media: bool = True
    silent: bool = False
    inner_host: str = ""
    calls: list[str] = field(default_factory=list)

    def __enter__(self) -> OnvifDevice:
        handler = type("Handler", (_OnvifHandler,), {"device": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def base(self) -> str:
        return f"http://{self.inner_host or '127.0.0.1'}:{self.port}/onvif"

    def now(self) -> datetime:
        return datetime.now(UTC) + self.clock_ahead

    def accepts(self, envelope: ElementTree.Element) -> bool:
        token = envelope.find(f".//{SECURITY}UsernameToken")
        if token is None:
            return False
        nonce = base64.b64decode(token.findtext(f"{SECURITY}Nonce") or "")
        created = token.findtext(f"{UTILITY}Created") or ""
        wanted = base64.b64encode(hashlib.sha1(nonce + created.encode() + self.password.encode()).digest()).decode()
        moment = datetime.fromisoformat(created)
        is_fresh = abs((self.now() - moment).total_seconds()) < 60
        is_right = token.findtext(f"{SECURITY}Password") == wanted
        return is_fresh and is_right and token.findtext(f"{SECURITY}Username") == self.user

    def answer(self, operation: str, envelope: ElementTree.Element) -> tuple[int, str]:
        self.calls.append(operation)
        if operation == "GetSystemDateAndTime":
            now = self.now()
            return 200, (
                f'<d:GetSystemDateAndTimeResponse xmlns:d="{DEVICE}" xmlns:t="{SCHEMA}"><d:SystemDateAndTime>'
                "<t:DateTimeType>NTP</t:DateTimeType><t:DaylightSavings>false</t:DaylightSavings><t:UTCDateTime>"
                f"<t:Time><t:Hour>{now.hour}</t:Hour><t:Minute>{now.minute}</t:Minute><t:Second>{now.second}</t:Second>"
                f"</t:Time><t:Date><t:Year>{now.year}</t:Year><t:Month>{now.month}</t:Month><t:Day>{now.day}</t:Day>"
                "</t:Date></t:UTCDateTime></d:SystemDateAndTime></d:GetSystemDateAndTimeResponse>"
            )
        if not self.accepts(envelope):
            return 400, (
                f'<s:Fault xmlns:s="{SOAP}"><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value '
                'xmlns:ter="http://www.onvif.org/ver10/error">ter:NotAuthorized</s:Value></s:Subcode></s:Code>'
                '<s:Reason><s:Text xml:lang="en">Sender not Authorized</s:Text></s:Reason></s:Fault>'
            )
        return 200, getattr(self, f"_{operation}")(envelope)

    def _GetServices(self, _envelope: Any) -> str:
        services = [(DEVICE, "device_service"), *([(MEDIA, "media_service")] if self.has_media else [])]
        body = "".join(
            f"<d:Service><d:Namespace>{name}</d:Namespace><d:XAddr>{self.base}/{path}</d:XAddr><d:Version>"
            '<t:Major xmlns:t="http://www.onvif.org/ver10/schema">2</t:Major>'
            '<t:Minor xmlns:t="http://www.onvif.org/ver10/schema">60</t:Minor></d:Version></d:Service>'
            for name, path in services
        )
        return f'<d:GetServicesResponse xmlns:d="{DEVICE}">{body}</d:GetServicesResponse>'

    def _GetCapabilities(self, _envelope: Any) -> str:
        media = (
            f"<t:Media><t:XAddr>{self.base}/media_service</t:XAddr><t:StreamingCapabilities/></t:Media>"
            if self.has_media
            else ""
        )
        return (
            f'<d:GetCapabilitiesResponse xmlns:d="{DEVICE}" xmlns:t="{SCHEMA}"><d:Capabilities><t:Device><t:XAddr>'
            f"{self.base}/device_service</t:XAddr></t:Device>{media}</d:Capabilities></d:GetCapabilitiesResponse>"
        )

    def _GetDeviceInformation(self, _envelope: Any) -> str:
        return (
            f'<d:GetDeviceInformationResponse xmlns:d="{DEVICE}"><d:Manufacturer>Acme</d:Manufacturer>'
            "<d:Model>Dome 4</d:Model><d:FirmwareVersion>1.2</d:FirmwareVersion><d:SerialNumber>7</d:SerialNumber>"
            "<d:HardwareId>8</d:HardwareId></d:GetDeviceInformationResponse>"
        )

    def _GetProfiles(self, _envelope: Any) -> str:
        body = "".join(
            f'<m:Profiles token="{token}" fixed="true"><t:Name>{name}</t:Name><t:VideoEncoderConfiguration '
            f'token="e{token}"><t:Name>e</t:Name><t:UseCount>1</t:UseCount><t:Encoding>{codec}</t:Encoding>'
            f"<t:Resolution><t:Width>{width}</t:Width><t:Height>{height}</t:Height></t:Resolution>"
            f"<t:Quality>4</t:Quality><t:RateControl><t:FrameRateLimit>{fps}</t:FrameRateLimit>"
            "<t:EncodingInterval>1</t:EncodingInterval><t:BitrateLimit>4096</t:BitrateLimit></t:RateControl>"
            "<t:Multicast><t:Address><t:Type>IPv4</t:Type></t:Address><t:Port>0</t:Port><t:TTL>1</t:TTL>"
            "<t:AutoStart>false</t:AutoStart></t:Multicast><t:SessionTimeout>PT60S</t:SessionTimeout>"
            "</t:VideoEncoderConfiguration></m:Profiles>"
            for token, name, codec, width, height, fps in self.profiles
        )
        sound = '<m:Profiles token="sound" fixed="true"><t:Name>Sound</t:Name></m:Profiles>'
        return f'<m:GetProfilesResponse xmlns:m="{MEDIA}" xmlns:t="{SCHEMA}">{sound}{body}</m:GetProfilesResponse>'

    def _GetStreamUri(self, envelope: ElementTree.Element) -> str:
        token = envelope.findtext(f".//{{{MEDIA}}}ProfileToken")
        return (
            f'<m:GetStreamUriResponse xmlns:m="{MEDIA}" xmlns:t="{SCHEMA}"><m:MediaUri><t:Uri>rtsp://127.0.0.1:8554/'
            f"{token}?unicast=true&amp;proto=Onvif</t:Uri><t:InvalidAfterConnect>false</t:InvalidAfterConnect>"
            "<t:InvalidAfterReboot>false</t:InvalidAfterReboot><t:Timeout>PT0S</t:Timeout></m:MediaUri>"
            "</m:GetStreamUriResponse>"
        )


class _OnvifHandler(BaseHTTPRequestHandler):
    device: OnvifDevice

    def do_POST(self) -> None:
        envelope = ElementTree.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        if self.device.silent:
            threading.Event().wait(5)
            return
        body = envelope.find(f"{{{SOAP}}}Body")
        assert body is not None
        status, answer = self.device.answer(body[0].tag.rpartition("}")[2], envelope)
        data = f'<?xml version="1.0"?><s:Envelope xmlns:s="{SOAP}"><s:Body>{answer}</s:Body></s:Envelope>'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/soap+xml; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: Any) -> None:
        pass


class ProbeResponder:
    """Answers WS-Discovery probes on the loopback interface: to those for `kind` alone, with the given bodies."""

    def __init__(self, bodies: list[bytes], kind: str = "NetworkVideoTransmitter") -> None:
        self._bodies, self._kind = bodies, kind.encode()
        self.probes = 0

    def __enter__(self) -> ProbeResponder:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("239.255.255.250", 3702))
        group = struct.pack("4s4s", socket.inet_aton("239.255.255.250"), socket.inet_aton("127.0.0.1"))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        self._socket.settimeout(0.1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                data, sender = self._socket.recvfrom(65_535)
            except TimeoutError:
                continue
            self.probes += 1
            if self._kind in data and re.search(rb"MessageID>uuid:[-0-9a-f]{36}<", data):
                for body in self._bodies:
                    self._socket.sendto(body, sender)

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()


def probe_answer(addresses: str, scopes: str = "") -> bytes:
    return (
        f'<?xml version="1.0"?><s:Envelope xmlns:s="{SOAP}" '
        'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><s:Body><d:ProbeMatches><d:ProbeMatch>'
        f"<d:Scopes>{scopes}</d:Scopes><d:XAddrs>{addresses}</d:XAddrs></d:ProbeMatch></d:ProbeMatches>"
        "</s:Body></s:Envelope>"
    ).encode()
