"""`groundstream view`: the results of a finished job in the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --out folder of a process job.")],
    web_address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the page.")] = "127.0.0.1:8091",
) -> None:
    """Show the results of a process job in a browser: videos with boxes, timeline, counts, search."""
    from streamer.tasks.view import view_results

    view_results(folder, web_address)
