"""State of the nodes that share cameras, as commands and pages show it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from streamer.cluster.lease_book import EXPIRE_S, CameraRecord, LeaseBook, NodeRecord


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. `state` is `ready`, `joining`, `draining`, `drained`, `behind` (it does not use the present
    configuration) or `silent`; `renewed_s` seconds have passed since its last renewal, by the clocks of both
    machines; `page` is the address of its page, empty where other machines do not reach one."""

    name: str
    state: str
    cameras: int
    capacity: int | None
    revision: int
    renewed_s: float
    page: str


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """One camera. `holder` is None while no node watches it; `moving_to` the node that gets it next, if known."""

    name: str
    holder: str | None
    epoch: int
    moving_to: str | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """All nodes and cameras; `revision` is that of the configuration."""

    revision: int
    nodes: list[NodeStatus]
    cameras: list[CameraStatus]


def describe_book(book: LeaseBook) -> ClusterStatus:
    """The present state of all nodes and cameras."""
    now_ns = time.time_ns()
    wanted = sorted((one for one in book.cameras.values() if one.is_wanted), key=lambda one: one.name)
    return ClusterStatus(
        book.revision,
        [_describe_node(book.nodes[name], wanted, book.revision, now_ns) for name in sorted(book.nodes)],
        [CameraStatus(one.name, one.holder or None, one.epoch, one.moving_to or None) for one in wanted],
    )


def _describe_node(node: NodeRecord, cameras: list[CameraRecord], revision: int, now_ns: int) -> NodeStatus:
    held = sum(camera.holder == node.name for camera in cameras)
    renewed_s = max(0.0, (now_ns - node.seen_ns) / 1e9)
    if renewed_s > EXPIRE_S:
        state = "silent"
    elif node.is_draining:
        state = "draining" if held else "drained"
    elif not node.is_ready:
        state = "joining"
    else:
        state = "ready" if node.revision == revision else "behind"
    return NodeStatus(node.name, state, held, node.capacity, node.revision, round(renewed_s, 1), node.page)
