"""Events to an MQTT 5 broker: QoS 1, a last will, and the newest state of every stream retained."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinks.address import SinkAddress
from sinks.frigate import FrigateStyle
from sinks.home_assistant import HomeAssistantStyle
from sinks.mqtt_styles import CloudEventStyle, MqttMessage, MqttStyle
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.tls import TlsOptions, TlsOptionsError, find_tls_trouble, tls_cause
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_KEEPALIVE_S = 15
_TOO_LARGE = 0x95
_NOT_AUTHORIZED = 0x87
_REFUSED_FOR_GOOD = frozenset({0x90, _TOO_LARGE, 0x99})  # also: topic name invalid, payload format invalid
_CAREFUL_EVENTS = 256
_BREAKS_TO_BLAME = 2


class _ConnectionBroken(SinkError):
    """The broker ended the connection while it had messages of ours."""


class MqttSink:
    """Publishes what its style makes of each event. A PUBACK is the acknowledgement.

    At any failure the connection is given up, and a new one sends what was not acknowledged. A broker that ends the
    connection each time it is sent a certain event alone, but takes other messages, will never take that event.
    """

    def __init__(
        self,
        host: str,
        port: int,
        style: MqttStyle,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        has_certificate: bool = False,
        client_id: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._where = f"MQTT at {shown}:{port}"
        self._host, self._port = host, port
        self._style = style
        self._user, self._password = user, password
        self._tls, self._has_certificate = tls, has_certificate
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._worker = SinkWorker("sink-mqtt")
        self._client: Any = None
        self._changed = threading.Condition()
        self._connected: Any = None  # the reason code of the broker's answer
        self._largest = 0
        self._answers: dict[int, Any] = {}
        self._lost = ""
        self._is_asked = False  # to send the welcome again
        self._careful = 0  # events that are sent one by one, after a broken connection
        self._breaks: dict[str, int] = {}  # by event: connections that ended on it when it was sent alone

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Publishes the events; see `Sink.send_batch`."""
        await self._worker.call(self._send_events, events)

    async def check(self) -> str:
        """Connects without publishing anything. Raises `SinkError`."""
        return await self._worker.call(self._check_broker)

    async def aclose(self) -> None:
        """Publishes that the sink has stopped and ends the connection."""
        with self._changed:
            self._lost = "the sink was closed"
            self._changed.notify_all()
        await self._worker.aclose(last=self._disconnect)

    # The worker's thread; callbacks come from paho's.

    def _check_broker(self) -> str:
        if self._client is None:
            self._connect(silent=True)
            self._disconnect(silent=True)
        return "the broker accepts the connection; whether it lets this user write, only an event shows"

    def _send_events(self, events: Sequence[Event]) -> None:
        refused: dict[str, str] = {}
        start = 0
        while start < len(events):
            group = events[start : start + 1] if self._careful else events[start:]
            try:
                refused |= self._send_group(group)
            except SinkError as error:
                culprit = group[error.delivered].id if error.delivered < len(group) else ""
                if self._is_to_blame(error, culprit, alone=len(group) == 1):
                    refused[culprit] = f"{self._where} ends the connection on it: it may be too large for the broker"
                    start += 1
                    continue
                # what was refused comes again and is refused again: it is not in the dead letters yet
                first_refused = next((n for n, event in enumerate(events) if event.id in refused), len(events))
                error.delivered = min(start + error.delivered, first_refused)
                raise
            start += len(group)
            self._careful = max(0, self._careful - len(group))
        if refused:
            for event_id in refused:
                self._breaks.pop(event_id, None)
            raise PoisonError(f"{self._where} refuses {len(refused)} events for good", refused)

    def _is_to_blame(self, error: SinkError, event_id: str, *, alone: bool) -> bool:
        if not isinstance(error, _ConnectionBroken):
            return False
        self._careful = _CAREFUL_EVENTS
        if not alone:
            return False
        if len(self._breaks) > _CAREFUL_EVENTS:
            self._breaks.clear()
        self._breaks[event_id] = self._breaks.get(event_id, 0) + 1
        return self._breaks[event_id] >= _BREAKS_TO_BLAME

    def _send_group(self, events: Sequence[Event]) -> dict[str, str]:
        """Returns the ids of events that are refused for good, with the reasons."""
        if self._client is None:
            self._connect()
        if self._is_asked:
            self._is_asked = False
            self._publish_all(self._style.welcome())
        refused: dict[str, str] = {}
        waiting: list[tuple[int, int]] = []
        for index, event in enumerate(events):
            messages = [message for message in self._style.messages_of(event) if self._is_taken(message)]
            size = max((_packet_size(message) for message in messages), default=0)
            if self._largest and size > self._largest:
                refused[event.id] = f"{self._where} takes at most {self._largest} bytes, this event needs {size}"
                continue
            waiting += [(index, self._publish(message)) for message in messages]
        for index, mid in waiting:
            code = self._wait_for(mid, index)
            if code in _REFUSED_FOR_GOOD:
                refused[events[index].id] = f"{self._where} refuses it (reason code 0x{code:02x})"
            elif code >= 0x80:
                self._give_up()
                hint = ": this user may not write there" if code == _NOT_AUTHORIZED else ""
                raise SinkError(
                    f"{self._where} refuses to take events (reason code 0x{code:02x}){hint}", delivered=index
                )
        return refused

    def _is_taken(self, message: MqttMessage) -> bool:
        return not (message.may_be_left_out and self._largest and _packet_size(message) > self._largest)

    def _connect(self, *, silent: bool = False) -> None:
        """`silent`: publishes nothing, and leaves a client of our name that is connected alone."""
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        self._connected, self._answers, self._lost, self._largest = None, {}, "", 0
        client_id = "" if silent else self._client_id
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
        client.max_inflight_messages_set(200)
        client.connect_timeout = self._timeout_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        if not silent:
            client.will_set(self._style.status_topic, b"offline", qos=1, retain=True)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        try:
            client.connect(self._host, self._port, keepalive=_KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from None
        self._client = client
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected is not None or self._lost, self._timeout_s)
        code = self._connected
        if code is None or code.is_failure:
            self._give_up()
            if code is not None:
                raise SinkError(f"{self._where} refuses the connection ({code}): check user and password")
            cause = self._tls_trouble() or "does not answer as MQTT 5 should: check that it speaks MQTT 5"
            raise SinkError(f"{self._where} {cause}")
        if not silent:
            self._greet()

    def _greet(self) -> None:
        """Publishes the status and waits for the answer, which shows that the broker takes messages."""
        mid = self._publish(MqttMessage(self._style.status_topic, b"online", retain=True))
        self._wait_for(mid, 0)
        self._publish_all(self._style.welcome())
        if self._style.announce_topic:
            self._client.subscribe(self._style.announce_topic, qos=1)

    def _unreachable(self, error: OSError | ValueError) -> SinkError:
        cause = tls_cause(error, has_certificate=self._has_certificate)
        if not cause and isinstance(error, ssl.SSLError | ConnectionResetError):
            cause = self._tls_trouble()
        reason = getattr(error, "strerror", None) or error
        return SinkError(f"{self._where} {cause or f'does not answer ({reason})'}")

    def _tls_trouble(self) -> str:
        wait_s = min(3.0, self._timeout_s)
        return find_tls_trouble(
            self._host, self._port, self._tls, has_certificate=self._has_certificate, timeout_s=wait_s
        )

    def _publish_all(self, messages: Sequence[MqttMessage]) -> None:
        for mid in [self._publish(message) for message in messages]:
            self._wait_for(mid, 0)

    def _publish(self, message: MqttMessage) -> int:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = message.content_type
        sent = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain, properties=properties)
        return int(sent.mid)

    def _wait_for(self, mid: int, delivered: int) -> Any:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            self._changed.wait_for(lambda: mid in self._answers or self._lost, deadline - time.monotonic())
            if mid in self._answers:
                return self._answers.pop(mid)
            lost = self._lost
        self._give_up()
        if lost:
            raise _ConnectionBroken(f"{self._where}: {lost}", delivered=delivered)
        raise SinkError(f"{self._where}: no acknowledgement within {self._timeout_s:g} s", delivered=delivered)

    def _give_up(self) -> None:
        """Breaks the connection without a goodbye, so that the broker publishes the last will."""
        client, self._client = self._client, None
        if client is None:
            return
        client.on_disconnect = client.on_publish = client.on_connect = client.on_message = None
        with contextlib.suppress(OSError):
            if (connection := client.socket()) is not None:
                connection.shutdown(2)
        client.disconnect()
        client.loop_stop()

    def _disconnect(self, *, silent: bool = False) -> None:
        client = self._client
        if client is None:
            return
        if not silent:
            text = self._style.stopped_text.encode()
            with contextlib.suppress(ValueError, RuntimeError):
                client.publish(self._style.status_topic, text, qos=1, retain=True).wait_for_publish(1.0)
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

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self._is_asked = self._is_asked or (message.payload == b"online" and not message.retain)


