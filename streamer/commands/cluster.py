"""`groundstream cluster`: the nodes that share cameras by leases."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer.commands.groups import CommandGroup

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)

LeaseAddress = Annotated[
    str,
    typer.Option(
        "--lease",
        metavar="ADDRESS",
        envvar="GROUNDSTREAM_LEASE",
        help="Where the leases are: postgresql://..., or sqlite:PATH.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("status")
def status(lease: LeaseAddress, as_json: AsJson = False) -> None:
    """Print the nodes, and who holds each camera."""
    from streamer.tasks.cluster import show_status

    show_status(lease, as_json=as_json)


@app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of the node, as `cluster status` prints it.")],
    lease: LeaseAddress,
    undo: Annotated[bool, typer.Option("--undo", help="Let the node take cameras again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a node hand over all its cameras before maintenance.

    It takes none until --undo, or until its monitor is started again.
    """
    from streamer.tasks.cluster import drain_node

    drain_node(lease, node, is_draining=not undo, as_json=as_json)
