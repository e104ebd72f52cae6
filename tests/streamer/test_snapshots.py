"""Pictures of events: views, files by content, the later event, privacy, limits, and what is dropped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest
import supervision as sv

from sinks.event import Event, EventType
from streamer.build import open_media
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock
from streamer.media.folder import MediaFolder, find_media
from streamer.media.media_writer import SnapshotTally
from streamer.media.snapshots import SnapshotWriter
from streamer.rules.places import Line, Zone
from tests.sinks.makes import event
from tests.support.fakes import Bench, FakeDetector, FakeSource, camera

SIZE = (320, 240)
SQUARE = 60


class PaintedSource(FakeSource):
    """A recording in which a bright red square moves to the right, 4 pixels a frame, on grey."""

    async def __anext__(self) -> Frame:
        plain = await super().__anext__()
        return Frame(plain.stream, plain.index, plain.time_ns, plain.clock, painted(plain.index), SIZE)


def painted(index: int) -> np.ndarray:
    image = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    x = 20 + 4 * index
    image[100 : 100 + SQUARE, x : x + SQUARE] = (0, 0, 255)
    return image


def find_square(request) -> sv.Detections:
    rows, columns = np.nonzero(request.image[:, :, 2] > 200)
    box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    return sv.Detections(np.array(box, np.float32), confidence=np.array([0.9]), class_id=np.array([0]))


def left_half() -> Zone:
    return Zone("left", [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)])


def run_painted(writer: SnapshotWriter | None, *, live: bool = False, count: int = 50) -> Bench:
    async def go():
        line = Line("middle", [(0.5, 1.0), (0.5, 0.0)])
        made = camera(PaintedSource(count=count, live=live), zones=[left_half()], lines=[line])
        async with Bench([made], FakeDetector(find_square), snapshots=writer) as bench:
            await bench.run()
        return bench

    return asyncio.run(go())


def file_of(medium) -> Path:
    return Path(unquote(urlsplit(medium.uri).path))


def is_red(image: np.ndarray, box) -> bool:
    """Whether the middle of a box is the red of the square."""
    height, width = image.shape[:2]
    blue, _, red = image[round((box.y1 + box.y2) / 2 * height), round((box.x1 + box.x2) / 2 * width)]
    return red > 200 and blue < 60


@pytest.mark.parametrize("live", [False, True])
def test_pictures_of_matches_zones_and_lines_show_the_track_in_its_box(tmp_path, live):
    writer = SnapshotWriter(MediaFolder(tmp_path))
    sent = run_painted(writer, live=live).sink.events
    pictured = [one for one in sent if one.kind in {"match.begin", "zone.enter", "zone.exit", "line.cross"}]
    by_cause = {one.data.cause: one for one in sent if one.type is EventType.MEDIA}
    assert {one.kind for one in pictured} == {"match.begin", "zone.enter", "zone.exit", "line.cross"}
    assert by_cause.keys() == {one.id for one in pictured if one.data.track.state != "ended"}
    for cause, later in by_cause.items():
        first = next(one for one in sent if one.id == cause)
        assert (later.subject, later.data.track.uid) == (first.subject, first.data.track.uid)
        assert int(later.sequence) > int(first.sequence)
        assert [(one.kind, bool(one.boxed)) for one in later.data.media] == [
            ("snapshot", False),
            ("snapshot", True),
            ("crop", False),
        ]
        plain, boxed, crop = (cv2.imread(str(file_of(one))) for one in later.data.media)
        assert plain.shape == boxed.shape == (SIZE[1], SIZE[0], 3)
        assert is_red(plain, later.data.media[0].box)
        assert np.abs(plain.astype(int) - boxed).max() > 60
        assert crop.shape[0] < SIZE[1]
        assert (crop[:, :, 2] > 200).mean() > 0.2
    assert sent[-1].type is EventType.STREAM_OFFLINE
    assert writer.tally() == SnapshotTally(len(by_cause), len(by_cause), {"shutdown": 0})


def test_files_are_named_by_content_whole_and_for_their_owner_alone(tmp_path):
    run_painted(SnapshotWriter(MediaFolder(tmp_path / "media")))
    files = [path for path in (tmp_path / "media").rglob("*") if path.is_file()]
    assert files
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.relative_to(tmp_path / "media") == Path(digest[:2]) / f"{digest}.jpg"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_recording_gives_the_same_pictures_and_events_every_time(tmp_path):
    first, second = (run_painted(SnapshotWriter(MediaFolder(tmp_path))).sink.events for _ in range(2))
    assert [one.to_json() for one in first] == [one.to_json() for one in second]


def test_a_picture_shows_the_best_view_so_far(tmp_path):
    """The track is seen large, then small: the event of the small one has the picture of the large one."""
    writer = SnapshotWriter(MediaFolder(tmp_path))
    large, small = tracked((100, 60, 220, 180)), tracked((10, 10, 40, 40))
    assert writer.offer(frame(0), large, [])
    assert writer.drain("gate", 10)
    assert writer.offer(frame(50), small, [zone_entry()])
    assert writer.drain("gate", 10)
    (shot,) = writer.take_finished("gate")
    assert shot.media[0].captured_ns == frame(0).time_ns
    assert shot.media[0].box.x1 == pytest.approx(100 / SIZE[0])
    assert writer.take_finished("gate") == []
    writer.close()


def test_crop_stores_no_full_frame(tmp_path):
    sent = run_painted(SnapshotWriter(MediaFolder(tmp_path), "crop")).sink.events
    media = [medium for one in sent for medium in one.data.media or ()]
    assert {medium.kind for medium in media} == {"crop"}
    sizes = {cv2.imread(str(path)).shape[:2] for path in tmp_path.rglob("*.jpg")}
    assert all(height < SIZE[1] and width < SIZE[0] for height, width in sizes)


@pytest.mark.parametrize("section", [{}, {"media": False}, {"media": {"snapshots": False}}])
def test_without_pictures_nothing_is_written(tmp_path, monkeypatch, section):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert open_media(configured(section)).snapshots is None
    assert list(tmp_path.iterdir()) == []
    assert EventType.MEDIA not in {one.type for one in run_painted(None).sink.events}


def test_a_full_queue_drops_pictures_with_a_count_and_holds_nothing_up(tmp_path):
    folder = StuckFolder(tmp_path)
    writer = SnapshotWriter(folder, queue_size=2)
    began = time.monotonic()
    for index in range(10):
        writer.offer(frame(index), tracked((100, 60, 220, 180)), [zone_entry(index)])
        if index == 0:
            assert folder.entered.wait(10)
    assert time.monotonic() - began < 5  # the thread waits for longer
    tally = writer.tally()
    assert (tally.asked, tally.written, tally.dropped, tally.pending) == (10, 0, {"queue_full": 7}, 3)
    folder.release.set()
    assert writer.drain("gate", 10)
    assert writer.tally() == SnapshotTally(10, 3, {"queue_full": 7})
    writer.close()


class StuckFolder(MediaFolder):
    """A folder on a disk that does not answer until it is released."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.entered, self.release = threading.Event(), threading.Event()

    def store(self, content: bytes, suffix: str):
        self.entered.set()
        assert self.release.wait(30)
        return super().store(content, suffix)


