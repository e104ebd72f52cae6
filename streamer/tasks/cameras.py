"""Work of `groundstream cameras`: finds ONVIF cameras and writes them into a configuration."""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sinks.permissions import create_private
from streamer.analysis.queries import query_slug
from streamer.errors import ConfigError, SourceAddressError
from streamer.onvif import CameraDescription, CameraProfile, OnvifAddress, discover_devices, read_camera
from streamer.onvif.device import encode_account
from streamer.tasks.console import make_folder, user_console, write_text


@dataclass(frozen=True, slots=True)
class AddOptions:
    """What `cameras add` writes: into which file, under which name, from which profile (token or name).

    The password goes into the file as `${VARIABLE}` unless `with_password`.
    """

    config: Path | None = None
    name: str = ""
    profile: str = ""
    with_password: bool = False


def show_devices(timeout_s: float, interfaces: tuple[str, ...], *, as_json: bool) -> int:
    """Prints the ONVIF devices of the network. Returns the exit code: 1 where none answered."""
    devices = discover_devices(timeout_s, interfaces)
    if as_json:
        print(json.dumps([asdict(device) for device in devices], indent=2))  # noqa: T201 - the output asked for
        return 0 if devices else 1
    if not devices:
        user_console(stderr=True).print(
            f"no ONVIF camera answered within {timeout_s:g} s: cameras answer only in their own network segment; "
            "give one with `groundstream cameras add onvif://USER:PASSWORD@HOST`"
        )
        return 1
    table = Table("host", "name", "hardware", "service")
    for device in devices:
        table.add_row(device.host, device.name, device.hardware, device.address)
    user_console().print(table)
    return 0


def add_camera(text: str, options: AddOptions, *, as_json: bool) -> None:
    """Reads a camera's profiles, prints them, and appends one as a stream to the configuration, if one is given.

    Raises `SourceError`, and `ConfigError` where the file cannot take the stream.
    """
    address = OnvifAddress.parse(text)
    camera = asyncio.run(read_camera(address))
    chosen = _choose_profile(camera, options.profile, address)
    name = options.name or query_slug(f"{camera.model} {address.host}")
    stream, variable = _stream_entry(name, address, chosen, with_password=options.with_password)
    if options.config is not None:
        _append_stream(options.config, stream, variable, encode_account(address.password))
    if as_json:
        answer = {"camera": asdict(camera), "stream": stream, "variable": variable}
        print(json.dumps(answer, indent=2))  # noqa: T201 - the output asked for
        return
    _print_camera(camera, chosen)
    console = user_console()
    if options.config is not None:
        console.print(f"added to {options.config} as the stream {name}")
    else:
        console.print("stream for a configuration (--config FILE writes it there):")
        console.print(f"streams:\n  - name: {json.dumps(name)}\n    source: {json.dumps(stream['source'])}")
    if variable:
        console.print(
            f"set the variable {variable} to the camera's password, percent-encoded, before groundstream starts"
        )


def _choose_profile(camera: CameraDescription, wanted: str, address: OnvifAddress) -> CameraProfile:
    if not wanted:
        return camera.profiles[0]
    for profile in camera.profiles:
        if wanted in (profile.token, profile.name):
            return profile
    known = ", ".join(f"{profile.token} ({profile.name})" for profile in camera.profiles)
    raise SourceAddressError(f"the camera {address.name} has no profile {wanted!r}: it has {known}")


def _stream_entry(
    name: str, address: OnvifAddress, profile: CameraProfile, *, with_password: bool
) -> tuple[dict[str, Any], str]:
    """The stream as configuration, and the variable that it reads the password from, if it does."""
    password, variable = encode_account(address.password), ""
    if address.password and not with_password:
        variable = re.sub(r"\W+", "_", f"{name}_password").upper().lstrip("_0123456789") or "CAMERA_PASSWORD"
        password = f"${{{variable}}}"
    return {"name": name, "source": profile.signed_uri(encode_account(address.user), password)}, variable


def _append_stream(path: Path, stream: dict[str, Any], variable: str, password: str) -> None:
    """Appends the stream, keeping the file's comments; a file that does not exist is created."""
    from streamer.web.config_document import ConfigDocument, NodeEdit

    if not path.exists():
        text = f"streams:\n  - name: {json.dumps(stream['name'])}\n    source: {json.dumps(stream['source'])}\n"
        if not variable and password:  # which then stands in the file
            create_private(make_folder(path.parent) / path.name)
        write_text(path, text)
        return
    before = os.environ.get(variable) if variable else None
    if variable and before is None:  # the check of the new configuration reads it
        os.environ[variable] = password
    try:
        document = ConfigDocument(path, path.with_name(f".{path.name}.overrides"))
        if any(known.name == stream["name"] for known in document.load().streams):
            raise ConfigError(f"{path} has a stream {stream['name']} already: choose another name with --name")
        if obstacle := document.obstacle():
            raise ConfigError(f"{path} cannot take the stream: {obstacle}")
        document.store(document.draft([NodeEdit(("streams",), stream, "append")]))
    finally:
        if variable and before is None:
            del os.environ[variable]


def _print_camera(camera: CameraDescription, chosen: CameraProfile) -> None:
    table = Table("profile", "name", "video", "size", "frames/s", "")
    for profile in camera.profiles:
        size = f"{profile.width}x{profile.height}" if profile.width else "unknown"
        rate = f"{profile.fps:g}" if profile.fps else "unknown"
        table.add_row(profile.token, profile.name, profile.codec, size, rate, "chosen" if profile == chosen else "")
    console = user_console()
    console.print(f"{camera.manufacturer} {camera.model}, firmware {camera.firmware}")
    console.print(table)
