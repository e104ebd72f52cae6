"""From frames to events, with fake sources and a fake detector."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import PromptError
from sinks.event import Description, EventType
from streamer.enrichment.enricher import Enricher
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import SourceState, StateChange
from tests.support.fakes import Bench, FakeDetector, FakeSource, ListSink, camera, one_box_per_query
from trackers import create_tracker


def run(cameras, detector=None, **options) -> Bench:
    async def go() -> Bench:
        async with Bench(cameras(), detector, **options) as bench:
            await bench.run()
        return bench

    return asyncio.run(go())


def tallies(bench: Bench):
    return {report.stream: report.tally for report in bench.pipeline.report()}


def test_a_recording_is_analysed_frame_by_frame_and_reported_in_order():
    bench = run(lambda: [camera(FakeSource(count=25))])
    assert bench.kinds() == [
        "stream.online",
        "track.begin",
        "match.begin",
        "match.end",
        "track.end",
        "coverage",
        "stream.offline",
    ]
    sequences = [int(event.sequence) for event in bench.sink.events]
    assert sequences == list(range(1, len(sequences) + 1))
    assert [event.id for event in bench.sink.events] == [f"1.cam.{number}" for number in sequences]
    coverage = bench.sink.events[-2].data.coverage
    assert (coverage.received, coverage.analysed, coverage.dropped, coverage.state) == (25, 25, {}, "seeing")


def test_every_event_is_what_its_schema_says():
    bench = run(lambda: [camera(FakeSource(count=300), ["person", "dog"])])
    for event in bench.sink.events:
        assert type(event).from_json(event.to_json()) == event


def test_one_detector_thread_serves_all_cameras_in_shared_batches():
    detector = FakeDetector(delay_s=0.005)
    bench = run(lambda: [camera(FakeSource(f"cam{number}", count=20)) for number in range(4)], detector)
    assert len(detector.threads) == 1
    assert any(len(set(batch)) > 1 for batch in detector.batches)
    assert all(tally.analysed == 20 for tally in tallies(bench).values())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 4), st.booleans(), st.none() | st.integers(0, 20)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 8),
    st.sets(st.integers(0, 40)),
)
def test_every_frame_is_accounted_for(streams, batch_size, failing):
    """received = analysed + dropped, whatever fails and whatever is skipped."""

    def cameras():
        return [
            camera(
                FakeSource(f"cam{number}", count=count, live=live, period_s=0.001, fail_at=fail_at),
                sampling=FrameSampling(every=every),
            )
            for number, (count, every, live, fail_at) in enumerate(streams)
        ]

    calls = Counter()

    def answer(request):
        calls["n"] += 1
        if calls["n"] in failing:
            raise RuntimeError("a bad batch")
        return one_box_per_query(request)

    bench = run(cameras, FakeDetector(answer), batch_size=batch_size)
    for number, (count, _every, _live, fail_at) in enumerate(streams):
        tally = tallies(bench)[f"cam{number}"]
        assert tally.pending == 0
        assert tally.received == (count if fail_at is None else min(count, fail_at))
        assert set(tally.dropped) <= {"stale", "not_sampled", "detector_error", "shutdown"}


def test_a_camera_that_breaks_leaves_the_others_alone():
    bench = run(lambda: [camera(FakeSource("bad", count=20, fail_at=3)), camera(FakeSource("good", count=20))])
    assert bench.pipeline.errors == {"bad": "the cable was cut"}
    assert tallies(bench)["good"].analysed == 20
    assert bench.kinds("bad") == ["stream.online", "track.begin", "track.end", "coverage", "stream.offline"]


def test_a_frame_that_the_detector_cannot_take_costs_that_frame_alone():
    def answer(request):
        if request.stream == "bad":
            raise ValueError("cannot look at this")
        return one_box_per_query(request)

    bench = run(lambda: [camera(FakeSource("bad", count=8)), camera(FakeSource("good", count=8))], FakeDetector(answer))
    assert tallies(bench)["bad"].dropped == {"detector_error": 8}
    reported = [e.data.coverage for e in bench.sink.events if e.data.coverage and e.data.stream == "bad"]
    assert [(c.received, c.analysed, c.dropped, c.state) for c in reported] == [(8, 0, {"detector_error": 8}, "blind")]
    assert tallies(bench)["good"].analysed == 8
    assert "cannot look at this" in bench.pipeline.errors["bad"]


def test_words_that_the_detector_cannot_read_are_reported_before_the_first_frame():
    class Illiterate(FakeDetector):
        def prepare(self, queries):
            raise PromptError("too long")

    source = []
    with pytest.raises(PromptError, match="too long"):
        run(lambda: source or [source.append(camera(FakeSource())) or source[0]], Illiterate())
    assert source[0].source.account.tally().received == 0


def test_stopping_ends_open_tracks_with_shutdown():
    async def go():
        async with Bench([camera(FakeSource(count=None, live=True, period_s=0.01))]) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            await bench.until("match.begin")
            await bench.pipeline.stop()
            await asyncio.wait_for(running, 5)
            await bench.spool.drain(5)
        return bench

    bench = asyncio.run(go())
    ends = [event.data.track.end_reason for event in bench.sink.events if event.type is EventType.TRACK_END]
    assert ends == ["shutdown"]
    assert tallies(bench)["cam"].pending == 0


def test_an_outage_is_one_pair_of_events_and_ends_the_tracks(caplog):
    async def go():
        async with Bench([camera(FakeSource(count=None, live=True, period_s=0.01))]) as bench:
            running = asyncio.create_task(bench.pipeline.run())

            def report_state(state, cause=""):
                bench.relay(StateChange("cam", state, time.time_ns(), cause))

            report_state(SourceState.LIVE)
            await bench.until("match.begin")
            for state in (SourceState.STALLED, SourceState.WAITING, SourceState.CONNECTING, SourceState.WAITING):
                report_state(state, "the camera is silent")
            report_state(SourceState.LIVE)
            await bench.until("stream.online", 2)
            await bench.pipeline.stop()
            await running
            await bench.spool.drain(5)
        return bench

    bench = asyncio.run(go())
    stream_events = [event for event in bench.sink.events if event.type.startswith("groundstream.stream")]
    assert [event.type.split(".")[2] for event in stream_events] == ["online", "offline", "online", "offline"]
    assert stream_events[1].data.outage.cause == "the camera is silent"
    assert stream_events[2].data.outage.since_ns == stream_events[1].data.outage.since_ns
    ends = [event.data.track.end_reason for event in bench.sink.events if event.type is EventType.TRACK_END]
    assert ends[0] == "stream_down"
    assert "cam: the camera gives no pictures: the camera is silent" in caplog.text
    assert "cam: the camera is back after" in caplog.text


def test_live_frames_are_fresh_when_a_slow_detector_sees_them():
    inference_s, period_s = 0.2, 0.02

    async def go():
        detector = FakeDetector(delay_s=inference_s)
        async with Bench([camera(FakeSource(count=None, live=True, period_s=period_s))], detector) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            ages = []
            for _ in range(8):
                await asyncio.sleep(inference_s)
                ages.append(bench.pipeline.report()[0].age_s)
            await bench.pipeline.stop()
            await running
        return ages, bench.pipeline.report()[0].tally

    ages, tally = asyncio.run(go())
    # From capture to events: the frame may wait for the next one to be taken, and is then looked at once.
    assert all(age is not None and age < 2 * inference_s for age in ages[2:]), ages
    assert tally.dropped["stale"] > 3 * tally.analysed


def test_a_slow_sink_holds_up_no_frame():
    started = time.monotonic()
    bench = run(lambda: [camera(FakeSource(count=200))], sink=ListSink(delay_s=0.5))
    analysed_in = time.monotonic() - started
    assert tallies(bench)["cam"].analysed == 200
    assert analysed_in < 10


def test_frames_between_samples_are_tracked_by_motion_alone():
    kept = []

    class Recorder:
        async def write(self, frame, tracked, *, analysed):
            kept.append((frame.index, analysed, tracked.xyxy[:, 0].round(1).tolist()))

        async def aclose(self):
            pass

    position = iter(range(100))

    def moving(request):
        x = 4.0 * next(position)
        return sv.Detections(
            xyxy=np.array([[x, 10, x + 20, 40]], np.float32), confidence=np.array([0.9]), class_id=np.array([0])
        )

    bench = run(
        lambda: [camera(FakeSource(count=25), sampling=FrameSampling(every=2), recorders=[Recorder()])],
        FakeDetector(moving),
    )
    assert tallies(bench)["cam"].dropped == {"not_sampled": 12}
    assert [analysed for _, analysed, _ in kept[:4]] == [True, False, True, False]
    (before,), (between,), (after,) = (kept[number][2] for number in (20, 21, 22))
    assert before < between < after


def test_a_recording_gives_the_same_events_every_time():
    def lines(bench):
        return [event.to_json() for event in bench.sink.events]

    first = run(lambda: [camera(FakeSource(count=300), ["person", "dog"])])
    second = run(lambda: [camera(FakeSource(count=300), ["person", "dog"])])
    assert lines(first) == lines(second)
    assert sum(kind == "coverage" for kind in first.kinds()) == 2


def test_what_a_describer_reports_comes_later_on_the_same_subject_and_holds_nothing_up():
    def describe(image, box, phrase):
        time.sleep(0.3)
        return Description(text=f"{phrase or 'a thing'} in a box", model="fake")

    async def go():
        source = FakeSource(count=None, live=True, period_s=0.01)
        async with Bench([camera(source)], new_enricher=lambda deliver: Enricher(describe, deliver)) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            await bench.until("enrich")
            await bench.pipeline.stop()
            await running
            await bench.spool.drain(5)
        return bench

    bench = asyncio.run(go())
    begin = next(event for event in bench.sink.events if event.type is EventType.TRACK_BEGIN)
    reported = next(event for event in bench.sink.events if event.type is EventType.ENRICH)
    assert (reported.subject, reported.data.cause) == (begin.subject, begin.id)
    assert reported.data.description.text == "a thing in a box"
    assert int(reported.sequence) > int(begin.sequence)
    assert tallies(bench)["cam"].analysed > 10


def test_the_parts_of_coverage_add_up_when_the_detector_fails_now_and_then():
    turns = iter(range(1000))

    def answer(request):
        if next(turns) % 10 == 3:
            raise RuntimeError("now and then")
        return one_box_per_query(request)

    bench = run(lambda: [camera(FakeSource(count=600))], FakeDetector(answer), batch_size=1)
    reported = [event.data.coverage for event in bench.sink.events if event.data.coverage]
    assert len(reported) == 3
    assert all(c.received == c.analysed + sum(c.dropped.values()) for c in reported)
    assert {reason for c in reported for reason in c.dropped} == {"detector_error"}


def test_sequences_reach_the_sink_in_order_while_coverage_comes_by_the_clock():
    class Slow:
        async def write(self, frame, tracked, *, analysed):
            await asyncio.sleep(0.005)

        async def aclose(self):
            pass

    async def go():
        cameras = [camera(FakeSource(count=None, live=True, period_s=0.004), recorders=[Slow()])]
        async with Bench(cameras, coverage_every_s=0.02) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            await bench.until("coverage", 20)
            await bench.pipeline.stop()
            await running
            await bench.spool.drain(5)
        return bench

    bench = asyncio.run(go())
    sequences = [int(event.sequence) for event in bench.sink.events]
    assert sequences == list(range(1, len(sequences) + 1))
    times = [event.time for event in bench.sink.events]
    assert times == sorted(times)


def test_stopping_while_words_are_made_ready_stops():
    class Slow(FakeDetector):
        def prepare(self, queries):
            time.sleep(0.3)
            return super().prepare(queries)

    async def go():
        async with Bench([camera(FakeSource(count=400))], Slow()) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            await asyncio.sleep(0.1)
            await bench.pipeline.stop()
            await asyncio.wait_for(running, 5)
            return bench.pipeline.report()[0].tally

    assert asyncio.run(go()).analysed == 0


def test_a_thing_hidden_as_long_as_a_track_lives_is_one_object_with_one_begin():
    """It stands still for 2 s, is hidden until the tracker gives it up, and is found again as it does."""

    turns = iter(range(1000))

    def answer(request):
        turn = next(turns)
        visible = turn < 20 or turn >= 30
        return one_box_per_query(request) if visible else one_box_per_query(request)[:0]

    def cameras():
        made = camera(FakeSource(count=60, period_s=0.1))
        made.analysis._tracker = create_tracker("default")
        return [made]

    bench = run(cameras, FakeDetector(answer), batch_size=1)
    assert bench.kinds().count("track.begin") == bench.kinds().count("track.end") == 1


class BrokenRecorder:
    """Fails at its third frame."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = 0

    async def write(self, frame, tracked, *, analysed):
        self.written += 1
        if self.written == 3:
            raise OSError("the disk is full")

    async def aclose(self):
        self.closed += 1


