"""Clips made of a source's packets: which pictures they hold, connections, workers that die, and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import av
import pytest

from streamer.frame import Frame
from streamer.sources import open_sources
from streamer.sources.packet_clips import ClipCutter, CutResult, PacketLimits
from streamer.sources.source import Source
from streamer.sources.workers.pool import DecodePool
from tests.support.clips import make_clip, read_index
from tests.support.fakes import FakeSource
from tests.support.reading import take_all
from tests.support.rtsp_server import RtspServer

SECOND = 1_000_000_000
STEP_NS = SECOND // 25
LIMITS = PacketLimits(seconds=60)
WITH_B_PICTURES: dict[str, Any] = {
    "h264": {"codec": "libx264", "options": {"preset": "medium", "bf": "3", "b-pyramid": "normal"}},
    "h265": {
        "codec": "libx265",
        "options": {"preset": "medium", "x265-params": "log-level=none:scenecut=0:open-gop=0:bframes=3"},
    },
    "h265 open": {
        "codec": "libx265",
        "options": {"preset": "medium", "x265-params": "log-level=none:scenecut=0:open-gop=1:bframes=3"},
    },
}
LIKE_CAMERAS: dict[str, Any] = {
    "h264": {},
    "h265": {"codec": "libx265", "options": {"x265-params": "log-level=none:scenecut=0:open-gop=0:bframes=0"}},
}


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def keep(source: Source, kept: list[bool] | None = None) -> ClipCutter:
    cutter = source.keep_packets(LIMITS, None if kept is None else kept.append)  # type: ignore[attr-defined]
    assert cutter is not None
    return cutter


async def cut(cutter: ClipCutter, from_ns: int, until_ns: int, path: Path) -> CutResult:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[CutResult] = loop.create_future()
    cutter.cut(from_ns, until_ns, path, lambda done: loop.call_soon_threadsafe(result.set_result, done))
    return await asyncio.wait_for(result, 20)


def numbers_in(path: Path) -> list[int | None]:
    """The numbers of all pictures of a clip in the order in which they are shown, decoded strictly."""
    with av.open(str(path), options={"err_detect": "explode"}) as container:
        numbers, times = [], []
        for frame in container.decode(video=0):
            assert not frame.is_corrupt
            numbers.append(read_index(frame.to_ndarray(format="bgr24")))
            times.append(frame.pts)
    assert times == sorted(set(times))
    return numbers


@pytest.mark.parametrize("form", ["mp4", "ts", "mkv"])
@pytest.mark.parametrize("codec", WITH_B_PICTURES)
def test_every_cut_of_a_recording_holds_whole_pictures_in_a_row(tmp_path: Path, codec: str, form: str):
    """Wherever it ends: with reordered pictures, one after the end may be decoded before one within."""
    path = make_clip(tmp_path / f"source.{form}", 60, gop=20, **WITH_B_PICTURES[codec])

    async def work() -> None:
        (source,) = open_sources(str(path), start_time_ns=5 * SECOND)
        cutter = keep(source)
        frames = await take_all(source)
        times = [frame.time_ns for frame in frames]
        assert cutter.can_cut
        for first, last in [(25, at) for at in range(41, 57)] + [(0, 59), (3, 12), (40, 200)]:
            until_ns = times[0] + last * STEP_NS
            target = tmp_path / "clip.mp4"
            result = await cut(cutter, times[first], until_ns, target)
            assert not result.error
            numbers = numbers_in(target)
            end = min(last, 59)
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), (first, last)
            assert numbers[0] <= first
            assert numbers[0] > first - 25
            assert end - 6 <= numbers[-1] <= end, (first, last)
            assert result.begin_ns == times[numbers[0]]
            assert abs(result.end_ns - times[numbers[-1]] - STEP_NS) < STEP_NS // 2
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        cutter.release()
        assert (await cut(cutter, times[0], times[9], target)).error == "no_packets"
        await source.aclose()

    run(work)


def test_a_codec_that_browsers_do_not_play_keeps_no_packets(tmp_path: Path):
    path = make_clip(tmp_path / "pictures.avi", 20, codec="mjpeg", pix_fmt="yuvj420p")

    async def work() -> None:
        (source,) = open_sources(str(path))
        kept: list[bool] = []
        cutter = keep(source, kept)
        await take_all(source)
        assert kept == [False]
        assert not cutter.can_cut
        assert (await cut(cutter, 0, SECOND, tmp_path / "clip.mp4")).error == "no_packets"
        assert not (tmp_path / "clip.mp4").exists()

    run(work)


def test_a_time_of_which_nothing_is_kept_gives_no_file(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 40)

    async def work() -> None:
        (source,) = open_sources(str(path), start_time_ns=100 * SECOND)
        cutter = keep(source)
        await take_all(source)
        assert (await cut(cutter, 10 * SECOND, 20 * SECOND, tmp_path / "clip.mp4")).error == "no_packets"
        assert not (tmp_path / "clip.mp4").exists()
        (tmp_path / "folder").write_text("a file where the folder should be")
        assert (await cut(cutter, 100 * SECOND, 101 * SECOND, tmp_path / "folder" / "clip.mp4")).error == "error"

    run(work)


def test_the_oldest_packets_go_first_and_clips_begin_later(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 900, size=(160, 128), gop=10)

    async def work() -> None:
        (source,) = open_sources(str(path), start_time_ns=0)
        cutter = source.keep_packets(PacketLimits(seconds=5))  # type: ignore[attr-defined]
        await take_all(source)
        assert (await cut(cutter, 0, 36 * SECOND, tmp_path / "clip.mp4")).error == ""
        numbers = numbers_in(tmp_path / "clip.mp4")
        assert numbers[-1] == 899
        assert 900 - 530 <= (numbers[0] or 0) <= 900 - 512  # pictures that are kept whatever their age
        cutter.release()
        (again,) = open_sources(str(path), start_time_ns=0)
        small = again.keep_packets(PacketLimits(seconds=60, max_bytes=50_000))  # type: ignore[attr-defined]
        await take_all(again)
        assert (await cut(small, 0, 36 * SECOND, tmp_path / "small.mp4")).error == ""
        assert (tmp_path / "small.mp4").stat().st_size < 70_000
        small.release()

    run(work)


class Watch:
    """Reads a source in the background."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.frames: list[Frame] = []

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.source.aclose()
        await self._task

    async def _read(self) -> None:
        async for frame in self.source:
            self.source.account.analyse()
            self.frames.append(frame)

    async def until(self, condition: Callable[[], bool], limit_s: float = 20.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def more(self, count: int) -> None:
        wanted = len(self.frames) + count
        await self.until(lambda: len(self.frames) >= wanted)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_clip_of_a_camera_has_the_pictures_around_its_time(tmp_path: Path, codec: str, transport: Any):
    path = make_clip(tmp_path / "source.mp4", 100, gop=20, **LIKE_CAMERAS[codec])

    async def work() -> None:
        with RtspServer({"cam": path}) as server:
            (source,) = open_sources(server.url(), transport=transport)
            cutter = keep(source)
            async with Watch(source) as watch:
                await watch.more(60)
                middle = watch.frames[30]
                result = await cut(
                    cutter, middle.time_ns - SECOND // 2, middle.time_ns + SECOND // 2, tmp_path / "clip.mp4"
                )
                assert not result.error
                numbers = numbers_in(tmp_path / "clip.mp4")
                assert None not in numbers
                assert read_index(middle.image) in numbers
                assert result.begin_ns <= middle.time_ns - SECOND // 2 + 2 * STEP_NS
                assert middle.time_ns + SECOND // 4 < result.end_ns < middle.time_ns + SECOND
            cutter.release()

    run(work)


def test_a_clip_comes_from_one_connection_and_the_next_is_kept_as_well(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 100, gop=10)
    small = make_clip(tmp_path / "small.mp4", 60, gop=10, size=(160, 128), first=200)

    async def work() -> None:
        with RtspServer({"cam": path}) as server:
            (source,) = open_sources(server.url())
            kept: list[bool] = []
            cutter = keep(source, kept)
            async with Watch(source) as watch:
                await watch.more(40)
                server.kill()
                before = watch.frames[-1]
                await watch.until(lambda: watch.source.state.value != "live")
                old = await cut(cutter, before.time_ns - SECOND, before.time_ns + SECOND, tmp_path / "old.mp4")
                server.mount("cam", small)
                server.start()
                await watch.more(30)
                after = watch.frames[-1]
                new = await cut(cutter, after.time_ns - SECOND, after.time_ns, tmp_path / "new.mp4")
                across = await cut(cutter, before.time_ns - SECOND, after.time_ns, tmp_path / "across.mp4")
            assert (old.error, new.error, across.error) == ("", "", "")
            assert len(kept) >= 2
            assert all(kept)
            assert max(number or 0 for number in numbers_in(tmp_path / "old.mp4")) < 100
            assert min(number or 0 for number in numbers_in(tmp_path / "new.mp4")) >= 200
            groups = {(number or 0) >= 200 for number in numbers_in(tmp_path / "across.mp4")}
            assert len(groups) == 1  # one file has one size
            cutter.release()

    run(work)


def test_a_worker_cuts_clips_and_its_death_fails_those_that_are_ordered(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 100, gop=10)

    async def work() -> None:
        pool = DecodePool(1)
        with RtspServer({"cam": path}) as server:
            (inner,) = open_sources(server.url())
            source = pool.move(inner)
            kept: list[bool] = []
            cutter = keep(source, kept)
            async with Watch(source) as watch:
                await watch.more(40)
                assert kept == [True]
                at_ns = watch.frames[20].time_ns
                done = await cut(cutter, at_ns, at_ns + SECOND // 2, tmp_path / "before.mp4")
                assert not done.error
                assert read_index(watch.frames[20].image) in numbers_in(tmp_path / "before.mp4")
                (worker,) = pool.process_ids
                os.kill(worker, signal.SIGSTOP)
                lost = asyncio.create_task(cut(cutter, at_ns, at_ns + SECOND // 2, tmp_path / "lost.mp4"))
                await asyncio.sleep(0)
                os.kill(worker, signal.SIGKILL)
                assert (await lost).error == "no_packets"
                await watch.until(lambda: kept == [True, True])
                await watch.more(30)
                at_ns = watch.frames[-20].time_ns
                assert not (await cut(cutter, at_ns, at_ns + SECOND // 2, tmp_path / "after.mp4")).error
            # The source has ended; what it kept is there until it is released.
            assert not (await cut(cutter, at_ns, at_ns + SECOND // 2, tmp_path / "late.mp4")).error
            cutter.release()
            assert (await cut(cutter, at_ns, at_ns + SECOND // 2, tmp_path / "never.mp4")).error == "no_packets"
        await pool.aclose()
        assert pool.process_ids == []

    run(work)


def test_a_worker_without_such_a_source_keeps_nothing():
    async def work() -> None:
        pool = DecodePool(1)
        source = pool.move(FakeSource())
        keep_packets = getattr(source, "keep_packets", None)
        assert keep_packets is None or keep_packets(LIMITS) is None
        await pool.aclose()

    run(work)
