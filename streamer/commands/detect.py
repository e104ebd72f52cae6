"""`groundstream detect`: what a detector finds in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files.")],
    query: Annotated[list[str], typer.Option("--query", "-q", help="What to look for, in plain words; repeatable.")],
    detector: Annotated[
        str, typer.Option(help="glip-tiny, glip-mini, grounding-dino-tiny, owlv2-base, ...")
    ] = "glip-tiny",
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint or a model folder instead of the cached one.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="The least score; the detector's own when absent.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are looked at together.")] = 8,
    out: Annotated[Path | None, typer.Option(help="A folder for the pictures with their boxes.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one list of detections for each picture.")
    ] = False,
) -> None:
    """Find what the words name in pictures: a table or JSON, and annotated pictures."""
    from streamer.tasks import detect as detecting

    detecting.detect(images, query, detector, weights, threshold, batch=batch, out=out, as_json=as_json)
