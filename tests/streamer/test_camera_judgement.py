"""Judgement of cameras: their pace, their clocks, what they refuse, and that nothing which arrives ends one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.sources import open_sources
from streamer.sources.clock import ClockLimits, LiveClock
from streamer.sources.decode import DecodedPicture, VideoReader
from streamer.sources.pace import CameraPace, Stalled, StallWatchdog
from tests.streamer.test_live_sources import Watch, run
from tests.support.clips import make_clip, read_index
from tests.support.rtsp_server import RtspServer

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("judgement") / "clip.mp4", 100)


# Nothing ends a camera


def test_an_unexpected_error_is_an_outage_with_its_type_and_the_camera_comes_back(
    clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = VideoReader.pictures
    broken = itertools.count()

    def pictures(self: VideoReader) -> Any:
        for number, picture in enumerate(original(self)):
            if number == 5 and next(broken) == 0:
                raise ZeroDivisionError("half a picture")
            yield picture

    monkeypatch.setattr(VideoReader, "pictures", pictures)

    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            async with Watch(server.url()) as watch:
                await watch.until(lambda: any(frame.clock.connection == 1 for frame in watch.frames))
            assert watch.error is None
            assert watch.states[:4] == ["connecting", "live", "waiting", "live"]
            assert watch.changes[2].cause == "unexpected ZeroDivisionError: half a picture"
            assert watch.source.account.tally().pending == 0

    run(work)
    assert "ZeroDivisionError" in caplog.text


def test_timestamps_that_stand_still_while_pictures_change_are_no_frozen_camera(clip: Path) -> None:
    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            async with Watch(server.url(), stall_s=0.5) as watch:
                await watch.more(5)
                server.faults.still_timestamps = True
                await watch.more(40)
            assert watch.states == ["connecting", "live", "closed"]
            times = [frame.time_ns for frame in watch.frames]
            assert sorted(set(times)) == times
            assert None not in [read_index(frame.image) for frame in watch.frames]

    run(work)


# Pace


class Timeline:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def outages(times_s: list[float], *, stall_s: float | None = None, poll_s: float = 0.5) -> int:
    """How often a camera that sends key pictures at these times counts as stalled, over all its connections."""
    timeline = Timeline()
    pace = CameraPace(stall_s, timeline)
    watchdog = StallWatchdog(pace, timeline)
    count = 0
    for number, at_s in enumerate(times_s):
        while timeline.now + poll_s < 1000 + at_s:
            timeline.now += poll_s
            try:
                watchdog.check_silence()
            except Stalled:
                count += 1
                watchdog = StallWatchdog(pace, timeline)
        timeline.now = 1000 + at_s
        watchdog.moves(number * SECOND, lambda: b"")
        watchdog.sees(is_key=True)
    return count


PACES: dict[str, Callable[[], list[float]]] = {
    "25 a second": lambda: [n / 25 for n in range(500)],
    "a picture every 2 s": lambda: [n * 2.0 for n in range(30)],
    "a picture every 6 s": lambda: [n * 6.0 for n in range(30)],
    "a picture every 30 s": lambda: [n * 30.0 for n in range(30)],
    "a burst of old pictures, then one every 6 s": lambda: (
        [n * 0.01 for n in range(20)] + [n * 6.0 for n in range(1, 30)]
    ),
    "motion for 3 s, then one every 5 s": lambda: sorted(
        [k * 60 + n / 25 for k in range(6) for n in range(75)]
        + [k * 60 + 3 + n * 5.0 for k in range(6) for n in range(1, 11)]
    ),
}


@pytest.mark.parametrize("name", PACES)
def test_a_healthy_camera_of_any_pace_is_never_called_stalled(name: str) -> None:
    most = 1 if name.startswith("motion") else 0  # what it has never done before may be taken for a silence once
    assert outages(PACES[name]()) <= most


def test_a_fast_camera_that_falls_silent_is_noticed_soon() -> None:
    assert outages([n / 25 for n in range(500)] + [20 + 10.0]) == 1
    assert outages([n / 25 for n in range(500)] + [20 + 3.0]) == 0
    assert outages([n * 2.0 for n in range(10)], stall_s=1.0) == 9


def test_one_key_picture_every_35_s_is_waited_for() -> None:
    timeline = Timeline()
    watchdog = StallWatchdog(CameraPace(None, timeline), timeline)
    for _ in range(35 * 25):
        timeline.now += 0.04
        assert not watchdog.misses(awaits_key=True)
    watchdog.moves(0, lambda: b"")
    watchdog.sees(is_key=True)
    timeline.now += 100
    with pytest.raises(Stalled, match="only damaged pictures"):
        watchdog.misses(awaits_key=False)


def test_a_camera_of_half_a_frame_a_second_is_watched_with_true_times(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "slow.mp4", 20, fps=0.5, gop=1)

    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            async with Watch(server.url()) as watch:
                await watch.until(lambda: len(watch.frames) >= 5, 25)
            assert watch.states == ["connecting", "live", "closed"]
            for frame in watch.frames:
                number = read_index(frame.image)
                assert number is not None
                assert frame.clock.uncertainty_ms is not None
                error_ms = server.capture_error_s("cam", number, frame.time_s) * 1000
                assert error_ms <= frame.clock.uncertainty_ms + 5

    run(work)


# What it refuses


@pytest.mark.parametrize(("asked", "given"), [("tcp", "udp"), ("udp", "tcp")])
def test_a_camera_that_refuses_one_transport_is_watched_over_the_other(clip: Path, asked: Any, given: str) -> None:
    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            server.refusals = {asked: 461}
            async with Watch(server.url(), transport=asked, strict=True) as watch:
                await watch.more(10)
            assert watch.states == ["connecting", "live", "closed"]
            assert server.transports[-1] == given

    run(work)


# Times


def simulate(
    *,
    offset_s: float = 0.0,
    drift: float = 0.0,
    latency_s: float = 0.1,
    jitter_s: float = 0.01,
    reports: bool = True,
    fps: float = 25.0,
    step_s: float = 0.0,
    rtp_jump_s: float = 0.0,
    limits: ClockLimits | None = None,
) -> tuple[float, float]:
    """Share of the frames whose true capture time lies within what is stated, and the median of what is stated (ms).

    The camera's clock is off by `offset_s` and gains `drift`; amid the run it is set by `step_s`, and its RTP times
    jump by `rtp_jump_s`.
    """
    chance = random.Random(11)
    clock = LiveClock(limits)
    good, stated = 0, []
    count = int(60 * fps)
    for n in range(count):
        true_s = 1000 + n / fps
        arrival_s = true_s + latency_s + chance.expovariate(1 / jitter_s) if jitter_s else true_s + latency_s
        late = n > count // 2
        camera_s = true_s + offset_s + drift * n / fps + step_s * late
        pts_s = (n / fps) * (1 + drift) + rtp_jump_s * late
        sender_ns = round(camera_s * SECOND) if reports else None
        time_ns, _, uncertainty_ms = clock.read(round(pts_s * SECOND), sender_ns, round(arrival_s * SECOND))
        good += abs(time_ns / SECOND - true_s) * 1000 <= uncertainty_ms
        stated.append(uncertainty_ms)
    return good / count, float(np.median(stated))


CAMERAS: dict[str, dict[str, Any]] = {
    "in step": {},
    "40 ms ahead": {"offset_s": 0.04, "latency_s": 0.05},
    "65 ms ahead, latency as much": {"offset_s": 0.065, "latency_s": 0.065},
    "0.5 s ahead of ours": {"offset_s": 0.5, "latency_s": 0.6},
    "0.5 s behind": {"offset_s": -0.5},
    "a minute behind": {"offset_s": -60.0},
    "an hour ahead": {"offset_s": 3600.0},
    "slow camera, no reports": {"reports": False, "latency_s": 0.6},
    "fast camera, no reports": {"reports": False, "latency_s": 0.02},
    "wild network": {"jitter_s": 0.2, "latency_s": 0.3},
    "wild network, no reports": {"jitter_s": 0.2, "latency_s": 0.3, "reports": False},
    "drifts by 200 ppm": {"drift": 2e-4},
    "drifts by 1000 ppm, no reports": {"drift": -1e-3, "reports": False},
    "clock set by half a second": {"step_s": 0.5},
    "clock set back by half a second": {"step_s": -0.5},
    "clock set by 20 s": {"step_s": 20.0},
    "RTP times jump 5 s ahead": {"rtp_jump_s": 5.0, "reports": False},
    "RTP times jump half a second back": {"rtp_jump_s": -0.5, "reports": False},
    "RTP times jump an hour": {"rtp_jump_s": 3600.0, "reports": False},
    "half a frame a second": {"fps": 0.5},
    "half a frame a second, no reports": {"fps": 0.5, "reports": False},
}


@pytest.mark.parametrize("name", CAMERAS)
def test_the_stated_uncertainty_holds_for_every_simulated_camera(name: str) -> None:
    coverage, stated_ms = simulate(**CAMERAS[name])
    assert coverage >= 0.95
    assert stated_ms < 2500


def test_a_synchronised_camera_is_believed_to_within_50_ms() -> None:
    coverage, stated_ms = simulate(offset_s=0.03, limits=ClockLimits(synchronised=True))
    assert coverage >= 0.95
    assert stated_ms < 60


def test_two_hours_of_one_stream_keep_their_times() -> None:
    """180,000 frames with a drifting clock and sender reports that come and go."""
    clock, before, worst = LiveClock(), 0, 0.0
    for n in range(180_000):
        true_s = 1000 + n / 25
        pts_ns = round(n / 25 * 1.0001 * SECOND)
        sender_ns = round((true_s + 0.02) * SECOND) if n // 5000 % 2 else None
        time_ns, _, uncertainty_ms = clock.read(pts_ns, sender_ns, round((true_s + 0.08) * SECOND))
        assert time_ns > before
        before = time_ns
        worst = max(worst, abs(time_ns / SECOND - true_s) * 1000 - uncertainty_ms)
    assert worst <= 0


# Sizes


def test_the_sample_of_a_picture_differs_where_the_picture_does(clip: Path) -> None:
    with VideoReader(str(clip)) as video:
        pictures = [picture for picture in video.pictures() if isinstance(picture, DecodedPicture)]
    samples = [picture.sample() for picture in pictures[:10]]
    assert len(set(samples)) == 10
    assert pictures[0].sample() == samples[0]


def test_webcams_and_odd_tracks_are_refused_in_a_sentence(clip: Path) -> None:
    async def work() -> None:
        with RtspServer({"cam": clip}) as server:
            async with Watch(server.url(), strict=True, track=3) as watch:
                await watch.until(lambda: watch.error is not None)
            assert "has no video track 3: give a track from 0 to 0" in str(watch.error)

    run(work)
    assert open_sources("webcam:0")[0].name == "webcam0"
