"""Cameras on a Ray cluster of two nodes on this machine: workers, nodes, the coordinator and the supervisor killed and
frozen while they work."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from sinks.event import Event
from tests.sinks.broker import free_port
from tests.streamer.test_shared_cameras import CAMERAS, check_events, read_events, write_config

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'groundstream[cluster]'"),
]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


@dataclass
class RayNodes:
    """Two nodes of a Ray cluster with the names `north` (the head) and `south`, and a supervisor."""

    folder: Path
    port: int
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_node(self, name: str) -> None:
        options = [f"--address={self.address}"]
        if name == "north":
            temporary = Path("/tmp") / f"gs{self.port}"
            options = ["--head", f"--port={self.port}", "--include-dashboard=false", "--temp-dir", str(temporary)]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--num-cpus=1"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        environment = self.environment | {"GROUNDSTREAM_NODE": name, "EVENTS": str(self.events_file(name))}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def start_supervisor(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "groundstream", "monitor", "-c", str(self.folder / "cameras.yaml")]
        environment = self.environment | {"EVENTS": str(self.folder / "nowhere.jsonl")}
        with (self.folder / "supervisor.log").open("ab") as log:
            self.processes["supervisor"] = subprocess.Popen(
                [*command, "--cluster", self.address], env=environment, stdout=log, stderr=log, cwd=self.folder
            )
        return self.processes["supervisor"]

    def events_file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def events(self, *names: str) -> list[Event]:
        return [event for name in names for event in read_events(self.events_file(name))]

    def online(self, *names: str) -> dict[str, int]:
        """The cameras that these nodes have seen, with the newest run."""
        found: dict[str, int] = {}
        for event in self.events(*names):
            if event.kind == "stream.online":
                found[event.data.stream] = max(event.data.run, found.get(event.data.stream, 0))
        return found

    def newest_run(self, camera: str) -> int:
        return max(
            (event.data.run for event in self.events("north", "south") if event.data.stream == camera), default=0
        )

    def workers(self, name: str, kind: str) -> list[psutil.Process]:
        """Processes of the actors of a class on a node."""
        family = psutil.Process(self.processes[name].pid).children(recursive=True)
        return [member for member in family if any(f"ray::{kind}" in part for part in _words(member))]

    def log(self) -> str:
        return (self.folder / "supervisor.log").read_text(errors="replace")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}\n{self.log()}"
            time.sleep(0.2)

    def wait_seen(self, *names: str, after: dict[str, int] | None = None) -> dict[str, int]:
        """Wait until these nodes have seen all cameras, each under a newer run than in `after`."""
        before = after or {}
        self.wait(
            lambda: all(self.online(*names).get(camera, 0) > before.get(camera, 0) for camera in CAMERAS),
            f"{CAMERAS} seen by {names} after {before}",
        )
        return self.online(*names)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=20)
    process.wait(20)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    folder = tmp_path_factory.mktemp("ray")
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    nodes = RayNodes(folder, free_port(), environment)
    write_config(folder / "cameras.yaml")
    try:
        nodes.start_node("north")
        nodes.wait(lambda: is_open(nodes.port), "the head answers")
        nodes.start_node("south")
        yield nodes
    finally:
        for process in reversed(nodes.processes.values()):
            end_family(process)


def is_open(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_lost_workers_coordinator_and_supervisor_lose_no_camera_and_no_event_is_made_twice(nodes: RayNodes):
    nodes.start_supervisor()
    nodes.wait(lambda: nodes.online("south"), "south watches a camera")
    nodes.wait_seen("north", "south")

    # The process that watches on south: its cameras are seen elsewhere, and it is started again.
    lost = nodes.online("south")
    for member in nodes.workers("south", "CameraNode"):
        member.kill()
    nodes.wait(lambda: all(nodes.newest_run(camera) > run for camera, run in lost.items()), "taken over")
    nodes.wait(lambda: "it is started again" in nodes.log(), "the supervisor replaces it")
    nodes.wait(
        lambda: any(run > lost.get(camera, 0) for camera, run in nodes.online("south").items()), "south watches again"
    )

    # The coordinator: the nodes go on, and no epoch is given twice.
    nodes.wait(lambda: nodes.workers("north", "LeaseKeeper"), "the coordinator runs")
    for member in nodes.workers("north", "LeaseKeeper"):
        member.kill()
    nodes.wait(lambda: nodes.workers("north", "LeaseKeeper"), "the coordinator is back")

    # The supervisor: the cameras are watched without it, and the next one finds the monitors that run.
    nodes.processes["supervisor"].kill()
    nodes.processes["supervisor"].wait()
    count = len(nodes.events("north", "south"))
    nodes.wait(lambda: len(nodes.events("north", "south")) > count + 3, "events go on")
    before = {member.pid for name in ("north", "south") for member in nodes.workers(name, "CameraNode")}
    marked = len(nodes.log())
    supervisor = nodes.start_supervisor()
    nodes.wait(lambda: nodes.log()[marked:].count(" watches") == 2, "the next supervisor finds both monitors")
    nodes.wait(lambda: nodes.log()[marked:].count("watched by") >= 3, "it knows the holders")
    assert {member.pid for name in ("north", "south") for member in nodes.workers(name, "CameraNode")} == before

    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0
    for camera in CAMERAS:
        run = nodes.newest_run(camera)
        found = [one for one in nodes.events("north", "south") if one.data.stream == camera and one.data.run == run]
        last = max(found, key=lambda event: int(event.sequence))
        assert last.data.outage is not None
        assert last.data.outage.cause == "shutdown"
    assert not [one for name in ("north", "south") for one in nodes.workers(name, "CameraNode")]
    check_events(nodes.events("north", "south"))


def test_a_frozen_node_is_replaced_and_sends_nothing_old_when_it_wakes(nodes: RayNodes):
    supervisor = nodes.start_supervisor()
    earlier = nodes.online("north", "south")
    nodes.wait_seen("north", "south", after=earlier)
    nodes.wait(
        lambda: any(run > earlier.get(camera, 0) for camera, run in nodes.online("south").items()), "south takes part"
    )
    lost = {camera: run for camera, run in nodes.online("south").items() if nodes.newest_run(camera) == run}
    family = [psutil.Process(nodes.processes["south"].pid)]
    family += family[0].children(recursive=True)
    for member in family:
        member.suspend()
    try:
        nodes.wait(
            lambda: all(nodes.online("north").get(camera, 0) > run for camera, run in lost.items()), "north takes over"
        )
        before = len(nodes.events("south"))
    finally:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()
    time.sleep(5)
    for event in nodes.events("south")[before:]:
        assert event.data.run > lost.get(event.data.stream, 0)

    # The node ends: the other one has all cameras.
    now = {camera: nodes.newest_run(camera) for camera in CAMERAS}
    held = {camera for camera, run in nodes.online("south").items() if run == now[camera]}
    end_family(nodes.processes["south"])
    nodes.wait(lambda: all(nodes.online("north").get(camera, 0) > now[camera] for camera in held), "north has all")
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(PATIENCE_S) in (0, 1)
    check_events(nodes.events("north", "south"))


def monitor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundstream", "monitor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_wrong_options_of_a_cluster_are_one_sentence_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tmp_path / "cameras.yaml"
    write_config(config)
    monkeypatch.setenv("EVENTS", str(tmp_path / "events.jsonl"))
    here = f"127.0.0.1:{free_port()}"
    for arguments, code, sentence in [
        (("synthetic:street", "-q", "person", "--cluster", "auto"), 2, "--cluster needs a configuration file"),
        (("-c", config, "--cluster", here, "--shard", "1/2"), 2, "--shard cannot stand beside --cluster"),
        (("-c", config, "--cluster", here, "--lease", "sqlite:x"), 2, "--lease cannot stand beside --cluster"),
        (("-c", config, "--cluster", "nonsense"), 2, "is not HOST:PORT"),
        (("-c", config, "--cluster", here), 1, "cannot connect to the Ray cluster"),
        (("-c", config, "--lease", "ray://127.0.0.1"), 2, "write ray://HOST:PORT/GROUP"),
        (("-c", config, "--lease", f"ray://{here}/cameras"), 1, "cannot connect to the Ray cluster"),
    ]:
        done = monitor(*arguments)
        assert done.returncode == code, done.stderr
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