def open_mqtt(address: SinkAddress) -> MqttSink:
    """Opens `mqtt://USER:PASSWORD@HOST:PORT/PREFIX`; `mqtts://` uses TLS.

    Options: `client_id`, `timeout` (seconds), the TLS options, `style=frigate` for topics and payloads as Frigate's,
    and `discovery=true` for entities in Home Assistant (or the prefix of its discovery topics).
    """
    options = address.options
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write mqtt://HOST/PREFIX")
    try:
        import paho.mqtt.client  # noqa: F401  imported here, so that its absence is reported at start
    except ImportError:
        raise SinkAddressError("the mqtt sink needs paho-mqtt: pip install 'groundstream[mqtt]'") from None
    secure = address.scheme == "mqtts"
    client_id = options.text("client_id") or ""
    timeout_s = options.number("timeout", 10.0, least=0.1)
    tls = TlsOptions.from_options(options, secure=secure)
    style = _open_style(address)
    options.finish()
    try:
        context = tls.context() if secure else None
    except TlsOptionsError as error:
        raise options.error(str(error)) from None
    return MqttSink(
        address.host,
        address.port or (8883 if secure else 1883),
        style,
        user=address.user,
        password=address.password,
        tls=context,
        has_certificate=tls.certfile is not None,
        client_id=client_id,
        timeout_s=timeout_s,
    )


