"""Sources by address: decides which kind of source reads an address.

Other distributions add schemes by entry points: group `groundstream.sources`, name = scheme, value = a function that
takes the address, `name=` and `on_state=` and returns a `Source`.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Collection, Iterable
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from sinks.address import redact
from streamer.errors import SourceAddressError, SourceError
from streamer.sources.address import natural, stream_name, unique
from streamer.sources.file import FileSource
from streamer.sources.images import ImageSource, image_names
from streamer.sources.live import CameraLink, LiveSource
from streamer.sources.source import OnState, Source

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
_KINDS = "a video file, a folder, rtsp://, rtsps://, http://, https://, webcam:0 or synthetic:street"


def open_sources(
    address: str | Iterable[str],
    *,
    name: str | None = None,
    on_state: OnState | None = None,
    start_time_ns: int | None = None,
    transport: Literal["tcp", "udp"] = "tcp",
    stall_s: float | None = None,
    strict: bool = False,
    live: bool | None = None,
    fps: float | None = None,
    track: int | None = None,
    taken: Collection[str] = (),
) -> list[Source]:
    """The sources that `address` (or several) stands for; reading begins when one is iterated.

    `name` replaces the name made from the address; names that are `taken` are not given again. `start_time_ns`
    (UTC) is when a recording began. For cameras: `transport` of RTSP, `stall_s` without a new picture until the
    stream counts as stalled, and `strict` for a first connection that must succeed. `live` says whether an
    `http(s)` address is a camera; unsaid, it is one unless its path ends like a video file. `fps` is the rate of a
    folder of images.

    Raises `SourceAddressError` where an address cannot be understood, `SourceError` where there is nothing at it.
    """
    sources: list[Source] = []
    used = set(taken)

    def called(place: str) -> str:
        chosen = unique(name or stream_name(place), used)
        used.add(chosen)
        return chosen

    for one in [address] if isinstance(address, str) else address:
        scheme = "" if Path(one).exists() else one.partition(":")[0].lower()
        if scheme in ("rtsp", "rtsps"):
            _check_url(one)
            sources.append(LiveSource(_rtsp(one, transport, stall_s), called(one), strict=strict, on_state=on_state))
        elif scheme in ("http", "https"):
            _check_url(one)
            suffix = PurePosixPath(urlsplit(one).path).suffix.lower()
            if live if live is not None else suffix not in VIDEO_SUFFIXES:
                sources.append(LiveSource(_http(one, suffix, stall_s), called(one), strict=strict, on_state=on_state))
            else:
                sources.append(
                    FileSource(one, called(one), start_time_ns=start_time_ns, track=track, on_state=on_state)
                )
        elif scheme == "webcam":
            sources.append(
                LiveSource(_webcam(one, stall_s), called(one.replace(":", "")), strict=strict, on_state=on_state)
            )
        elif scheme == "synthetic":
            sources.append(_synthetic(one, called("street"), on_state))
        elif added := tuple(entry_points(group="groundstream.sources", name=scheme)):
            source: Source = added[0].load()(one, name=called(one), on_state=on_state)
            sources.append(source)
        elif scheme and "://" in one:
            raise SourceAddressError(f"{redact(one)} is no address of a kind known here: give {_KINDS}")
        else:
            for path in _paths(one):
                if path.is_dir():
                    sources.append(
                        ImageSource(path, called(str(path)), fps=fps, start_time_ns=start_time_ns, on_state=on_state)
                    )
                else:
                    sources.append(
                        FileSource(
                            str(path), called(str(path)), start_time_ns=start_time_ns, track=track, on_state=on_state
                        )
                    )
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
            f"{shown} is no complete address: give SCHEME://[USER:PASSWORD@]HOST[:PORT]/PATH, "
            "with / ? # @ in the password written as %2F %3F %23 %40"
        )


def _rtsp(address: str, transport: str, stall_s: float | None) -> CameraLink:
    if transport not in ("tcp", "udp"):
        raise SourceAddressError(f"RTSP cannot come over {transport!r}: give tcp or udp")
    # The session description says what is sent; looking at the stream itself first would only cost a second.
    options = {"rtsp_transport": transport, "analyzeduration": "0", "probesize": "32", "allowed_media_types": "video"}
    return CameraLink(address, options=options, stall_s=stall_s or 4.0)


def _http(address: str, suffix: str, stall_s: float | None) -> CameraLink:
    if suffix == ".m3u8":  # segments of some seconds each
        return CameraLink(address, stall_s=stall_s or 20.0, bursts=True)
    return CameraLink(address, stall_s=stall_s or 4.0)


def _webcam(address: str, stall_s: float | None) -> CameraLink:
    number = address.partition(":")[2]
    if not number.isdecimal():
        raise SourceAddressError(f"{address} names no camera: give webcam:0 for the first, webcam:1 for the next")
    if sys.platform == "darwin":
        return CameraLink(number, form="avfoundation", stall_s=stall_s or 4.0)
    if not sys.platform.startswith("linux"):
        raise SourceAddressError(
            f"webcams can be read on Linux and macOS, this is {sys.platform}: give an RTSP address"
        )
    return CameraLink(f"/dev/video{number}", form="video4linux2", stall_s=stall_s or 4.0)


def _synthetic(address: str, name: str, on_state: OnState | None) -> Source:
    from streamer.sources.street import StreetSource

    scene, _, query = address.partition(":")[2].partition("?")
    if scene != "street":
        raise SourceAddressError(f"{address} names no scene known here: give synthetic:street")
    return StreetSource.from_query(dict(parse_qsl(query)), name, on_state)


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
        raise SourceError(f"{address} does not exist: give {_KINDS}")
    return [Path(entry) for entry in natural(str(entry) for entry in found)]
