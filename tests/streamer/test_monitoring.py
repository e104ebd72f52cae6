"""Cameras watched end to end: a real RTSP server on loopback, outages reported by events, frames that stay fresh."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from detectors import Request
from sinks.event import Event, EventType
from streamer.build import open_pipeline
from streamer.cli import main
from streamer.config import parse_config
from streamer.pipeline import Pipeline
from tests.support.clips import make_clip, read_index
from tests.support.fakes import FakeDetector, ListSink, one_box_per_query
from tests.support.rtsp_server import RtspServer

FPS = 20


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cameras")
    return {
        "h264": make_clip(folder / "h264.mp4", frames=60, fps=FPS),
        "hevc": make_clip(folder / "hevc.mp4", frames=60, fps=FPS, codec="libx265"),
    }


@pytest.fixture
def script(tmp_path) -> Path:
    file = tmp_path / "script.json"
    answers = [[{"query": "person", "box": [40, 60, 80, 160], "confidence": 0.9}]]
    file.write_text(json.dumps({"frames": answers, "repeat": True}))
    return file


@asynccontextmanager
async def watching(script: Path, sink: ListSink, *streams: dict[str, object]) -> AsyncIterator[Pipeline]:
    raw = {"streams": list(streams), "queries": ["person"], "detector": f"scripted:{script}", "sinks": []}
    async with open_pipeline(parse_config(raw), more_sinks={"list": sink}) as pipeline:
        running = asyncio.create_task(pipeline.run())
        try:
            yield pipeline
        finally:
            await pipeline.stop()
            await asyncio.wait_for(running, 20)


async def until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        await asyncio.sleep(0.02)


def stream_events(sink: ListSink, stream: str) -> list[str]:
    return [
        event.type.split(".")[2]
        for event in sink.events
        if event.data.stream == stream and event.type in (EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE)
    ]


@pytest.mark.parametrize(("codec", "transport"), [("h264", "tcp"), ("h264", "udp"), ("hevc", "tcp"), ("hevc", "udp")])
def test_a_camera_is_watched_over_every_transport_with_a_password(clips, script, codec, transport):
    async def go() -> ListSink:
        sink = ListSink()
        stream = {"name": "gate", "source": server.url(user="viewer", password="s3cret"), "transport": transport}
        async with watching(script, sink, stream):
            await until(lambda: any(e.type is EventType.MATCH_BEGIN for e in sink.events), 15, "a match")
        return sink

    with RtspServer({"cam": clips[codec]}, auth=("viewer", "s3cret")) as server:
        sink = asyncio.run(go())
    assert stream_events(sink, "gate") == ["online", "offline"]
    assert all(b"s3cret" not in event.to_json() for event in sink.events)


@pytest.mark.timeout(120)
def test_outages_are_reported_in_pairs_and_leave_the_other_camera_alone(clips, script):
    outages = int(os.environ.get("GROUNDSTREAM_OUTAGES", "4"))

    async def go() -> tuple[ListSink, list[float]]:
        sink = ListSink()
        returns = []
        both = ({"name": "bad", "source": bad.url()}, {"name": "good", "source": good.url()})
        async with watching(script, sink, *both) as pipeline:
            await until(lambda: stream_events(sink, "bad") == ["online"], 15, "the camera")
            await until(lambda: stream_events(sink, "good") == ["online"], 15, "the other camera")
            for outage in range(1, outages + 1):
                await asyncio.sleep(0.3 + 0.37 * outage % 0.5)
                await asyncio.to_thread(bad.kill)
                await until(lambda n=outage: stream_events(sink, "bad").count("offline") == n, 10, "the outage")
                await asyncio.to_thread(bad.start)
                back = time.monotonic()
                await until(lambda n=outage: stream_events(sink, "bad").count("online") == n + 1, 10, "the return")
                returns.append(time.monotonic() - back)
            tallies = {report.stream: report.tally for report in pipeline.report()}
            assert tallies["good"].received > tallies["bad"].received  # a busy machine may skip some
        return sink, returns

    with RtspServer({"cam": clips["h264"]}) as bad, RtspServer({"cam": clips["h264"]}) as good:
        asyncio.run(go())  # what loads once (codecs, threads of libraries) is not a leak
        process = psutil.Process()
        before = threading.active_count(), process.num_fds()
        sink, returns = asyncio.run(go())
        after = threading.active_count(), process.num_fds()
    assert stream_events(sink, "bad") == ["online"] + ["offline", "online"] * outages + ["offline"]
    assert stream_events(sink, "good") == ["online", "offline"]
    assert max(returns) < 3.0, returns
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 4
    reasons = [e.data.track.end_reason for e in sink.events if e.type is EventType.TRACK_END and e.data.stream == "bad"]
    assert reasons == ["stream_down"] * outages + ["shutdown"]


def test_a_detector_ten_times_too_slow_sees_only_fresh_frames(clips, script):
    """The clip's pictures carry their number: what the detector sees is compared with what the camera sent last."""
    inference_s = 10 / FPS
    behind: list[int] = []

    async def go() -> None:
        sink = ListSink()

        def look(request: Request):
            seen = read_index(request.image)
            assert seen is not None, "the picture's number cannot be read"
            newest = max((at, number) for (_, number), at in server.sent.items())[1]
            behind.append((newest - seen) % 60)
            return one_box_per_query(request)

        raw = {"streams": [{"name": "gate", "source": server.url()}], "queries": ["person"], "sinks": []}
        raw["detector"] = f"scripted:{script}"
        async with open_pipeline(parse_config(raw), more_sinks={"list": sink}) as pipeline:
            pipeline._detection._detector = FakeDetector(look, delay_s=inference_s)
            running = asyncio.create_task(pipeline.run())
            await until(lambda: len(behind) >= 10, 30, "ten inferences")
            await pipeline.stop()
            await running
        tally = pipeline.report()[0].tally
        assert tally.received == tally.analysed + sum(tally.dropped.values())
        assert tally.dropped["stale"] > 5 * tally.analysed

    with RtspServer({"cam": clips["h264"]}) as server:
        asyncio.run(go())
    # The fake looks after it has slept: one inference old, and two frame intervals at most for the way.
    assert max(behind[2:]) <= inference_s * FPS + 2, behind


