"""Decode workers: the same frames as in process, exact accounts whatever dies, slots that come back."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.pipeline.merge import FrameMerge
from streamer.sources import SourceState, StateChange, open_sources
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import Source, SourceRecipe
from streamer.sources.workers import ring
from streamer.sources.workers.pool import DecodePool
from streamer.sources.workers.proxy import WorkerSource
from tests.support.clips import make_clip, read_index
from tests.support.fakes import FakeSource
from tests.support.reading import take_all
from tests.support.rtsp_server import RtspServer

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def pool_of(most_workers: int = 1) -> AsyncIterator[DecodePool]:
    pool = DecodePool(most_workers)
    try:
        yield pool
    finally:
        await pool.aclose()
    assert pool.process_ids == []


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def described(frames: list[Frame]) -> list[tuple[Any, ...]]:
    return [(f.stream, f.index, f.time_ns, f.clock, f.width, f.height, f.image.tobytes()) for f in frames]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("turned.mp4", {"rotation": 90}),
        ("chroma-422.mp4", {"pix_fmt": "yuv422p"}),
        ("height.mp4", {"size": (322, 242)}),
        ("motion-jpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
def test_a_worker_gives_the_frames_that_reading_in_process_gives(tmp_path: Path, name: str, options: Any):
    path = make_clip(tmp_path / name, 30, **options)

    async def work() -> None:
        (here,) = open_sources(str(path))
        expected = described(await take_all(here))
        async with pool_of() as pool:
            moved = pool.move(open_sources(str(path))[0])
            assert isinstance(moved, WorkerSource)
            assert described(await take_all(moved)) == expected
            assert moved.account.tally() == here.account.tally()
            assert moved.expected_frames == here.expected_frames

    run(work)


def test_a_folder_of_images_and_the_street_are_read_by_workers_too(tmp_path: Path):
    from cv2 import imwrite

    for number in range(4):
        imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), 40 * number, np.uint8))

    async def work() -> None:
        async with pool_of(2) as pool:
            for address in (str(tmp_path), "synthetic:street?size=160x96&duration=0.2"):
                (here,) = open_sources(address)
                moved = pool.move(open_sources(address)[0])
                assert described(await take_all(moved)) == described(await take_all(here))

    run(work)


def test_states_come_before_the_frames_after_them_and_end_closed(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 5)
    seen: list[str] = []

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0], lambda change: seen.append(change.state.value))
            seen.extend([str(frame.index) async for frame in source])
            await source.aclose()

    run(work)
    assert seen[0] == "live"
    assert seen.count("closed") == 1
    assert [entry for entry in seen if entry.isdigit()] == ["0", "1", "2", "3", "4"]


def test_an_error_of_a_source_is_raised_after_its_frames(tmp_path: Path):
    path = make_clip(tmp_path / "cut.ts", 50)
    path.write_bytes(b"no video at all")

    async def work() -> None:
        async with pool_of() as pool:
            with pytest.raises(SourceError, match=r"cut\.ts"):
                await take_all(pool.move(open_sources(str(path))[0]))

    run(work)


def test_sources_that_cannot_be_moved_stay_in_process():
    async def work() -> None:
        async with pool_of() as pool:
            source = FakeSource()
            assert pool.move(source) is source

    run(work)


def test_frames_that_are_kept_hold_up_nothing(tmp_path: Path):
    """More frames than the ring has slots, none of them converted until the end: they are copied out of the ring."""
    path = make_clip(tmp_path / "clip.mp4", 150, size=(64, 64))

    async def work() -> None:
        async with pool_of() as pool:
            frames = await take_all(pool.move(open_sources(str(path))[0]))
            (here,) = open_sources(str(path))
            assert described(frames) == described(await take_all(here))

    run(work)


def test_pixels_outlive_the_worker(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 10)

    async def work() -> None:
        async with pool_of() as pool:
            frames = await take_all(pool.move(open_sources(str(path))[0]))
        assert [read_index(frame.image) for frame in frames] == list(range(10))

    run(work)


def test_memory_works_without_memfd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = ring.open_memory(ring.round_to_pages(10))
    try:
        assert os.fstat(descriptor).st_size >= 10
    finally:
        os.close(descriptor)


def test_closing_at_any_moment_loses_no_frame_from_the_account_and_no_slot(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 200, size=(160, 128))
    dice = random.Random(5)

    async def work() -> None:
        async with pool_of(2) as pool:
            for _ in range(40):
                source = pool.move(open_sources(str(path))[0])
                task = asyncio.create_task(take_all(source))
                await asyncio.sleep(dice.random() * 0.05)
                task.cancel()
                await asyncio.wait([task])
                await source.aclose()
                tally = source.account.tally()
                assert tally.pending == 0, tally
            # The workers are as good as new: a whole file comes through each.
            for _ in range(2):
                assert len(await take_all(pool.move(open_sources(str(path))[0]))) == 200

    run(work)


class PausingSource(FakeSource):
    """A recording of three frames whose reading pauses for as long as a file exists."""

    recording = None

    def __init__(self, pause: Path, on_state: Any = None) -> None:
        super().__init__("pausing", count=3)
        self._pause = pause

    def recipe(self) -> SourceRecipe:
        return SourceRecipe(PausingSource, {"pause": self._pause})

    async def __anext__(self) -> Frame:
        while self.account.tally().received == 2 and self._pause.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return await super().__anext__()


def test_frames_before_a_pause_of_reading_come_without_the_next(tmp_path: Path):
    pause = tmp_path / "pause"
    pause.touch()

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(PausingSource(pause))
            frames = aiter(source)
            async with asyncio.timeout(20):
                assert [(await anext(frames)).index for _ in range(2)] == [0, 1]
            pause.unlink()
            assert [frame.index async for frame in frames] == [2]

    run(work)


def test_a_slot_that_comes_back_while_the_loop_is_about_to_wait_wakes_it(tmp_path: Path):
    """The garbage collector may let go of a picture in the loop's thread when no callback is being run."""
    path = make_clip(tmp_path / "clip.mp4", 10)

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0])
            assert isinstance(source, WorkerSource)
            frames = await take_all(source)
            loop = asyncio.get_running_loop()
            woken: list[Callable[..., object]] = []
            wake = loop.call_soon_threadsafe

            def note(callback: Callable[..., object], *values: object, **more: Any) -> asyncio.Handle:
                woken.append(callback)
                return wake(callback, *values, **more)  # type: ignore[arg-type]

            loop.call_soon_threadsafe = note  # type: ignore[method-assign, assignment]
            frames.clear()
            gc.collect()
            assert len(woken) == 1
            assert source.leased_slots == 0

    run(work)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_lets_go_of_recordings_that_have_ended(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 10)

    async def work() -> None:
        async with pool_of() as pool:
            for _ in range(12):
                assert len(await take_all(pool.move(open_sources(str(path))[0]))) == 10
            (process,) = pool.process_ids
            maps = Path(f"/proc/{process}/maps")
            await until(lambda: maps.read_text().count("groundstream-frames") <= 1)
            assert len(await take_all(pool.move(open_sources(str(path))[0]))) == 10

    run(work)


