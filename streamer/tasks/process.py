"""Work on recordings that has an end: run the pipeline over files, show how far it is, keep and sum up the results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sinks.files import JsonlSink
from sinks.sink import Sink, SinkError
from sinks.sqlite import SqliteSink
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.assembly import VIDEO, annotated_video
from streamer.build import open_pipeline, settle
from streamer.config import Config, parse_config
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError
from streamer.pipeline import Pipeline, Recorder, StreamReport
from streamer.recorders.coco import CocoJson
from streamer.recorders.text import MotText, OutputError, open_output
from streamer.sources import Source

_PIPE_COLUMNS = 1000
_EARLIEST_YEAR, _LATEST_YEAR = 1970, 2200  # times are nanoseconds since 1970 in 63 bits


@dataclass(frozen=True, slots=True)
class ProcessJob:
    """What `groundstream process` was asked to do; see its options."""

    videos: Sequence[str]
    queries: Sequence[str]
    out: Path
    detector: str | None = None
    weights: Path | None = None
    tuned: Path | None = None
    device: str | None = None
    threshold: float | None = None
    masks: str | None = None
    detector_options: Sequence[str] = ()
    tracker: str = "default"
    sinks: Sequence[str] = ()
    video: bool = True
    images: bool = False
    zones: Sequence[str] = ()
    lines: Sequence[str] = ()
    every: int = 1
    fps: float | None = None
    batch: int = 8
    start_time: str | None = None


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What came of one video."""

    stream: str
    frames: int
    analysed: int
    dropped: dict[str, int]
    seconds: float
    tracks: int
    events: dict[str, int]
    folder: str
    error: str = ""


def process_files(job: ProcessJob) -> list[StreamSummary]:
    """Runs the job without any output on the terminal and returns the summary of every video.

    Raises what the parts raise, and `SinkError` when events could not be delivered.
    """
    with _progress(wide_console(stderr=True), hidden=True) as advance:
        summaries, undelivered = asyncio.run(_run(job, advance))
    _write_summaries(summaries)
    if undelivered is not None:
        raise undelivered
    return summaries


def _write_summaries(summaries: Sequence[StreamSummary]) -> None:
    for summary in summaries:
        with open_output(Path(summary.folder) / "summary.json") as file:
            json.dump(asdict(summary), file, indent=2)


def process_videos(job: ProcessJob, *, as_json: bool = False, quiet: bool = False) -> bool:
    """Run the job and tell what came of it; returns whether any video failed."""
    to_stdout = any(sink.startswith("stdout:") for sink in job.sinks)
    if as_json and to_stdout:
        raise ConfigError("--json and --sink stdout: both write to standard output: leave one of them out")
    console = wide_console(stderr=as_json or to_stdout)
    started = time.monotonic()
    hidden = quiet or as_json or not console.is_terminal
    with _progress(console, hidden=hidden) as tell, contextlib.nullcontext() if as_json else _told_once():
        summaries, undelivered = asyncio.run(_run(job, tell))
    wall_s = time.monotonic() - started
    _write_summaries(summaries)
    if as_json:
        print(json.dumps({"seconds": round(wall_s, 3), "videos": [asdict(summary) for summary in summaries]}))  # noqa: T201
    else:
        _show(console, summaries, job, wall_s)
    if undelivered is not None:
        raise undelivered
    return any(summary.error for summary in summaries)


def job_config(job: ProcessJob) -> Config:
    """The configuration that the job's options stand for. Raises `ConfigError`."""
    stream = {
        "zones": [{"id": name, "polygon": points} for name, points in map(_place, job.zones)],
        "lines": [{"id": name, "points": points} for name, points in map(_place, job.lines)],
        "sample": {"every": job.every, "fps": job.fps},
    }
    detector = DetectorChoice(
        job.detector, job.weights, job.tuned, job.device, job.threshold, job.masks, job.detector_options
    )
    raw = {
        "streams": [{"source": video, **stream} for video in job.videos],
        "queries": list(job.queries),
        "detector": detector.section(),
        "tracker": job.tracker,
        "batch": {"size": job.batch},
        "sinks": list(job.sinks),
    }
    return parse_config(raw, "command line")


async def _run(
    job: ProcessJob, tell: Callable[[Pipeline], Callable[[str], None]]
) -> tuple[list[StreamSummary], SinkError | None]:
    """What came of every video, and what could not be delivered of its events after all were analysed."""
    config = job_config(job)
    start_ns = None if job.start_time is None else _start_ns(job.start_time)
    advance: list[Callable[[str], None]] = []

    def recorders(source: Source, analysis: StreamAnalysis) -> Sequence[Recorder]:
        return _outputs(job, source, analysis)

    summaries: list[StreamSummary] = []
    try:
        async with open_pipeline(
            config,
            recorders=recorders,
            start_time_ns=start_ns,
            strict=True,
            on_frame=lambda stream: advance[0](stream),
            open_results=lambda: _open_results(job, config),
        ) as pipeline:
            settle()
            advance.append(tell(pipeline))
            with stopping_on_signals(pipeline):
                await pipeline.run()
            summaries = [_sum_up(job, pipeline, report) for report in pipeline.report()]
    except SinkError as error:
        if not summaries:
            raise
        return summaries, error
    return summaries, None


