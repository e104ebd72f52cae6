"""The spool's file: blocks of events in SQLite (WAL), the cursors of the sinks, the open tracks, the last run.

A block is what one commit stored: lines of JSON, the first of which has the number `first`, the next one `first + 1`,
and so on; a line that was dropped is left empty. One row and one statement for many events keep the interpreter's
lock free: https://docs.python.org/3/library/sqlite3.html releases and takes it again at every step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sinks.event import Event, EventType
from sinks.sink import SinkError

log = logging.getLogger("sinks.spool")

SYNC_WINDOW_S = 0.2
_APPLICATION_ID = 0x67737472  # "gstr"
_CHECKPOINT_BYTES = 8 << 20
_CHECKPOINT_S = 1.0
_RESTART_BYTES = 128 << 20
_IDLE_S = 1.0
_RELEASE_BYTES = 256 << 10
_SLACK_PAGES = 2048
_VACUUM_PAGES = 128
_SALVAGE_FAILURES = 50_000

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE cursors (sink TEXT PRIMARY KEY, acked INTEGER NOT NULL);
CREATE TABLE tracks (uid TEXT PRIMARY KEY, event BLOB NOT NULL);
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
class DroppedEvents:
    """One event that left the spool without being delivered."""

    number: int
    stream: str
    size: int


class StoreFull(SinkError):
    """The disk has no room for what is to be stored."""


class StoreDamaged(SinkError):
    """The file's structure is broken: `reopen` saves what can be read."""


