"""Cameras: back within three seconds whatever happens, only the newest frame, never a damaged one."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import itertools
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sinks.address import redact
from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.pipeline.merge import FrameMerge
from streamer.sources import SourceState, StateChange, open_sources
from streamer.sources.catch_up import CatchUp
from streamer.sources.clock import LiveClock
from tests.support.clips import draw, make_clip, read_index
from tests.support.rtsp_server import RtspServer

SECOND = 1_000_000_000
BACK_S = 3.0
CAMERA_LIKE = {"options": {"x265-params": "log-level=none:scenecut=0:open-gop=0:bframes=0"}, "codec": "libx265"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "h264": make_clip(folder / "h264.mp4", 100),
        "h265": make_clip(folder / "h265.mp4", 100, **CAMERA_LIKE),
        "small": make_clip(folder / "small.mp4", 20, size=(160, 128), first=100),
        "large": make_clip(folder / "large.mp4", 60, size=(640, 480), gop=20),
        "large h265": make_clip(folder / "large-h265.mp4", 60, size=(640, 480), gop=20, **CAMERA_LIKE),
    }


class Watch:
    """Reads a source in the background and remembers what it saw and was reported."""

    def __init__(self, address: str, **options: Any) -> None:
        self.changes: list[StateChange] = []
        (self.source,) = open_sources(address, on_state=self.changes.append, **options)
        self.frames: list[Frame] = []
        self.error: Exception | None = None

    def check_whole(self, original: Any) -> None:
        """All frames are pictures of the original, and everything that came is accounted for."""
        for frame in self.frames:
            number = read_index(frame.image)
            assert number is not None
            assert np.array_equal(frame.image, original[number])
        tally = self.source.account.tally()
        assert tally.received == tally.analysed + sum(tally.dropped.values())

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.source.aclose()
        await self._task
        # Closing waits two seconds for the source's thread; on a machine that is busy elsewhere it may need more.
        if "live" in self.states:
            await self.until(lambda: "closed" in self.states)

    async def _read(self) -> None:
        try:
            async for frame in self.source:
                self.source.account.analyse()
                self.frames.append(frame)
        except SourceError as error:
            self.error = error

    @property
    def states(self) -> list[str]:
        return [change.state.value for change in self.changes]

    async def until(self, condition: Callable[[], bool], limit_s: float = 10.0) -> float:
        """Wait for `condition`; how long that took. The limit is generous: machines are slow at times."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, (self.states, len(self.frames), self.changes[-1:])
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def more(self, count: int = 3) -> float:
        wanted = len(self.frames) + count
        return await self.until(lambda: len(self.frames) >= wanted)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("watch", "read"))]


def file_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]
    assert threads() == []


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_camera_is_watched_over_tcp_and_udp_with_a_password(
    clips: dict[str, Path], codec: str, transport: Any
) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips[codec]}, auth=("ann", "s3/cret")) as server:
            address = server.url(user="ann", password="s3%2Fcret")
            async with Watch(address, transport=transport) as watch:
                await watch.more(30)
            assert watch.states == ["connecting", "live", "closed"]
            assert "s3" not in repr((watch.source, watch.source.name, watch.changes))
            seen = [read_index(frame.image) for frame in watch.frames]
            assert None not in seen
            times = [frame.time_ns for frame in watch.frames]
            assert sorted(set(times)) == times
            # Capture time is the camera's, however late the picture comes.
            assert watch.frames[-1].clock.basis == "rtcp_sr"
            for frame, number in zip(watch.frames, seen, strict=True):
                assert frame.clock.uncertainty_ms is not None
                assert server.capture_error_s("cam", number or 0, frame.time_s) * 1000 <= frame.clock.uncertainty_ms + 5
            assert watch.source.account.tally().pending == 0

    run(work)


