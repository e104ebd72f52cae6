"""Changes of the configuration while the pipeline runs: whole or not at all, and without harm to anything else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import supervision as sv

from detectors import PromptError
from sinks.event import Event, EventType
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.pipeline import Pipeline
from streamer.sources.source import SourceState
from tests.support.cameras import FakeCameras, check_books, stream_section, wait_until
from tests.support.fakes import FakeDetector, ListSink

DOOR = {"id": "door", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]}


def in_loop(test):
    """Runs an async test in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


class Watched:
    """A running pipeline with the configuration it was given last, and the events that it sent."""

    def __init__(self, pipeline: Pipeline, sink: ListSink, raw: dict[str, Any], cameras: FakeCameras) -> None:
        self.pipeline, self.sink, self.raw, self.cameras = pipeline, sink, raw, cameras

    async def apply(self, **changes: Any) -> list[str]:
        raw = {**self.raw, **changes}
        sentences = await self.pipeline.apply(parse_config(raw))
        self.raw = raw
        return list(sentences)

    async def until(self, kind: str, times: int = 1, stream: str | None = None) -> Event:
        await wait_until(lambda: len(self.of(kind, stream)) >= times)
        return self.of(kind, stream)[times - 1]

    async def frames(self, count: int, stream: str = "gate") -> None:
        """Wait until `count` further frames have been analysed."""
        target = self.report(stream).tally.analysed + count
        await wait_until(lambda: self.report(stream).tally.analysed >= target)

    def of(self, kind: str, stream: str | None = None) -> list[Event]:
        return [
            event
            for event in self.sink.events
            if event.type == f"groundstream.{kind}.v1" and stream in (None, event.data.stream)
        ]

    def report(self, stream: str = "gate"):
        return next(report for report in self.pipeline.report() if report.stream == stream)


@asynccontextmanager
async def watching(
    raw: Mapping[str, Any] | None = None,
    detector: FakeDetector | None = None,
    cameras: FakeCameras | None = None,
    spool_path: Any = None,
) -> AsyncIterator[Watched]:
    sink, cameras = ListSink(), FakeCameras() if cameras is None else cameras
    full = {"streams": [{"source": "x", "name": "gate"}], "queries": ["person"], "sinks": [], "detector": "scripted:x"}
    full |= raw or {}
    opened = open_pipeline(
        parse_config(full),
        detector=detector or FakeDetector(),
        sources=cameras,
        more_sinks={"list": sink},
        spool_path=spool_path,
    )
    async with opened as pipeline:
        running = asyncio.create_task(pipeline.run())
        try:
            yield Watched(pipeline, sink, full, cameras)
        finally:
            await pipeline.stop()
            await asyncio.wait_for(running, 20)
    check_books(sink.events, pipeline)


def each_word_its_place(request):
    x = 5 if request.prompt.queries[0] == "person" else 40
    return sv.Detections(
        xyxy=np.array([[x, 10, x + 15, 40]], np.float32), confidence=np.array([0.9]), class_id=np.array([0])
    )


@in_loop
async def test_words_change_while_it_runs_and_the_events_show_it():
    async with watching(detector=FakeDetector(each_word_its_place)) as watched:
        await watched.until("match.begin")
        assert await watched.apply(queries=["dog"]) == ["gate: query 'dog' added", "gate: query 'person' removed"]
        await watched.until("match.begin", 2)
        await watched.until("track.end")
        with pytest.raises(ConfigError, match="empty"):
            await watched.apply(queries=[" "])
    changes = [event.data.query for event in watched.of("query")]
    assert [(query.text, query.change) for query in changes] == [("dog", "added"), ("person", "removed")]
    matches = [
        (event.type.split(".")[2], event.data.matches[0].text)
        for event in watched.sink.events
        if event.type in (EventType.MATCH_BEGIN, EventType.MATCH_END)
    ]
    assert matches == [("begin", "person"), ("end", "person"), ("begin", "dog"), ("end", "dog")]
    ends = [event.data.track.end_reason for event in watched.of("track.end")]
    assert ends == ["query_removed", "shutdown"]


