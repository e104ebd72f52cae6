"""Source addresses: the names of streams made from them, and the order of file names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePath
from urllib.parse import urlsplit

_NUMBER = re.compile(r"([0-9]+)")


def stream_name(address: str) -> str:
    """A short name for what `address` leads to, without credentials: a file's stem, host and path of a URL."""
    if "://" not in address:
        return _plain(PurePath(address).stem or address)
    scheme, _, rest = address.partition("://")
    url = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")
    host = url.hostname or ""
    port = "" if url.port is None else f"-{url.port}"
    path = url.path.strip("/").replace("/", "-")
    return _plain("-".join(part for part in (host + port, path) if part))


def unique(name: str, taken: Collection[str]) -> str:
    """`name`, or `name-2`, `name-3`, ... where it is taken."""
    number = 1
    candidate = name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def natural(names: Iterable[str]) -> list[str]:
    """Sorted the way people count: `frame2` before `frame10`."""
    # Splitting on digits puts texts at even places and numbers at odd ones, so like is compared with like.
    return sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in _NUMBER.split(name)])


def _plain(name: str) -> str:
    """What may stand in topics, file names and event ids: anything else becomes a hyphen."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "stream"
