"""Creation of files that only their owner can read: events show who was where and when."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE = 0o600
"""Rights of every file with events: its owner reads and writes, others have none."""


def create_private(path: Path) -> None:
    """Creates an empty file with the rights 0600; a file that exists stays as it is. Raises `OSError`.

    An existing file is not even opened: closing it again would end the locks that SQLite holds on it in this process
    (https://sqlite.org/howtocorrupt.html, section 2.2)."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))


def open_private(path: str | Path, flags: int) -> int:
    """An opener for `open(..., opener=open_private)`: files that it creates have the rights 0600."""
    return os.open(path, flags | os.O_CLOEXEC, PRIVATE)
