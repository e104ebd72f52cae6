"""Cameras that several nodes share by leases: real processes, killed, frozen, stopped and given another file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sinks.event import Event
from streamer.cluster.lease_address import open_lease_store
from streamer.jobs.units import shard_of
from tests.sinks.broker import Proxy, free_port
from tests.sinks.servers import postgres

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
CAMERAS = ("door", "gate", "yard")
PATIENCE_S = 60.0


def write_config(path: Path, cameras: tuple[str, ...] = CAMERAS, query: str = "person", more: str = "") -> None:
    lines = [
        f'  - {{source: "synthetic:street?seed={number}&live=yes&fps=5&size=160x96", name: {name}}}'
        for number, name in enumerate(cameras)
    ]
    script = path.with_name("script.json")
    box = {"query": query, "box": [40, 20, 80, 90], "confidence": 0.9}
    script.write_text(json.dumps({"frames": [[box]], "repeat": True}))
    text = ["streams:", *lines, f"queries: [{query}]", f'detector: "scripted:{script}"', 'sinks: ["jsonl:${EVENTS}"]']
    path.write_text("\n".join([*text, more]) + "\n")


def read_events(file: Path) -> list[Event]:
    """The complete events in a file that is being written."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [Event.from_json(line) for line in lines if line.endswith(b"\n")]


