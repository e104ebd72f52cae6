"""JSON logs: every line of standard error is one object, whatever is logged and however the program ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamer.tasks.json_log import JsonFormatter

ROOT = Path(__file__).resolve().parents[2]


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("groundstream", logging.WARNING, "file.py", 1, message, arguments, None)
    made.__dict__.update(fields)
    return made


@pytest.mark.parametrize("text", ["two\nlines", 'a "quoted" word', "\x1b[2J\u202e\u2028", "lone \udc80", "Straße", ""])
def test_any_text_is_one_line_that_reads_back(text: str) -> None:
    line = JsonFormatter().format(record("%s", text))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == text


def test_the_time_is_rfc_3339_in_utc() -> None:
    moment = datetime(2026, 11, 25, 3, 4, 5, 678000, UTC)
    fields = json.loads(JsonFormatter().format(record("x", created=moment.timestamp())))
    assert fields == {"time": "2026-11-25T03:04:05.678Z", "level": "warning", "logger": "groundstream", "message": "x"}


def test_an_exception_brings_its_traceback() -> None:
    try:
        raise KeyError("gate")
    except KeyError:
        fields = json.loads(JsonFormatter().format(record("x", exc_info=sys.exc_info())))
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("KeyError: 'gate'")


def run(folder: Path, code: str, *words: str) -> tuple[int, list[dict[str, str]]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    arguments = ["monitor", *words, "--query", "anything that moves", "--detector", "motion", "--log-format", "json"]
    source = f"import sys; sys.argv = ['groundstream', *{arguments!r}]\nfrom streamer import cli\n{code}\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


def test_a_run_logs_json_alone(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "", "synthetic:street?seed=3&duration=0.4", "--sink", "jsonl:events.jsonl")
    assert status == 0
    messages = [line["message"] for line in lines]
    assert any(message.startswith("street: watching synthetic:street") for message in messages)
    assert any("events go to jsonl:events.jsonl" in message for message in messages)


def test_the_error_that_ends_a_run_is_json_too(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "", "missing.mp4", "--sink", "jsonl:events.jsonl")
    assert status == 1
    assert lines[-1]["level"] == "critical"
    assert "missing.mp4 does not exist" in lines[-1]["message"]
    assert "exception" not in lines[-1]


def test_a_defect_is_json_with_its_traceback(tmp_path: Path) -> None:
    code = (
        "import streamer.tasks.monitor as task\n"
        "def fail(*_, **__): raise RuntimeError('a defect')\n"
        "task.run_monitor = fail"
    )
    status, lines = run(tmp_path, code, "missing.mp4")
    assert status == 1
    assert "a defect" in lines[-1]["message"]
    assert "RuntimeError: a defect" in lines[-1]["exception"]
