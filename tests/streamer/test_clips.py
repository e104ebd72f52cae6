"""Clips of events: made of packets or frames, the later event, recordings that repeat, and what is dropped."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import pytest
import supervision as sv

from sinks.event import Event, EventType, Media
from streamer.build import open_media
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.media.clips import ClipSpan, ClipWriter
from streamer.media.folder import MediaFolder
from streamer.media.media_writer import SnapshotTally
from streamer.rules.places import Zone
from streamer.sources import open_sources
from streamer.sources.packet_clips import CutResult
from tests.sinks.makes import event
from tests.support.clips import make_clip, read_index
from tests.support.fakes import Bench, FakeDetector, FakeSource, camera, detections
from tests.support.rtsp_server import RtspServer

SECOND = 1_000_000_000
SPAN = ClipSpan(1.0, 1.0)


def moving_box(request) -> sv.Detections:
    """A box that moves right by 3 pixels a frame from frame 20 on, gone from frame 70 on."""
    index = read_index(request.image)
    if index is None or not 20 <= index < 70:
        return detections([], [], [], request.prompt.queries)
    x = 20 + 3 * (index - 20)
    return detections([[x, 100, x + 60, 200]], [0.9], [0], request.prompt.queries)


def right_part() -> Zone:
    return Zone("right", [(0.3, 0.0), (1.0, 0.0), (1.0, 1.0), (0.3, 1.0)])


def file_of(medium: Media) -> Path:
    return Path(unquote(urlsplit(medium.uri).path))


def numbers_in(path: Path) -> list[int | None]:
    with av.open(str(path)) as container:
        return [read_index(frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]


def run_recording(path: Path, folder: Path) -> tuple[list[Event], SnapshotTally]:
    async def go() -> tuple[list[Event], SnapshotTally]:
        (source,) = open_sources(str(path), name="gate", start_time_ns=100 * SECOND)
        made = camera(source, zones=[right_part()])  # type: ignore[arg-type]
        writer = ClipWriter(MediaFolder(folder), SPAN)
        async with Bench([made], FakeDetector(moving_box), clips=writer) as bench:
            await bench.run()
        return bench.sink.events, writer.tally()

    folder.mkdir(exist_ok=True)
    return asyncio.run(go())


def clips_by_cause(events: list[Event]) -> dict[str, Event]:
    return {one.data.cause: one for one in events if one.data.media and one.data.media[0].kind == "clip"}


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_a_recording_gives_the_same_clips_and_events_every_time(tmp_path: Path, codec: str):
    """From packets, and from frames where a browser cannot play the codec; the track ends before the last clip."""
    form, pixels = ("mp4", "yuv420p") if codec == "libx264" else ("avi", "yuvj420p")
    path = make_clip(tmp_path / f"source.{form}", 120, codec=codec, pix_fmt=pixels)
    sent, tally = run_recording(path, tmp_path / "media")
    again, _ = run_recording(path, tmp_path / "media")
    assert [one.to_json() for one in sent] == [one.to_json() for one in again]
    wanted = [one for one in sent if one.kind in {"match.begin", "zone.enter", "zone.exit"}]
    assert {one.kind for one in wanted} >= {"match.begin", "zone.enter"}
    clips = clips_by_cause(sent)
    assert clips.keys() == {one.id for one in wanted}
    assert (tally.asked, tally.written, tally.dropped) == (len(wanted), len(wanted), {})
    for cause in wanted:
        later = clips[cause.id]
        assert later.subject == cause.subject
        (medium,) = later.data.media
        begin_ns, end_ns = medium.begin_ns, medium.end_ns
        at_ns = cause.data.clock.captured_ns
        assert begin_ns <= at_ns - SECOND + 80_000_000
        assert at_ns + 0.6 * SECOND <= end_ns
        numbers = numbers_in(file_of(medium))
        shown = {cause.data.frame.index, cause.data.frame.index + 1}  # every other frame is encoded
        assert shown & set(numbers)
        assert None not in numbers
        assert (begin_ns - 100 * SECOND) / 0.04e9 == pytest.approx(numbers[0], abs=0.1)
    times = [one.data.clock.captured_ns for one in sent if one.type is EventType.MEDIA]
    assert times == sorted(times)
    assert not list((tmp_path / "media").glob("unfinished-*"))


def test_the_clip_of_a_track_that_has_ended_keeps_its_subject(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 160)
    folder = tmp_path / "media"
    folder.mkdir()

    async def go() -> list[Event]:
        (source,) = open_sources(str(path), name="gate", start_time_ns=100 * SECOND)
        made = camera(source, zones=[right_part()])  # type: ignore[arg-type]
        writer = ClipWriter(MediaFolder(folder), ClipSpan(1.0, 4.0))
        async with Bench([made], FakeDetector(moving_box), clips=writer) as bench:
            return await bench.run()

    sent = asyncio.run(go())
    end = next(one for one in sent if one.type is EventType.TRACK_END)
    late = [one for one in clips_by_cause(sent).values() if int(one.sequence) > int(end.sequence)]
    assert late
    assert all(one.subject == end.subject for one in late)
    assert all(json.loads(one.to_json())["subject"] == end.subject for one in late)


def test_a_camera_gives_clips_also_of_what_was_open_when_it_was_stopped(tmp_path: Path):
    path = make_clip(tmp_path / "source.mp4", 100)
    folder = tmp_path / "media"
    folder.mkdir()

    async def go() -> tuple[list[Event], SnapshotTally]:
        with RtspServer({"cam": path}) as server:
            (source,) = open_sources(server.url(), name="gate")
            writer = ClipWriter(MediaFolder(folder), ClipSpan(1.0, 30.0))
            made = camera(source, zones=[right_part()])  # type: ignore[arg-type]
            async with Bench([made], FakeDetector(moving_box), clips=writer) as bench:
                task = asyncio.create_task(bench.run())
                await bench.until("zone.enter")
                await bench.pipeline.stop()
                await task
            return bench.sink.events, writer.tally()

    sent, tally = asyncio.run(go())
    clips = clips_by_cause(sent)
    assert (len(clips), tally.written, tally.dropped) == (tally.asked, tally.asked, {})
    assert sent[-1].type is EventType.STREAM_OFFLINE
    for later in clips.values():
        assert len(numbers_in(file_of(later.data.media[0]))) > 5


def test_a_source_without_packets_is_encoded(tmp_path: Path):
    async def go() -> list[Event]:
        writer = ClipWriter(MediaFolder(tmp_path), SPAN)
        async with Bench([camera(FakeSource(count=80))], FakeDetector(), clips=writer) as bench:
            return await bench.run()

    clips = clips_by_cause(asyncio.run(go()))
    (later,) = clips.values()
    with av.open(str(file_of(later.data.media[0]))) as container:
        frames = list(container.decode(video=0))
    assert 10 <= len(frames) <= 30
    assert 1.0 <= frames[-1].time <= 2.2


class HeldCutter:
    """Cuts nothing before it is asked to."""

    can_cut = True

    def __init__(self) -> None:
        self.orders: list = []
        self.is_released = False

    def cut(self, from_ns, until_ns, path, deliver) -> None:
        self.orders.append((from_ns, until_ns, path, deliver))

    def release(self) -> None:
        self.is_released = True


def frame(seconds: float) -> Frame:
    image = np.zeros((48, 64, 3), np.uint8)
    return Frame("gate", int(seconds * 25), int(seconds * 1e9), FrameClock("arrival"), image, (64, 48))


def entry(sequence: int, seconds: float) -> Event:
    made = event(sequence, kind=EventType.ZONE_ENTER)
    clock = made.data.clock.model_copy(update={"captured_ns": int(seconds * 1e9)})
    return made.model_copy(update={"data": made.data.model_copy(update={"clock": clock})})


def test_events_that_are_close_together_share_a_clip_up_to_a_limit(tmp_path: Path):
    writer, cutter = ClipWriter(MediaFolder(tmp_path), ClipSpan(2.0, 3.0)), HeldCutter()
    for second in range(100, 140):
        writer.offer(frame(second), [entry(second, second)], cutter, is_live=True)
    spans = [(from_ns / 1e9, until_ns / 1e9) for from_ns, until_ns, *_ in cutter.orders]
    assert spans[:2] == [(98, 113), (109, 124)]
    assert writer.tally().pending == 40
    writer.close()
    assert writer.tally() == SnapshotTally(40, 0, {"shutdown": 40})


def test_what_a_source_cannot_give_and_too_many_clips_are_counted(tmp_path: Path):
    writer, cutter = ClipWriter(MediaFolder(tmp_path), ClipSpan(0.0, 0.5), queue_size=2), HeldCutter()
    for at, second in enumerate((100, 200, 300), 1):
        assert not writer.offer(frame(second), [entry(at, second)], cutter, is_live=True)
        assert not writer.offer(frame(second + 1), [], cutter, is_live=True)
    assert writer.tally().dropped == {"queue_full": 1}
    assert len(cutter.orders) == 2
    for *_, deliver in cutter.orders:
        deliver(CutResult(error="no_packets"))
    assert writer.drain("gate", 10)
    assert writer.tally() == SnapshotTally(3, 0, {"queue_full": 1, "no_packets": 2})
    writer.offer(frame(400), [entry(4, 400)], cutter, is_live=True)
    writer.offer(frame(401), [], cutter, is_live=True)
    from_ns, _, path, deliver = cutter.orders[-1]
    path.write_bytes(b"a clip")
    deliver(CutResult(from_ns, from_ns + SECOND))
    assert writer.drain("gate", 10)
    (shot,) = writer.take_finished("gate")
    assert file_of(shot.media[0]).read_bytes() == b"a clip"
    writer.close()
    assert not list(tmp_path.glob("unfinished-*"))


def test_packets_are_released_once_no_clip_is_made_of_them(tmp_path: Path):
    writer, cutter = ClipWriter(MediaFolder(tmp_path), ClipSpan(0.0, 0.5)), HeldCutter()
    writer.offer(frame(100), [entry(1, 100)], cutter, is_live=True)
    writer.finish("gate")
    writer.retire("gate", cutter)
    writer.finish_overdue()
    assert not cutter.is_released
    cutter.orders[0][3](CutResult(error="no_packets"))
    assert writer.drain("gate", 10)
    writer.finish_overdue()
    assert cutter.is_released
    writer.close()


def test_a_clip_of_a_camera_that_falls_silent_is_written_when_it_is_overdue(tmp_path: Path, monkeypatch):
    writer = ClipWriter(MediaFolder(tmp_path), ClipSpan(1.0, 2.0))
    live, recorded = HeldCutter(), HeldCutter()
    writer.offer(frame(100), [entry(1, 100)], live, is_live=True)
    recording = Frame("yard", 0, 100 * SECOND, FrameClock("file_pts"), np.zeros((48, 64, 3), np.uint8), (64, 48))
    writer.offer(recording, [entry(1, 100)], recorded, is_live=False)
    writer.finish_overdue()
    assert not live.orders
    monkeypatch.setattr("streamer.media.clips._OVERDUE_S", -3.1)  # in place of waiting for so long
    writer.finish_overdue()
    assert len(live.orders) == 1
    assert not recorded.orders  # a recording may be analysed slowly
    writer.close()


def test_frames_that_cannot_be_encoded_in_time_are_counted_and_hold_nothing_up(tmp_path: Path, monkeypatch):
    entered, release = threading.Event(), threading.Event()

    def wait(self, clips, kept) -> None:
        entered.set()
        assert release.wait(30)

    monkeypatch.setattr(ClipWriter, "_keep_frame", wait)
    writer = ClipWriter(MediaFolder(tmp_path), SPAN)
    began = time.monotonic()
    for number in range(10):
        assert not writer.offer(frame(100 + number), [], None, is_live=True)
    assert time.monotonic() - began < 5
    assert writer.frames_dropped == 8
    release.set()
    writer.close()


@pytest.mark.parametrize(
    ("section", "span"),
    [
        ({"clips": True}, ClipSpan(5.0, 5.0)),
        ({"clips": {"before_s": 2, "after_s": 0.5}}, ClipSpan(2.0, 0.5)),
        ({"clips": True, "snapshots": False}, ClipSpan(5.0, 5.0)),
        ({"clips": False}, None),
        ({}, None),
    ],
)
def test_clips_are_configured_beside_pictures(tmp_path: Path, section, span):
    raw = {"streams": [{"source": "synthetic:street"}], "queries": ["a person"]}
    writers = open_media(parse_config({**raw, "media": {"folder": str(tmp_path), **section}}))
    assert (None if writers.clips is None else writers.clips.span) == span
    for writer in (writers.clips, writers.snapshots):
        if writer is not None:
            writer.close()
    with pytest.raises(ConfigError, match=r"media\.clips\.after_s is 61"):
        parse_config({**raw, "media": {"clips": {"after_s": 61}}})
