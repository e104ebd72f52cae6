"""The end of a command: signals, pipes without a reader, two monitors side by side, side tasks that fail."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sinks.event import Event, EventType
from streamer.cli import report_thread_death
from streamer.tasks.side_tasks import SideTaskError, SideTasks

SOURCE = "synthetic:street?seed={seed}&live=1&fps=10&size=320x240&clean=1"
LIMIT_S = 40
"""Far more than any deadline here, far less than for ever."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.json"
    answers = [[{"query": "person", "box": [40, 60, 80, 160], "confidence": 0.9}]]
    file.write_text(json.dumps({"frames": answers, "repeat": True}))
    return file


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path, script: Path) -> Iterator[Start]:
    """Starts `monitor` with a spool in a state folder of its own; ends what a test leaves behind."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(*options: str, seed: int = 1, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "streamer.cli", "monitor", SOURCE.format(seed=seed), "-q", "person"]
        command += ["--detector", f"scripted:{script}", "--quiet", *options]
        state = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=state)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_lines(path: Path, count: int = 3) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "no events came"
        time.sleep(0.1)


def read_events(path: Path) -> list[Event]:
    return [Event.from_json(line) for line in path.read_bytes().splitlines()]


def test_a_reader_that_leaves_ends_the_program_and_nothing_is_printed_later(start: Start, tmp_path: Path) -> None:
    """As `monitor ... | head -3`, and the same monitor again."""
    process = start("--sink", "stdout:", "--sink", f"jsonl:{tmp_path / 'e.jsonl'}", stdout=subprocess.PIPE)
    assert process.stdout is not None
    first = [Event.from_json(process.stdout.readline()) for _ in range(3)]
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    kept = read_events(tmp_path / "e.jsonl")
    assert kept[-1].type is EventType.STREAM_OFFLINE, "the stream was closed for the other sink"
    again = start(
        *("--sink", "stdout:", "--sink", f"jsonl:{tmp_path / 'e.jsonl'}", "--duration", "2"), stdout=subprocess.PIPE
    )
    printed, _ = again.communicate(timeout=LIMIT_S)
    runs = {Event.from_json(line).data.run for line in printed.splitlines()}
    assert len(runs) == 1
    assert first[0].data.run not in runs


def test_two_monitors_run_side_by_side_and_keep_their_own_spools(start: Start, tmp_path: Path) -> None:
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    both = [start("--sink", f"jsonl:{path}", seed=seed) for seed, path in enumerate(paths)]
    for path in paths:
        wait_for_lines(path)
    for process in both:
        process.terminate()
    assert [process.wait(LIMIT_S) for process in both] == [0, 0]
    assert len(list((tmp_path / "state" / "groundstream").glob("*.spool"))) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "state" / "groundstream").glob("*.spool*"))


def test_a_second_signal_ends_at_once_without_a_traceback(start: Start, tmp_path: Path) -> None:
    """Standard output is a pipe that is full and not read: closing waits for it until the second signal."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b" " * 4096)
    os.set_blocking(writer, True)
    options = ("--sink", "stdout:", "--sink", f"jsonl:{tmp_path / 'e.jsonl'}", "--close-timeout", "600")
    process = start(*options, stdout=writer)
    os.close(writer)
    wait_for_lines(tmp_path / "e.jsonl")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None, "it waits for the reader"
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == -signal.SIGINT
    os.close(reader)
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()


def test_a_pipe_that_is_not_read_is_left_behind_at_the_deadline(start: Start, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    options = ("--sink", "stdout:", "--sink", f"jsonl:{tmp_path / 'e.jsonl'}", "--close-timeout", "1")
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b" " * 4096)
    os.set_blocking(writer, True)
    process = start(*options, stdout=writer)
    os.close(writer)
    wait_for_lines(tmp_path / "e.jsonl")
    process.terminate()
    assert process.wait(LIMIT_S) in (0, 1)
    os.close(reader)
    ends = [event.data.track.end_reason for event in read_events(tmp_path / "e.jsonl") if event.kind == "track.end"]
    assert ends == ["shutdown"]


def test_a_side_task_that_fails_ends_the_command_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    stopped = []

    async def stop() -> None:
        stopped.append(True)

    async def fail() -> None:
        raise ValueError("the file is odd")

    async def run() -> None:
        async with SideTasks(stop) as tasks:
            tasks.start("reading the file", fail)
            await asyncio.sleep(0.05)

    with pytest.raises(SideTaskError, match=r"reading the file has failed \(ValueError: the file is odd\)"):
        asyncio.run(run())
    assert stopped == [True]
    assert "reading the file has failed" in caplog.text


def test_a_side_task_can_be_started_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    async def stop() -> None:
        raise AssertionError

    async def fail_once() -> None:
        calls.append(True)
        if len(calls) == 1:
            raise ValueError("once")

    async def run() -> None:
        async with SideTasks(stop) as tasks:
            tasks.start("painting", fail_once, restart_s=0.01)
            while len(calls) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert "painting has failed (ValueError: once): it is started again" in caplog.text


def test_a_thread_that_dies_is_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", report_thread_death)

    def fail() -> None:
        raise ValueError("lost")

    thread = threading.Thread(target=fail, name="reader of gate")
    thread.start()
    thread.join()
    assert "the thread 'reader of gate' has failed (ValueError: lost)" in caplog.text
