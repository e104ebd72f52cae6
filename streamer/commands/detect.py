"""`groundstream detect`: detections in picture files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import (
    BatchSize,
    DetectorName,
    DetectorOptions,
    Device,
    Masks,
    OptionalQueries,
    Sentence,
    Threshold,
    Tuned,
    Weights,
)


def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files.")],
    query: OptionalQueries = None,
    sentence: Sentence = None,
    detector: DetectorName = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    masks: Masks = None,
    detector_option: DetectorOptions = None,
    batch: BatchSize = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for copies of the pictures with their boxes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of detections for each picture.")] = False,
) -> None:
    """Detect queries, or what a sentence names, in pictures: a table or JSON, and annotated pictures."""
    from streamer.detector_choice import DetectorChoice
    from streamer.tasks import detect as task

    choice = DetectorChoice(detector, weights, tuned, device, threshold, masks, detector_option or ())
    complete = task.detect(images, query or (), choice, batch=batch, out=out, as_json=as_json, sentence=sentence)
    raise typer.Exit(0 if complete else 1)
