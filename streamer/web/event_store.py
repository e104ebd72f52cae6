"""Searchable store of a monitor's events: SQLite with full-text search, kept in the state folder.

`EventStore` writes and reads; `StoreSink` is the sink through which the spool feeds it. Rows are numbered in the order
of arrival: the row number is what clients of the event feed resume from.
Full-text search: https://www.sqlite.org/fts5.html (external content table).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sinks.event import Event
from sinks.permissions import create_private
from sinks.sink import SinkError
from sinks.worker import SinkWorker
from streamer.errors import ConfigError, StreamerError

log = logging.getLogger("groundstream")

MOST_WORDS = 16
_DEADLINE_S = 5.0
_PRUNE_EVERY_S = 60.0
_STEPS_BETWEEN_CHECKS = 20_000
_WORD = re.compile(r"[\w.-]+")
_QUARTER_MS = 900_000
_SUBJECTS_AT_ONCE = 100

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    row       INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    time_ms   INTEGER NOT NULL,
    stream    TEXT NOT NULL,
    kind      TEXT NOT NULL,
    subject   TEXT NOT NULL,
    place     TEXT,
    direction TEXT,
    words     TEXT NOT NULL,
    event     TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (time_ms, row);
CREATE INDEX IF NOT EXISTS events_by_stream ON events (stream, time_ms, row);
CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, time_ms, row);
CREATE INDEX IF NOT EXISTS events_by_subject ON events (subject, time_ms, row);
CREATE TABLE IF NOT EXISTS event_queries (
    row   INTEGER NOT NULL,
    query TEXT NOT NULL,
    PRIMARY KEY (query, row)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS event_queries_by_row ON event_queries (row);
CREATE VIRTUAL TABLE IF NOT EXISTS events_text USING fts5 (
    words, content='events', content_rowid='row', tokenize='unicode61 remove_diacritics 2'
);
CREATE TRIGGER IF NOT EXISTS events_added AFTER INSERT ON events BEGIN
    INSERT INTO events_text (rowid, words) VALUES (new.row, new.words);
END;
CREATE TRIGGER IF NOT EXISTS events_removed AFTER DELETE ON events BEGIN
    INSERT INTO events_text (events_text, rowid, words) VALUES ('delete', old.row, old.words);
    DELETE FROM event_queries WHERE row = old.row;
END;
"""


class EventStoreError(StreamerError):
    """The store of events cannot be read or written."""


class SearchTooLong(StreamerError):
    """A search took longer than it may: fewer words or a shorter time are needed."""