@in_loop
async def test_a_camera_comes_and_goes_and_the_other_keeps_its_tracks_and_frames():
    async with watching() as watched:
        begun = await watched.until("track.begin", stream="gate")
        assert await watched.apply(streams=[stream_section("gate"), stream_section("yard")]) == ["yard: added"]
        await watched.until("track.begin", stream="yard")
        await watched.frames(10, "gate")
        assert await watched.apply(streams=[stream_section("gate")]) == ["yard: removed"]
        await watched.until("track.end", stream="yard")
        assert [report.stream for report in watched.pipeline.report()] == ["gate"]
        await watched.frames(10, "gate")
        assert [event.subject for event in watched.of("track.begin", "gate")] == [begun.subject]
        assert set(watched.report("gate").tally.dropped) <= {"stale"}  # a busy machine may miss the newest frame
    assert [event.data.track.end_reason for event in watched.of("track.end", "yard")] == ["shutdown"]
    assert watched.cameras.opened[1]._closed.is_set()


@in_loop
async def test_a_camera_that_is_removed_and_added_again_never_repeats_an_event_id():
    async with watching({"streams": [stream_section("gate"), stream_section("yard")]}) as watched:
        await watched.until("track.begin", stream="yard")
        await watched.apply(streams=[stream_section("gate")])
        await watched.apply(streams=[stream_section("gate"), stream_section("yard")])
        await watched.until("track.begin", 2, stream="yard")
    ids = [event.id for event in watched.sink.events]
    assert len(ids) == len(set(ids))
    assert len({event.subject for event in watched.of("track.begin", "yard")}) == 2


@in_loop
async def test_another_address_under_the_same_name_is_another_camera():
    async with watching() as watched:
        await watched.until("track.begin")
        assert await watched.apply(streams=[{"source": "y", "name": "gate"}]) == ["gate: removed", "gate: added"]
        await watched.until("track.begin", 2)


@in_loop
async def test_zones_lines_and_counts_change_and_no_event_names_one_before_its_time():
    async with watching({"streams": [stream_section("gate", zones=[{**DOOR, "id": "old"}])]}) as watched:
        await watched.until("zone.enter")
        before_ns = time.time_ns()
        changed = stream_section("gate", zones=[DOOR], counts=[{"of": "door", "window_s": 0.1}])
        sentences = await watched.apply(streams=[changed])
        assert sentences == ["gate: zone 'door' added", "gate: zone 'old' removed", "gate: counts changed"]
        after_ns = time.time_ns()
        await watched.until("zone.enter", 2)
        await watched.until("count", 2)
        await watched.apply(streams=[stream_section("gate")])
        await watched.until("zone.exit", 2)
        await watched.frames(5)
    places = [(event.type.split(".")[2], event.data.zone.id) for event in watched.sink.events if event.data.zone]
    assert places == [("enter", "old"), ("exit", "old"), ("enter", "door"), ("exit", "door")]
    for event in watched.sink.events:
        if event.data.zone and event.data.zone.id == "old":
            assert event.data.clock.captured_ns <= after_ns
        if (event.data.zone and event.data.zone.id == "door") or event.data.count:
            assert event.data.clock.captured_ns >= before_ns
    assert len(watched.of("track.begin")) == 1


@in_loop
async def test_a_zone_that_stays_as_it_is_keeps_who_is_in_it():
    async with watching({"streams": [stream_section("gate", zones=[DOOR])]}) as watched:
        await watched.until("zone.enter")
        await watched.apply(streams=[stream_section("gate", zones=[{**DOOR, "id": "other"}, DOOR])])
        await watched.until("zone.enter", 2)
    entered = [event.data.zone.id for event in watched.of("zone.enter")]
    assert entered == ["door", "other"]
    assert sorted(event.data.zone.id for event in watched.of("zone.exit")) == ["door", "other"]


@in_loop
async def test_an_event_names_the_query_as_it_was_when_its_frame_was_captured():
    async with watching({"queries": [{"text": "person", "id": "who"}]}) as watched:
        await watched.until("match.begin")
        await watched.apply(queries=[{"text": "somebody", "id": "who"}])
        await watched.until("match.begin", 2)
    change = watched.of("query")[0]
    assert (change.data.query.text, change.data.query.rev) == ("somebody", 2)
    for event in watched.of("match.begin") + watched.of("match.end"):
        match = event.data.matches[0]
        assert (match.text, match.query_rev) in (("person", 1), ("somebody", 2))
        is_before = int(event.sequence) < int(change.sequence)
        assert match.text == ("person" if is_before else "somebody")


