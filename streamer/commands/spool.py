"""`groundstream spool`: the events that wait for sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.groups import CommandGroup

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)

SpoolFile = Annotated[
    Path, typer.Argument(metavar="SPOOL", help="A spool's file, as `groundstream spool list` names it.")
]


@app.command("list")
def list_cursors(
    file: Annotated[
        Path | None, typer.Argument(metavar="SPOOL", help="A spool's file; all in the state folder when absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how many events wait for each sink."""
    from streamer.tasks.spool import show_spools

    show_spools(file, as_json=as_json)


@app.command("adopt")
def adopt(
    file: SpoolFile,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The sink for which events wait.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The sink that gets them: its address or name.")],
) -> None:
    """Give the events that wait for one sink to another."""
    from streamer.tasks.spool import adopt_cursor

    typer.echo(f"{adopt_cursor(file, old, new)} events wait for the new sink now")


@app.command("drop")
def drop(
    file: SpoolFile,
    sink: Annotated[str, typer.Argument(metavar="SINK", help="The sink for which events wait.")],
) -> None:
    """Give up the events that wait for a sink."""
    from streamer.tasks.spool import drop_cursor

    typer.echo(f"{drop_cursor(file, sink)} events are given up")