class SpoolStore:
    """Not thread-safe but for `read`, which one other thread may call. Raises `SinkError` in one sentence."""

    def __init__(self, path: Path, *, sync_each: bool = False) -> None:
        self._path = path
        self._sync_each = sync_each
        self.lost = 0  # events that the file once held and that could not be read
        self.salvaged = False  # whether the file was damaged when it was opened
        self._bad_upto = 0
        self._open()

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connect()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self.lost += _salvage(self._path, str(error))
                self.salvaged = True
                self._connect()
        except OSError as error:
            raise SinkError(
                f"the spool {self._path} cannot be opened ({error.strerror}): check path and rights"
            ) from None
        except sqlite3.Error as error:
            raise SinkError(
                f"the spool {self._path} cannot be opened ({error}): check path, rights and space"
            ) from None
        self._keeper = _StoreKeeper(self._path, sync=not self._sync_each)

    def _connect(self) -> None:
        self._db = _connect(self._path)
        try:
            _prepare(self._db, self._path)
            self._db.execute(f"PRAGMA synchronous = {'FULL' if self._sync_each else 'NORMAL'}")
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
            self._db.execute("PRAGMA locking_mode = NORMAL")
            self._claim()
            # walks every page that holds the blocks' heads: a damaged file shows itself now, not in the night
            self.used = int(self._db.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()[0])
            self.meta = {str(name): int(value) for name, value in self._db.execute("SELECT name, value FROM meta")}
            self.cursors = {
                str(name): int(acked) for name, acked in self._db.execute("SELECT sink, acked FROM cursors")
            }
            bounds = self._db.execute("SELECT min(first), max(last) FROM blocks").fetchone()
            self.next = max(self.meta.get("next", 1), (bounds[1] or 0) + 1, *(n + 1 for n in self.cursors.values()), 1)
            self.first = int(bounds[0] or self.next)
            self._reader = _connect(self._path)
        except BaseException:
            self._db.close()
            raise

    def _claim(self) -> None:
        """One process at a time: two would store different events under the same numbers."""
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.lockf(self._lock, os.F_TLOCK, 0)
        except OSError:
            os.close(self._lock)
            raise SinkError(
                f"the spool {self._path} is in use by another process: end that one, or give this one its own spool"
            ) from None

    def append(self, lines: Sequence[bytes], droppable: int) -> int:
        """Store the lines in one commit; returns the number of the first. Raises `StoreFull` when the disk is full."""
        body = b"\n".join(lines)
        first = self.next
        row = (first, first + len(lines) - 1, droppable, sum(map(len, lines)), zlib.crc32(body), body)
        with self._errors():
            self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)
        self.next = first + len(lines)
        self._keeper.committed()
        return first

    def read(self, after: int, limit: int) -> list[EventBlock]:
        """Blocks with events numbered above `after`, until `limit` events are reached; the first may begin before."""
        blocks: list[EventBlock] = []
        count = 0
        while count < limit:
            block = self._read_block("first <= ? + 1 ORDER BY first DESC", after)
            if block is None or block.last <= after:
                block = self._read_block("first > ? ORDER BY first", after)
            if block is None:
                break
            blocks.append(block)
            count += block.last - after
            after = block.last
        return blocks

    def _read_block(self, which: str, after: int) -> EventBlock | None:
        sql = f"SELECT first, last, crc, body FROM blocks WHERE {which} LIMIT 1"
        try:
            row = self._reader.execute(sql, (after,)).fetchone()
            if row is None:
                return None
            first, last = row[0], row[1]
            lines, bad = _lines(first, last, row[2], row[3])
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise SinkError(f"the spool {self._path} cannot be read ({error})") from None
            first, last = self._reader.execute(sql.replace(", crc, body", ""), (after,)).fetchone()
            lines, bad = [b""] * (last - first + 1), last - first + 1
        if bad and last > self._bad_upto:
            self._bad_upto = last
            self.lost += bad
            log.error("the spool %s is damaged: %d of the events %d to %d are lost", self._path, bad, first, last)
        return EventBlock(first, lines)

    def release(self, upto: int) -> int:
        """Forget blocks that end at or before `upto`, some of them; returns the bytes that this gives back.

        Not all at once: every page has to be put on a list, and whoever wants to store something waits for it.
        """
        freed = last = 0
        with self._errors():
            rows = self._db.execute("SELECT last, size FROM blocks WHERE first <= ? ORDER BY first", (upto,))
            for end, size in rows:
                if end > upto or freed >= _RELEASE_BYTES:
                    break
                last, freed = end, freed + size
            rows.close()
            self._db.execute("DELETE FROM blocks WHERE first <= ?", (last,))
        self.first = max(self.first, last + 1)
        return freed

    def drop_oldest(self, wanted: int) -> list[DroppedEvents]:
        """Empty the oldest lines that may be dropped until `wanted` bytes are free, or none of them is left."""
        dropped: list[DroppedEvents] = []
        freed = 0
        with self._errors():
            while freed < wanted:
                sql = "SELECT first, last, crc, body FROM blocks WHERE droppable > 0 ORDER BY first LIMIT 1"
                row = self._db.execute(sql).fetchone()
                if row is None:
                    break
                lines, _ = _lines(*row)
                gone = [index for index, line in enumerate(lines) if is_droppable(line)]
                for index in gone:
                    dropped.append(DroppedEvents(row[0] + index, _stream(lines[index]), len(lines[index])))
                    freed += len(lines[index])
                    lines[index] = b""
                body = b"\n".join(lines)
                self._db.execute(
                    "UPDATE blocks SET droppable = 0, size = ?, crc = ?, body = ? WHERE first = ?",
                    (sum(map(len, lines)), zlib.crc32(body), body, row[0]),
                )
        self._keeper.committed()
        return dropped

    def remember(
        self,
        *,
        cursors: Mapping[str, int] | None = None,
        meta: Mapping[str, int] | None = None,
        tracks: Mapping[str, bytes | None] | None = None,
    ) -> None:
        """Store cursors, numbers and the last events of tracks (None: the track has ended) in one commit."""
        self.meta.update(meta or {}, next=self.next)
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(self.meta.items()))
            if cursors is not None:
                self.cursors = dict(cursors)
                self._db.execute("DELETE FROM cursors")
                self._db.executemany("INSERT INTO cursors VALUES (?, ?)", list(cursors.items()))
            changed = [(uid, event) for uid, event in (tracks or {}).items() if event is not None]
            ended = [(uid,) for uid, event in (tracks or {}).items() if event is None]
            self._db.executemany("INSERT OR REPLACE INTO tracks VALUES (?, ?)", changed)
            self._db.executemany("DELETE FROM tracks WHERE uid = ?", ended)
            self._db.execute("COMMIT")
        self._keeper.committed()

    def tracks(self) -> dict[str, bytes]:
        """The last stored event of every track that has not ended, by its uid."""
        with self._errors():
            return {str(uid): bytes(event) for uid, event in self._db.execute("SELECT uid, event FROM tracks")}

    def shrink(self) -> bool:
        """Give some of the free pages back to the file system; True when there are more to give back."""
        with self._errors():
            free = int(self._db.execute("PRAGMA freelist_count").fetchone()[0])
            if free <= _SLACK_PAGES:
                return False
            # one step for each page: `execute` would take the first one only
            self._db.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        self._keeper.committed()
        return True

    def reopen(self) -> None:
        """After `StoreDamaged`: go on with what can be read."""
        self._let_go()
        self.lost += _salvage(self._path, "found while writing")
        self._open()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._let_go()

    def _let_go(self) -> None:
        self._keeper.close()
        self._reader.close()
        self._db.close()
        os.close(self._lock)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise StoreFull(
                    f"the spool {self._path} cannot grow ({error}): free space on the disk; events wait until then"
                ) from None
            if _is_damage(error):
                raise StoreDamaged(f"the spool {self._path} is damaged ({error})") from None
            raise SinkError(f"the spool {self._path} cannot be written ({error})") from None


