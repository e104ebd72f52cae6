"""`groundstream cameras`: ONVIF cameras of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.commands.groups import CommandGroup

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)


@app.command("discover")
def discover_cameras(
    timeout: Annotated[
        float, typer.Option(min=0.1, max=60, metavar="SECONDS", help="How long answers are taken.")
    ] = 3.0,
    interface: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="IPv4 address of this machine to probe from; repeatable. Default: all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find ONVIF cameras in the local network (WS-Discovery)."""
    from streamer.tasks.cameras import show_devices

    raise typer.Exit(show_devices(timeout, tuple(interface or ()), as_json=as_json))


@app.command("add")
def add_camera(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="onvif://USER:PASSWORD@HOST[:PORT]")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration that gets the stream.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the stream. Default: from model and host.")] = "",
    profile: Annotated[
        str, typer.Option(metavar="PROFILE", help="Media profile, by token or name. Default: the largest picture.")
    ] = "",
    with_password: Annotated[
        bool, typer.Option(help="Write the password itself, not the name of an environment variable.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read the profiles of an ONVIF camera and add one as a stream."""
    from streamer.tasks import cameras

    options = cameras.AddOptions(config, name, profile, with_password)
    cameras.add_camera(address, options, as_json=as_json)
