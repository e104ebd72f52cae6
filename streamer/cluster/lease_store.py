"""Storage of the leases of cameras: one transaction at a time, in PostgreSQL or in an SQLite file of one machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sinks.permissions import create_private
from sinks.postgres import PostgresClient
from sinks.sink import SinkError
from streamer.cluster.lease_book import CameraRecord, LeaseBook, LeaseError, NodeRecord

R = TypeVar("R")

TIMEOUT_S = 2.0
"""Seconds that one transaction may take: a renewal that takes longer is worth nothing."""
LEASE_TABLES = "groundstream_leases"
"""What the names of the tables begin with where the address has no `table=NAME`."""
_KEPT_REVISIONS = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS {prefix}_nodes (
    name text PRIMARY KEY, session text NOT NULL, beat bigint NOT NULL, is_ready boolean NOT NULL,
    is_draining boolean NOT NULL, capacity bigint, revision bigint NOT NULL, seen_ns bigint NOT NULL,
    page text NOT NULL
);
CREATE TABLE IF NOT EXISTS {prefix}_cameras (
    name text PRIMARY KEY, is_wanted boolean NOT NULL, epoch bigint NOT NULL, holder text NOT NULL,
    session text NOT NULL, moving_to text NOT NULL, outage_cause text NOT NULL, outage_since_ns bigint NOT NULL,
    is_outage_reported boolean NOT NULL
);
CREATE TABLE IF NOT EXISTS {prefix}_configs (revision bigint PRIMARY KEY, hash text NOT NULL, text text NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """The configuration that all nodes use: the text of a YAML file, `${NAME}` unresolved. `is_old_copy` is true where
    the offered text is an earlier revision and was not taken."""

    revision: int
    text: str
    is_old_copy: bool = False


class LeaseStore(Protocol):
    """Runs functions on the lease book, each in a transaction of its own; blocks, and may be used by one thread."""

    def update(self, function: Callable[[LeaseBook], R]) -> R:
        """Call `function` with the present book and store what it changes, on the disk, before this returns. Raises
        `LeaseError` where the store does not answer; whether the change was stored is then not known."""
        ...

    def read_config(self) -> SharedConfig | None:
        """The newest configuration, None where there is none. Raises `LeaseError`."""
        ...

    def offer_config(self, text: str, cameras: Sequence[str]) -> SharedConfig:
        """Store a text that was never stored before as the newest configuration, which has these cameras; returns the
        newest. Raises `LeaseError`."""
        ...

    def check(self) -> str:
        """Say how things stand without changing anything. Raises `LeaseError` where a node could not use the store."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Connection(Protocol):
    """The part of a database connection that the store uses."""

    def execute(self, text: str, values: Sequence[Any] = ..., /) -> Any: ...


