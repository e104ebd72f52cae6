"""Unique identifiers: the public identity of a track (ULID) and the fingerprint of a recording.

ULID: https://github.com/ulid/spec, 48 bits of milliseconds and 80 bits that make it unique, Crockford base 32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_END_BYTES = 1 << 16

NewUid = Callable[[int, int], str]
"""(track number, first seen in UTC nanoseconds) -> ULID"""


def ulid(time_ns: int, entropy: bytes) -> str:
    """26 characters that sort by time; `entropy` is 10 bytes."""
    value = ((time_ns // 1_000_000) & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def random_uids() -> NewUid:
    """Random identities, for live streams."""
    return lambda _number, first_seen_ns: ulid(first_seen_ns, os.urandom(10))


def derived_uids(*parts: str) -> NewUid:
    """Derived identities, for recordings: the same track of the same work has the same one in every run."""
    seed = hashlib.sha256("\0".join(parts).encode())

    def new_uid(number: int, first_seen_ns: int) -> str:
        digest = seed.copy()
        digest.update(f"\0{number}\0{first_seen_ns}".encode())
        return ulid(first_seen_ns, digest.digest())

    return new_uid


def derived_run(*parts: str) -> int:
    """The run number of a recording, 48 bits: the same for the same work, so that its events have the same ids."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:6], "big")


def fingerprint(path: Path) -> str:
    """Digest of size, beginning and end of a recording, without reading all of it. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for offset in (0, max(0, size - _END_BYTES)):
            file.seek(offset)
            digest.update(file.read(_END_BYTES))
    return digest.hexdigest()
