from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sinks.event import (
    Box,
    Clock,
    Description,
    Event,
    EventData,
    EventType,
    Producer,
    TrackInfo,
    ZoneInfo,
)
from streamer.enrichment.enricher import (
    CallBudget,
    Enricher,
    Enrichment,
    EnrichPlan,
    EnrichSubject,
    EnrichTally,
    EnrichTrigger,
)
from streamer.errors import ConfigError
from streamer.frame import Frame, FrameClock


class StubDescriber:
    """A describer that can be held up, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()

    def __call__(self, image: Any, box: Any, phrase: str) -> Description:
        self.asked.append((box, phrase))
        self.busy.set()
        assert self.free.wait(10)
        return Description(text=f"seen {len(self.asked)}", model="describer")


class Scene:
    """An enricher with its describer and what it delivered."""

    def __init__(self, **options: Any) -> None:
        self.describer = StubDescriber()
        self.reported: list[Enrichment] = []
        self.now = 0.0
        self.enricher = Enricher(self.describer, self.reported.append, clock=lambda: self.now, **options)

    def offer(self, *events: Event, stream: str = "door", at_s: float = 0.0, grey: int = 0) -> None:
        pixels = np.full((20, 30, 3), grey, np.uint8)
        frame = Frame(stream, 7, int(at_s * 1e9), FrameClock("file_pts"), pixels, (30, 20))
        self.enricher.offer(frame, events)

    def settle(self) -> EnrichTally:
        deadline = time.monotonic() + 10
        while (tally := self.enricher.tally()).pending and time.monotonic() < deadline:
            time.sleep(0.001)
        return tally


@pytest.fixture
def scenes() -> Iterator[Any]:
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(**options))
        return made[-1]

    yield make
    for scene in made:
        scene.describer.free.set()
        scene.enricher.close()


def event(kind: EventType, uid: str = "A", zone: str | None = None) -> Event:
    track = TrackInfo(
        uid=uid,
        number=3,
        state="confirmed",
        revision=1,
        first_seen_ns=0,
        last_seen_ns=0,
        box=Box(x1=0.1, y1=0.2, x2=0.5, y2=0.6),
        score=0.9,
    )
    data = EventData(
        stream="door",
        run=1,
        clock=Clock(basis="file_pts", captured_ns=0),
        track=track,
        zone=None if zone is None else ZoneInfo(id=zone),
        producer=Producer(version="0", detector="d", tracker="t", config_hash="c"),
    )
    return Event.model_construct(id=f"1.door.{uid}", type=kind, data=data)


def begun(uid: str = "A") -> Event:
    return event(EventType.TRACK_BEGIN, uid)


def test_a_track_that_begins_is_described_in_its_box(scenes: Any) -> None:
    scene = scenes()
    scene.offer(begun())
    assert scene.settle() == EnrichTally(1, 1, 0, {})
    (reported,) = scene.reported
    assert (reported.stream, reported.trigger, reported.cause) == ("door", EnrichTrigger.TRACK, "1.door.A")
    assert (reported.subject.track_uid, reported.subject.track_number, reported.subject.box) == (
        "A",
        3,
        (0.1, 0.2, 0.5, 0.6),
    )
    assert reported.moment.frame is not None
    assert (reported.moment.frame.index, reported.description.text) == (7, "seen 1")


def test_only_the_zones_of_the_plan_are_reported_of(scenes: Any) -> None:
    scene = scenes(plan=EnrichPlan(tracks=False, zones=frozenset({"gate"})))
    scene.offer(begun(), event(EventType.ZONE_ENTER, "B", "gate"), event(EventType.ZONE_ENTER, "C", "lawn"))
    scene.settle()
    assert [(reported.trigger, reported.subject.track_uid) for reported in scene.reported] == [
        (EnrichTrigger.ZONE, "B")
    ]
    anywhere = scenes(plan=EnrichPlan(tracks=False, zones=frozenset()))
    anywhere.offer(event(EventType.ZONE_ENTER, "C", "lawn"))
    assert anywhere.settle().answered == 1


def test_a_scene_is_described_every_so_often_if_it_changed(scenes: Any) -> None:
    scene = scenes(plan=EnrichPlan(tracks=False, every_s=10))
    for at_s, grey in ((0, 0), (5, 90), (10, 1), (20, 90)):
        scene.offer(at_s=at_s, grey=grey)
        tally = scene.settle()
    assert tally == EnrichTally(3, 2, 0, {"unchanged": 1})
    assert [reported.moment.time_ns for reported in scene.reported] == [0, 20_000_000_000]


def test_a_request_is_served_with_the_next_frame_of_its_stream(scenes: Any) -> None:
    scene = scenes(plan=EnrichPlan(tracks=False))
    scene.enricher.request("door")
    scene.enricher.request("door", EnrichSubject("A", 3, (0.0, 0.0, 1.0, 1.0), "man"))
    scene.offer(stream="yard")
    assert scene.enricher.tally().pending == 2
    scene.offer()
    assert scene.settle().answered == 2
    assert scene.describer.asked == [(None, ""), ((0.0, 0.0, 1.0, 1.0), "man")]


def test_what_was_described_lately_is_reported_again_without_a_call(scenes: Any) -> None:
    scene = scenes(plan=EnrichPlan(zones=frozenset()), cache_s=60)
    scene.offer(begun())
    scene.offer(event(EventType.ZONE_ENTER, "A", "gate"))
    assert scene.settle() == EnrichTally(2, 1, 1, {})
    assert [reported.description.text for reported in scene.reported] == ["seen 1", "seen 1"]
    scene.now = 61
    scene.offer(event(EventType.ZONE_ENTER, "A", "gate"))
    assert scene.settle().answered == 2


def test_the_budget_holds_for_a_stream_and_for_all(scenes: Any) -> None:
    scene = scenes(budget=CallBudget(per_minute=3, per_stream_minute=2))
    for number in range(3):
        for stream in ("door", "yard"):
            scene.offer(begun(f"{stream}{number}"), stream=stream)
            scene.settle()
    assert scene.enricher.tally() == EnrichTally(6, 3, 0, {"budget": 3})
    assert [reported.stream for reported in scene.reported] == ["door", "yard", "door"]
    scene.now = 60
    scene.offer(begun("late"))
    assert scene.settle().answered == 4


def test_a_slow_describer_holds_no_one_up_and_every_request_is_accounted_for(scenes: Any) -> None:
    scene = scenes(queue_size=2)
    scene.describer.free.clear()
    for number in range(6):
        scene.offer(begun(str(number)))
        assert scene.describer.busy.wait(5)
    assert scene.enricher.tally() == EnrichTally(6, 0, 0, {"queue_full": 3})
    scene.describer.free.set()
    assert scene.settle() == EnrichTally(6, 3, 0, {"queue_full": 3})


def test_what_waited_too_long_is_dropped(scenes: Any) -> None:
    scene = scenes(stale_s=5)
    scene.describer.free.clear()
    scene.offer(begun("A"))
    assert scene.describer.busy.wait(5)
    scene.offer(begun("B"))
    scene.now = 6
    scene.describer.free.set()
    assert scene.settle() == EnrichTally(2, 1, 0, {"stale": 1})


def test_a_failing_describer_is_counted_and_asked_again(scenes: Any, caplog: pytest.LogCaptureFixture) -> None:
    scene = scenes()
    failing = iter([RuntimeError("out of memory")])
    answer = scene.describer.__call__

    def describe(*arguments: Any) -> Description:
        if (error := next(failing, None)) is not None:
            raise error
        return answer(*arguments)

    scene.enricher._describer = describe
    scene.offer(begun("A"))
    scene.settle()
    scene.offer(begun("B"))
    assert scene.settle() == EnrichTally(2, 1, 0, {"error": 1})
    assert "out of memory" in caplog.text


def test_closing_drops_what_waits_and_counts_it(scenes: Any) -> None:
    scene = scenes()
    scene.describer.free.clear()
    scene.offer(begun("A"))
    assert scene.describer.busy.wait(5)
    scene.offer(begun("B"))
    scene.enricher.request("yard")
    threading.Timer(0.05, scene.describer.free.set).start()
    scene.enricher.close()
    scene.offer(begun("C"))
    assert scene.enricher.tally() == EnrichTally(4, 0, 0, {"shutdown": 4})
    assert scene.reported == []


def test_a_recording_may_wait_for_its_last_descriptions(scenes: Any) -> None:
    scene = scenes()
    scene.describer.free.clear()
    scene.offer(begun("A"), begun("B"))
    assert not scene.enricher.drain(0.01)
    scene.describer.free.set()
    assert scene.enricher.drain(10)
    assert scene.enricher.tally() == EnrichTally(2, 2, 0, {})


def test_a_describer_with_nothing_to_report_is_counted(scenes: Any) -> None:
    scene = scenes()
    scene.enricher._describer = lambda *_: None
    scene.offer(begun())
    assert scene.settle() == EnrichTally(1, 0, 0, {"nothing": 1})
    assert scene.reported == []


def test_a_plan_or_budget_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="time above 0"):
        EnrichPlan(every_s=0)
    with pytest.raises(ConfigError, match="give 1 or more"):
        CallBudget(per_minute=0)
