"""Events to Kafka: in order per stream, acknowledged by all in-sync replicas, through any trouble of the broker.

kafka-python 3 (see `net`, `producer/sender.py` there): one batch a partition is in flight, so retries keep the order;
a batch that failed for good lets the next one pass, which would break it. So the first failure stops the producer
in its own thread, and what was not acknowledged is sent again, in order, by a new one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sinks.address import SinkAddress
from sinks.event import Event, EventType
from sinks.formats.choose import FRAME_FORMATS, Encode, open_format
from sinks.kafka.batches import MessageBatches
from sinks.kafka.client import (
    BrokerClient,
    close_sockets,
    error_text,
    errors,
    kafka,
    murmur2,
    open_admin,
    parse_broker,
    parse_tls,
    quieten_library,
)
from sinks.sink import PoisonError, SinkError
from sinks.stream_state import StreamStates
from sinks.worker import SinkWorker

__all__ = ["DEFAULT_TOPIC", "BrokerClient", "KafkaSink", "TopicChoice", "kafka", "open_admin", "open_kafka"]

log = logging.getLogger("sinks.kafka")

DEFAULT_TOPIC = "groundstream.events"
_CHECK_S = 8.0
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_STATE_TYPES = frozenset({EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE, EventType.COVERAGE})
_POISON = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.InvalidRecordError)
_CANNOT_BUILD = (errors.KafkaError, ssl.SSLError, ValueError, RuntimeError, AssertionError)
_MAY_WRITE = frozenset({"ALL", "WRITE"})


@dataclass(frozen=True)
class TopicChoice:
    """The topic of each kind of event; an empty name leaves the kind out.

    `state` is compacted and also gets the newest state of every stream, for consumers that start late.
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

    def options_of(self, name: str) -> dict[str, Any]:
        """How the topic is to be made, in kafka-python's words."""
        configs = {} if self.retention_ms is None else {"retention.ms": str(self.retention_ms)}
        options: dict[str, Any] = {"configs": {"cleanup.policy": "compact"} if name == self.state else configs}
        if self.partitions > 0:
            options["num_partitions"] = self.partitions
        if self.replication > 0:
            options["replication_factor"] = self.replication
        return options


