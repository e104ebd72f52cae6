"""`groundstream annotate`: videos into labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import DetectorOptions, Device, Masks, OptionalQueries, Threshold, Tuned, Weights


def annotate(
    sources: Annotated[
        list[str], typer.Argument(metavar="VIDEO", help="Files, globs, folders of images, or synthetic:street.")
    ],
    query: OptionalQueries = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Captions of the pictures in place of queries (JSON, or lines NAME<tab>CAPTION): in each picture what "
            "its captions name is labelled.",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="Detector; repeatable: with --describe several vote, and the first makes the boxes."),
    ] = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    detector_option: DetectorOptions = None,
    every: Annotated[int | None, typer.Option(min=1, help="Look at every n-th frame.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Look at most so often per second of video; once, if nothing is said.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Frames that the detector sees at once.")] = 8,
    tracks: Annotated[
        str | None, typer.Option("--tracks", metavar="TRACKER", help="Give boxes identities: default, bytetrack, ...")
    ] = None,
    masks: Masks = None,
    gligen: Annotated[bool, typer.Option("--gligen", help="Also write input for GLIGEN.")] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="Also write for a tool: cvat, datumaro, label-studio, yolo; repeatable."),
    ] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Also describe each frame with GLaMM, in GranD's structure.")
    ] = False,
    model: Annotated[str, typer.Option(help="The GLaMM for --describe, by name or folder.")] = "glamm-fullscope",
    clip: Annotated[Path | None, typer.Option(help="CLIP's folder, for a GLaMM folder as the hub has it.")] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4: pack GLaMM's language model.")] = None,
    out: Annotated[Path, typer.Option(help="Where the data set goes.")] = Path("out/dataset"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing.")] = False,
) -> None:
    """Label sampled frames: a COCO data set with phrases, and a page to look it through.

    OUT gets images/, annotations.json and review.html; with --describe grand.json, with --gligen gligen.jsonl.
    """
    from streamer.enrichment.loading import GlammLoading
    from streamer.tasks.annotate import AnnotateTask
    from streamer.tasks.annotate import run_annotate as work

    task = AnnotateTask(
        sources=sources,
        queries=query or (),
        detectors=detector or (),
        out=out,
        weights=weights,
        tuned=tuned,
        device=device,
        threshold=threshold,
        detector_options=detector_option or (),
        every=every or 1,
        fps=1.0 if fps is None and every is None and captions is None else fps,
        batch=batch,
        tracker=tracks,
        sam=masks,
        gligen=gligen,
        exports=export or (),
        captions=captions,
        describe=GlammLoading(model, clip, device, None, bits) if describe else None,
    )
    work(task, as_json=as_json, quiet=quiet)
