"""`groundstream subscribe`: events, live or past, as a table in a terminal and as lines of JSON in a pipe."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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
    """Show events, each once; gaps in their sequences are reported on standard error."""
    import os

    from sinks.subscribe import subscribe as open_subscription
    from streamer.tasks.closing import INTERRUPTED, ClosingDeadline
    from streamer.tasks.console import report_line

    events = open_subscription(
        address,
        types=type or (),
        streams=stream or (),
        queries=query or (),
        since=since,
        follow=follow,
        group=group,
        on_gap=lambda gap: report_line(str(gap)),
    )
    as_table = format is OutputFormat.TABLE or (format is None and sys.stdout.isatty())
    interrupted = False
    with ClosingDeadline(interrupted_code=INTERRUPTED) as deadline:
        try:
            deadline.run(_show_table(events, limit) if as_table else _print_lines(events, limit))
        except KeyboardInterrupt:
            interrupted = True
        except BrokenPipeError:
            # The reader has had enough; Python would complain once more when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for reason in events.unreadable[-3:]:
        report_line(reason)
    if events.read and not events.chosen:
        report_line(f"0 of {events.read} events match: there are {events.summary()}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


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
    """Shows the newest events, in place while they come."""
    from collections import deque

    from rich.live import Live

    from streamer.tasks.console import user_console
    from streamer.tasks.event_table import event_table

    newest: deque[Event] = deque(maxlen=_ROWS)
    count = 0
    console = user_console()
    async with events:
        with Live(event_table(newest), console=console, refresh_per_second=8) as live:
            async for event in events:
                newest.append(event)
                count += 1
                live.update(event_table(newest))
                if count == limit:
                    break
    notes = [f"{count} event{'s' * (count != 1)}" + f", the newest {_ROWS} shown" * (count > _ROWS)]
    if events.missing:
        notes.append(f"{events.missing} missing")
    if events.duplicates:
        notes.append(f"{events.duplicates} duplicates left out")
    console.print(", ".join(notes))
