"""Cameras shared by several nodes: how long a camera is not watched when its node ends, and what the leases cost.

    python -m benchmarks.cluster [--rounds 3] [--cameras 6] [--sizes 10x100 50x1000 100x1000]

Writes benchmarks/results/cluster.md. Takeovers: three monitors on this machine share synthetic cameras through
PostgreSQL; one or two of them are killed, frozen, cut off from the database, stopped or drained, and the time is
measured until each of their cameras has its first frame at another node. Costs: one renewal in a database with many
nodes and cameras, with PostgreSQL and with an SQLite file.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sinks.event import Event
from streamer.cluster.lease_address import open_lease_store
from streamer.cluster.lease_book import LeaseBook
from streamer.cluster.lease_store import LeaseStore
from streamer.cluster.node_leases import NodeLeases
from tests.sinks.broker import Proxy
from tests.sinks.servers import postgres
from tests.streamer.test_shared_cameras import Nodes, cluster, write_config

RESULTS = Path(__file__).parent / "results" / "cluster.md"
NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Takeover:
    """Seconds from the end of the old holder to the first frame at the new one, for each camera that moved; `gaps_s`
    from the last event of the old holder."""

    seconds: list[float]
    gaps_s: list[float]
    is_exclusive: bool


class Trial:
    """Three nodes that share `cameras`; node `a` reaches the database through a proxy."""

    def __init__(self, folder: Path, port: int, cameras: tuple[str, ...]) -> None:
        self.cameras = cameras
        address = f"postgresql://me:sesame@127.0.0.1:{port}/postgres?table=trial_{folder.name[-8:]}"
        self.nodes = Nodes(folder, address)
        self.proxy = Proxy(port)
        self.through = address.replace(f":{port}/", f":{self.proxy.port}/")

    def measure(self, lost: tuple[str, ...], end: Callable[[Trial], object]) -> Takeover:
        """Start the nodes, end those of the names `lost`, and wait for their cameras elsewhere."""
        nodes = self.nodes
        for name in NAMES:
            write_config(nodes.folder / f"{name}.yaml", self.cameras)
            nodes.start(name, address=self.through if name == "a" else None)
        nodes.wait_seen(*NAMES, cameras=self.cameras)
        nodes.wait(lambda: set(nodes.holders().values()) == set(NAMES), "every node has cameras")
        time.sleep(3)
        moved = {camera for camera, holder in nodes.holders().items() if holder in lost}
        before = {camera: run for name in lost for camera, run in nodes.online(name).items() if camera in moved}
        ended_ns = time.time_ns()
        end(self)
        others = tuple(name for name in NAMES if name not in lost)
        nodes.wait_seen(*others, cameras=self.cameras)
        time.sleep(1)
        firsts = {
            event.data.stream: event
            for name in others
            for event in reversed(nodes.events(name))
            if event.kind == "stream.online" and event.data.run > before.get(event.data.stream, event.data.run)
        }
        lasts = {camera: self._last_event(lost, camera) for camera in moved}
        return Takeover(
            [(_emitted_ns(firsts[camera]) - ended_ns) / 1e9 for camera in moved],
            [(_emitted_ns(firsts[camera]) - _emitted_ns(lasts[camera])) / 1e9 for camera in moved],
            all(_emitted_ns(lasts[camera]) <= _emitted_ns(firsts[camera]) for camera in moved),
        )

    def close(self) -> None:
        self.nodes.end()
        self.proxy.close()

    def _last_event(self, lost: tuple[str, ...], camera: str) -> Event:
        return max(
            (event for name in lost for event in self.nodes.events(name) if event.data.stream == camera),
            key=_emitted_ns,
        )


def _emitted_ns(event: Event) -> int:
    assert event.data.clock.emitted_ns is not None
    return event.data.clock.emitted_ns


def _signal(trial: Trial, number: int, *names: str) -> None:
    for name in names:
        trial.nodes.running[name].send_signal(number)


CASES: dict[str, tuple[tuple[str, ...], Callable[[Trial], object]]] = {
    "killed (SIGKILL)": (("a",), lambda trial: _signal(trial, signal.SIGKILL, "a")),
    "two of three killed": (("a", "b"), lambda trial: _signal(trial, signal.SIGKILL, "a", "b")),
    "frozen (SIGSTOP)": (("a",), lambda trial: _signal(trial, signal.SIGSTOP, "a")),
    "cut off from the database": (("a",), lambda trial: trial.proxy.freeze()),
    "stopped (SIGTERM)": (("a",), lambda trial: _signal(trial, signal.SIGTERM, "a")),
    "drained (`cluster drain`)": (("a",), lambda trial: cluster("drain", "a", "--lease", trial.nodes.address)),
}


def measure_takeovers(rounds: int, cameras: int) -> list[str]:
    """Rows of the table of takeovers."""
    names = tuple(f"camera{number}" for number in range(cameras))
    found: dict[str, list[Takeover]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data, postgres(Path(data)) as port:
        for _ in range(rounds):
            for case, (lost, end) in CASES.items():
                with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                    trial = Trial(Path(folder), port, names)
                    stack.callback(trial.close)
                    found[case].append(trial.measure(lost, end))
    rows = []
    for case, takeovers in found.items():
        seconds = [value for one in takeovers for value in one.seconds]
        gaps = [value for one in takeovers for value in one.gaps_s]
        is_exclusive = all(one.is_exclusive for one in takeovers)
        rows.append(
            f"| {case} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | {max(gaps):.1f} | "
            f"{'yes' if is_exclusive else 'NO'} |"
        )
    return rows


def measure_renewal(store: LeaseStore, nodes: int, cameras: int) -> tuple[float, float]:
    """Milliseconds (wall, CPU of this process) of a renewal among so many nodes and cameras."""
    names = [f"camera{number:05}" for number in range(cameras)]
    store.offer_config(f"# {nodes} {cameras} {time.time_ns()}", names)

    def fill(book: LeaseBook) -> None:
        for number in range(nodes):
            assert book.join_node(f"node{number:03}", "s", time.time_ns())
            book.nodes[f"node{number:03}"].is_ready = True
            book.nodes[f"node{number:03}"].revision = book.revision
        for number, name in enumerate(names):
            book.cameras[name].holder, book.cameras[name].session = f"node{number % nodes:03}", "s"
            book.cameras[name].epoch = 1

    store.update(fill)
    mine = NodeLeases(store, "measured")
    assert mine.join()
    revision = store.update(lambda book: book.revision)
    mine.renew(revision)
    count, began_s, began_cpu_s = 20, time.monotonic(), time.process_time()
    for _ in range(count):
        assert mine.renew(revision) is not None
    wall, cpu = time.monotonic() - began_s, time.process_time() - began_cpu_s
    return 1000 * wall / count, 1000 * cpu / count


def measure_costs(sizes: list[tuple[int, int]]) -> list[str]:
    """Rows of the table of renewals."""
    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data, postgres(Path(data)) as port:
        for nodes, cameras in sizes:
            for kind in ("postgresql", "sqlite"):
                with tempfile.TemporaryDirectory() as folder:
                    address = (
                        f"postgresql://me:sesame@127.0.0.1:{port}/postgres?table=costs_{nodes}_{cameras}"
                        if kind == "postgresql"
                        else f"sqlite:{folder}/leases.sqlite"
                    )
                    store = open_lease_store(address)
                    try:
                        wall, cpu = measure_renewal(store, nodes, cameras)
                    finally:
                        store.close()
                rows.append(
                    f"| {urlsplit(address).scheme} | {nodes} | {cameras} | {wall:.1f} | {cpu:.1f} | {1000 / wall:.0f} |"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--sizes", nargs="+", default=["10x100", "50x1000", "100x1000"], metavar="NODESxCAMERAS")
    options = parser.parse_args()
    sizes = [(int(nodes), int(cameras)) for nodes, cameras in (size.split("x") for size in options.sizes)]
    costs = measure_costs(sizes)
    takeovers = measure_takeovers(options.rounds, options.cameras)
    lines = [
        "# Cameras on several nodes",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load average over 5 "
        f"minutes at the end {os.getloadavg()[1]:.1f}.",
        "",
        f"Three monitors with {options.cameras} cameras, 5 frames/s each; {options.rounds} rounds. Seconds from the "
        "end of the old holder to the first frame at the new one; the gap is from the last event of the old holder.",
        "",
        "| node | cameras moved | median s | longest s | longest gap s | never two holders |",
        "| --- | --: | --: | --: | --: | --- |",
        *takeovers,
        "",
        "One renewal, which every node makes once a second, one at a time in the database: the last column is how many "
        "nodes one database serves at most.",
        "",
        "| store | nodes | cameras | ms | CPU ms | renewals/s |",
        "| --- | --: | --: | --: | --: | --: |",
        *costs,
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
