"""Work queue over a Kafka topic: a consumer group takes its records, and commits each one once its work is done."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from sinks.address import parse_address
from sinks.kafka.client import BrokerClient, close_sockets, errors, kafka, parse_broker, parse_tls, quieten_library
from sinks.sink import SinkAddressError, SinkError
from sinks.worker import SinkWorker

log = logging.getLogger("sinks.kafka")

_POLL_MS = 200
DEFAULT_GROUP = "groundstream-process"


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """One record of the topic; `where` is its place as topic/partition@offset."""

    value: bytes
    where: str
    partition: Any
    offset: int


class KafkaWorkQueue:
    """Records that the members of a consumer group share: each is taken by one member, and committed by `finish`.

    Records may be finished in any order; a partition is committed up to its first unfinished record. What a member
    had taken when it ended or lost a partition is taken again, by itself or another one.
    """

    def __init__(self, address: str) -> None:
        """`kafka://HOST:PORT/TOPIC?group=NAME&idle=SECONDS`. Raises `SinkAddressError`."""
        parsed = parse_address(address)
        self.public = parsed.public
        self.idle_s = parsed.options.number("idle", 0)
        """The queue counts as empty after this time without a record; 0: never."""
        self._group = parsed.options.text("group") or DEFAULT_GROUP
        self._broker = parse_broker(parsed, kafka.KafkaConsumer.DEFAULT_CONFIG, parse_tls(parsed))
        if not parsed.path:
            raise SinkAddressError(f"{self.public}: a topic is missing: write {parsed.scheme}://HOST:PORT/TOPIC")
        self._consumer = _GroupConsumer(self._broker, parsed.path, self._group)
        self._worker = SinkWorker("work-queue")
        self._since = time.monotonic()

    async def open(self) -> None:
        """Joins the group. Raises `SinkError`."""
        quieten_library()
        await self._call("open")

    @property
    def has_partitions(self) -> bool:
        """Whether the group has given this member a part of the topic."""
        return self._consumer.has_partitions

    async def take(self) -> WorkRecord | None:
        """Returns the next record, None where none came within a fifth of a second. Raises `SinkError`."""
        record: WorkRecord | None = await self._call("take")
        return record

    async def keep_membership(self) -> None:
        """Keeps the partitions while nothing is taken; call it every few seconds. Raises `SinkError`."""
        await self._call("keep_membership")

    async def finish(self, record: WorkRecord) -> None:
        """Marks the record as done and commits what is done without a gap. Raises `SinkError`."""
        await self._call("finish", record)

    async def aclose(self) -> None:
        """Leaves the group; unfinished records stay uncommitted."""
        await self._worker.aclose(last=self._consumer.close)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await self._worker.call(getattr(self._consumer, method), *arguments)
        except errors.KafkaError as error:
            raise SinkError(self._broker.sentence(self._broker.cause(error, self._since))) from None


class _GroupConsumer:
    """kafka-python's consumer as a member of a group; every method runs in the same thread."""

    def __init__(self, broker: BrokerClient, topic: str, group: str) -> None:
        self._broker = broker
        self._topic = topic
        self._group = group
        self._consumer: Any = None
        self.has_partitions = False
        self._fetched: deque[WorkRecord] = deque()
        self._unfinished: dict[Any, set[int]] = {}
        self._next: dict[Any, int] = {}  # of each partition, the offset behind the last record taken

    def open(self) -> None:
        self._broker.probe()
        self._consumer = self._broker.build(
            kafka.KafkaConsumer,
            group_id=self._group,
            client_id="groundstream",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=int(self._broker.timeout_s * 500),
            **self._broker.settings,
        )
        if not self._consumer.partitions_for_topic(self._topic):
            raise SinkError(f"Kafka at {self._broker} has no topic {self._topic}: check its name")
        self._consumer.subscribe([self._topic])

    def take(self) -> WorkRecord | None:
        if not self._fetched:
            self._consumer.resume(*self._consumer.paused())
            self._receive(_POLL_MS)
        return self._fetched.popleft() if self._fetched else None

    def keep_membership(self) -> None:
        # Only a poll shows the group that this member is alive; paused partitions give no records.
        self._consumer.pause(*self._consumer.assignment())
        self._receive(0)

    def finish(self, record: WorkRecord) -> None:
        partition = record.partition
        unfinished = self._unfinished.get(partition, set())
        unfinished.discard(record.offset)
        done = min(unfinished, default=self._next[partition])
        if partition not in self._consumer.assignment():
            return  # its new owner takes what is not committed again
        try:
            self._consumer.commit({partition: kafka.OffsetAndMetadata(done, "", -1)})
        except (errors.CommitFailedError, errors.RebalanceInProgressError, errors.IllegalGenerationError):
            log.warning(
                "%s was given to another member of group %s, which works on it again", record.where, self._group
            )

    def _receive(self, wait_ms: int) -> None:
        for partition, messages in self._consumer.poll(timeout_ms=wait_ms, max_records=1).items():
            for message in messages:
                unfinished = self._unfinished.setdefault(partition, set())
                if message.offset in unfinished:
                    continue  # the partition was away and came back
                unfinished.add(message.offset)
                self._next[partition] = max(self._next.get(partition, 0), message.offset + 1)
                where = f"{partition.topic}/{partition.partition}@{message.offset}"
                self._fetched.append(WorkRecord(message.value or b"", where, partition, message.offset))

        self.has_partitions = bool(self._consumer.assignment())

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            close_sockets(self._consumer)