class KafkaSink:
    """The key is the stream, so order holds per stream; the value is what `encode` makes of the event."""

    batch_events = 4096
    """What the sink gets unless its address chooses."""

    def __init__(self, broker: BrokerClient, topics: TopicChoice, encode: Encode) -> None:
        self._broker = broker
        self._topics = topics
        self._topics_of = {kind: topics.of(kind) for kind in EventType}
        self._encode = encode
        self._worker = SinkWorker("sink-kafka")
        self._producer: Any = None
        self._refused: dict[str, str] = {}
        self._forbidden: set[str] = set()  # topics that are missing and that the user may not make
        self._partitions: dict[tuple[str, bytes], int] = {}  # by topic and key
        self._since = 0.0  # when the present attempt began, monotonic
        self._closing = False
        self._states = StreamStates()
        quieten_library()

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._send_batch, events)

    async def check(self) -> str:
        """How things stand, without sending or making anything. Raises `SinkError` where events could not go there."""
        return await self._worker.call(self._check_cluster)

    async def aclose(self) -> None:
        """Gives up what is not acknowledged: the spool sends it again."""
        self._closing = True
        producer = self._producer
        if producer is not None:
            producer._sender.force_close()  # wakes the worker's thread, which waits for acknowledgements
        await self._worker.aclose(last=self._stop_producer)

    # Everything below runs in the worker's thread.

    def _send_batch(self, events: Sequence[Event]) -> None:
        self._since = time.monotonic()
        if self._producer is None:
            self._producer = self._open_producer()
        batches = MessageBatches(self._producer)
        try:
            for index, event in enumerate(events):
                if event.id not in self._refused:
                    self._put_message(batches, index, event)
        except errors.KafkaError as error:
            sentence = self._error_sentence(error)
            self._stop_producer()
            raise SinkError(sentence) from None
        deadline = time.monotonic() + self._broker.timeout_s
        batches.send(self._broker.timeout_s)
        self._raise_failures(events, dict(batches.failures(deadline)))
        if refused := {event.id: self._refused.pop(event.id) for event in events if event.id in self._refused}:
            raise PoisonError(f"Kafka refuses {len(refused)} events for good", refused)

    def _put_message(self, batches: MessageBatches, index: int, event: Event) -> None:
        key = event.data.stream.encode()
        value, headers = self._encode(event)
        is_state = self._states.is_state(event)
        message = event.data.clock.captured_ns // 1_000_000, key, value, headers
        for topic in self._topics_of[event.type]:
            if topic == self._topics.state and topic != self._topics.events and not is_state:
                continue
            place = self._partitions.get((topic, key))
            if place is None:
                place = self._partitions[topic, key] = self._partition_of(topic, key)
            try:
                batches.put(index, topic, place, message)
            except errors.MessageSizeTooLargeError as error:
                self._refused[event.id] = (
                    f"{error_text(error)}: raise max_request_size, and the topic's max.message.bytes"
                )

    def _partition_of(self, topic: str, key: bytes) -> int:
        """As the library chooses it, which is slow. What was chosen stays, also when partitions are added."""
        numbers = sorted(self._producer.partitions_for(topic))
        return int(numbers[(murmur2(key) & 0x7FFFFFFF) % len(numbers)])

    def _raise_failures(self, events: Sequence[Event], failures: dict[int, Exception]) -> None:
        """Raises `SinkError` when something has to be sent again; what will never be taken is left out then."""
        if not failures:
            return
        for index, error in failures.items():
            if isinstance(error, _POISON):
                topics = ", ".join(self._topics_of[events[index].type])
                self._refused[events[index].id] = f"topic {topics} refuses it ({error_text(error)})"
        causes = [failures[index] for index in sorted(failures)]
        # others were only given up because of it
        cause = next((one for one in causes if not isinstance(one, errors.IllegalStateError)), causes[0])
        sentence = self._error_sentence(cause)
        self._stop_producer()
        raise SinkError(sentence, delivered=min(failures))

    def _open_producer(self) -> Any:
        broker = self._broker
        broker.forget()
        broker.probe()
        timeout_ms = int(broker.timeout_s * 1000)
        settings = {
            "client_id": "groundstream",
            "enable_idempotence": True,
            "acks": "all",
            "compression_type": "gzip",  # every client reads it without another library
            "batch_size": 128 * 1024,
            "linger_ms": 100,  # nothing waits so long: what was given to it is flushed
            "max_request_size": 8 << 20,
            "max_block_ms": timeout_ms,
            "bootstrap_timeout_ms": timeout_ms // 2,
            "request_timeout_ms": timeout_ms,
            "reconnect_backoff_max_ms": 1000,
            "metrics_enabled": False,
            "allow_auto_create_topics": False,  # the broker would make them its own way, with its own settings
            # batches must not expire one by one, which would break the order: `_wait` gives up on all of them
            "delivery_timeout_ms": 24 * 3600 * 1000,
        } | broker.settings
        if settings["acks"] != "all" and "enable_idempotence" not in broker.settings:
            settings["enable_idempotence"] = False  # it needs all acknowledgements
        if not settings["enable_idempotence"]:
            settings.setdefault("max_in_flight_requests_per_connection", 1)  # else a retry may overtake
        try:
            self._make_topics()
            return broker.build(kafka.KafkaProducer, **settings)
        except _CANNOT_BUILD as error:
            raise SinkError(self._error_sentence(error)) from None

    def _make_topics(self) -> None:
        """Creates missing topics. Without the right to, an error comes with the first event for the topic."""
        self._forbidden = set()
        if not self._topics.create:
            return
        with open_admin(self._broker) as admin:
            known = set(admin.list_topics())
            missing = {name: self._topics.options_of(name) for name in self._topics.names() if name not in known}
            if not missing:
                return
            for made in admin.create_topics(missing, raise_errors=False)["topics"]:
                error = errors.for_code(made["error_code"])
                if error is errors.NoError:
                    log.info("topic %s was made at %s", made["name"], self._broker)
                elif issubclass(error, errors.AuthorizationError):
                    self._forbidden.add(made["name"])
                elif error is not errors.TopicAlreadyExistsError:
                    reason = made.get("error_message") or error.description
                    raise SinkError(
                        f"Kafka at {self._broker} cannot make topic {made['name']} ({reason}): check partitions, "
                        "replication and retention"
                    )

    def _check_cluster(self) -> str:
        self._since = time.monotonic()
        broker = replace(self._broker, timeout_s=min(self._broker.timeout_s, _CHECK_S))
        broker.probe()
        names = self._topics.names()
        try:
            with open_admin(broker) as admin:
                found = {one["name"]: one for one in admin.describe_topics(names)}
        except _CANNOT_BUILD as error:
            raise SinkError(broker.sentence(broker.cause(error, self._since))) from None
        self._check_format()
        missing = []
        for name in names:
            kind = errors.for_code(found[name]["error_code"])
            rights = found[name].get("authorized_operations")
            if kind is errors.NoError and rights is not None and not _MAY_WRITE.intersection(rights):
                kind = errors.TopicAuthorizationFailedError
            if kind is errors.UnknownTopicOrPartitionError and self._topics.create:
                missing.append(name)
            elif kind is not errors.NoError:
                raise SinkError(self._error_sentence(kind(name)))
        return "the cluster answers" + f", {', '.join(missing)} will be made" * bool(missing)

    def _check_format(self) -> None:
        """Raises `SinkError` where the encoder needs a schema registry that does not answer."""
        check = getattr(getattr(self._encode, "__self__", None), "check", None)
        if check is not None:
            check()

    def _stop_producer(self) -> None:
        """Stops the producer at once: nothing that it holds may arrive behind events that are sent again."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._sender.force_close()
        producer._sender.join(5)
        with contextlib.suppress(errors.KafkaError):
            producer.close(timeout=0)
        close_sockets(producer._sender._client)
        self._partitions.clear()

    def _error_sentence(self, error: Exception) -> str:
        where = f"Kafka at {self._broker}"
        if self._closing:
            return f"{where}: the sink was closed while it sent"
        error = self._broker.cause(error, self._since)
        if isinstance(error, errors.KafkaTimeoutError):
            error = self._find_leaderless() or error
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            name = str(error.args[0])
            if not self._topics.create:
                return f"{where} has no topic {name}: make it, or let the sink make it with create=true"
            if name in self._forbidden:
                return f"{where} has no topic {name} and does not let this user make it: have it made"
            return f"{where} has lost topic {name}: it is made again"
        if isinstance(error, _POISON):
            return f"{where} refuses an event for good ({error_text(error)})"
        return self._broker.sentence(error)

    def _find_leaderless(self) -> Exception | None:
        """Returns the error for a topic without leaders, for which the library only waits."""
        if self._producer is not None:
            cluster = self._producer._metadata
            for name in self._topics.names():
                if cluster.partitions_for_topic(name) and not cluster.available_partitions_for_topic(name):
                    found: Exception = errors.LeaderNotAvailableError(name)
                    return found
        return None


def open_kafka(address: SinkAddress) -> KafkaSink:
    """`kafka://HOST:PORT[,HOST:PORT]/TOPIC?...`; `kafkas://` speaks TLS; USER:PASSWORD@ is SASL.

    Options: `detections`, `state` (topics, or `none`), `create`, `partitions`, `replication`, `retention` (seconds),
    `format` and those of the format, `timeout` (seconds without an acknowledgement until the sink counts as down),
    and every setting of kafka-python's producer by its name.
    """
    options = address.options
    if options.peek("format") in FRAME_FORMATS:
        return _open_frames(address)
    events = address.path or DEFAULT_TOPIC
    stem = events.removesuffix(".events")
    retention_s = options.number("retention", -1, least=-1)
    topics = TopicChoice(
        events,
        _topic_name(options.text("detections"), f"{stem}.detections"),
        _topic_name(options.text("state"), f"{stem}.state"),
        options.flag("create", True),
        options.whole("partitions", -1, least=-1),
        options.whole("replication", -1, least=-1),
        int(retention_s * 1000) if retention_s >= 0 else None,
    )
    for name in topics.names():
        if not _TOPIC.fullmatch(name):
            hint = "write kafka://HOST:PORT/TOPIC; " if ":" in name else ""
            raise options.error(
                f"topic {name!r} cannot be: {hint}at most 249 of the characters a-z, A-Z, 0-9, '.', '_', '-'"
            )
    tls = parse_tls(address)
    encode = open_format(options, tls)
    return KafkaSink(parse_broker(address, kafka.KafkaProducer.DEFAULT_CONFIG, tls), topics, encode)


def _open_frames(address: SinkAddress) -> KafkaSink:
    """A sink of detections for other systems.

    Zone and line events of `format=nv` go to the topic of the option `incidents`, those of ONVIF to the one topic.
    """
    options = address.options
    kind = options.peek("format")
    topic = address.path or ("groundstream.onvif" if kind == "onvif" else "mdx-raw")
    incidents = _topic_name(options.text("incidents"), "") if kind == "nv" else ""
    topics = TopicChoice(
        topic if kind == "onvif" else incidents,
        topic,
        "",
        options.flag("create", True),
        options.whole("partitions", -1, least=-1),
        options.whole("replication", -1, least=-1),
    )
    tls = parse_tls(address)
    encode = open_format(options, tls)
    return KafkaSink(parse_broker(address, kafka.KafkaProducer.DEFAULT_CONFIG, tls), topics, encode)


def _topic_name(text: str | None, default: str) -> str:
    return default if text is None else "" if text == "none" else text
