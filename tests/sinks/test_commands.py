"""`subscribe` and `replay` as they are called."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sinks import open_sink
from sinks.event import EventType
from streamer.commands.replay import replay
from streamer.commands.subscribe import subscribe
from tests.sinks.makes import event, events, ids

LIMIT_S = 40

APP = typer.Typer()
APP.command()(subscribe)
APP.command()(replay)
RUN = "import typer; from streamer.commands.subscribe import subscribe; typer.run(subscribe)"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture
def address(tmp_path: Path) -> str:
    async def write() -> None:
        sink = open_sink(f"sqlite:{tmp_path / 'events.sqlite'}")
        await sink.send_batch([*events(3), event(5, kind=EventType.ZONE_ENTER), event(0, stream="yard")])
        await sink.aclose()

    asyncio.run(write())
    return f"sqlite:{tmp_path / 'events.sqlite'}"


def test_in_a_pipe_events_are_lines_of_json_and_gaps_are_reported_beside_them(address: str) -> None:
    found = call("subscribe", address)
    assert found.exit_code == 0
    assert [json.loads(line)["id"] for line in found.stdout.splitlines()] == ids(
        [*events(3), event(5), event(0, stream="yard")]
    )
    assert "2 events of gate missing: 3 to 4" in found.stderr


def test_events_are_chosen_and_limited(address: str) -> None:
    assert call("subscribe", address, "--type", "zone.*").stdout.count("\n") == 1
    assert call("subscribe", address, "--stream", "yard").stdout.count("\n") == 1
    assert call("subscribe", address, "--query", "red car", "--limit", 2).stdout.count("\n") == 2
    assert call("subscribe", address, "--since", event(2).id).stdout.count("\n") == 2


def test_in_a_terminal_events_are_a_table(address: str) -> None:
    found = call("subscribe", address, "--format", "table")
    assert "zone.enter" in found.stdout
    assert "5 events, 2 missing" in found.stdout
    near, far = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", RUN, address], stdout=far, env={**os.environ, "TERM": "xterm"})
    os.close(far)
    shown = b""
    while b"events, 2 missing" not in shown:
        shown += os.read(near, 4096)
    assert process.wait(30) == 0
    os.close(near)
    assert b"track.begin" in shown


def test_whoever_reads_only_the_first_line_gets_no_complaint(address: str) -> None:
    line = f"{sys.executable} -W error -c '{RUN}' {address} | head -n 1"
    found = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30)
    assert json.loads(found.stdout)["id"] == event(0).id
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_following_cleanly(address: str, number: int) -> None:
    command = [sys.executable, "-c", RUN, address, "--follow", "--since", "earliest"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_replay_moves_events_with_their_ids(address: str, tmp_path: Path) -> None:
    to = f"jsonl:{tmp_path / 'copy.jsonl'}"
    for _ in range(2):
        found = call("replay", address, "--to", to, "--stream", "gate")
        assert found.exit_code == 0
        assert "4 events replayed, 2 missing in their sequences" in found.stderr
    lines = (tmp_path / "copy.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == 2 * ids([*events(3), event(5)])
    assert call("subscribe", to).stdout.count("\n") == 4, "twice there, shown once"


def test_replay_reports_what_a_sink_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.commands.replay.PATIENCE_S", 1.0)
    found = call("replay", address, "--to", "http://127.0.0.1:1/hook")
    assert found.exit_code == 1
    assert "did not take 5 of 5 events: 127.0.0.1:1 does not answer (Connection refused)" in str(found.exception)


def test_control_characters_of_events_never_reach_the_terminal(tmp_path: Path) -> None:
    hostile = event(0, query="red \x1b[2Jcar", stream="gate\x1b]0;title\x07")
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        hostile.to_json() + b"\n" + b'{"\x1b[2J": 1}\n' + event(2, stream="gate\x1b]0;title\x07").to_json()
    )
    found = call("subscribe", f"jsonl:{path}", "--format", "table")
    assert "\x1b" not in found.stdout + found.stderr
    assert "\\x1b[2Jcar" in "".join(found.stdout.split())
    assert "1 event of gate\\x1b]0;title" in found.stderr


def test_an_empty_answer_names_the_types_and_streams(address: str) -> None:
    found = call("subscribe", address, "--stream", "attic")
    assert found.stdout == ""
    assert "0 of 5 events match: there are types " in found.stderr
    assert "streams gate, yard" in found.stderr
