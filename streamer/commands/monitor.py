"""`groundstream monitor`: cameras watched until told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import (
    DetectorName,
    DetectorOptions,
    Device,
    Masks,
    Threshold,
    Tuned,
    Weights,
)


def monitor(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help="rtsp://..., http://..., webcam:0, files.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A YAML file for several cameras; edits of its queries apply.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="What to look for, in plain words; repeatable.")
    ] = None,
    detector: DetectorName = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    masks: Masks = None,
    detector_option: DetectorOptions = None,
    tracker: Annotated[str | None, typer.Option(help="default, bytetrack, ocsort, botsort, sort.")] = None,
    sink: Annotated[
        list[str] | None, typer.Option(help="Where events go; repeatable. stdout: when absent and not in a terminal.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Let the detector look at most so often per second.")
    ] = None,
    udp: Annotated[bool, typer.Option("--udp", help="RTSP over UDP instead of TCP.")] = False,
    spool: Annotated[
        Path | None,
        typer.Option(help="Where events are safe until every sink has them; in the state folder when absent."),
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics here.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the live page and the HTTP API.")] = False,
    web_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve them there, with --web or without (default: 127.0.0.1:8090)."),
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds.")] = None,
    close_timeout: Annotated[
        float | None, typer.Option(min=0.1, max=3600, help="Seconds that closing may take altogether; 10 when absent.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No live table.")] = False,
) -> None:
    """Watch cameras for things named in plain words. Ctrl-C ends it cleanly: open tracks get their end event."""
    from streamer.detector_choice import DetectorChoice
    from streamer.tasks.monitor import parse_bind, run_monitor, watch_config

    loaded = watch_config(
        config,
        sources or [],
        query or [],
        detector=DetectorChoice(detector, weights, tuned, device, threshold, masks, detector_option or ()),
        tracker=tracker,
        sinks=sink or [],
        fps=fps,
        udp=udp,
        metrics_port=metrics_port,
        web=parse_bind(web_address) if web_address is not None else (None, None) if web else None,
    )
    if close_timeout is not None:
        loaded = loaded.model_copy(update={"close_timeout_s": close_timeout})
    failed = run_monitor(loaded, config_file=config, spool=spool, duration_s=duration, quiet=quiet)
    raise typer.Exit(1 if failed else 0)
