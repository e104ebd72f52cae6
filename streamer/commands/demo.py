"""`groundstream demo`: the main job on the synthetic street, so that a newcomer sees it in the first minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.detector_options import DetectorOptions


def demo(
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="What to look for, in plain words; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Which street.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="How much of it.")] = 20.0,
    detector_option: DetectorOptions = None,
) -> None:
    """Watch a synthetic street: an annotated video, a table of tracks and events, and a database to query."""
    from streamer.tasks.demo import show_street

    failed = show_street(query or [], out, seed, seconds, detector_option or ())
    raise typer.Exit(1 if failed else 0)