def test_killed_and_restarted_at_random_moments_it_is_always_back(clips: dict[str, Path]) -> None:
    """Twenty outages on two cameras, TCP and UDP (GROUNDSTREAM_OUTAGES for more), beside a third that is left alone."""
    outages = int(os.environ.get("GROUNDSTREAM_OUTAGES", "20")) // 2
    chance = random.Random(7)

    async def endure(server: RtspServer, watch: Watch) -> None:
        for _ in range(outages):
            await watch.more(1)
            await asyncio.sleep(chance.uniform(0, 0.4))
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(chance.uniform(0, 1.2))
            await asyncio.to_thread(server.start)
            outage = watch.frames[-1].clock.connection
            back_s = await watch.until(lambda before=outage: watch.frames[-1].clock.connection > before)  # type: ignore[misc]
            assert back_s < BACK_S

    async def work() -> None:
        with contextlib.ExitStack() as stack:
            first, second, calm = (stack.enter_context(RtspServer({"cam": clips[c]})) for c in ("h264", "h265", "h264"))
            before = file_descriptors()
            async with (
                Watch(first.url()) as over_tcp,
                Watch(second.url(), transport="udp") as over_udp,
                Watch(calm.url()) as undisturbed,
            ):
                tasks = len(asyncio.all_tasks())
                await asyncio.gather(endure(first, over_tcp), endure(second, over_udp))
                assert len(asyncio.all_tasks()) == tasks
                assert len(threads()) == 3
            for watch in (over_tcp, over_udp):
                assert watch.states == ["connecting", "live"] + ["waiting", "live"] * outages + ["closed"]
                times = [frame.time_ns for frame in watch.frames]
                assert sorted(set(times)) == times
                assert watch.source.account.tally().pending == 0
            assert undisturbed.states == ["connecting", "live", "closed"]
            assert max(np.diff([frame.index for frame in undisturbed.frames])) <= 10
            for server in (first, second, calm):
                server.kill()
            await asyncio.sleep(0.1)
            assert file_descriptors() <= before

    run(work)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("stall", "no picture came for 0.5 s"), ("freeze_timestamps", "the same picture came for 0.5 s")],
)
def test_a_frozen_camera_is_noticed_and_reported_once(clips: dict[str, Path], fault: str, cause: str) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips["h264"]}) as server:
            async with Watch(server.url(), stall_s=0.5) as watch:
                await watch.more(5)
                setattr(server.faults, fault, True)
                if fault == "stall":
                    await watch.until(lambda: "stalled" in watch.states)
                    frozen = len(watch.frames)
                    await asyncio.sleep(1.2)
                    assert len(watch.frames) == frozen
                    assert watch.states == ["connecting", "live", "stalled"]
                else:  # each new connection shows one picture before it is seen to be frozen, too
                    await watch.until(lambda: "stalled" in watch.states)
                assert watch.changes[2].cause.startswith(cause)
                setattr(server.faults, fault, False)
                connection = watch.frames[-1].clock.connection
                back_s = await watch.until(
                    lambda: watch.source.state is SourceState.LIVE and watch.frames[-1].clock.connection > connection
                )
                assert back_s < BACK_S

    run(work)


# Not here, since FFmpeg's decoders do not notice: bytes that were overwritten (check sums keep those from us on real
# networks) and, in H.265 over TCP, a picture whose last packets are missing.
@pytest.mark.parametrize(
    ("codec", "fault"),
    [("large", {"drop": 0.03}), ("large", {"drop_pictures": 0.1}), ("large h265", {"drop_pictures": 0.1})],
)
def test_no_picture_with_losses_is_ever_handed_on(clips: dict[str, Path], codec: str, fault: dict[str, float]) -> None:
    original = decode_all(clips[codec])

    async def work() -> None:
        random.seed(11)
        with RtspServer({"cam": clips[codec]}) as server:
            for name, share in fault.items():
                setattr(server.faults, name, share)
            async with Watch(server.url()) as watch:
                account = watch.source.account
                await watch.until(lambda: account.tally().dropped.get("corrupt", 0) > 20 and len(watch.frames) > 10, 20)
                server.faults.drop = server.faults.drop_pictures = server.faults.corrupt = 0.0
                await watch.more(10)
            watch.check_whole(original)

    run(work)


def test_h265_over_udp_that_loses_the_ends_of_pictures_shows_none_of_them(clips: dict[str, Path]) -> None:
    original = decode_all(clips["large h265"])

    async def work() -> None:
        random.seed(5)
        with RtspServer({"cam": clips["large h265"]}) as server:
            async with Watch(server.url(), transport="udp") as watch:
                account = watch.source.account
                await watch.more(5)
                server.faults.drop_ends = 0.15
                await watch.until(lambda: account.tally().dropped.get("corrupt", 0) > 50 and len(watch.frames) > 10, 25)
                server.faults.drop_ends = 0.0
                await watch.more(10)
            watch.check_whole(original)
            assert server.transports == ["udp", "udp"]

    run(work)