class SqlLeaseStore:
    """The leases in three tables of an SQL database; subclasses connect and open transactions."""

    placeholder = "?"

    def __init__(self, where: str, prefix: str = LEASE_TABLES) -> None:
        self.where = where
        self._prefix = prefix

    def update(self, function: Callable[[LeaseBook], R]) -> R:
        """See `LeaseStore.update`."""

        def run(db: Connection) -> R:
            book = self._load_book(db)
            nodes = {name: replace(node) for name, node in book.nodes.items()}
            cameras = {name: replace(camera) for name, camera in book.cameras.items()}
            result = function(book)
            self._save_rows(db, "nodes", nodes, book.nodes)
            self._save_rows(db, "cameras", cameras, book.cameras)
            return result

        return self._run(run)

    def read_config(self) -> SharedConfig | None:
        """See `LeaseStore.read_config`."""
        return self._run(self._newest_config)

    def offer_config(self, text: str, cameras: Sequence[str]) -> SharedConfig:
        """See `LeaseStore.offer_config`."""
        digest = hashlib.sha256(text.encode()).hexdigest()

        def run(db: Connection) -> SharedConfig:
            newest = self._newest_config(db)
            if newest is not None and newest.text == text:
                return newest
            known = self._execute(db, "SELECT 1 FROM {prefix}_configs WHERE hash = ?", digest).fetchone()
            if newest is not None and known is not None:
                return replace(newest, is_old_copy=True)
            made = SharedConfig(1 if newest is None else newest.revision + 1, text)
            self._execute(db, "INSERT INTO {prefix}_configs VALUES (?, ?, ?)", made.revision, digest, text)
            # Texts of old revisions are not needed any more; their hashes recognise old copies.
            self._execute(db, "UPDATE {prefix}_configs SET text = '' WHERE revision < ?", made.revision)
            self._execute(db, "DELETE FROM {prefix}_configs WHERE revision <= ?", made.revision - _KEPT_REVISIONS)
            book = self._load_book(db)
            before = {name: replace(camera) for name, camera in book.cameras.items()}
            book.set_cameras(cameras)
            self._save_rows(db, "cameras", before, book.cameras)
            return made

        return self._run(run)

    def check(self) -> str:
        """See `LeaseStore.check`."""
        raise NotImplementedError

    def close(self) -> None:
        """See `LeaseStore.close`."""

    def _describe_tables(self, db: Connection) -> str:
        nodes = self._execute(db, "SELECT count(*) FROM {prefix}_nodes").fetchone()[0]
        cameras = self._execute(db, "SELECT count(*) FROM {prefix}_cameras WHERE is_wanted").fetchone()[0]
        return f"{nodes} nodes share {cameras} cameras"

    def _run(self, function: Callable[[Connection], R]) -> R:
        """Call `function` in a transaction that excludes all others. Raises `LeaseError`."""
        raise NotImplementedError

    def _create_tables(self, db: Connection) -> None:
        for statement in _SCHEMA.split(";"):
            self._execute(db, statement)

    def _newest_config(self, db: Connection) -> SharedConfig | None:
        row = self._execute(db, "SELECT revision, text FROM {prefix}_configs ORDER BY revision DESC LIMIT 1").fetchone()
        return None if row is None else SharedConfig(int(row[0]), str(row[1]))

    def _load_book(self, db: Connection) -> LeaseBook:
        nodes = [NodeRecord(*row) for row in self._select_rows(db, "nodes", NodeRecord)]
        cameras = [CameraRecord(*row) for row in self._select_rows(db, "cameras", CameraRecord)]
        records: list[NodeRecord | CameraRecord] = [*nodes, *cameras]
        for record in records:
            for field in fields(record):  # SQLite has numbers for booleans
                if field.name.startswith("is_"):
                    setattr(record, field.name, bool(getattr(record, field.name)))
        row = self._execute(db, "SELECT coalesce(max(revision), 0) FROM {prefix}_configs").fetchone()
        return LeaseBook({one.name: one for one in nodes}, {one.name: one for one in cameras}, int(row[0]))

    def _select_rows(self, db: Connection, table: str, kind: type[NodeRecord | CameraRecord]) -> Iterable[Any]:
        columns = ", ".join(field.name for field in fields(kind))
        return list(self._execute(db, f"SELECT {columns} FROM {{prefix}}_{table} ORDER BY name").fetchall())

    def _save_rows(
        self,
        db: Connection,
        table: str,
        before: Mapping[str, NodeRecord | CameraRecord],
        after: Mapping[str, NodeRecord | CameraRecord],
    ) -> None:
        """Write the records that have changed."""
        for name in before.keys() - after.keys():
            self._execute(db, f"DELETE FROM {{prefix}}_{table} WHERE name = ?", name)
        for name, record in after.items():
            if before.get(name) == record:
                continue
            columns = [field.name for field in fields(record)]
            marks = ", ".join("?" for _ in columns)
            changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
            text = f"INSERT INTO {{prefix}}_{table} ({', '.join(columns)}) VALUES ({marks})"
            self._execute(db, f"{text} ON CONFLICT (name) DO UPDATE SET {changes}", *astuple(record))

    def _execute(self, db: Connection, text: str, *values: Any) -> Any:
        """Run a statement; its names of tables begin with the prefix, which is checked."""
        return db.execute(text.replace("{prefix}", self._prefix).replace("?", self.placeholder), values)