def test_a_recorder_that_fails_ends_its_recording_with_the_reason_and_no_other(caplog):
    broken = BrokenRecorder()
    bench = run(
        lambda: [camera(FakeSource("bad", count=300), recorders=[broken]), camera(FakeSource("good", count=300))]
    )
    assert bench.pipeline.errors == {"bad": "OSError: the disk is full"}
    assert tallies(bench)["good"].analysed == 300
    assert tallies(bench)["bad"].received < 300
    assert all(tally.pending == 0 for tally in tallies(bench).values())
    assert bench.kinds("bad")[-1] == "stream.offline"
    assert "the disk is full" in caplog.text
    assert broken.written == 3


def test_a_recorder_that_fails_is_switched_off_and_its_camera_goes_on(caplog):
    broken = BrokenRecorder()

    async def go():
        async with Bench([camera(FakeSource(count=None, live=True, period_s=0.01), recorders=[broken])]) as bench:
            running = asyncio.create_task(bench.pipeline.run())
            await bench.until("match.begin")
            await bench.pipeline.stop()
            await running
            await bench.spool.drain(5)
        return bench

    bench = asyncio.run(go())
    assert bench.pipeline.errors == {}
    assert (broken.written, broken.closed) == (3, 1)
    assert "is switched off: OSError: the disk is full" in caplog.text


def test_a_rule_that_fails_ends_its_stream_alone(caplog):
    class BrokenRule:
        def update(self, seen):
            raise ZeroDivisionError("no tracks")

        def close(self, time_ns):
            raise ZeroDivisionError("still none")

    bench = run(
        lambda: [camera(FakeSource("bad", count=50), rules=[BrokenRule()]), camera(FakeSource("good", count=50))]
    )
    assert bench.pipeline.errors == {"bad": "ZeroDivisionError: no tracks"}
    assert tallies(bench)["good"].analysed == 50
    assert "still none" in caplog.text