def test_ctrl_c_ends_a_monitor_cleanly(clips, script, tmp_path):
    with RtspServer({"cam": clips["h264"]}) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamer.cli", "monitor", server.url(), "-q", "person"]
            + ["--detector", f"scripted:{script}", "--spool", str(tmp_path / "spool"), "--tracker", "bytetrack"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            events = [Event.from_json(process.stdout.readline()) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    events += [Event.from_json(line) for line in rest.splitlines()]
    assert process.returncode == 0, errors
    kinds = [event.type.removeprefix("groundstream.") for event in events]
    assert kinds[0] == "stream.online.v1"
    ends = [event.data.track.end_reason for event in events if event.type is EventType.TRACK_END]
    assert ends == ["shutdown"]
    assert kinds.count("track.begin.v1") == kinds.count("track.end.v1") == 1


def test_a_killed_monitor_closes_its_tracks_at_the_next_start(clips, script, tmp_path):
    command = [sys.executable, "-m", "streamer.cli", "monitor", "-q", "person", "--detector", f"scripted:{script}"]
    command += ["--spool", str(tmp_path / "spool"), "--sink", f"jsonl:{tmp_path / 'events.jsonl'}", "--duration", "3"]

    def events() -> list[Event]:
        """Each once: what the killed process had written but not yet noted as written comes again, with its id."""
        lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
        return list({event.id: event for event in map(Event.from_json, lines)}.values())

    with RtspServer({"cam": clips["h264"]}) as server:
        process = subprocess.Popen([*command[:4], server.url(), *command[4:], "--duration", "60"])
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "events.jsonl").exists() or len(events()) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        begun = [event.subject for event in events() if event.type is EventType.TRACK_BEGIN]
        subprocess.run([*command[:4], server.url(), *command[4:]], check=True, timeout=40)
    crashed = [
        event
        for event in events()
        if event.type is EventType.TRACK_END and event.data.track and event.data.track.end_reason == "crashed"
    ]
    assert [event.subject for event in crashed] == begun
    runs = {event.data.run for event in events()}
    assert len(runs) == 2
    for run in runs:
        sequences = [int(event.sequence) for event in events() if event.data.run == run]
        assert sequences == list(range(1, len(sequences) + 1))


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("rtsp://viewer:wrong@127.0.0.1:{port}/cam", "401"),
        ("rtsp://viewer:s3cret@127.0.0.1:{port}/none", "404"),
        ("rtsp://viewer:s3cret@127.0.0.1:1/cam", "nothing listens at 127.0.0.1:1"),
        ("rtsp://viewer:s3cret@no-such-host.invalid/cam", "host"),
    ],
)
def test_a_camera_that_refuses_is_reported_in_one_sentence(
    clips, script, tmp_path, monkeypatch, capfd, address, sentence
):
    with RtspServer({"cam": clips["h264"]}, auth=("viewer", "s3cret")) as server:
        arguments = ["monitor", address.format(port=server.port), "-q", "person", "--detector", f"scripted:{script}"]
        arguments += ["--spool", str(tmp_path / "spool"), "--duration", "20"]
        monkeypatch.setattr(sys, "argv", ["groundstream", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    _, err = capfd.readouterr()
    assert end.value.code == 1
    assert sentence in err
    assert "Traceback" not in err
    assert "s3cret" not in err
    assert "wrong" not in err.replace("missing or wrong", "")
