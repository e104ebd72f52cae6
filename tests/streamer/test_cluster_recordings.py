"""Recordings on a Ray cluster of two nodes on this machine: the same results, whatever worker or node is lost."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from streamer.cluster.recordings import check_address
from tests.streamer.test_jobs import MOVING, make_street_clip, results, run

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'groundstream[cluster]'"),
]
ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]
    head: subprocess.Popen[bytes]
    node: subprocess.Popen[bytes]

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """A job in the background; its output is not kept."""
        return subprocess.Popen(self._command(*arguments), cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL)

    def process(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(*arguments), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300
        )

    def _command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "groundstream", "process", *map(str, arguments), "--cluster", self.address]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a node and everything it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in reversed(family):
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)
    process.wait(20)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, folder = free_port(), tmp_path_factory.mktemp("ray")
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    with (folder / "log").open("wb") as log:
        options = {"env": environment, "stdout": log, "stderr": log, "cwd": folder}
        head = subprocess.Popen(
            [
                *start,
                "--head",
                f"--port={port}",
                "--include-dashboard=false",
                "--temp-dir",
                str(Path("/tmp") / f"gs{port}"),
                *common,
            ],
            **options,
        )
        time.sleep(8)
        node = subprocess.Popen([*start, f"--address=127.0.0.1:{port}", *common], **options)
        try:
            wait_for_nodes(environment, port, 2)
            yield Cluster(f"127.0.0.1:{port}", environment, head, node)
        finally:
            for process in (node, head):
                if process.poll() is None:
                    end(process)


def wait_for_nodes(environment: dict[str, str], port: int, count: int) -> None:
    code = (
        f"import ray; ray.init(address='127.0.0.1:{port}', log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
        )
        if done.stdout.strip() == str(count):
            return
        time.sleep(1)
    pytest.fail(f"the cluster has not {count} nodes: {done.stderr[-500:]}")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate("abcd"):
        make_street_clip(folder / f"{name}.mp4", seed, 40 + 10 * seed)
    return folder


@pytest.fixture(scope="module")
def alone(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    assert run(clips, *MOVING, "--out", out).returncode == 0
    return results(out)


def ids(out: Path) -> set[str]:
    return {json.loads(line)["id"] for line in (out / "events.jsonl").read_text().splitlines()}


def test_results_are_those_of_one_machine(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.process(clips, *MOVING, "--out", tmp_path, "--json")
    assert job.returncode == 0, job.stderr
    assert results(tmp_path) == alone
    report = json.loads((tmp_path / "cluster-report.json").read_text())
    assert [row["recording"] for row in report["recordings"]] == ["a", "b", "c", "d"]
    assert all(row["attempts"] == 1 and row["node"] and not row["error"] for row in report["recordings"])
    again = cluster.process(clips, *MOVING, "--out", tmp_path, "--json")
    assert json.loads(again.stdout)["skipped"] == ["a", "b", "c", "d"]
    assert results(tmp_path) == alone


def workers_of(out: Path) -> list[psutil.Process]:
    """Worker processes of Ray that hold a file of the output folder open."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            if any(str(out) in file.path for file in process.open_files()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_killed_worker_costs_only_its_recording(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.start(clips, *MOVING, "--out", tmp_path)
    deadline = time.monotonic() + 120
    killed = 0
    while killed < 2 and job.poll() is None and time.monotonic() < deadline:
        for worker in workers_of(tmp_path):
            if worker.pid != job.pid and killed < 2:
                worker.send_signal(signal.SIGKILL)
                killed += 1
        time.sleep(0.2)
    assert job.wait(300) == 0
    assert killed == 2
    assert results(tmp_path) == alone
    report = json.loads((tmp_path / "cluster-report.json").read_text())
    assert max(row["attempts"] for row in report["recordings"]) > 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "b", "c", "d"]


def test_an_unreadable_recording_is_reported_and_not_tried_again(cluster: Cluster, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    job = cluster.process(tmp_path / "bad.mp4", clips / "a.mp4", *MOVING, "--out", tmp_path / "out")
    assert job.returncode == 1
    rows = json.loads((tmp_path / "out" / "cluster-report.json").read_text())["recordings"]
    assert {row["recording"]: (row["attempts"], bool(row["error"])) for row in rows} == {
        "a": (1, False),
        "bad": (1, True),
    }


def test_a_lost_node_costs_only_what_it_had_begun(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.start(clips, *MOVING, "--out", tmp_path)
    deadline = time.monotonic() + 120
    while not workers_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    end(cluster.node)
    assert job.wait(300) == 0
    assert results(tmp_path) == alone


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path, clips: Path) -> None:
    done = run(clips / "a.mp4", *MOVING, "--out", tmp_path, "--cluster", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "cannot connect to the Ray cluster" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["here", "host:", ":80", "host:port"])
def test_a_wrong_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        check_address(address)
