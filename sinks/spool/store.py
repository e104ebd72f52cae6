"""The spool's file: blocks of events in SQLite (WAL), the cursors of the sinks, everything open, the last run."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sinks.permissions import PRIVATE
from sinks.sink import SinkError
from sinks.spool.keeper import StoreKeeper, checkpoint_all
from sinks.spool.salvage import resume_salvage, salvage
from sinks.spool.schema import (
    DroppedEvent,
    EventBlock,
    StoreDamaged,
    StoreFull,
    blob_rows,
    connect_file,
    is_damage,
    is_droppable,
    number_rows,
    parse_line,
    prepare_tables,
    split_lines,
)

log = logging.getLogger("sinks.spool")

_RELEASE_BYTES = 256 << 10
_SLACK_PAGES = 2048
_VACUUM_PAGES = 128


class SpoolStore:
    """Not thread-safe but for `read`, which other threads may call. Raises `SinkError` in one sentence.

    `next` is the number that the next event gets, `first` the lowest number that may still be stored, `used` the bytes
    of all stored events when the file was opened. `lost` counts events and stored states that could not be read.
    """

    def __init__(self, path: Path, *, sync_each: bool = False) -> None:
        self._path = path
        self._sync_each = sync_each
        self.lost = 0
        self.salvaged = False  # whether the file was repaired, so that its cursors may be missing
        self.next = 1
        self._damage = ""  # why the file has to be repaired before it is used again
        self._bad_upto = 0
        self._reading = threading.Lock()
        self._lock = -1
        self._is_open = self._is_closed = False
        try:
            self._open_file()
        except BaseException:
            self._release_lock()
            raise

    @property
    def path(self) -> Path:
        return self._path

    def _open_file(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._lock < 0:
                self._take_lock()
            self._open_sound()
        except OSError as error:
            raise SinkError(
                f"the spool {self._path} cannot be opened ({error.strerror}): check path and rights"
            ) from None
        except sqlite3.Error as error:
            raise SinkError(
                f"the spool {self._path} cannot be opened ({error}): check path, rights and space"
            ) from None

    def _open_sound(self) -> None:
        """Opens the file, repaired where it is damaged."""
        if lost := resume_salvage(self._path):
            self._note_salvage(lost)
        if self._damage:
            self._note_salvage(salvage(self._path, self._damage))
        try:
            self._connect_file()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._note_salvage(salvage(self._path, str(error)))
            self._connect_file()
        self._damage = ""
        self._keeper = StoreKeeper(self._path, sync=not self._sync_each)
        self._is_open = True

    def _note_salvage(self, lost: int) -> None:
        self.lost += lost
        self.salvaged = True

    def _connect_file(self) -> None:
        self._db = connect_file(self._path)
        try:
            prepare_tables(self._db, self._path)
            self._db.execute(f"PRAGMA synchronous = {'FULL' if self._sync_each else 'NORMAL'}")
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
            self._db.execute("PRAGMA locking_mode = NORMAL")
            # walks every page that holds the blocks' heads: a damaged file shows itself now, not at night
            self.used = int(self._db.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()[0])
            self.meta = self._read_numbers("meta", "SELECT name, value FROM meta")
            self.cursors = self._read_numbers("cursors", "SELECT sink, acked FROM cursors ORDER BY rowid")
            first, last = self._db.execute("SELECT min(first), max(last) FROM blocks").fetchone()
            known = (self.next, self.meta.get("next", 1), *(acked + 1 for acked in self.cursors.values()))
            self.next = max(*known, last + 1 if isinstance(last, int) else 1)
            self.first = first if isinstance(first, int) else self.next
            self._reader = connect_file(self._path)
        except BaseException:
            self._db.close()
            raise

    def _read_numbers(self, table: str, sql: str) -> dict[str, int]:
        sound, damaged = number_rows(self._db.execute(sql))
        for name in damaged:
            self.lost += 1
            log.error("the spool %s is damaged: the row %s of %s is left out", self._path, name, table)
        return sound

    def _take_lock(self) -> None:
        """One process at a time: two would store different events under the same numbers."""
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            os.lockf(self._lock, os.F_TLOCK, 0)
        except OSError:
            self._release_lock()
            raise SinkError(
                f"the spool {self._path} is in use by another process: end that one, or give this one its own spool"
            ) from None

    def _release_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def append(self, lines: Sequence[bytes], droppable: int) -> int:
        """Stores the lines in one commit; returns the number of the first. Raises `StoreFull` when the disk is full."""
        body = b"\n".join(lines)
        with self._errors():
            first = self.next
            row = (first, first + len(lines) - 1, droppable, sum(map(len, lines)), zlib.crc32(body), body)
            self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)
        self.next = first + len(lines)
        self._keeper.committed()
        return first

    def read(self, after: int, limit: int) -> list[EventBlock]:
        """Blocks with events numbered above `after`, until `limit` events are reached; the first may begin before.

        May be called from other threads. Raises `StoreDamaged` when the file has to be repaired first.
        """
        blocks: list[EventBlock] = []
        count = 0
        with self._reading:
            if not self._is_open:
                raise SinkError(f"the spool {self._path} cannot be read at present: its file is being repaired")
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
            lines, bad = split_lines(*row)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise SinkError(f"the spool {self._path} cannot be read ({error})") from None
            first, last = self._read_bounds(sql.replace(", crc, body", ""), after)
            lines, bad = split_lines(first, last, 0, b"")
        if not lines:
            raise StoreDamaged(f"the spool {self._path} is damaged (a block of events {first!r} to {last!r})")
        if bad and last > self._bad_upto:
            self._bad_upto = last
            self.lost += bad
            log.error("the spool %s is damaged: %d of the events %d to %d are lost", self._path, bad, first, last)
        return EventBlock(first, lines)

    def _read_bounds(self, sql: str, after: int) -> tuple[int, int]:
        try:
            first, last = self._reader.execute(sql, (after,)).fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            raise StoreDamaged(f"the spool {self._path} is damaged ({error})") from None
        return first, last

    def release(self, upto: int) -> int:
        """Deletes blocks that end at or before `upto`, some of them; returns the bytes that this gives back.

        Not all at once: every page has to be put on a list, and a commit would have to wait for that.
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

    def drop_oldest(self, wanted: int, after: int = 0) -> list[DroppedEvent]:
        """Empties the oldest lines that may be dropped until `wanted` bytes are free, or none of them is left.

        Only events with a number above `after` are dropped.
        """
        dropped: list[DroppedEvent] = []
        freed = 0
        with self._errors():
            while freed < wanted:
                sql = (
                    "SELECT first, last, crc, body FROM blocks WHERE droppable > 0 AND last > ? ORDER BY first LIMIT 1"
                )
                row = self._db.execute(sql, (after,)).fetchone()
                if row is None:
                    break
                lines, _ = split_lines(*row)
                droppable = [index for index, line in enumerate(lines) if is_droppable(line)]
                gone = [index for index in droppable if row[0] + index > after]
                after = max(after, int(row[1]))
                for index in gone:
                    dropped.append(DroppedEvent(row[0] + index, _stream_of(lines[index]), len(lines[index])))
                    freed += len(lines[index])
                    lines[index] = b""
                body = b"\n".join(lines)
                self._db.execute(
                    "UPDATE blocks SET droppable = ?, size = ?, crc = ?, body = ? WHERE first = ?",
                    (len(droppable) - len(gone), sum(map(len, lines)), zlib.crc32(body), body, row[0]),
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
        """Stores cursors, numbers and the last events of what is open (None: it was closed) in one commit."""
        with self._errors():
            self.meta.update(meta or {}, next=self.next)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(self.meta.items()))
            if cursors is not None:
                self._db.execute("DELETE FROM cursors")
                self._db.executemany("INSERT INTO cursors VALUES (?, ?)", list(cursors.items()))
            changed = [(key, event) for key, event in (tracks or {}).items() if event is not None]
            closed = [(key,) for key, event in (tracks or {}).items() if event is None]
            self._db.executemany("INSERT OR REPLACE INTO tracks VALUES (?, ?)", changed)
            self._db.executemany("DELETE FROM tracks WHERE uid = ?", closed)
            self._db.execute("COMMIT")
            if cursors is not None:
                self.cursors = dict(cursors)
        self._keeper.committed()

    def open_rows(self) -> dict[str, bytes]:
        """The stored last event of everything that is open, by its key (see `OpenState`); a row may be damaged."""
        with self._errors():
            return blob_rows(self._db.execute("SELECT uid, event FROM tracks"))

    def stored_bytes(self) -> int:
        """The bytes of all stored events."""
        with self._errors():
            return int(self._db.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()[0])

    def shrink(self) -> bool:
        """Gives some of the free pages back to the file system; True when there are more to give back."""
        with self._errors():
            free = int(self._db.execute("PRAGMA freelist_count").fetchone()[0])
            if free <= _SLACK_PAGES:
                return False
            # one step for each page: `execute` would take the first one only
            self._db.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        self._keeper.committed()
        return True

    def reopen(self) -> None:
        """After `StoreDamaged`: repairs the file and opens it again.

        Raises `SinkError` when the repair cannot be written; the next operation tries it again.
        """
        self._damage = self._damage or "found while it was used"
        self._close_file()
        self._open_file()

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        if self._is_open:
            checkpoint_all(self._db)
        self._close_file()
        self._is_closed = True
        self._release_lock()

    def _close_file(self) -> None:
        if self._is_open:
            with self._reading:
                self._is_open = False
                self._reader.close()
            self._keeper.close()
            self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns SQLite's errors into ours; opens the file first where an earlier repair failed."""
        if self._is_closed:
            raise SinkError(f"the spool {self._path} is closed")
        if not self._is_open:
            self._open_file()
        try:
            yield
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise StoreFull(
                    f"the spool {self._path} cannot grow ({error}): free space on the disk; events wait until then"
                ) from None
            if is_damage(error):
                self._damage = str(error)
                raise StoreDamaged(f"the spool {self._path} is damaged ({error})") from None
            raise SinkError(f"the spool {self._path} cannot be written ({error})") from None


def _stream_of(line: bytes) -> str:
    event = parse_line(line)
    return "" if event is None else event.data.stream
