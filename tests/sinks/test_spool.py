"""The spool: what `send` has returned for reaches every sink, in order, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sinks.event import Event, EventType
from sinks.files import JsonlSink
from sinks.sink import PoisonError, SinkError
from sinks.spool import keeper
from sinks.spool.spool import Spool, SpoolClosed
from tests.sinks.makes import Recorder, event, events, ids, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.mark.parametrize("on_disk", [True, False])
async def test_every_sink_gets_every_event_in_order(path: Path, on_disk: bool) -> None:
    first, second = Recorder(), Recorder()
    async with await Spool.open(path if on_disk else None, {"first": first, "second": second}) as spool:
        for one in events(50):
            await spool.send(one)
        await spool.send_batch(events(50, first=50))
        assert await spool.drain(10)
    assert ids(first.got) == ids(second.got) == ids(events(100))
    assert first.closed
    assert second.closed


async def test_senders_of_many_streams_keep_the_order_of_each(path: Path) -> None:
    sink = Recorder()
    async with await Spool.open(path, {"sink": sink}) as spool:

        async def camera(stream: str) -> None:
            for one in events(100, stream=stream):
                await spool.send(one)

        await asyncio.gather(*(camera(f"camera-{number}") for number in range(8)))
        assert await spool.drain(10)
    for number in range(8):
        stream = f"camera-{number}"
        assert ids(one for one in sink.got if one.data.stream == stream) == ids(events(100, stream=stream))


async def test_a_dead_sink_delays_no_other_and_gets_everything_later(path: Path) -> None:
    broken = True

    def refuse(_: object) -> None:
        if broken:
            raise SinkError("kafka://me:secret@host/t refuses")

    well, ill = Recorder(), Recorder(refuse)
    async with await Spool.open(path, {"well": well, "ill": ill}) as spool:
        await spool.send_batch(events(3000))
        await until(lambda: len(well.got) == 3000)
        status = {sink.name: sink for sink in spool.status()}
        assert status["well"].state == "up"
        assert status["ill"].state == "down"
        assert status["ill"].backlog == 3000
        assert status["ill"].error == "kafka://***@host/t refuses"
        broken = False
        assert await spool.drain(20)
    assert ids(ill.got) == ids(events(3000))


async def test_a_backlog_larger_than_the_memory_comes_from_the_disk_in_order(path: Path) -> None:
    gate = asyncio.Event()
    sink = Recorder(lambda _: gate.wait())
    async with await Spool.open(path, {"sink": sink}) as spool:
        for start in range(0, 10_000, 200):
            await spool.send_batch(events(200, first=start))
        gate.set()
        assert await spool.drain(30)
    assert ids(sink.got) == ids(events(10_000))


async def test_a_sink_that_is_down_is_tried_with_little_and_then_gets_much(path: Path) -> None:
    sizes: list[int] = []

    def refuse_twice(batch: list[object]) -> None:
        sizes.append(len(batch))
        if len(sizes) <= 2:
            raise SinkError("down")

    sink = Recorder(refuse_twice)  # type: ignore[arg-type]
    async with await Spool.open(path, {"sink": sink}) as spool:
        for start in range(0, 9000, 500):
            await spool.send_batch(events(500, first=start))
        assert await spool.drain(20)
    assert ids(sink.got) == ids(events(9000))
    assert sizes[1:3] == [64, 64]
    assert max(sizes[3:]) > 900


async def test_a_sink_that_raises_by_mistake_is_asked_again(path: Path) -> None:
    failures = iter([KeyError("oops"), ZeroDivisionError()])

    def stumble(_: object) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    sink = Recorder(stumble)
    async with await Spool.open(path, {"sink": sink}) as spool:
        await spool.send_batch(events(5))
        assert await spool.drain(10)
    assert ids(sink.got) == ids(events(5))


async def test_a_sink_that_took_a_part_is_not_sent_that_part_again(path: Path) -> None:
    sink = Recorder()

    def half(batch: list[object]) -> None:
        if len(batch) == 10:
            sink.got += batch[:6]  # type: ignore[arg-type]
            raise SinkError("cut off", delivered=6)

    sink.answer = half  # type: ignore[assignment]
    async with await Spool.open(path, {"sink": sink}) as spool:
        await spool.send_batch(events(10))
        assert await spool.drain(10)
    assert ids(sink.got) == ids(events(10))


@pytest.mark.parametrize("named", [True, False])
async def test_poison_goes_to_the_dead_letters_and_the_rest_is_delivered(path: Path, named: bool) -> None:
    poison = event(4).id

    def refuse(batch: list[object]) -> None:
        if poison in ids(batch):  # type: ignore[arg-type]
            if not named:
                raise PoisonError("too large")
            raise PoisonError("refused", {poison: "too large, token=secret?token=secret"})

    sink = Recorder(refuse)  # type: ignore[arg-type]
    async with await Spool.open(path, {"sink": sink}) as spool:
        await spool.send_batch(events(10))
        assert await spool.drain(10)
        assert spool.dropped("gate") == {"dead_letter": 1}
        assert spool.status()[0].dead == 1
        assert spool.status()[0].delivered == 9
    letters = path.with_name("spool.sqlite.dead.jsonl").read_text()
    assert letters.count("\n") == 1
    assert poison in letters
    assert "too large" in letters
    assert "?token=secret" not in letters
    if not named:
        assert ids(sink.got) == [one for one in ids(events(10)) if one != poison]


async def test_what_was_not_delivered_is_delivered_after_the_next_start(path: Path) -> None:
    gate = asyncio.Event()
    async with await Spool.open(path, {"sink": Recorder(lambda _: gate.wait())}) as spool:
        await spool.send_batch(events(10))
    later = Recorder()
    async with await Spool.open(path, {"sink": later}) as spool:
        await spool.send_batch(events(10, first=10))
        assert await spool.drain(10)
    assert ids(later.got) == ids(events(20))


async def test_a_new_sink_gets_what_comes_from_now_on(path: Path) -> None:
    gate = asyncio.Event()
    async with await Spool.open(path, {"old": Recorder(lambda _: gate.wait())}) as spool:
        await spool.send_batch(events(10))
    new, old = Recorder(), Recorder()
    async with await Spool.open(path, {"old": old, "new": new}) as spool:
        await spool.send_batch(events(10, first=10))
        assert await spool.drain(10)
    assert ids(old.got) == ids(events(20))
    assert ids(new.got) == ids(events(10, first=10))


async def test_runs_rise_even_when_the_clock_falls(path: Path) -> None:
    runs = []
    for now_ns in (5_000_000_000, 5_000_000_000, 4_000_000_000, 9_000_000_000):
        async with await Spool.open(path, {}) as spool:
            runs.append(await spool.begin_run(now_ns))
    assert runs == [5000, 5001, 5002, 9000]


async def test_tracks_left_open_by_a_crash_are_known_by_their_last_event(path: Path) -> None:
    def track(sequence: int, uid: str, kind: EventType) -> None:
        sent.append(event(sequence, uid=uid, kind=kind))

    sent: list = []
    track(0, "A", EventType.TRACK_BEGIN)
    track(1, "B", EventType.TRACK_BEGIN)
    track(2, "A", EventType.TRACK_UPDATE)
    track(3, "B", EventType.TRACK_END)
    track(4, "A", EventType.ZONE_ENTER)
    async with await Spool.open(path, {"sink": Recorder()}) as spool:
        assert spool.open_tracks() == []
        for one in sent:
            await spool.send(one)
        await spool.drain(10)
    async with await Spool.open(path, {"sink": Recorder()}) as spool:
        left = spool.open_tracks()
        assert ids(left) == [sent[4].id]
        await spool.send(event(0, uid="A", kind=EventType.TRACK_END, run=left[0].data.run + 1))
    async with await Spool.open(path, {"sink": Recorder()}) as spool:
        assert spool.open_tracks() == []


CRASHER = """
    import asyncio, sys, time
    from sinks.spool.spool import Spool
    from tests.sinks.makes import Recorder, event
    from sinks.files import JsonlSink

    async def main():
        spool = await Spool.open(sys.argv[1], {"jsonl": JsonlSink(sys.argv[2]), "down": Recorder(refuse)})
        run = await spool.begin_run(time.time_ns())
        for sequence in range(1_000_000):
            await spool.send(event(sequence, run=run, uid=f"{run}"))
            sys.stdout.write(f"{run}.gate.{sequence}\\n")
            sys.stdout.flush()

    def refuse(_):
        raise OSError("down")

    asyncio.run(main())