def test_a_disk_that_refuses_is_counted_and_logged_once_and_the_next_picture_is_written(tmp_path, caplog):
    class FullFolder(MediaFolder):
        is_full = True

        def store(self, content: bytes, suffix: str):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().store(content, suffix)

    folder = FullFolder(tmp_path)
    writer = SnapshotWriter(folder)
    for index in range(3):
        if index == 2:
            assert writer.drain("gate", 10)
            folder.is_full = False
        writer.offer(frame(index), tracked((100, 60, 220, 180)), [zone_entry(index)])
    assert writer.drain("gate", 10)
    assert writer.tally() == SnapshotTally(3, 1, {"error": 2})
    assert caplog.text.count("No space left on device") == 1
    writer.close()


def test_a_track_without_a_view_is_counted(tmp_path):
    writer = SnapshotWriter(MediaFolder(tmp_path))
    writer.offer(frame(0), sv.Detections.empty(), [zone_entry()])
    assert writer.drain("gate", 10)
    assert writer.tally().dropped == {"no_view": 1}
    writer.close()
    assert not writer.offer(frame(1), tracked((0, 0, 50, 50)), [zone_entry()])
    assert writer.tally().dropped == {"no_view": 1, "shutdown": 1}


def test_the_oldest_files_go_first_when_there_are_too_many_bytes(tmp_path):
    folder = MediaFolder(tmp_path, max_bytes=10_000)
    names = [folder.store(bytes([number]) * 1000, ".jpg").path for number in range(12)]
    for age, path in enumerate(reversed(names)):
        os.utime(path, (time.time() - age - 1,) * 2)
    assert folder.remove_expired() == 3
    assert [path.exists() for path in names] == [False] * 3 + [True] * 9
    for number in range(100, 103):  # without waiting for the next check
        folder.store(bytes([number]) * 1000, ".jpg")
        folder.remove_expired()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jpg")) <= 10_000