@in_loop
async def test_a_query_is_paused_and_resumed():
    async with watching({"queries": ["person", "dog"]}) as watched:
        await watched.until("match.begin", 2)
        paused = [{"text": "person", "paused": True}, "dog"]
        assert await watched.apply(queries=paused) == ["gate: query 'person' paused"]
        await watched.until("match.end")
        assert await watched.apply(queries=["person", "dog"]) == ["gate: query 'person' resumed"]
        await watched.until("match.begin", 3)
        assert await watched.apply(queries=[{"text": text, "paused": True} for text in ("person", "dog")])
        ended = await watched.until("track.end", 2)
        assert ended.data.track.end_reason == "query_removed"
        analysed = watched.report().tally.analysed
        await asyncio.sleep(0.1)
        assert watched.report().tally.analysed == analysed
        assert watched.report().tracks == 0
        await watched.apply(queries=["person"])
        await watched.until("match.begin", 4)
    assert [event.data.query.change for event in watched.of("query")][:2] == ["paused", "resumed"]


@in_loop
async def test_a_camera_is_paused_disconnected_and_resumed_as_one_outage():
    async with watching() as watched:
        await watched.until("match.begin")
        assert await watched.apply(streams=[stream_section("gate", paused=True)]) == ["gate: paused"]
        offline = await watched.until("stream.offline")
        assert watched.cameras.opened[0]._closed.is_set()
        assert watched.report().state is SourceState.PAUSED
        before = watched.report().tally
        await asyncio.sleep(0.1)
        assert watched.report().tally == before
        assert await watched.apply(streams=[stream_section("gate")]) == ["gate: resumed"]
        online = await watched.until("stream.online", 2)
        await watched.frames(5)
        assert watched.report().tally.received > before.received
    assert offline.data.outage.cause == online.data.outage.cause == "paused"
    assert online.data.outage.since_ns == offline.data.outage.since_ns
    assert [event.data.track.end_reason for event in watched.of("track.end")] == ["stream_down", "shutdown"]


@in_loop
async def test_a_camera_whose_server_does_not_answer_blocks_nothing_while_it_is_added():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and answers nothing
        slow = {"source": f"http://127.0.0.1:{silent.getsockname()[1]}/live"}
        async with watching() as watched:
            await watched.frames(1)
            adding = asyncio.create_task(watched.apply(streams=[*watched.raw["streams"], slow]))
            await asyncio.sleep(0.2)  # the server is asked now
            before = watched.report().tally.analysed
            await watched.frames(3)
            assert watched.report().tally.analysed >= before + 3
            assert not adding.done()
            adding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await adding
            assert [report.stream for report in watched.pipeline.report()] == ["gate"]
            assert await watched.apply(queries=["dog"])  # the next change is not held up


@in_loop
async def test_the_end_of_the_pipeline_refuses_a_camera_that_is_being_added(monkeypatch):
    monkeypatch.setattr("streamer.sources.opening._ASK_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = {"source": f"http://127.0.0.1:{silent.getsockname()[1]}/live"}
        async with watching() as watched:
            await watched.frames(1)
            adding = asyncio.create_task(watched.apply(streams=[*watched.raw["streams"], slow]))
            await asyncio.sleep(0.1)
            await watched.pipeline.stop()
            with pytest.raises(ConfigError):
                await adding


@in_loop
async def test_everything_may_be_paused_from_the_start_and_it_waits():
    async with watching({"streams": [stream_section("gate", paused=True)]}) as watched:
        await asyncio.sleep(0.1)
        assert (watched.report().state, watched.report().tally.received) == (SourceState.PAUSED, 0)
        await watched.apply(streams=[stream_section("gate")])
        await watched.until("track.begin")


@in_loop
async def test_a_recording_is_held_back_while_it_is_paused_and_loses_no_frame():
    cameras = FakeCameras(live=False, count=400)
    async with watching({"streams": [stream_section("film")]}, FakeDetector(delay_s=0.002), cameras) as watched:
        await watched.frames(20, "film")
        await watched.apply(streams=[stream_section("film", paused=True)])
        await asyncio.sleep(0.2)
        before = watched.report("film").tally.analysed
        await asyncio.sleep(0.2)
        assert watched.report("film").tally.analysed == before < 400
        await watched.apply(streams=[stream_section("film")])
        await watched.until("coverage")
    tally = watched.report("film").tally
    assert (tally.received, tally.analysed, tally.dropped) == (400, 400, {})
    assert len(watched.of("track.begin")) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"queries": ["dog", "dog"]}, "given twice"),
        ({"streams": [stream_section("gate"), stream_section("gate")]}, "two streams are called 'gate'"),
        ({"streams": [stream_section("gate", zones=[{"id": "z", "polygon": [[0, 0], [1, 1]]}])]}, "z"),
        ({"streams": [stream_section("gate"), stream_section("gone")]}, "nothing at this address"),
        ({"sinks": ["kafak://host/topic"]}, "did you mean kafka"),
        ({"tracker": "sort"}, "tracker cannot change while running"),
        ({"detector": "motion"}, "detector.name cannot change from 'scripted:x' to 'motion' while running"),
        ({"spool": {"fsync_each": True}}, "spool cannot change while running"),
    ],
)
@in_loop
async def test_a_wrong_change_is_refused_whole(change, sentence, tmp_path):
    async with watching() as watched:
        await watched.until("match.begin")
        before = watched.pipeline.config
        right = {"queries": ["person", "cat"], "sinks": [f"jsonl:{tmp_path / 'more.jsonl'}"]}
        both = {**right, **change, "sinks": [*right["sinks"], *change.get("sinks", [])]}
        both["streams"] = [*both.get("streams", [stream_section("gate")]), stream_section("yard")]
        with pytest.raises(ConfigError, match=sentence):
            await watched.apply(**both)
        assert watched.pipeline.config is before
        assert all(source._closed.is_set() for source in watched.cameras.opened[1:])
        await watched.frames(5)
        assert [status.name for status in watched.pipeline.sinks()] == ["list"]
        assert [report.stream for report in watched.pipeline.report()] == ["gate"]
        assert await watched.apply(**right)
    changed = [event.data.query.text for event in watched.of("query")]
    assert changed == ["cat"]
    assert len(watched.of("track.begin", "gate")) >= 1


