"""The table of events: times of recordings without a date are seconds into the file."""

from __future__ import annotations

import io

from rich.console import Console

from sinks.event import rfc3339
from streamer.tasks.event_table import event_table
from tests.sinks.makes import event


def shown(basis: str, time_ns: int) -> str:
    one = event(0)
    clock = one.data.clock.model_copy(update={"basis": basis})
    one = one.model_copy(update={"time": rfc3339(time_ns), "data": one.data.model_copy(update={"clock": clock})})
    out = io.StringIO()
    Console(file=out, width=80).print(event_table([one]))
    return out.getvalue()


def test_an_event_of_a_recording_without_a_date_shows_the_time_since_its_start() -> None:
    text = shown("file_pts", 83_400_000_000)
    assert "00:01:23.4" in text
    assert "1970" not in text


def test_an_event_with_a_date_shows_it() -> None:
    assert "2026-11-25" in shown("file_pts", 1_795_600_000_000_000_000)
    assert "1970-01-01" in shown("arrival", 83_400_000_000)
