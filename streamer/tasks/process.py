"""The `process` command: runs a job on recordings, shows its progress and prints what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from streamer.errors import ConfigError
from streamer.jobs import JobReport, ProcessJob, StreamSummary, run_job
from streamer.jobs.event_archive import DATABASE, LINES
from streamer.jobs.runner import JobRunner, ProgressListener, SilentProgress
from streamer.jobs.units import RecordingUnit
from streamer.media.contact_sheet import write_contact_sheet
from streamer.recorders.text import OutputError
from streamer.sources import Source
from streamer.tasks.closing import INTERRUPTED, ClosingDeadline
from streamer.tasks.console import UserConsole, report_line, user_console

if TYPE_CHECKING:
    from streamer.cluster.recordings import ClusterDriver

COMPLETE_STAYS = "complete recordings are kept, the others begin again with the next run"


class Stoppable(Protocol):
    """Anything that ends cleanly when it is asked to."""

    async def stop(self) -> None: ...


def process_files(job: ProcessJob) -> list[StreamSummary]:
    """Runs the job without any output and returns the summary of every recording.

    Raises what prevents the whole job, and `SinkError` when a sink did not take all events.
    """
    report = asyncio.run(run_job(job))
    if report.undelivered is not None:
        raise report.undelivered
    return report.summaries


def process_videos(
    job: ProcessJob,
    *,
    as_json: bool = False,
    json_lines: bool = False,
    quiet: bool = False,
    cluster: str | None = None,
) -> int:
    """Runs the job, shows progress and results; returns the exit code: 0, 1 if a recording failed, 130 interrupted."""
    to_stdout = any(sink.startswith("stdout:") for sink in job.sinks)
    if (as_json or json_lines) and to_stdout:
        raise ConfigError("--json and --sink stdout: both write to standard output: leave one of them out")
    console = user_console(stderr=as_json or json_lines or to_stdout)
    shown = console.is_terminal and not (quiet or as_json or json_lines)
    display: ProgressDisplay | JsonLines | SilentProgress
    display = JsonLines() if json_lines else ProgressDisplay(console) if shown else SilentProgress()
    with ClosingDeadline(job.close_timeout_s, interrupted_code=INTERRUPTED, kept=COMPLETE_STAYS) as deadline:
        with contextlib.nullcontext() if as_json else _report_failures_once(), _entered_display(display) as progress:
            if cluster is None:
                report = deadline.run(_run_job(job, progress, deadline))
            else:
                report = _run_on_cluster(job, cluster, progress, deadline)
        if job.clips:
            _write_sheet(job.out)
        if as_json or json_lines:
            _print_json(job_as_json(report), sys.stdout)
        else:
            show_report(console, report, job)
    if report.interrupted:
        return INTERRUPTED
    if report.undelivered is not None:
        raise report.undelivered
    return int(report.has_failed)


def _write_sheet(out: Path) -> None:
    """Writes the contact sheet of all events in the results. Raises `OutputError`."""
    events = out / LINES
    if not events.exists():  # no recording was complete
        return
    try:
        with events.open(encoding="utf-8") as lines:
            write_contact_sheet(out, lines)
    except OSError as error:
        raise OutputError(f"the contact sheet in {out} cannot be written: {error.strerror}") from error


def job_as_json(report: JobReport) -> dict[str, Any]:
    """Returns the report as plain values."""
    return {
        "seconds": round(report.seconds, 3),
        "interrupted": report.interrupted,
        "skipped": sorted(report.skipped),
        "completed": report.completed,
        "failed": report.failed,
        "invalid": report.invalid,
        "videos": [asdict(summary) for summary in report.summaries],
    }


def _run_on_cluster(job: ProcessJob, address: str, progress: ProgressListener, deadline: ClosingDeadline) -> JobReport:
    from streamer.cluster.recordings import check_address, connect_job

    # Ray's own messages, such as of a worker that died, go to standard output.
    with contextlib.redirect_stdout(sys.stderr):
        driver = connect_job(job, check_address(address), progress)
        try:
            return deadline.run(_run_stoppable(driver, deadline))
        finally:
            driver.disconnect()


async def _run_stoppable(driver: ClusterDriver, deadline: ClosingDeadline) -> JobReport:
    with deadline.on_stop(driver.interrupt):
        return await driver.run()


async def _run_job(job: ProcessJob, progress: ProgressListener, deadline: ClosingDeadline) -> JobReport:
    with contextlib.ExitStack() as stack:

        def ready(runner: JobRunner) -> None:
            stack.enter_context(deadline.on_stop(runner.interrupt))

        return await run_job(job, progress, ready)


class ProgressDisplay:
    """Progress bars in a terminal: one for the job, one for each recording at work."""

    def __init__(self, console: UserConsole) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        rate = TextColumn("{task.fields[rate]}", markup=False)
        self._progress = Progress(*columns, rate, TimeRemainingColumn(), console=console, transient=True)
        self._job = self._progress.add_task("recordings", total=None, rate="")
        self._tasks: dict[str, TaskID] = {}
        self._sources: dict[str, Source] = {}
        self._frames = 0

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin_job(self, units: Sequence[RecordingUnit]) -> None:
        self._progress.update(self._job, total=len(units))

    def begin_unit(self, unit: RecordingUnit, source: Source) -> None:
        self._sources[unit.name] = source
        self._tasks[unit.name] = self._progress.add_task(unit.name, total=source.expected_frames, rate="")

    def count_frame(self, unit: RecordingUnit) -> None:
        self._frames += 1
        task = self._tasks[unit.name]
        state = self._progress._tasks[task]
        total = state.total if state.total is not None else self._sources[unit.name].expected_frames
        self._progress.update(task, advance=1, total=total, rate=f"{state.speed or 0:.0f} frames/s")

    def end_unit(self, unit: RecordingUnit, summary: StreamSummary, *, skipped: bool) -> None:
        if (task := self._tasks.pop(unit.name, None)) is not None:
            self._progress.remove_task(task)
            self._sources.pop(unit.name, None)
        self._progress.update(self._job, advance=1, rate=f"{self._frames} frames")


class JsonLines(SilentProgress):
    """One line of JSON on standard output for each recording that has ended."""

    def __init__(self) -> None:
        self._output = sys.stdout

    def end_unit(self, unit: RecordingUnit, summary: StreamSummary, *, skipped: bool) -> None:
        _print_json({"skipped": skipped, **asdict(summary)}, self._output)


@contextlib.contextmanager
def _entered_display(display: ProgressDisplay | JsonLines | SilentProgress) -> Iterator[ProgressListener]:
    if isinstance(display, ProgressDisplay):
        with display:
            yield display
    else:
        yield display


def _print_json(value: dict[str, Any], output: TextIO) -> None:
    output.write(json.dumps(value) + "\n")
    output.flush()


def show_report(console: UserConsole, report: JobReport, job: ProcessJob) -> None:
    """Prints a table of the recordings, and where their results are."""
    table = Table("video", "frames", "analysed", "dropped", "length", "tracks")
    for summary in report.summaries:
        dropped = ", ".join(f"{reason} {count}" for reason, count in summary.dropped.items()) or "0"
        name = summary.stream + (" (complete before)" if summary.stream in report.skipped else "")
        numbers = (summary.frames, summary.analysed, dropped, f"{summary.seconds:.1f} s", summary.tracks)
        table.add_row(name, *map(str, numbers))
    console.print(table)
    frames = sum(summary.frames for summary in report.summaries if summary.stream not in report.skipped)
    rate = frames / max(report.seconds, 1e-9)
    console.print(f"{frames} frames in {report.seconds:.1f} s ({rate:.1f} frames/s)")
    for summary in report.summaries:
        owner = f"{summary.stream}: " if len(report.summaries) > 1 else ""
        for place, counts in summary.places.items():
            console.print(f"{owner}{place}: " + ", ".join(f"{way} {count}" for way, count in counts.items()))
    for summary in report.summaries:
        console.print(f"results   {summary.folder}")
        if summary.events:
            events = ", ".join(f"{kind} {count}" for kind, count in summary.events.items())
            console.print(f"          {events}")
    console.print(f"events    {job.out / DATABASE}, {job.out / LINES}")
    for summary in report.summaries:
        if summary.error:
            console.print(f"failed    {summary.error}")
        if summary.interrupted:
            console.print(
                f"stopped   {summary.stream} at {summary.seconds:.1f} s: run the command again to complete it"
            )
    if job.queue is not None:
        console.print(
            f"queue     {report.completed} complete, {report.failed} failed, {report.invalid} invalid records"
        )
    if report.interrupted:
        report_line(f"interrupted: {COMPLETE_STAYS}")


@contextlib.contextmanager
def _report_failures_once() -> Iterator[None]:
    """Keeps errors of recordings out of the log: they stand in the summary. Defects are logged."""
    log = logging.getLogger("groundstream")

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR or bool(record.exc_info)

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)
