"""Work behind `groundstream spool`: the cursors of a spool's sinks, listed, adopted and dropped."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from sinks.address import redact
from sinks.registry import sink_name
from sinks.sink import SinkAddressError
from sinks.spool.salvage import newest_damaged
from sinks.spool.schema import APPLICATION_ID, number_rows
from sinks.spool.store import SpoolStore
from streamer.errors import ConfigError, StreamerError
from streamer.spooling import state_folder
from streamer.tasks.console import user_console


@dataclass(frozen=True, slots=True)
class SinkCursor:
    """One sink's place in a spool: `waiting` events have not been acknowledged by it."""

    sink: str
    acknowledged: int
    waiting: int


@dataclass(frozen=True, slots=True)
class SpoolSummary:
    """What is in a spool's file. `events` and `bytes` are stored; `damaged` names a damaged file that was kept."""

    file: str
    events: int
    bytes: int
    cursors: list[SinkCursor]
    damaged: str = ""


def find_spools(file: Path | None) -> list[Path]:
    """The given spool, else every spool in the state folder. Raises `ConfigError` for a file that is not there."""
    if file is None:
        return sorted(state_folder().glob("*.spool"))
    if not file.is_file():
        raise ConfigError(f"there is no spool {file}: give the file that `groundstream spool list` names")
    return [file]


def read_summary(file: Path) -> SpoolSummary:
    """Reads a spool, also one that is in use. Raises `StreamerError` when it is not a spool or damaged."""
    with _open_reading(file) as db:
        cursors, _ = number_rows(db.execute("SELECT sink, acked FROM cursors ORDER BY rowid"))
        meta, _ = number_rows(db.execute("SELECT name, value FROM meta"))
        first, last, size = db.execute("SELECT min(first), max(last), coalesce(sum(size), 0) FROM blocks").fetchone()
    newest = max(meta.get("next", 1) - 1, last or 0, *cursors.values(), 0)
    damaged = newest_damaged(file)
    return SpoolSummary(
        str(file),
        0 if first is None else last - first + 1,
        size,
        [SinkCursor(sink, acked, max(0, newest - acked)) for sink, acked in cursors.items()],
        "" if damaged is None else damaged.name,
    )


@contextlib.contextmanager
def _open_reading(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
            if int(db.execute("PRAGMA application_id").fetchone()[0]) != APPLICATION_ID:
                raise ConfigError(f"{file} is not a spool of groundstream: see `groundstream spool list` for those")
            yield db
    except sqlite3.Error as error:
        raise StreamerError(
            f"the spool {file} cannot be read ({error}): the next start of monitor repairs it"
        ) from error


def show_spools(file: Path | None, *, as_json: bool) -> None:
    """Prints every cursor of one spool or of all spools in the state folder."""
    summaries, unreadable = [], []
    for one in find_spools(file):
        try:
            summaries.append(read_summary(one))
        except StreamerError as error:
            if file is not None:
                raise
            unreadable.append(str(error))
    console = user_console()
    if as_json:
        print(json.dumps([asdict(summary) for summary in summaries], indent=2))  # noqa: T201
        return
    if not summaries and not unreadable:
        console.print(f"no spool in {state_folder()}")
    for summary in summaries:
        console.print(f"{summary.file}: {summary.events} events, {summary.bytes:,} bytes")
        if summary.damaged:
            console.print(f"a damaged file was kept beside it: {summary.damaged}")
        if summary.cursors:
            table = Table("sink", "acknowledged", "waiting")
            for cursor in summary.cursors:
                table.add_row(cursor.sink, str(cursor.acknowledged), str(cursor.waiting))
            console.print(table)
    for sentence in unreadable:
        console.print(sentence)


def adopt_cursor(file: Path, old: str, new: str) -> int:
    """Gives the events that wait for the sink `old` to the sink `new`; returns how many wait.

    Raises `ConfigError` when there is no such cursor, `SinkError` while the spool is in use.
    """
    with _open_editing(file) as store:
        old_name, new_name = _find_cursor(store, old), _name_of(new)
        if old_name == new_name:
            raise ConfigError(f"{new_name} has that cursor already: give two different sinks")
        acked = min(store.cursors[old_name], store.cursors.get(new_name, store.next - 1))
        kept = {name: value for name, value in store.cursors.items() if name not in (old_name, new_name)}
        store.remember(cursors={**kept, new_name: acked})
        return store.next - 1 - acked


def drop_cursor(file: Path, sink: str) -> int:
    """Forgets a sink's cursor; returns how many events waited for it.

    Raises `ConfigError` when there is no such cursor, `SinkError` while the spool is in use.
    """
    with _open_editing(file) as store:
        name = _find_cursor(store, sink)
        kept = {other: acked for other, acked in store.cursors.items() if other != name}
        waiting = store.next - 1 - store.cursors[name]
        store.remember(cursors=kept)
        return waiting


@contextlib.contextmanager
def _open_editing(file: Path) -> Iterator[SpoolStore]:
    find_spools(file)
    read_summary(file)  # refuses files of other programs before anything is opened for writing
    store = SpoolStore(file)
    try:
        yield store
    finally:
        store.close()


def _find_cursor(store: SpoolStore, sink: str) -> str:
    """The cursor of a sink that is given by its name, or by its address with or without options."""
    names = [name for name in store.cursors if sink in (name, name.partition("?")[0])]
    if not names and (exact := _name_of(sink)) in store.cursors:
        names = [exact]
    if len(names) != 1:
        known = ", ".join(store.cursors) or "none"
        raise ConfigError(f"the spool {store.path} has no cursor of {_name_of(sink)}: it has {known}")
    return names[0]


def _name_of(sink: str) -> str:
    """A name as it is, an address as a spool remembers it."""
    try:
        return sink_name(sink)
    except SinkAddressError:
        return redact(sink)
