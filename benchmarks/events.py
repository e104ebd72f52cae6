"""How fast events go from `send` through the spool to a Kafka broker, beside bare kafka-python, in one run.

    python -m benchmarks.events [--events 20000] [--rounds 3] [--rate 10000]

Writes benchmarks/results/events.md. The broker (tansu, in memory) shares the machine with the sender.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sinks import open_sinks
from sinks.event import Event
from sinks.kafka import kafka
from sinks.spool import Spool
from tests.sinks.broker import Proxy, broker_behind_proxy
from tests.sinks.makes import event

STREAMS = 32
RESULTS = Path(__file__).parent / "results" / "events.md"


def make_events(count: int) -> list[list[Event]]:
    """`count` events of about 1 KB, shared by the streams; nothing about them is encoded yet."""
    each = count // STREAMS
    return [[event(n, stream=f"camera-{s:02}", padding=200) for n in range(each)] for s in range(STREAMS)]


def bare(port: int, lines: list[tuple[bytes, bytes]]) -> float:
    """Events a second of kafka-python alone: encoded beforehand, the sink's own settings, every future asked."""
    producer = kafka.KafkaProducer(
        bootstrap_servers=f"127.0.0.1:{port}",
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        batch_size=128 * 1024,
        linger_ms=5,
        metrics_enabled=False,
    )
    producer.partitions_for("bare")
    headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
    begun = time.perf_counter()
    futures = [producer.send("bare", line, key=key, headers=headers) for key, line in lines]
    for future in futures:
        future.get(60)
    took = time.perf_counter() - begun
    producer.close()
    return len(lines) / took


async def through_spool(port: int, count: int, folder: str) -> float:
    """Events a second from `send` to the broker's acknowledgement, as fast as it goes."""
    streams = make_events(count)
    async with await Spool.open(Path(folder) / "spool.sqlite", open_sinks([f"kafka://127.0.0.1:{port}/full"])) as spool:
        await spool.send(event(0, stream="warm-up"))
        await spool.drain(10)

        async def camera(events: list[Event]) -> None:
            for one in events:
                await spool.send(one)

        begun = time.perf_counter()
        await asyncio.gather(*(camera(events) for events in streams))
        if not await spool.drain(60):
            raise TimeoutError("the broker did not take everything")
        return sum(map(len, streams)) / (time.perf_counter() - begun)


async def send_latency(proxy: Proxy, state: str, count: int, rate: float, folder: str) -> dict[str, float]:
    """How long `send` takes (ms) at a steady rate while the broker is up, down or frozen."""
    streams = make_events(count)
    took: list[float] = []
    sink = open_sinks([f"kafka://{proxy.address}/paced?timeout=5"])
    async with await Spool.open(Path(folder) / f"{state}.sqlite", sink) as spool:
        await spool.send(event(0, stream="warm-up"))
        await spool.drain(10)
        {"up": lambda: None, "down": proxy.cut, "frozen": proxy.freeze}[state]()
        begun = time.perf_counter()

        async def camera(number: int, events: list[Event]) -> None:
            for turn, one in enumerate(events):
                due = begun + (turn * STREAMS + number) / rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                sent = time.perf_counter()
                await spool.send(one)
                took.append((time.perf_counter() - sent) * 1000)

        await asyncio.gather(*(camera(number, events) for number, events in enumerate(streams)))
        reached = len(took) / (time.perf_counter() - begun)
        {"up": lambda: None, "down": proxy.restore, "frozen": proxy.thaw}[state]()
        begun = time.perf_counter()
        if not await spool.drain(60):
            raise TimeoutError("the broker did not take everything")
        rest = time.perf_counter() - begun
    took.sort()
    marks = {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "max": took[-1]}
    return {"rate": reached, **marks, "drained_s": rest}


class Counter:
    """The sink next door: takes everything at once, and tells when it has `expected` events."""

    def __init__(self, expected: int) -> None:
        self.missing = expected
        self.complete = asyncio.Event()

    async def send_batch(self, events: Sequence[Event]) -> None:
        self.missing -= len(events)
        if self.missing <= 0:
            self.complete.set()

    async def aclose(self) -> None:
        pass


