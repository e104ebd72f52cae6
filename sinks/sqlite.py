"""Events in an SQLite file: one table with proper columns, to be queried while it is written.

SELECT time, stream, queries FROM events WHERE type = 'groundstream.zone.enter.v1' ORDER BY position;
SELECT * FROM events, json_each(events.queries) AS query WHERE query.value = 'red car';
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.address import SinkAddress
from sinks.permissions import create_private
from sinks.sink import SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

log = logging.getLogger("sinks")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    position    INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of arrival
    id          TEXT NOT NULL UNIQUE,
    run         INTEGER NOT NULL,
    stream      TEXT NOT NULL,
    sequence    INTEGER NOT NULL,
    type        TEXT NOT NULL,
    subject     TEXT NOT NULL,
    time        TEXT NOT NULL,                     -- RFC 3339 UTC: sorts as text
    track       INTEGER,                           -- the tracker's number
    score       REAL,
    zone        TEXT,
    line        TEXT,
    queries     TEXT NOT NULL,                     -- a JSON list of words
    event       TEXT NOT NULL                      -- all of it, JSON
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (time);
CREATE INDEX IF NOT EXISTS events_by_stream ON events (stream, run, sequence);
CREATE INDEX IF NOT EXISTS events_by_type ON events (type, time);
CREATE INDEX IF NOT EXISTS events_by_subject ON events (subject);
"""
_COLUMNS = frozenset({"position", "id", "run", "stream", "sequence", "type", "subject", "time", "track", "score",
                      "zone", "line", "queries", "event"})  # fmt: skip
_INSERT = "INSERT OR IGNORE INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class SqliteSink:
    """Stores each event once, however often it is sent; a batch is one transaction.

    An event counts as delivered when its transaction is committed (WAL) in the file that stands under the path: it
    survives the end of this process. A file that is renamed, deleted or replaced is created again under its name, and
    one whose `-wal` file is deleted loses nothing. Several processes may write one file. Raises `SinkError` in a
    sentence where the file cannot be written or is no database of ours.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._wal = self._path.with_name(self._path.name + "-wal")
        self._db: sqlite3.Connection | None = None
        self._places: list[tuple[int, int] | None] = []
        self._connect()
        self._worker = SinkWorker("sink-sqlite")

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Stores the events; see `Sink.send_batch`."""
        await self._worker.call(self._insert, events)

    async def aclose(self) -> None:
        """Closes the database, as one file that can be read from a read-only folder, too."""
        await self._worker.aclose(last=self._finish_file)

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            create_private(self._path)
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        except OSError as error:
            raise _cannot_write(self._path, str(error.strerror)) from None
        except sqlite3.Error as error:
            raise _cannot_write(self._path, str(error)) from None
        try:
            columns = {name for _, name, *_ in db.execute("PRAGMA table_info(events)")}
            if columns and not columns >= _COLUMNS:
                raise sqlite3.DatabaseError("it has another table called events")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            db.close()
            raise _cannot_write(self._path, str(error)) from None
        self._db = db
        self._places = self._find_places()
        return db

    def _disconnect(self) -> None:
        """Writes what stands in the `-wal` file into the database, wherever that was moved to, and closes both."""
        db, self._db = self._db, None
        if db is None:
            return
        with contextlib.suppress(sqlite3.Error):  # SQLite itself does so only for a file that was not moved
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    def _finish_file(self) -> None:
        """Closes the database without a `-wal` file beside it, unless others have it open."""
        if self._db is not None and not self._was_moved():
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA journal_mode = DELETE").fetchall()
        self._disconnect()

    def _find_places(self) -> list[tuple[int, int] | None]:
        """Device and number of the database and of its `-wal` file, as they stand under the path."""
        places: list[tuple[int, int] | None] = []
        for path in (self._path, self._wal):
            try:
                found = os.stat(path)
            except FileNotFoundError:
                places.append(None)
            else:
                places.append((found.st_dev, found.st_ino))
        return places

    def _was_moved(self) -> bool:
        places = self._find_places()
        if places[0] == self._places[0] and self._places[1] is None:
            self._places = places  # the first transaction makes the `-wal` file
        return places != self._places

    def _insert(self, events: Sequence[Event]) -> None:
        rows = [_row_of(event) for event in events]
        db = self._db
        try:
            if db is None:
                db = self._connect()
            elif self._was_moved():
                log.warning("%s was moved, deleted or replaced: events go to a new file of this name", self._path)
                self._disconnect()
                db = self._connect()
            db.execute("BEGIN IMMEDIATE")
            db.executemany(_INSERT, rows)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db is not None and db.in_transaction:
                db.execute("ROLLBACK")
            raise _cannot_write(self._path, str(error)) from None


def open_sqlite(address: SinkAddress) -> SqliteSink:
    address.options.finish()
    if not address.path:
        raise SinkAddressError("sqlite: needs a path: write sqlite:events.sqlite")
    return SqliteSink(address.path)


def _row_of(event: Event) -> tuple[str | int | float | None, ...]:
    data = event.data
    return (
        event.id,
        data.run,
        data.stream,
        int(event.sequence),
        event.type.value,
        event.subject,
        event.time,
        data.track.number if data.track else None,
        data.track.score if data.track else None,
        data.zone.id if data.zone else None,
        data.line.id if data.line else None,
        json.dumps(event.queries, ensure_ascii=False),
        event.to_json().decode(),
    )


def _cannot_write(path: Path, reason: str) -> SinkError:
    return SinkError(
        f"{path} cannot be written ({reason}): check the path, its rights, the space on the disk, and that it is a "
        "database of groundstream"
    )