"""


def run_until_killed(command: list[str], seconds: float) -> list[str]:
    """The lines that it wrote before the kill."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        return [line.strip() for line in [*lines, *process.stdout] if line.endswith("\n")]


def test_kill_9_loses_nothing_that_send_has_returned_for(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(CRASHER), str(path), str(out)]
    confirmed = [one for turn in range(4) for one in run_until_killed(command, 0.05 + 0.1 * turn)]
    down = Recorder()

    async def start_again() -> None:
        async with await Spool.open(path, {"jsonl": JsonlSink(out), "down": down}) as spool:
            assert len(spool.open_tracks()) == 4, "each run left one open"
            assert await spool.drain(30)

    asyncio.run(start_again())
    assert len(confirmed) > 100
    assert len(set(ids(down.got))) == len(down.got)
    assert set(confirmed) <= set(ids(down.got))
    written = [Event.from_json(line).id for line in out.read_bytes().splitlines()]
    assert list(dict.fromkeys(written)) == ids(down.got)


async def test_a_full_spool_holds_the_sender_back(path: Path) -> None:
    gate = asyncio.Event()
    sink = Recorder(lambda _: gate.wait())
    async with await Spool.open(path, {"sink": sink}, max_bytes=20_000) as spool:
        sender = asyncio.create_task(send_all(spool, 100))
        await asyncio.sleep(0.3)
        assert not sender.done()
        assert spool.used_bytes <= 20_000
        gate.set()
        await sender
        assert await spool.drain(10)
        assert spool.dropped() == {}
    assert ids(sink.got) == ids(events(100))