@dataclass
class Nodes:
    """The processes of a test; each name has one file of events, over all its starts."""

    folder: Path
    address: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, name: str, *options: str, events: Path | None = None, address: str | None = None, port: int = 0
    ) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "XDG_STATE_HOME": str(self.folder / "state"),
            "EVENTS": str(events or self.events_file(name)),
            "PORT": str(port or free_port()),
            "PYTHONPATH": str(ROOT),
        }
        config = self.folder / f"{name}.yaml"
        if not config.exists():
            write_config(config)
        command = [sys.executable, "-m", "groundstream", "monitor", "-c", str(config), "--quiet"]
        command += ["--lease", address or self.address, "--node", name, *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        self.started.append(self.running[name])
        return self.running[name]

    def events_file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def events(self, name: str) -> list[Event]:
        return read_events(self.events_file(name))

    def all_events(self) -> list[Event]:
        return [event for name in self.running for event in self.events(name)]

    def holders(self) -> dict[str, str]:
        store = open_lease_store(self.address)
        try:
            return store.update(lambda book: {one.name: one.holder for one in book.cameras.values() if one.is_wanted})
        finally:
            store.close()

    def online(self, name: str) -> dict[str, int]:
        """The cameras that a node has seen, with the newest run."""
        return {event.data.stream: event.data.run for event in self.events(name) if event.kind == "stream.online"}

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            logs = "\n".join(f"{name}: {self.log(name)}" for name in self.running)
            assert time.monotonic() < deadline, f"waited in vain: {what}\n{logs}"
            time.sleep(0.1)

    def wait_seen(self, *names: str, cameras: tuple[str, ...] = CAMERAS) -> None:
        """Wait until these nodes hold all cameras and have seen each under its present epoch."""

        def are_seen() -> bool:
            holders = self.holders()
            return set(holders) == set(cameras) and all(
                holder in names and camera in self.online(holder) for camera, holder in holders.items()
            )

        self.wait(are_seen, f"{cameras} seen by {names}")

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def nodes(request, tmp_path) -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if request.param == "postgresql":
            pytest.importorskip("psycopg", reason="needs psycopg: pip install 'groundstream[postgres]'")
            with postgres(Path(folder)) as port:
                nodes = Nodes(tmp_path, f"postgresql://me:sesame@127.0.0.1:{port}/postgres")
                yield nodes
                nodes.end()
            return
        nodes = Nodes(tmp_path, f"sqlite:{folder}/leases.sqlite")
        yield nodes
        nodes.end()


def check_events(sent: Iterable[Event]) -> None:
    """No id for two events, no gap in a sequence, and no event of an epoch after the first of the next one.

    A spool sends the events again that a killed process had not seen acknowledged: these are the same events.
    """
    found_ids: dict[str, Event] = {}
    for event in sent:
        assert found_ids.setdefault(event.id, event) == event, "two events have one id"
    events = list(found_ids.values())
    spans: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in events:
        numbers[event.data.stream, event.data.run].append(int(event.sequence))
        is_late_end = event.data.track is not None and event.data.track.end_reason == "crashed"
        is_late_end |= event.data.outage is not None and "without closing" in event.data.outage.cause
        if event.data.clock.emitted_ns is not None and not is_late_end and event.kind not in ("match.end", "zone.exit"):
            spans[event.data.stream][event.data.run].append(event.data.clock.emitted_ns)
    for found in numbers.values():
        assert sorted(found) == list(range(1, len(found) + 1)), "a sequence has a gap"
    for stream, runs in spans.items():
        for (earlier, before), (later, after) in pairwise(sorted(runs.items())):
            assert max(before) <= min(after), f"{stream}: an event of run {earlier} was made after run {later} began"


def kinds(events: list[Event], camera: str, run: int) -> list[str]:
    chosen = [event for event in events if event.data.stream == camera and event.data.run == run]
    return [event.kind for event in sorted(chosen, key=lambda event: int(event.sequence))]


def test_the_cameras_of_a_killed_node_are_seen_by_the_other_one(nodes):
    nodes.start("a")
    nodes.start("b")
    nodes.wait_seen("a", "b")
    assert sorted(list(nodes.holders().values()).count(name) for name in "ab") == [1, 2]
    lost = nodes.online("a")
    for camera, run in lost.items():
        nodes.wait(lambda c=camera, r=run: "match.begin" in kinds(nodes.events("a"), c, r), "tracks are open")  # type: ignore[misc]
    nodes.running["a"].kill()
    nodes.wait_seen("b")
    taken = nodes.online("b")
    for camera, run in lost.items():
        assert taken[camera] > run
        begin = kinds(nodes.events("b"), camera, taken[camera])[:2]
        assert begin == ["stream.offline", "stream.online"]
    offline = next(event for event in nodes.events("b") if event.kind == "stream.offline")
    assert offline.data.outage is not None
    assert offline.data.outage.cause == "node a stopped renewing its lease"

    # The node comes back: what it left open ends under the old run, and it gets a camera again.
    nodes.start("a")
    nodes.wait(lambda: "a" in nodes.holders().values(), "a gets a camera again")
    nodes.wait_seen("a", "b")
    for camera, run in lost.items():
        found = kinds(list({event.id: event for event in nodes.events("a")}.values()), camera, run)
        assert found[-3:] == ["match.end", "track.end", "stream.offline"]
    for name in ("a", "b"):
        nodes.running[name].terminate()
        assert nodes.running[name].wait(PATIENCE_S) == 0
    check_events(nodes.all_events())


@pytest.mark.parametrize("nodes", ["sqlite"], indirect=True)
def test_a_frozen_node_sends_nothing_more_when_it_wakes_and_takes_part_again(nodes):
    nodes.start("a")
    nodes.start("b")
    nodes.wait_seen("a", "b")
    lost = nodes.online("a")
    nodes.running["a"].send_signal(signal.SIGSTOP)
    nodes.wait_seen("b")
    before = len(nodes.events("a"))
    nodes.running["a"].send_signal(signal.SIGCONT)
    nodes.wait(lambda: "a" in nodes.holders().values(), "a gets a camera again")
    nodes.wait_seen("a", "b")
    for event in nodes.events("a")[before:]:
        assert event.data.run > lost.get(event.data.stream, 0)
    assert "could not renew its leases in time" in nodes.log("a")
    for name in ("a", "b"):
        nodes.running[name].terminate()
        assert nodes.running[name].wait(PATIENCE_S) == 0
    nodes.start("a")  # which ends what the lost epochs left open
    nodes.wait_seen("a")
    for camera, run in lost.items():
        found = kinds(list({event.id: event for event in nodes.events("a")}.values()), camera, run)
        assert found[-1] == "stream.offline"
        assert found.count("track.begin") == found.count("track.end")
    check_events(nodes.all_events())


@pytest.mark.parametrize("nodes", ["postgresql"], indirect=True)
def test_a_node_that_is_cut_off_from_the_database_falls_silent_before_its_cameras_are_taken(nodes):
    proxy = Proxy(urlsplit(nodes.address).port or 0)
    port, through = free_port(), nodes.address.replace(str(urlsplit(nodes.address).port), str(proxy.port))
    try:
        for name in "ab":
            write_config(nodes.folder / f"{name}.yaml", more="metrics_port: ${PORT}")
        nodes.start("a", address=through, port=port)
        nodes.wait(lambda: read_metrics(port).get("groundstream_lease_cameras") == 3.0, "a holds all cameras")
        nodes.wait(lambda: read_status(port) == 200, "a is ready")
        nodes.wait_seen("a")
        lost = nodes.online("a")
        proxy.freeze()
        nodes.wait(lambda: "could not renew its leases in time" in nodes.log("a"), "a stops")
        nodes.wait(lambda: read_metrics(port).get("groundstream_lease_cameras") == 0.0, "a watches none")
        nodes.wait(lambda: read_metrics(port).get("groundstream_lease_age_seconds", 0.0) > 3.9, "the age rises")
        failed = 'groundstream_lease_renewals_total{outcome="failed"}'
        nodes.wait(lambda: read_metrics(port).get(failed, 0.0) > 0, "failures are counted")
        nodes.wait(lambda: read_status(port) == 503, "a is not ready")
        before = len(nodes.events("a"))
        nodes.start("b")
        nodes.wait_seen("b")
        proxy.thaw()
        nodes.wait(lambda: "a" in nodes.holders().values(), "a gets a camera again")
        nodes.wait_seen("a", "b")
        for event in nodes.events("a")[before:]:
            assert event.data.run > lost[event.data.stream]
        check_events(nodes.all_events())
    finally:
        proxy.close()


def read_status(port: int, path: str = "/readyz") -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def read_metrics(port: int) -> dict[str, float]:
    """The values of the node's metrics by name and labels; empty while it does not serve them."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


@pytest.mark.parametrize("nodes", ["sqlite"], indirect=True)
def test_a_node_that_is_stopped_gives_its_cameras_away_at_once(nodes):
    nodes.start("a")
    nodes.start("b")
    nodes.wait_seen("a", "b")
    given = nodes.online("a")
    nodes.running["a"].terminate()
    assert nodes.running["a"].wait(PATIENCE_S) == 0
    nodes.wait_seen("b")
    for camera, run in given.items():
        assert kinds(nodes.events("a"), camera, run)[-1] == "stream.offline"
        online = next(
            event for event in nodes.events("b") if event.data.stream == camera and event.kind == "stream.online"
        )
        assert online.sequence == "0" * (len(online.sequence) - 1) + "1"  # the outage is reported already
        assert online.data.outage is not None
        assert online.data.outage.cause == "node a was stopped"
    check_events(nodes.all_events())


@pytest.mark.parametrize("nodes", ["sqlite"], indirect=True)
def test_an_edit_on_one_node_reaches_all_and_an_old_copy_is_ignored(nodes):
    for name in "ab":
        write_config(nodes.folder / f"{name}.yaml")
    nodes.start("a")
    nodes.start("b")
    nodes.wait_seen("a", "b")
    write_config(nodes.folder / "a.yaml", ("door", "gate", "roof"))
    nodes.wait_seen("a", "b", cameras=("door", "gate", "roof"))
    removed = [event for event in nodes.all_events() if event.data.stream == "yard"][-1]
    assert removed.kind == "stream.offline"
    nodes.running["b"].terminate()
    assert nodes.running["b"].wait(PATIENCE_S) == 0
    nodes.start("b")  # its file is that of the beginning
    nodes.wait(lambda: "is a copy of an earlier revision" in nodes.log("b"), "the old copy is recognised")
    nodes.wait(lambda: "b" in nodes.holders().values(), "b gets a camera again")
    assert set(nodes.holders()) == {"door", "gate", "roof"}
    (nodes.folder / "a.yaml").write_text("streams: nonsense\n")
    nodes.wait(lambda: "nothing has changed" in nodes.log("a"), "the mistake is reported")
    assert set(nodes.holders()) == {"door", "gate", "roof"}


@pytest.mark.parametrize("nodes", ["sqlite"], indirect=True)
def test_a_second_process_of_the_same_name_ends_with_one_sentence(nodes):
    nodes.start("a")
    nodes.wait_seen("a")
    first = nodes.running["a"]
    second = nodes.start("a", "--spool", str(nodes.folder / "second.spool"), events=nodes.folder / "second.jsonl")
    assert second.wait(PATIENCE_S) == 1
    assert "give this one another name with --node" in nodes.log("a")
    assert first.poll() is None
    first.terminate()
    assert first.wait(PATIENCE_S) == 0


def run_monitor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundstream", "monitor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_wrong_options_are_one_sentence_each(tmp_path, monkeypatch):
    config = tmp_path / "cameras.yaml"
    write_config(config)
    monkeypatch.setenv("EVENTS", str(tmp_path / "events.jsonl"))
    for arguments, sentence in [
        (("-c", config, "--node", "a"), "of use with --lease alone"),
        (("synthetic:street", "-q", "person", "--lease", "sqlite:x"), "--lease needs a configuration file"),
        (("synthetic:street", "-q", "person", "--shard", "1/2"), "--shard divides the cameras of a configuration file"),
        (("-c", config, "--shard", "1/2", "--lease", "sqlite:x"), "divide the cameras in two ways"),
        (("-c", config, "--shard", "3/2"), "shard '3/2' is not NUMBER/COUNT"),
        (("-c", config, "--lease", "redis://host"), "write postgresql://HOST/DATABASE"),
        (("-c", config, "--lease", f"sqlite:{tmp_path}/x", "--node", "a b"), "the name of this node is 'a b'"),
    ]:
        done = run_monitor(*arguments)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
    config.write_text(config.read_text().replace("name: gate", "sample: {fps: 5}"))
    done = run_monitor("-c", config, "--lease", f"sqlite:{tmp_path}/y")
    assert done.returncode == 2
    assert "streams[1] has no name" in done.stderr


def cluster(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundstream", "cluster", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_a_node_is_drained_and_taken_back(nodes):
    nodes.start("a")
    nodes.start("b")
    nodes.wait_seen("a", "b")
    given = nodes.online("a")
    done = cluster("drain", "a", "--lease", nodes.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"a hands over {len(given)} cameras")
    nodes.wait_seen("b")
    for camera, run in given.items():
        last = max(
            (event for event in nodes.events("a") if event.data.stream == camera and event.data.run == run),
            key=lambda event: int(event.sequence),
        )
        assert last.data.outage is not None
        assert last.data.outage.cause == "moved to node b"
    status = json.loads(cluster("status", "--lease", nodes.address, "--json").stdout)
    assert [(node["name"], node["state"], node["cameras"]) for node in status["nodes"]] == [
        ("a", "drained", 0),
        ("b", "ready", 3),
    ]
    assert [(camera["name"], camera["holder"]) for camera in status["cameras"]] == [(name, "b") for name in CAMERAS]
    table = cluster("status", "--lease", nodes.address).stdout
    assert "drained" in table
    assert "door" in table
    assert cluster("drain", "a", "--undo", "--lease", nodes.address).stdout == "a takes cameras again\n"
    nodes.wait(lambda: "a" in nodes.holders().values(), "a gets a camera again")
    nodes.wait_seen("a", "b")
    check_events(nodes.all_events())
    unknown = cluster("drain", "c", "--lease", nodes.address)
    assert unknown.returncode == 1
    assert unknown.stderr.strip() == "groundstream: there is no node 'c': the nodes are a, b"


def doctor(address: object) -> tuple[str, str]:
    """State and detail of the check of a lease store."""
    command = [sys.executable, "-m", "groundstream", "doctor", "--json", "--lease", str(address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    [found] = [one for one in json.loads(done.stdout) if one["what"].startswith("lease ")]
    assert "sesame" not in done.stdout
    return found["state"], found["detail"]


def test_doctor_checks_the_store_of_leases_and_changes_nothing(nodes):
    for _ in range(2):
        state, detail = doctor(nodes.address)
        assert state == "works", detail
        assert "made by the first node" in detail
    nodes.start("a")
    nodes.wait_seen("a")
    state, detail = doctor(nodes.address)
    assert state == "works", detail
    assert "1 nodes share 3 cameras" in detail


TOKEN = "a-token-for-viewers-only"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def ask_page(port: int, path: str, token: str | None = TOKEN) -> tuple[int, str, bytes]:
    """Status, Location and body of an answer of a node's page; status 0 while it does not answer."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=30) as answer:
            return answer.status, "", answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("Location", ""), error.read()
    except OSError:
        return 0, "", b""


@pytest.mark.parametrize("nodes", ["sqlite"], indirect=True)
def test_the_page_of_every_node_knows_all_cameras_and_who_watches_them(nodes):
    ports = {name: free_port() for name in "ab"}
    web = f'web: {{port: "${{PORT}}", public_url: "http://127.0.0.1:${{PORT}}", tokens: {{viewer: {TOKEN}}}}}'
    for name, port in ports.items():
        write_config(nodes.folder / f"{name}.yaml", more=web)
        nodes.start(name, port=port)
    nodes.wait_seen("a", "b")
    nodes.wait(lambda: set(nodes.holders().values()) == {"a", "b"}, "both have cameras")
    nodes.wait(lambda: all(ask_page(port, "/healthz", None)[0] == 200 for port in ports.values()), "both pages")
    holders = nodes.holders()

    def answer(name: str) -> dict[str, Any]:
        status, _, body = ask_page(ports[name], "/api/v1/cluster")
        assert status == 200
        return dict(json.loads(body))

    for name in "ab":
        nodes.wait(lambda n=name: {c["name"]: c["holder"] for c in answer(n)["cameras"]} == holders, "both know all")  # type: ignore[misc]
        found = answer(name)
        assert found["node"] == name
        assert {node["name"]: node["state"] for node in found["nodes"]} == {"a": "ready", "b": "ready"}
        server = json.loads(ask_page(ports[name], "/api/v1/server")[2])
        assert (server["node"], server["editable"]) == (name, False)
    for camera, holder in holders.items():
        other = "b" if holder == "a" else "a"
        page = f"http://127.0.0.1:{ports[holder]}/camera/{camera}"
        assert {one["page"] for one in answer(other)["cameras"] if one["name"] == camera} == {page}
        for path in (f"/api/v1/streams/{camera}", f"/api/v1/streams/{camera}/snapshot.jpg?width=320"):
            assert ask_page(ports[other], path)[:2] == (307, f"http://127.0.0.1:{ports[holder]}{path}")
            nodes.wait(lambda h=holder, p=path: ask_page(ports[h], p)[0] == 200, "the holder answers")  # type: ignore[misc]
            assert ask_page(ports[other], path, None)[0] == 401, "without a token nothing is said"
        assert ask_page(ports[other], f"/camera/{camera}")[:2] == (307, page)
        assert ask_page(ports[other], f"/camera/{camera}", None)[0] == 200, "the page asks to log in"
    assert ask_page(ports["a"], "/api/v1/streams/nowhere")[0] == 404


def test_doctor_names_a_store_that_cannot_be_used(tmp_path):
    for address, sentence in [
        (f"sqlite:{tmp_path}", "it is a folder"),
        ("postgresql://me:sesame@127.0.0.1:1/leases", "does not take events"),
        ("redis://host/x", "write postgresql://HOST/DATABASE"),
    ]:
        state, detail = doctor(address)
        assert state == "broken"
        assert sentence in detail


def test_shards_divide_the_cameras_and_the_same_ones_at_every_start(tmp_path):
    cameras = tuple(f"camera{number}" for number in range(5))
    nodes, found = Nodes(tmp_path, ""), {}
    for number in (1, 2, 3):
        config = tmp_path / "cameras.yaml"
        write_config(config, cameras)
        environment = os.environ | {
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "EVENTS": str(nodes.events_file(str(number))),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "groundstream", "monitor", "-c", str(config), "--quiet"]
        done = subprocess.run(
            [*command, "--shard", f"{number}/3", "--duration", "4"], env=environment, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found[number] = {event.data.stream for event in nodes.events(str(number))}
        wanted = {name for name in cameras if shard_of(name, 3) == number - 1}
        assert found[number] == wanted
    assert sorted(name for names in found.values() for name in names) == sorted(cameras)
    assert len(list((tmp_path / "state" / "groundstream").glob("*.spool"))) == 3
