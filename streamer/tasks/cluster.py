"""Work behind `groundstream cluster`: the nodes that share cameras, shown and drained."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import typer
from rich.table import Table

from streamer.cluster.cluster_status import ClusterStatus, describe_book
from streamer.cluster.lease_address import open_lease_store
from streamer.cluster.lease_book import LeaseBook
from streamer.cluster.lease_store import LeaseStore
from streamer.tasks.console import user_console


def read_status(store: LeaseStore) -> ClusterStatus:
    """The present state of all nodes and cameras. Raises `LeaseError`."""
    return store.update(describe_book)


def show_status(address: str, *, as_json: bool) -> None:
    """Print the nodes and who holds each camera. Raises `ConfigError`, `LeaseError`."""
    with _open_store(address) as store:
        status = read_status(store)
    if as_json:
        typer.echo(json.dumps(asdict(status), indent=2))
        return
    console = user_console()
    nodes = Table("node", "state", "cameras", "capacity", "revision", "renewed")
    for node in status.nodes:
        capacity = "" if node.capacity is None else str(node.capacity)
        nodes.add_row(
            *(node.name, node.state, str(node.cameras), capacity, str(node.revision), f"{node.renewed_s:.1f} s ago")
        )
    cameras = Table("camera", "holder", "epoch", "moves to")
    for camera in status.cameras:
        cameras.add_row(camera.name, camera.holder or "none", str(camera.epoch), camera.moving_to or "")
    console.print(nodes, cameras, f"configuration: revision {status.revision}")


def drain_node(address: str, name: str, *, is_draining: bool, as_json: bool) -> None:
    """Have a node hand over its cameras, or take cameras again, and print what it holds now. Raises `ConfigError`,
    `LeaseError`."""

    def change(book: LeaseBook) -> ClusterStatus:
        book.drain_node(name, is_draining=is_draining)
        return describe_book(book)

    with _open_store(address) as store:
        status = store.update(change)
    [node] = [node for node in status.nodes if node.name == name]
    if as_json:
        typer.echo(json.dumps(asdict(node), indent=2))
    elif is_draining:
        others = [one for one in status.nodes if one.name != name and one.state in ("ready", "joining")]
        if others or not node.cameras:
            typer.echo(f"{name} hands over {node.cameras} cameras and takes no others until --undo or its next start")
        else:
            typer.echo(f"{name} keeps its {node.cameras} cameras until another node is ready to take them")
    else:
        typer.echo(f"{name} takes cameras again")


@contextlib.contextmanager
def _open_store(address: str) -> Iterator[LeaseStore]:
    store = open_lease_store(address)
    try:
        yield store
    finally:
        store.close()
