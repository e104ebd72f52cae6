"""SQLite layout of a spool's file: tables, connections and the checks of stored rows.

A block is what one commit stored: lines of JSON, the first of which has the number `first`, the next one `first + 1`,
and so on; a dropped line is left empty. One row and one statement for many events keep the interpreter's lock free:
https://docs.python.org/3/library/sqlite3.html releases and takes it again at every step.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sinks.event import Event, EventType
from sinks.permissions import create_private
from sinks.sink import SinkError

APPLICATION_ID = 0x67737472  # "gstr"
MAX_BLOCK_EVENTS = 1_000_000
"""More events than any commit stores: a block that claims more is damaged."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE cursors (sink TEXT PRIMARY KEY, acked INTEGER NOT NULL);
CREATE TABLE tracks (uid TEXT PRIMARY KEY, event BLOB NOT NULL); -- all that is open: see OpenState for the keys
CREATE TABLE blocks (
    first     INTEGER PRIMARY KEY,
    last      INTEGER NOT NULL,
    droppable INTEGER NOT NULL, -- how many lines may be dropped when the spool is full
    size      INTEGER NOT NULL,
    crc       INTEGER NOT NULL,
    body      BLOB NOT NULL
);
CREATE INDEX blocks_droppable ON blocks (first) WHERE droppable > 0;
"""

DROPPABLE = frozenset({EventType.TRACK_UPDATE, EventType.DETECTIONS})
_DROPPABLE_MARKS = tuple(f'"type":"{kind.value}"'.encode() for kind in DROPPABLE)


@dataclass(frozen=True, slots=True)
class EventBlock:
    """Events as they were stored together; an empty line was dropped or could not be read."""

    first: int
    lines: list[bytes]

    @property
    def last(self) -> int:
        return self.first + len(self.lines) - 1


@dataclass(frozen=True, slots=True)
class DroppedEvent:
    """One event that left the spool without being delivered; `size` in bytes."""

    number: int
    stream: str
    size: int


class StoreFull(SinkError):
    """The disk has no room for the events."""


class StoreDamaged(SinkError):
    """The file's structure is broken: `SpoolStore.reopen` recovers the readable events."""


def connect_file(path: Path) -> sqlite3.Connection:
    """A connection to the spool's file, which is created for its owner alone. Raises `sqlite3.Error`, `OSError`."""
    create_private(path)  # SQLite gives its files beside it (-wal, -shm) the same rights
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.text_factory = decode_text
    db.execute("PRAGMA cache_size = -16000")
    return db


def decode_text(raw: bytes) -> str:
    """Text of a column, also of a damaged one."""
    return raw.decode("utf-8", "replace")


def prepare_tables(db: sqlite3.Connection, path: Path) -> None:
    """Creates the tables in a new file; raises `SinkError` for a database of another program."""
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    if application == 0 and int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]) == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; {_SCHEMA} COMMIT;")
    elif application != APPLICATION_ID:
        raise SinkError(f"{path} is a database of something else: give the spool a file of its own")
    else:
        db.execute("PRAGMA journal_mode = WAL")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite calls the file's structure broken."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_droppable(line: bytes) -> bool:
    """Whether a full spool may drop this event. The type stands before `data`, words of users after it."""
    head = line[:1024]
    return any(mark in head for mark in _DROPPABLE_MARKS)


def split_lines(first: object, last: object, crc: object, body: object) -> tuple[list[bytes], int]:
    """The lines of a stored block and how many of them are damaged; a damaged line comes back empty.

    No line at all comes back where the row's own numbers make no sense.
    """
    if not (isinstance(first, int) and isinstance(last, int) and 0 < last - first + 1 <= MAX_BLOCK_EVENTS):
        return [], 0
    count = last - first + 1
    lines = body.split(b"\n") if isinstance(body, bytes) else []
    if len(lines) != count:
        return [b""] * count, count
    if zlib.crc32(b"\n".join(lines)) == crc:
        return lines, 0
    checked = [line if not line or parse_line(line) is not None else b"" for line in lines]
    return checked, sum(map(bool, lines)) - sum(map(bool, checked))


def parse_line(line: bytes) -> Event | None:
    """The event of a stored line; None where the line is damaged."""
    try:
        return Event.from_json(line)
    except ValueError:
        return None


def number_rows(rows: Iterable[tuple[object, ...]]) -> tuple[dict[str, int], list[str]]:
    """Rows of a name and a whole number as a dictionary, and the names (or what stands there) of damaged rows."""
    sound: dict[str, int] = {}
    damaged: list[str] = []
    for name, value in rows:
        if isinstance(name, str) and isinstance(value, int):
            sound[name] = value
        else:
            damaged.append(name if isinstance(name, str) else repr(name)[:80])
    return sound, damaged


def blob_rows(rows: Iterable[tuple[object, ...]]) -> dict[str, bytes]:
    """Rows of a name and a stored event as a dictionary; a value of another type is kept as its text, to be refused
    by the parser that names it."""
    return {str(name): value if isinstance(value, bytes) else str(value).encode() for name, value in rows}
