"""`groundstream bench`: speed on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands import bench_detector
from streamer.commands.groups import CommandGroup

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)
app.command("detector")(bench_detector.detector)


@app.command("pipeline")
def pipeline(
    video: Annotated[Path | None, typer.Argument(help="A video file; a drawn one when absent.")] = None,
    boxes: Annotated[int, typer.Option(min=0, help="Scripted boxes in every frame.")] = 20,
    frames: Annotated[int, typer.Option(min=10, help="Frames of the drawn video.")] = 500,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the drawn video.")] = "768x576",
    rounds: Annotated[int, typer.Option(min=1, help="How often to measure, in turns with bare decoding.")] = 3,
    pixels: Annotated[bool, typer.Option("--pixels", help="Read the pixels of every frame, as a model does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The whole path without a model (scripted detector, tracker, rules) against bare decoding of the same file."""
    from streamer.tasks.bench import compare_with_decoding

    compare_with_decoding(
        video, boxes=boxes, frames=frames, size=size, rounds=rounds, as_json=as_json, reads_pixels=pixels
    )


@app.command("cameras")
def cameras(
    fps: Annotated[float, typer.Option(min=1, max=120, help="Pictures a second of each camera.")] = 25.0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of each camera.")] = "1280x720",
    sample: Annotated[float, typer.Option(min=0.1, help="Frames of each camera to analyse a second.")] = 5.0,
    counts: Annotated[
        list[int] | None, typer.Option("--cameras", min=1, help="Measure this many; without it, find the most.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure each number of cameras.")] = 8.0,
    most: Annotated[int, typer.Option(min=1, help="Cameras at most.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How many cameras this machine carries, and how old their frames are when they have been analysed."""
    from streamer.tasks.bench_cameras import report_capacity

    report_capacity(fps=fps, size=size, sample=sample, counts=counts, seconds=seconds, most=most, as_json=as_json)
