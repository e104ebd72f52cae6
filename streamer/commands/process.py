"""`groundstream process`: video files into tracks, events and annotated video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import (
    AsJson,
    BatchSize,
    DetectorName,
    DetectorOptions,
    Device,
    EveryNth,
    Lines,
    Masks,
    Queries,
    Quiet,
    SampleFps,
    Sinks,
    Threshold,
    TrackerName,
    Tuned,
    Weights,
    Zones,
)


def process(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO", help="Files, globs, folders, or synthetic:street?seed=7.")
    ],
    query: Queries,
    detector: DetectorName = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    masks: Masks = None,
    detector_option: DetectorOptions = None,
    tracker: TrackerName = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the results, with one folder per video.")
    ] = Path("out"),
    sink: Sinks = None,
    video: Annotated[bool, typer.Option("--video/--no-video", help="Write an annotated MP4.")] = True,
    images: Annotated[bool, typer.Option("--images", help="Save the analysed frames beside the COCO file.")] = False,
    zone: Zones = None,
    line: Lines = None,
    every: EveryNth = None,
    fps: SampleFps = None,
    batch: BatchSize = 8,
    start_time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Start of the recording, such as 2026-05-04T12:00:00Z (default: the container's date, else 1970).",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn recordings into tracks, events and annotated video.

    Each video gets a folder OUT/NAME/ with tracks.txt (MOTChallenge), coco.json, summary.json and video.mp4;
    OUT/events.sqlite and OUT/events.jsonl hold the events of all videos.
    """
    from streamer.tasks.process import ProcessJob, process_videos

    job = ProcessJob(
        videos=videos,
        queries=query,
        detector=detector,
        weights=weights,
        tuned=tuned,
        device=device,
        threshold=threshold,
        masks=masks,
        detector_options=detector_option or (),
        tracker=tracker or "default",
        out=out,
        sinks=sink or (),
        video=video,
        images=images,
        zones=zone or (),
        lines=line or (),
        every=every or 1,
        fps=fps,
        batch=batch,
        start_time=start_time,
    )
    failed = process_videos(job, as_json=as_json, quiet=quiet)
    raise typer.Exit(1 if failed else 0)
