"""Readers of files that sinks wrote, also while they are being written."""

from __future__ import annotations

import asyncio
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
            for number, line in batch:
                event = _parse(line, f"line {number} of {path}")
                if skip_until:
                    if isinstance(event, Event) and event.id == skip_until:
                        skip_until = ""
                    continue
                yield event
            if batch:
                continue
            if skip_until:
                raise _no_such_id(skip_until, address.public)
            if not follow:
                return
            await asyncio.sleep(_POLL_S)
    finally:
        lines.close()
        await worker.aclose()


class _LineReader:
    """The whole lines of a file, as far as it has grown. A last line without an end is not finished yet."""

    def __init__(self, path: Path, *, at_end: bool) -> None:
        self._path = path
        self._number = 0
        self._rest = b""
        self._file: IO[bytes] = self._open()
        if at_end:
            self._file.seek(0, 2)

    def read(self) -> list[tuple[int, bytes]]:
        """(number, line) of what is new, about a megabyte at most; empty at the present end."""
        chunk = self._file.read(_CHUNK)
        if not chunk and self._was_replaced():
            self._file.close()
            self._file, self._rest, self._number = self._open(), b"", 0
            chunk = self._file.read(_CHUNK)
        if not chunk:
            return []
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        first = self._number + 1
        self._number += len(lines)
        return [(number, line) for number, line in enumerate(lines, first) if line.strip()] or self.read()

    def close(self) -> None:
        self._file.close()

    def _open(self) -> IO[bytes]:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise _cannot_read(self._path, str(error.strerror)) from None

    def _was_replaced(self) -> bool:
        try:
            now, mine = self._path.stat(), Path(f"/proc/self/fd/{self._file.fileno()}")
            return now.st_size < self._file.tell() or not self._path.samefile(mine)
        except OSError:
            return False


async def read_sqlite(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Rows in the order of their arrival."""
    address.options.finish()
    path = Path(address.path)
    worker = SinkWorker("read-sqlite")
    try:
        db = await worker.call(_open_sqlite, path)
        try:
            position = await worker.call(_start_position, db, start, address.public)
            while True:
                rows = await worker.call(_rows_after, db, position)
                for position, text in rows:
                    yield _parse(text.encode(), f"row {position} of {path}")
                if not rows:
                    if not follow:
                        return
                    await asyncio.sleep(_POLL_S)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise _cannot_read(path, str(error)) from None
    finally:
        await worker.aclose()


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
                event = _parse(line, str(path))
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


def _parse(line: bytes, where: str) -> Event | UnreadableEvent:
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
