"""Whole batches for kafka-python's producer, which takes three times as long when it is given one message at a time.

`KafkaProducer.send` makes a future for every message, and its callbacks; here there is one for every batch. The batch
then goes the library's way (see `RecordAccumulator.append` and `Sender` there): numbered, retried, split and
acknowledged by it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from sinks.kafka.client import errors, kafka

from kafka.producer.future import FutureRecordMetadata  # isort: skip  # after its parent, whose import is muffled
from kafka.producer.producer_batch import ProducerBatch  # isort: skip
from kafka.record.memory_records import MemoryRecordsBuilder  # isort: skip

Headers = list[tuple[str, bytes]]

_LOOK_AGAIN_S = 0.1
_MOST_OVERHEAD = 4096  # of a message, beside its value: closer to the limit it is measured


class MessageBatches:
    """The messages of one send, in their order, by partition. `failures` reports by the mark of each."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._accumulator = producer._accumulator
        self._most = producer.config["max_request_size"] - _MOST_OVERHEAD
        self._filling: dict[tuple[str, int], _MessageBatch] = {}
        self._all: list[_MessageBatch] = []

    def put(self, mark: int, topic: str, partition: int, message: tuple[int, bytes, bytes, Headers]) -> None:
        """`message`: milliseconds, key, value, headers. Raises `MessageSizeTooLargeError`."""
        if len(message[2]) > self._most:
            _, key, value, headers = message
            self._producer._ensure_valid_record_size(self._producer._estimate_size_in_bytes(key, value, headers))
        batch = self._filling.get((topic, partition))
        if batch is None or batch.records.append(*message) is None:
            if batch is not None:
                self._queue_batch(batch)
            batch = self._filling[topic, partition] = self._new_batch(topic, partition)
            batch.records.append(*message)  # the first one always fits
        batch.marks.append(mark)

    def send(self, timeout_s: float) -> None:
        """Queues what is left and waits at most `timeout_s` for each batch; `failures` gives the result."""
        for batch in self._filling.values():
            self._queue_batch(batch)
        self._filling.clear()
        with contextlib.suppress(errors.KafkaError):
            self._producer.flush(timeout_s)

    def failures(self, deadline: float) -> Iterator[tuple[int, Exception]]:
        """Mark and reason of every message that is not acknowledged at the deadline (monotonic seconds)."""
        for batch in self._all:
            yield from batch.failures(deadline)

    def _new_batch(self, topic: str, partition: int) -> _MessageBatch:
        settings = self._accumulator.config
        records = MemoryRecordsBuilder(
            settings["message_version"], settings["compression_attrs"], settings["batch_size"]
        )
        batch = _MessageBatch(kafka.TopicPartition(topic, partition), records, self._producer._sender.force_close)
        self._all.append(batch)
        return batch

    def _queue_batch(self, batch: _MessageBatch) -> None:
        accumulator = self._accumulator
        accumulator._appends_in_progress.increment()  # so that a producer that closes now does not overlook it
        try:
            with accumulator._tp_lock(batch.topic_partition):
                if accumulator._closed:
                    batch.abort(errors.IllegalStateError("the producer was closed"))
                    return
                accumulator._batches[batch.topic_partition].append(batch)
                accumulator._incomplete.add(batch)
        finally:
            accumulator._appends_in_progress.decrement()
        self._producer._sender.wakeup()


class _MessageBatch(ProducerBatch):  # type: ignore[misc]  # the library has no types
    """One future for all messages, as long as the batch stays whole. The first failure calls `stop`.

    That happens in the producer's own thread, before it can send what comes after.
    """

    def __init__(self, partition: Any, records: Any, stop: Callable[[], None]) -> None:
        super().__init__(partition, records)
        self.marks: list[int] = []
        self._stop = stop
        self._parts: list[Any] = []
        self.produce_future.add_callback(self._stop_on_failure)

    def _stop_on_failure(self, result: tuple[Any, Any, Callable[[int], Exception] | None]) -> None:
        if result[2] is not None:
            self._stop()

    @property
    def _record_futures(self) -> list[Any]:
        """The library asks for them when it splits the batch: from then on each message has its own."""
        if not self._parts:
            for index in range(len(self.marks)):
                part = FutureRecordMetadata(self.produce_future, index, None, None, -1, -1, -1)
                part.add_errback(lambda _error: self._stop())
                self._parts.append(part)
        return self._parts

    @_record_futures.setter
    def _record_futures(self, _none: list[Any]) -> None:
        """The library begins with none."""

    def failures(self, deadline: float) -> Iterator[tuple[int, Exception]]:
        whole = self.produce_future
        while not whole.is_done and not self._parts and (left_s := deadline - time.monotonic()) > 0:
            whole.wait(min(left_s, _LOOK_AGAIN_S))
        if self._parts:
            yield from self._failed_parts(deadline)
        elif not whole.is_done:
            yield from ((mark, errors.KafkaTimeoutError("not acknowledged")) for mark in self.marks)
        elif (reason_of := whole.value[2]) is not None:
            yield from ((mark, reason_of(index)) for index, mark in enumerate(self.marks))

    def _failed_parts(self, deadline: float) -> Iterator[tuple[int, Exception]]:
        for mark, part in zip(self.marks, list(self._parts), strict=True):
            try:
                part.get(max(0.0, deadline - time.monotonic()))
            except errors.KafkaError as error:
                yield mark, error
