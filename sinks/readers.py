"""Readers of files that sinks wrote, also while they are being written."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sinks.address import SinkAddress
from sinks.event import Event
from sinks.sink import SinkAddressError, SinkError
from sinks.subscribe import Reader, StartPosition, UnreadableEvent
from sinks.worker import SinkWorker

_POLL_S = 0.2
_LINES = 1000
_CHUNK = 1 << 20
_LONGEST_LINE = 64 << 20


async def read_jsonl(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Lines in their order; following goes on in a file that was replaced or cut."""
    address.options.finish()
    path = Path(address.path)
    worker = SinkWorker("read-jsonl")
    lines = _LineReader(path, at_end=start.at == "latest")
    skip_until = start.value if start.at == "id" else ""
    try:
        while True:
            batch = await worker.call(lines.read)
            is_end = not batch and not follow
            for number, line in batch or (lines.last_line() if is_end else []):
                event = _parse_line(line, f"line {number} of {path}")
                if skip_until:
                    if isinstance(event, Event) and event.id == skip_until:
                        skip_until = ""
                    continue
                yield event
            if batch:
                continue
            if skip_until:
                raise _no_such_id(skip_until, address.public)
            if is_end:
                return
            await asyncio.sleep(_POLL_S)
    finally:
        lines.close()
        await worker.aclose()


class _LineReader:
    """The whole lines of a file, as far as it has grown.

    While it is followed, a last line without an end is not finished yet. Lines over `_LONGEST_LINE` bytes are passed
    over: they come back as None.
    """

    def __init__(self, path: Path, *, at_end: bool) -> None:
        self._path = path
        self._number = 0
        self._rest = b""
        self._is_skipping = False  # amid a line that is too long
        self._file: IO[bytes] = self._open_file()
        if at_end:
            self._file.seek(0, 2)

    def read(self) -> list[tuple[int, bytes | None]]:
        """Returns (number, line) of the new lines, about a megabyte at most; empty at the present end."""
        while True:
            chunk = self._file.read(_CHUNK)
            if not chunk and self._was_replaced():
                last = self.last_line()
                self._file.close()
                self._file, self._rest, self._number, self._is_skipping = self._open_file(), b"", 0, False
                if last:
                    return last
                continue
            if not chunk:
                return []
            if lines := self._split_lines(chunk):
                return lines

    def last_line(self) -> list[tuple[int, bytes | None]]:
        """Returns what stands behind the last newline, where that is something."""
        rest, self._rest = self._rest, b""
        return [(self._number + 1, rest)] if rest.strip() else []

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _split_lines(self, chunk: bytes) -> list[tuple[int, bytes | None]]:
        found: list[tuple[int, bytes | None]] = []
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._number += 1
            if self._is_skipping or len(line) > _LONGEST_LINE:
                self._is_skipping = False
                found.append((self._number, None))
            elif self._number == 1:
                found.append((1, line.removeprefix(codecs.BOM_UTF8)))
            else:
                found.append((self._number, line))
        if len(rest) > _LONGEST_LINE:
            self._is_skipping, rest = True, b""
        self._rest = rest
        return [(number, line) for number, line in found if line is None or line.strip()]

    def _open_file(self) -> IO[bytes]:
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise _cannot_read(self._path, str(error.strerror)) from None
        mark = file.read(2)
        file.seek(0)
        if mark in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            file.close()
            raise SinkError(f"{self._path} is text in UTF-16: save it as UTF-8")
        return file

    def _was_replaced(self) -> bool:
        try:
            now, mine = self._path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return now.st_size < self._file.tell() or (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)


