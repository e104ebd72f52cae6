"""Runner of a job: several recordings at a time through one detector, each into a folder of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from detectors import Detector
from groundstream import GroundstreamError
from sinks.address import redact
from sinks.files import JsonlSink
from sinks.registry import open_sinks, wants_detections
from sinks.sink import Sink, SinkError
from sinks.supervision import start_task
from sinks.worker import finish_within
from streamer.analysis.stream_analysis import StreamAnalysis
from streamer.assembly import VIDEO, annotated_video, check_parts, settings_hash
from streamer.build import open_pipeline
from streamer.config import Config
from streamer.detector_choice import load_detector
from streamer.errors import ConfigError
from streamer.jobs.event_archive import DATABASE, LINES, EventArchive
from streamer.jobs.feeds import ListFeed, UnitFeed, open_queue
from streamer.jobs.job import ProcessJob, StreamSummary, job_config, parse_start_time
from streamer.jobs.result_folder import ResultFolder
from streamer.jobs.shared_parts import SharedDetector, share_sinks
from streamer.jobs.units import RecordingUnit, identify_settings, list_units
from streamer.pipeline import Pipeline, Recorder
from streamer.recorders.coco import CocoJson
from streamer.recorders.label_exports import write_exports
from streamer.recorders.text import MotText
from streamer.sources import Source
from streamer.sources.identity import identify_recording
from streamer.sources.workers.pool import DecodePool
from streamer.threads import usable_cores

log = logging.getLogger("groundstream")

_UNIT_MEMORY = 600 * 1024**2
"""Bytes that one recording of 1080p needs while it is processed, generously."""
_OWN_INSTANCES = ("motion", "scripted")
"""Detectors without weights: each recording gets one, so that they run in parallel."""
EVENTS = "events.jsonl"
_MOST_SUMMARIES = 1000


class ProgressListener(Protocol):
    """Watches a job: its recordings, their frames and their ends."""

    def begin_job(self, units: Sequence[RecordingUnit]) -> None: ...
    def begin_unit(self, unit: RecordingUnit, source: Source) -> None: ...
    def count_frame(self, unit: RecordingUnit) -> None: ...
    def end_unit(self, unit: RecordingUnit, summary: StreamSummary, *, skipped: bool) -> None: ...


class SilentProgress:
    """A listener that shows nothing."""

    def begin_job(self, units: Sequence[RecordingUnit]) -> None:
        pass

    def begin_unit(self, unit: RecordingUnit, source: Source) -> None:
        pass

    def count_frame(self, unit: RecordingUnit) -> None:
        pass

    def end_unit(self, unit: RecordingUnit, summary: StreamSummary, *, skipped: bool) -> None:
        pass


@dataclass
class JobReport:
    """Result of a job: a summary for each recording in the order of the job.

    `skipped` names those that were complete before; `undelivered` is the error of a sink that did not take all events.
    `completed` and `failed` count recordings, `invalid` records of a queue. Of a queue without end only the last
    thousand summaries are kept.
    """

    summaries: list[StreamSummary] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    invalid: int = 0
    failed: int = 0
    completed: int = 0
    undelivered: SinkError | None = None
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def has_failed(self) -> bool:
        return bool(self.failed or self.invalid)

    def add(self, summary: StreamSummary) -> None:
        """Counts a recording and keeps its summary."""
        self.failed += bool(summary.error)
        self.completed += not (summary.error or summary.interrupted)
        self.summaries.append(summary)

    def forget_oldest(self) -> None:
        """Keeps the last thousand summaries, where there is no end to them."""
        while len(self.summaries) > _MOST_SUMMARIES:
            self.skipped.discard(self.summaries.pop(0).stream)


class JobRunner:
    """Runs the units of one job; `interrupt` ends it early, complete recordings stay complete."""

    def __init__(
        self,
        job: ProcessJob,
        units: Sequence[RecordingUnit],
        progress: ProgressListener,
        *,
        feed: UnitFeed | None = None,
        archive: bool = True,
        detector: SharedDetector | None = None,
    ) -> None:
        """Runs `units`, or what `feed` gives. Without `archive`, the events of a recording stay in its folder alone.

        `detector` is used instead of loading the one of the job.
        """
        self._job = job
        self._units = units
        self._is_endless = feed is not None
        self._feed = ListFeed(units) if feed is None else feed
        self._progress = progress
        self._config = job_config(job)
        self._start_ns = None if job.start_time is None else parse_start_time(job.start_time)
        self._report = JobReport()
        self._pipelines: dict[str, Pipeline] = {}
        self._running: dict[str, tuple[RecordingUnit, asyncio.Task[StreamSummary]]] = {}
        self._interruption = asyncio.Event()
        self._pool: DecodePool | None = None
        self._detector = detector
        self._archive = EventArchive(job.out) if archive else None
        for address in self._config.sinks:
            if address in (f"jsonl:{job.out / LINES}", f"sqlite:{job.out / DATABASE}"):
                raise ConfigError(f"sink {address} is written by every job: leave it out")

    async def run(self) -> JobReport:
        """Runs all units. Raises what prevents the whole job: words, weights, sinks, the output folder."""
        started = time.monotonic()
        check_parts(self._config)
        self._progress.begin_job(self._units)
        sinks = open_sinks(address for address in self._config.sinks if not address.startswith(VIDEO))
        shared_sinks = share_sinks(sinks)
        try:
            shared = await self._prepare_unless_interrupted()
            if self._archive is not None:
                self._archive.open()
            await self._feed.open()
            async with DecodePool() as self._pool, asyncio.TaskGroup() as workers:
                for _ in range(self._parallel_units()):
                    workers.create_task(self._work(shared, shared_sinks))
            order = {unit.name: number for number, unit in enumerate(self._units)}
            self._report.summaries.sort(key=lambda summary: order.get(summary.stream, 0))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await self._close_outputs(sinks)
        self._report.seconds = time.monotonic() - started
        self._report.invalid = self._feed.invalid
        return self._report

    async def _work(self, detector: Detector | None, sinks: dict[str, Sink]) -> None:
        """Runs one unit after the other."""
        while not self._report.interrupted and (unit := await self._feed.take()) is not None:
            summary = await self._run_guarded(unit, detector, sinks)
            self._report.add(summary)
            if self._is_endless:
                self._report.forget_oldest()
            if not summary.interrupted:
                await self._feed.finish(unit)

    async def _close_outputs(self, sinks: Mapping[str, Sink]) -> None:
        """Closes queue, sinks and archive, at once and within the closing time; what does not close is left."""
        closing = {"the queue": self._feed.aclose()} | {name: sink.aclose() for name, sink in sinks.items()}
        if self._archive is not None:
            closing[f"{self._archive.database}"] = self._archive.aclose()
        found = await asyncio.gather(*(finish_within(work, self._job.close_timeout_s) for work in closing.values()))
        for name, error in zip(closing, found, strict=True):
            if error is not None:
                log.warning("%s did not close: %s", name, str(error) or type(error).__name__)

    def interrupt(self) -> None:
        """Ends the job: recordings stop where they are, cameras end cleanly. Call it in the loop of `run`."""
        self._report.interrupted = True
        self._interruption.set()
        self._feed.stop()
        for unit, task in self._running.values():
            pipeline = self._pipelines.get(unit.name)
            if unit.live and pipeline is not None:
                start_task(pipeline.stop(), name="stop")
            else:
                # No closing events: a later run gives the same events the same ids.
                task.cancel()

    async def _prepare_unless_interrupted(self) -> SharedDetector | None:
        """As `_prepare_detector`; an interruption does not wait for it, the thread that loads ends by itself."""
        loading = asyncio.ensure_future(self._prepare_detector())
        interruption = asyncio.ensure_future(self._interruption.wait())
        try:
            await asyncio.wait({loading, interruption}, return_when=asyncio.FIRST_COMPLETED)
            return loading.result() if loading.done() else None
        finally:
            loading.cancel()
            interruption.cancel()

    async def _prepare_detector(self) -> SharedDetector | None:
        """Loads the model and checks the words before any result is touched; None: each recording has its own."""
        queries = [query.text for query in self._config.queries]
        if self._detector is not None:
            await asyncio.to_thread(self._detector.prepare, queries)
            return self._detector
        detector = await asyncio.to_thread(load_detector, self._config.detector)
        await asyncio.to_thread(detector.prepare, queries)
        if has_own_instances(self._config):
            return None
        return share_detector(detector, self._config)

    def _parallel_units(self) -> int:
        most = usable_cores() if self._is_endless else max(1, len(self._units))
        if self._job.jobs is not None:
            return self._job.jobs if self._is_endless else min(self._job.jobs, most)
        with suppress(ValueError, OSError, AttributeError):  # not known on every system
            memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return max(1, min(usable_cores(), memory // _UNIT_MEMORY, most))
        return max(1, min(usable_cores(), most))

    async def _run_guarded(
        self, unit: RecordingUnit, detector: Detector | None, sinks: dict[str, Sink]
    ) -> StreamSummary:
        """Runs one unit; its errors stand in its summary, other units go on."""
        folder = ResultFolder(self._job.out, unit.name)
        if unit.error:
            summary = StreamSummary(unit.name, folder=str(folder.final), error=unit.error)
            self._progress.end_unit(unit, summary, skipped=False)
            return summary
        recording = await asyncio.to_thread(identify_recording, unit.address)
        config = self._unit_config(unit)
        settings = identify_settings(self._job, settings_hash(config))
        earlier = self._check_earlier(unit, folder, recording, settings)
        if earlier is not None:
            if not earlier.error:
                self._report.skipped.add(unit.name)
            self._progress.end_unit(unit, earlier, skipped=True)
            return earlier
        folder.begin()
        blank = StreamSummary(unit.name, folder=str(folder.final), recording=recording, settings=settings)
        task = asyncio.ensure_future(self._run_unit(unit, config, folder, blank, detector, sinks))
        self._running[unit.name] = unit, task
        try:
            summary = await task
        except asyncio.CancelledError:
            if not self._report.interrupted:
                folder.discard()
                raise
            summary = replace(self._sum_up(blank), interrupted=True)
            summary = replace(summary, folder=str(folder.interrupt(summary)))
        except GroundstreamError as error:
            summary = replace(self._sum_up(blank), error=str(error))
            if isinstance(error, SinkError):
                self._report.undelivered = error
            await self._complete(unit, folder, summary)
        else:
            await self._complete(unit, folder, summary)
        finally:
            self._running.pop(unit.name, None)
            self._pipelines.pop(unit.name, None)
        self._progress.end_unit(unit, summary, skipped=False)
        return summary

    def _check_earlier(
        self, unit: RecordingUnit, folder: ResultFolder, recording: str, settings: str
    ) -> StreamSummary | None:
        """Returns the summary of an earlier run that stands, or one with the reason why the folder is not replaced."""
        if not folder.final.exists():
            return None
        found = folder.read_summary()
        if found is None or "stream" not in found:
            text = f"{folder.final} exists and holds no results of groundstream: choose another output folder"
            return StreamSummary(unit.name, folder=str(folder.final), error=text)
        if self._job.again or found.get("error") or found.get("interrupted") or unit.live:
            return None
        if (found.get("recording"), found.get("settings")) == (recording, settings):
            known = {name: value for name, value in found.items() if name in StreamSummary.__dataclass_fields__}
            return StreamSummary(**known)
        text = (
            f"{folder.final} holds results of another recording or other settings: give --again to replace them, "
            "or another output folder"
        )
        return StreamSummary(unit.name, folder=str(folder.final), error=text)

    async def _complete(self, unit: RecordingUnit, folder: ResultFolder, summary: StreamSummary) -> None:
        events = folder.path / EVENTS
        if self._archive is not None and events.exists():
            await self._archive.add(unit.name, events, keep=unit.live)
        await asyncio.to_thread(folder.finish, summary)

    def _unit_config(self, unit: RecordingUnit) -> Config:
        stream = self._config.streams[0].model_copy(update={"source": unit.address, "name": unit.name})
        videos = [address for address in self._config.sinks if address.startswith(VIDEO)]
        if self._is_endless or len(self._units) > 1:  # each recording gets a file of its own
            videos = [address if "{stream}" in address else _with_stream(address, unit.name) for address in videos]
        wants = self._config.detections or wants_detections(self._config.sinks)
        return self._config.model_copy(update={"streams": [stream], "sinks": videos, "detections": wants})

    async def _run_unit(
        self,
        unit: RecordingUnit,
        config: Config,
        folder: ResultFolder,
        blank: StreamSummary,
        detector: Detector | None,
        sinks: dict[str, Sink],
    ) -> StreamSummary:
        def recorders(source: Source, analysis: StreamAnalysis) -> Sequence[Recorder]:
            return self._recorders(folder.path, source, analysis)

        more: dict[str, Sink] = {f"jsonl:{EVENTS}": JsonlSink(folder.path / EVENTS), **sinks}
        async with open_pipeline(
            config,
            detector=detector,
            recorders=recorders,
            start_time_ns=self._start_ns,
            strict=True,
            on_frame=lambda _stream: self._progress.count_frame(unit),
            more_sinks=more,
            decode_pool=self._pool,
        ) as pipeline:
            self._pipelines[unit.name] = pipeline
            self._progress.begin_unit(unit, pipeline.streams[0].source)
            await pipeline.run()
        await asyncio.to_thread(write_exports, folder.path, self._job.exports, redact(unit.address))
        return replace(self._sum_up(blank), interrupted=self._report.interrupted and unit.live)

    def _recorders(self, folder: Path, source: Source, analysis: StreamAnalysis) -> list[Recorder]:
        images = folder / "images" if self._job.images else None

        def categories() -> dict[int, str]:
            return {query.number: query.text for query in analysis.queries.at()}

        recorders: list[Recorder] = [
            MotText(folder / "tracks.txt", analysis.tracks.final_numbers),
            CocoJson(folder / "coco.json", categories, images, analysis.tracks.final_numbers),
        ]
        if self._job.video and not any(address.startswith(VIDEO) for address in self._config.sinks):
            recorders.append(annotated_video(folder / "video.mp4", source, analysis))
        return recorders

    def _sum_up(self, blank: StreamSummary) -> StreamSummary:
        """Returns the summary with what the pipeline of the recording counted so far."""
        pipeline = self._pipelines.get(blank.stream)
        if pipeline is None:
            return blank
        (report,) = pipeline.report()
        events = pipeline.event_counts[blank.stream]
        analysis = pipeline.streams[0].analysis
        return replace(
            blank,
            frames=report.tally.received,
            analysed=report.tally.analysed,
            dropped=report.tally.dropped,
            seconds=round(report.seen_s, 6),
            tracks=events.get("groundstream.track.begin.v1", 0) - len(analysis.tracks.final_numbers()),
            places=analysis.place_counts(),
            events={_short_kind(kind): count for kind, count in sorted(events.items())},
            error=report.error,
        )


def _with_stream(address: str, stream: str) -> str:
    path = Path(address.removeprefix(VIDEO))
    return f"{VIDEO}{path.with_name(f'{path.stem}-{stream}{path.suffix}')}"


def _short_kind(kind: str) -> str:
    """'groundstream.track.begin.v1' -> 'track.begin'."""
    return kind.removeprefix("groundstream.").rpartition(".")[0]


def has_own_instances(config: Config) -> bool:
    """Whether each recording gets a detector of its own."""
    return config.detector.name.partition(":")[0] in _OWN_INSTANCES


def share_detector(detector: Detector, config: Config) -> SharedDetector:
    """Returns the detector of a job for all of its recordings."""
    device = str(getattr(detector, "device", "cpu"))
    return SharedDetector(detector, config.detector.name, combine=not device.startswith("cpu"))


async def run_job(
    job: ProcessJob, progress: ProgressListener | None = None, ready: Callable[[JobRunner], object] | None = None
) -> JobReport:
    """Runs a job; `ready` gets the runner, to interrupt it. Raises what prevents the whole job, see `JobRunner.run`."""
    feed = None if job.queue is None else open_queue(job)
    if feed is not None and job.videos:
        raise ConfigError("recordings come from a queue or from the command line: give only one of them")
    units = list_units(job) if feed is None else []
    runner = JobRunner(job, units, progress or SilentProgress(), feed=feed)
    if ready is not None:
        ready(runner)
    return await runner.run()
