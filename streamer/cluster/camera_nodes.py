"""Cameras on a Ray cluster: an ordinary monitor with leases on each node, started and replaced by one supervisor.

The monitors outlive the supervisor: where it is killed, the cameras are still watched, and the next one finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinks.supervision import start_thread
from streamer.cluster.lease_address import open_lease_store
from streamer.cluster.lease_book import LeaseBook, LeaseError
from streamer.cluster.lease_store import LeaseStore
from streamer.cluster.ray_leases import group_of, lease_address
from streamer.cluster.recordings import ClusterError, check_address, connect_cluster
from streamer.cluster.shared_config import offer_config, require_camera_names
from streamer.config import Config, load_config, read_config, read_config_text
from streamer.errors import ConfigError
from streamer.spooling import state_folder
from streamer.tasks.closing import ClosingDeadline
from streamer.tasks.console import make_folder
from streamer.tasks.monitor import MonitorOptions, log_console, log_to, run_monitor

log = logging.getLogger("groundstream")

_CHECK_EVERY_S = 2.0
_ANSWER_S = 5.0
_RESTART_S = 10.0
"""Seconds after which a monitor that has ended is started again."""
_MORE_S = 10.0
"""Seconds beyond the closing time of the monitors in which the supervisor stops them."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """State of a monitor: `error` is one sentence where it has ended by an error."""

    node: str
    is_running: bool
    error: str


class CameraNode:
    """Actor with a monitor in a thread of its own; it reads the configuration from the leases."""

    def __init__(self, options: MonitorOptions, lease: str, node: str, suffix: str) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets one thread for each CPU that an actor reserves
        logging.basicConfig(
            level=logging.WARNING
        )  # standard error of an actor is a file of Ray; `run_monitor` says more
        self.node = (os.environ.get("GROUNDSTREAM_NODE") or node) + suffix
        self._options = replace(options, lease=lease, node=self.node)
        self._deadline: ClosingDeadline | None = None
        self._is_stopping = False
        self._error = ""
        self._thread = start_thread(self._watch, name="monitor")

    def report(self) -> NodeReport:
        """Return the state of the monitor."""
        return NodeReport(self.node, self._thread.is_alive(), self._error)

    def stop(self, timeout_s: float) -> NodeReport:
        """Stop the monitor, which gives its cameras to the others, and wait for its end."""
        self._is_stopping = True
        if self._deadline is not None:
            self._deadline.stop()
        self._thread.join(timeout_s)
        return self.report()

    def _watch(self) -> None:
        try:
            file = self._write_config()
            if not self._is_stopping:
                run_monitor(
                    replace(self._options, file=file),
                    spool=None,
                    duration_s=None,
                    quiet=True,
                    on_begin=self._note_begin,
                )
        except BaseException as error:  # the supervisor reports it
            self._error = " ".join(str(error).split()) or type(error).__name__
            log.error("node %s has ended: %s", self.node, self._error, exc_info=error)

    def _note_begin(self, deadline: ClosingDeadline) -> None:
        self._deadline = deadline
        if self._is_stopping:
            deadline.stop()

    def _write_config(self) -> Path:
        """Write the shared configuration where a monitor reads it; only its owner may, for it can have passwords."""
        assert self._options.lease is not None
        store = open_lease_store(self._options.lease)
        try:
            newest = store.read_config()
        finally:
            store.close()
        if newest is None:
            raise ConfigError("the cluster has no configuration: start monitor --cluster with a file")
        folder = state_folder() / "cluster" / self.node
        make_folder(folder)
        file = folder / f"{self._options.lease.rpartition('/')[2]}.yaml"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
            output.write(newest.text)
        return file


def monitor_on_cluster(
    options: MonitorOptions, address: str, *, spool: Path | None = None, duration_s: float | None = None
) -> bool:
    """Watch the cameras of a file with all nodes of the cluster at HOST:PORT or `auto` until a signal comes or the time
    is over; returns whether a node failed at the end. Raises `ConfigError`, `ClusterError`, `LeaseError`."""
    file = options.file
    if file is None:
        raise ConfigError("--cluster needs a configuration file, which all nodes share: give one with -c")
    besides = {"--lease": options.lease, "--node": options.node, "--shard": options.shard, "--spool": spool}
    if given := [name for name, value in besides.items() if value is not None]:
        raise ConfigError(f"{', '.join(given)} cannot stand beside --cluster, which gives each node its own: leave out")
    check_address(address)
    options.add_to(load_config(file))  # mistakes are reported before the cluster is asked
    supervisor = _Supervisor(connect_cluster(address), options, file, lease_address(address, group_of(file)))
    config = supervisor.share_file()
    with log_to(log_console()), ClosingDeadline(config.close_timeout_s + _MORE_S) as deadline:
        return deadline.run(supervisor.run(deadline, duration_s, config.close_timeout_s))


class _Supervisor:
    """Keeps a monitor on every node, shares edits of the file, and stops the monitors at the end."""

    def __init__(self, ray: Any, options: MonitorOptions, file: Path, lease: str) -> None:
        self._ray = ray
        self._options = replace(options, file=None)
        self._reads = options
        self._file = file
        self._lease = lease
        self._store: LeaseStore = open_lease_store(lease)
        self._nodes: dict[str, Any] = {}  # actors by their names
        self._not_before: dict[str, float] = {}
        self._reported: dict[str, str] = {}
        self._holders: dict[str, str] = {}
        self._modified_ns = 0

    def share_file(self) -> Config:
        """Share the file as the configuration of all nodes; returns it. Raises `ConfigError`, `LeaseError`."""
        self._modified_ns = self._file.stat().st_mtime_ns if self._file.exists() else 0
        text = read_config_text(self._file)
        config = require_camera_names(self._reads.add_to(read_config(text, str(self._file))))
        offer_config(self._store, self._file, text, config)
        return config

    async def run(self, deadline: ClosingDeadline, duration_s: float | None, close_timeout_s: float) -> bool:
        """Supervise until the order to stop; returns whether a monitor failed."""
        stopping = asyncio.Event()
        end_s = None if duration_s is None else time.monotonic() + duration_s
        with deadline.on_stop(stopping.set):
            while not stopping.is_set() and (end_s is None or time.monotonic() < end_s):
                await asyncio.to_thread(self._supervise_once)
                left_s = _CHECK_EVERY_S if end_s is None else min(_CHECK_EVERY_S, max(0.0, end_s - time.monotonic()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await stopping.wait()
        return await asyncio.to_thread(self._stop_nodes, close_timeout_s)

    def _supervise_once(self) -> None:
        try:
            self._share_edits()
            self._keep_nodes()
            self._log_holders()
        except (LeaseError, ClusterError, self._ray.exceptions.RayError, ConnectionError) as error:
            self._log_once("", str(error).splitlines()[0])
        else:
            self._log_once("", "")

    def _share_edits(self) -> None:
        with contextlib.suppress(OSError):
            if self._file.stat().st_mtime_ns != self._modified_ns:
                try:
                    self.share_file()
                except ConfigError as error:
                    log.error("%s; nothing has changed", error)

    def _keep_nodes(self) -> None:
        """Start a monitor where there is none, and replace those that have ended."""
        wanted = _plan_nodes(self._ray.nodes())
        for name in self._nodes.keys() - wanted.keys():
            log.warning("%s has left the cluster", self._reported.pop(name, name))
            del self._nodes[name]
        for name, plan in wanted.items():
            if name not in self._nodes:
                self._start_node(name, plan)
        for name, actor in list(self._nodes.items()):
            try:
                report: NodeReport = self._ray.get(actor.report.remote(), timeout=_ANSWER_S)
            except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.ActorUnavailableError):
                continue  # starting, frozen or cut off: its leases end by themselves
            except self._ray.exceptions.RayError as error:
                self._forget_node(name, str(error).splitlines()[0])
                continue
            if report.is_running:
                if self._reported.get(name) != report.node:
                    self._reported[name] = report.node
                    log.info("node %s watches", report.node)
            else:
                self._ray.kill(actor)
                self._forget_node(name, report.error or "it has ended")

    def _start_node(self, name: str, plan: _NodePlan) -> None:
        if time.monotonic() < self._not_before.get(name, 0.0):
            return
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        self._nodes[name] = (
            self._ray.remote(CameraNode)
            .options(
                name=f"{self._lease.rpartition('/')[2]}-{name}",
                namespace="groundstream",
                lifetime="detached",
                get_if_exists=True,
                max_restarts=0,
                num_cpus=0,
                num_gpus=plan.gpus,
                max_concurrency=4,
                scheduling_strategy=strategy(plan.node_id, soft=False),
            )
            .remote(self._options, self._lease, plan.host, plan.suffix)
        )

    def _forget_node(self, name: str, reason: str) -> None:
        del self._nodes[name]
        self._not_before[name] = time.monotonic() + _RESTART_S
        log.error(
            "the monitor of node %s has ended: %s; it is started again in %g s",
            *(self._reported.pop(name, name), reason, _RESTART_S),
        )

    def _log_holders(self) -> None:
        def read(book: LeaseBook) -> dict[str, str]:
            return {one.name: one.holder for one in book.cameras.values() if one.is_wanted}

        holders = self._store.update(read)
        for camera, holder in sorted(holders.items()):
            if holder != self._holders.get(camera, ""):
                log.info("%s: %s", camera, f"watched by {holder}" if holder else "watched by no node")
        self._holders = holders

    def _log_once(self, subject: str, sentence: str) -> None:
        if sentence and self._reported.get(subject) != sentence:
            log.error("%s", sentence)
        self._reported[subject] = sentence

    def _stop_nodes(self, close_timeout_s: float) -> bool:
        """Stop all monitors at the same time; returns whether one failed."""
        stops = {name: actor.stop.remote(close_timeout_s + 1.0) for name, actor in self._nodes.items()}
        end_s = time.monotonic() + close_timeout_s + _MORE_S / 2
        has_failed = False
        for name, stop in stops.items():
            node = self._reported.get(name, name)
            try:
                report: NodeReport = self._ray.get(stop, timeout=max(0.1, end_s - time.monotonic()))
                sentence = report.error or ("it did not end in time" if report.is_running else "")
            except self._ray.exceptions.RayError as error:
                sentence = str(error).splitlines()[0]
            if sentence:
                has_failed = True
                log.error("node %s: %s", node, sentence)
            self._ray.kill(self._nodes[name])
        return has_failed


@dataclass(frozen=True, slots=True)
class _NodePlan:
    """Where a monitor is started: one for each GPU of a node, one for a node without GPUs."""

    node_id: str
    host: str
    suffix: str
    gpus: int


def _plan_nodes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, _NodePlan]:
    alive = [node for node in nodes if node["Alive"]]
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    plans: dict[str, _NodePlan] = {}
    for node in alive:
        node_id, host = node["NodeID"], node["NodeManagerHostname"]
        if hosts[host] > 1:  # several Ray nodes of one machine
            host = f"{host}-{node_id[:6]}"
        gpus = int(node["Resources"].get("GPU", 0))
        for number in range(1, max(1, gpus) + 1):
            suffix = f"-gpu{number}" if gpus > 1 else ""
            plans[f"{node_id}{suffix}"] = _NodePlan(node_id, host, suffix, min(1, gpus))
    return plans