@dataclass(frozen=True, slots=True)
class EventQuery:
    """A choice of events. Times are UTC milliseconds, `since_ms` inclusive, `until_ms` exclusive.

    `kinds` are `track.begin`, ... without prefix and version, `zone.*` stands for all that begin so. `day_minutes` is
    a stretch of the day (from, to) in minutes of `zone_name`'s local time; one that ends before it begins spans
    midnight. `words` is what a person typed: every word must occur, the last may be the beginning of one.
    """

    streams: Sequence[str] = ()
    kinds: Sequence[str] = ()
    queries: Sequence[str] = ()
    place: str | None = None
    subject: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    day_minutes: tuple[int, int] | None = None
    zone_name: str = "UTC"
    words: str = ""

    def to_sql(self) -> tuple[str, list[Any]]:
        """Returns the condition and its values."""
        parts: list[str] = []
        values: list[Any] = []
        if self.streams:
            parts.append(f"stream IN ({_marks(self.streams)})")
            values += self.streams
        if self.kinds:
            tests = []
            for kind in self.kinds:
                prefix = kind.removesuffix("*").rstrip(".")
                tests.append("(kind = ? OR (kind >= ? AND kind < ?))")
                values += [prefix, f"{prefix}.", f"{prefix}/"]
            parts.append(f"({' OR '.join(tests)})")
        if self.queries:
            parts.append(f"row IN (SELECT row FROM event_queries WHERE query IN ({_marks(self.queries)}))")
            values += self.queries
        for column, value in (("place", self.place), ("subject", self.subject)):
            if value is not None:
                parts.append(f"{column} = ?")
                values.append(value)
        if self.since_ms is not None:
            parts.append("time_ms >= ?")
            values.append(self.since_ms)
        if self.until_ms is not None:
            parts.append("time_ms < ?")
            values.append(self.until_ms)
        if self.day_minutes is not None:
            first, last = self.day_minutes
            inside = "BETWEEN ? AND ?" if first <= last else "NOT BETWEEN ? AND ?"
            parts.append(f"local_minute(time_ms, ?) {inside}")
            bounds = [first, last - 1] if first <= last else [last, first - 1]
            values += [self.zone_name, *bounds]
        if (match := match_expression(self.words)) is not None:
            parts.append("row IN (SELECT rowid FROM events_text WHERE events_text MATCH ?)")
            values.append(match)
        elif self.words.strip():
            parts.append("0")
        return " AND ".join(parts) or "1", values


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its row number; `line` is its JSON."""

    row: int
    time_ms: int
    line: str


class EventStore:
    """Events by time, kind, place, query and words.

    Written from one thread at a time, read from any. Raises `EventStoreError` where the file cannot be used.
    """

    def __init__(self, path: Path | None, *, keep_days: float = 30.0) -> None:
        """`path` is the database; None keeps the events in memory, for tests and finished jobs."""
        self._keep_ms = int(keep_days * 86_400_000)
        self._name = ":memory:" if path is None else str(path)
        self._readers = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._pruned_s = 0.0
        self._listeners: list[Callable[[int], object]] = []
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                create_private(path)
            self._db = self._connect()
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except OSError as error:
            raise EventStoreError(
                f"cannot write the event store {path}: {error.strerror}; choose another folder"
            ) from None
        except sqlite3.Error as error:
            raise EventStoreError(
                f"cannot use the event store {path}: {error}; move the file away to begin a new one"
            ) from None

    def on_added(self, listener: Callable[[int], object]) -> None:
        """Calls `listener` with the newest row after each batch, from the writing thread."""
        self._listeners.append(listener)

    def add_events(self, events: Sequence[Event]) -> None:
        """Stores a batch; an event that is already stored is ignored, and per-frame detections are."""
        rows = [_columns(event) for event in events if event.kind != "detections"]
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for columns, queries in rows:
                    cursor = self._db.execute(
                        "INSERT OR IGNORE INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns
                    )
                    if cursor.rowcount:
                        number = cursor.lastrowid
                        self._db.executemany(
                            "INSERT OR IGNORE INTO event_queries VALUES (?, ?)", [(number, query) for query in queries]
                        )
                self._prune_expired()
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise EventStoreError(f"cannot write the event store: {error}; check the space on the disk") from None
            newest = self._db.execute("SELECT max(row) FROM events").fetchone()[0] or 0
        for listener in list(self._listeners):
            listener(newest)

    def find_page(
        self, wanted: EventQuery, *, limit: int, newest_first: bool = True, after: tuple[int, int] | None = None
    ) -> list[StoredEvent]:
        """Returns at most `limit` events in order of capture time; `after` is (time, row) of the last one before."""
        condition, values = wanted.to_sql()
        if after is not None:
            condition += f" AND (time_ms, row) {'<' if newest_first else '>'} (?, ?)"
            values += after
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT row, time_ms, event FROM events WHERE {condition} ORDER BY time_ms {order}, row {order} LIMIT ?"
        return [StoredEvent(*row) for row in self._read(sql, [*values, limit])]

    def read_after(self, row: int, wanted: EventQuery, *, limit: int) -> tuple[list[StoredEvent], int]:
        """Returns wanted events behind `row` in order of arrival, and the row up to which everything was searched."""
        newest = self.newest_row()
        condition, values = wanted.to_sql()
        sql = f"SELECT row, time_ms, event FROM events WHERE row > ? AND row <= ? AND {condition} ORDER BY row LIMIT ?"
        found = [StoredEvent(*line) for line in self._read(sql, [row, newest, *values, limit])]
        return found, found[-1].row if len(found) == limit else newest

    def find_event(self, event_id: str) -> StoredEvent | None:
        """Returns one event by its id."""
        rows = self._read("SELECT row, time_ms, event FROM events WHERE id = ?", [event_id])
        return StoredEvent(*rows[0]) if rows else None

    def find_media(self, subjects: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Returns the pictures and clips that `media` events of these subjects have stored, by the id of the event
        that each of them names as its cause."""
        found: dict[str, list[dict[str, Any]]] = {}
        for start in range(0, len(subjects), _SUBJECTS_AT_ONCE):
            some = subjects[start : start + _SUBJECTS_AT_ONCE]
            sql = (
                f"SELECT event FROM events WHERE kind = 'media' AND subject IN ({_marks(some)}) ORDER BY row LIMIT 5000"
            )
            for (line,) in self._read(sql, some):
                data = json.loads(line)["data"]
                found.setdefault(data.get("cause", ""), []).extend(data.get("media") or ())
        return found

    def count_buckets(self, wanted: EventQuery, *, bucket_ms: int, offset_ms: int = 0) -> list[dict[str, Any]]:
        """Returns counts for each bucket and kind: `{"time_ms", "kind", "direction", "events", "tracks"}`.

        Buckets begin at multiples of `bucket_ms` in a local time that is `offset_ms` ahead of UTC.
        """
        condition, values = wanted.to_sql()
        sql = (
            "SELECT (time_ms + ?) / ? * ? - ? AS bucket, kind, direction, count(*), count(DISTINCT subject) "
            f"FROM events WHERE {condition} GROUP BY bucket, kind, direction ORDER BY bucket LIMIT 20000"
        )
        rows = self._read(sql, [offset_ms, bucket_ms, bucket_ms, offset_ms, *values])
        names = ("time_ms", "kind", "direction", "events", "tracks")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def count_events(self, wanted: EventQuery) -> int:
        """Returns how many events there are, counting at most 10,000."""
        condition, values = wanted.to_sql()
        sql = f"SELECT count(*) FROM (SELECT 1 FROM events WHERE {condition} LIMIT 10000)"
        return int(self._read(sql, values)[0][0])

    def oldest_row(self) -> int:
        """Returns the row of the oldest event, 0 when there is none."""
        return int(self._read("SELECT coalesce(min(row), 0) FROM events", [])[0][0])

    def newest_row(self) -> int:
        """Returns the row of the newest event, 0 when there is none."""
        return int(self._read("SELECT coalesce(max(row), 0) FROM events", [])[0][0])

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        with self._lock:
            for connection in (*self._opened, self._db):
                connection.close()
            self._opened.clear()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._name, isolation_level=None, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.create_function("local_minute", 2, _LocalMinutes(), deterministic=True)
        return connection

    def _read(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            with self._reader() as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise SearchTooLong(
                    f"the search took longer than {_DEADLINE_S:g} s: choose a shorter time or fewer conditions"
                ) from None
            raise EventStoreError(f"cannot read the event store: {error}") from None
        except sqlite3.Error as error:
            raise EventStoreError(f"cannot read the event store: {error}") from None

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """The calling thread's own connection, which stops a statement after the deadline."""
        if self._name == ":memory:":  # it belongs to one connection: readers take turns with the writer
            with self._lock:
                yield self._db
            return
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = self._readers.connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
            with self._lock:
                self._opened.append(connection)
        until = time.monotonic() + _DEADLINE_S
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_CHECKS)
        yield connection

    def _prune_expired(self) -> None:
        now = time.monotonic()
        if now - self._pruned_s < _PRUNE_EVERY_S:
            return
        self._pruned_s = now
        newest = self._db.execute("SELECT max(time_ms) FROM events").fetchone()[0]
        if newest is not None:
            oldest = min(newest, int(time.time() * 1000)) - self._keep_ms
            self._db.execute(
                "DELETE FROM events WHERE row IN (SELECT row FROM events WHERE time_ms < ? LIMIT 20000)", (oldest,)
            )