async def test_a_full_memory_spool_holds_the_sender_back(path: Path) -> None:
    gate = asyncio.Event()
    sink = Recorder(lambda _: gate.wait())
    async with await Spool.open(None, {"sink": sink}, max_bytes=20_000) as spool:
        sender = asyncio.create_task(send_all(spool, 100))
        await asyncio.sleep(0.1)
        assert not sender.done()
        gate.set()
        await sender
        assert await spool.drain(10)
    assert ids(sink.got) == ids(events(100))


async def send_all(spool: Spool, count: int) -> None:
    for one in events(count):
        await spool.send(one)


@pytest.mark.parametrize("on_disk", [True, False])
async def test_the_policy_drops_the_oldest_updates_and_never_a_begin_or_an_end(path: Path, on_disk: bool) -> None:
    gate = asyncio.Event()
    sink = Recorder(lambda _: gate.wait())
    kinds = [EventType.TRACK_BEGIN, *[EventType.TRACK_UPDATE] * 8, EventType.TRACK_END]
    sent = [event(sequence, kind=kinds[sequence % 10], padding=500) for sequence in range(200)]
    file = path if on_disk else None
    async with await Spool.open(file, {"sink": sink}, max_bytes=100_000, when_full="drop_oldest") as spool:
        for one in sent:
            await spool.send(one)
        dropped = spool.dropped("gate")["full"]
        assert spool.used_bytes <= 100_000
        gate.set()
        assert await spool.drain(10)
    got = set(ids(sink.got))
    assert len(sent) - len(sink.got) <= dropped
    assert {one.id for one in sent if one.type is not EventType.TRACK_UPDATE} <= got
    assert ids(sink.got) == [one.id for one in sent if one.id in got]
    left = [one.id for one in sent if one.type is EventType.TRACK_UPDATE and one.id in got]
    assert set(ids(sent[-2:])) <= got, "the newest stay"
    assert left[-10:] == [one.id for one in sent if one.type is EventType.TRACK_UPDATE][-10:]