class _StoreKeeper:
    """Brings commits to the disk in the background: at most `SYNC_WINDOW_S` of them are lost in a power cut.

    Checkpoints happen here too, on a connection of their own, so that no commit waits for one. Only where events come
    so fast that the log never ends before the next commit must it be begun anew while commits wait, tens of
    milliseconds: as rarely as its size allows. (The file does not tell: it stays as large as the log once was.)
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._path = path
        self._sync = sync
        self._file = -1  # the write-ahead log: the same file for as long as anybody has the database open
        self._warned = False
        self._checkpoint_at = 0.0
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-keeper", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        if not self._dirty.is_set():
            self._dirty.set()

    def close(self) -> None:
        self._closing.set()
        self._dirty.set()
        self._thread.join()

    def _run(self) -> None:
        db = _connect(self._path)
        self._page_bytes = int(db.execute("PRAGMA page_size").fetchone()[0])
        checkpointed = True
        while not self._closing.is_set():
            if not self._dirty.wait(None if checkpointed else _IDLE_S):
                checkpointed, _ = self._checkpoint(db, "TRUNCATE")
                continue
            self._dirty.clear()
            checkpointed = False
            try:
                self._keep(db)
            except OSError as error:
                if not self._warned:
                    log.error("spool %s: commits are not brought to the disk (%s)", self._path, error)
                self._warned = True
            self._closing.wait(SYNC_WINDOW_S)
        if self._file >= 0:
            os.close(self._file)
        db.close()

    def _keep(self, db: sqlite3.Connection) -> None:
        if self._file < 0:
            self._file = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        if self._sync:
            os.fdatasync(self._file)
        if os.fstat(self._file).st_size > _CHECKPOINT_BYTES and time.monotonic() >= self._checkpoint_at:
            _, size = self._checkpoint(db, "PASSIVE")
            if size > _RESTART_BYTES:
                self._checkpoint(db, "RESTART")
            self._checkpoint_at = time.monotonic() + _CHECKPOINT_S

    def _checkpoint(self, db: sqlite3.Connection, mode: str) -> tuple[bool, int]:
        """Whether it was not hindered, and the size of the log in bytes."""
        try:
            hindered, pages, _ = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            return not hindered, pages * self._page_bytes
        except sqlite3.Error as error:  # a full disk: the log is longer for a while
            log.debug("spool %s: checkpoint put off (%s)", self._path, error)
            return False, 0


def is_droppable(line: bytes) -> bool:
    """Whether a full spool may drop this event. The type stands before `data`, words of users after it."""
    head = line[:1024]
    return any(mark in head for mark in _DROPPABLE_MARKS)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA cache_size = -16000")
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file; raises `SinkError` for a database of something else."""
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    if application == 0 and int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]) == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; {_SCHEMA} COMMIT;")
    elif application != _APPLICATION_ID:
        raise SinkError(f"{path} is a database of something else: give the spool a file of its own")
    else:
        db.execute("PRAGMA journal_mode = WAL")


def _lines(first: int, last: int, crc: int, body: bytes) -> tuple[list[bytes], int]:
    """The lines of a block and how many of them are damaged; a damaged line comes back empty."""
    lines = body.split(b"\n")
    if zlib.crc32(body) == crc and len(lines) == last - first + 1:
        return lines, 0
    count = last - first + 1
    if len(lines) != count:
        return [b""] * count, count
    checked = [line if not line or _is_event(line) else b"" for line in lines]
    return checked, sum(map(bool, lines)) - sum(map(bool, checked))


def _is_event(line: bytes) -> bool:
    try:
        Event.from_json(line)
    except ValueError:
        return False
    return True


