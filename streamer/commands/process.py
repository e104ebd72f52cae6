"""`groundstream process`: video files into tracks, events and annotated video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import (
    AsJson,
    BatchSize,
    CloseTimeout,
    DetectorName,
    DetectorOptions,
    Device,
    EveryNth,
    Lines,
    Masks,
    Queries,
    Quiet,
    Reid,
    SampleFps,
    Sinks,
    Threshold,
    TrackerName,
    Tuned,
    Weights,
    Zones,
)


def process(
    query: Queries,
    videos: Annotated[
        list[str] | None, typer.Argument(metavar="VIDEO", help="Files, globs, folders, or synthetic:street?seed=7.")
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="File with one address per line, - for standard input, or kafka://HOST/TOPIC with one per record.",
        ),
    ] = None,
    detector: DetectorName = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    masks: Masks = None,
    detector_option: DetectorOptions = None,
    tracker: TrackerName = None,
    reid: Reid = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the results, with one folder per video.")
    ] = Path("out"),
    sink: Sinks = None,
    video: Annotated[bool, typer.Option("--video/--no-video", help="Write an annotated MP4.")] = True,
    images: Annotated[bool, typer.Option("--images", help="Save the analysed frames beside the COCO file.")] = False,
    clips: Annotated[
        bool,
        typer.Option(
            "--clips", help="Store pictures and clips of matches, zones and lines in OUT/media, and a contact sheet."
        ),
    ] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export", metavar="FORMAT", help="Write tracks for a tool too: cvat, label-studio or yolo; repeatable."
        ),
    ] = None,
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
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Recordings at a time (default: by cores and memory)."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Redo complete recordings, replacing their results.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N of the recordings, for several machines."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT, or auto for the one of this machine."),
    ] = None,
    close_timeout: CloseTimeout = None,
    as_json: AsJson = False,
    json_lines: Annotated[
        bool,
        typer.Option("--json-lines", help="Print a line of JSON for each recording when it ends, and one at the end."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Turn recordings into tracks, events and annotated video.

    Each recording gets a folder OUT/NAME/ with tracks.txt (MOTChallenge), coco.json, events.jsonl, summary.json and
    video.mp4; the folder appears when it is complete. OUT/events.sqlite and OUT/events.jsonl hold the events of all.
    Complete recordings are skipped when the command runs again.
    """
    from streamer.jobs.feeds import is_queue
    from streamer.jobs.job import ProcessJob, parse_shard, read_addresses
    from streamer.recorders.label_exports import check_exports
    from streamer.tasks.process import process_videos

    queue = addresses if addresses is not None and is_queue(addresses) else None
    job = ProcessJob(
        videos=[*(videos or ()), *(read_addresses(addresses) if addresses is not None and queue is None else ())],
        queue=queue,
        queries=query,
        detector=detector,
        weights=weights,
        tuned=tuned,
        device=device,
        threshold=threshold,
        masks=masks,
        detector_options=detector_option or (),
        tracker=tracker or "default",
        reid=reid,
        out=out,
        sinks=sink or (),
        video=video,
        images=images,
        clips=clips,
        exports=check_exports(export or ()),
        zones=zone or (),
        lines=line or (),
        every=every or 1,
        fps=fps,
        batch=batch,
        start_time=start_time,
        jobs=jobs,
        again=again,
        shard=None if shard is None else parse_shard(shard),
        close_timeout_s=close_timeout or 10.0,
    )
    raise typer.Exit(process_videos(job, as_json=as_json, json_lines=json_lines, quiet=quiet, cluster=cluster))
