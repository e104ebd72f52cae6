"""Recordings on a Ray cluster: every recording is one task, a lost worker or node costs only its unfinished one.

A long recording becomes several tasks, which detect in its parts, and one that tracks through the whole. Frames never
leave the process that decodes them; names, settings and summaries cross the network. Results go to the output folder,
which every node sees under the same path. Ray only places and repeats what `streamer.jobs` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from streamer.detector_choice import load_detector
from streamer.errors import ConfigError, StreamerError
from streamer.jobs.event_archive import EventArchive
from streamer.jobs.job import ProcessJob, StreamSummary, job_config
from streamer.jobs.runner import (
    EVENTS,
    JobReport,
    JobRunner,
    ProgressListener,
    SilentProgress,
    has_own_instances,
    share_detector,
)
from streamer.jobs.shared_parts import SharedDetector
from streamer.jobs.split import can_split, detect_segment, plan_segments
from streamer.jobs.stored_detections import StoredDetector
from streamer.jobs.units import RecordingUnit, list_units
from streamer.recorders.text import OutputError
from streamer.sources.segments import Segment

log = logging.getLogger("groundstream")

MOST_ATTEMPTS = 4
_PROBE_S = 10.0
_CANCEL_S = 5.0
REPORT = "cluster-report.json"
_TOKEN_MODE = "RAY_AUTH_MODE"
_NO_TOKEN = (
    "the Ray cluster runs without token authentication (RAY_AUTH_MODE=token on every node): anyone who reaches its "
    "ports can run code on it; keep its network private"
)
_OTHER_TOKEN = "it refuses the token: set RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of its head node"


class ClusterError(StreamerError):
    """The cluster cannot be used: Ray is missing, or the address does not answer."""


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """How one recording was processed on the cluster, in how many parts, and how often one of these was lost."""

    recording: str
    node: str
    attempts: int
    seconds: float
    error: str
    parts: int = 0
    lost_parts: int = 0


def connect_job(job: ProcessJob, address: str, progress: ProgressListener | None = None) -> ClusterDriver:
    """Returns the driver of a job on the cluster at `address`, or with `auto` on the running one, else on this machine.

    Complete recordings are skipped as in a local run; results, events and their ids are the same. Raises
    `ClusterError`, and what prevents the whole job.
    """
    if job.queue is not None:
        raise ConfigError("a queue is divided by its consumer group: run the command on each machine without --cluster")
    job_config(job)  # mistakes are reported before the cluster is asked
    units = list_units(job)
    ray = connect_cluster(address)
    return ClusterDriver(ray, job, units, progress or SilentProgress())


def connect_cluster(address: str) -> Any:
    """Connects to a cluster and returns the module `ray`. Raises `ClusterError`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = address == "auto" and not os.environ.get("RAY_ADDRESS")
    try:
        import ray
    except ImportError as error:
        raise ClusterError("a cluster needs Ray: pip install 'groundstream[cluster]'") from error
    if ray.is_initialized():
        return ray
    if address != "auto":
        _probe(address)
    options: dict[str, Any] = {"log_to_driver": False, "namespace": "groundstream", "logging_level": logging.ERROR}
    try:
        if own:
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                os.environ.setdefault(_TOKEN_MODE, "token")
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                ray.init(include_dashboard=False, object_store_memory=200 * 1024**2, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = explain_refusal(str(error))
        raise ClusterError(
            f"cannot connect to the Ray cluster {address!r}: {reason}; expected HOST:PORT or auto"
        ) from error
    if os.environ.get(_TOKEN_MODE) != "token":
        log.warning("%s", _NO_TOKEN)
    return ray


def _probe(address: str) -> None:
    """Raises `ClusterError` where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_S).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise ClusterError(
            f"cannot connect to the Ray cluster {address!r}: {reason}; give the address of its head node"
        ) from error


def explain_refusal(text: str) -> str:
    """Returns why Ray refused a connection, as part of a sentence."""
    versions = re.findall(r"(Ray|Python): (\S+)", text)
    if "mismatch" in text.lower() and len(versions) >= 4:
        cluster, own = (" and ".join(" ".join(pair) for pair in pairs) for pairs in (versions[:2], versions[2:4]))
        return f"it runs {cluster}, this machine has {own}: install the same versions on every node"
    if "authenticat" in text.lower() or "token" in text.lower():
        return _OTHER_TOKEN
    if "failed to connect" in text.lower():  # `_probe` found that something answers there
        return f"no Ray cluster that takes this machine answers there; perhaps {_OTHER_TOKEN}"
    return text.strip().splitlines()[0] if text.strip() else "it does not answer"


def run_unit(job: ProcessJob, unit: RecordingUnit, parts: Sequence[Path] = ()) -> tuple[dict[str, Any], bool, float]:
    """Processes one recording in this process; returns its summary, whether it was complete before, and seconds.

    `parts` are the files of detections that were made before, in the order of the recording.
    """
    started = time.monotonic()
    detector = _stored_detector(job, parts) or _loaded_detector(job)
    runner = JobRunner(replace(job, jobs=1), [unit], SilentProgress(), archive=False, detector=detector)
    report = asyncio.run(runner.run())
    (summary,) = report.summaries
    if report.undelivered is not None and not summary.error:
        summary = replace(summary, error=str(report.undelivered))
    return asdict(summary), bool(report.skipped), time.monotonic() - started


def _stored_detector(job: ProcessJob, parts: Sequence[Path]) -> SharedDetector | None:
    """The detector that gives back what is in `parts`; None where they are gone or cannot be read."""
    if not parts:
        return None
    config = job_config(job)
    try:
        stored = StoredDetector(config.detector.name, parts, lambda: load_detector(config.detector))
    except (OSError, ValueError) as error:
        log.warning("stored detections cannot be read, detecting again: %s", error)
        return None
    return SharedDetector(stored, config.detector.name, combine=False)


_loaded: dict[str, SharedDetector] = {}
"""The detector of this worker's last recording, by its settings: loading it takes longer than many a recording."""


def _loaded_detector(job: ProcessJob) -> SharedDetector | None:
    """The detector of a job, kept from one recording to the next; None where each recording has its own."""
    config = job_config(job)
    if has_own_instances(config):
        return None
    key = config.detector.model_dump_json()
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = share_detector(load_detector(config.detector), config)
    return _loaded[key]


class _Step(Enum):
    PLAN = auto()  # find the parts of a long recording
    DETECT = auto()  # in one part
    PROCESS = auto()  # a whole recording, with the detections of its parts where there are any


@dataclass(frozen=True, slots=True)
class _Work:
    """One task for a worker of the cluster, tried for the `attempt`-th time."""

    unit: RecordingUnit
    step: _Step
    attempt: int = 1
    segment: Segment | None = None


@dataclass
class _Parts:
    """The parts of one recording: `paths` of those that are detected by their first picture."""

    count: int
    lost: int = 0
    paths: dict[int, Path] = field(default_factory=dict)
    has_failed: bool = False


class ClusterDriver:
    """Keeps the cluster busy, repeats what a lost worker had begun, and archives the events of complete recordings.

    Where there are fewer recordings than workers, long ones are detected in parts.
    `run` writes `cluster-report.json` into the output folder; `interrupt` ends it early, complete recordings stay.
    """

    def __init__(self, ray: Any, job: ProcessJob, units: Sequence[RecordingUnit], progress: ProgressListener) -> None:
        self._ray = ray
        self._job = replace(job, out=job.out.absolute(), shard=None)
        self._units = units
        self._progress = progress
        resources = ray.cluster_resources()
        config = job_config(job)
        gpus = int(resources.get("GPU", 0))
        self._is_on_gpu = gpus > 0 and not has_own_instances(config) and not (job.device or "").startswith("cpu")
        self._workers = gpus if self._is_on_gpu else max(1, int(resources.get("CPU", 1)))
        splits = len(units) < self._workers and can_split(job)
        first = _Step.PLAN if splits else _Step.PROCESS
        self._waiting = deque(_Work(unit, first) for unit in units)
        self._parts: dict[str, _Parts] = {}
        self._running: dict[Any, _Work] = {}
        self._records: dict[str, UnitRecord] = {}
        self._summaries: dict[str, StreamSummary] = {}
        self._report = JobReport()
        self._interrupted_at: float | None = None

    def interrupt(self) -> None:
        """Ends the job: what runs on the cluster is given up. Call it in the loop of `run`."""
        self._report.interrupted = True
        self._interrupted_at = time.monotonic()
        self._waiting.clear()
        self._cancel_running(force=False)

    def disconnect(self) -> None:
        """Ends the connection to the cluster; what still runs on it for this job is given up."""
        self._ray.shutdown()

    def _cancel_running(self, *, force: bool) -> None:
        for reference in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):  # it may just have ended
                self._ray.cancel(reference, force=force)

    async def run(self) -> JobReport:
        """Runs all recordings. Raises `OutputError` and `SinkError`."""
        started = time.monotonic()
        self._progress.begin_job(self._units)
        archive = EventArchive(self._job.out)
        archive.open()
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < 2 * self._workers:
                    work = self._waiting.popleft()
                    self._running[self._start(work)] = work
                done, _ = await asyncio.to_thread(self._ray.wait, list(self._running), num_returns=1, timeout=1.0)
                if self._interrupted_at is not None and time.monotonic() > self._interrupted_at + _CANCEL_S:
                    self._interrupted_at = None
                    self._cancel_running(force=True)
                for reference in done:
                    await self._take_result(archive, reference, self._running.pop(reference))
        finally:
            await archive.aclose()
        for unit in self._units:
            if unit.name in self._summaries:
                self._report.add(self._summaries[unit.name])
        self._report.seconds = time.monotonic() - started
        self._write_report()
        return self._report

    def _start(self, work: _Work) -> Any:
        """Hands work to the cluster; returns the reference to its result."""
        match work.step:
            case _Step.PLAN:
                return self._task(_plan_on_node).remote(self._job, work.unit, self._workers)
            case _Step.DETECT:
                return self._task(_detect_on_node, gpu=self._is_on_gpu).remote(self._job, work.unit, work.segment)
            case _Step.PROCESS:
                parts = self._parts.get(work.unit.name)
                is_stored = parts is not None and not parts.has_failed
                paths = [path for _, path in sorted(parts.paths.items())] if parts is not None and is_stored else []
                task = self._task(_run_unit_on_node, gpu=self._is_on_gpu and not is_stored)
                return task.remote(self._job, work.unit, paths)

    def _task(self, function: Callable[..., Any], *, gpu: bool = False) -> Any:
        return self._ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=0)(function)

    async def _take_result(self, archive: EventArchive, reference: Any, work: _Work) -> None:
        """Notes what came of a task, and what is to be done next."""
        try:
            result = await asyncio.to_thread(self._ray.get, reference)
        except (self._ray.exceptions.RayError, KeyboardInterrupt) as error:
            result = error
        if self._report.interrupted and isinstance(result, BaseException):
            self._note_record(work, "", 0.0, "interrupted")
            folder = str(self._job.out / work.unit.name)
            self._summaries[work.unit.name] = StreamSummary(work.unit.name, folder=folder, interrupted=True)
        elif isinstance(result, BaseException) and self._is_tried_again(work, result):
            self._waiting.append(replace(work, attempt=work.attempt + 1))
        elif work.step is _Step.PROCESS:
            await self._finish(archive, work, result)
        elif work.step is _Step.PLAN:
            self._note_plan(work, result)
        else:
            self._note_part(work, result)

    def _is_tried_again(self, work: _Work, error: BaseException) -> bool:
        """Whether a task that failed was lost with its worker or node, and may be tried again."""
        if isinstance(error, self._ray.exceptions.RayTaskError):  # the recording's own: another attempt would not help
            return False
        if work.unit.name in self._parts and work.step is not _Step.PLAN:
            self._parts[work.unit.name].lost += 1
        if work.attempt < MOST_ATTEMPTS:
            log.warning("%s: attempt %d was lost (%s), trying again", work.unit.name, work.attempt, _first_line(error))
            return True
        return False

    def _note_plan(self, work: _Work, segments: Sequence[Segment] | BaseException) -> None:
        if isinstance(segments, BaseException) or len(segments) < 2:
            self._waiting.append(_Work(work.unit, _Step.PROCESS))
            return
        self._parts[work.unit.name] = _Parts(len(segments))
        self._waiting.extend(_Work(work.unit, _Step.DETECT, segment=segment) for segment in segments)

    def _note_part(self, work: _Work, path: Path | BaseException) -> None:
        parts = self._parts[work.unit.name]
        assert work.segment is not None
        if parts.has_failed:
            return
        if isinstance(path, BaseException):
            log.warning("%s is processed as a whole: %s", work.unit.name, _cause(path))
            parts.has_failed = True
            others = (each for each in self._waiting if each.unit is not work.unit)
            self._waiting = deque([*others, _Work(work.unit, _Step.PROCESS)])
            return
        parts.paths[work.segment.first] = path
        if len(parts.paths) == parts.count:
            self._waiting.append(_Work(work.unit, _Step.PROCESS))

    async def _finish(
        self, archive: EventArchive, work: _Work, result: tuple[dict[str, Any], bool, float, str] | BaseException
    ) -> None:
        """Notes the summary of a recording, and archives its events."""
        unit, skipped = work.unit, False
        if isinstance(result, BaseException):
            is_lost = not isinstance(result, self._ray.exceptions.RayTaskError)
            reason = f"lost {work.attempt} times: {_first_line(result)}" if is_lost else _cause(result)
            summary = StreamSummary(unit.name, folder=str(self._job.out / unit.name), error=reason)
            self._note_record(work, "", 0.0, reason)
        else:
            values, skipped, seconds, node = result
            summary = StreamSummary(**values)
            self._note_record(work, node, seconds, summary.error)
            events = Path(summary.folder) / EVENTS
            if skipped:
                self._report.skipped.add(unit.name)
            elif events.exists():
                await archive.add(unit.name, events, keep=unit.live)
        self._summaries[unit.name] = summary
        self._progress.end_unit(unit, summary, skipped=skipped)

    def _note_record(self, work: _Work, node: str, seconds: float, error: str) -> None:
        parts = self._parts.get(work.unit.name, _Parts(0))
        self._records[work.unit.name] = UnitRecord(
            work.unit.name, node, work.attempt, round(seconds, 3), error, parts.count, parts.lost
        )

    def _write_report(self) -> None:
        rows = [asdict(record) for _, record in sorted(self._records.items())]
        text = json.dumps({"seconds": round(self._report.seconds, 3), "recordings": rows}, indent=2)
        try:
            (self._job.out / REPORT).write_text(text + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._job.out / REPORT}: {error.strerror}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cause(error: BaseException) -> str:
    """Why a task failed, in one line: Ray wraps the error of the worker."""
    return _first_line(getattr(error, "cause", None) or error)


# The functions below run in workers of Ray.


def _run_unit_on_node(
    job: ProcessJob, unit: RecordingUnit, parts: Sequence[Path]
) -> tuple[dict[str, Any], bool, float, str]:
    import ray

    node = ray.get_runtime_context().get_node_id()
    return *run_unit(job, unit, parts), node


def _plan_on_node(job: ProcessJob, unit: RecordingUnit, workers: int) -> list[Segment]:
    return plan_segments(job, unit, workers)


def _detect_on_node(job: ProcessJob, unit: RecordingUnit, segment: Segment) -> Path:
    detector = _loaded_detector(job)
    assert detector is not None, "only detectors of single pictures work in parts"
    return detect_segment(job, unit, segment, detector)


def check_address(address: str) -> str:
    """Returns the address of a cluster. Raises `ConfigError` where it is neither `auto` nor HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if address == "auto" or (colon and host and port.isdecimal()):
        return address
    raise ConfigError(f"cluster address {address!r} is not HOST:PORT: write auto for the cluster of this machine")
