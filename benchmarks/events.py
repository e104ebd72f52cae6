"""How fast events go from `send` through the spool to a Kafka broker, beside bare kafka-python, in one run.

    python -m benchmarks.events [--events 20000] [--rounds 5] [--rate 10000]

Writes benchmarks/results/events.md. The broker (tansu, in memory) shares the machine with the sender. What three sick
sinks cost is measured in pairs, with and without them in turns, on the path of events and on that of frames.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sinks import open_sinks
from sinks.event import Event
from sinks.kafka.sink import kafka
from sinks.spool.spool import Spool
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.tasks.bench import draw_street
from tests.sinks.broker import broker_behind_proxy
from tests.sinks.makes import event

STREAMS = 32
WARM_UP_S = 1.5
SLOW_ANSWER_S = 0.5
RESULTS = Path(__file__).parent / "results" / "events.md"


def make_events(count: int) -> list[list[Event]]:
    """`count` events of about 1 KB, shared by the streams; nothing about them is encoded yet.

    They are made in advance, which no program does: the garbage collector is kept from visiting them again.
    """
    each = count // STREAMS
    gc.unfreeze()
    gc.collect()
    made = [[event(n, stream=f"camera-{s:02}", padding=200) for n in range(each)] for s in range(STREAMS)]
    gc.collect()
    gc.freeze()
    return made


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


async def send_latency(
    address: str, begin: Callable[[], None], end: Callable[[], None], count: int, rate: float, path: Path
) -> dict[str, float]:
    """How long `send` takes (ms) at a steady rate between the `begin` and the `end` of a trouble of the broker."""
    streams = make_events(count)
    took: list[float] = []
    async with await Spool.open(path, open_sinks([f"kafka://{address}/paced?timeout=5"])) as spool:
        await spool.send(event(0, stream="warm-up"))
        await spool.drain(10)
        begin()
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
        end()
        begun = time.perf_counter()
        if not await spool.drain(60):
            raise TimeoutError("the broker did not take everything")
        rest = time.perf_counter() - begun
    took.sort()
    marks = {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "max": took[-1]}
    return {"rate": reached, **marks, "drained_s": rest}


class Counter:
    """The sink next door: takes everything at once, and reports when it has `expected` events."""

    def __init__(self, expected: int) -> None:
        self.missing = expected
        self.complete = asyncio.Event()

    async def send_batch(self, events: Sequence[Event]) -> None:
        self.missing -= len(events)
        if self.missing <= 0:
            self.complete.set()

    async def aclose(self) -> None:
        pass


@contextlib.contextmanager
def sick_sinks() -> Iterator[list[str]]:
    """Addresses of a Kafka that is frozen, one that is dead, and a webhook that takes half a second for an event."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as frozen, socket.create_server(("127.0.0.1", 0)) as slow:
        threading.Thread(target=_answer_slowly, args=(slow,), daemon=True).start()
        yield [
            f"kafka://127.0.0.1:{frozen.getsockname()[1]}/t?timeout=5",
            "kafka://127.0.0.1:1/t",
            f"http://127.0.0.1:{slow.getsockname()[1]}/hook",
        ]