async def test_used_bytes_return_to_zero_and_the_file_shrinks(path: Path) -> None:
    gate = asyncio.Event()
    sink = Recorder(lambda _: gate.wait())
    async with await Spool.open(path, {"sink": sink}) as spool:
        for start in range(0, 12_000, 500):
            await spool.send_batch([event(start + i, padding=1000) for i in range(500)])
        await asyncio.sleep(0.5)
        grown = sum(file.stat().st_size for file in path.parent.iterdir())
        gate.set()
        assert await spool.drain(30)
        await until(lambda: spool.used_bytes == 0)
        await until(lambda: sum(file.stat().st_size for file in path.parent.iterdir()) < grown / 3, seconds=20)


async def test_the_log_begins_again_though_events_never_pause(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CHECKPOINT_S": 0.0, "CHECKPOINT_BYTES": 1 << 18, "RESTART_BYTES": 1 << 20}.items():
        monkeypatch.setattr(keeper, name, value)
    monkeypatch.setattr(keeper, "SYNC_WINDOW_S", 0.01)
    gate = asyncio.Event()
    async with await Spool.open(path, {"sink": Recorder(lambda _: gate.wait())}) as spool:

        async def send_some(sent: list[Event]) -> None:
            for _ in range(300):
                await spool.send_batch(sent)

        def log_number() -> int:
            """https://sqlite.org/fileformat.html#the_write_ahead_log: rises whenever the log begins again."""
            return int.from_bytes(path.with_name(path.name + "-wal").read_bytes()[12:16], "big")

        await spool.send(event(0))
        first = log_number()
        await asyncio.gather(*(send_some([event(8 * n + i, padding=1000) for n in range(20)]) for i in range(8)))
        assert log_number() > first


async def test_a_spool_whose_sink_stopped_in_the_middle_of_a_block_rests(path: Path) -> None:
    def half(batch: list[object]) -> None:
        if len(batch) > 6:
            raise SinkError("cut off", delivered=6)
        raise SinkError("down")

    async with await Spool.open(path, {"sink": Recorder(half)}) as spool:  # type: ignore[arg-type]
        await spool.send_batch(events(10))
        await until(lambda: spool.status()[0].failures == 1)
        await asyncio.sleep(1.0)
        looks = 0
        release = spool._store.release

        def count(upto: int) -> int:
            nonlocal looks
            looks += 1
            return release(upto)

        spool._store.release = count
        await asyncio.sleep(1.0)
        assert looks < 10
        assert spool.used_bytes > 0


async def test_a_closed_spool_takes_nothing_more(path: Path) -> None:
    spool = await Spool.open(path, {})
    await spool.aclose()
    await spool.aclose()
    with pytest.raises(SpoolClosed):
        await spool.send(event(0))


async def test_closing_while_many_send_ends_and_refuses_those_that_were_too_late(path: Path) -> None:
    spool = await Spool.open(path, {})
    senders = [asyncio.create_task(send_all(spool, 2000)) for _ in range(8)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await spool.aclose()
        sent = await asyncio.gather(*senders, return_exceptions=True)
    assert {type(one) for one in sent} == {SpoolClosed}


async def test_a_memory_spool_counts_what_it_never_delivered() -> None:
    gate = asyncio.Event()
    spool = await Spool.open(None, {"sink": Recorder(lambda _: gate.wait())})
    await spool.send_batch(events(7))
    assert not await spool.drain(0.05)
    await spool.aclose()
    assert spool.dropped() == {"undelivered": 7}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


async def test_two_processes_never_share_a_spool(path: Path) -> None:
    code = (
        "import sys; from sinks.spool.store import SpoolStore; from pathlib import Path; SpoolStore(Path(sys.argv[1]))"
    )
    async with await Spool.open(path, {}):
        found = run_python(code, str(path))
    assert found.returncode == 1
    assert "in use by another process" in found.stderr


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(SinkError, match="database of something else"):
        asyncio.run(Spool.open(path, {}))
    assert path.read_bytes() == before


async def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(SinkError, match=r"cannot be opened \(.*\): check path"):
        await Spool.open("/proc/nowhere/spool.sqlite", {})


FULL_DISK = """
    import asyncio, resource, sys
    from sinks.spool.spool import Spool
    from tests.sinks.makes import Recorder, event
    from sinks.event import EventType

    async def main():
        sink = Recorder()
        spool = await Spool.open(sys.argv[1], {"sink": sink}, when_full=sys.argv[2])
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        kinds = [EventType.TRACK_BEGIN, EventType.TRACK_UPDATE]
        sent = [event(n, kind=kinds[n % 2], padding=4000) for n in range(400)]
        async def send():
            for one in sent:
                await spool.send(one)
        sender = asyncio.create_task(send())
        while not spool.storage_error:
            await asyncio.sleep(0.01)
        print(spool.storage_error)
        await asyncio.sleep(1)
        print("waiting", not sender.done())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await sender
        assert await spool.drain(20)
        got = [one.id for one in sink.got]
        print("lost", len(sent) - len(got), "counted", sum(spool.dropped().values()))
        print("begins", sum(one.type is EventType.TRACK_BEGIN for one in sink.got))
        print("order", got == [one.id for one in sent if one.id in set(got)], spool.storage_error == "")
        await spool.aclose()

    asyncio.run(main())
"""


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_full_disk_follows_the_policy_and_heals(path: Path, policy: str) -> None:
    found = run_python(FULL_DISK, str(path), policy)
    assert found.returncode == 0, found.stderr
    said = found.stdout.splitlines()
    assert "cannot grow" in said[0]
    assert said[1] == "waiting True"
    words = said[2].split()
    assert words[1] == words[3]
    assert policy == "drop_oldest" or words[1] == "0"
    assert said[3] == "begins 200"
    assert said[4] == "order True True"
    assert found.stderr.count("cannot grow") == 1, "reported once, not in a flood"


def test_a_track_that_was_merged_after_its_end_is_not_open_again(tmp_path):
    async def run() -> int:
        async with await Spool.open(tmp_path / "spool", {}) as spool:
            assert spool.open_tracks() == []
            merge = event(3, kind=EventType.TRACK_MERGE)
            ended = merge.data.track.model_copy(update={"state": "ended"})
            merge = merge.model_copy(update={"data": merge.data.model_copy(update={"track": ended})})
            await spool.send_batch([event(1), event(2, kind=EventType.TRACK_END), merge])
        async with await Spool.open(tmp_path / "spool", {}) as spool:
            return len(spool.open_tracks())

    assert asyncio.run(run()) == 0


async def test_events_for_a_sink_that_is_down_wait_in_the_file_and_not_in_memory(tmp_path: Path) -> None:
    """An event takes about 6 kB of memory: thousands that wait looked like a leak."""
    is_down = True

    def refuse(_: object) -> None:
        if is_down:
            raise SinkError("down")

    ill, well = Recorder(refuse), Recorder()
    async with await Spool.open(tmp_path / "spool", {"ill": ill, "well": well}) as spool:
        await spool.send(event(0))
        await until(lambda: spool.status()[0].state == "down")
        for first in range(1, 3001, 100):
            await spool.send_batch(events(100, first=first))
            await until(lambda: spool.status()[1].backlog == 0)
        assert len(spool._tail) <= 600
        is_down = False
        assert await spool.drain(30)
    assert ids(ill.got) == ids(well.got) == ids(events(3001))
