"""Analysis of one stream: identities through gaps and outages, masks, and the times of events."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.detector import detections
from streamer.analysis.event_writer import EventTime, StreamIdentity
from streamer.analysis.queries import QueryBook
from streamer.analysis.stream_analysis import CountPlan, StreamAnalysis
from streamer.frame import Frame, FrameClock
from streamer.rules.places import IgnoredRegion, Line, Zone
from streamer.rules.track_ids import derived_uids
from tests.support.fakes import PRODUCER
from trackers import create_tracker

SIZE, FPS = (640, 480), 20
IMAGE = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
WHOLE = [(0, 0), (1, 0), (1, 1), (0, 1)]


def feet(x, y, w=40, h=100):
    return [x - w / 2, y - h, x + w / 2, y]


class Watched:
    """A stream that is fed with boxes."""

    def __init__(self, **options) -> None:
        identity = StreamIdentity("cam", "/streams/cam", 1, PRODUCER, derived_uids("cam"))
        self.analysis = StreamAnalysis(identity, create_tracker(), QueryBook(["person"]), 0.5, **options)
        self.events = []
        self.time_s = 0.0
        self.index = 0

    def frame(self) -> Frame:
        return Frame("cam", self.index, round(self.time_s * 1e9), FrameClock("file_pts"), IMAGE, SIZE)

    def see(self, *boxes) -> None:
        found = detections(list(boxes), [0.9] * len(boxes), [0] * len(boxes), ("person",))
        _, events = self.analysis.analyse(self.frame(), found, self.analysis.queries.at())
        self.events += events
        self.time_s += 1 / FPS
        self.index += 1

    def see_for(self, seconds, *boxes) -> None:
        for _ in range(round(seconds * FPS)):
            self.see(*boxes)

    def interrupt(self, seconds) -> None:
        moment = EventTime.of(self.frame())
        self.events += self.analysis.outage(moment, "the camera ended the stream", moment.time_ns)
        self.time_s += seconds
        self.events += self.analysis.online(EventTime.of(self.frame()), "", moment.time_ns)

    def close(self) -> None:
        self.events += self.analysis.close(EventTime.of(self.frame()), "shutdown")

    def kinds(self) -> list[str]:
        names = [event.type.removeprefix("groundstream.").rpartition(".")[0] for event in self.events]
        return [name for name in names if name not in ("track.update", "count")]

    def of(self, kind):
        return [event for event in self.events if event.type == f"groundstream.{kind}.v1"]


PARKED, OTHER = feet(300, 300), feet(100, 300)


def test_a_parked_object_keeps_everything_through_outages() -> None:
    watched = Watched(zones=[Zone("bay", WHOLE, dwell_s=[20])], counts=[CountPlan(10.0, "bay")])
    watched.see_for(6, PARKED)
    for _ in range(2):
        watched.interrupt(5.0)
        watched.see_for(3, PARKED)
    watched.close()
    assert watched.kinds() == [
        "track.begin", "match.begin", "zone.enter",
        "stream.offline", "stream.online", "stream.offline", "stream.online",
        "zone.dwell", "zone.exit", "match.end", "track.end",
    ]  # fmt: skip
    (dwell,) = watched.of("zone.dwell")
    assert dwell.data.clock.captured_ns == pytest.approx(20e9, abs=0.1e9)
    assert sum(event.data.count.entered for event in watched.of("count")) == 1
    assert {event.subject for event in watched.events if event.data.track} == {watched.of("track.begin")[0].subject}


def test_what_moved_ends_with_the_stream() -> None:
    watched = Watched()
    for step in range(60):
        watched.see(feet(100 + 4 * step, 300))
    watched.interrupt(5.0)
    watched.see_for(1, feet(500, 300))
    assert [event.data.track.end_reason for event in watched.of("track.end")] == ["stream_down"]
    assert len(watched.of("track.begin")) == 2


def test_a_scene_that_changed_in_an_outage_says_so() -> None:
    watched = Watched(zones=[Zone("bay", WHOLE)])
    watched.see_for(6, PARKED)
    watched.interrupt(5.0)
    watched.see_for(11, OTHER)
    (end,) = watched.of("track.end")
    assert end.data.track.end_reason == "stream_down"
    (leave,) = watched.of("zone.exit")
    assert leave.data.zone.dwell_s == pytest.approx(6, abs=0.1)
    assert leave.data.clock.captured_ns == pytest.approx(6e9, abs=0.1e9)


def test_a_walker_who_is_hidden_at_a_line_crosses_it_once() -> None:
    watched = Watched(lines=[Line("gate", [(0.5, 0.2), (0.5, 0.9)])], zones=[Zone("whole", WHOLE)])
    for step in range(200):
        watched.see(*([] if 95 <= step < 123 else [feet(100 + 2 * step, 300)]))
    assert [event.data.line.direction for event in watched.of("line.cross")] == ["out"]
    assert len(watched.of("track.begin")) == len(watched.of("zone.enter")) == 1
    (crossing,) = watched.of("line.cross")
    assert (crossing.data.frame.index, crossing.data.clock.captured_ns) == (124, 6_200_000_000)


def test_an_object_behind_a_lorry_for_three_seconds_is_one_track() -> None:
    watched = Watched(zones=[Zone("whole", WHOLE, dwell_s=[8])])
    for step in range(200):
        watched.see(*([] if 70 <= step < 130 else [feet(60 + 2.5 * step, 300, 80, 50)]))
    watched.close()
    assert watched.kinds() == [
        "track.begin", "match.begin", "zone.enter", "zone.dwell", "zone.exit", "match.end", "track.end",
    ]  # fmt: skip


def test_a_track_that_left_the_view_ends_soon() -> None:
    watched = Watched()
    for step in range(40):
        watched.see(feet(480 + 4 * step, 300))
    watched.see_for(3)
    (end,) = watched.of("track.end")
    assert end.data.track.end_reason == "left_view"
    assert end.data.clock.captured_ns <= 3.4e9


def test_detections_in_a_mask_are_ignored_and_counted() -> None:
    watched = Watched(masks=[IgnoredRegion("road", [(0, 0), (0.3, 0), (0.3, 1), (0, 1)])])
    watched.see_for(1, PARKED, OTHER)
    (begin,) = watched.of("track.begin")
    assert begin.data.track.box.x1 > 0.3
    assert watched.analysis.masked_detections == FPS