def test_h265_over_udp_that_comes_in_another_order_loses_no_picture(clips: dict[str, Path]) -> None:
    async def work() -> None:
        random.seed(6)
        with RtspServer({"cam": clips["large h265"]}, auth=("ann", "pw")) as server:
            server.algorithm, server.faults.reorder = "SHA-256", 0.3
            async with Watch(server.url(user="ann", password="pw"), transport="udp") as watch:
                await watch.more(60)
            tally = watch.source.account.tally()
            assert tally.dropped.get("corrupt", 0) == 0
            assert [change.state.value for change in watch.changes] == ["connecting", "live", "closed"]

    run(work)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_the_lag_of_a_camera_with_b_pictures_is_measured_by_times_that_rise(
    tmp_path: Path, codec: str, monkeypatch: Any
) -> None:
    """At first FFmpeg does not know when pictures are to be decoded; the order shown says nothing about lag."""
    options = {"bf": "4", "b_strategy": "0"} if codec == "libx264" else {"x265-params": "log-level=none:bframes=4"}
    clip = make_clip(tmp_path / "clip.mp4", 100, codec=codec, options=options, gop=20)
    times: list[int] = []

    def note(self: CatchUp, time_ns: int | None, *_: object, **__: object) -> bool:
        if time_ns is not None:
            times.append(time_ns)
        return False

    monkeypatch.setattr(CatchUp, "skips", note)

    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            async with Watch(server.url()) as watch:
                await watch.until(lambda: len(times) >= 40)

    run(work)
    assert times == sorted(times)


def decode_all(path: Path) -> list[npt.NDArray[np.uint8]]:
    (source,) = open_sources(str(path))

    async def work() -> list[Frame]:
        return [frame async for frame in source]

    return [frame.image for frame in asyncio.run(work())]


def test_a_change_of_resolution_in_mid_stream_is_followed(clips: dict[str, Path]) -> None:
    async def work() -> None:
        with RtspServer({"cam": [clips["small"], clips["large"]]}) as server:
            async with Watch(server.url()) as watch:
                await watch.until(lambda: {frame.width for frame in watch.frames} == {160, 640})
                await watch.more(5)
            assert watch.states == ["connecting", "live", "closed"]
            for frame in watch.frames:
                assert frame.image.shape == (frame.height, frame.width, 3)
                assert read_index(frame.image) is not None

    run(work)


def test_a_camera_that_comes_back_with_another_codec_and_clock_is_followed(clips: dict[str, Path]) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips["h264"]}) as server:
            async with Watch(server.url()) as watch:
                await watch.more(5)
                await asyncio.to_thread(server.kill)
                server.mount("cam", clips["large h265"])
                server.faults.clock_offset_s = -86_400  # it lost its battery: its reports are no use now
                await asyncio.to_thread(server.start)
                await watch.until(lambda: watch.frames[-1].width == 640)
                await watch.more(5)
            times = [frame.time_ns for frame in watch.frames]
            assert sorted(set(times)) == times
            assert watch.frames[-1].clock.basis == "arrival"
            assert abs(watch.frames[-1].time_s - time.time()) < 5

    run(work)


def test_timestamps_that_jump_leave_time_rising(clips: dict[str, Path]) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips["h264"]}) as server:
            server.faults.reports = False
            async with Watch(server.url()) as watch:
                for jump_s in (0.0, 3600.0, -5000.0, 20_000.0):
                    server.faults.timestamp_jump_s = jump_s
                    await watch.more(10)
            times = [frame.time_ns for frame in watch.frames]
            assert sorted(set(times)) == times
            assert all(abs(frame.time_ns - (frame.clock.received_ns or 0)) < SECOND for frame in watch.frames)
            assert {frame.clock.basis for frame in watch.frames} == {"arrival"}

    run(work)


