"""No thread or task dies in silence: how each is started, and what is reported when one fails."""

from __future__ import annotations

import ast
import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.supervision import keep_running, new_thread, start_task, start_thread

ROOT = Path(__file__).resolve().parents[1]
STARTS = frozenset({"Thread", "Timer", "ThreadPoolExecutor", "create_task", "ensure_future", "start_new_thread"})

# Where threads and tasks are started without `sinks.supervision`: how many, and what becomes of an error there.
ACCEPTED = {
    "sinks/supervision.py:new_thread": (1, "the thread of supervision itself"),
    "sinks/supervision.py:start_task": (1, "the task of supervision itself"),
    "sinks/worker.py:ExchangeLimit.limit_exchange": (
        1,
        "sets a flag and shuts a socket down",
    ),
    "sinks/worker.py:finish_within": (1, "its error is returned"),
    "streamer/api.py:_run_into": (1, "is awaited: its error is raised to the caller"),
    "streamer/jobs/feeds.py:QueueFeed.open": (1, "`take` raises its error"),
    "streamer/jobs/runner.py:JobRunner.run": (1, "a task group"),
    "streamer/jobs/runner.py:JobRunner._prepare_unless_interrupted": (2, "the result of one is taken, the other waits"),
    "streamer/jobs/runner.py:JobRunner._run_guarded": (1, "is awaited: its error stands in the summary"),
    "streamer/pipeline/detection.py:DetectionLoop.__init__": (1, "each future is awaited, or its call reports"),
    "streamer/pipeline/merge.py:FrameMerge.add": (1, "its error is reported as the stream's, and the stream ends"),
    "streamer/pipeline/pipeline.py:Pipeline.run": (2, "a task group"),
    "streamer/pipeline/pipeline.py:Pipeline.apply": (1, "is awaited: its error is raised to the caller"),
    "streamer/pipeline/pipeline.py:Pipeline.wait_followed": (2, "both only wait for an event"),
    "streamer/recorders/video.py:AnnotatedVideo.__init__": (1, "each future is awaited"),
    "streamer/sources/packet_clips.py:PacketRing.cut": (1, "an error is delivered as the result"),
    "streamer/tasks/bench_cameras.py:CameraBench._run": (1, "is awaited"),
    "streamer/tasks/closing.py:run_until_stopped": (2, "one is awaited, the other waits for an event"),
    "streamer/tasks/doctor.py:run_checks": (1, "results are taken, with their errors"),
    "streamer/tasks/side_tasks.py:SideTasks.start": (1, "an error is logged, and ends the command or starts it again"),
    "streamer/web/live_frames.py:LiveFrames.__init__": (1, "errors are counted as failures"),
    "streamer/web/live_socket.py:LiveSocket.run": (2, "are awaited: an error is raised"),
    "streamer/web/preview.py:PreviewRuns.start": (1, "an error is the answer to the request"),
}


