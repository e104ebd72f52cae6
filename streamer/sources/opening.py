"""Sources by address: decides which kind of source reads an address.

Other distributions add schemes by entry points: group `groundstream.sources`, name = scheme, value = a function that
takes the address, `name=` and `on_state=` and returns a `Source`.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlsplit

from sinks.address import redact
from sinks.tls import TlsOptions
from streamer.errors import SourceAddressError, SourceError
from streamer.object_store import ObjectStoreError, is_pattern, list_objects, parse_s3
from streamer.sources.address import natural, stream_name, unique
from streamer.sources.camera_link import CameraLink
from streamer.sources.clock import ClockLimits
from streamer.sources.file import FileSource
from streamer.sources.images import ImageSource, image_names
from streamer.sources.live import LiveSource
from streamer.sources.source import OnState, Source
from streamer.sources.web import HttpConnection, WebError
from streamer.sources.web_kind import VIDEO_SUFFIXES, find_kind, likely_live

if TYPE_CHECKING:
    from streamer.sources.hardware import Decode

_ASK_S = 5.0
_KINDS = "a video file, a folder, s3://, rtsp://, rtsps://, http://, https://, webcam:0 or synthetic:street"


def open_sources(
    address: str | Iterable[str],
    *,
    name: str | None = None,
    on_state: OnState | None = None,
    start_time_ns: int | None = None,
    transport: Literal["tcp", "udp"] = "tcp",
    stall_s: float | None = None,
    poll_s: float | None = None,
    clock: ClockLimits | None = None,
    tls: TlsOptions | None = None,
    strict: bool = False,
    live: bool | None = None,
    fps: float | None = None,
    track: int | None = None,
    decode: Decode = "cpu",
    taken: Collection[str] = (),
) -> list[Source]:
    """The sources that `address` (or several) stands for; reading begins when one is iterated.

    `name` replaces the name made from the address; names that are `taken` are not given again. `start_time_ns`
    (UTC) is when a recording began, `track` the number of its video track, from 0. For cameras: `transport` of RTSP,
    which gives way to the other one where the camera refuses it; `stall_s` without a new picture until the stream
    counts as stalled, by default after its own pace; `poll_s` between two requests of a snapshot address; `clock` for
    what is known of its times; `strict` for a first connection that must succeed. `tls` says whom to trust at `https`
    and `rtsps` addresses. `live` says whether an `http(s)` address is a camera; unsaid, the server is asked, for at
    most some seconds. `fps` is the rate of a folder of images, `decode` the device that decodes videos.

    Raises `SourceAddressError` where an address cannot be understood, `SourceError` where there is nothing at it.
    """
    sources: list[Source] = []
    used = set(taken)
    secure = tls or TlsOptions()
    link: CameraLink | None

    def called(place: str) -> str:
        chosen = unique(name or stream_name(place), used)
        used.add(chosen)
        return chosen

    def read_recording(place: str) -> FileSource:
        return FileSource(
            place,
            called(place),
            start_time_ns=start_time_ns,
            track=track,
            decode=decode,
            tls=secure,
            on_state=on_state,
        )

    for one in [address] if isinstance(address, str) else address:
        scheme = "" if Path(one).exists() else one.partition(":")[0].lower()
        if scheme in ("rtsp", "rtsps", "http", "https"):
            _check_url(one)
        if scheme in ("rtsp", "rtsps"):
            link = _rtsp(one, transport)
        elif scheme == "webcam":
            link = _webcam(one)
        elif scheme in ("http", "https"):
            if not (_asked_live(one, secure) if live is None else live):
                sources.append(read_recording(one))
                continue
            link = CameraLink(one)
        else:
            link = None
        if link is not None:
            link = replace(
                link,
                stall_s=stall_s,
                poll_s=poll_s,
                track=track,
                decode=decode,
                tls=secure,
                clock=clock or ClockLimits(),
            )
            called_by = one.replace(":", "") if scheme == "webcam" else one
            sources.append(LiveSource(link, called(called_by), strict=strict, on_state=on_state))
        elif scheme == "s3":
            sources += [read_recording(place) for place in _stored_recordings(one, secure)]
        elif scheme == "synthetic":
            sources.append(_synthetic(one, called("street"), on_state))
        elif added := tuple(entry_points(group="groundstream.sources", name=scheme)):
            source: Source = added[0].load()(one, name=called(one), on_state=on_state)
            sources.append(source)
        elif scheme and "://" in one:
            raise SourceAddressError(f"{redact(one)} is not a known kind of address: give {_KINDS}")
        else:
            for path in _paths(one):
                if path.is_dir():
                    sources.append(
                        ImageSource(path, called(str(path)), fps=fps, start_time_ns=start_time_ns, on_state=on_state)
                    )
                else:
                    sources.append(read_recording(str(path)))
    return sources


def _check_url(address: str) -> None:
    shown = redact(address)
    try:
        url = urlsplit(address)
        # An "@" behind "user:..." and a slash belongs to a password that was not encoded.
        is_cut = ":" in url.netloc and "@" in address.partition("://")[2].removeprefix(url.netloc)
        good = bool(url.hostname) and not is_cut and (url.port is None or url.port > 0)
    except ValueError:
        good = False
    if not good:
        raise SourceAddressError(
            f"{shown} is not a complete address: give SCHEME://[USER:PASSWORD@]HOST[:PORT]/PATH, "
            "with / ? # @ in the password written as %2F %3F %23 %40"
        )


def _asked_live(address: str, tls: TlsOptions) -> bool:
    """Whether a web address is a camera, by what the server says; where it says nothing, by the path's suffix."""
    try:
        return find_kind(HttpConnection(address, tls, timeout_s=_ASK_S), _ASK_S).live
    except WebError:
        return likely_live(address)


