"""Everything that begins ends: after a crash, at a clean end, and with the same ids for the same work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from sinks.event import Event, EventType, ZoneInfo
from sinks.spool import Spool
from streamer.analysis.event_writer import CRASH_CAUSE, close_crashed
from tests.sinks.makes import Recorder, event
from tests.support.clips import make_clip

NEXT_RUN = 1_800_000_000_000


def in_zone(one: Event, name: str = "yard") -> Event:
    return one.model_copy(update={"data": one.data.model_copy(update={"zone": ZoneInfo(id=name)})})


def of_track(one: Event, **changes: object) -> Event:
    assert one.data.track is not None
    track = one.data.track.model_copy(update=changes)
    return one.model_copy(update={"data": one.data.model_copy(update={"track": track})})


def kinds(events: list[Event]) -> list[str]:
    return [one.kind for one in events]


def left_by(tmp_path: Path, events: list[Event], next_run: int | None = NEXT_RUN) -> list[Event]:
    """What the first start after a crash sends, when the run before sent `events` and was cut off."""

    async def run() -> list[Event]:
        async with await Spool.open(tmp_path / "spool", {"sink": Recorder()}) as spool:
            await spool.send_batch(events)
        async with await Spool.open(tmp_path / "spool", {"sink": Recorder()}) as spool:
            closing = close_crashed(spool.open_items(), next_run)
            await spool.send_batch(closing)
        async with await Spool.open(tmp_path / "spool", {"sink": Recorder()}) as spool:
            assert spool.open_items() == [], "the closing events close everything"
        return closing

    return asyncio.run(run())


def test_a_crash_closes_visits_matches_tracks_and_the_stream_in_this_order(tmp_path):
    closing = left_by(
        tmp_path,
        [
            event(1, kind=EventType.STREAM_ONLINE),
            event(2, kind=EventType.TRACK_BEGIN),
            event(3, kind=EventType.MATCH_BEGIN),
            in_zone(event(4, kind=EventType.ZONE_ENTER)),
            event(9, kind=EventType.TRACK_UPDATE),
        ],
    )
    assert kinds(closing) == ["zone.exit", "match.end", "track.end", "stream.offline"]
    leave, unmatch, end, offline = closing
    assert leave.data.zone is not None
    assert (leave.data.zone.id, leave.data.zone.dwell_s) == ("yard", 0.2), "from the enter to the last sight"
    assert unmatch.data.matches is not None
    assert [match.query_id for match in unmatch.data.matches] == ["q1"]
    assert end.data.track is not None
    assert (end.data.track.state, end.data.track.end_reason) == ("ended", "crashed")
    assert offline.data.outage is not None
    assert offline.data.outage.cause == CRASH_CAUSE
    assert offline.data.outage.since_ns == event(9).data.clock.captured_ns, "the last known frame"
    assert [int(one.sequence) for one in closing] == [1, 2, 3, 4]
    assert {one.data.run for one in closing} == {NEXT_RUN}
    assert {one.epoch for one in closing} == {f"{NEXT_RUN:016d}"}
    revisions = [one.data.track.revision for one in closing[:3] if one.data.track]
    assert revisions == [11, 12, 13], "each rises above the last one that was sent"


def test_a_crash_leaves_alone_what_had_ended(tmp_path):
    visit = in_zone(event(2, kind=EventType.ZONE_ENTER))
    leave = in_zone(event(3, kind=EventType.ZONE_EXIT))
    again = in_zone(event(4, kind=EventType.ZONE_ENTER), "door")
    closing = left_by(
        tmp_path,
        [
            event(0, kind=EventType.STREAM_ONLINE),
            event(1),
            *(visit, leave, again),
            event(5, kind=EventType.MATCH_BEGIN),
            event(6, kind=EventType.MATCH_END),
            event(7, kind=EventType.STREAM_OFFLINE),
        ],
    )
    assert kinds(closing) == ["zone.exit", "track.end"]
    assert closing[0].data.zone is not None
    assert closing[0].data.zone.id == "door"


def test_every_stream_is_closed_with_its_own_sequence(tmp_path):
    begun = [
        one
        for stream in ("gate", "yard")
        for one in (event(1, stream=stream, kind=EventType.STREAM_ONLINE), event(2, stream=stream, uid=stream.upper()))
    ]
    closing = left_by(tmp_path, begun)
    assert [(one.data.stream, int(one.sequence), one.kind) for one in closing] == [
        ("gate", 1, "track.end"),
        ("gate", 2, "stream.offline"),
        ("yard", 1, "track.end"),
        ("yard", 2, "stream.offline"),
    ]


CRASHER = """
    import asyncio, os, sys, time
    from sinks.event import EventType
    from sinks.spool import Spool
    from streamer.analysis.event_writer import close_crashed
    from tests.sinks.makes import Recorder, event
    from tests.streamer.test_life_cycle import in_zone

    async def main():
        spool = await Spool.open(sys.argv[1], {"sink": Recorder()})
        run = await spool.begin_run(time.time_ns())
        closing = close_crashed(spool.open_items(), run)
        await spool.send_batch(closing)
        uid = f"T{run}"
        kinds = [EventType.STREAM_ONLINE, EventType.TRACK_BEGIN, EventType.MATCH_BEGIN, EventType.ZONE_ENTER]
        for number, kind in enumerate(kinds[: int(sys.argv[2])], len(closing) + 1):
            one = event(number, run=run, uid=uid, kind=kind)
            await spool.send(in_zone(one) if kind is EventType.ZONE_ENTER else one)
        await asyncio.sleep(float(sys.argv[3]))
        os._exit(9)

    asyncio.run(main())
