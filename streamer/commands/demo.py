"""`groundstream demo`: the whole path on the synthetic street, for the first minute with groundstream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import DetectorOptions, OptionalQueries


def demo(
    query: OptionalQueries = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the results.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the street.")] = 5,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Length of the video.")] = 20.0,
    detector_option: DetectorOptions = None,
    web: Annotated[bool, typer.Option("--web", help="Watch two live streets in the page instead.")] = False,
    web_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of the page with --web.")
    ] = "127.0.0.1:8090",
) -> None:
    """Run the whole path on a synthetic street: annotated video, table of tracks and events, and an event database."""
    if web:
        from streamer.tasks.demo import watch_street
        from streamer.tasks.monitor import parse_bind

        raise typer.Exit(watch_street(query or [], out, seed, parse_bind(web_address), detector_option or ()))
    from streamer.tasks.demo import show_street

    failed = show_street(query or [], out, seed, seconds, detector_option or ())
    raise typer.Exit(1 if failed else 0)
