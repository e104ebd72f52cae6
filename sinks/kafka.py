"""Events to Kafka: in order per stream, acknowledged by all in-sync replicas, through any trouble of the broker.

kafka-python 3 (see `net`, `producer/sender.py` there): one batch a partition is in flight, so retries keep the order;
a batch that failed for good lets the next one pass, which would break it. So the first failure stops the producer
in its own thread, and what was not acknowledged is sent again, in order, by a new one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sinks.address import Address
from sinks.event import Event, EventType
from sinks.formats import Encode, open_format
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.worker import Worker

with warnings.catch_warnings():
    # it reads its own resources in a way that Python 3.11 calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka
    from kafka import errors
    from kafka.net.inet import KafkaNetSocket

__all__ = [
    "DEFAULT_TOPIC",
    "Broker",
    "KafkaSink",
    "Topics",
    "errors",
    "kafka",
    "open_admin",
    "open_kafka",
    "parse_broker",
]

log = logging.getLogger("sinks.kafka")

DEFAULT_TOPIC = "groundstream.events"
_TIMEOUT_S = 20.0
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_STATE_TYPES = frozenset({EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE, EventType.COVERAGE})
_POISON = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.InvalidRecordError)
_OURS = frozenset({"bootstrap_servers", "key_serializer", "value_serializer", "partitioner", "kafka_client", "selector",
                   "metric_reporters", "socket_options", "ssl_context", "sasl_oauth_token_provider",
                   "transactional_id", "transaction_timeout_ms"})  # fmt: skip


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # the library has no types
    """Connects as the library does, and closes a socket that could not be connected, which 3.0.12 forgets to do."""

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


@dataclass(frozen=True)
class Topics:
    """Where each kind of event goes; an empty name sends it nowhere.

    `state` gets the newest news of every stream once more and is compacted: whoever comes late reads it first.
    `create` makes topics that are missing, with so many partitions and copies (-1: as the broker likes it).
    """

    events: str = DEFAULT_TOPIC
    detections: str = "groundstream.detections"
    state: str = "groundstream.state"
    create: bool = True
    partitions: int = -1
    replication: int = -1
    retention_ms: int | None = None

    def names(self) -> list[str]:
        return [name for name in dict.fromkeys((self.events, self.detections, self.state)) if name]

    def of(self, kind: EventType) -> list[str]:
        main = self.detections if kind is EventType.DETECTIONS else self.events
        wanted = (main, self.state) if kind in _STATE_TYPES else (main,)
        return [name for name in wanted if name]


@dataclass
class Broker:
    """How to reach a cluster: `servers` as "host:port", and kafka-python's settings by their names."""

    servers: list[str]
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    timeout_s: float = _TIMEOUT_S

    def __str__(self) -> str:
        return ",".join(self.servers)

    def probe(self) -> None:
        """Raises `SinkError` when no server takes a connection, or its TLS is not to be trusted.

        kafka-python tells neither apart, and waits for ever where TLS is answered by a port without it.
        """
        causes = []
        for server in self.servers:
            host, _, port = server.rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=self.timeout_s / 4) as connection:
                    if "SSL" in self.settings.get("security_protocol", ""):
                        self._tls().wrap_socket(connection, server_hostname=host.strip("[]")).close()
                return
            except ssl.SSLCertVerificationError as error:
                causes.append(f"{server} shows a certificate that is not trusted ({error.verify_message})")
            except ssl.SSLError as error:
                causes.append(f"{server} does not speak TLS as it should ({error.reason or error})")
            except OSError as error:
                causes.append(f"{server} does not answer ({error.strerror or error})")
        raise SinkError(f"no Kafka broker can be reached: {'; '.join(causes)}")

    def build(self, factory: Any, **settings: Any) -> Any:
        """A client of kafka-python. One that cannot be built leaves nothing open, which the library does not see to."""
        made: list[Any] = []

        def client(*arguments: Any, **configuration: Any) -> Any:
            made.append(factory.DEFAULT_CONFIG["kafka_client"](*arguments, **configuration))
            return made[-1]

        try:
            settings.setdefault("proxy_url", "direct://")
            return factory(bootstrap_servers=self.servers, kafka_client=client, **settings)
        except BaseException:
            for one in made:
                one.close()
            raise

    def _tls(self) -> ssl.SSLContext:
        settings = self.settings
        context = ssl.create_default_context(cafile=settings.get("ssl_cafile"))
        context.check_hostname = settings.get("ssl_check_hostname", True)
        if settings.get("ssl_certfile"):
            context.load_cert_chain(settings["ssl_certfile"], settings.get("ssl_keyfile"), settings.get("ssl_password"))
        return context