def test_a_slow_consumer_only_ever_sees_fresh_frames(clips: dict[str, Path]) -> None:
    """An analysis ten times slower than the camera: frames are at most two intervals old when it begins."""
    interval_s, inference_s = 0.04, 0.4

    async def work() -> list[float]:
        with RtspServer({"cam": clips["h264"]}) as server:
            (source,) = open_sources(server.url())
            merge = FrameMerge([source])
            ages = []
            for _ in range(12):
                (frame,) = await merge.take(1)
                number = read_index(frame.image)
                assert number is not None
                ages.append(time.time() - server.sent["cam", number])
                await asyncio.sleep(inference_s)
                source.account.analyse()
            await merge.aclose()
            tally = source.account.tally()
            assert tally.pending == 0
            assert tally.dropped["stale"] > 60
            return ages

    ages = asyncio.run(work())
    assert max(ages[1:]) < 2 * interval_s + inference_s
    assert (
        np.median(ages[1:6]) - interval_s < np.median(ages[6:]) < np.median(ages[1:6]) + interval_s
    )  # it does not grow


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("rtsp://ann:wrong@127.0.0.1:{port}/cam", "user name or password is missing or wrong (401)"),
        ("rtsp://ann:pw@127.0.0.1:{port}/nothing", "there is nothing at this path (404)"),
        ("rtsp://ann:pw@camera.invalid/cam", "the host camera.invalid is not known"),
        ("rtsp://ann:pw@127.0.0.1:{closed}/cam", "nothing listens at 127.0.0.1:{closed}"),
    ],
)
def test_a_first_connection_that_cannot_succeed_is_reported_in_a_sentence(
    clips: dict[str, Path], address: str, words: str
) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips["h264"]}, auth=("ann", "pw")) as server:
            ports = {"port": server.port, "closed": 1}
            async with Watch(address.format(**ports), strict=True) as strict:
                await strict.until(lambda: strict.error is not None)
            shown = address.format(**ports).replace("ann:wrong@", "***@").replace("ann:pw@", "***@")
            assert str(strict.error) == f"{shown}: {words.format(**ports)}"
            async with Watch(address.format(**ports)) as patient:
                await patient.until(lambda: "waiting" in patient.states)
                await asyncio.sleep(0.3)
            assert patient.error is None
            assert patient.states == ["connecting", "waiting", "closed"]
            assert patient.changes[1].cause == words.format(**ports)

    run(work)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://ann:pw@127.0.0.1:1/cam", "nothing listens at 127.0.0.1:1"),
        ("http://camera.invalid/cam", "the host camera.invalid is not known"),
    ],
)
def test_a_web_address_where_no_one_is_is_reported_in_a_sentence(monkeypatch: Any, address: str, words: str) -> None:
    monkeypatch.delenv("http_proxy", raising=False)

    async def work() -> None:
        async with Watch(address, strict=True) as strict:
            await strict.until(lambda: strict.error is not None)
        assert str(strict.error) == f"{redact(address)}: {words}"
        assert "pw" not in str(strict.error)

    run(work)


def test_closing_does_not_wait_for_a_camera_that_never_answers(clips: dict[str, Path]) -> None:
    async def work() -> None:
        with RtspServer({"cam": clips["h264"]}) as server:
            server.faults.silent = True
            watch = Watch(server.url())
            async with asyncio.timeout(9), watch:
                await watch.until(lambda: watch.states == ["connecting"])
                await asyncio.sleep(0.2)
        # Killing the server freed the thread; had it lived on, the thread's own time-out would have.
        await watch.until(lambda: not threads(), 12)

    asyncio.run(work())


