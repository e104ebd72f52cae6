"""Events to an MQTT 5 broker: QoS 1, a last will, and the newest state of every stream retained."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinks.address import SinkAddress
from sinks.event import EventType
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_RETAINED = frozenset({EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE, EventType.COVERAGE})
_KEEPALIVE_S = 15
_TOO_LARGE = 0x95
_REFUSED_FOR_GOOD = frozenset({0x90, 0x95, 0x99})  # topic name invalid, packet too large, payload format invalid


class MqttSink:
    """Topic `PREFIX/STREAM/KIND` (`groundstream/gate/track/begin`), the value is the event in JSON.

    `PREFIX/STREAM/state` is retained and holds the newest event about the stream itself. `PREFIX/status` is retained
    too: "online", and "offline" once we are gone, also by the last will. A PUBACK is the acknowledgement; at any
    failure the connection is given up, and a new one sends what was not acknowledged.
    """

    def __init__(
        self,
        host: str,
        port: int,
        prefix: str,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        client_id: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        self._where = f"MQTT at {host}:{port}"
        self._host, self._port = host, port
        self._prefix = prefix
        self._user, self._password = user, password
        self._tls = tls
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._worker = SinkWorker("sink-mqtt")
        self._client: Any = None
        self._changed = threading.Condition()
        self._connected: Any = None  # the reason code of the broker's answer
        self._largest = 0
        self._answers: dict[int, Any] = {}
        self._lost = ""

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._send, events)

    async def check(self) -> str:
        """Whether the broker lets us in; nothing is told there. Raises `SinkError`."""
        return await self._worker.call(self._look)

    async def aclose(self) -> None:
        with self._changed:
            self._lost = "the sink was closed"
            self._changed.notify_all()
        await self._worker.aclose(last=self._goodbye)

    # The worker's thread; callbacks come from paho's.

    def _look(self) -> str:
        if self._client is None:
            self._connect(in_silence=True)
            self._goodbye(in_silence=True)
        return "the broker lets us in; what may be written there, only an event would tell"

    def _send(self, events: Sequence[Event]) -> None:
        if self._client is None:
            self._connect()
        refused: dict[str, str] = {}
        waiting: list[tuple[int, int]] = []
        for index, event in enumerate(events):
            payload = event.to_json()
            if self._largest and len(payload) + 1024 > self._largest:
                refused[event.id] = f"{self._where} takes at most {self._largest} bytes, this event has {len(payload)}"
                continue
            kind = event.kind.replace(".", "/")
            waiting.append((index, self._publish(f"{_level(event.data.stream)}/{kind}", payload)))
            if event.type in _RETAINED:
                waiting.append((index, self._publish(f"{_level(event.data.stream)}/state", payload, retain=True)))
        for index, mid in waiting:
            code = self._wait_for(mid, index)
            if code in _REFUSED_FOR_GOOD:
                refused[events[index].id] = f"{self._where} refuses it: {code}"
            elif code >= 0x80:
                self._give_up()
                hint = ": this user may not write there" if code == 0x87 else ""
                raise SinkError(f"{self._where} refuses to take events ({code}){hint}", delivered=index)
        if refused:
            raise PoisonError(f"{self._where} refuses {len(refused)} events for good", refused)

    def _connect(self, *, in_silence: bool = False) -> None:
        """In silence: without a word to subscribers, and beside a client of our name that is connected."""
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        self._connected, self._answers, self._lost, self._largest = None, {}, "", 0
        client_id = "" if in_silence else self._client_id
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
        client.max_inflight_messages_set(200)
        client.connect_timeout = self._timeout_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if not in_silence:
            client.will_set(f"{self._prefix}/status", b"offline", qos=1, retain=True)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        try:
            client.connect(self._host, self._port, keepalive=_KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            raise SinkError(f"{self._where} shows a certificate that is not trusted ({error.verify_message})") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SinkError(f"{self._where} does not answer ({reason})") from None
        self._client = client
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected is not None or self._lost, self._timeout_s)
        code = self._connected
        if code is None or code.is_failure:
            self._give_up()
            said = f"refuses the connection ({code})" if code is not None else "does not answer as MQTT 5 should"
            raise SinkError(f"{self._where} {said}: check user, password and that it speaks MQTT 5")
        if not in_silence:
            self._publish("status", b"online", retain=True)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/cloudevents+json" if payload[:1] == b"{" else "text/plain"
        message = self._client.publish(f"{self._prefix}/{topic}", payload, qos=1, retain=retain, properties=properties)
        return int(message.mid)

    def _wait_for(self, mid: int, delivered: int) -> Any:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            self._changed.wait_for(lambda: mid in self._answers or self._lost, deadline - time.monotonic())
            if mid in self._answers:
                return self._answers.pop(mid)
            reason = self._lost or f"no acknowledgement within {self._timeout_s:g} s"
        self._give_up()
        raise SinkError(f"{self._where}: {reason}", delivered=delivered)

    def _give_up(self) -> None:
        """Break the connection without a goodbye, so that the last will is told."""
        client, self._client = self._client, None
        if client is None:
            return
        client.on_disconnect = client.on_publish = client.on_connect = None
        with contextlib.suppress(OSError):
            if (connection := client.socket()) is not None:
                connection.shutdown(2)
        client.disconnect()
        client.loop_stop()

    def _goodbye(self, *, in_silence: bool = False) -> None:
        client = self._client
        if client is None:
            return
        if not in_silence:
            with contextlib.suppress(ValueError, RuntimeError):
                client.publish(f"{self._prefix}/status", b"offline", qos=1, retain=True).wait_for_publish(1.0)
        client.on_disconnect = None
        client.disconnect()
        client.loop_stop()
        self._client = None

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: Any, properties: Any) -> None:
        with self._changed:
            self._connected = code
            self._largest = int(getattr(properties, "MaximumPacketSize", 0) or 0)
            self._changed.notify_all()

    def _on_disconnect(self, client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        with self._changed:
            self._lost = self._lost or f"the connection broke ({code})"
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: Any, _properties: Any) -> None:
        with self._changed:
            self._answers[mid] = code.value
            self._changed.notify_all()


def open_mqtt(address: SinkAddress) -> MqttSink:
    """`mqtt://USER:PASSWORD@HOST:PORT/PREFIX`; `mqtts://` speaks TLS. Options: `client_id`, `timeout`, `cafile`."""
    options = address.options
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write mqtt://HOST/PREFIX")
    try:
        import paho.mqtt.client  # noqa: F401  asked for here, so that its absence is told at once
    except ImportError:
        raise SinkAddressError("the mqtt sink needs paho-mqtt: pip install 'groundstream[mqtt]'") from None
    secure = address.scheme == "mqtts"
    cafile = options.text("cafile")
    client_id = options.text("client_id") or ""
    timeout_s = options.number("timeout", 10.0, least=0.1)
    options.finish()
    try:
        tls = ssl.create_default_context(cafile=cafile) if secure else None
    except OSError as error:
        raise options.error(f"option cafile={cafile!r} cannot be read ({error.strerror or error})") from None
    return MqttSink(
        address.host,
        address.port or (8883 if secure else 1883),
        address.path.strip("/") or "groundstream",
        user=address.user,
        password=address.password,
        tls=tls,
        client_id=client_id,
        timeout_s=timeout_s,
    )


def _level(stream: str) -> str:
    """A stream's name as one level of a topic: MQTT keeps /, + and # to itself."""
    return stream.translate({ord(character): "_" for character in "/+#\0"})
