"""Archive of events of all recordings in a result folder: `events.sqlite` and the same as lines of JSON."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from sinks.event import Event
from sinks.permissions import open_private
from sinks.sqlite import SqliteSink
from streamer.recorders.text import OutputError

DATABASE, LINES = "events.sqlite", "events.jsonl"
_BATCH = 500


class EventArchive:
    """Takes the events of a recording when it is complete; each event once, earlier events stay."""

    def __init__(self, out: Path) -> None:
        self.database, self.lines = out / DATABASE, out / LINES
        self._lock_file = out / ".events.lock"
        self._sink: SqliteSink | None = None
        self._lock = asyncio.Lock()

    def open(self) -> None:
        """Opens or makes the files. Raises `SinkError` and `OutputError`."""
        folder = self.lines.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the output folder {folder}: {error.strerror}; give another one") from error
        if self.lines.is_dir():
            raise OutputError(f"cannot write {self.lines}: Is a directory")
        if self.database.is_dir():
            raise OutputError(f"cannot write {self.database}: Is a directory")
        self._sink = SqliteSink(self.database)

    async def add(self, stream: str, events: Path, *, keep: bool = False) -> None:
        """Adds the events of a recording from `events` (lines of JSON), each once.

        Events of the stream that are not among them, from a run with other settings, are removed unless `keep`.
        """
        assert self._sink is not None
        async with self._lock, _file_lock(self._lock_file):
            known = await asyncio.to_thread(self._ids, stream)
            if not keep and known - {event.id for batch in _batches(events) for event in batch}:
                await asyncio.to_thread(self._remove, stream)
                known = set()
            for batch in _batches(events):
                await self._sink.send_batch(batch)
                fresh = [event.to_json() + b"\n" for event in batch if event.id not in known]
                await asyncio.to_thread(self._append, b"".join(fresh))

    async def aclose(self) -> None:
        if self._sink is not None:
            await self._sink.aclose()

    def _append(self, lines: bytes) -> None:
        try:
            with open(self.lines, "ab", opener=open_private) as file:
                file.write(lines)
        except OSError as error:
            raise OutputError(f"cannot write {self.lines}: {error.strerror}") from error

    def _ids(self, stream: str) -> set[str]:
        with sqlite3.connect(self.database) as database:
            rows = database.execute("SELECT id FROM events WHERE stream = ?", (stream,)).fetchall()
        database.close()
        return {row[0] for row in rows}

    def _remove(self, stream: str) -> None:
        """Removes a stream's events from the database, and writes the lines again without them."""
        database = sqlite3.connect(self.database, timeout=10)
        with database:
            removed = database.execute("DELETE FROM events WHERE stream = ?", (stream,)).rowcount
        if removed:
            rows = database.execute("SELECT event FROM events ORDER BY position")
            part = self.lines.with_suffix(".part")
            try:
                with open(part, "w", encoding="utf-8", opener=open_private) as file:
                    file.writelines(f"{row[0]}\n" for row in rows)
                os.replace(part, self.lines)
            except OSError as error:
                raise OutputError(f"cannot write {self.lines}: {error.strerror}") from error
        database.close()


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    """Excludes other processes that write to the same result folder."""
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def _batches(path: Path) -> Iterator[list[Event]]:
    with path.open("rb") as file:
        while lines := list(islice(file, _BATCH)):
            yield [Event.from_json(line.rstrip(b"\n")) for line in lines]
