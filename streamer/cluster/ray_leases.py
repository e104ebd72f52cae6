"""Leases of cameras in a Ray cluster: one small actor on the head keeps them, in a file that outlives it.

The rules stay with the nodes, each of which measures time on its own clock: a node reads the book, changes its copy and
offers it; the actor takes it where the book is still the one that was read.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from streamer.cluster.lease_book import LeaseBook, LeaseError
from streamer.cluster.lease_store import TIMEOUT_S, SharedConfig, SqliteLeaseStore
from streamer.cluster.recordings import ClusterError, connect_cluster
from streamer.errors import ConfigError

R = TypeVar("R")

_START_S = 60.0
"""Seconds for the first call, which may have to wait for the start of the actor."""


class LeaseKeeper:
    """The coordinator: an actor that serves one lease file on the disk of the head node."""

    def __init__(self, group: str) -> None:
        from streamer.spooling import state_folder

        self._store = SqliteLeaseStore(state_folder() / f"cluster-{group}.leases.sqlite")

    def read_book(self) -> LeaseBook:
        """Return the present book."""
        return self._store.update(lambda book: book)

    def replace_book(self, before: LeaseBook, after: LeaseBook) -> bool:
        """Store `after` where the book is still `before`; false where another node was faster."""

        def change(book: LeaseBook) -> bool:
            if (book.nodes, book.cameras, book.revision) != (before.nodes, before.cameras, before.revision):
                return False
            book.nodes, book.cameras = after.nodes, after.cameras
            return True

        return self._store.update(change)

    def read_config(self) -> SharedConfig | None:
        """See `LeaseStore.read_config`."""
        return self._store.read_config()

    def offer_config(self, text: str, cameras: Sequence[str]) -> SharedConfig:
        """See `LeaseStore.offer_config`."""
        return self._store.offer_config(text, cameras)

    def check(self) -> str:
        """See `LeaseStore.check`."""
        return self._store.check()


class RayLeaseStore:
    """The leases that the coordinator of a Ray cluster keeps. See `LeaseStore`."""

    def __init__(self, ray: Any, keeper: Any, where: str) -> None:
        self.where = where
        self._ray = ray
        self._keeper = keeper
        self._has_answered = False

    def update(self, function: Callable[[LeaseBook], R]) -> R:
        """See `LeaseStore.update`. `function` is called again where another node changed the book meanwhile."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            before: LeaseBook = self._call("read_book")
            after = copy.deepcopy(before)
            result = function(after)
            if (after.nodes, after.cameras) == (before.nodes, before.cameras):
                return result
            if self._call("replace_book", before, after):
                return result
            if time.monotonic() > deadline_s:
                raise LeaseError(f"the leases cannot be renewed: {self.where} is busy with other nodes")

    def read_config(self) -> SharedConfig | None:
        """See `LeaseStore.read_config`."""
        found: SharedConfig | None = self._call("read_config")
        return found

    def offer_config(self, text: str, cameras: Sequence[str]) -> SharedConfig:
        """See `LeaseStore.offer_config`."""
        newest: SharedConfig = self._call("offer_config", text, list(cameras))
        return newest

    def check(self) -> str:
        """See `LeaseStore.check`."""
        return str(self._call("check"))

    def close(self) -> None:
        """See `LeaseStore.close`. The coordinator goes on."""

    def _call(self, name: str, *arguments: Any) -> Any:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(
                getattr(self._keeper, name).remote(*arguments),
                timeout=TIMEOUT_S if self._has_answered else _START_S,
            )
        except errors.GetTimeoutError:
            raise LeaseError(f"the leases cannot be renewed: {self.where} does not answer within 2 s") from None
        except errors.RayTaskError as error:
            raise LeaseError(str(error.cause or error).splitlines()[0]) from None
        except errors.RayError as error:
            reason = str(error).splitlines()[0]
            raise LeaseError(f"the leases cannot be renewed: {self.where} is away ({reason})") from None
        self._has_answered = True
        return answer


def open_ray_store(address: str, group: str) -> RayLeaseStore:
    """The leases of a group of cameras on the cluster at HOST:PORT or `auto`; the coordinator is started where there is
    none. Raises `ConfigError`, `LeaseError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", group):
        raise ConfigError(
            f"the name of a group of cameras is {group!r}: give one of letters, digits and . _ -, at most 63"
        )
    try:
        ray = connect_cluster(address)
    except ClusterError as error:
        raise LeaseError(str(error)) from error
    head = next((node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]), None)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    keeper = (
        ray.remote(LeaseKeeper)
        .options(
            name=f"leases-{group}",
            namespace="groundstream",
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            scheduling_strategy="DEFAULT" if head is None else strategy(head, soft=False),
        )
        .remote(group)
    )
    return RayLeaseStore(ray, keeper, f"the coordinator of the Ray cluster {address}")


def lease_address(cluster: str, group: str) -> str:
    """The address by which `open_lease_store` finds these leases."""
    return f"ray://{cluster}/{group}"


def group_of(file: Path) -> str:
    """The name of the group of cameras of a configuration file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "cameras"