class SqliteLeaseStore(SqlLeaseStore):
    """The leases in a file, for several processes of one machine. The file must not lie on a network file system."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"the lease file {path}")
        self._path = path
        self._db: sqlite3.Connection | None = None

    def check(self) -> str:
        """See `LeaseStore.check`."""
        path = self._path.absolute()
        if path.is_dir():
            raise LeaseError(f"{self.where} cannot be used: it is a folder; give a file on a local disk")
        if path.exists():
            return self._run(self._describe_tables)
        nearest = next(parent for parent in path.parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise LeaseError(f"{self.where} cannot be made: {nearest} is no folder that this user may write")
        return "is made by the first node"

    def close(self) -> None:
        """See `LeaseStore.close`."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _run(self, function: Callable[[Connection], R]) -> R:
        try:
            if self._db is None:
                self._db = self._connect()
            with _sqlite_transaction(self._db):
                return function(self._db)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise LeaseError(
                f"{self.where} cannot be used: {error}; give a file on a local disk that this user may write"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        create_private(self._path)
        db = sqlite3.connect(self._path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # an epoch must never be given twice, not after a power cut either
        with _sqlite_transaction(db):
            self._create_tables(db)
        return db


@contextlib.contextmanager
def _sqlite_transaction(db: sqlite3.Connection) -> Iterator[None]:
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            # The change to write-ahead logging by another process is not waited for by SQLite itself.
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


class PostgresLeaseStore(SqlLeaseStore):
    """The leases in a PostgreSQL database."""

    placeholder = "%s"

    def __init__(self, client: PostgresClient) -> None:
        super().__init__(client.where, client.table)
        self._client = client
        self._has_tables = False

    def check(self) -> str:
        """See `LeaseStore.check`."""

        def run(db: Connection) -> str:
            prefix = self._prefix
            text = "SELECT pg_is_in_recovery(), to_regclass(%s)::text, has_schema_privilege(current_schema(), 'CREATE')"
            is_replica, table, may_create = db.execute(text, (f"{prefix}_nodes",)).fetchone()
            if is_replica:
                raise LeaseError(f"{self.where} is a read-only replica: give the address of its primary")
            if table is None:
                if not may_create:
                    raise LeaseError(
                        f"{self.where} does not let this user create tables: grant CREATE on its schema, or make them"
                    )
                return "the tables are made by the first node"
            for kind in ("nodes", "cameras", "configs"):
                name = f"{prefix}_{kind}"
                rights = [f"has_table_privilege(%s, '{right}')" for right in ("SELECT", "INSERT", "UPDATE", "DELETE")]
                if not db.execute(f"SELECT {' AND '.join(rights)}", [name] * len(rights)).fetchone()[0]:
                    raise LeaseError(f"{self.where} does not let this user write table {name}: grant the right")
            return self._describe_tables(db)

        try:
            return self._client.run(run, create=False)
        except SinkError as error:
            raise LeaseError(str(error)) from error

    def close(self) -> None:
        """See `LeaseStore.close`."""
        self._client.close()

    def _run(self, function: Callable[[Connection], R]) -> R:
        def run(db: Any) -> R:
            with db.transaction():
                self._client.lock(db)
                if not self._has_tables:
                    self._create_tables(db)
                    self._has_tables = True
                return function(db)

        try:
            return self._client.run(run, create=False)
        except SinkError as error:
            self._has_tables = False
            raise LeaseError(f"the leases cannot be renewed: {error}") from error
