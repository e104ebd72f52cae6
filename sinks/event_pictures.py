"""Pictures that `media` events name, for sinks that deliver the picture itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from sinks.event import Event, Media

MOST_PICTURE_BYTES = 8_000_000
"""Bytes of a picture above which it is not read."""

_JPEG_START = b"\xff\xd8\xff"


def load_picture(event: Event, kind: Literal["crop", "boxed"]) -> bytes | None:
    """The JPEG of a track that a `media` event names: the part around the track, or the full frame with its box.

    Another picture of the event stands in for a kind that it does not have. None where the event names no picture in a
    folder of this machine, and where the file is gone, is no JPEG, or is not the one that the event was written for.
    """
    pictures = [one for one in event.data.media or () if one.kind != "clip"]
    for media in sorted(pictures, key=lambda one: _distance(one, kind)):
        if (picture := read_stored_jpeg(media.uri, media.sha256, MOST_PICTURE_BYTES)) is not None:
            return picture
    return None


def _distance(media: Media, kind: Literal["crop", "boxed"]) -> int:
    is_wanted = media.kind == "crop" if kind == "crop" else bool(media.boxed)
    return 0 if is_wanted else 1 if media.boxed else 2


def read_stored_jpeg(uri: str, sha256: str, most_bytes: int) -> bytes | None:
    """The JPEG at a `file:` address of this machine.

    None for another address, and where the file is gone, larger than `most_bytes`, no JPEG or not the one of that hash.
    """
    address = urlsplit(uri)
    if address.scheme != "file" or address.netloc not in ("", "localhost"):
        return None
    try:
        with Path(url2pathname(address.path)).open("rb") as file:
            picture = file.read(most_bytes + 1)
    except (OSError, ValueError):  # removed since by its retention, or not readable here
        return None
    is_whole = len(picture) <= most_bytes and hashlib.sha256(picture).hexdigest() == sha256.lower()
    return picture if is_whole and picture.startswith(_JPEG_START) else None
