"""Ground plane, rules over queries, and the same rules on recorded events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from detectors import Prompt, Request
from sinks.event import Event
from sinks.spool.open_state import OpenState
from streamer.analysis.event_writer import close_crashed
from streamer.build import open_pipeline
from streamer.cli import app
from streamer.config import Config, parse_config
from streamer.errors import ConfigError
from streamer.rules.conditions import (
    ClosePair,
    ConditionRule,
    FastTrack,
    LeftBehind,
    MissingThing,
)
from streamer.rules.geometry import Region
from streamer.rules.ground import GroundPlane
from streamer.rules.rule import FrameObservation, RuleFinding

CORNERS = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
FLAT = GroundPlane(CORNERS, [(0, 0), (100, 0), (100, 100), (0, 100)])  # the frame is 100 m wide and deep, from above
QUERIES = {"car": 0, "person": 1, "helmet": 2, "bag": 3}
Box = tuple[str, float, float, float, float]  # query, middle of the lower edge, width, height


def observe(time_s: float, boxes: Mapping[int, Box], *, alive: Sequence[int] | None = None) -> FrameObservation:
    ids = sorted(boxes)
    rows = np.array([(x - w / 2, y - h, x + w / 2, y) for _, x, y, w, h in (boxes[i] for i in ids)]).reshape(-1, 4)
    scores = np.zeros((len(ids), len(QUERIES)))
    for row, track in enumerate(ids):
        scores[row, QUERIES[boxes[track][0]]] = 0.9
    return FrameObservation(
        round(time_s * 1e9),
        np.array(ids, np.int64),
        np.clip(rows, 0, 1),
        np.full(len(ids), 0.9),
        np.arange(len(QUERIES)),
        scores,
        np.zeros(len(ids), np.bool_),
        np.array(sorted({*ids, *(alive or ())}), np.int64),
        matched={track: {QUERIES[boxes[track][0]]} for track in ids},
        frame_index=round(time_s * 10),
    )


def run(rule: ConditionRule, frames: int, boxes: Callable[[float], Mapping[int, Box]], alive: Any = None) -> list[Any]:
    found: list[RuleFinding] = []
    for number in range(frames):
        found += rule.update(observe(number / 10, boxes(number / 10), alive=alive))
    return [
        (one.data["rule"].state, one.track, one.data["rule"].other, round((one.time_ns or 0) / 1e9, 3))
        for one in found + rule.close(round(frames * 1e8))
    ]


def rule_of(condition: Any, for_s: float) -> ConditionRule:
    return ConditionRule("r", condition, for_s, QUERIES.get)


unit = st.floats(0.05, 0.95)


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=2),
    st.lists(st.tuples(unit, unit), min_size=1, max_size=5),
    st.floats(1, 50),
)
def test_a_plane_seen_in_perspective_is_found_again(tilt: list[float], points: Any, size: float) -> None:
    truth = np.array([[size, 2.0, 1.0], [-1.0, size, 3.0], [*tilt, 1.0]])

    def project(rows: Any) -> Any:
        mapped = np.column_stack([rows, np.ones(len(rows))]) @ truth.T
        return mapped[:, :2] / mapped[:, 2:]

    assume(all(np.array([x, y, 1.0]) @ truth[2] > 0.2 for x, y in CORNERS))
    plane = GroundPlane(CORNERS, project(CORNERS).tolist())
    assert np.allclose(plane.locate(np.array(points)), project(points), atol=1e-6 * size)


@pytest.mark.parametrize(
    ("image", "ground", "sentence"),
    [
        (CORNERS[:3], [(0, 0), (1, 0), (1, 1)], "give at least 4"),
        ([(0, 0), (0.3, 0.3), (0.6, 0.6), (1, 1)], [(0, 0), (1, 0), (1, 1), (0, 1)], "image points lie in a line"),
        (CORNERS, [(0, 0), (1, 1), (2, 2), (3, 3)], "ground points lie in a line"),
        ([*CORNERS, (0.5, 0.5)], [(0, 0), (9, 0), (9, 9), (0, 9), (7, 8)], "contradict one another"),
    ],
)
def test_points_that_fix_no_plane_are_refused(image: Any, ground: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GroundPlane(image, ground)


def test_above_the_horizon_there_is_no_ground() -> None:
    plane = GroundPlane([(0.2, 1.0), (0.8, 1.0), (0.6, 0.6), (0.4, 0.6)], [(-2, 5), (2, 5), (2, 20), (-2, 20)])
    assert np.isnan(plane.locate(np.array([[0.5, 0.1]]))).all()
    assert np.isfinite(plane.locate(np.array([[0.5, 0.9]]))).all()


@given(st.floats(1, 90))
def test_speed_is_the_way_on_the_ground_by_time(kmh: float) -> None:
    condition = FastTrack(FLAT, "car", above_kmh=30.0)
    step = kmh / 3.6 / 100 / 10
    found = {}
    for number in range(9):
        seen = observe(number / 10, {1: ("car", 0.1 + step * number, 0.5, 0.1, 0.1)})
        found = dict(condition.measure(seen, QUERIES.get))
    assert ((1, 0) in found) == (kmh > 30.0) or abs(kmh - 30) < 0.01
    if found:
        assert abs(found[1, 0].value - kmh) < 0.1


def test_a_fast_car_is_reported_as_of_the_moment_at_which_it_was_certain_to_be_fast() -> None:
    def drive(time_s: float) -> dict[int, Box]:
        fast = min(max(time_s - 1.0, 0.0), 1.5)
        return {1: ("car", 0.1 + 0.2 * fast, 0.5, 0.1, 0.1), 2: ("person", 0.1 + 0.2 * fast, 0.9, 0.1, 0.1)}

    said = run(rule_of(FastTrack(FLAT, "car", 50.0), 0.5), 60, drive)
    assert [(state, track, other) for state, track, other, _ in said] == [("begin", 1, None), ("end", 1, None)]
    assert 1.0 < said[0][3] < 2.2
    assert 2.4 < said[1][3] < 3.6
    zone = Region("zone", [(0, 0), (0.05, 0), (0.05, 1), (0, 1)])
    assert run(rule_of(FastTrack(FLAT, "car", 50.0, zone), 0.5), 60, drive) == [], "outside of its zone"


def test_two_people_that_stay_close_are_one_pair() -> None:
    def meet(time_s: float) -> dict[int, Box]:
        gap = 0.05 if time_s < 2 or time_s >= 5 else 0.006
        people: dict[int, Box] = {track: ("person", 0.5 + x, 0.5, 0.02, 0.1) for track, x in ((4, 0.0), (7, gap))}
        return {**people, 9: ("car", 0.5, 0.5, 0.1, 0.1)}

    assert run(rule_of(ClosePair(FLAT, "person", "person", 1.0), 1.0), 80, meet) == [
        ("begin", 4, 7, 2.0),
        ("end", 4, 7, 4.9),
    ]
    assert run(rule_of(ClosePair(FLAT, "person", "person", 1.0), 4.0), 80, meet) == [], "not long enough"
    assert run(rule_of(ClosePair(FLAT, "car", "person", 1.0), 1.0), 80, meet)[0] == ("begin", 9, 4, 0.0)


def test_a_box_that_flickers_does_not_end_a_condition() -> None:
    def flicker(time_s: float) -> dict[int, Box]:
        people: dict[int, Box] = {4: ("person", 0.5, 0.5, 0.02, 0.1)}
        if round(time_s * 10) % 4:
            people[7] = ("person", 0.506, 0.5, 0.02, 0.1)
        return people

    said = run(rule_of(ClosePair(FLAT, "person", "person", 1.0), 1.0), 40, flicker, alive=[4, 7])
    assert said == [("begin", 4, 7, 0.1), ("end", 4, 7, 3.9)]


def test_a_person_without_a_helmet_is_reported_and_one_sight_of_it_clears() -> None:
    def work(time_s: float) -> dict[int, Box]:
        boxes: dict[int, Box] = {
            1: ("person", 0.2, 0.9, 0.1, 0.4),
            2: ("person", 0.6, 0.9, 0.1, 0.4),
            5: ("helmet", 0.6, 0.56, 0.05, 0.06),
        }
        if 6.0 <= time_s < 6.1:
            boxes[6] = ("helmet", 0.2, 0.56, 0.05, 0.06)
        return boxes

    said = run(rule_of(MissingThing("person", "helmet"), 5.0), 100, work, alive=[1, 2])
    assert said == [("begin", 1, None, 0.0), ("end", 1, None, 5.9)]


@pytest.mark.parametrize("plane", [FLAT, None])
def test_a_bag_is_left_once_its_owner_is_away(plane: GroundPlane | None) -> None:
    def leave(time_s: float) -> dict[int, Box]:
        boxes: dict[int, Box] = {3: ("bag", 0.3, 0.5, 0.02, 0.02), 8: ("bag", 0.9, 0.5, 0.02, 0.02)}
        if time_s < 8:
            boxes[1] = ("person", 0.3 + (0.2 if time_s >= 3 else 0.0), 0.5, 0.03, 0.05)
        return boxes

    said = run(rule_of(LeftBehind("person", "bag", plane), 10.0), 150, leave, alive=[3, 8])
    assert said == [("begin", 3, None, 3.0), ("end", 3, None, 14.9)], "the other bag never had an owner"


def test_a_track_that_is_merged_goes_on_under_its_final_number() -> None:
    rule = rule_of(MissingThing("person", "helmet"), 1.0)
    for number in range(15):
        found = rule.update(observe(number / 10, {1: ("person", 0.2, 0.9, 0.1, 0.4)}))
        assert bool(found) == (number == 10)
    merged = replace(observe(1.5, {2: ("person", 0.2, 0.9, 0.1, 0.4)}), merges=[(1, 2)])
    assert rule.update(merged) == []
    assert [(one.data["rule"].state, one.track) for one in rule.close(2_000_000_000)] == [("end", 2)]


class Script:
    """Boxes by the time of a frame: a fast car, two people who meet."""

    threshold = 0.5

    def __init__(self) -> None:
        self._frames = 0

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> sv.Detections:
        time_s, self._frames = self._frames / 10, self._frames + 1
        boxes = [
            (20 + 30 * time_s, 60, 60 + 30 * time_s, 80),
            (100, 120, 112, 160),
            (180 - 12 * min(time_s, 5), 120, 192 - 12 * min(time_s, 5), 160),
        ]
        labels = [request.prompt.queries.index(text) for text in ("car", "person", "person")]
        return sv.Detections(np.array(boxes, float), confidence=np.full(3, 0.9), class_id=np.array(labels))


SECTION: dict[str, Any] = {
    "name": "street",
    "source": "synthetic:street?seed=1&fps=10&duration=8&size=320x192",
    "calibration": {"points": [{"image": list(c), "ground": [32 * c[0], 19.2 * c[1]]} for c in CORNERS]},
    "zones": [{"id": "road", "polygon": [[0, 0], [1, 0], [1, 0.6], [0, 0.6]]}],
    "rules": [
        {"kind": "speed", "id": "fast", "query": "car", "above_kmh": 8, "zone": "road", "for_s": 0.5},
        {"kind": "distance", "id": "close", "query": "person", "below_m": 4, "for_s": 1},
    ],
}


def watch(tmp_path: Path, section: Mapping[str, Any], **more: Any) -> list[Event]:
    file = tmp_path / "events.jsonl"

    async def go() -> None:
        settings = {"streams": [section], "queries": ["car", "person"], "sinks": [f"jsonl:{file}"], **more}
        async with open_pipeline(Config.model_validate(settings), detector=Script()) as pipeline:
            await pipeline.run()

    asyncio.run(go())
    return [Event.from_json(line) for line in file.read_text().splitlines()]


def rule_events(events: Sequence[Event]) -> list[Any]:
    return [(one.time, one.subject, one.data.rule) for one in events if one.kind == "rule"]


def test_a_pipeline_reports_rules_and_replay_finds_the_same(tmp_path: Path) -> None:
    live = watch(tmp_path, SECTION, detections=True)
    states = {(one.data.rule.id, one.data.rule.state) for one in live if one.data.rule}
    assert states == {("fast", "begin"), ("fast", "end"), ("close", "begin"), ("close", "end")}
    config = tmp_path / "rules.yaml"
    config.write_text(json.dumps({"streams": [SECTION], "queries": ["car", "person"]}))
    out = tmp_path / "found.jsonl"
    command = ["replay", f"jsonl:{tmp_path / 'events.jsonl'}", "--rules", str(config), "--to", f"jsonl:{out}"]
    for _ in range(2):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
        assert "80 frames read" in found.stderr
    again = [Event.from_json(line) for line in out.read_text().splitlines()]
    assert rule_events(again) == 2 * rule_events(live)
    assert len({one.id for one in again}) == len(again) / 2, "the ids repeat"


def test_replay_says_what_is_missing(tmp_path: Path) -> None:
    watch(tmp_path, SECTION)
    config = tmp_path / "rules.yaml"
    config.write_text(json.dumps({"streams": [SECTION], "queries": ["car", "person"]}))
    command = [
        "replay",
        f"jsonl:{tmp_path / 'events.jsonl'}",
        "--to",
        f"jsonl:{tmp_path / 'o'}",
        "--rules",
        str(config),
    ]
    assert "record them with `detections: true`" in CliRunner().invoke(app, command).stderr
    assert "needs all events" in str(CliRunner().invoke(app, [*command, "--type", "rule"]).exception)
    config.write_text(json.dumps({"streams": [{**SECTION, "rules": []}], "queries": ["car", "person"]}))
    assert "has no rules" in str(CliRunner().invoke(app, command).exception)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"calibration": None}, "is in metres, which needs `calibration`"),
        ({"zones": []}, "is for the zone 'road', but there are only no zones"),
        ({"rules": [SECTION["rules"][1], SECTION["rules"][1]]}, "'close' names two rules"),
        ({"rules": [{**SECTION["rules"][1], "query": "dog"}]}, "names the query 'dog'"),
        ({"rules": [{**SECTION["rules"][1], "below_m": 0}]}, "below_m"),
        ({"rules": [{**SECTION["rules"][1], "kind": "near"}]}, "kind"),
        ({"calibration": {"points": SECTION["calibration"]["points"][:3]}}, "calibration"),
        ({"calibration": {"points": [SECTION["calibration"]["points"][0]] * 4}}, "lie in a line"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"streams": [{**SECTION, **change}], "queries": ["car", "person"]})
    assert sentence in str(caught.value)


def test_a_crash_ends_what_a_rule_reported(tmp_path: Path) -> None:
    events = watch(tmp_path, SECTION)
    begins = [place for place, one in enumerate(events) if one.data.rule and one.data.rule.state == "begin"]
    state = OpenState()
    state.note_all(events[: begins[-1] + 1])
    ends = [one for one in close_crashed(state.items(), 7) if one.data.rule]
    assert [(one.data.rule.id, one.data.rule.state, one.data.run) for one in ends if one.data.rule] == [
        (events[place].data.rule.id, "end", 7)  # type: ignore[union-attr]
        for place in sorted(begins, key=lambda place: str(events[place].subject))
        if f"rule {events[place].subject}" in " ".join(item.key for item in state.items())
    ]
    assert ends
    state.note_all(events[begins[-1] + 1 :])
    assert state.items() == []


def test_a_rule_is_added_and_removed_while_it_runs(tmp_path: Path) -> None:
    live = {**SECTION, "source": "synthetic:street?seed=1&fps=10&size=320x192&live=1"}
    file = tmp_path / "events.jsonl"

    async def go() -> list[str]:
        settings = {"queries": ["car", "person"], "sinks": [f"jsonl:{file}"]}
        configs = [
            Config.model_validate({"streams": [{**live, "rules": rules}], **settings})
            for rules in ([], [SECTION["rules"][1]], [{**SECTION["rules"][1], "for_s": 2}], [])
        ]
        seen = asyncio.Semaphore(0)
        async with open_pipeline(configs[0], detector=Script(), on_frame=lambda _: seen.release()) as pipeline:
            running = asyncio.create_task(pipeline.run())
            sentences = []
            for config in configs[1:]:
                for _ in range(40):
                    await seen.acquire()
                sentences += await pipeline.apply(config)
            for _ in range(10):
                await seen.acquire()
            await pipeline.stop()
            await running
        return sentences

    sentences = asyncio.run(go())
    assert sentences == [f"street: rule 'close' {word}" for word in ("added", "changed", "removed")]
    rules = [one.data.rule for one in map(Event.from_json, file.read_text().splitlines()) if one.data.rule]
    assert [rule.state for rule in rules] == ["begin", "end"] * (len(rules) // 2)
    assert rules