class StoreSink:
    """The sink that stores a pipeline's events for the page and the API."""

    batch_events = 1000

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._worker = SinkWorker("sink-web-store")

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Stores the events. Raises `SinkError` when the database refuses."""
        try:
            await self._worker.call(self._store.add_events, events)
        except EventStoreError as error:
            raise SinkError(str(error)) from None

    async def aclose(self) -> None:
        """Ends the writing thread; the store stays open for readers."""
        await self._worker.aclose()


class EventFeed:
    """Wakes readers in one event loop when events were stored from another thread."""

    def __init__(self, store: EventStore) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._newest = store.newest_row()
        self.closed = False
        store.on_added(self._announce)

    async def wait_beyond(self, row: int, timeout_s: float) -> bool:
        """Waits for an event behind `row`; returns False after `timeout_s` seconds without any."""
        self._loop = asyncio.get_running_loop()
        if self._changed is None:
            self._changed = asyncio.Event()
        changed = self._changed
        if self._newest > row or self.closed:
            return True
        try:
            await asyncio.wait_for(changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Lets all readers end."""
        self.closed = True
        self._announce(0)

    def _announce(self, row: int) -> None:
        self._newest = max(self._newest, row)
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake_readers)

    def _wake_readers(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class _LocalMinutes:
    """The SQL function `local_minute(time_ms, zone)`: minutes since local midnight."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, int], int] = {}

    def __call__(self, time_ms: int, zone_name: str) -> int:
        key = (zone_name, time_ms // _QUARTER_MS)
        offset = self._offsets.get(key)
        if offset is None:
            if len(self._offsets) > 10_000:
                self._offsets.clear()
            offset = self._offsets[key] = utc_offset_minutes(time_ms, zone_name)
        return (time_ms // 60_000 + offset) % 1440


def utc_offset_minutes(time_ms: int, zone_name: str) -> int:
    """Returns by how many minutes local time is ahead of UTC. Raises `ConfigError` for an unknown time zone."""
    try:
        zone = ZoneInfo(zone_name)
    except (ValueError, OSError, KeyError):
        raise ConfigError(f"unknown time zone {zone_name!r}: use a name such as Europe/Berlin") from None
    moment = datetime.fromtimestamp(time_ms / 1000, UTC).astimezone(zone)
    offset = moment.utcoffset()
    return 0 if offset is None else int(offset.total_seconds() // 60)


def match_expression(words: str) -> str | None:
    """Returns the full-text expression for what a person typed, None when it has no word.

    Every word is quoted, so that no operator of the search language acts; the last may be the beginning of a word.
    """
    found = _WORD.findall(words)[:MOST_WORDS]
    found = [word for word in found if re.search(r"\w", word)]
    if not found:
        return None
    return " ".join(f'"{word}"' for word in found) + "*"


def encode_cursor(event: StoredEvent) -> str:
    """Returns the opaque cursor of an event in a list."""
    return base64.urlsafe_b64encode(f"{event.time_ms}.{event.row}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> tuple[int, int]:
    """Returns (time, row) of a cursor. Raises `ConfigError` for anything else."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
        time_ms, row = (int(part) for part in raw.split("."))
        if not (abs(time_ms) < 2**53 and 0 <= row < 2**53):
            raise ValueError
    except (ValueError, binascii.Error, UnicodeDecodeError):
        raise ConfigError(
            f"after {text[:40]!r} is not a cursor: use the value of `next` from the page before"
        ) from None
    return time_ms, row


def _columns(event: Event) -> tuple[tuple[Any, ...], list[str]]:
    data = event.data
    place = data.zone.id if data.zone else data.line.id if data.line else data.count.id if data.count else None
    query_ids = [match.query_id for match in data.matches or ()]
    if data.query is not None:
        query_ids.append(data.query.id)
    words = [data.stream, event.kind.replace(".", " "), *event.queries]
    words += [match.phrase for match in data.matches or () if match.phrase]
    if place is not None:
        words.append(place)
    if data.description is not None:
        words.append(data.description.text)
    if data.outage is not None:
        words.append(data.outage.cause)
    time_ms = int(datetime.fromisoformat(event.time).timestamp() * 1000)
    columns = (
        event.id,
        time_ms,
        data.stream,
        event.kind,
        event.subject,
        place,
        data.line.direction if data.line else None,
        " ".join(words),
        event.to_json().decode(),
    )
    return columns, list(dict.fromkeys([*query_ids, *event.queries]))


def compact_event(line: str) -> Mapping[str, Any]:
    """Returns what a list shows of an event: its data without producer and masks."""
    event: dict[str, Any] = json.loads(line)
    data = event.get("data", {})
    data.pop("producer", None)
    if "track" in data:
        data["track"].pop("mask", None)
    return event


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
