"""The table of events that commands show in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from sinks.event import Event
from streamer.tasks.console import visible_text

UNDATED = "1970-01-01"


def event_table(events: Iterable[Event]) -> Table:
    """One row for each event. The time of day stays whole at 80 columns; words and places wrap.

    Recordings without a date begin at 1970: of their events the table shows the time since the start of the file.
    """
    table = Table()
    for name, whole in (("time", True), ("stream", False), ("what", True), ("track", True), ("words", False)):
        table.add_column(name, no_wrap=whole, overflow="fold")
    table.add_column("where", overflow="fold")
    day = ""
    for event in events:
        data = event.data
        place = data.zone.id if data.zone else f"{data.line.id} {data.line.direction}" if data.line else ""
        track = str(data.track.number) if data.track else ""
        # The date stands in the first row of each day.
        is_undated = data.clock.basis == "file_pts" and event.time[:10] == UNDATED
        is_known_day = is_undated or event.time[:10] == day
        time = event.time[11:21] if is_known_day else f"{event.time[:10]}\n{event.time[11:21]}"
        day = event.time[:10]
        cells = (data.stream, event.kind, track, ", ".join(event.queries), place)
        table.add_row(Text(visible_text(time)), *(Text(visible_text(cell)) for cell in cells))
    return table
