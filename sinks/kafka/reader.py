"""Reader of events in Kafka, alone or as a member of a group."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any

from sinks.address import SinkAddress
from sinks.event import Event
from sinks.formats.choose import Decode, open_decoder
from sinks.kafka.client import BrokerClient, close_sockets, errors, kafka, parse_broker, parse_tls, quieten_library
from sinks.kafka.sink import DEFAULT_TOPIC
from sinks.sink import SinkAddressError, SinkError
from sinks.subscribe import Reader, StartPosition, UnreadableEvent
from sinks.worker import SinkWorker

log = logging.getLogger("sinks.kafka")

_POLL_MS = 200
_BATCH = 500
_REFRESH_S = 5.0


async def read_kafka(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Reads the messages of the topic; without `follow`, up to its present end.

    A group commits what the caller has taken, a few hundred at a time and at the end. After a crash it gets the last
    few hundred once more.
    """
    tls = parse_tls(address)
    decode = open_decoder(address.options, tls)
    broker = parse_broker(address, kafka.KafkaConsumer.DEFAULT_CONFIG, tls)
    if start.at == "id":
        raise SinkAddressError(f"{address.public}: Kafka cannot start behind an id: give a time, or a group")
    quieten_library()
    consumer = _TopicConsumer(broker, address.path or DEFAULT_TOPIC, start, follow, group, decode)
    worker = SinkWorker("read-kafka")
    try:
        await worker.call(consumer.open)
        while (batch := await worker.call(consumer.poll)) is not None:
            for partition, offset, event in batch:
                consumer.taken[partition] = offset + 1
                yield event
            await worker.call(consumer.commit)
    except errors.KafkaError as error:
        raise SinkError(broker.sentence(broker.cause(error, consumer.since))) from None
    finally:
        consumer.stop()
        await worker.aclose(last=consumer.close)


