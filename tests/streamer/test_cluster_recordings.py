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
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from streamer.cluster.recordings import check_address, explain_refusal
from tests.streamer.test_jobs import MOVING, make_street_clip, results, run
from tests.streamer.test_segments import encode

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'groundstream[cluster]'"),
]
ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


HEALTH_CHECK_MS = {"initial_delay": 1000, "period": 1000, "timeout": 3000}
"""A frozen node counts as dead within some seconds, instead of after a minute."""


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]
    folder: Path
    head: subprocess.Popen[bytes]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self) -> subprocess.Popen[bytes]:
        """Starts a further node and waits until the cluster has it."""
        self.nodes.append(start_node(self.folder, self.environment, f"--address={self.address}"))
        alive = sum(node.poll() is None for node in self.nodes)
        wait_for_nodes(self.environment, self.address, 1 + alive)
        return self.nodes[-1]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """A job in the background."""
        return subprocess.Popen(
            self._command(*arguments), cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True
        )

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
    environment |= {f"RAY_health_check_{name}_ms": str(value) for name, value in HEALTH_CHECK_MS.items()}
    head = start_node(
        folder, environment, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir=/tmp/gs{port}"
    )
    time.sleep(8)
    cluster = Cluster(f"127.0.0.1:{port}", environment, folder, head)
    try:
        cluster.add_node()
        yield cluster
    finally:
        for process in (*cluster.nodes, head):
            if process.poll() is None:
                end(process)


def start_node(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    """Starts a node with one core; its output goes to a log in the folder."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--num-cpus=1", "--block"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)


def wait_for_nodes(environment: dict[str, str], address: str, count: int) -> None:
    code = (
        f"import ray; ray.init(address='{address}', log_to_driver=False); "
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
    job.communicate(timeout=300)
    assert job.returncode == 0
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


def wait_for_workers(out: Path) -> None:
    deadline = time.monotonic() + 120
    while not workers_of(out):
        assert time.monotonic() < deadline, "no worker began"
        time.sleep(0.1)


def test_an_interrupted_job_ends_with_130_and_goes_on_later(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.start(clips, *MOVING, "--out", tmp_path, "--json")
    wait_for_workers(tmp_path)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130
    assert json.loads(output)["interrupted"] is True
    again = cluster.process(clips, *MOVING, "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == alone


def test_a_killed_job_is_taken_up_by_the_next_one(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.start(clips, *MOVING, "--out", tmp_path)
    wait_for_workers(tmp_path)
    job.kill()
    job.communicate()
    again = cluster.process(clips, *MOVING, "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == alone
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "b", "c", "d"]


def test_a_long_recording_is_detected_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    film = encode(tmp_path / "film.mp4", "libx264", {"bf": "2"}, frames=126, rate=1)
    query = (film, "-q", "car", "-q", "person", "--detector", "glip-mini", "--every", "2", "--no-video")
    plain = run(*query, "--out", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    job = cluster.start(*query, "--out", tmp_path / "parts", "--json")
    deadline = time.monotonic() + 120
    killed: list[psutil.Process] = []
    while not killed and job.poll() is None and time.monotonic() < deadline:
        killed = processes_called("ray::_detect_on_node")[:1]
        for worker in killed:
            worker.kill()
        time.sleep(0.05)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert json.loads(output)["videos"][0]["tracks"] > 0
    assert results(tmp_path / "parts") == results(tmp_path / "plain")
    [row] = json.loads((tmp_path / "parts" / "cluster-report.json").read_text())["recordings"]
    assert row["parts"] == 2
    assert row["lost_parts"] == len(killed) == 1
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.is_dir()] == ["film"]


def processes_called(name: str) -> list[psutil.Process]:
    everything = psutil.process_iter(["cmdline"])
    return [each for each in everything if any(name in word for word in each.info["cmdline"] or ())]


def test_a_frozen_node_costs_only_what_it_had_begun(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    node = cluster.add_node()
    raylets = [each for each in psutil.Process(node.pid).children(recursive=True) if each.name() == "raylet"]
    assert raylets
    job = cluster.start(clips, *MOVING, "--out", tmp_path)
    wait_for_workers(tmp_path)
    for raylet in raylets:
        raylet.suspend()
    try:
        job.communicate(timeout=300)
    finally:
        for raylet in raylets:
            raylet.resume()
        end(node)
    assert job.returncode == 0
    assert results(tmp_path) == alone


def test_a_lost_node_costs_only_what_it_had_begun(
    cluster: Cluster, clips: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = cluster.start(clips, *MOVING, "--out", tmp_path)
    deadline = time.monotonic() + 120
    while not workers_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    end(cluster.nodes[0])
    job.communicate(timeout=300)
    assert job.returncode == 0
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


def test_a_wrong_token_is_one_sentence(cluster: Cluster, clips: Path, tmp_path: Path) -> None:
    stranger = replace(cluster, environment={**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64})
    done = stranger.process(clips / "a.mp4", *MOVING, "--out", tmp_path)
    assert done.returncode == 1
    assert "it refuses the token" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_versions_are_named() -> None:
    text = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.2\n"
        "This process on node 10.0.0.7 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert explain_refusal(text) == (
        "it runs Ray 2.59.0 and Python 3.11.2, this machine has Ray 2.60.0 and Python 3.11.7: "
        "install the same versions on every node"
    )
    assert explain_refusal("") == "it does not answer"