@contextlib.contextmanager
def mjpeg_camera(hangs_up_after: int) -> Iterator[str]:
    """A camera that sends JPEGs one after the other over HTTP, numbered on, and hangs up after so many."""
    numbers = itertools.count()

    class Camera(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            with contextlib.suppress(OSError):
                for number in itertools.islice(numbers, hangs_up_after):
                    picture = cv2.imencode(".jpg", draw(number))[1].tobytes()
                    head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    time.sleep(0.04)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/video.mjpg"
        server.shutdown()
        thread.join()


def test_a_camera_of_jpegs_over_http_is_watched_and_found_again() -> None:
    async def work() -> None:
        with mjpeg_camera(hangs_up_after=25) as address:
            async with Watch(address) as watch:
                await watch.until(lambda: any(frame.clock.connection == 1 for frame in watch.frames), 20)
                await watch.more()
        seen = [read_index(frame.image) for frame in watch.frames]
        assert None not in seen
        assert seen == sorted(set(seen))
        assert {frame.clock.basis for frame in watch.frames} == {"arrival"}
        assert watch.states[:4] == ["connecting", "live", "waiting", "live"]

    run(work)


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_recording_is_read_over_http_to_its_last_frame(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mkv", 30)
    with web_server(tmp_path) as url:
        (source,) = open_sources(f"{url}/clip.mkv")

        async def work() -> list[Frame]:
            return [frame async for frame in source]

        assert [read_index(frame.image) for frame in asyncio.run(work())] == list(range(30))
        (missing,) = open_sources(f"{url}/nothing.mp4")

        async def fail() -> None:
            async for _ in missing:
                pass

        with pytest.raises(SourceError, match=r"cannot be read: there is nothing at this path \(404\)"):
            asyncio.run(fail())


def test_hls_is_shown_at_the_pace_it_was_filmed(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", 100)
    with (
        av.open(str(tmp_path / "clip.mp4")) as clip,
        av.open(
            str(tmp_path / "live.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}
        ) as playlist,
    ):
        stream = playlist.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = stream
                playlist.mux(packet)
    text = (tmp_path / "live.m3u8").read_text().replace("#EXT-X-ENDLIST\n", "")
    (tmp_path / "live.m3u8").write_text(text)

    async def work() -> None:
        with web_server(tmp_path) as url:
            async with Watch(f"{url}/live.m3u8") as watch:
                await watch.more(20)
            steps_s = np.diff([(frame.clock.received_ns or 0) / 1e9 for frame in watch.frames])
            assert np.median(steps_s) == pytest.approx(0.04, abs=0.02)

    asyncio.run(work())


def test_a_missing_webcam_is_reported_in_a_sentence() -> None:
    async def work() -> None:
        async with Watch("webcam:97") as watch:
            await watch.until(lambda: "waiting" in watch.states)
        assert watch.source.name == "webcam97"
        assert watch.changes[1].cause

    run(work)


def live_times(arrivals_s: list[float], pts_s: list[float | None], sender_s: list[float] | None = None) -> list[float]:
    clock = LiveClock()
    seconds = []
    for n, (arrival, pts) in enumerate(zip(arrivals_s, pts_s, strict=True)):
        sender_ns = None if sender_s is None else round(sender_s[n] * SECOND)
        time_ns, _, _ = clock.read(None if pts is None else round(pts * SECOND), sender_ns, round(arrival * SECOND))
        seconds.append(time_ns / SECOND)
    return seconds


def test_jitter_and_bursts_of_the_network_do_not_show_in_capture_times() -> None:
    chance = random.Random(3)
    filmed = [100 + n * 0.04 for n in range(1500)]
    arrivals = [at + 0.05 + chance.random() * 0.03 for at in filmed]
    for n in range(500, 600):  # four seconds are held up, then come at once
        arrivals[n] = filmed[600] + 0.05 + (n - 500) * 0.0005
    reported = live_times(arrivals, [at - 100 for at in filmed])
    off = np.array(reported)[50:] - np.array(filmed)[50:] - 0.05
    assert np.abs(off).max() < 0.005


def test_a_drifting_camera_clock_is_followed_without_a_jump() -> None:
    filmed = [100 + n * 0.04 for n in range(30_000)]
    reported = live_times([at + 0.05 for at in filmed], [(at - 100) * 1.0003 for at in filmed])
    assert np.abs(np.array(reported) - np.array(filmed) - 0.05).max() < 0.01
    assert np.diff(reported).min() > 0.01


def test_a_senders_clock_is_believed_only_while_it_can_be_right() -> None:
    filmed = [100 + n * 0.04 for n in range(100)]
    arrivals = [at + 0.3 for at in filmed]
    pts = [at - 100 for at in filmed]
    assert live_times(arrivals, pts, filmed)[-1] == pytest.approx(filmed[-1], abs=1e-6)
    a_day_late = [at - 86_400 for at in filmed]
    assert live_times(arrivals, pts, a_day_late)[-1] == pytest.approx(arrivals[-1], abs=1e-6)
