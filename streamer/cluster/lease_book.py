"""Leases of cameras: which node watches which camera, under which epoch, by rules without clocks or storage.

A node renews its leases once a second by counting up its `beat`. Clocks of different machines are never compared: each
observer measures on its own clock for how long a beat stands still. A node stops using its leases `FENCE_S` after it
began to ask for its last granted renewal; others take its cameras once its beat has stood still for `EXPIRE_S`, which
is later. Each grant raises the camera's epoch, the `run` of its events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from streamer.errors import StreamerError

RENEW_EVERY_S = 1.0
FENCE_S = 4.0
"""Seconds after the start of the last granted renewal at which a node stops using its leases."""
EXPIRE_S = 6.0
"""Seconds for which a beat stands still before others take the cameras of the node."""
READY_AFTER_S = 2.0
"""Seconds for which a node that joins takes no camera, so that nodes that start together share them."""


class LeaseError(StreamerError):
    """The leases of cameras cannot be read, or do not allow what was asked for."""


@dataclass(slots=True)
class NodeRecord:
    """One node. `session` is the process that has the name; `revision` the configuration that it uses; `capacity` the
    most cameras that it takes, None for no limit; `seen_ns` its own time (UTC) of its last renewal; `page` the address
    of its page, where other machines reach it."""

    name: str
    session: str
    beat: int = 0
    is_ready: bool = False
    is_draining: bool = False
    capacity: int | None = None
    revision: int = 0
    seen_ns: int = 0
    page: str = ""


@dataclass(slots=True)
class CameraRecord:
    """One camera. `holder` and `session` are empty while it is free; `moving_to` is the node to which its holder shall
    hand it over. `outage_cause` and `outage_since_ns` say why and since when (UTC) the camera was not watched before
    its latest grant; `is_outage_reported` whether its former holder has said so in an event. `is_wanted` is false once
    the configuration no longer has it."""

    name: str
    is_wanted: bool = True
    epoch: int = 0
    holder: str = ""
    session: str = ""
    moving_to: str = ""
    outage_cause: str = ""
    outage_since_ns: int = 0
    is_outage_reported: bool = False


@dataclass(frozen=True, slots=True)
class CameraLease:
    """The right to watch a camera: `epoch` is the run of its events. `outage_since_ns` (UTC nanoseconds) is None where
    the camera was never watched before."""

    camera: str
    epoch: int
    outage_cause: str = ""
    outage_since_ns: int | None = None
    is_outage_reported: bool = False


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """The answer to a granted renewal: the leases of the node, those it shall hand over with the node that gets them
    (empty where the configuration no longer has the camera), and the revision of the configuration."""

    leases: Mapping[str, CameraLease]
    handovers: Mapping[str, str]
    revision: int


class BeatWatch:
    """Measures for how long the beats of nodes stand still, on the clock of one observer."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int, float]] = {}

    def find_expired(self, nodes: Iterable[NodeRecord], now_s: float) -> frozenset[str]:
        """Names of the nodes whose beat has stood still for `EXPIRE_S`. `now_s` is read after the records were."""
        seen: dict[str, tuple[str, int, float]] = {}
        for node in nodes:
            before = self._seen.get(node.name)
            is_same = before is not None and before[:2] == (node.session, node.beat)
            seen[node.name] = before if before is not None and is_same else (node.session, node.beat, now_s)
        self._seen = seen
        return frozenset(name for name, (_, _, since_s) in seen.items() if now_s - since_s >= EXPIRE_S)

    def forget_all(self) -> None:
        """Measure every node from the next look on, because none could renew for a while."""
        self._seen = {}