def _stream(line: bytes) -> str:
    try:
        return Event.from_json(line).data.stream
    except ValueError:
        return ""


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _salvage(path: Path, reason: str) -> int:
    """Move a damaged file aside and put what can be read of it into a new one; returns how many events are lost.

    Raises `sqlite3.Error`, with the file back in its place, where the new one cannot be written.
    """
    damaged = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    _move(path, damaged)
    new = _connect(path)
    kept = lost = 0
    certain = False
    try:
        _prepare(new, path)
        with contextlib.closing(_open_damaged(damaged, new)) as old:
            kept, lost, certain = _copy_readable(old, new)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            new.close()
            _move(damaged, path)
            raise
    new.close()
    log.error(
        "the spool %s was damaged (%s): %d events recovered, %d%s lost; the damaged file is kept as %s",
        path,
        reason,
        kept,
        lost,
        "" if certain else " or more",
        damaged.name,
    )
    return lost


def _move(path: Path, to: Path) -> None:
    """With what SQLite keeps beside it; what stands in the way is taken away."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{to}{suffix}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{to}{suffix}")


def _open_damaged(damaged: Path, like: sqlite3.Connection) -> sqlite3.Connection:
    """Opens what it can: first as it is, then with the head of a fresh file of the same layout."""
    with contextlib.suppress(sqlite3.DatabaseError):
        old = _connect(damaged)
        old.execute("PRAGMA writable_schema = ON")  # lets SQLite read on where the file was cut short
        if old.execute("SELECT count(*) FROM sqlite_master WHERE name = 'blocks'").fetchone()[0]:
            return old
        old.close()
    like.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fresh = Path(like.execute("PRAGMA database_list").fetchone()[2])
    page = int(like.execute("PRAGMA page_size").fetchone()[0])
    with damaged.open("r+b") as file, fresh.open("rb") as template:
        head = bytearray(template.read(page))
        head[28:32] = (os.fstat(file.fileno()).st_size // page).to_bytes(4, "big")
        head[32:40] = bytes(8)  # no free pages: they are not to be written again
        file.write(head)
    old = _connect(damaged)
    old.execute("PRAGMA writable_schema = ON")
    old.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return old


def _copy_readable(old: sqlite3.Connection, new: sqlite3.Connection) -> tuple[int, int, bool]:
    """Copies every block that can be read; returns how many events were kept and lost, and whether that is certain."""
    new.execute("BEGIN")
    meta = dict(_each(old, "SELECT name, value FROM meta"))
    for table, columns in (("meta", "name, value"), ("cursors", "sink, acked"), ("tracks", "uid, event")):
        rows = list(_each(old, f"SELECT {columns} FROM {table}"))
        new.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)
    acked = min((int(number) for _, number in _each(old, "SELECT sink, acked FROM cursors")), default=0)
    kept = lost = 0
    expected = acked + 1
    for first, last, droppable, _, crc, body in _blocks_of(old):
        lines, bad = _lines(first, last, crc, body)
        lost += max(0, first - expected) + bad
        good = b"\n".join(lines)
        row = (first, last, droppable, sum(map(len, lines)), zlib.crc32(good), good)
        new.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)
        kept += sum(map(bool, lines))
        expected = last + 1
    lost += max(0, int(meta.get("next", 0)) - expected)
    new.execute("INSERT OR REPLACE INTO meta VALUES ('next', ?)", (max(expected, int(meta.get("next", 0))),))
    new.execute("COMMIT")
    return kept, lost, "next" in meta


def _each(db: sqlite3.Connection, sql: str) -> Iterator[tuple[str, int]]:
    """The rows up to the first one that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        yield from db.execute(sql)


def _blocks_of(db: sqlite3.Connection) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Every block that can be read, in order."""
    for first in _first_numbers(db):
        with contextlib.suppress(sqlite3.DatabaseError):
            yield db.execute("SELECT * FROM blocks WHERE first = ?", (first,)).fetchone()


def _first_numbers(db: sqlite3.Connection) -> list[int]:
    """Where blocks begin, as far as it can be read: a range that fails is cut in two and tried again."""
    found: set[int] = set()
    failures = 0
    ranges = deque([(1, 1 << 48)])
    while ranges and failures < _SALVAGE_FAILURES:
        low, high = ranges.popleft()
        try:
            for (first,) in db.execute(
                "SELECT first FROM blocks NOT INDEXED WHERE first BETWEEN ? AND ? ORDER BY first", (low, high)
            ):
                found.add(first)
                low = first + 1
        except sqlite3.DatabaseError:
            failures += 1
            if low < high:
                middle = (low + high) // 2
                ranges += [(low, middle), (middle + 1, high)]
    return sorted(found)
