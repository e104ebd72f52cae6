"""The end of a command: signals, pipes without a reader, two monitors side by side, side tasks that fail."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
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
    assert process.wait(LIMIT_S) == 128 + signal.SIGINT
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


def run_code(code: str, *signals: tuple[float, int]) -> tuple[int, str, str]:
    """Runs Python code; sends each (seconds after 'ready' or the signal before, number). (exit code, stdout, stderr)"""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for wait_s, number in signals:
                time.sleep(wait_s)
                process.send_signal(number)
            out, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    return process.returncode, out, errors


BLOCKED_POOL = """
    import asyncio, threading
    from streamer.tasks.closing import ClosingDeadline

    async def main():
        pool = asyncio.ensure_future(asyncio.to_thread(threading.Event().wait))
        print("ready", flush=True)
        await asyncio.sleep({seconds})

    with ClosingDeadline(0.5, interrupted_code=130, kept="nothing is lost") as deadline:
        deadline.run(main())
    print("closed")
"""


@pytest.mark.parametrize(("seconds", "signals", "code"), [("0.2", [], 1), ("600", [(0.3, signal.SIGTERM)], 130)])
def test_a_thread_of_the_pool_that_never_returns_is_cut_off(
    seconds: str, signals: list[tuple[float, int]], code: int
) -> None:
    """The event loop waits for its thread pool without bound, after everything else is closed."""
    found, out, errors = run_code(BLOCKED_POOL.format(seconds=seconds), *signals)
    assert found == code
    assert out == ""
    assert "groundstream: closing took more than 0.5 s and was cut off (threads still at work: asyncio_0" in errors
    assert errors.rstrip().endswith("; nothing is lost")
    assert "Traceback" not in errors


def test_a_thread_that_never_ends_does_not_keep_the_interpreter() -> None:
    code = """
        import sys, threading
        from streamer import cli
        from streamer.tasks import closing

        closing.CLOSE_TIMEOUT_S = 0.5
        def work():
            threading.Thread(target=threading.Event().wait, name="stuck").start()
            print("ready", flush=True)
            raise SystemExit(3)

        cli.app = work
        cli.main()
    """
    found, _, errors = run_code(code)
    assert found == 3, "the exit code of the command stays"
    assert "the end of the program was held up and is forced (threads still at work: stuck" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_program_that_is_inside_native_code(number: int) -> None:
    """The main thread does not come back to Python, so no handler written in Python runs there."""
    code = """
        import ctypes
        from streamer.tasks.closing import SignalWatch

        with SignalWatch(lambda: print("first", flush=True)):
            print("ready", flush=True)
            while True:
                ctypes.CDLL(None).usleep(600_000_000)
    """
    code = code.replace("usleep(600_000_000)", "sigsuspend(ctypes.create_string_buffer(b'\\\\x00' * 128))")
    found, out, errors = run_code(code, (0.3, number), (1.0, number))
    assert found == 128 + number
    assert out == "first\n"
    assert errors == ""


def test_one_order_to_stop_that_arrives_twice_counts_once() -> None:
    """`timeout` sends its signal to the process and to the group of the process."""
    code = """
        import time
        from streamer.tasks.closing import SignalWatch

        with SignalWatch(lambda: print("first", flush=True)):
            print("ready", flush=True)
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                time.sleep(0.1)
        print("closed")
    """
    found, out, errors = run_code(code, (0.3, signal.SIGTERM), (0.05, signal.SIGTERM))
    assert (found, out, errors) == (0, "first\nclosed\n", "")


def test_an_interrupt_before_the_work_has_begun_ends_the_command() -> None:
    """No part asks to be stopped yet: the first signal is a KeyboardInterrupt."""
    code = """
        import asyncio
        from streamer import cli
        from streamer.tasks.closing import ClosingDeadline

        async def main():
            print("ready", flush=True)
            try:
                await asyncio.sleep(600)
            finally:
                print("cleaned")

        def work():
            with ClosingDeadline() as deadline:
                deadline.run(main())

        cli.app = work
        cli.main()
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        found, out, errors = run_code(code, (0.3, number))
        assert (found, out, errors) == (130, "cleaned\n", "")


def test_an_interrupt_while_the_model_loads_ends_the_job(tmp_path: Path) -> None:
    code = f"""
        import pathlib, sys, time
        from streamer import cli
        from streamer.jobs import runner

        def load(_):
            print("ready", flush=True)
            time.sleep(600)

        runner.load_detector = load
        sys.argv = ["groundstream", "process", "synthetic:street?seed=1&duration=2", "-q", "anything that moves",
                    "--detector", "motion", "--out", {str(tmp_path / "out")!r}, "--close-timeout", "0.5"]
        cli.main()
    """
    found, _, errors = run_code(code, (0.3, signal.SIGINT))
    assert found == 130
    assert "closing took more than 0.5 s and was cut off" in errors
    assert "complete recordings are kept" in errors
    assert "Traceback" not in errors
