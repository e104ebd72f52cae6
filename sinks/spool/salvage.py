"""Repair of a damaged spool file: the readable events go into a new file, which takes the old one's place last.

A kill or an error at any moment loses nothing. The new file is built beside the damaged one (`PATH.repair`), marked
as complete and brought to the disk; only then are the two renamed, and a start that finds a complete repair finishes
the renaming. The damaged file is kept as `PATH.damaged-MILLISECONDS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sinks.permissions import create_private
from sinks.spool.schema import (
    blob_rows,
    connect_file,
    decode_text,
    is_damage,
    is_droppable,
    number_rows,
    prepare_tables,
    split_lines,
)

log = logging.getLogger("sinks.spool")

COMPLETE = "repaired_ms"
"""The row of `meta` that a complete repair ends with."""

_MOST_FAILURES = 50_000
_SUFFIXES = ("", "-wal", "-shm")
_HIGHEST = 1 << 48


@dataclass(slots=True)
class SalvageCount:
    """What a repair found. `certain` is false where the number of lost events is a lower bound."""

    kept: int = 0
    lost: int = 0
    certain: bool = False


def salvage(path: Path, reason: str) -> int:
    """Replaces the damaged file at `path` by one with its readable events; returns how many events are lost.

    Raises `sqlite3.Error` or `OSError`, with the damaged file as it was, when the new file cannot be written.
    """
    count = _build_repair(path, path)
    kept_as = _finish_repair(path)
    _log_repair(path, reason, count, kept_as)
    return count.lost


def resume_salvage(path: Path) -> int:
    """Finishes a repair that a kill interrupted; returns how many events it lost, 0 when there was none.

    Raises as `salvage` does.
    """
    if _is_complete(_repair_of(path)):
        kept_as = _finish_repair(path)
        log.warning("the repair of the spool %s was interrupted and is finished now; see %s", path, kept_as)
        return 0
    if path.exists():
        _remove_database(_repair_of(path))  # begun and not complete: the spool itself is still in its place
        return 0
    damaged = newest_damaged(path)
    if damaged is None:
        return 0
    for suffix in _SUFFIXES[1:]:  # a kill between two renames
        if os.path.exists(f"{path}{suffix}") and not os.path.exists(f"{damaged}{suffix}"):
            os.rename(f"{path}{suffix}", f"{damaged}{suffix}")
    count = _build_repair(damaged, path)
    _finish_repair(path)
    _log_repair(path, f"{damaged.name} had no successor", count, damaged.name)
    return count.lost


def newest_damaged(path: Path) -> Path | None:
    """The newest damaged file that was kept beside `path`."""
    found = [
        (int(number), file)
        for file in path.parent.glob(f"{path.name}.damaged-*")
        if (number := file.name.rpartition("-")[2]).isdigit()
    ]
    return max(found)[1] if found else None


def _log_repair(path: Path, reason: str, count: SalvageCount, kept_as: str) -> None:
    more = "" if count.certain else " or more"
    log.error(
        "the spool %s was damaged (%s): %d events recovered, %d%s lost; the damaged file is kept as %s",
        *(path, reason, count.kept, count.lost, more, kept_as),
    )


def _repair_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.repair")


def _build_repair(damaged: Path, path: Path) -> SalvageCount:
    """Fills `PATH.repair` from the damaged file and marks it as complete."""
    repair = _repair_of(path)
    source = path.with_name(f"{path.name}.repair-source")
    _remove_database(repair)
    _remove_database(source)
    new = connect_file(repair)
    try:
        prepare_tables(new, repair)
        count = _copy_from(damaged, source, new)
        new.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (COMPLETE, time.time_ns() // 1_000_000))
    except BaseException:
        new.close()
        _remove_database(repair)
        raise
    finally:
        _remove_database(source)
    new.close()  # the last connection brings the log into the file
    with repair.open("rb") as file:
        os.fsync(file.fileno())
    return count


def _copy_from(damaged: Path, source: Path, new: sqlite3.Connection) -> SalvageCount:
    try:
        with contextlib.closing(_open_damaged(damaged, source, new)) as old:
            return _copy_readable(old, new)
    except sqlite3.DatabaseError as error:
        if new.in_transaction:
            new.execute("ROLLBACK")
        if not is_damage(error):
            raise
        return SalvageCount()  # nothing can be read at all


def _is_complete(repair: Path) -> bool:
    if not repair.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(repair)) as db:
            return db.execute("SELECT 1 FROM meta WHERE name = ?", (COMPLETE,)).fetchone() is not None
    except sqlite3.DatabaseError:
        return False


def _finish_repair(path: Path) -> str:
    """Moves the damaged file aside and the complete repair into its place; returns the damaged file's new name.

    Safe to call again after a kill: what is moved already is skipped. The repair's own log is empty.
    """
    repair = _repair_of(path)
    damaged = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    was_there = path.exists()
    if not was_there:
        damaged = newest_damaged(path) or damaged
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{damaged}{suffix}")
    for suffix in _SUFFIXES[1:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{repair}{suffix}")
    os.rename(repair, path)
    _sync_folder(path.parent)
    return damaged.name


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_database(path: Path) -> None:
    """Removes a database with what SQLite keeps beside it."""
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def _open_damaged(damaged: Path, source: Path, like: sqlite3.Connection) -> sqlite3.Connection:
    """Opens the file as it is, else a copy of it with the head of a fresh file of the same layout."""
    with contextlib.suppress(sqlite3.DatabaseError):
        old = _connect_read(damaged)
        try:
            old.execute("PRAGMA writable_schema = ON")  # lets SQLite read on where the file was cut short
            if old.execute("SELECT count(*) FROM sqlite_master WHERE name = 'blocks'").fetchone()[0]:
                return old
        except sqlite3.DatabaseError:
            old.close()
            raise
        old.close()
    for suffix in _SUFFIXES[:2]:
        with contextlib.suppress(FileNotFoundError):
            create_private(Path(f"{source}{suffix}"))
            shutil.copyfile(f"{damaged}{suffix}", f"{source}{suffix}")
    like.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fresh = Path(like.execute("PRAGMA database_list").fetchone()[2])
    page = int(like.execute("PRAGMA page_size").fetchone()[0])
    with source.open("r+b") as file, fresh.open("rb") as template:
        head = bytearray(template.read(page))
        head[28:32] = (os.fstat(file.fileno()).st_size // page).to_bytes(4, "big")
        head[32:40] = bytes(8)  # no free pages: they are not to be written again
        file.write(head)
    old = _connect_read(source)
    try:
        old.execute("PRAGMA writable_schema = ON")
        old.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        old.close()
        raise
    return old


def _connect_read(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.text_factory = decode_text
    return db


def _copy_readable(old: sqlite3.Connection, new: sqlite3.Connection) -> SalvageCount:
    """Copies every row that can be read and makes sense."""
    count = SalvageCount()
    meta, _ = number_rows(_readable_rows(old, "SELECT name, value FROM meta"))
    cursors, _ = number_rows(_readable_rows(old, "SELECT sink, acked FROM cursors ORDER BY rowid"))
    meta.pop(COMPLETE, None)
    cursors = {name: acked for name, acked in cursors.items() if 0 <= acked < _HIGHEST}
    new.execute("BEGIN")
    new.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
    new.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?)", list(cursors.items()))
    tracks = blob_rows(_readable_rows(old, "SELECT uid, event FROM tracks"))
    new.executemany("INSERT OR REPLACE INTO tracks VALUES (?, ?)", list(tracks.items()))
    expected = min(cursors.values(), default=0) + 1
    for first, last, _, _, crc, body in _readable_blocks(old):
        lines, bad = split_lines(first, last, crc, body)
        if not lines:
            continue  # its events are counted as the gap before the next block
        count.lost += max(0, first - expected) + bad
        good = b"\n".join(lines)
        droppable = sum(map(is_droppable, lines))
        row = (first, last, droppable, sum(map(len, lines)), zlib.crc32(good), good)
        new.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)
        count.kept += sum(map(bool, lines))
        expected = last + 1
    following = meta.get("next", 0) if 0 <= meta.get("next", 0) < _HIGHEST else 0
    count.lost += max(0, following - expected)
    count.certain = following > 0
    new.execute("INSERT OR REPLACE INTO meta VALUES ('next', ?)", (max(expected, following),))
    new.execute("COMMIT")
    return count


def _readable_rows(db: sqlite3.Connection, sql: str) -> Iterator[tuple[object, ...]]:
    """The rows up to the first one that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        yield from db.execute(sql)


def _readable_blocks(db: sqlite3.Connection) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Every block that can be read, in order."""
    for first in _first_numbers(db):
        row = None
        with contextlib.suppress(sqlite3.DatabaseError):
            row = db.execute("SELECT * FROM blocks WHERE first = ?", (first,)).fetchone()
        if row is not None:
            yield row


def _first_numbers(db: sqlite3.Connection) -> list[int]:
    """Where blocks begin, as far as it can be read: a range that fails is cut in two and tried again."""
    found: set[int] = set()
    failures = 0
    ranges = deque([(1, _HIGHEST)])
    while ranges and failures < _MOST_FAILURES:
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
