"""From an address to its sources: the one place that knows which kind of source reads what."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamer.errors import SourceError
from streamer.sources.address import natural, stream_name, unique
from streamer.sources.file import FileSource
from streamer.sources.source import OnState, Source

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on


def open_sources(
    address: str | Iterable[str],
    *,
    name: str | None = None,
    on_state: OnState | None = None,
    start_time_ns: int | None = None,
    **options: Any,
) -> list[Source]:
    """The sources that `address` (or several) stands for; reading begins when one is iterated.

    Raises `SourceAddressError` where an address cannot be understood, `SourceError` where there is nothing at it.
    """
    addresses = [address] if isinstance(address, str) else list(address)
    sources: list[Source] = []
    taken: set[str] = set()
    for one in addresses:
        for path in _expand(one):
            stream = unique(name or stream_name(path), taken)
            taken.add(stream)
            sources.append(FileSource(path, stream, start_time_ns=start_time_ns, on_state=on_state, **options))
    return sources


def _expand(address: str) -> list[str]:
    path = Path(address).expanduser()
    if path.is_dir():
        found = natural(str(entry) for entry in path.iterdir() if entry.suffix.lower() in VIDEO_SUFFIXES)
        if not found:
            raise SourceError(f"{address} holds no video files: give a folder with videos or images, or a file")
        return found
    if path.exists():
        return [str(path)]
    found = natural(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not found:
        raise SourceError(f"{address} does not exist: give a video file, a folder, a camera's address or webcam:0")
    return found
