"""Pictures and clips of events by their content hash, as a folder of `ab/abcdef....jpg` files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SHA256 = r"^[0-9a-f]{64}$"
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A stored file and its media type."""

    path: Path
    media_type: str


class MediaStore(Protocol):
    """Finds stored pictures and clips."""

    def find(self, sha256: str) -> MediaFile | None:
        """Returns the file with that content hash (64 hexadecimal digits), None when it is not stored."""
        ...


class MediaFolder:
    """The media in a folder whose files are named after their SHA-256, two digits of it as subfolder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, sha256: str) -> MediaFile | None:
        """Returns the file with that content hash, None when it is not stored or the text is not a hash."""
        if not re.fullmatch(SHA256, sha256):
            return None
        for suffix, media_type in TYPES.items():
            for path in (self._folder / sha256[:2] / f"{sha256}{suffix}", self._folder / f"{sha256}{suffix}"):
                if path.is_file():
                    return MediaFile(path, media_type)
        return None


def find_media(events: Iterable[dict[str, Any]], kinds: Iterable[str]) -> str | None:
    """Returns the content hash of the first medium of one of `kinds`, in the order of the kinds."""
    known = [medium for event in events for medium in event.get("data", {}).get("media") or ()]
    for kind in kinds:
        for medium in known:
            if medium.get("kind") == kind and re.fullmatch(SHA256, str(medium.get("sha256", ""))):
                return str(medium["sha256"])
    return None
