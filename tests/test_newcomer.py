"""A newcomer's first hour: recordings, wrong commands, cameras in two terminals, pipes and Ctrl-C, with real files."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import pty
import re
import select
import shlex
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sinks.event import Event
from tests.streamer.test_jobs import make_street_clip
from tests.support.rtsp_server import RtspServer

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).resolve().parents[1]
LINE = '--line "door:0.5,0.2 0.5,0.9"'
LIMIT_S = 120
"""Far more than any step needs on a busy machine."""


class Terminal:
    """Commands as they are typed, in a folder and with a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        # HOME must not move Python's own packages of the user.
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), "PYTHONUNBUFFERED": "1"}
        for name in ("XDG_STATE_HOME", "COLUMNS"):
            self.environment.pop(name, None)
        self._started: list[subprocess.Popen[bytes]] = []

    def type(self, line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a line to its end and checks its exit code, and that no traceback was shown."""
        done = subprocess.run(
            self.words(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr, line
        return done

    def start(self, line: str, *, stdout: int | None = None) -> Running:
        """Runs a line in the background; its outputs go to files, or standard output where it is asked for."""
        running = Running(self, line, stdout)
        self._started.append(running.process)
        return running

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    @staticmethod
    def words(line: str) -> list[str]:
        name, *rest = shlex.split(line)
        assert name == "groundstream"
        return [sys.executable, "-m", "groundstream", *rest]


class Running:
    """A command in the background."""

    def __init__(self, terminal: Terminal, line: str, stdout: int | None) -> None:
        number = len(list(terminal.folder.glob("*.log")))
        self._out, self._log = (terminal.folder / f"{number}.{kind}" for kind in ("out", "log"))
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                Terminal.words(line),
                cwd=terminal.folder,
                env=terminal.environment,
                stdout=out if stdout is None else stdout,
                stderr=log,
            )

    def events(self) -> list[Event]:
        """The whole lines on standard output so far."""
        return [
            Event.from_json(line) for line in self._out.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]

    @property
    def output(self) -> str:
        return self._out.read_text()

    def interrupt(self) -> tuple[int, str]:
        """Presses Ctrl-C; returns the exit code and what was logged."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT_S), self._log.read_text()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate((("gate", 60), ("bikes", 40)), 3):
        make_street_clip(folder / f"{name}.mp4", seed, frames)
    return folder


@pytest.fixture
def terminal(tmp_path: Path, videos: Path) -> Iterator[Terminal]:
    for video in videos.iterdir():
        (tmp_path / video.name).symlink_to(video)
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def counts(folder: Path) -> dict[str, int]:
    """Events by stream in the database of an output folder."""
    with sqlite3.connect(folder / "events.sqlite") as database:
        return dict(database.execute("SELECT stream, count(*) FROM events GROUP BY stream"))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def test_recordings_one_after_the_other_into_one_folder(terminal: Terminal) -> None:
    out = terminal.folder / "out"
    moving = '-q "anything that moves"'
    shown = terminal.type(f"groundstream process gate.mp4 {moving} {LINE} --out out").stdout
    summary = json.loads((out / "gate" / "summary.json").read_text())
    door = summary["places"]["door"]
    assert f"door: in {door['in']}, out {door['out']}" in shown
    with sqlite3.connect(out / "events.sqlite") as database:
        [(crossings,)] = database.execute("SELECT count(*) FROM events WHERE type = 'groundstream.line.cross.v1'")
    assert crossings == sum(door.values()) > 0
    boxes = (out / "gate" / "tracks.txt").read_text().splitlines()
    coco = json.loads((out / "gate" / "coco.json").read_text())
    assert len(boxes) == len(coco["annotations"]) > 0
    assert len({line.split(",")[1] for line in boxes}) == summary["tracks"]
    assert (out / "gate" / "video.mp4").stat().st_size > 10_000
    first = counts(out)

    # The second recording adds; whatever is wrong afterwards changes nothing.
    terminal.type(f"groundstream process bikes.mp4 {moving} {LINE} --out out")
    both = counts(out)
    assert both["gate"] == first["gate"]
    assert both["bikes"] > 0
    (terminal.folder / "empty.mp4").touch()
    for wrong, code, sentence in (
        ("process gate.mp4 -q person --detector motion --out out", 2, "the motion detector cannot detect 'person'"),
        (f"process gate.mp4 {moving} --line door:5,2 --out out", 2, "'door:5,2' reaches outside the frame"),
        (f"process nothing.mp4 {moving} --out out", 1, "nothing.mp4 does not exist"),
        (f"process empty.mp4 {moving} --out out", 1, "empty"),
    ):
        done = terminal.type(f"groundstream {wrong}", code)
        assert sentence in done.stdout + done.stderr
    assert {name: both[name] for name in ("gate", "bikes")} == {name: counts(out)[name] for name in ("gate", "bikes")}

    # Again: complete before, the same bytes.
    before = (out / "gate" / "events.jsonl").read_bytes()
    assert "complete before" in terminal.type(f"groundstream process gate.mp4 {moving} {LINE} --out out").stdout
    terminal.type(f"groundstream process gate.mp4 {moving} {LINE} --out out --again")
    assert (out / "gate" / "events.jsonl").read_bytes() == before
    assert counts(out)["gate"] == both["gate"]

    # Read what came out.
    crossing = "groundstream subscribe sqlite:out/events.sqlite --type line.cross --format json"
    lines = terminal.type(crossing).stdout.splitlines()
    events = [Event.from_json(line) for line in lines]
    assert {event.data.line.id for event in events if event.data.line is not None} == {"door"}
    assert len([event for event in events if event.data.stream == "gate"]) == crossings
    nothing = terminal.type("groundstream subscribe sqlite:out/events.sqlite --type zone")
    assert nothing.stdout == ""
    assert "there are types" in nothing.stderr
    terminal.type("groundstream schema --validate out/events.jsonl")
    terminal.type("groundstream replay sqlite:out/events.sqlite --to jsonl:copy.jsonl")
    copied = [json.loads(line)["id"] for line in (terminal.folder / "copy.jsonl").read_text().splitlines()]
    assert len(copied) == len(set(copied)) == sum(counts(out).values())
    terminal.type("groundstream report out")
    assert "gate" in (out / "report.html").read_text()


def test_recordings_with_inconvenient_names(terminal: Terminal) -> None:
    for name in ("2026-11-24T10:00:00.mp4", "a [b] #1 %41.mp4", "été 100%?.mp4"):
        (terminal.folder / name).symlink_to((terminal.folder / "bikes.mp4").resolve())
        terminal.type(f"groundstream process {shlex.quote(name)} -q 'anything that moves' --no-video --out 'o[/b]'")
    summaries = [json.loads(path.read_text()) for path in (terminal.folder / "o[/b]").glob("*/summary.json")]
    assert len(summaries) == 3
    assert len({(summary["frames"], summary["tracks"]) for summary in summaries}) == 1
    assert {summary["error"] for summary in summaries} == {""}


@pytest.mark.parametrize("delay_s", [0.1, 0.6, 1.5, None], ids=["import", "set-up", "begin", "running"])
def test_ctrl_c_in_each_phase_of_a_job(terminal: Terminal, delay_s: float | None) -> None:
    """`delay_s` None: some frames of a long recording have been processed."""
    command = "groundstream process synthetic:street?seed=1&duration=900&clean=1 -q 'anything that moves' --out out"
    running = terminal.start(command)
    if delay_s is None:
        wait_for(
            lambda: any(file.stat().st_size > 3000 for file in terminal.folder.glob("out/**/events.jsonl")),
            "events of the recording",
        )
    else:
        time.sleep(delay_s)
    code, log = running.interrupt()
    # While modules are imported it ends by the signal itself, which a shell reports as 130, too.
    assert code == 130 or (delay_s is not None and code == -signal.SIGINT), log
    assert "Traceback" not in log
    assert not (terminal.folder / "out" / "street").exists()
    if delay_s is None:
        [summary] = terminal.folder.glob("out/*/summary.json")
        assert json.loads(summary.read_text())["interrupted"] is True
        assert "stopped" in running.output


def test_two_cameras_in_two_terminals(terminal: Terminal, videos: Path) -> None:
    """Standard output of each is its own events alone; Ctrl-C closes what is open."""
    with RtspServer({"gate": videos / "gate.mp4", "bikes": videos / "bikes.mp4"}) as server:
        monitors = {
            name: terminal.start(f"groundstream monitor {server.url(name)} --name {name} -q 'anything that moves'")
            for name in ("gate", "bikes")
        }
        for monitor in monitors.values():
            wait_for(lambda monitor=monitor: len(monitor.events()) >= 6, "events of both")
        ends = {name: monitor.interrupt() for name, monitor in monitors.items()}
        for name, (code, log) in ends.items():
            assert code == 0, log
            assert name in log  # says what is watched
            assert "Traceback" not in log
            events = monitors[name].events()
            assert {event.data.stream for event in events} == {name}
            assert [int(event.sequence) for event in events] == list(range(1, len(events) + 1))
            assert events[0].kind == "stream.online"
            assert [event.kind for event in events if event.kind != "coverage"][-1] == "stream.offline"
            begun = [event.subject for event in events if event.kind == "track.begin"]
            assert sorted(begun) == sorted(event.subject for event in events if event.kind == "track.end")


def test_a_camera_that_dies_and_returns_stands_in_the_log(terminal: Terminal, videos: Path) -> None:
    with RtspServer({"cam": videos / "gate.mp4"}) as server:
        url = server.url()
        monitor = terminal.start(
            f"groundstream monitor {url} --name gate -q 'anything that moves' --sink jsonl:events.jsonl --quiet"
        )
        file = terminal.folder / "events.jsonl"

        def kinds() -> list[str]:
            return [Event.from_json(line).kind for line in file.read_bytes().splitlines()] if file.exists() else []

        wait_for(lambda: "stream.online" in kinds(), "the camera")
        server.kill()
        wait_for(lambda: "stream.offline" in kinds(), "the loss")
        server.start()
        wait_for(lambda: kinds().count("stream.online") == 2, "the return")
        code, log = monitor.interrupt()
    assert code == 0
    assert "events.jsonl" in log  # where events go
    reported = [line for line in log.splitlines() if "gate" in line]
    assert len(reported) >= 3, log  # begin, loss, return


def test_a_pipe_to_head_ends_and_leaves_nothing_for_later(terminal: Terminal, videos: Path) -> None:
    with RtspServer({"gate": videos / "gate.mp4", "bikes": videos / "bikes.mp4"}) as server:
        command = "groundstream monitor {} --name {} -q 'anything that moves'"
        first = terminal.start(command.format(server.url("gate"), "gate"), stdout=subprocess.PIPE).process
        assert first.stdout is not None
        assert first.stdout.readline()
        first.stdout.close()
        first.wait(LIMIT_S)
        second = terminal.start(command.format(server.url("bikes"), "bikes"))
        wait_for(lambda: len(second.events()) >= 4, "events of the second camera")
        second.interrupt()
    assert {event.data.stream for event in second.events()} == {"bikes"}


def test_the_live_view_of_a_terminal_names_streams_and_events(terminal: Terminal, videos: Path) -> None:
    """80 columns wide, on a pseudo-terminal."""
    with RtspServer({"cam": videos / "gate.mp4"}) as server:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        line = f"groundstream monitor {server.url()} -q 'anything that moves' {LINE}"
        environment = {**terminal.environment, "TERM": "xterm"}
        process = subprocess.Popen(
            Terminal.words(line), cwd=terminal.folder, env=environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        output = b""
        asked = False
        deadline = time.monotonic() + LIMIT_S
        try:
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.2)[0]:
                    try:
                        output += os.read(master, 1 << 16)
                    except OSError:  # the other end is closed
                        break
                if not asked and b"match.begin" in output:
                    process.send_signal(signal.SIGINT)
                    asked = True
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace"))
    assert asked, shown[-2000:]
    assert "Traceback" not in shown
    assert "…" not in shown
    assert re.search(r"\d\d:\d\d:\d\d", shown)
    assert "anything that moves" in " ".join(shown.split())


class _Chat(http.server.BaseHTTPRequestHandler):
    """Takes messages as Slack does: `text` is needed, anything else is refused with 400."""

    received: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ok = isinstance(body.get("text"), str)
        if ok:
            self.received.append(body["text"])
        self.send_response(200 if ok else 400)
        self.end_headers()
        self.wfile.write(b"ok" if ok else b"no_text")

    def log_message(self, *_: object) -> None: ...


def test_a_chat_gets_sentences_and_doctor_tries_it(terminal: Terminal) -> None:
    handler = type("Chat", (_Chat,), {"received": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"slack+http://127.0.0.1:{server.server_port}/services/secret"
        output = terminal.type(f"groundstream doctor --sink {address} --send-test").stdout
        assert "works" in output
        assert "secret" not in output
        assert len(handler.received) == 1
        terminal.type(
            f"groundstream process gate.mp4 -q 'anything that moves' {LINE} --sink '{address}?types=line.cross' --out o"
        )
    finally:
        server.shutdown()
        server.server_close()
    crossings = json.loads((terminal.folder / "o/gate/summary.json").read_text())["events"]["line.cross"]
    messages = "\n".join(handler.received[1:])
    assert messages.count("door") == crossings > 0
    assert "{" not in messages


def test_python_takes_one_query_as_text_and_a_path(terminal: Terminal) -> None:
    (terminal.folder / "watch.py").write_text(
        "from pathlib import Path\nimport groundstream\n"
        "for event in groundstream.watch_sync(Path('gate.mp4'), 'anything that moves'):\n"
        "    print(event.kind, event.data.stream, *event.queries, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "watch.py"],
        cwd=terminal.folder,
        env=terminal.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "match.begin|gate|anything that moves" in done.stdout.splitlines()
