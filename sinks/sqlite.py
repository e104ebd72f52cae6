"""Events in an SQLite file: one table with proper columns, to be queried while it is written.

SELECT time, stream, queries FROM events WHERE type = 'groundstream.zone.enter.v1' ORDER BY position;
SELECT * FROM events, json_each(events.queries) AS query WHERE query.value = 'red car';
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.address import SinkAddress
from sinks.sink import SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

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
_INSERT = "INSERT OR IGNORE INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class SqliteSink:
    """Each event once, however often it is sent; a batch is one transaction.

    An event counts as delivered when its transaction is committed (WAL): it survives the end of this process.
    Raises `SinkError` in a sentence where the file cannot be written or is no database of ours.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except OSError as error:
            raise _cannot_write(self._path, str(error.strerror)) from None
        except sqlite3.Error as error:
            raise _cannot_write(self._path, str(error)) from None
        self._worker = SinkWorker("sink-sqlite")

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._insert, events)

    async def aclose(self) -> None:
        await self._worker.aclose(last=self._db.close)

    def _insert(self, events: Sequence[Event]) -> None:
        rows = [_row(event) for event in events]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_INSERT, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise _cannot_write(self._path, str(error)) from None


def open_sqlite(address: SinkAddress) -> SqliteSink:
    address.options.finish()
    if not address.path:
        raise SinkAddressError("sqlite: needs a path: write sqlite:events.sqlite")
    return SqliteSink(address.path)


def _row(event: Event) -> tuple[str | int | float | None, ...]:
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