@in_loop
async def test_words_that_the_detector_cannot_read_are_refused():
    class Illiterate(FakeDetector):
        def prepare(self, queries):
            if "unreadable" in queries:
                raise PromptError("too long")
            return super().prepare(queries)

    async with watching(detector=Illiterate()) as watched:
        await watched.until("match.begin")
        with pytest.raises(ConfigError, match="too long"):
            await watched.apply(streams=[stream_section("gate"), stream_section("yard")], queries=["unreadable"])
        assert all(source._closed.is_set() for source in watched.cameras.opened[1:])


@in_loop
async def test_new_words_wait_for_one_batch_at_most():
    class Slow(FakeDetector):
        prepared_after = -1

        def prepare(self, queries):
            if "dog" in queries:
                self.prepared_after = len(self.batches)
            return super().prepare(queries)

    detector = Slow(delay_s=0.1)
    streams = [stream_section(name) for name in ("gate", "yard", "door")]
    async with watching({"streams": streams}, detector) as watched:
        await watched.until("match.begin")
        before = len(detector.batches)
        await watched.apply(
            streams=[
                {**one, "queries": ["person", word]} for one, word in zip(streams, ("dog", "cat", "cow"), strict=True)
            ]
        )
    assert detector.prepared_after <= before + 1


@in_loop
async def test_sinks_come_and_go(tmp_path):
    path = tmp_path / "events.jsonl"
    async with watching() as watched:
        await watched.until("match.begin")
        assert await watched.apply(sinks=[f"jsonl:{path}"]) == [f"sink jsonl:{path} added"]
        await watched.apply(queries=["dog"])
        await watched.until("match.end")
        await wait_until(lambda: path.exists() and b"match.end" in path.read_bytes())
        assert await watched.apply(sinks=[]) == [f"sink jsonl:{path} removed"]
        size = path.stat().st_size
        await watched.until("match.begin", 2)
        await watched.apply(queries=["cat"])
        await watched.until("match.end", 2)
        assert path.stat().st_size == size


@in_loop
async def test_a_sink_with_a_name_of_its_own_changes_and_goes(tmp_path):
    path = tmp_path / "events.jsonl"
    async with watching({"sinks": [f"jsonl:{path}?name=mine"]}) as watched:
        await watched.until("match.begin")
        assert await watched.apply(sinks=[f"jsonl:{path}?name=mine&types=query"]) == ["sink mine changed"]
        assert await watched.apply(sinks=[]) == ["sink mine removed"]
        assert [status.name for status in watched.pipeline.sinks()] == ["list"]


@in_loop
async def test_the_detections_of_every_frame_can_be_asked_for_while_it_runs():
    async with watching() as watched:
        await watched.until("match.begin")
        assert not watched.of("detections")
        await watched.apply(detections=True)
        await watched.until("detections", 3)