def test_slots_come_back_when_frames_are_dropped_unread(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 100)

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0])
            assert isinstance(source, WorkerSource)
            count = 0
            async for _ in source:
                count += 1
            gc.collect()
            assert count == 100
            assert source.leased_slots <= 1

    run(work)


def test_a_recording_whose_worker_is_killed_is_read_on_from_the_next_frame(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 300)

    async def work() -> None:
        (here,) = open_sources(str(path))
        expected = [(f.index, f.time_ns, read_index(f.image)) for f in await take_all(here)]
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0])
            frames = []
            kills = 0
            async for frame in source:
                source.account.analyse()
                frames.append((frame.index, frame.time_ns, read_index(frame.image)))
                if frame.index in (40, 100, 160, 220, 280):  # further apart than frames may wait here
                    kills += 1
                    os.kill(pool.process_ids[0], signal.SIGKILL)
                    await asyncio.sleep(0.001)
            assert kills == 5
            assert frames == expected
            tally = source.account.tally()
            assert (tally.received, tally.analysed, tally.dropped) == (300, 300, {})

    run(work)


def test_a_message_that_cannot_be_handled_costs_the_worker_and_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As where this process has no descriptor or memory left for a moment."""
    path = make_clip(tmp_path / "clip.mp4", 100)
    failures = [OSError(24, "Too many open files")]

    def map_ring(*values: Any) -> ring.ReadingRing:
        if failures:
            raise failures.pop()
        return ring.ReadingRing(*values)

    monkeypatch.setattr("streamer.sources.workers.proxy.ReadingRing", map_ring)

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0])
            async with asyncio.timeout(30):
                assert [frame.index for frame in await take_all(source)] == list(range(100))
            assert source.account.tally().pending == 0

    run(work)
    assert "could not be handled" in caplog.text


def test_a_recording_that_kills_every_worker_ends_with_the_reason(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 100, size=(640, 480))

    async def work() -> None:
        async with pool_of() as pool:
            source = pool.move(open_sources(str(path))[0])
            killer = asyncio.create_task(kill_all(pool))
            try:
                with pytest.raises(SourceError, match=r"cannot be decoded from frame \d+ on: .*SIGKILL"):
                    await take_all(source)
            finally:
                killer.cancel()
            assert source.account.tally().pending == 0

    async def kill_all(pool: DecodePool) -> None:
        while True:
            for process in pool.process_ids:
                os.kill(process, signal.SIGKILL)
            await asyncio.sleep(0.001)

    run(work)


def test_a_camera_whose_worker_dies_is_lost_and_comes_back_and_the_others_lose_nothing(tmp_path: Path):
    camera = make_clip(tmp_path / "camera.mp4", 100)
    changes: list[StateChange] = []
    others: list[StateChange] = []

    async def work() -> None:
        with RtspServer({"cam": camera}) as server:
            async with pool_of(2) as pool:
                (one,) = open_sources(server.url())
                (two,) = open_sources(server.url(), name="other")
                victim, other = pool.move(one, changes.append), pool.move(two, others.append)
                frames: list[Frame] = []

                async def watch(source: Source, into: list[Frame]) -> None:
                    async for frame in source:
                        source.account.analyse()
                        into.append(frame)

                tasks = [asyncio.create_task(watch(victim, frames)), asyncio.create_task(watch(other, []))]
                await until(lambda: len(frames) > 3)
                (process,) = [p for p in pool.process_ids if p == pool.process_of(victim)]
                for round_ in range(1, 4):
                    os.kill(pool.process_of(victim), signal.SIGKILL)
                    await until(lambda round_=round_: [c.state for c in changes].count(SourceState.LIVE) > round_)
                assert pool.process_of(victim) != process
                for source in (victim, other):
                    await source.aclose()
                await asyncio.wait(tasks)
                assert victim.account.tally().pending == other.account.tally().pending == 0
                times = [frame.time_ns for frame in frames]
                indexes = [frame.index for frame in frames]
                assert times == sorted(set(times))
                assert indexes == sorted(set(indexes))

    run(work)
    states = [change.state.value for change in changes]
    assert states == ["connecting", "live", *["waiting", "live"] * 3, "closed"]
    assert "SIGKILL" in next(change.cause for change in changes if change.state is SourceState.WAITING)
    assert [change.state.value for change in others] == ["connecting", "live", "closed"]


def test_sources_under_which_workers_die_are_kept_apart(tmp_path: Path):
    """A worker that dies with several sources again is replaced by two with half of them each."""
    camera = make_clip(tmp_path / "camera.mp4", 50)

    async def work() -> None:
        with RtspServer({"cam": camera}) as server:
            async with pool_of(1) as pool:
                sources = [pool.move(open_sources(server.url(), name=f"cam{n}")[0]) for n in range(4)]
                tasks = [asyncio.create_task(take_all(source)) for source in sources]
                poison = sources[2]
                for _ in range(4):
                    await until(lambda: pool.process_of(poison) != 0)
                    before = pool.process_of(poison)
                    os.kill(before, signal.SIGKILL)
                    await until(lambda before=before: pool.process_of(poison) not in (0, before))
                shared = [source.name for source in sources if pool.process_of(source) == pool.process_of(poison)]
                assert shared == ["cam2"]
                for source in sources:
                    await source.aclose()
                await asyncio.wait(tasks)
                assert [source.account.tally().pending for source in sources] == [0] * 4

    run(work)


def test_the_frames_that_sampling_does_not_want_stay_in_the_worker(tmp_path: Path):
    camera = make_clip(tmp_path / "camera.mp4", 100)

    async def work() -> None:
        with RtspServer({"cam": camera}) as server:
            async with pool_of() as pool:
                source = pool.move(open_sources(server.url())[0])
                assert isinstance(source, WorkerSource)
                left = source.sample_in_worker(FrameSampling(fps=5))
                frames: list[Frame] = []

                async def watch() -> None:
                    async for frame in source:
                        assert left.wants(frame)
                        source.account.analyse()
                        frames.append(frame)

                task = asyncio.create_task(watch())
                await until(lambda: len(frames) >= 6)
                await source.aclose()
                await task
                tally = source.account.tally()
                assert tally.pending == 0
                assert tally.dropped["not_sampled"] > 2 * tally.analysed
                steps = np.diff([frame.time_ns for frame in frames]) / 1e9
                assert np.all(steps > 0.15)

    run(work)


def test_a_merge_takes_worker_sources_that_are_added_and_removed(tmp_path: Path):
    path = make_clip(tmp_path / "clip.mp4", 60, size=(160, 128))

    async def work() -> None:
        async with pool_of(2) as pool:
            merge = FrameMerge([])
            sources = [pool.move(open_sources(str(path), name=f"v{n}")[0]) for n in range(3)]
            taken: list[Frame] = []
            is_added = False
            merge.add(sources[0])
            merge.add(sources[1])
            while frames := await merge.take(8):
                taken += frames
                for frame in frames:
                    sources[int(frame.stream[1])].account.analyse()
                if not is_added and {"v0", "v1"} == {frame.stream for frame in taken}:
                    is_added = True
                    merge.add(sources[2])
                    await merge.remove("v0")
            assert [source.account.tally().pending for source in sources] == [0, 0, 0]
            assert {frame.stream for frame in taken} == {"v0", "v1", "v2"}
            assert sources[1].account.tally().analysed == sources[2].account.tally().analysed == 60

    run(work)


def test_a_worker_loads_no_model_library_and_nothing_that_checks_configurations():
    code = (
        "import sys, streamer.sources.workers.worker, streamer.sources.decode\n"
        "heavy = ('torch', 'transformers', 'supervision', 'cv2', 'pydantic', 'scipy', 'rich', 'typer')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_workers_end_with_the_process_that_started_them(tmp_path: Path):
    """Also when it is killed and can close nothing."""
    code = (
        "import asyncio, os\n"
        "from streamer.sources import open_sources\n"
        "from streamer.sources.workers.pool import DecodePool\n"
        "async def main():\n"
        "    pool = DecodePool(2)\n"
        "    for source in open_sources(['synthetic:street'] * 2):\n"
        "        pool.move(source)\n"
        "    pool.start_workers()\n"
        "    print(*pool.process_ids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    workers = [int(number) for number in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()

    async def work() -> None:
        await until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers))

    run(work)
