"""`groundstream report`: a page of charts from recorded events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import Quiet


def report(
    events: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder with events.sqlite (--out of process), or an SQLite file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the page and its CSV files (default: beside OUT's)."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write an HTML report of recorded events: counts over time, dwell times, heat maps, queries.

    Reads the events that a `sqlite:` sink or `process` stored, and nothing else. Writes report.html, which needs no
    other file, and report-hours.csv, report-dwell.csv, report-queries.csv and report-heatmap.csv.
    """
    from streamer.tasks.report import write_report

    write_report(events, out, quiet=quiet)