@in_loop
async def test_the_options_of_a_file_sink_change_and_a_wrong_option_leaves_it_as_it_was(tmp_path):
    path = tmp_path / "events.jsonl"
    async with watching({"sinks": [f"jsonl:{path}"]}) as watched:
        await watched.until("match.begin")
        with pytest.raises(ConfigError, match="colour"):
            await watched.apply(sinks=[f"jsonl:{path}?colour=red"], queries=["cow"])
        await watched.apply(queries=["dog"])
        await wait_until(lambda: b"dog" in path.read_bytes())
        [sentence] = await watched.apply(sinks=[f"jsonl:{path}?types=query"])
        assert sentence == f"sink jsonl:{path}?types=query changed"
        await watched.until("match.begin", 2)
        await watched.apply(queries=["cat"])
        await wait_until(lambda: b"cat" in path.read_bytes())
    lines = path.read_text()
    assert lines.count("query.v1") == 4
    assert lines.count("match.begin.v1") == 1


@in_loop
async def test_thresholds_and_sampling_change():
    async with watching() as watched:
        await watched.until("match.begin")
        sentences = await watched.apply(detector={"name": "scripted:x", "threshold": 0.95})
        assert sentences == ["default threshold is 0.95"]
        await watched.until("match.end")
        await watched.frames(50)
        assert len(watched.of("match.begin")) == 1
        await watched.apply(detector={"name": "scripted:x", "threshold": 0.5})
        await watched.until("match.begin", 2)
        assert await watched.apply(streams=[stream_section("gate", sample={"every": 3})]) == ["gate: sampling changed"]
        await watched.frames(5)
        assert watched.report().tally.dropped["not_sampled"] >= 5
    assert [event.data.matches[0].threshold for event in watched.of("match.begin")] == [0.5, 0.5]


def faint(request):
    """One box of every query at 0.15, as far as the request asks for so little."""
    found = [number for number, least in enumerate(request.least_scores(0.5)) if least <= 0.15]
    boxes = np.array([[5 + 30 * number, 10, 20 + 30 * number, 40] for number in found], np.float32).reshape(-1, 4)
    return sv.Detections(
        xyxy=boxes, confidence=np.full(len(found), 0.15, np.float32), class_id=np.array(found, np.int64)
    )


@in_loop
async def test_thresholds_far_below_the_detector_s_own_reach_the_detector():
    faint_dog = {"text": "dog", "threshold": 0.1}
    async with watching({"queries": ["person", faint_dog]}, detector=FakeDetector(faint)) as watched:
        matched = await watched.until("match.begin")
        assert matched.data.matches[0].text == "dog"
        await watched.frames(5)
        assert len(watched.of("match.begin")) == 1
        await watched.apply(queries=["person", {"text": "dog", "threshold": 0.9}])
        await watched.until("match.end")
        await watched.apply(queries=[{"text": "person", "threshold": 0.12}, {"text": "dog", "threshold": 0.9}])
        assert (await watched.until("match.begin", 2)).data.matches[0].text == "person"
        await watched.apply(queries=["person", faint_dog], detector={"name": "scripted:x", "threshold": 0.14})
        assert (await watched.until("match.begin", 3)).data.matches[0].text in {"person", "dog"}
        await watched.until("match.begin", 4)
        [found] = await watched.pipeline.detect_images([np.zeros((48, 64, 3), np.uint8)], ("person",), 0.1)
        assert len(found) == 1
        [found] = await watched.pipeline.detect_images([np.zeros((48, 64, 3), np.uint8)], ("person",), 0.4)
        assert len(found) == 0


@in_loop
async def test_a_stream_that_is_added_with_a_threshold_has_it():
    async with watching(detector=FakeDetector(faint)) as watched:
        await watched.frames(5)
        await watched.apply(
            streams=[stream_section("gate"), stream_section("yard")],
            detector={"name": "scripted:x", "threshold": 0.1},
        )
        assert (await watched.until("match.begin", stream="yard")).data.matches[0].threshold == 0.1
        await watched.until("match.begin", stream="gate")


class FixedDetector(FakeDetector):
    """A detector whose own threshold cannot be set, as with `motion` and with masks."""

    @property
    def threshold(self) -> float:
        return 0.5


@in_loop
async def test_the_threshold_of_a_detector_that_fixes_its_own_changes():
    async with watching(detector=FixedDetector(faint)) as watched:
        await watched.frames(5)
        await watched.apply(detector={"name": "scripted:x", "threshold": 0.1})
        assert (await watched.until("match.begin")).data.matches[0].threshold == 0.1


@in_loop
async def test_nothing_can_be_changed_after_the_end():
    async with watching() as watched:
        await watched.until("match.begin")
        await watched.pipeline.stop()
        with pytest.raises(ConfigError, match="has ended"):
            await watched.apply(queries=["dog"])