"""


def test_begins_and_ends_come_in_pairs_over_many_crashes(tmp_path):
    """Whether the file was tidied up before the crash or not, and also when the crash comes right after a recovery."""
    lives = [(4, 0.0), (4, 0.6), (0, 0.0), (3, 0.0), (2, 0.6), (0, 0.6), (4, 0.0)]
    for steps, seconds in lives:
        command = [sys.executable, "-c", textwrap.dedent(CRASHER), str(tmp_path / "spool"), str(steps), str(seconds)]
        assert subprocess.run(command, timeout=40).returncode == 9

    async def finish() -> list[Event]:
        sink = Recorder()
        async with await Spool.open(tmp_path / "spool", {"other": sink, "sink": Recorder()}) as spool:
            run = await spool.begin_run(0)
            await spool.send_batch(close_crashed(spool.open_items(), run))
            await spool.drain(10)
        async with await Spool.open(tmp_path / "spool", {"sink": Recorder()}) as spool:
            assert spool.open_items() == []
        return sink.got

    last = asyncio.run(finish())
    assert kinds(last) == ["zone.exit", "match.end", "track.end", "stream.offline"]


@pytest.fixture
def recording(tmp_path) -> Path:
    return make_clip(tmp_path / "gate.mp4", frames=30, fps=10)


@pytest.fixture
def script(tmp_path) -> Path:
    file = tmp_path / "script.json"
    answers = [[{"query": "person", "box": [40, 60, 80, 160], "confidence": 0.9}]]
    file.write_text(json.dumps({"frames": answers, "repeat": True}))
    return file


def process(folder: Path, recording: Path, script: Path, *options: str) -> list[Event]:
    command = [sys.executable, "-m", "streamer.cli", "process", str(recording), "--query", "person", "--no-video"]
    command += ["--detector", f"scripted:{script}", "--out", str(folder), "--quiet", *options]
    subprocess.run(command, check=True, timeout=50, env={**os.environ})
    return [Event.from_json(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]


def test_two_runs_of_a_recording_have_the_same_ids_and_events(tmp_path, recording, script):
    first = process(tmp_path / "one", recording, script)
    second = process(tmp_path / "two", recording, script)
    assert [one.to_json() for one in first] == [one.to_json() for one in second]
    assert {one.epoch for one in first} == {f"{first[0].data.run:016d}"}
    assert first[0].data.run < 1 << 48
    assert first[-1].type is EventType.STREAM_OFFLINE
    other = process(tmp_path / "three", recording, script, "--every", "2")
    assert {one.id for one in first}.isdisjoint(one.id for one in other), "other settings are other work"
    counted = Counter(one.kind for one in first)
    assert counted["track.begin"] == counted["track.end"] == 1
