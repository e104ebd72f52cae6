"""The live table of `monitor`: one row for each stream, and the latest events where no sink gets them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from sinks.event import Event
from sinks.spool.spool import StorageStatus
from streamer.pipeline import Pipeline, StreamReport
from streamer.tasks.console import UserConsole, visible_text
from streamer.tasks.event_table import event_table

TABLE_EVERY_S = 0.5
_TITLES = ("stream", "state", "analysed", "frames/s", "age", "dropped", "tracks", "events")
_NAME_WIDTH = 12
"""Columns for the name of a stream, of the 80 of a terminal; a longer name has several lines."""
_EVENTS_SHOWN = 8
_QUIET_KINDS = frozenset({"coverage", "track.update", "detections"})
"""Frequent events that say nothing new to a person."""


class LatestEvents:
    """A sink that keeps the latest events for a person to read."""

    durable = False

    def __init__(self, shown: int = _EVENTS_SHOWN) -> None:
        self.events: deque[Event] = deque(maxlen=shown)

    async def send_batch(self, events: Sequence[Event]) -> None:
        self.events.extend(event for event in events if event.kind not in _QUIET_KINDS)

    async def aclose(self) -> None:
        pass


class LiveTable:
    """The table of a running pipeline. It goes to standard error, so that events on standard output can be piped."""

    def __init__(self, pipeline: Pipeline, latest: LatestEvents | None) -> None:
        self._pipeline = pipeline
        self._latest = latest
        self._rates = _FrameRates()

    async def show(self, console: UserConsole) -> None:
        """Show the table until cancelled."""
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                live.update(self.render(), refresh=True)
                await asyncio.sleep(TABLE_EVERY_S)

    def render(self) -> RenderableType:
        """The table as it stands now."""
        name, *figures = (Column(title, overflow="fold") for title in _TITLES)
        name.min_width = _NAME_WIDTH
        table = Table(name, *figures, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        counts = self._pipeline.event_counts
        for report in self._pipeline.report():
            dropped = ", ".join(f"{reason} {count}" for reason, count in report.tally.dropped.items()) or "0"
            table.add_row(
                visible_text(report.stream),
                report.state.value,
                str(report.tally.analysed),
                f"{self._rates.measure(report):.1f}",
                "" if report.age_s is None else f"{report.age_s * 1000:.0f} ms",
                dropped,
                str(report.tracks),
                str(counts[report.stream].total()),
            )
        caption = _storage_caption(self._pipeline.storage())
        table.caption = None if caption is None else Text(visible_text(caption))
        return table if self._latest is None else Group(table, event_table(self._latest.events))


class _FrameRates:
    """Frames per second of each stream, measured over a second at least."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}

    def measure(self, report: StreamReport) -> float:
        now, analysed = time.monotonic(), report.tally.analysed
        then, before = self._before.get(report.stream, (now, analysed))
        if now - then >= 2 * TABLE_EVERY_S or report.stream not in self._before:
            self._before[report.stream] = (now, analysed)
        return (analysed - before) / (now - then) if now > then else 0.0


def _storage_caption(storage: StorageStatus) -> str | None:
    """The trouble of the spool that a user has to know, None without any."""
    if storage.error:
        return f"events cannot be stored: {storage.error}"
    if storage.used_bytes > storage.max_bytes // 2:
        return f"the spool is {100 * storage.used_bytes // storage.max_bytes} % full: events wait for a sink"
    if storage.forgotten:
        return f"{storage.forgotten} events wait for sinks that are no longer configured: see groundstream spool list"
    return None