def _open_style(address: SinkAddress) -> MqttStyle:
    options = address.options
    prefix = address.path.strip("/")
    if set(prefix) & set("+#\0"):
        raise options.error(f"topic prefix {prefix!r} holds +, # or a NUL: MQTT keeps them to itself")
    style = options.choice("style", ("cloudevents", "frigate"), "cloudevents")
    discovery = options.text("discovery")
    if style == "frigate":
        if discovery is not None:
            raise options.error("option discovery goes with the topics of CloudEvents: leave style=frigate out")
        return FrigateStyle(prefix or "frigate")
    if discovery is None or discovery.lower() in {"false", "no", "0"}:
        return CloudEventStyle(prefix or "groundstream")
    name = "homeassistant" if discovery.lower() in {"true", "yes", "1"} else discovery.strip("/")
    return HomeAssistantStyle(prefix or "groundstream", name)


def _packet_size(message: MqttMessage) -> int:
    """Bytes of the PUBLISH packet with QoS 1. MQTT 5.0, section 3.3."""
    properties = 1 + 2 + len(message.content_type.encode())
    rest = 2 + len(message.topic.encode()) + 2 + _varint_size(properties) + properties + len(message.payload)
    return 1 + _varint_size(rest) + rest


def _varint_size(value: int) -> int:
    return 1 if value < 128 else 2 if value < 16384 else 3 if value < 2097152 else 4
