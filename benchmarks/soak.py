"""Kills and outages while events flow: no event may be lost or out of order, and everything that begins must end.

    python -m benchmarks.soak --events 1000000 --kills 100 --outages 50

A writer process sends events of several streams through a spool to a real broker behind a proxy, and logs the events
that were confirmed. It is killed (kill -9) at random moments and started again, while the proxy is cut or frozen for
random times; each start closes what the last one left open. In the end everything is read back from the broker and
compared: ids and order, and the pairs of begin and end, enter and exit, online and offline. The memory and the open
files of the last writer, which is not killed, and the spool's size are measured all the time. Writes
benchmarks/results/events-soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sinks import open_sinks
from sinks.event import Event, EventType, ZoneInfo
from sinks.kafka.sink import BrokerClient as Cluster
from sinks.kafka.sink import kafka
from sinks.spool.spool import Spool
from streamer.analysis.event_writer import close_crashed
from tests.sinks.broker import Proxy, broker_behind_proxy
from tests.sinks.makes import event

ROOT = Path(__file__).resolve().parents[1]
STREAMS = 8
RESULTS = Path(__file__).parent / "results" / "events-soak.md"
_ID = re.compile(rb'"id":"(\d+)\.(camera-\d)\.(\d+)"')

Key = tuple[int, str]
"""(run, stream)"""


@dataclass
class Report:
    """Counts of a soak. `lost`, `disordered` and `unpaired` must be 0; `altered` are equal ids with other contents,
    `unpaired` begins without an end, ends without a begin, and second begins."""

    kills: int = 0
    outages: int = 0
    outage_s: float = 0.0
    confirmed: int = 0
    received: int = 0
    duplicates: int = 0
    lost: int = 0
    disordered: int = 0
    altered: int = 0
    pairs: int = 0
    unpaired: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    last_writer: list[tuple[float, int]] = field(default_factory=list)  # memory in MB and open files, every second
    spool_most: int = 0  # bytes on the disk
    spool_end: int = 0


def soak(folder: Path, *, events: int, kills: int, outages: int, seed: int = 0) -> Report:
    """Runs all of it in `folder`."""
    dice = random.Random(seed)
    report = Report(kills=kills)
    begun = time.monotonic()
    log = folder / "confirmed"
    with broker_behind_proxy() as (broker, proxy):
        del broker
        command = [
            sys.executable,
            "-m",
            "benchmarks.soak",
            "--writer",
            str(folder / "spool.sqlite"),
            proxy.address,
            str(log),
        ]
        stop = threading.Event()
        trouble = threading.Thread(target=_cause_outages, args=(proxy, outages, dice.random(), stop, report))
        trouble.start()
        watch = threading.Thread(target=_measure_spool, args=(folder, stop, report))
        watch.start()
        try:
            for _ in range(kills):
                _run_and_kill(command, log, dice.uniform(0.0, 1.2))
            # the last one sends what is missing, is not killed, and waits until the broker has everything
            sent = sum(_confirmed(log).values()) if log.exists() else 0
            command.append(str(max(STREAMS, events - sent)))
            last = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=900)
        finally:
            stop.set()
            trouble.join()
            watch.join()
        if last.returncode != 0:
            raise RuntimeError(f"the last writer failed with {last.returncode}")
        for name, value in json.loads(last.stdout).items():
            setattr(report, name, value)
        report.spool_end = _spool_bytes(folder)
        _compare(report, _confirmed(log), _read_back(proxy))
    report.seconds = round(time.monotonic() - begun, 1)
    report.outage_s = round(report.outage_s, 1)
    return report


def _spool_bytes(folder: Path) -> int:
    sizes = []
    for path in folder.glob("spool.sqlite*"):
        with contextlib.suppress(FileNotFoundError):  # the log goes with its last connection
            sizes.append(path.stat().st_size)
    return sum(sizes)


def _measure_spool(folder: Path, stop: threading.Event, report: Report) -> None:
    while not stop.wait(0.1):
        report.spool_most = max(report.spool_most, _spool_bytes(folder))


def _cause_outages(proxy: Proxy, outages: int, seed: float, stop: threading.Event, report: Report) -> None:
    dice = random.Random(seed)
    for _ in range(outages):
        if stop.wait(dice.uniform(0.2, 1.5)):
            return
        length = min(dice.expovariate(1.5), 8.0)
        begin, end = dice.choice([(proxy.cut, proxy.restore), (proxy.freeze, proxy.thaw)])
        begin()
        time.sleep(length)
        end()
        report.outages += 1
        report.outage_s += length


def _run_and_kill(command: list[str], log: Path, seconds: float) -> None:
    size = log.stat().st_size if log.exists() else 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and log.stat().st_size > size):
            time.sleep(0.005)
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"a writer ended by itself with {process.returncode}")
        process.send_signal(signal.SIGKILL)


def _confirmed(log: Path) -> dict[Key, int]:
    """How many events of every run and stream `send` has returned for."""
    found: dict[Key, int] = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            run, stream, last = line.split()
            found[int(run), stream] = int(last)
    return found


def _read_back(proxy: Proxy) -> Iterator[tuple[Key, int, bytes]]:
    """(run and stream, sequence, event as JSON) of everything that the broker holds, in its order."""
    cluster = Cluster([proxy.address])
    consumer: Any = cluster.build(kafka.KafkaConsumer, auto_offset_reset="earliest", max_poll_records=5000)
    partitions = [kafka.TopicPartition("soak", number) for number in sorted(consumer.partitions_for_topic("soak"))]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    while True:
        records = consumer.poll(timeout_ms=1000, max_records=5000)
        for message in itertools.chain.from_iterable(records.values()):
            match = _ID.search(message.value)
            assert match is not None
            yield (
                (int(match[1]), match[2].decode()),
                int(match[3]),
                message.value,
            )
        ends = [consumer.highwater(partition) for partition in partitions]
        if not records and all(
            end is None or consumer.position(p) >= end for p, end in zip(partitions, ends, strict=True)
        ):
            break
    consumer.close()


def _compare(report: Report, confirmed: dict[Key, int], received: Iterator[tuple[Key, int, bytes]]) -> None:
    seen: dict[Key, dict[int, bytes]] = {}
    pairs = PairCheck()
    for key, sequence, line in received:
        known = seen.setdefault(key, {})
        digest = hashlib.blake2b(line, digest_size=8).digest()
        if sequence in known:
            report.duplicates += 1
            report.altered += known[sequence] != digest
        else:
            report.disordered += sequence != len(known) + 1  # without a gap, so the next one follows the count so far
            known[sequence] = digest
            pairs.note(json.loads(line))
    report.confirmed = sum(confirmed.values())
    report.received = sum(map(len, seen.values()))
    report.lost = sum(
        sequence not in seen.get(key, {}) for key, count in confirmed.items() for sequence in range(1, count + 1)
    )
    report.pairs, report.unpaired = pairs.count, pairs.faults + len(pairs.open)


class PairCheck:
    """Follows the events of every stream: what begins ends once, and not before."""

    _BEGINS: ClassVar = {
        "track.begin": "track",
        "match.begin": "match",
        "zone.enter": "zone",
        "stream.online": "stream",
    }
    _ENDS: ClassVar = {"track.end": "track", "match.end": "match", "zone.exit": "zone", "stream.offline": "stream"}

    def __init__(self) -> None:
        self.open: set[tuple[str, ...]] = set()
        self.count = 0
        self.faults = 0

    def note(self, event: dict[str, Any]) -> None:
        """Takes one event, as JSON; events that come again are not to be given."""
        kind = event["type"].removeprefix("groundstream.").removesuffix(".v1")
        if (what := self._BEGINS.get(kind)) is not None:
            key = self._key(what, event)
            self.faults += key in self.open
            self.open.add(key)
        elif (what := self._ENDS.get(kind)) is not None:
            key = self._key(what, event)
            self.faults += key not in self.open
            self.count += key in self.open
            self.open.discard(key)

    @staticmethod
    def _key(what: str, event: dict[str, Any]) -> tuple[str, ...]:
        data = event["data"]
        part = {"zone": lambda: data["zone"]["id"], "match": lambda: data["matches"][0]["query_id"]}.get(what)
        return (what, data["stream"], event["subject"], part() if part else "")


_STORY = (
    EventType.TRACK_BEGIN,
    EventType.MATCH_BEGIN,
    EventType.ZONE_ENTER,
    *[EventType.TRACK_UPDATE] * 3,
    EventType.ZONE_EXIT,
    EventType.MATCH_END,
    EventType.TRACK_END,
)
"""The life of every track."""


def _report_story(stream: str, run: int, first: int) -> Iterator[Event]:
    """Events of a stream without end, numbered from `first`: it comes online, then one track after the other lives."""
    yield event(first, stream=stream, run=run, kind=EventType.STREAM_ONLINE)
    for number in itertools.count():
        for step, kind in enumerate(_STORY):
            sequence = first + 1 + number * len(_STORY) + step
            one = event(sequence, stream=stream, run=run, kind=kind, uid=f"{run}-{stream}-{number}")
            if kind in (EventType.ZONE_ENTER, EventType.ZONE_EXIT):
                one = one.model_copy(update={"data": one.data.model_copy(update={"zone": ZoneInfo(id="yard")})})
            yield one


async def _write(spool_path: str, proxy_address: str, log_path: str, limit: int | None) -> None:
    """The writer: sends until it is killed, or `limit` events and then drains."""
    import psutil

    me = psutil.Process()
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    address = f"kafka://{proxy_address}/soak?partitions=3&state=none&detections=none&timeout=3"
    async with await Spool.open(spool_path, open_sinks([address])) as spool:
        run = await spool.begin_run(time.time_ns())
        dice = random.Random(run)
        crashed = close_crashed(spool.open_items(), run)
        await spool.send_batch(crashed)
        written = Counter(one.data.stream for one in crashed)
        for stream, count in written.items():
            os.write(log, f"{run} {stream} {count}\n".encode())

        async def camera(stream: str) -> None:
            sequence = written[stream]
            story = _report_story(stream, run, sequence + 1)
            sent = 0
            while limit is None or sent < limit // STREAMS:
                batch = list(itertools.islice(story, dice.randint(1, 30)))
                await spool.send_batch(batch)
                sent += len(batch)
                os.write(log, f"{run} {stream} {sequence + sent}\n".encode())

        seen: list[tuple[float, int]] = []

        async def watch() -> None:
            while True:
                await asyncio.sleep(1)
                seen.append((round(me.memory_info().rss / 1e6, 1), me.num_fds()))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(camera(f"camera-{number}") for number in range(STREAMS)))
        await asyncio.sleep(1)  # the spool notes what is open
        watching.cancel()
    async with await Spool.open(spool_path, open_sinks([address])) as spool:
        last = await spool.begin_run(time.time_ns())
        closing = close_crashed(spool.open_items(), last)  # the end of the last run, as after a crash
        await spool.send_batch(closing)
        for stream, count in Counter(one.data.stream for one in closing).items():
            os.write(log, f"{last} {stream} {count}\n".encode())
        while not await spool.drain(5):
            pass
        await asyncio.sleep(3)  # the spool gives its pages back
        result = {"last_writer": seen, "dropped": spool.dropped()}
    print(json.dumps(result))


def main() -> None:
    if sys.argv[1:2] == ["--writer"]:
        spool, proxy, log, *limit = sys.argv[2:]
        asyncio.run(_write(spool, proxy, log, int(limit[0]) if limit else None))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--outages", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), **vars(options))
    asked = " ".join(f"--{name} {value}" for name, value in vars(options).items())
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(write_report(report, asked))
    print(RESULTS.read_text())
    sys.exit(bool(report.lost or report.disordered or report.altered or report.unpaired))


def write_report(report: Report, asked: str) -> str:
    tenths = [report.last_writer[len(report.last_writer) * part // 10] for part in range(10)] + report.last_writer[-1:]
    memory, files = zip(*tenths, strict=True)
    rows = {
        "kills (kill -9)": report.kills,
        "outages (connections cut or frozen)": f"{report.outages}, {report.outage_s:.0f} s in all",
        "`send` returned for": f"{report.confirmed:,} events",
        "arrived, each counted once": f"{report.received:,}",
        "lost": report.lost,
        "out of order": report.disordered,
        "pairs of begin and end, enter and exit, online and offline": f"{report.pairs:,}",
        "begins and ends without the other": report.unpaired,
        "arrived again with the same id": f"{report.duplicates:,}",
        "arrived again with other contents": report.altered,
        "dropped": report.dropped or 0,
        "memory of the last writer, at each tenth of its life": f"{', '.join(f'{one:.0f}' for one in memory)} MB",
        "its open files": ", ".join(map(str, files)),
        "the spool on the disk, at most and at the end": (
            f"{report.spool_most / 1e6:.1f} MB, {report.spool_end / 1e6:.1f} MB"
        ),
        "took": f"{report.seconds:.0f} s",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# Events: kills and outages\n\n`python -m benchmarks.soak {asked}`\n\n| | |\n| --- | --- |\n{table}\n"


if __name__ == "__main__":
    main()