def _open_results(job: ProcessJob, config: Config) -> dict[str, Sink]:
    """The job's own files of events, in the place of those of an earlier one."""
    lines, database = job.out / "events.jsonl", job.out / "events.sqlite"
    addresses = [f"jsonl:{lines}", f"sqlite:{database}"]
    for address in config.sinks:
        if address in addresses:
            raise ConfigError(f"sink {address} is written anyway: leave it out")
    for old in (lines, database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))):
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot replace {old}: {error.strerror}") from error
    return {addresses[0]: JsonlSink(lines), addresses[1]: SqliteSink(database)}


def wide_console(*, stderr: bool = False) -> Console:
    """A console whose tables are as wide as they need to be where no terminal sets a limit."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_PIPE_COLUMNS)


@contextlib.contextmanager
def stopping_on_signals(pipeline: Pipeline) -> Iterator[None]:
    """Ctrl-C and a service manager's stop end the pipeline cleanly; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        tasks.append(loop.create_task(pipeline.stop()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _outputs(job: ProcessJob, source: Source, analysis: StreamAnalysis) -> list[Recorder]:
    folder = job.out / source.name
    images = folder / "images" if job.images else None
    recorders: list[Recorder] = [
        MotText(folder / "tracks.txt"),
        CocoJson(folder / "coco.json", lambda: {query.number: query.text for query in analysis.queries.at()}, images),
    ]
    if job.video and not any(address.startswith(VIDEO) for address in job.sinks):
        recorders.append(annotated_video(folder / "video.mp4", source, analysis))
    return recorders


def _sum_up(job: ProcessJob, pipeline: Pipeline, report: StreamReport) -> StreamSummary:
    stream = report.stream
    events: Counter[str] = pipeline.event_counts[stream]
    return StreamSummary(
        stream=stream,
        frames=report.tally.received,
        analysed=report.tally.analysed,
        dropped=report.tally.dropped,
        seconds=round(report.seen_s, 6),
        tracks=events.get("groundstream.track.begin.v1", 0),
        events={_short(kind): count for kind, count in sorted(events.items())},
        folder=str(job.out / stream),
        error=report.error,
    )


def _short(kind: str) -> str:
    """'groundstream.track.begin.v1' -> 'track.begin'."""
    return kind.removeprefix("groundstream.").rpartition(".")[0]


def _show(console: Console, summaries: Sequence[StreamSummary], job: ProcessJob, wall_s: float) -> None:
    table = Table("video", "frames", "analysed", "dropped", "length", "tracks", "events")
    for summary in summaries:
        events = ", ".join(f"{kind} {count}" for kind, count in summary.events.items())
        dropped = ", ".join(f"{reason} {count}" for reason, count in summary.dropped.items()) or "0"
        numbers = (summary.frames, summary.analysed, dropped, f"{summary.seconds:.1f} s", summary.tracks)
        table.add_row(summary.stream, *map(str, numbers), events)
    console.print(table)
    frames = sum(summary.frames for summary in summaries)
    console.print(f"{frames} frames in {wall_s:.1f} s ({frames / max(wall_s, 1e-9):.1f} frames/s)", highlight=False)
    for summary in summaries:
        console.print(f"results   {summary.folder}", highlight=False, soft_wrap=True)
    console.print(f"events    {job.out / 'events.sqlite'}, {job.out / 'events.jsonl'}", highlight=False, soft_wrap=True)
    for summary in summaries:
        if summary.error:
            console.print(f"[red]failed[/red]    {summary.error}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """What is wrong with a video stands in the summary: no line of the log says it before. Defects are logged."""
    log = logging.getLogger("groundstream")

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR or bool(record.exc_info)

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


@contextlib.contextmanager
def _progress(console: Console, *, hidden: bool) -> Iterator[Callable[[Pipeline], Callable[[str], None]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden, transient=True) as progress:

        def begin(pipeline: Pipeline) -> Callable[[str], None]:
            sources = {made.name: made.source for made in pipeline.streams}
            tasks = {name: progress.add_task(name, total=None, rate="") for name in sources}

            def advance(stream: str) -> None:
                task = tasks[stream]
                state = progress.tasks[list(tasks).index(stream)]
                if state.total is None:
                    progress.update(task, total=sources[stream].expected_frames)
                progress.update(task, advance=1, rate=f"{state.speed or 0:.0f} frames/s")

            return (lambda _stream: None) if hidden else advance

        yield begin


def _place(text: str) -> tuple[str, list[list[float]]]:
    """'door:0.5,0.2 0.5,0.9' -> ('door', [[0.5, 0.2], [0.5, 0.9]]). Raises `ConfigError`."""
    name, colon, rest = text.partition(":")
    try:
        points = [[float(value) for value in point.split(",")] for point in rest.split()]
        if not colon or not name or any(len(point) != 2 for point in points):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{text!r} is no zone or line: write NAME:x,y x,y ... in fractions of the frame, such as door:0.5,0 0.5,1"
        ) from None
    return name, points


def _start_ns(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"start time {text!r} is not a time: write it as 2026-05-04T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not _EARLIEST_YEAR <= moment.astimezone(UTC).year <= _LATEST_YEAR:
        raise ConfigError(f"start time {text!r} lies outside {_EARLIEST_YEAR} to {_LATEST_YEAR}: give another")
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