async def beside(others: list[str], count: int, folder: str) -> float:
    """Events a second through the spool to a sink that is well, while `others` are in trouble."""
    streams = make_events(count)
    well = Counter(sum(map(len, streams)))
    async with await Spool.open(Path(folder) / "spool.sqlite", {"well": well, **open_sinks(others)}) as spool:

        async def camera(events: list[Event]) -> None:
            for one in events:
                await spool.send(one)

        begun = time.perf_counter()
        await asyncio.gather(*(camera(events) for events in streams))
        await well.complete.wait()
        return sum(map(len, streams)) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=10_000)
    options = parser.parse_args()
    lines = [(one.data.stream.encode(), one.to_json()) for events in make_events(options.events) for one in events]
    bares: list[float] = []
    fulls: list[float] = []
    alone: list[float] = []
    troubled: list[float] = []
    latencies: dict[tuple[str, float], dict[str, float]] = {}
    with broker_behind_proxy() as (broker, proxy), tempfile.TemporaryDirectory() as folder:
        # past the proxy: it is python too, and would take part of the machine
        broker.restart(advertised=broker.port)
        for number in range(options.rounds):
            bares.append(bare(broker.port, lines))
            fulls.append(asyncio.run(through_spool(broker.port, options.events, f"{folder}/{number}")))
            print(f"round {number + 1}: bare {bares[-1]:.0f}/s, through the spool {fulls[-1]:.0f}/s", flush=True)
        broker.restart(advertised=proxy.port)
        for state, rate in itertools.product(("up", "down", "frozen"), (2000.0, options.rate)):
            count = int(min(options.events, 2.5 * rate))
            found = latencies[state, rate] = asyncio.run(
                send_latency(proxy, state, count, rate, f"{folder}/{rate:.0f}")
            )
            print(state, {name: round(value, 2) for name, value in found.items()}, flush=True)
        proxy.freeze()
        others = [f"kafka://{proxy.address}/t?timeout=5", "kafka://127.0.0.1:1/t", f"http://{proxy.address}/hook"]
        for number in range(2 * options.rounds):
            alone.append(asyncio.run(beside([], options.events, f"{folder}/alone-{number}")))
            troubled.append(asyncio.run(beside(others, options.events, f"{folder}/beside-{number}")))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report(options, len(lines[0][1]), bares, fulls, latencies, alone, troubled))
    print(RESULTS.read_text())


def report(
    options: argparse.Namespace,
    size: int,
    bares: list[float],
    fulls: list[float],
    latencies: dict[tuple[str, float], dict[str, float]],
    alone: list[float],
    troubled: list[float],
) -> str:
    bare_rate, full_rate = statistics.median(bares), statistics.median(fulls)
    alone_rate, troubled_rate = statistics.median(alone), statistics.median(troubled)
    table = [
        "# Events: throughput and latency",
        "",
        f"`python -m benchmarks.events --events {options.events} --rounds {options.rounds} --rate {options.rate:.0f}`, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, events of {size} bytes, {STREAMS} streams; the "
        "broker shares the machine. Medians of interleaved rounds.",
        "",
        "| path | events/s |",
        "| --- | --- |",
        f"| bare kafka-python, encoded beforehand, acks=all | {bare_rate:,.0f} |",
        f"| `send` -> spool (SQLite) -> Kafka, encoding included | {full_rate:,.0f} |",
        f"| share | {full_rate / bare_rate:.0%} |",
        "",
        "| broker | events/s sent | `send` p50 ms | p99 ms | longest ms | drained afterwards in s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (state, _), one in latencies.items():
        table.append(
            f"| {state} | {one['rate']:,.0f} | {one['p50']:.2f} | {one['p99']:.2f} | {one['max']:.1f} "
            f"| {one['drained_s']:.1f} |"
        )
    table += [
        "",
        "| what a sink that is well gets, through the spool on the disk | events/s |",
        "| --- | --- |",
        f"| alone | {alone_rate:,.0f} |",
        f"| beside a frozen Kafka, a dead Kafka and a frozen webhook | {troubled_rate:,.0f} |",
        f"| share | {troubled_rate / alone_rate:.0%} |",
    ]
    return "\n".join(table) + "\n"


if __name__ == "__main__":
    main()