def _answer_slowly(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                while connection.recv(65536):
                    time.sleep(SLOW_ANSWER_S)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


async def beside(others: list[str], count: int, folder: str) -> float:
    """Events a second through the spool to a sink that is well, while `others` are in trouble and have been a while."""
    streams = make_events(count)
    warm_up = [event(n, stream="warm-up", padding=200) for n in range(2000)]
    well = Counter(len(warm_up) + sum(map(len, streams)))
    async with await Spool.open(Path(folder) / "spool.sqlite", {"well": well, **open_sinks(others)}) as spool:
        await spool.send_batch(warm_up)
        await asyncio.sleep(WARM_UP_S)

        async def camera(events: list[Event]) -> None:
            for one in events:
                await spool.send(one)

        begun = time.perf_counter()
        await asyncio.gather(*(camera(events) for events in streams))
        await well.complete.wait()
        return sum(map(len, streams)) / (time.perf_counter() - begun)


async def frames_beside(others: list[str], video: Path, script: Path, folder: Path) -> float:
    """Frames a second of the whole path from a video to a sink that is well, while `others` are in trouble."""
    raw = {
        "streams": [{"source": str(video), "counts": [{"window_s": 1}]}],
        "queries": ["person"],
        "detector": f"scripted:{script}",
        "sinks": [f"sqlite:{folder / 'events.sqlite'}", *others],
    }
    frames = 0

    def count(_: str) -> None:
        nonlocal frames
        frames += 1

    config = parse_config(raw, "benchmark")
    async with open_pipeline(config, spool_path=folder / "spool.sqlite", on_frame=count, patience_s=0.01) as pipeline:
        begun = time.perf_counter()
        await pipeline.run()
        return frames / (time.perf_counter() - begun)


def new_folder(folder: Path, number: int) -> Path:
    path = folder / f"frames-{number}"
    path.mkdir()
    return path


def in_pairs(rounds: int, measure: Callable[[list[str], int], float]) -> list[tuple[float, float]]:
    """(without, with sick sinks), the order changing from pair to pair."""
    pairs = []
    with sick_sinks() as others:
        for number in range(rounds):
            both = {sick: measure(others if sick else [], 2 * number + sick) for sick in (number % 2, 1 - number % 2)}
            pairs.append((both[0], both[1]))
            print(f"pair {number + 1}: {both[0]:.0f} without, {both[1]:.0f} with sick sinks", flush=True)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=10_000)
    options = parser.parse_args()
    sys.setswitchinterval(0.0001)  # as the command line does
    logging.getLogger("sinks").setLevel(logging.ERROR)
    logging.getLogger("streamer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        report = [*heading(options), *broker_report(options, folder), *neighbour_report(options, Path(folder))]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(report) + "\n")
    print(RESULTS.read_text())


def _nothing() -> None:
    """What happens to a broker that is up."""


def heading(options: argparse.Namespace) -> list[str]:
    return [
        "# Events: throughput and latency",
        "",
        f"`python -m benchmarks.events --events {options.events} --rounds {options.rounds} --rate {options.rate:.0f}`, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, events of {len(event(0, padding=200).to_json())} "
        f"bytes, {STREAMS} streams; the broker shares the machine. Medians of interleaved rounds.",
        "",
    ]


def broker_report(options: argparse.Namespace, folder: str) -> list[str]:
    """Throughput to the broker beside bare kafka-python, and the latency of `send` in every state of the broker."""
    lines = [(one.data.stream.encode(), one.to_json()) for events in make_events(options.events) for one in events]
    bares: list[float] = []
    fulls: list[float] = []
    table = ["| broker | events/s sent | `send` p50 ms | p99 ms | longest ms | drained afterwards in s |"]
    table.append("| --- | --- | --- | --- | --- | --- |")
    with broker_behind_proxy() as (broker, proxy):
        # past the proxy: it is python too, and would take part of the machine
        broker.restart(advertised=broker.port)
        for number in range(options.rounds):
            bares.append(bare(broker.port, lines))
            fulls.append(asyncio.run(through_spool(broker.port, options.events, f"{folder}/{number}")))
            print(f"round {number + 1}: bare {bares[-1]:.0f}/s, through the spool {fulls[-1]:.0f}/s", flush=True)
        states = {"up": (_nothing, _nothing), "down": (proxy.cut, proxy.restore), "frozen": (proxy.freeze, proxy.thaw)}
        for state, rate in itertools.product(states, (2000.0, options.rate)):
            port = broker.port if state == "up" else proxy.port
            broker.restart(advertised=port)
            count = int(min(options.events, 2.5 * rate))
            path = Path(folder) / f"{state}-{rate:.0f}.sqlite"
            found = asyncio.run(send_latency(f"127.0.0.1:{port}", *states[state], count, rate, path))
            print(state, {name: round(value, 2) for name, value in found.items()}, flush=True)
            table.append(
                f"| {state} | {found['rate']:,.0f} | {found['p50']:.2f} | {found['p99']:.2f} | {found['max']:.1f} "
                f"| {found['drained_s']:.1f} |"
            )
    bare_rate, full_rate = statistics.median(bares), statistics.median(fulls)
    return [
        "| path | events/s |",
        "| --- | --- |",
        f"| bare kafka-python, encoded beforehand, acks=all | {bare_rate:,.0f} |",
        f"| `send` -> spool (SQLite) -> Kafka, encoding included | {full_rate:,.0f} |",
        f"| share | {full_rate / bare_rate:.0%} |",
        "",
        *table,
        "",
    ]


def neighbour_report(options: argparse.Namespace, folder: Path) -> list[str]:
    """What a frozen Kafka, a dead Kafka and a slow webhook cost those who are well."""
    video = draw_street(folder / "street.mp4", "640x360", 900)
    walks = [[{"query": "person", "box": [30 * n, 50, 30 * n + 20, 120], "confidence": 0.9} for n in range(20)]]
    script = folder / "script.json"
    script.write_text(json.dumps({"frames": walks, "repeat": True}))
    events = in_pairs(
        2 * options.rounds,
        lambda others, number: asyncio.run(beside(others, options.events, str(folder / f"beside-{number}"))),
    )
    frames = in_pairs(
        2 * options.rounds,
        lambda others, number: asyncio.run(frames_beside(others, video, script, new_folder(folder, number))),
    )
    table = [
        f"Beside a frozen Kafka, a dead Kafka and a webhook that takes {SLOW_ANSWER_S:g} s for an event; medians of "
        f"{2 * options.rounds} pairs, in brackets the quarters of their shares:",
        "",
        "| what is well | alone | beside them | share |",
        "| --- | --- | --- | --- |",
    ]
    for name, pairs in (("a sink, events/s through the spool on the disk", events), ("the path of frames/s", frames)):
        alone, troubled = (statistics.median(side) for side in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([sick / well for well, sick in pairs], n=4)
        table.append(f"| {name} | {alone:,.0f} | {troubled:,.0f} | {middle:.1%} ({low:.1%} to {high:.1%}) |")
    return table


if __name__ == "__main__":
    main()