def _rtsp(address: str, transport: str) -> CameraLink:
    if transport not in ("tcp", "udp"):
        raise SourceAddressError(f"RTSP cannot come over {transport!r}: give tcp or udp")
    # The session description says what is sent; looking at the stream itself first would only cost a second. FFmpeg
    # goes on to the other transport where a camera answers 461.
    options = {"rtsp_transport": "tcp+udp", "analyzeduration": "0", "probesize": "32", "allowed_media_types": "video"}
    if transport == "tcp":
        options["rtsp_flags"] = "prefer_tcp"
    return CameraLink(address, kind="rtsp", over_udp=transport == "udp", options=options)


def _webcam(address: str) -> CameraLink:
    number = address.partition(":")[2]
    if not number.isdecimal():
        raise SourceAddressError(f"{address} is not a camera: give webcam:0 for the first, webcam:1 for the next")
    if sys.platform == "darwin":
        return CameraLink(number, kind="device", form="avfoundation")
    if not sys.platform.startswith("linux"):
        raise SourceAddressError(
            f"webcams can be read on Linux and macOS, this is {sys.platform}: give an RTSP address"
        )
    return CameraLink(f"/dev/video{number}", kind="device", form="video4linux2")


def _synthetic(address: str, name: str, on_state: OnState | None) -> Source:
    from streamer.sources.street import StreetSource

    scene, _, query = address.partition(":")[2].partition("?")
    if scene != "street":
        raise SourceAddressError(f"{address} names an unknown scene: give synthetic:street")
    return StreetSource.from_query(dict(parse_qsl(query)), name, on_state)


def _stored_recordings(text: str, tls: TlsOptions) -> list[str]:
    """The addresses of the recordings that an `s3://` address stands for."""
    address = parse_s3(text)
    if not is_pattern(address):
        return [text]
    try:
        found = list_objects(address, tls)
    except ObjectStoreError as error:
        raise SourceError(f"{redact(text)} cannot be listed: {error}") from error
    videos = [place for place in found if PurePosixPath(parse_s3(place).key).suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise SourceError(f"{redact(text)} holds no videos: give a folder or a pattern that does, or an object")
    return natural(videos)


def _paths(address: str) -> list[Path]:
    """The files that a path, folder or glob stands for; a folder of images stands for itself."""
    path = Path(address).expanduser()
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file()]
        if not found and image_names(path):
            return [path]
    elif path.exists():
        return [path]
    else:
        found = [place for match in glob.glob(str(path), recursive=True) if (place := Path(match)).is_file()]
    if not found and path.is_dir():
        raise SourceError(f"{address} holds no videos and no images: give a folder that does, or a file")
    if not found:
        camera = re.fullmatch(r"(?:/dev/video)?(\d+)", address)
        hint = f"for a camera of this machine write webcam:{camera[1]}; else " if camera else ""
        raise SourceError(f"{address} does not exist: {hint}give {_KINDS}")
    return [Path(entry) for entry in natural(str(entry) for entry in found)]
