"""`groundstream subscribe`: events, live or past, as a table in a terminal and as lines of JSON in a pipe."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sinks.event import Event
    from sinks.subscribe import Subscription

_ROWS = 30


class OutputFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


def subscribe(
    address: Annotated[
        str, typer.Argument(help="Where events are: sqlite:PATH, jsonl:PATH, kafka://HOST:PORT/TOPIC, ...")
    ],
    stream: Annotated[list[str] | None, typer.Option(help="Only this stream; again for more, * is allowed.")] = None,
    type: Annotated[list[str] | None, typer.Option(help="Only this type, such as track.begin or zone.*.")] = None,
    query: Annotated[list[str] | None, typer.Option(help="Only events about these words.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="earliest, 10m, 2h or 1d (so long ago), 2026-05-01T12:00:00Z, or the last id seen."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for what comes.")] = False,
    group: Annotated[str | None, typer.Option(help="Kafka: share the work with this group and resume there.")] = None,
    format: Annotated[
        OutputFormat | None, typer.Option(help="table or json; by default a table in a terminal, JSON in a pipe.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")] = None,
) -> None:
    """Show events, each once; what is missing in a sequence is told on standard error."""
    import contextlib
    import os

    from sinks.subscribe import subscribe as open_subscription

    events = open_subscription(
        address,
        types=type or (),
        streams=stream or (),
        queries=query or (),
        since=since,
        follow=follow,
        group=group,
        on_gap=lambda gap: typer.echo(str(gap), err=True),
    )
    as_table = format is OutputFormat.TABLE or (format is None and sys.stdout.isatty())
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(_show_table(events, limit) if as_table else _print_lines(events, limit))
        except BrokenPipeError:
            # whoever read has had enough; python would complain again when it flushes at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for reason in events.unreadable[-3:]:
        typer.echo(reason, err=True)


async def _print_lines(events: Subscription, limit: int | None) -> None:
    count = 0
    async with events:
        async for event in events:
            sys.stdout.buffer.write(event.to_json() + b"\n")
            sys.stdout.buffer.flush()
            count += 1
            if count == limit:
                return


async def _show_table(events: Subscription, limit: int | None) -> None:
    """The newest events, in place while they come."""
    from collections import deque

    from rich.console import Console
    from rich.live import Live

    newest: deque[Event] = deque(maxlen=_ROWS)
    count = 0
    async with events:
        with Live(_table(newest, 0, events), console=Console(), refresh_per_second=8) as live:
            async for event in events:
                newest.append(event)
                count += 1
                live.update(_table(newest, count, events))
                if count == limit:
                    return


def _table(newest: object, count: int, events: Subscription) -> Table:
    from collections.abc import Iterable
    from typing import cast

    from rich.table import Table
    from rich.text import Text

    notes = [f"{count} events"]
    if events.missing:
        notes.append(f"{events.missing} missing")
    if events.duplicates:
        notes.append(f"{events.duplicates} duplicates left out")
    table = Table("time", "stream", "what", "track", "words", "where", caption=", ".join(notes))
    for event in cast("Iterable[Event]", newest):
        data = event.data
        place = data.zone.id if data.zone else f"{data.line.id} {data.line.direction}" if data.line else ""
        track = str(data.track.number) if data.track else ""
        cells = (event.time[:-4] + "Z", data.stream, event.kind, track, ", ".join(event.queries), place)
        table.add_row(*(Text(cell) for cell in cells))
    return table