async def read_sqlite(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Rows in the order of their arrival."""
    address.options.finish()
    path = Path(address.path)
    worker = SinkWorker("read-sqlite")
    rows = _RowReader(path)
    try:
        await worker.call(rows.start, start, address.public)
        while True:
            batch = await worker.call(rows.read)
            for position, text in batch:
                yield _parse_line(text.encode(), f"row {position} of {path}")
            if not batch:
                if not follow:
                    return
                await asyncio.sleep(_POLL_S)
    except sqlite3.Error as error:
        raise _cannot_read(path, str(error)) from None
    finally:
        rows.close()
        await worker.aclose()


class _RowReader:
    """The rows of a database after a position; one that is replaced is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._place = (0, 0)
        self._position = 0

    def start(self, start: StartPosition, public: str) -> None:
        """Opens the file and goes to the position. Raises `SinkError`."""
        self._position = _start_position(self._open_db(), start, public)

    def read(self) -> list[tuple[int, str]]:
        """Returns (position, event) of rows that follow; empty at the present end."""
        db = self._db or self._open_db()
        rows = _rows_after(db, self._position)
        if not rows and self._was_replaced():
            self.close()
            self._position = 0
            rows = _rows_after(self._open_db(), 0)
        if rows:
            self._position = rows[-1][0]
        return rows

    def close(self) -> None:
        """Closes the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open_db(self) -> sqlite3.Connection:
        self._db = _open_sqlite(self._path)
        self._place = _place_of(self._path)
        return self._db

    def _was_replaced(self) -> bool:
        try:
            if _place_of(self._path) == self._place:
                return False
            with contextlib.closing(_open_sqlite(self._path)) as db:
                return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone())
        except (OSError, SinkError, sqlite3.Error):
            return False  # it is away, or not complete yet


def _place_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _open_sqlite(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise _cannot_read(path, "there is no such file")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=10)


def _start_position(db: sqlite3.Connection, start: StartPosition, public: str) -> int:
    """Reading goes on after this position."""
    if start.at == "earliest":
        return 0
    sql = "SELECT coalesce(max(position), 0) FROM events"
    if start.at == "time":
        # streams arrive a little out of order: from the first event that is young enough, wherever it stands
        sql = f"SELECT coalesce(min(position) - 1, ({sql})) FROM events WHERE time >= ?"
    elif start.at == "id":
        sql = "SELECT max(position) FROM events WHERE id = ?"
    position = db.execute(sql, (start.value,) if "?" in sql else ()).fetchone()[0]
    if position is None:
        raise _no_such_id(start.value, public)
    return int(position)


def _rows_after(db: sqlite3.Connection, position: int) -> list[tuple[int, str]]:
    sql = "SELECT position, event FROM events WHERE position > ? ORDER BY position LIMIT ?"
    return db.execute(sql, (position, _LINES)).fetchall()


async def read_parquet(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """The files of a folder in the order in which they were written."""
    address.options.finish()
    folder = Path(address.path)
    if follow:
        raise SinkAddressError(f"{address.public}: Parquet files appear whole, they cannot be followed")
    worker = SinkWorker("read-parquet")
    skip_until = start.value if start.at == "id" else ""
    try:
        for path in await worker.call(_parquet_files, folder):
            for line in await worker.call(_parquet_lines, path):
                event = _parse_line(line, str(path))
                if skip_until:
                    if isinstance(event, Event) and event.id == skip_until:
                        skip_until = ""
                    continue
                yield event
        if skip_until:
            raise _no_such_id(skip_until, address.public)
    finally:
        await worker.aclose()


def _parquet_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise _cannot_read(folder, "there is no such folder")
    return sorted(folder.rglob("*.parquet"), key=lambda path: (path.name, str(path)))


def _parquet_lines(path: Path) -> list[bytes]:
    import pyarrow.parquet

    try:
        column: Any = pyarrow.parquet.read_table(path, columns=["event"], partitioning=None)["event"]
    except (OSError, KeyError, ValueError) as error:
        raise _cannot_read(path, str(error).partition("\n")[0]) from None
    return [text.encode() for text in column.to_pylist()]


def _parse_line(line: bytes | None, where: str) -> Event | UnreadableEvent:
    if line is None:
        return UnreadableEvent(f"{where} is no event: it is longer than {_LONGEST_LINE >> 20} MiB")
    try:
        return Event.from_json(line)
    except ValueError as error:
        return UnreadableEvent(f"{where} is no event: {_first_problem(error)}")


def _first_problem(error: ValueError) -> str:
    lines: Iterator[str] = iter(str(error).splitlines()[1:])
    return " ".join(line.strip() for _, line in zip(range(2), lines, strict=False)).partition(" [")[0]


def _cannot_read(path: Path, reason: str) -> SinkError:
    return SinkError(f"{path} cannot be read ({reason}): give the path of what a sink of groundstream wrote")


def _no_such_id(event_id: str, public: str) -> SinkError:
    return SinkError(f"{public} has no event {event_id}: give an id from there, a time, or earliest")