class KafkaSink:
    """The key is the stream, so order holds per stream; the value is what `encode` makes of the event."""

    def __init__(self, broker: Broker, topics: Topics, encode: Encode) -> None:
        self._broker = broker
        self._topics = topics
        self._topics_of = {kind: topics.of(kind) for kind in EventType}
        self._encode = encode
        self._worker = Worker("sink-kafka")
        self._producer: Any = None
        self._refused: dict[str, str] = {}
        self._closing = False
        quieten()

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._send, events)

    async def aclose(self) -> None:
        """What is on its way is given up: it was not acknowledged, so it is sent again some day."""
        self._closing = True
        producer = self._producer
        if producer is not None:
            producer._sender.force_close()  # wakes the worker's thread, which waits for acknowledgements
        await self._worker.aclose(last=self._abandon)

    # Everything below runs in the worker's thread.

    def _send(self, events: Sequence[Event]) -> None:
        if self._producer is None:
            self._producer = self._connect()
        pending: list[tuple[int, Any]] = []
        try:
            for index, event in enumerate(events):
                if event.id not in self._refused:
                    pending += [(index, future) for future in self._send_one(event)]
        except errors.KafkaError as error:
            self._abandon()
            raise SinkError(self._sentence(error)) from None
        self._wait(events, pending)
        if refused := {event.id: self._refused.pop(event.id) for event in events if event.id in self._refused}:
            raise PoisonError(f"Kafka refuses {len(refused)} events for good", refused)

    def _send_one(self, event: Event) -> list[Any]:
        key = event.data.stream.encode()
        value, headers = self._encode(event)
        timestamp_ms = event.data.clock.captured_ns // 1_000_000
        futures = []
        for topic in self._topics_of[event.type]:
            try:
                future = self._producer.send(topic, value, key=key, headers=headers, timestamp_ms=timestamp_ms)
            except errors.MessageSizeTooLargeError as error:
                self._refused[event.id] = f"{_told(error)}: raise max_request_size, and the topic's max.message.bytes"
                continue
            future.add_errback(_stop, self._producer._sender)
            futures.append(future)
        return futures

    def _wait(self, events: Sequence[Event], pending: list[tuple[int, Any]]) -> None:
        """Returns when everything is acknowledged; raises `SinkError` for what has to be sent again."""
        deadline = time.monotonic() + self._broker.timeout_s
        failed: tuple[int, Exception] | None = None
        for index, future in pending:
            if future.is_done and future.exception is None:
                continue
            try:
                future.get(max(0.0, deadline - time.monotonic()))
            except errors.KafkaError as error:
                if failed is None:
                    failed = index, error
                if isinstance(error, _POISON):
                    topics = ", ".join(self._topics_of[events[index].type])
                    self._refused[events[index].id] = f"topic {topics} refuses it ({_told(error)})"
                    failed = min(failed[0], index), error
                elif not future.is_done:
                    break
        if failed is not None:
            self._abandon()
            index, cause = failed
            raise SinkError(self._sentence(cause), delivered=index)

    def _connect(self) -> Any:
        _causes.clear()
        broker = self._broker
        broker.probe()
        timeout_ms = int(broker.timeout_s * 1000)
        settings = {
            "client_id": "groundstream",
            "enable_idempotence": True,
            "acks": "all",
            "compression_type": "lz4",
            "batch_size": 128 * 1024,
            "linger_ms": 5,
            "max_request_size": 8 << 20,
            "max_block_ms": timeout_ms,
            "bootstrap_timeout_ms": timeout_ms // 2,
            "request_timeout_ms": timeout_ms,
            "reconnect_backoff_max_ms": 1000,
            "metrics_enabled": False,
            # batches must not expire one by one, which would break the order: `_wait` gives up on all of them
            "delivery_timeout_ms": 24 * 3600 * 1000,
        } | broker.settings
        if settings["acks"] != "all" and "enable_idempotence" not in broker.settings:
            settings["enable_idempotence"] = False  # it needs all acknowledgements
        try:
            self._make_topics()
            return broker.build(kafka.KafkaProducer, **settings)
        except (errors.KafkaError, ssl.SSLError, ValueError, RuntimeError, AssertionError) as error:
            raise SinkError(self._sentence(error)) from None

    def _make_topics(self) -> None:
        if not self._topics.create:
            return
        topics = self._topics
        with open_admin(self._broker) as admin:
            known = set(admin.list_topics())
            for name in topics.names():
                if name in known:
                    continue
                configs = {} if topics.retention_ms is None else {"retention.ms": str(topics.retention_ms)}
                if name == topics.state:
                    configs = {"cleanup.policy": "compact"}
                options: dict[str, Any] = {"configs": configs}
                if topics.partitions > 0:
                    options["num_partitions"] = topics.partitions
                if topics.replication > 0:
                    options["replication_factor"] = topics.replication
                try:
                    admin.create_topics({name: options})
                except errors.TopicAlreadyExistsError:
                    continue
                log.info("topic %s was made at %s", name, self._broker)

    def _abandon(self) -> None:
        """Stop the producer at once: nothing that it still holds may arrive after what is sent again."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._sender.force_close()
        producer._sender.join(5)
        with contextlib.suppress(errors.KafkaError):
            producer.close(timeout=0)

    def _sentence(self, error: BaseException) -> str:
        where = f"Kafka at {self._broker}"
        cause = _causes.newest()
        topics = ", ".join(self._topics.names())
        if self._closing:
            return f"{where}: the sink was closed while it sent"
        if isinstance(error, errors.SaslAuthenticationFailedError) or "SaslAuthenticationFailed" in cause:
            return f"{where} refuses the user or the password: check them and sasl_mechanism"
        if isinstance(error, errors.UnsupportedSaslMechanismError) or "UnsupportedSaslMechanism" in cause:
            return f"{where} does not know this sasl_mechanism: try PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
        if isinstance(error, errors.AuthorizationError):
            return f"{where} does not let this user write to {topics}: ask for the right to write (and to create) them"
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return f"{where} has no topic {topics}: make it, or let the sink make it with create=true"
        if isinstance(error, errors.NotEnoughReplicasError | errors.NotEnoughReplicasAfterAppendError):
            return f"{where} has too few copies in sync to promise anything ({_told(error)})"
        if isinstance(error, _POISON):
            return f"{where} refuses an event for good ({_told(error)})"
        if isinstance(error, errors.KafkaTimeoutError):
            hint = f" ({cause})" if cause else ""
            return (
                f"{where} does not answer within {self._broker.timeout_s:g} s{hint}: is it up, does it ask for a user?"
            )
        return f"{where} failed ({_told(error)}): what was not acknowledged is sent again"


@contextlib.contextmanager
def open_admin(broker: Broker) -> Iterator[Any]:
    """kafka-python's admin client with those of the settings that it takes."""
    taken = kafka.KafkaAdminClient.DEFAULT_CONFIG
    timeout_ms = int(broker.timeout_s * 1000)
    settings = {"client_id": "groundstream", "request_timeout_ms": timeout_ms, "bootstrap_timeout_ms": timeout_ms // 2}
    settings |= {name: value for name, value in broker.settings.items() if name in taken}
    admin = broker.build(kafka.KafkaAdminClient, **settings)
    try:
        yield admin
    finally:
        admin.close()


def open_kafka(address: Address) -> KafkaSink:
    """`kafka://HOST:PORT[,HOST:PORT]/TOPIC?...`; `kafkas://` speaks TLS; USER:PASSWORD@ is SASL.

    Options: `detections`, `state` (topics, or `none`), `create`, `partitions`, `replication`, `retention` (seconds),
    `format` and those of the format, `timeout` (seconds without an acknowledgement until the sink counts as down),
    and every setting of kafka-python's producer by its name.
    """
    options = address.options
    events = address.path or DEFAULT_TOPIC
    stem = events.removesuffix(".events")
    retention_s = options.number("retention", -1, least=-1)
    topics = Topics(
        events,
        _topic(options.text("detections"), f"{stem}.detections"),
        _topic(options.text("state"), f"{stem}.state"),
        options.flag("create", True),
        options.whole("partitions", -1, least=-1),
        options.whole("replication", -1, least=-1),
        int(retention_s * 1000) if retention_s >= 0 else None,
    )
    for name in topics.names():
        if not _TOPIC.fullmatch(name):
            raise options.error(f"topic {name!r} cannot be: at most 249 of the characters a-z, A-Z, 0-9, '.', '_', '-'")
    encode = open_format(options)
    return KafkaSink(parse_broker(address, kafka.KafkaProducer.DEFAULT_CONFIG), topics, encode)


def parse_broker(address: Address, defaults: dict[str, Any]) -> Broker:
    """The servers and settings of an address; `defaults` are kafka-python's, by which words become numbers."""
    options = address.options
    timeout_s = options.number("timeout", _TIMEOUT_S, least=0.1)
    settings: dict[str, Any] = {}
    secure = address.scheme == "kafkas"
    if address.user is not None:
        settings["sasl_plain_username"] = address.user
        settings["sasl_plain_password"] = address.password or ""
        settings["sasl_mechanism"] = "PLAIN"
    settings["security_protocol"] = f"{'SASL_' * (address.user is not None)}{'SSL' if secure else 'PLAINTEXT'}"
    for name, default in defaults.items():
        if name in _OURS:
            continue
        text = options.text(name)
        if text is not None:
            settings[name] = _setting(address, name, text, default)
    options.finish()
    servers = [server if ":" in server else f"{server}:9092" for server in address.hosts.split(",") if server]
    if not servers:
        raise SinkAddressError(f"{address.public}: a host is missing: write {address.scheme}://HOST:PORT/TOPIC")
    return Broker(servers, settings, timeout_s)


def _setting(address: Address, name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        raise address.options.error(f"option {name}={text!r} must be true or false")
    if isinstance(default, int | float) and name != "acks":
        try:
            return float(text) if "." in text else int(text)
        except ValueError:
            raise address.options.error(f"option {name}={text!r} must be a number") from None
    if name == "acks":
        return "all" if text in {"all", "-1"} else int(text) if text in {"0", "1"} else _bad_acks(address, text)
    return None if name == "compression_type" and text == "none" else text


def _bad_acks(address: Address, text: str) -> None:
    raise address.options.error(f"option acks={text!r} must be all, 1 or 0")


def _topic(text: str | None, default: str) -> str:
    return default if text is None else "" if text == "none" else text


def _told(error: BaseException) -> str:
    said = str(error).rpartition("Error: ")[2]
    return said if said not in {"", "None"} else type(error).__name__


def _stop(sender: Any, _error: BaseException) -> None:
    """Called in the producer's own thread at the first failure, before it can send what comes after."""
    sender.force_close()


class _Causes(logging.Handler):
    """kafka-python hides the cause of a failed connection in its log, which floods otherwise: keep the newest."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._newest = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "ootstrap connection" in message or "uthentication" in message:
            self._newest = message.partition("failed: ")[2].partition(" (backoff")[0] or message
        log.debug("%s: %s", record.name, message)

    def newest(self) -> str:
        return self._newest

    def clear(self) -> None:
        self._newest = ""


_causes = _Causes()


def quieten() -> None:
    """kafka-python's own log goes to ours, at the level of debugging; its own debugging would tell passwords."""
    logger = logging.getLogger("kafka")
    logger.setLevel(logging.WARNING)
    if _causes not in logger.handlers:
        logger.addHandler(_causes)
        logger.propagate = False
