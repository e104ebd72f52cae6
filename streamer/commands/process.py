"""`groundstream process`: video files into tracks, events and annotated video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.detector_options import DetectorOptions


def process(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Files, globs, folders, or synthetic:street?seed=7.")
    ],
    query: Annotated[list[str], typer.Option("--query", "-q", help="What to look for, in plain words; repeatable.")],
    detector: Annotated[
        str | None,
        typer.Option(help="glip-tiny (default), glip-mini, motion, grounding-dino-tiny, scripted:FILE.json, ..."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file instead of the one in the cache.")] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="Words that `groundstream tune --mode prompt` has learned.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; chosen when absent.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="The least score that counts.")] = None,
    masks: Annotated[
        str | None, typer.Option(help="A SAM model that turns boxes into masks, such as facebook/sam-vit-base.")
    ] = None,
    detector_option: DetectorOptions = None,
    tracker: Annotated[str, typer.Option(help="default, bytetrack, ocsort, botsort, sort.")] = "default",
    out: Annotated[Path, typer.Option(help="Where results go, a folder for each video.")] = Path("out"),
    sink: Annotated[
        list[str] | None, typer.Option(help="Also send events there: jsonl:PATH, kafka://..., https://...; repeatable.")
    ] = None,
    video: Annotated[bool, typer.Option("--video/--no-video", help="Write an annotated MP4.")] = True,
    images: Annotated[bool, typer.Option("--images", help="Save the analysed frames beside the COCO file.")] = False,
    zone: Annotated[
        list[str] | None, typer.Option(help="NAME:x,y x,y x,y ... in fractions of the frame; repeatable.")
    ] = None,
    line: Annotated[list[str] | None, typer.Option(help="NAME:x,y x,y in fractions of the frame; repeatable.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Let the detector look at every n-th frame.")] = 1,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Let the detector look at most so often per second.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Frames that the detector sees at once.")] = 8,
    start_time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the recording began, such as 2026-05-04T12:00:00Z; the container's date when absent, else 1970.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Track what the words name through video files.

    For every video OUT/NAME/ gets tracks.txt (MOTChallenge), coco.json, summary.json and video.mp4;
    OUT/events.sqlite and OUT/events.jsonl hold the events of all.
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
        tracker=tracker,
        out=out,
        sinks=sink or (),
        video=video,
        images=images,
        zones=zone or (),
        lines=line or (),
        every=every,
        fps=fps,
        batch=batch,
        start_time=start_time,
    )
    failed = process_videos(job, as_json=as_json, quiet=quiet)
    raise typer.Exit(1 if failed else 0)
