"""Cameras of one node of several: keeps its leases, and its pipeline watching exactly the cameras that they allow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sinks.worker import SinkWorker
from streamer.cluster.cluster_status import ClusterStatus, describe_book
from streamer.cluster.lease_book import EXPIRE_S, RENEW_EVERY_S, CameraLease, LeaseAnswer, LeaseBook, LeaseError
from streamer.cluster.lease_store import LeaseStore, SharedConfig
from streamer.cluster.node_leases import NodeLeases
from streamer.cluster.shared_config import offer_config, require_camera_names
from streamer.config import Config, read_config_text
from streamer.errors import ConfigError
from streamer.pipeline.pipeline import Pipeline
from streamer.pipeline.terms import StreamTerm, TermTally

log = logging.getLogger("groundstream")

_RETRY_S = 10.0
"""Seconds after which a camera is tried again that could not be added."""
_REFUSED_S = 2 * EXPIRE_S
"""Seconds after which a name that is held by another process is an error."""


class CameraHolder:
    """Holds leases for one node and applies to its pipeline what they allow; gives the pipeline's streams their terms.

    Begin with `begin`, then run `renew_leases`, `hold_cameras` and `follow_file` beside the pipeline, and end with
    `leave` after the last event and `aclose`.
    """

    def __init__(
        self,
        store: LeaseStore,
        node: str,
        file: Path,
        read_text: Callable[[str], Config],
        *,
        capacity: int | None = None,
        page: str = "",
    ) -> None:
        """`file` has the configuration of all nodes; `read_text` makes it of its text, and raises `ConfigError`. `page`
        is the address of this node's page for other machines."""
        self.node = node
        self._store = store
        self._file = file
        self._read_text = read_text
        self._worker = SinkWorker("leases")
        self._leases = NodeLeases(store, node, capacity=capacity, page=page)
        self._config: Config | None = None
        self._revision = 0  # of the configuration in use
        self._refused_revision = 0  # one that this node cannot use
        self._newest: SharedConfig | None = None  # a configuration that is not in use yet
        self._answer: LeaseAnswer | None = None
        self._running: dict[str, CameraLease] = {}
        self._changed = asyncio.Event()
        self._applying = asyncio.Lock()
        self._has_left = False
        self._has_joined = False
        self._refused_since_s: float | None = None
        self._is_cut_off = False
        self._renewals = self._failures = self._granted = 0

    # The pipeline's terms.

    def find_term(self, name: str) -> StreamTerm:
        """See `StreamTerms.find_term`."""
        lease = self._running[name]
        return StreamTerm(lease.epoch, lease.outage_cause, lease.outage_since_ns, lease.is_outage_reported)

    def admits(self, stream: str, run: int) -> bool:
        """See `StreamTerms.admits`. Runs that this process never had are those of earlier ones, whose ends it sends."""
        return self._leases.is_good(stream, run) is not False

    def tally(self) -> TermTally:
        """See `StreamTerms.tally`."""
        return TermTally(
            self._leases.is_joined,
            self._leases.renewed_s,
            self._renewals,
            self._failures,
            self._granted,
            len(self._running),
        )

    def cluster_status(self) -> ClusterStatus:
        """All nodes and cameras, as they were at the last renewal."""
        return describe_book(self._leases.book or LeaseBook())

    # Beginning and end.

    async def begin(self) -> None:
        """Share the file as the configuration of all nodes, or take the newer one that they use.

        Raises `ConfigError` for one that cannot be used, `LeaseError` where the store does not answer.
        """
        text = read_config_text(self._file)
        newest = await self._offer(text, self._checked_config(text))
        self._config, self._revision = self._checked_config(newest.text), newest.revision

    def begin_config(self) -> Config:
        """The configuration in use, without a camera: they come with their leases."""
        return _part_of(self._used_config, ())

    async def leave(self) -> None:
        """Give all cameras to the other nodes at once: every event of theirs is safe."""
        self._has_left = True
        try:
            await self._worker.call(self._leases.leave)
        except LeaseError as error:
            log.warning("%s; the other nodes take the cameras of %s when its leases end", error, self.node)

    async def aclose(self) -> None:
        """Close the store."""
        self._has_left = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._worker.aclose(last=self._store.close)

    # What runs beside the pipeline.

    async def renew_leases(self) -> None:
        """Join and renew until `leave`. Raises `LeaseError` where another process has the name of the node."""
        while not self._has_left:
            began_s = time.monotonic()
            try:
                await self._renew_once()
                if self._is_cut_off:
                    self._is_cut_off = False
                    log.warning("leases: the store answers again")
            except LeaseError as error:
                self._failures += 1
                self._refused_since_s = None
                if not self._has_joined and not self._is_cut_off:
                    log.error("%s", error)
                elif not self._is_cut_off:
                    log.error("%s; cameras are watched until their leases end", error)
                self._is_cut_off = True
            await asyncio.sleep(max(0.05, RENEW_EVERY_S - (time.monotonic() - began_s)))

    async def hold_cameras(self, pipeline: Pipeline) -> None:
        """Add cameras whose lease was granted, and remove those whose lease ended or moves to another node."""
        is_complete = True
        while not self._has_left:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if is_complete else _RETRY_S):
                    await self._changed.wait()
            self._changed.clear()
            async with self._applying:
                if pipeline.stopping.is_set():
                    return
                await self._use_newest(pipeline)
                await self._remove_ended(pipeline)
                is_complete = await self._add_granted(pipeline)

    async def follow_file(self, pipeline: Pipeline, every_s: float = 1.0) -> None:
        """Share edits of the file with all nodes; a mistake is reported and changes nothing."""
        seen = await asyncio.to_thread(self._modified_ns)
        while True:
            await asyncio.sleep(every_s)
            if (now := await asyncio.to_thread(self._modified_ns)) == seen:
                continue
            seen = now
            try:
                await self._share_edit(pipeline)
            except (ConfigError, LeaseError) as error:
                log.error("%s; nothing has changed", error)

    # Renewals.

    async def _renew_once(self) -> None:
        if not self._leases.is_joined:
            if self._answer is not None:
                self._failures += 1
                log.error("node %s could not renew its leases in time: it stops watching its cameras", self.node)
                self._take_answer(None)
            if await self._worker.call(self._leases.join):
                log.info("node %s has joined", self.node)
                self._has_joined, self._refused_since_s = True, None
            else:
                self._note_refusal()
            return
        answer = await self._worker.call(self._leases.renew, self._revision)
        if answer is None:
            return
        self._renewals += 1
        held = {} if self._answer is None else self._answer.leases
        self._granted += sum(held.get(name) != lease for name, lease in answer.leases.items())
        if answer.revision not in (self._revision, self._refused_revision):
            self._newest = await self._worker.call(self._store.read_config)
        self._take_answer(answer)

    def _note_refusal(self) -> None:
        now_s = time.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
            log.info("node %s waits: a process of this name has not ended long ago, or is running", self.node)
        elif now_s - self._refused_since_s > _REFUSED_S:
            raise ConfigError(
                f"another process that renews its leases is the node {self.node!r}: give this one another name with "
                "--node"
            )

    def _take_answer(self, answer: LeaseAnswer | None) -> None:
        is_same = answer == self._answer and (self._newest is None or self._newest.revision == self._refused_revision)
        self._answer = answer
        if not is_same:
            self._changed.set()

    # Changes of the pipeline.

    async def _use_newest(self, pipeline: Pipeline) -> None:
        """Use a configuration that another node has shared."""
        newest, self._newest = self._newest, None
        if newest is None or newest.revision in (self._revision, self._refused_revision):
            return
        try:
            config = self._checked_config(newest.text)
            await self._apply(pipeline, config, self._running)
        except ConfigError as error:
            self._refused_revision = newest.revision
            log.error(
                "revision %d of the configuration cannot be used: %s; this node goes on with revision %d, "
                "and takes no further cameras",
                *(newest.revision, error, self._revision),
            )
        else:
            self._config, self._revision = config, newest.revision

    async def _remove_ended(self, pipeline: Pipeline) -> None:
        desired, answer = self._desired(), self._answer
        gone = {name: lease for name, lease in self._running.items() if desired.get(name) != lease}
        if gone:
            handovers = {} if answer is None else answer.handovers
            for stream in pipeline.streams:
                name = None if stream.section is None else stream.section.name
                if name in gone and (target := handovers.get(name)):
                    stream.leaving_cause = f"moved to node {target}"
            kept = {name: lease for name, lease in self._running.items() if name not in gone}
            await self._apply(pipeline, self._used_config, kept)
            await pipeline.wait_followed()  # after this, events of these leases are safe or refused
            self._running = kept
        # Also a lease that was handed over, or that the configuration no longer has, before its camera was added.
        held = {} if answer is None else answer.leases
        for name, lease in held.items():
            if name in self._running or desired.get(name) == lease:
                continue
            if self._leases.is_good(name, lease.epoch):
                try:
                    await self._worker.call(self._leases.release, lease)
                except LeaseError as error:
                    log.warning("%s: the lease could not be given back: %s", name, error)

    async def _add_granted(self, pipeline: Pipeline) -> bool:
        """Returns whether every camera could be added."""
        granted = {name: lease for name, lease in self._desired().items() if name not in self._running}
        if not granted:
            return True
        if await self._try_add(pipeline, granted, is_logged=len(granted) == 1):
            return True
        added = [await self._try_add(pipeline, {name: lease}) for name, lease in granted.items()]
        return all(added)

    async def _try_add(self, pipeline: Pipeline, leases: Mapping[str, CameraLease], *, is_logged: bool = True) -> bool:
        before = self._running
        self._running = {**before, **leases}
        try:
            await self._apply(pipeline, self._used_config, self._running)
        except ConfigError as error:
            self._running = before
            if is_logged:
                log.error("%s; it is tried again in %g s", error, _RETRY_S)
            return False
        return True

    async def _share_edit(self, pipeline: Pipeline) -> None:
        text = await asyncio.to_thread(read_config_text, self._file)
        config = self._checked_config(text)
        async with self._applying:
            before = self._used_config
            await self._apply(pipeline, config, self._running)  # what this node cannot use is not shared
            try:
                newest = await self._offer(text, config)
            except LeaseError:
                await self._apply(pipeline, before, self._running)
                raise
            if newest.is_old_copy:
                await self._apply(pipeline, before, self._running)
            else:
                self._config, self._revision = config, newest.revision
        self._changed.set()

    async def _apply(self, pipeline: Pipeline, config: Config, leases: Mapping[str, CameraLease]) -> None:
        for sentence in await pipeline.apply(_part_of(config, leases)):
            log.info("%s", sentence)

    def _desired(self) -> dict[str, CameraLease]:
        """The leases under which cameras shall be watched."""
        answer, names = self._answer, self._names()
        if answer is None or not self._leases.is_joined:
            return {}
        return {
            name: lease
            for name, lease in answer.leases.items()
            if name in names and name not in answer.handovers and self._leases.is_good(name, lease.epoch)
        }

    def _names(self) -> frozenset[str]:
        return frozenset(stream.name for stream in self._used_config.streams if stream.name is not None)

    @property
    def _used_config(self) -> Config:
        assert self._config is not None, "begin comes first"
        return self._config

    # The configuration.

    async def _offer(self, text: str, config: Config) -> SharedConfig:
        return await self._worker.call(offer_config, self._store, self._file, text, config)

    def _checked_config(self, text: str) -> Config:
        return require_camera_names(self._read_text(text))

    def _modified_ns(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0


def _part_of(config: Config, names: Collection[str]) -> Config:
    return config.model_copy(update={"streams": [stream for stream in config.streams if stream.name in names]})
