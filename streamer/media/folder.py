"""Folder of pictures and clips of events, by their content hash: `ab/abcdef....jpg`."""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

_CHECK_EVERY_S = 60.0
_KEPT_SHARE = 0.9
"""The part of the allowed bytes that stays when there were too many, so that not every picture needs room."""
STORED_NAME = r"[0-9a-f]{64}\.(jpg|jpeg|png|mp4)(\.\d+\.tmp)?"

SHA256 = r"^[0-9a-f]{64}$"
K = TypeVar("K", Path, str)
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A stored file and its media type."""

    path: Path
    media_type: str


class KeptMedium(NamedTuple, Generic[K]):
    """A stored medium: when it was written (seconds since 1970), its bytes, and the path or name that removes it."""

    modified_s: float
    size: int
    key: K


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was stored: its absolute path and its content hash."""

    path: Path
    sha256: str

    @property
    def uri(self) -> str:
        """The address of the file."""
        return self.path.as_uri()


class StoredMedium(Protocol):
    """A picture or clip that was stored."""

    @property
    def uri(self) -> str:
        """The address at which it is."""
        ...

    @property
    def sha256(self) -> str:
        """Its content hash, 64 hexadecimal digits."""
        ...


class MediaStore(Protocol):
    """Keeps pictures and clips by their content hash. Thread-safe."""

    @property
    def name(self) -> str:
        """Where they are, for messages."""
        ...

    def find(self, sha256: str) -> MediaFile | None:
        """Returns the file with that content hash (64 hexadecimal digits), None when it is not stored."""
        ...

    @property
    def local_path(self) -> Path:
        """A folder of this machine for what is not finished."""
        ...

    def store(self, content: bytes, suffix: str) -> StoredMedium:
        """Stores a picture (`.jpg`) or clip (`.mp4`), the same content once. Raises `OSError`."""
        ...

    def remove_expired(self) -> int:
        """Removes what is too old or too much; returns the number. Raises `OSError`."""
        ...


class MediaFolder:
    """The media in a folder whose files are named after their SHA-256, two digits of it as subfolder.

    `max_age_s` and `max_bytes` limit what `remove_expired` leaves; without them everything stays. Thread-safe.
    """

    def __init__(self, folder: Path, *, max_age_s: float | None = None, max_bytes: int | None = None) -> None:
        self.path = folder
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._bytes: int | None = None  # unknown before the folder was read
        self._checked_s = -math.inf
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The path of the folder."""
        return str(self.path)

    @property
    def local_path(self) -> Path:
        """The folder itself."""
        return self.path

    def find(self, sha256: str) -> MediaFile | None:
        """Returns the file with that content hash, None when it is not stored or the text is not a hash."""
        if not re.fullmatch(SHA256, sha256):
            return None
        for suffix, media_type in TYPES.items():
            for path in (self.path / sha256[:2] / f"{sha256}{suffix}", self.path / f"{sha256}{suffix}"):
                if path.is_file():
                    return MediaFile(path, media_type)
        return None

    def store(self, content: bytes, suffix: str) -> StoredFile:
        """Stores `content` for the owner alone (0600), whole or not at all; the same content is stored once and
        counts as new. Raises `OSError`."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = (self.path / sha256[:2] / f"{sha256}{suffix}").absolute()
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, content)
            with self._lock:
                self._bytes = None if self._bytes is None else self._bytes + len(content)
        return StoredFile(path, sha256)

    def remove_expired(self) -> int:
        """Removes what is older than the limit, and the oldest of what is too much; returns the number of files.

        Reads the folder when the limit of bytes is exceeded, else once a minute. Raises `OSError`.
        """
        with self._lock:
            return self._remove_expired()

    def _remove_expired(self) -> int:
        is_full = self._max_bytes is not None and (self._bytes or 0) > self._max_bytes
        if not is_full and time.monotonic() - self._checked_s < _CHECK_EVERY_S:
            return 0
        self._checked_s = time.monotonic()
        files = list(self._read_files())
        expired = choose_expired(files, self._max_age_s, self._max_bytes)
        for media in expired:
            media.key.unlink(missing_ok=True)
        self._bytes = sum(media.size for media in files) - sum(media.size for media in expired)
        return len(expired)

    def _read_files(self) -> Iterator[KeptMedium[Path]]:
        """Every medium, and temporary files that a crash has left."""
        for path in self.path.glob("[0-9a-f][0-9a-f]/*"):
            if not re.fullmatch(STORED_NAME, path.name):
                continue
            try:
                state = path.stat()
            except FileNotFoundError:  # another process has removed it
                continue
            yield KeptMedium(state.st_mtime, state.st_size, path)


def choose_expired(
    media: Iterable[KeptMedium[K]], max_age_s: float | None, max_bytes: int | None
) -> list[KeptMedium[K]]:
    """Chooses what is older than `max_age_s`, and the oldest of the rest where all have more than `max_bytes`."""
    known = sorted(media)
    total = sum(medium.size for medium in known)
    oldest_s = -math.inf if max_age_s is None else time.time() - max_age_s
    wanted = math.inf if max_bytes is None or total <= max_bytes else max_bytes * _KEPT_SHARE
    expired = []
    for medium in known:
        if medium.modified_s >= oldest_s and total <= wanted:
            break
        expired.append(medium)
        total -= medium.size
    return expired


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, brings it to the disk and gives it its name. Raises `OSError`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def find_media(events: Iterable[dict[str, Any]], kinds: Iterable[str], *, is_boxed: bool = False) -> str | None:
    """Returns the content hash of the first medium of one of `kinds`, in the order of the kinds; of one kind, the
    picture with a drawn box comes first where `is_boxed`, else the one without."""
    known = [medium for event in events for medium in event.get("data", {}).get("media") or ()]
    known.sort(key=lambda medium: bool(medium.get("boxed", False)) is not is_boxed)
    for kind in kinds:
        for medium in known:
            if medium.get("kind") == kind and re.fullmatch(SHA256, str(medium.get("sha256", ""))):
                return str(medium["sha256"])
    return None
