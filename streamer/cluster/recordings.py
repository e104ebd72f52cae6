"""Recordings on a Ray cluster: every recording is one task, a lost worker or node costs only its unfinished one.

Frames never leave the process that decodes them; names, settings and summaries cross the network. Results go to the
output folder, which every node sees under the same path. Ray only places and repeats what `streamer.jobs` does.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError, StreamerError
from streamer.jobs.event_archive import EventArchive
from streamer.jobs.job import ProcessJob, StreamSummary, job_config
from streamer.jobs.runner import EVENTS, JobReport, JobRunner, ProgressListener, SilentProgress
from streamer.jobs.units import RecordingUnit, list_units

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


class ClusterError(StreamerError):
    """The cluster cannot be used: Ray is missing, or the address does not answer."""


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """How one recording was processed on the cluster."""

    recording: str
    node: str
    attempts: int
    seconds: float
    error: str


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
        return "it refuses the token: set RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of its head node"
    return text.strip().splitlines()[0] if text.strip() else "it does not answer"


def run_unit(job: ProcessJob, unit: RecordingUnit) -> tuple[dict[str, Any], bool, float]:
    """Processes one recording in this process; returns its summary, whether it was complete before, and seconds."""
    started = time.monotonic()
    report = asyncio.run(JobRunner(replace(job, jobs=1), [unit], SilentProgress(), archive=False).run())
    (summary,) = report.summaries
    if report.undelivered is not None and not summary.error:
        summary = replace(summary, error=str(report.undelivered))
    return asdict(summary), bool(report.skipped), time.monotonic() - started


class ClusterDriver:
    """Keeps the cluster busy, repeats what a lost worker had begun, and archives the events of complete recordings.

    `run` writes `cluster-report.json` into the output folder; `interrupt` ends it early, complete recordings stay.
    """

    def __init__(self, ray: Any, job: ProcessJob, units: Sequence[RecordingUnit], progress: ProgressListener) -> None:
        self._ray = ray
        self._job = replace(job, out=job.out.absolute(), shard=None)
        self._units = units
        self._progress = progress
        self._waiting = deque((unit, 1) for unit in units)
        self._running: dict[Any, tuple[RecordingUnit, int]] = {}
        self._records: list[UnitRecord] = []
        self._report = JobReport()
        self._interrupted_at: float | None = None

    def interrupt(self) -> None:
        """Ends the job: what runs on the cluster is given up. Call it in the loop of `run`."""
        self._report.interrupted = True
        self._interrupted_at = time.monotonic()
        self._waiting.clear()
        self._cancel_running(force=False)

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
        task = self._ray.remote(num_cpus=1, max_retries=0)(_run_unit_on_node)
        most = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        summaries: dict[str, StreamSummary] = {}
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < most:
                    unit, attempt = self._waiting.popleft()
                    self._running[task.remote(self._job, unit)] = unit, attempt
                done, _ = await asyncio.to_thread(self._ray.wait, list(self._running), num_returns=1, timeout=1.0)
                if self._interrupted_at is not None and time.monotonic() > self._interrupted_at + _CANCEL_S:
                    self._interrupted_at = None
                    self._cancel_running(force=True)
                for reference in done:
                    unit, attempt = self._running.pop(reference)
                    summary = await asyncio.to_thread(self._collect, reference, unit, attempt)
                    if summary is not None:
                        await self._finish(archive, unit, summary)
                        summaries[unit.name] = summary
        finally:
            await archive.aclose()
        for unit in self._units:
            if unit.name in summaries:
                self._report.add(summaries[unit.name])
        self._report.seconds = time.monotonic() - started
        self._write_report()
        return self._report

    def _collect(self, reference: Any, unit: RecordingUnit, attempt: int) -> StreamSummary | None:
        """Returns the summary of a task that ended; None where it is tried again."""
        try:
            values, skipped, seconds, node = self._ray.get(reference)
        except (self._ray.exceptions.RayError, KeyboardInterrupt) as error:
            if not self._report.interrupted:
                return self._judge_loss(error, unit, attempt)
            self._records.append(UnitRecord(unit.name, "", attempt, 0.0, "interrupted"))
            return StreamSummary(unit.name, folder=str(self._job.out / unit.name), interrupted=True)
        summary = StreamSummary(**values)
        if skipped:
            self._report.skipped.add(unit.name)
        self._records.append(UnitRecord(unit.name, node, attempt, round(seconds, 3), summary.error))
        return summary

    def _judge_loss(self, error: BaseException, unit: RecordingUnit, attempt: int) -> StreamSummary | None:
        if isinstance(error, self._ray.exceptions.RayTaskError):  # the recording's own: another attempt would not help
            return self._give_up(unit, attempt, str(getattr(error, "cause", None) or error).splitlines()[0])
        reason = str(error).splitlines()[0]  # worker or node lost, out of memory
        if attempt < MOST_ATTEMPTS:
            log.warning("%s: attempt %d was lost (%s), trying again", unit.name, attempt, reason)
            self._waiting.append((unit, attempt + 1))
            return None
        return self._give_up(unit, attempt, f"lost {attempt} times: {reason}")

    def _give_up(self, unit: RecordingUnit, attempt: int, reason: str) -> StreamSummary:
        self._records.append(UnitRecord(unit.name, "", attempt, 0.0, reason))
        return StreamSummary(unit.name, folder=str(self._job.out / unit.name), error=reason)

    async def _finish(self, archive: EventArchive, unit: RecordingUnit, summary: StreamSummary) -> None:
        skipped = unit.name in self._report.skipped
        events = Path(summary.folder) / EVENTS
        if not skipped and events.exists():
            await archive.add(unit.name, events, keep=unit.live)
        self._progress.end_unit(unit, summary, skipped=skipped)

    def _write_report(self) -> None:
        rows = [asdict(record) for record in sorted(self._records, key=lambda record: record.recording)]
        text = json.dumps({"seconds": round(self._report.seconds, 3), "recordings": rows}, indent=2)
        (self._job.out / REPORT).write_text(text + "\n")


def _run_unit_on_node(job: ProcessJob, unit: RecordingUnit) -> tuple[dict[str, Any], bool, float, str]:
    """Runs in a worker of Ray; the node's name goes into the report."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return *run_unit(job, unit), node


def check_address(address: str) -> str:
    """Returns the address of a cluster. Raises `ConfigError` where it is neither `auto` nor HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if address == "auto" or (colon and host and port.isdecimal()):
        return address
    raise ConfigError(f"cluster address {address!r} is not HOST:PORT: write auto for the cluster of this machine")
