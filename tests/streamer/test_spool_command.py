"""`groundstream spool`: cursors listed, adopted and dropped; what a corrected address, a new name and a removal do."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sinks.registry import open_sinks, sink_name
from sinks.sink import SinkAddressError, SinkError
from sinks.spool import Spool
from sinks.spool.cursors import match_cursors
from streamer.cli import app
from streamer.config import parse_config
from streamer.errors import ConfigError
from streamer.spooling import spool_file
from tests.sinks.makes import Recorder, events, ids

HOOK = "http://127.0.0.1:1/hook"


def refuse(_: object) -> None:
    raise SinkError("down")


def leave(path: Path, *names: str, count: int = 10) -> None:
    """A spool in which `count` events wait for each of the sinks."""

    async def run() -> None:
        async with await Spool.open(path, {name: Recorder(refuse) for name in names}) as spool:
            await spool.send_batch(events(count))

    asyncio.run(run())


def deliver(path: Path, *names: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """(what each sink gets at the next start, events that wait for sinks that are gone)."""
    sinks = {name: Recorder() for name in names}

    async def run() -> dict[str, int]:
        async with await Spool.open(path, sinks) as spool:
            assert await spool.drain(10)
            return spool.forgotten()

    forgotten = asyncio.run(run())
    return {name: ids(sink.got) for name, sink in sinks.items()}, forgotten


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gate.spool"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("http://127.0.0.1:1/hook", "http://127.0.0.1:8080/hook"),
        ("http://127.0.0.1:1/hook", "https://other.example/hook?timeout=5"),
        ("kafka://a:9092/t?timeout=3", "kafkas://a:9093/t?timeout=5"),
        ("kafka://a:9092/t?timeout=3", "alarms"),
        ("alarms", "kafka://a:9092/t"),
    ],
)
def test_a_corrected_address_or_a_new_name_keeps_the_backlog(path: Path, before: str, after: str) -> None:
    leave(path, before)
    got, forgotten = deliver(path, after)
    assert got[after] == ids(events(10))
    assert forgotten == {}


@pytest.mark.parametrize(
    ("sinks", "stored", "matched"),
    [
        (["http://a", "http://b"], ["http://x", "http://y"], {"http://a": "http://x", "http://b": "http://y"}),
        (["http://a", "http://b"], ["http://a", "http://x"], {"http://a": "http://a", "http://b": "http://x"}),
        (["http://b", "http://c"], ["http://a", "http://b"], {"http://b": "http://b", "http://c": "http://a"}),
        (["http://a", "kafka://b/t"], ["http://x"], {"http://a": "http://x"}),
        (["http://a", "http://b"], ["http://x"], {"http://a": "http://x"}),
        (["kafka://a/t"], ["http://x"], {}),
        (["alarms", "log"], ["http://x", "http://y"], {}),
        (["alarms", "log"], ["alarms", "log"], {"alarms": "alarms", "log": "log"}),
        (["jsonl:a"], [], {}),
    ],
)
def test_which_cursor_belongs_to_which_sink(sinks: list[str], stored: list[str], matched: dict[str, str]) -> None:
    assert match_cursors(sinks, stored) == matched


def test_a_name_is_what_a_spool_remembers(path: Path) -> None:
    assert sink_name(f"{HOOK}?name=alarms&timeout=3") == sink_name("kafka://host/t?name=alarms") == "alarms"
    assert list(open_sinks([f"{HOOK}?name=alarms"])) == ["alarms"]
    with pytest.raises(SinkAddressError, match="given twice"):
        open_sinks([f"{HOOK}?name=alarms", f"{HOOK}2?name=alarms"])
    with pytest.raises(SinkAddressError, match="letters, digits"):
        open_sinks([f"{HOOK}?name=my alarms"])


def test_events_of_a_removed_sink_are_kept_and_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave(path, HOOK, "jsonl:a")
    got, forgotten = deliver(path, "jsonl:a")
    assert got["jsonl:a"] == ids(events(10))
    assert forgotten == {HOOK: 10}
    assert "no longer configured: 10 events wait for it" in caplog.text
    got, forgotten = deliver(path, "jsonl:a", HOOK)
    assert got == {"jsonl:a": [], HOOK: ids(events(10))}
    assert forgotten == {}


def test_events_of_a_removed_sink_make_room_and_are_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave(path, HOOK, "jsonl:a")

    async def run() -> dict[str, int]:
        async with await Spool.open(path, {"jsonl:a": Recorder()}, max_bytes=40_000) as spool:
            for start in range(10, 100, 10):
                await spool.send_batch(events(10, first=start))
            assert await spool.drain(10)
            assert spool.forgotten() == {}
            assert spool.dropped("") == spool.dropped()
            return spool.dropped()

    caplog.set_level(logging.ERROR)
    dropped = asyncio.run(run())
    assert dropped["sink_removed"] >= 10
    assert "are given up" in caplog.text


def test_a_sink_that_is_replaced_while_running_hands_its_backlog_over(path: Path) -> None:
    async def run() -> tuple[list[str], list[str]]:
        new, other = Recorder(), Recorder()
        async with await Spool.open(path, {HOOK: Recorder(refuse)}) as spool:
            await spool.send_batch(events(5))
            await spool.remove_sink(HOOK)
            assert spool.forgotten() == {HOOK: 5}
            await spool.add_sink("jsonl:a", other)
            await spool.add_sink("http://127.0.0.1:2/hook", new)
            assert spool.forgotten() == {}
            await spool.send_batch(events(5, first=5))
            assert await spool.drain(10)
            with pytest.raises(ValueError, match="already"):
                await spool.add_sink("jsonl:a", other)
        return ids(new.got), ids(other.got)

    assert asyncio.run(run()) == (ids(events(10)), ids(events(5, first=5)))


def command(*arguments: object) -> str:
    found = CliRunner().invoke(app, ["spool", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def test_cursors_are_listed_adopted_and_dropped(path: Path) -> None:
    leave(path, HOOK, "kafka://host/t")
    listed = json.loads(command("list", path, "--json"))
    assert [(cursor["sink"], cursor["waiting"]) for cursor in listed[0]["cursors"]] == [
        (HOOK, 10),
        ("kafka://host/t", 10),
    ]
    assert listed[0]["events"] == 10
    assert HOOK in command("list", path)
    assert "10 events" in command("adopt", path, HOOK, "mqtt://host/in?timeout=3")
    assert "10 events" in command("drop", path, "kafka://host/t")
    listed = json.loads(command("list", path, "--json"))
    assert [(cursor["sink"], cursor["waiting"]) for cursor in listed[0]["cursors"]] == [
        ("mqtt://host/in?timeout=3", 10)
    ]
    got, _ = deliver(path, "mqtt://host/in?timeout=3", "kafka://host/t")
    assert [len(one) for one in got.values()] == [10, 0]


def test_wrong_arguments_are_one_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no spool"):
        command("list", path)
    leave(path, HOOK)
    with pytest.raises(ConfigError, match=r"no cursor of kafka://host/t: it has http://127.0.0.1:1"):
        command("drop", path, "kafka://host/t")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises((ConfigError, Exception), match="spool"):
        command("drop", notes, "x")
    assert notes.read_text() == "mine"


def test_a_spool_in_use_is_listed_and_not_changed(path: Path) -> None:
    leave(path, HOOK)

    async def run() -> None:
        async with await Spool.open(path, {HOOK: Recorder(refuse)}):
            assert HOOK in await asyncio.to_thread(command, "list", path)

    asyncio.run(run())


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "groundstream"


def named(sources: list[str], sinks: list[str], file: Path | None = None) -> Path:
    raw = {"streams": [{"source": source} for source in sources], "queries": ["a car"], "sinks": sinks}
    return spool_file(parse_config(raw), file)


def test_spools_are_named_after_what_is_watched_and_where_it_goes(state: Path, tmp_path: Path) -> None:
    gate, yard = "rtsp://me:secret@10.0.0.1/gate", "rtsp://10.0.0.1/yard"
    first = named([gate], ["jsonl:a"])
    assert first.parent == state
    assert "secret" not in str(first)
    assert first == named(["rtsp://me:other@10.0.0.1/gate"], ["jsonl:a"]), "a password is no other camera"
    assert named([gate], ["kafka://h/t?timeout=3"]) == named([gate], ["kafka://h/t?timeout=5"])
    assert len({first, named([yard], ["jsonl:a"]), named([gate], ["jsonl:b"]), named([gate, yard], ["jsonl:a"])}) == 4
    one, two = tmp_path / "one" / "cams.yaml", tmp_path / "two" / "cams.yaml"
    assert named([gate], ["jsonl:a"], one) == named([gate], ["jsonl:b"], one), "a corrected address keeps its events"
    assert named([gate], ["jsonl:a"], one) != named([gate], ["jsonl:a"], two)
