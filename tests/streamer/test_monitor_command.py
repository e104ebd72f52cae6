"""The `monitor` command: its options, its log, its table, and the configuration file that it follows."""

from __future__ import annotations

import asyncio
import io
import logging
import os
from pathlib import Path

import pytest

from sinks.spool.spool import Spool
from streamer.config import Config, load_config, parse_config
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError
from streamer.pipeline import Pipeline
from streamer.tasks import monitor
from streamer.tasks.console import UserConsole
from streamer.tasks.live_table import LatestEvents, LiveTable
from streamer.tasks.monitor import MonitorOptions
from tests.support.cameras import wait_until
from tests.support.fakes import FakeDetector, FakeSource, ListSink, camera


def options(**given) -> MonitorOptions:
    return MonitorOptions(DetectorChoice(), **{"sources": ["a.mp4"], "queries": ["dog"], **given})


def test_names_zones_and_lines_become_sections_as_in_process():
    config = options(
        sources=["rtsp://one/x", "rtsp://two/x"],
        names=["gate"],
        zones=["door:0,0 1,0 1,1"],
        lines=["kerb:0.1,0.5 0.9,0.5"],
    ).load_config()
    assert [stream.name for stream in config.streams] == ["gate", None]
    for stream in config.streams:
        assert [(zone.id, len(zone.polygon)) for zone in stream.zones] == [("door", 3)]
        assert [(line.id, line.points) for line in stream.lines] == [("kerb", [(0.1, 0.5), (0.9, 0.5)])]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"names": ["a", "b"]}, "--name is given 2 times for 1 sources"),
        ({"zones": ["door"]}, "cannot parse zone or line 'door'"),
        ({"sources": []}, "no source is given"),
        ({"queries": []}, "no query is given"),
        ({"file": Path("x.yaml"), "zones": ["door:0,0 1,0 1,1"]}, "sources, --query, --zone cannot stand beside"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_way_out(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        options(**given).load_config()


def test_what_stands_beside_a_file_holds_after_an_edit_too(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("streams: [{source: a.mp4}]\nqueries: [dog]\n")
    given = MonitorOptions(DetectorChoice(), file=file, web=("127.0.0.1", 0), close_timeout_s=3)
    first = given.load_config()
    file.write_text("streams: [{source: a.mp4}]\nqueries: [cat]\n")
    second = given.load_config()
    assert (first.web, first.close_timeout_s) == (second.web, second.close_timeout_s)
    assert second.queries[0].text == "cat"


def test_the_follower_of_the_file_survives_whatever_an_edit_does(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(monitor, "RELOAD_EVERY_S", 0.01)
    caplog.set_level(logging.INFO, "groundstream")
    file = tmp_path / "m.yaml"
    stamps = iter(range(1, 100))

    def write(text: str) -> None:
        file.write_text(text)
        stamp = next(stamps)
        os.utime(file, ns=(stamp * 10**9, stamp * 10**9))

    class Applying:
        """Fails by a mistake of the program at the first edit."""

        def __init__(self) -> None:
            self.applied: list[Config] = []

        async def apply(self, config: Config) -> list[str]:
            self.applied.append(config)
            if len(self.applied) == 1:
                raise RuntimeError("a bug")
            return [f"query {config.queries[0].text!r} added"]

    async def go() -> None:
        pipeline = Applying()
        write("streams: [{source: x}]\nqueries: [dog]\n")
        follower = asyncio.create_task(monitor.follow_edits(pipeline, file, lambda: load_config(file)))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        write("streams: [{source: x}]\nqueries: [cat]\n")
        await wait_until(lambda: "a bug" in caplog.text)
        write("streams: [{source: x}]\nqueries: [{text: cow, colour: red}]\n")
        await wait_until(lambda: "colour" in caplog.text)
        write("streams: [{source: x}]\nqueries: ['a [/b] van']\n")
        await wait_until(lambda: "query 'a [/b] van' added" in caplog.text)
        assert not follower.done()
        follower.cancel()

    asyncio.run(go())
    assert "nothing has changed" in caplog.text


def test_the_table_shows_streams_and_the_latest_events_as_they_are_written():
    latest = LatestEvents()

    async def go() -> str:
        async with await Spool.open(None, {"latest": latest}) as spool:
            stream = camera(FakeSource("a [/b] gate\x1b[31m", count=20), ["a [/b] van"])
            pipeline = Pipeline([stream], FakeDetector(), spool)
            await pipeline.run()
            assert await spool.drain(5)
            output = io.StringIO()
            UserConsole(file=output, width=160, markup=False, highlight=False).print(
                LiveTable(pipeline, latest).render()
            )
            return output.getvalue()

    shown = asyncio.run(go())
    assert "a [/b] gate\\x1b[31m" in shown
    assert "a [/b] van" in shown
    assert "track.begin" in shown
    assert "coverage" not in shown
    assert "\x1b[31m" not in shown


def test_the_name_of_a_stream_stays_whole_in_a_terminal_of_80_columns():
    name = "127.0.0.1-37215-cam-north-entrance"

    async def go() -> str:
        async with await Spool.open(None, {"list": ListSink()}) as spool:
            pipeline = Pipeline([camera(FakeSource(name, count=3))], FakeDetector(), spool)
            await pipeline.run()
            output = io.StringIO()
            UserConsole(file=output, width=80, markup=False, highlight=False).print(LiveTable(pipeline, None).render())
            return output.getvalue()

    lines = asyncio.run(go()).splitlines()
    assert "".join(line.split("  ")[0].strip() for line in lines[3:]) == name
    assert max(map(len, lines)) <= 80
    for title in ("state", "analysed", "frames/s", "age", "dropped", "tracks", "events"):
        assert title in lines[1]


def test_a_configuration_can_pause_a_query_and_a_stream():
    raw = {"streams": [{"source": "x", "paused": True}], "queries": [{"text": "dog", "paused": True}, "cat"]}
    config = parse_config(raw)
    assert config.streams[0].paused
    assert [query.paused for query in config.queries] == [True, False]
