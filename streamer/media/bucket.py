"""Pictures and clips of events in an S3-compatible store, by their content hash: `s3://BUCKET/FOLDER/ab/abcdef....jpg`."""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from streamer.media.folder import SHA256, STORED_NAME, KeptMedium, MediaFile, MediaFolder, choose_expired
from streamer.object_store import ObjectFolder, ObjectStoreError, S3Address

_CHECK_EVERY_S = 600.0
"""Listing costs a request for every thousand objects."""
_CACHE_BYTES = 256 << 20
_SUFFIXES = (".jpg", ".mp4")
"""What this program writes, the more frequent first."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A medium that was stored: its address and its content hash."""

    uri: str
    sha256: str


class MediaBucket:
    """The media below an S3 address, whose objects are named after their SHA-256, two digits of it as folder.

    `cache` is a local folder for what is shown. `max_age_s` and `max_bytes` limit what `remove_expired` leaves.
    Thread-safe.
    """

    def __init__(
        self, address: S3Address, cache: Path, *, max_age_s: float | None = None, max_bytes: int | None = None
    ) -> None:
        """Raises `ObjectStoreError` where the store cannot be used at all; nothing is asked of it yet."""
        key = address.key.rstrip("/")
        self._objects = ObjectFolder(S3Address(address.bucket, f"{key}/" if key else "", address.options))
        self._cache = MediaFolder(cache, max_bytes=_CACHE_BYTES)
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._checked_s = -math.inf
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The address of the folder."""
        return self._objects.name

    @property
    def local_path(self) -> Path:
        """The folder of what is shown."""
        return self._cache.path

    def find(self, sha256: str) -> MediaFile | None:
        """Returns a local copy of the medium with that content hash, None when it is not stored.

        Raises `ObjectStoreError` where the store does not answer.
        """
        if not re.fullmatch(SHA256, sha256):
            return None
        if (known := self._cache.find(sha256)) is not None:
            return known
        for suffix in _SUFFIXES:
            name = f"{sha256[:2]}/{sha256}{suffix}"
            if (content := self._objects.read(name)) is None:
                continue
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ObjectStoreError(f"{self.name}{name} was changed: its content is not that of its name; remove it")
            self._cache.store(content, suffix)
            self._cache.remove_expired()
            return self._cache.find(sha256)
        return None

    def store(self, content: bytes, suffix: str) -> StoredObject:
        """Stores `content`; the same content is stored once and counts as new. Raises `OSError`."""
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{sha256[:2]}/{sha256}{suffix}"
        try:
            self._objects.write(name, content)
        except ObjectStoreError as error:
            raise OSError(str(error)) from error
        return StoredObject(self._objects.address_of(name), sha256)

    def remove_expired(self) -> int:
        """Removes what is older than the limit, and the oldest of what is too much; returns the number of objects.

        Lists the objects once in ten minutes. Raises `OSError`.
        """
        with self._lock:
            if time.monotonic() - self._checked_s < _CHECK_EVERY_S:
                return 0
            self._checked_s = time.monotonic()
        try:
            return self._remove_expired()
        except ObjectStoreError as error:
            raise OSError(str(error)) from error

    def _remove_expired(self) -> int:
        found = [
            KeptMedium(item.modified_s, item.size, item.name)
            for item in self._objects.list_all()
            if re.fullmatch(f"[0-9a-f]{{2}}/{STORED_NAME}", item.name)
        ]
        expired = [medium.key for medium in choose_expired(found, self._max_age_s, self._max_bytes)]
        if expired:
            self._objects.remove(expired)
        return len(expired)