@dataclass(eq=False, slots=True)
class LeaseBook:
    """All nodes and cameras, and the rules by which they change. Used inside one transaction of a lease store.

    `revision` is that of the stored configuration.
    """

    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    cameras: dict[str, CameraRecord] = field(default_factory=dict)
    revision: int = 0

    def join_node(
        self,
        name: str,
        session: str,
        now_ns: int,
        *,
        capacity: int | None = None,
        page: str = "",
        replaces: Collection[str] = (),
        expired: Collection[str] = (),
    ) -> bool:
        """Give the name to a session; false while another session has it.

        `replaces` are former sessions of the same process, which has stopped using their leases: its cameras stay with
        the node under new epochs. `expired` are the nodes whose beat stands still.
        """
        self.expire_nodes(expired)
        former = self.nodes.get(name)
        if former is not None and former.session not in replaces:
            return False
        self.nodes[name] = NodeRecord(name, session, capacity=capacity, seen_ns=now_ns, page=page)
        for camera in self.cameras.values():
            if former is not None and (camera.holder, camera.session) == (name, former.session):
                cause = f"node {name} could not renew its lease"
                self._free_camera(camera, cause, former.seen_ns, is_reported=False)
                if camera.is_wanted:
                    self._grant_camera(camera, self.nodes[name], now_ns)
        return True

    def renew_node(
        self, name: str, session: str, now_ns: int, *, is_ready: bool, revision: int, expired: Collection[str] = ()
    ) -> LeaseAnswer | None:
        """Renew all leases of a node and give it free cameras; None where the session has lost the name."""
        node = self.nodes.get(name)
        if node is None or node.session != session:
            return None
        node.beat += 1
        node.seen_ns = now_ns
        node.is_ready = is_ready
        node.revision = revision
        self.expire_nodes(set(expired) - {name})
        self._take_free(node, now_ns)
        self._plan_handovers(node)
        held = [camera for camera in self.cameras.values() if camera.holder == name]
        return LeaseAnswer(
            {camera.name: _lease_of(camera) for camera in held},
            {camera.name: camera.moving_to for camera in held if camera.moving_to or not camera.is_wanted},
            self.revision,
        )

    def release_camera(self, name: str, session: str, camera: str, epoch: int, now_ns: int) -> None:
        """Free a camera whose holder has ended its work on it; nothing where the lease is over already."""
        record = self.cameras.get(camera)
        if record is not None and (record.holder, record.session, record.epoch) == (name, session, epoch):
            target = record.moving_to
            cause = f"moved to node {target}" if target else f"node {name} released the camera"
            self._free_camera(record, cause, now_ns, is_reported=True)
            record.moving_to = target

    def leave_node(self, name: str, session: str, now_ns: int) -> None:
        """Free the cameras of a node that has ended its work, and forget it."""
        node = self.nodes.get(name)
        if node is None or node.session != session:
            return
        for camera in self.cameras.values():
            if (camera.holder, camera.session) == (name, session):
                self._free_camera(camera, f"node {name} was stopped", now_ns, is_reported=True)
        del self.nodes[name]

    def drain_node(self, name: str, *, is_draining: bool) -> NodeRecord:
        """Let a node hand over all its cameras, or take cameras again. Raises `LeaseError` for an unknown node."""
        node = self.nodes.get(name)
        if node is None:
            known = ", ".join(sorted(self.nodes)) or "none"
            raise LeaseError(f"there is no node {name!r}: the nodes are {known}")
        node.is_draining = is_draining
        for camera in self.cameras.values():
            if camera.holder == name and not is_draining:
                camera.moving_to = ""
        return node

    def set_cameras(self, names: Iterable[str]) -> None:
        """Want these cameras and no others; epochs of others are kept, in case that one returns."""
        wanted = dict.fromkeys(names)
        for name in wanted:
            self.cameras.setdefault(name, CameraRecord(name))
        for camera in self.cameras.values():
            camera.is_wanted = camera.name in wanted

    def expire_nodes(self, names: Collection[str]) -> None:
        """Forget nodes whose beat stands still, and free their cameras."""
        for name in sorted(names):
            node = self.nodes.pop(name, None)
            if node is None:
                continue
            for camera in self.cameras.values():
                if (camera.holder, camera.session) == (name, node.session):
                    cause = f"node {name} stopped renewing its lease"
                    self._free_camera(camera, cause, node.seen_ns, is_reported=False)

    def _take_free(self, node: NodeRecord, now_ns: int) -> None:
        """Grant the free cameras that fall to `node` by the common rule, which every node computes alike."""
        loads = self._loads(with_new=True)  # their share waits for them, so that nodes that start together share all
        for name in sorted(self.cameras):
            camera = self.cameras[name]
            if camera.holder or not camera.is_wanted:
                continue
            target = self._choose_node(camera, loads)
            if target is None:
                continue
            loads[target] += 1
            if target == node.name and node.is_ready:
                self._grant_camera(camera, node, now_ns)

    def _plan_handovers(self, node: NodeRecord) -> None:
        """Choose cameras that `node` hands over: all while it drains, else one at a time to a node with fewer."""
        loads = self._loads()
        held = [camera for camera in self.cameras.values() if camera.holder == node.name and camera.is_wanted]
        for camera in held:
            if camera.moving_to and camera.moving_to not in loads:
                camera.moving_to = ""  # that node is gone or takes none any more
        if node.is_draining:
            for camera in held:
                loads.update({camera.moving_to: loads[camera.moving_to] + 1} if camera.moving_to else {})
            for camera in sorted(held, key=lambda camera: camera.name):
                if not camera.moving_to and (target := self._choose_node(camera, loads)) is not None:
                    camera.moving_to = target
                    loads[target] += 1
            return
        wanted = [camera for camera in self.cameras.values() if camera.is_wanted]
        if node.name not in loads or any(camera.moving_to or not camera.holder for camera in wanted):
            return
        roomy = [name for name in loads if self._has_room(name, loads)]
        if not roomy or loads[node.name] < max(loads.values()):
            return
        target = min(roomy, key=lambda name: (loads[name], name))
        if loads[node.name] - loads[target] >= 2:
            max(held, key=lambda camera: _rendezvous(camera.name, target)).moving_to = target

    def _choose_node(self, camera: CameraRecord, loads: Mapping[str, int]) -> str | None:
        """The node that a free camera falls to: where it moves, else that of least load, ties by rendezvous hash."""
        if camera.moving_to in loads and self._has_room(camera.moving_to, loads):
            return camera.moving_to
        roomy = [name for name in loads if self._has_room(name, loads)]
        return min(roomy, key=lambda name: (loads[name], -_rendezvous(camera.name, name)), default=None)

    def _loads(self, *, with_new: bool = False) -> dict[str, int]:
        """How many wanted cameras each node holds, of the nodes that take cameras; `with_new` also of those that are
        not ready yet."""
        loads = {
            node.name: 0
            for node in self.nodes.values()
            if not node.is_draining and (node.revision == self.revision if node.is_ready else with_new)
        }
        for camera in self.cameras.values():
            if camera.is_wanted and camera.holder in loads:
                loads[camera.holder] += 1
        return loads

    def _has_room(self, name: str, loads: Mapping[str, int]) -> bool:
        capacity = self.nodes[name].capacity
        return capacity is None or loads[name] < capacity

    @staticmethod
    def _grant_camera(camera: CameraRecord, node: NodeRecord, now_ns: int) -> None:
        camera.epoch = max(camera.epoch + 1, now_ns // 1_000_000)
        camera.holder, camera.session, camera.moving_to = node.name, node.session, ""

    @staticmethod
    def _free_camera(camera: CameraRecord, cause: str, since_ns: int, *, is_reported: bool) -> None:
        camera.holder = camera.session = camera.moving_to = ""
        camera.outage_cause, camera.outage_since_ns = cause, since_ns
        camera.is_outage_reported = is_reported


class LeaseFence:
    """The node's own knowledge of whether its leases are good, on its own clock. Once over, a fence stays so.

    Times are seconds of a clock that goes on while the machine sleeps.
    """

    def __init__(self, started_s: float) -> None:
        """`started_s`: when the request was begun by which the node joined."""
        self._deadline_s = started_s + FENCE_S
        self._is_over = False

    def is_good(self, now_s: float) -> bool:
        """Whether events may be sent at `now_s`."""
        self._is_over = self._is_over or now_s >= self._deadline_s
        return not self._is_over

    def extend(self, started_s: float, now_s: float) -> bool:
        """Count a renewal that was granted now and asked for at `started_s`; false where the fence is over."""
        if self.is_good(now_s):
            self._deadline_s = started_s + FENCE_S
        return self.is_good(now_s)

    def end(self) -> None:
        """The session was lost or given up."""
        self._is_over = True


def _lease_of(camera: CameraRecord) -> CameraLease:
    since_ns = camera.outage_since_ns if camera.outage_cause else None
    return CameraLease(camera.name, camera.epoch, camera.outage_cause, since_ns, camera.is_outage_reported)


def _rendezvous(camera: str, node: str) -> int:
    """The weight of a node for a camera: the same everywhere, independent of the other nodes."""
    return int.from_bytes(hashlib.sha256(f"{camera}\0{node}".encode()).digest()[:8], "big")
