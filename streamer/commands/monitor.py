"""`groundstream monitor`: watch cameras until stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.options import (
    CloseTimeout,
    DetectorName,
    DetectorOptions,
    Device,
    Lines,
    Masks,
    OptionalQueries,
    Reid,
    SampleFps,
    Sinks,
    Threshold,
    TrackerName,
    Tuned,
    Weights,
    Zones,
)
from streamer.tasks.json_log import LogFormat, use_json_log


def monitor(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help="rtsp://..., http://..., webcam:0, files.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="YAML file for several cameras; edits apply at once."),
    ] = None,
    query: OptionalQueries = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAME", help="Name of a source, in their order; repeatable.")
    ] = None,
    zone: Zones = None,
    line: Lines = None,
    detector: DetectorName = None,
    weights: Weights = None,
    tuned: Tuned = None,
    device: Device = None,
    threshold: Threshold = None,
    masks: Masks = None,
    detector_option: DetectorOptions = None,
    tracker: TrackerName = None,
    reid: Reid = None,
    sink: Sinks = None,
    fps: SampleFps = None,
    udp: Annotated[bool, typer.Option("--udp", help="RTSP over UDP instead of TCP.")] = False,
    spool: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File that keeps events until every sink has them (default: state folder)."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", min=1, max=65535, help="Serve Prometheus metrics on this port.")
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the live page and the HTTP API.")] = False,
    web_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve them there, with --web or without (default: 127.0.0.1:8090)."),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="GROUNDSTREAM_LEASE",
            help="Share the cameras of the file with other nodes: postgresql://..., or sqlite:PATH on one machine.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of this node, with --lease (default: GROUNDSTREAM_NODE, else the name of the machine).",
        ),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most cameras that this node watches, with --lease.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Watch only this part of the cameras of the file, the same cameras at every start."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Share the cameras of the file between all nodes of a Ray cluster: HOST:PORT, or auto.",
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Stop after so many seconds.")
    ] = None,
    close_timeout: CloseTimeout = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no live table.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option("--log-format", metavar="FORMAT", help="Log as text, or as json: one object a line, no table."),
    ] = LogFormat.TEXT,
) -> None:
    """Watch cameras for things named in plain words.

    Events go to the sinks, else to standard output, or beside the live table in a terminal. Ctrl-C ends it cleanly:
    open tracks get their end event; a second Ctrl-C ends it at once.
    """
    if log_format is LogFormat.JSON:
        use_json_log()
    from streamer.detector_choice import DetectorChoice
    from streamer.jobs.job import parse_shard
    from streamer.tasks.monitor import MonitorOptions, parse_bind, run_monitor

    options = MonitorOptions(
        file=config,
        sources=sources or (),
        queries=query or (),
        names=name or (),
        zones=zone or (),
        lines=line or (),
        detector=DetectorChoice(detector, weights, tuned, device, threshold, masks, detector_option or ()),
        tracker=tracker,
        reid=reid,
        sinks=sink or (),
        fps=fps,
        udp=udp,
        metrics_port=metrics_port,
        web=parse_bind(web_address) if web_address is not None else (None, None) if web else None,
        close_timeout_s=close_timeout,
        lease=lease,
        node=node,
        capacity=capacity,
        shard=None if shard is None else parse_shard(shard),
    )
    if cluster is not None:
        from streamer.cluster.camera_nodes import monitor_on_cluster

        raise typer.Exit(1 if monitor_on_cluster(options, cluster, spool=spool, duration_s=duration) else 0)
    failed = run_monitor(options, spool=spool, duration_s=duration, quiet=quiet)
    raise typer.Exit(1 if failed else 0)