class _TopicConsumer:
    """kafka-python's consumer; every method runs in the same thread."""

    def __init__(
        self, broker: BrokerClient, topic: str, start: StartPosition, follow: bool, group: str | None, decode: Decode
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._start = start
        self._follow = follow
        self._group = group
        self._decode = decode
        self._consumer: Any = None
        self._ends: dict[Any, int] = {}
        self._refresh_at = 0.0
        self._is_closed = False
        self._topic_id: Any = None  # of the topic that is read: another one has the same name
        self.taken: dict[Any, int] = {}
        self.since = time.monotonic()  # when the present attempt began

    def open(self) -> None:
        self._broker.probe()
        settings = {
            "client_id": "groundstream",
            "allow_auto_create_topics": False,
            "bootstrap_timeout_ms": int(self._broker.timeout_s * 500),
            "metadata_max_age_ms": int(_REFRESH_S * 1000),
            **self._broker.settings,
        }
        consumer = self._consumer = self._broker.build(
            kafka.KafkaConsumer,
            group_id=self._group,
            enable_auto_commit=False,
            # Alone, a position is always set: this is for topics that were made again while they are followed.
            auto_offset_reset="latest" if self._start.at == "latest" and self._group else "earliest",
            **settings,
        )
        if self._group is not None:
            consumer.subscribe([self._topic])
            return
        partitions = self._wait_for_partitions()
        consumer.assign(partitions)
        self._ends = consumer.end_offsets(partitions)
        if self._start.at == "latest":
            for partition in partitions:
                consumer.seek(partition, self._ends[partition])
            return
        consumer.seek_to_beginning(*partitions)
        if self._start.at == "time":
            self._seek_time(partitions)

    def _wait_for_partitions(self) -> list[Any]:
        until = time.monotonic() + self._broker.timeout_s / 4
        while not (numbers := self._partition_numbers()):
            if not self._follow or time.monotonic() > until:
                raise SinkError(f"Kafka at {self._broker} has no topic {self._topic}: check its name")
            time.sleep(0.2)
        return [kafka.TopicPartition(self._topic, number) for number in sorted(numbers)]

    def _seek_time(self, partitions: list[Any]) -> None:
        """Goes to the first message of that time or later; the subscription compares the time of each event again.

        The messages' times are the capture times, which rise only nearly. An answer that is too early costs time, one
        that is too late would cost events, and some brokers give such answers: so the message before it is read.
        """
        moment_ms = int(datetime.fromisoformat(self._start.value).timestamp() * 1000)
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, moment_ms))
        too_late = []
        for partition in partitions:
            answer = found.get(partition)
            offset = self._ends[partition] if answer is None or answer.offset < 0 else answer.offset
            if self._is_too_late(partition, offset, moment_ms):
                too_late.append(partition)
            else:
                self._consumer.seek(partition, offset)
        if too_late:
            log.warning("Kafka at %s misplaces times: %s is read from its beginning", self._broker, self._topic)
            self._consumer.seek_to_beginning(*too_late)

    def _is_too_late(self, partition: Any, offset: int, moment_ms: int) -> bool:
        """Whether the message before the offset is of that time or later, or the offset is none that exists."""
        if offset == 0:
            return False
        others = [one for one in self._consumer.assignment() if one != partition]
        self._consumer.pause(*others)
        self._consumer.seek(partition, offset - 1)
        until = time.monotonic() + self._broker.timeout_s
        before: list[Any] = []
        while not before and not self._is_at_end(partition) and time.monotonic() < until:
            before = self._consumer.poll(timeout_ms=_POLL_MS, max_records=1).get(partition, [])
        self._consumer.resume(*others)
        return not before or before[0].offset < offset - 1 or bool(before[0].timestamp >= moment_ms)

    def poll(self) -> list[tuple[Any, int, Event | UnreadableEvent]] | None:
        """What came, with partition and offset; None at the end of what was asked for."""
        try:
            if self._follow and self._group is None and time.monotonic() > self._refresh_at:
                self._follow_topic()
            records = self._consumer.poll(timeout_ms=_POLL_MS, max_records=_BATCH)
        except errors.UnknownTopicOrPartitionError:
            if not self._follow or self._group is not None:
                raise
            self._wait_for_topic()
            return []
        batch: list[tuple[Any, int, Event | UnreadableEvent]] = []
        if self._follow and self._group is None and self._reopen_if_made_again():
            return batch  # what came from amid the new topic comes again, from its beginning
        for partition, messages in records.items():
            for message in messages:
                event: Event | UnreadableEvent
                try:
                    event = self._decode(message.value or b"", message.headers)
                except ValueError as error:
                    reason = str(error).splitlines()[0]
                    event = UnreadableEvent(f"{partition.topic}/{message.partition}@{message.offset}: {reason}")
                batch.append((partition, message.offset, event))
        return None if not batch and not self._follow and self._at_end() else batch

    def _follow_topic(self) -> None:
        """Reads partitions that the topic has gained from their beginning."""
        self._refresh_at = time.monotonic() + _REFRESH_S
        now = [kafka.TopicPartition(self._topic, number) for number in sorted(self._partition_numbers())]
        if not now:
            return  # it is away
        known = [one for one in self._consumer.assignment() if one in now]
        added = [one for one in now if one not in known]
        if not added:
            return
        log.info("topic %s at %s has %d new partitions: they are read too", self._topic, self._broker, len(added))
        places = {one: self._consumer.position(one) for one in known}
        self._consumer.assign(now)
        for one, offset in places.items():
            self._consumer.seek(one, offset)
        self._consumer.seek_to_beginning(*added)

    def _wait_for_topic(self) -> None:
        """The topic was deleted: waits until it is there again, and begins with its first message."""
        log.warning("topic %s at %s is gone: it is read from its beginning once it is back", self._topic, self._broker)
        self._start = StartPosition("earliest")
        self._topic_id = None
        while not self._is_closed:
            self.close()
            try:
                self.open()
            except (SinkError, errors.KafkaError) as error:
                log.debug("%s", error)
                time.sleep(_POLL_MS / 1000)
            else:
                return

    def _reopen_if_made_again(self) -> bool:
        """Whether the topic is another one of the same name: then its reading begins again."""
        found = self._consumer._client.cluster.topic_id(self._topic)
        if found is None or found == self._topic_id:
            return False
        if self._topic_id is None:
            self._topic_id = found
            return False
        log.warning("topic %s at %s was made again: it is read from its beginning", self._topic, self._broker)
        self._start = StartPosition("earliest")
        self._topic_id = None
        self.close()
        self.open()
        return True

    def _partition_numbers(self) -> set[int]:
        return self._consumer.partitions_for_topic(self._topic) or set()

    def _at_end(self) -> bool:
        """Whether every partition was read up to the end in its last answer."""
        partitions = list(self._consumer.assignment())
        if partitions and not self._ends:
            self._ends = self._consumer.end_offsets(partitions)
        return bool(partitions) and all(self._is_at_end(partition) for partition in partitions)

    def _is_at_end(self, partition: Any) -> bool:
        end = self._consumer.highwater(partition)
        return bool(self._consumer.position(partition) >= (self._ends[partition] if end is None else end))

    def stop(self) -> None:
        """Ends a wait for the topic; may be called from another thread."""
        self._is_closed = True

    def commit(self) -> None:
        if self._group is not None and self.taken:
            offsets = {partition: kafka.OffsetAndMetadata(offset, "", -1) for partition, offset in self.taken.items()}
            self._consumer.commit(offsets)
            self.taken.clear()

    def close(self) -> None:
        if self._consumer is not None:
            try:
                self.commit()
            finally:
                self._consumer.close(autocommit=False)
                close_sockets(self._consumer)
