"""Random sequences of changes on eight streams: no hang, no loss, nothing untouched is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sinks.event import Event, EventType
from streamer.build import open_pipeline
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.pipeline import Stream
from tests.support.cameras import FakeCameras, check_books, stream_section, wait_until
from tests.support.fakes import FakeDetector, ListSink

R = TypeVar("R")

NAMES = [f"cam{number}" for number in range(8)]
WORDS = ["person", "dog", "red car"]
ZONES = [
    {"id": "door", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], "settle_s": 0},
    {"id": "yard", "polygon": [[0.0, 0.0], [0.6, 0.0], [0.6, 0.9], [0.0, 0.9]], "settle_s": 0},
]
BAD: list[dict[str, Any]] = [
    {"queries": ["person", "person"]},
    {"sinks": ["kafak://host/topic"]},
    {"tracker": "sort"},
    {"streams": [stream_section("cam0", zones=[{"id": "flat", "polygon": [[0, 0], [1, 1]]}])]},
    {"streams": [stream_section("cam0"), stream_section("cam0")]},
    {"streams": [stream_section("gone")]},
]

names = st.sampled_from(NAMES)
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True)


class ChangingPipeline(RuleBasedStateMachine):
    """Eight synthetic streams under random changes. The model is the configuration and which streams were touched."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.sink = ListSink()
        self.cameras = FakeCameras(period_s=0.004)
        self.sections = {name: stream_section(name) for name in NAMES}
        self.raw: dict[str, Any] = {"queries": ["person"], "sinks": [], "detector": "scripted:x"}
        self.removed: list[Stream] = []
        self.dead: set[str] = set()
        self.untouched = set(NAMES)  # by anything but changes of other streams
        self.context = open_pipeline(
            parse_config(self.edited()),
            detector=FakeDetector(),
            sources=self.cameras,
            more_sinks={"list": self.sink},
        )
        self.pipeline = self.run(self.context.__aenter__())
        self.running = self.loop.create_task(self.pipeline.run())
        self.run(wait_until(lambda: all(self.has_begun(name) for name in NAMES)))
        self.first = {name: self.begun(name) for name in NAMES}

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Whatever it is, it ends: a deadlock fails here."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def edited(self, **changes: Any) -> dict[str, Any]:
        return {**self.raw, "streams": list(self.sections.values()), **changes}

    def apply(self) -> None:
        before = {stream.name: stream for stream in self.pipeline.streams}
        self.run(self.pipeline.apply(parse_config(self.edited())))
        after = {stream.name: stream for stream in self.pipeline.streams}
        self.removed += [stream for name, stream in before.items() if after.get(name) is not stream]
        assert set(after) == set(self.sections)

    def events(self, kind: EventType, name: str) -> list[Event]:
        return [event for event in self.sink.events if event.type is kind and event.data.stream == name]

    def begun(self, name: str) -> list[str | None]:
        return [event.subject for event in self.events(EventType.TRACK_BEGIN, name)]

    def has_begun(self, name: str) -> bool:
        return bool(self.begun(name))

    def touch(self, name: str) -> None:
        self.untouched.discard(name)

    @rule(name=names)
    def add_or_remove_a_camera(self, name: str) -> None:
        self.touch(name)
        if name not in self.sections:
            self.sections[name] = stream_section(name)
            self.dead.discard(name)
        elif len(self.sections) > 1:
            del self.sections[name]
        self.apply()

    @rule(name=names)
    def replace_a_camera(self, name: str) -> None:
        if name in self.sections:
            self.touch(name)
            self.sections[name] = {**self.sections[name], "source": self.sections[name]["source"] + "x"}
            self.dead.discard(name)
            self.apply()

    @rule(name=names, chosen=words, paused=st.booleans())
    def change_the_words_of_a_camera(self, name: str, chosen: list[str], paused: bool) -> None:
        if name in self.sections:
            self.touch(name)
            queries = [{"text": text, "paused": paused and text == chosen[0]} for text in chosen]
            self.sections[name] = {**self.sections[name], "queries": queries}
            self.apply()

    @rule(name=names, zones=st.lists(st.sampled_from(ZONES), unique_by=lambda zone: zone["id"], max_size=2))
    def change_the_zones_of_a_camera(self, name: str, zones: list[dict[str, Any]]) -> None:
        """Zones harm no track: the camera still counts as untouched."""
        if name in self.sections:
            counts = [{"of": zone["id"], "window_s": 0.05} for zone in zones]
            self.sections[name] = {**self.sections[name], "zones": zones, "counts": counts}
            self.apply()

    @rule(name=names)
    def pause_or_resume_a_camera(self, name: str) -> None:
        if name in self.sections:
            self.touch(name)
            paused = self.sections[name].get("paused", False)
            self.sections[name] = {**self.sections[name], "paused": not paused}
            if paused:
                self.dead.discard(name)
            self.apply()

    @rule(name=names, every=st.integers(1, 3))
    def change_the_sampling_of_a_camera(self, name: str, every: int) -> None:
        if name in self.sections:
            self.sections[name] = {**self.sections[name], "sample": {"every": every}}
            self.apply()

    @rule(name=names)
    def lose_a_camera(self, name: str) -> None:
        stream = next((stream for stream in self.pipeline.streams if stream.name == name), None)
        if stream is not None and not stream.is_paused and not stream.is_closed and len(self.alive()) > 1:
            self.touch(name)
            self.dead.add(name)
            stream.source.fail_now()
            self.run(wait_until(lambda: stream.is_closed))

    @rule(bad=st.sampled_from(BAD))
    def try_a_wrong_change(self, bad: dict[str, Any]) -> None:
        before = self.pipeline.config
        streams = [*self.sections.values(), *bad.get("streams", [])]
        raw = self.edited(**{**bad, "streams": [*streams, stream_section("cam9", queries=["cat"])]})
        with pytest.raises(ConfigError):
            self.run(self.pipeline.apply(parse_config(raw)))
        assert self.pipeline.config is before
        assert {stream.name for stream in self.pipeline.streams} == set(self.sections)

    @precondition(lambda self: self.alive())
    @rule()
    def let_it_run(self) -> None:
        self.run(asyncio.sleep(0.03))

    def alive(self) -> list[str]:
        return [
            stream.name for stream in self.pipeline.streams if not stream.is_closed and stream.name not in self.dead
        ]

    @invariant()
    def what_was_not_touched_keeps_its_tracks(self) -> None:
        for name in self.untouched:
            assert self.begun(name) == self.first[name]
            assert not self.events(EventType.TRACK_END, name)
            assert not self.events(EventType.STREAM_OFFLINE, name)

    @invariant()
    def it_runs(self) -> None:
        assert not self.running.done()

    def teardown(self) -> None:
        async def end() -> None:
            await self.pipeline.stop()
            await self.running
            await self.context.__aexit__(None, None, None)

        self.run(end())
        check_books(self.sink.events, self.pipeline)
        for stream in [*self.removed, *self.pipeline.streams]:
            tally = stream.tally()
            assert tally.received == tally.analysed + sum(tally.dropped.values()), stream.name
        for name in {event.data.stream for event in self.sink.events}:
            entered = self.events(EventType.ZONE_ENTER, name)
            assert len(entered) == len(self.events(EventType.ZONE_EXIT, name))
            matched = self.events(EventType.MATCH_BEGIN, name)
            assert len(matched) == len(self.events(EventType.MATCH_END, name))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


TestChangingPipeline = ChangingPipeline.TestCase
TestChangingPipeline.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