def find_starts() -> Iterator[str]:
    """FILE:FUNCTION of every call that starts a thread, a pool of threads or a task."""
    for package in ("streamer", "detectors", "trackers", "sinks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield from find_starts_in(path.read_text(), path.relative_to(ROOT).as_posix())


def find_starts_in(text: str, name: str) -> Iterator[str]:
    def walk(node: ast.AST, place: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                called = child.func
                word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if word in STARTS:
                    yield f"{name}:{'.'.join(place)}"
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from walk(child, (*place, child.name) if named else place)

    yield from walk(ast.parse(text), ())


def test_every_thread_and_task_is_supervised():
    found = Counter(find_starts())
    accepted = {place: count for place, (count, _) in ACCEPTED.items()}
    assert found == accepted, "start it with sinks.supervision, or say above what becomes of an error"


@pytest.mark.parametrize(
    "line",
    [
        "threading.Thread(target=work).start()",
        "Thread(target=work)",
        "asyncio.create_task(work())",
        "loop.create_task(work())",
        "self.tasks.append(asyncio.ensure_future(work()))",
    ],
)
def test_a_new_thread_or_task_is_found(line):
    assert list(find_starts_in(f"class A:\n    def start(self):\n        {line}\n", "a.py")) == ["a.py:A.start"]


def test_a_thread_that_fails_is_reported_with_its_reason(caplog):
    failures: list[BaseException] = []
    thread = start_thread(lambda: 1 / 0, name="divider", on_failure=failures.append)
    thread.join(10)
    assert [type(error) for error in failures] == [ZeroDivisionError]
    [record] = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage() == "the thread divider has failed (ZeroDivisionError: division by zero)"
    assert record.exc_info is not None


def test_a_thread_that_is_asked_to_exit_is_reported_too(caplog):
    start_thread(lambda: exec("raise SystemExit(3)"), name="leaver").join(10)
    assert "the thread leaver has failed (SystemExit: 3)" in caplog.text


def test_a_new_thread_is_a_daemon_that_was_not_started():
    thread = new_thread(lambda: None, name="idle")
    assert thread.daemon
    assert not thread.is_alive()


@pytest.mark.anyio
async def test_a_task_that_fails_is_reported_with_its_reason(caplog):
    async def fail() -> None:
        raise ValueError("no such place")

    failures: list[BaseException] = []
    task = start_task(fail(), name="finder", on_failure=failures.append)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert caplog.messages == ["the task finder has failed (ValueError: no such place)"]
    assert [str(error) for error in failures] == ["no such place"]


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_is_no_failure(caplog):
    task = start_task(asyncio.sleep(60), name="sleeper")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert caplog.messages == []


@pytest.mark.anyio
async def test_what_is_kept_running_is_started_again_until_it_ends(caplog):
    turns: list[int] = []

    async def work() -> None:
        turns.append(len(turns))
        if len(turns) < 3:
            raise RuntimeError(f"turn {turns[-1]}")

    await asyncio.wait_for(keep_running(work, name="the work", pause_s=0.01), 10)
    assert turns == [0, 1, 2]
    assert caplog.messages == [
        "the work has failed (RuntimeError: turn 0) and is started again",
        "the work has failed (RuntimeError: turn 1) and is started again",
    ]


@pytest.mark.anyio
async def test_a_delivery_that_fails_of_a_defect_goes_on(tmp_path, monkeypatch, caplog):
    from sinks.spool import spool as spool_module
    from sinks.spool.delivery import SinkDelivery
    from tests.sinks.makes import Recorder, event, ids

    monkeypatch.setattr(spool_module, "_RESTART_S", 0.01)
    sink, defects = Recorder(), [KeyError("a defect")]
    note_success = SinkDelivery._note_success

    def fail_once(delivery: SinkDelivery) -> None:
        if defects:
            raise defects.pop()
        note_success(delivery)

    monkeypatch.setattr(SinkDelivery, "_note_success", fail_once)
    async with await spool_module.Spool.open(tmp_path / "spool", {"sink": sink}) as spool:
        await spool.send(event(1))
        assert await spool.drain(10)
        await spool.send(event(2))
        assert await spool.drain(10)
    assert "the delivery to sink has failed (KeyError: 'a defect') and is started again" in caplog.text
    assert set(ids(sink.got)) == {event(1).id, event(2).id}


def test_a_video_writer_that_meets_a_defect_reports_it_and_blocks_nobody(tmp_path, monkeypatch):
    import numpy as np

    from sinks.sink import SinkError
    from streamer.recorders import video_writer

    monkeypatch.setattr(video_writer, "_fit_picture", lambda *_: 1 / 0)
    image = np.zeros((48, 64, 3), np.uint8)
    writer = video_writer.VideoWriter(tmp_path / "a.mp4", (64, 48))
    with pytest.raises(SinkError, match=r"cannot be written \(ZeroDivisionError"):  # noqa: PT012
        for number in range(30):
            writer.write(np.zeros((96, 64, 3), np.uint8) if number == 3 else image, number * 40_000_000)
        writer.close()


def test_a_live_source_whose_thread_fails_ends_with_the_reason(monkeypatch):
    from streamer.errors import SourceError
    from streamer.sources import open_sources
    from streamer.sources.live import LiveSource

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(LiveSource, "_enter", fail)
    (source,) = open_sources("rtsp://127.0.0.1:1/x", name="gate")

    async def read() -> None:
        async for _ in source:
            pass

    with pytest.raises(SourceError, match="is not watched any more: MemoryError: no room"):
        asyncio.run(asyncio.wait_for(read(), 20))