def test_files_beyond_their_age_go_and_others_of_the_folder_stay(tmp_path):
    folder = MediaFolder(tmp_path, max_age_s=3600)
    old, new = folder.store(b"old", ".jpg").path, folder.store(b"new", ".jpg").path
    left = old.with_name(f"{'f' * 64}.jpg.77.tmp")
    foreign = old.with_name("holiday.jpg")
    for path in (left, foreign):
        path.write_bytes(b"x")
    for path in (old, left, foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    assert folder.remove_expired() == 2
    assert [path.exists() for path in (old, left, new, foreign)] == [False, False, True, True]


def test_the_same_content_is_stored_once_and_counts_as_new(tmp_path):
    folder = MediaFolder(tmp_path, max_age_s=3600)
    path = folder.store(b"again", ".jpg").path
    os.utime(path, (time.time() - 7200,) * 2)
    assert folder.store(b"again", ".jpg").path == path
    assert folder.remove_expired() == 0
    assert folder.find(hashlib.sha256(b"again").hexdigest()).path == path


def test_a_picture_with_a_box_is_found_where_it_is_asked_for():
    media = [
        {"kind": "snapshot", "sha256": "b" * 64, "boxed": True},
        {"kind": "snapshot", "sha256": "a" * 64, "boxed": False},
        {"kind": "crop", "sha256": "c" * 64},
    ]
    events = [{"data": {"media": media}}]
    assert find_media(events, ("snapshot", "crop")) == "a" * 64
    assert find_media(events, ("snapshot", "crop"), is_boxed=True) == "b" * 64
    assert find_media(events, ("crop", "snapshot"), is_boxed=True) == "c" * 64


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"snapshots": "faces"}, "media.snapshots is 'faces'"),
        ({"max_bytes": 5}, "media.max_bytes is 5"),
        ({"max_age_days": 0}, "media.max_age_days is 0"),
        ({"folders": "x"}, "did you mean 'folder'"),
    ],
)
def test_a_wrong_setting_is_named(section, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        configured({"media": section})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"media\.folder .*file/media cannot be made: Not a directory"):
        open_media(configured({"media": {"folder": str(tmp_path / "file" / "media")}}))


def configured(section: dict):
    return parse_config({"streams": [{"source": "synthetic:street"}], "queries": ["a person"], **section})


def frame(index: int) -> Frame:
    return Frame("gate", index, index * 40_000_000, FrameClock("file_pts"), painted(0), SIZE)


def tracked(box: tuple[int, int, int, int]) -> sv.Detections:
    return sv.Detections(np.array([box], np.float32), confidence=np.array([0.9]), tracker_id=np.array([3]))


def zone_entry(sequence: int = 1) -> Event:
    return event(sequence, kind=EventType.ZONE_ENTER)
