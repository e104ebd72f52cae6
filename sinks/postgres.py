"""Events in a PostgreSQL table with proper columns, and their reader.

SELECT time, stream, queries FROM groundstream_events WHERE type = 'groundstream.zone.enter.v1' ORDER BY position;
SELECT event -> 'data' -> 'track' ->> 'score' FROM groundstream_events WHERE 'red car' = ANY(queries);
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sinks.address import SinkAddress
from sinks.event import Event
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.subscribe import Reader, StartPosition, UnreadableEvent
from sinks.tls import TlsOptions, TlsOptionsError
from sinks.worker import ExchangeLimit, SinkWorker

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

_TABLE = "groundstream_events"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(?:\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")
_POLL_S = 0.5
_ROWS = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS {table} (
    position    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order of arrival
    id          text NOT NULL UNIQUE,
    run         bigint NOT NULL,
    stream      text NOT NULL,
    sequence    bigint NOT NULL,
    type        text NOT NULL,
    subject     text NOT NULL,
    time        timestamptz NOT NULL,
    track       bigint,                                          -- the tracker's number
    score       double precision,
    zone        text,
    line        text,
    queries     text[] NOT NULL,
    event       json NOT NULL                                    -- all of it, as it was sent
);
CREATE INDEX IF NOT EXISTS {time_index} ON {table} (time);
CREATE INDEX IF NOT EXISTS {stream_index} ON {table} (stream, run, sequence);
"""
_INSERT = """
INSERT INTO {table} (id, run, stream, sequence, type, subject, time, track, score, zone, line, queries, event)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING
"""

R = TypeVar("R")


class PostgresClient:
    """A connection to one table, opened when needed. Every call has `timeout_s` seconds from its beginning to its end.

    `settings` are libpq's. Raises `SinkError` in a sentence without secrets. For the use of one thread.
    """

    def __init__(self, where: str, table: str, settings: dict[str, Any], timeout_s: float) -> None:
        self.where = f"PostgreSQL at {where}"
        self.table = table
        self._settings = settings
        self._timeout_s = timeout_s
        self._db: psycopg.Connection[Any] | None = None
        self._has_table = False
        self._limit = ExchangeLimit(self.where, timeout_s, self._shut_down)

    def run(self, function: Callable[[psycopg.Connection[Any]], R], *, create: bool) -> R:
        """Calls the function with the connection; `create` makes the table where it is missing."""
        import psycopg

        with self._limit.limit_exchange():
            try:
                if self._db is None:
                    self._db = self._connect()
                if create and not self._has_table:
                    self._create_table(self._db)
                    self._has_table = True
                return function(self._db)
            except psycopg.DataError:
                self.close()
                raise
            except psycopg.Error as error:
                self.close()
                raise self._failure(error) from None

    def query(self, text: str) -> Composed:
        """The statement with the table's name in it."""
        from psycopg import sql

        parts = self.table.split(".")
        names = {"table": sql.Identifier(*parts)}
        names |= {f"{kind}_index": sql.Identifier(f"{parts[-1][:50]}_by_{kind}") for kind in ("time", "stream")}
        return sql.SQL(text).format(**names)

    def interrupt(self) -> None:
        """Ends a call in progress and refuses further ones; may be called from another thread."""
        self._limit.interrupt()

    def close(self) -> None:
        """Closes the connection."""
        db, self._db, self._has_table = self._db, None, False
        if db is not None:
            db.close()

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        return psycopg.connect(
            **self._settings,
            autocommit=True,
            connect_timeout=max(2, round(self._timeout_s)),
            application_name="groundstream",
        )

    def _create_table(self, db: psycopg.Connection[Any]) -> None:
        found = db.execute(
            "SELECT to_regclass(%s)", (self.table if "." in self.table else f'"{self.table}"',)
        ).fetchone()
        if found is None or found[0] is None:
            with db.transaction():
                self.lock(db)  # two writers that begin together
                db.execute(self.query(_SCHEMA))

    def lock(self, db: psycopg.Connection[Any]) -> None:
        """Lets one transaction at a time write, so that positions become visible in their order."""
        db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"groundstream {self.table}",))

    def _shut_down(self) -> None:
        db = self._db
        if db is None:
            return
        with contextlib.suppress(Exception):  # it may be closed at any moment
            connection = socket.socket(fileno=os.dup(db.fileno()))
            with connection:
                connection.shutdown(socket.SHUT_RDWR)

    def _failure(self, error: psycopg.Error) -> SinkError:
        from psycopg import errors

        if self._limit.is_closed:
            return self._limit.closed_error()
        if self._limit.is_late:
            return SinkError(f"{self.where} does not answer within {self._timeout_s:g} s")
        text = " ".join(str(error).split())
        if isinstance(error, errors.ReadOnlySqlTransaction):
            return SinkError(f"{self.where} is a read-only replica: give the address of its primary")
        if isinstance(error, errors.InsufficientPrivilege):
            return SinkError(
                f"{self.where} does not let this user write table {self.table} ({text}): ask for the right"
            )
        if isinstance(error, errors.UndefinedColumn | errors.InvalidColumnReference | errors.DatatypeMismatch):
            return SinkError(f"{self.where} has another table {self.table}: give the sink its own with table=NAME")
        if "password authentication failed" in text or "no password supplied" in text:
            return SinkError(f"{self.where} refuses the user or the password")
        if "does not exist" in text and "database" in text:
            return SinkError(f"{self.where} has no such database: create it, or correct the address")
        if "certificate verify failed" in text or "server certificate" in text or "root certificate" in text:
            return SinkError(
                f"{self.where} shows a TLS certificate that is not trusted ({text}): check cafile and host"
            )
        return SinkError(f"{self.where} does not take events ({text})")


class PostgresSink:
    """Stores each event once, however often it is sent; a batch is one transaction."""

    def __init__(self, client: PostgresClient) -> None:
        self._client = client
        self._worker = SinkWorker("sink-postgres")

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Stores the events; see `Sink.send_batch`."""
        await self._worker.call(self._insert_batch, events)

    async def check(self) -> str:
        """Says how things stand, without writing. Raises `SinkError` where events could not go there."""
        return await self._worker.call(self._client.run, self._check_table, create=False)

    async def aclose(self) -> None:
        """Ends a transaction in progress and closes the connection."""
        self._client.interrupt()
        await self._worker.aclose(last=self._client.close)

    def _check_table(self, db: psycopg.Connection[Any]) -> str:
        client = self._client
        state = db.execute("SELECT pg_is_in_recovery(), to_regclass(%s)::text", (client.table,)).fetchone()
        assert state is not None
        if state[0]:
            raise SinkError(f"{client.where} is a read-only replica: give the address of its primary")
        if state[1] is None:
            return f"answers; table {client.table} begins with the first event"
        allowed = db.execute("SELECT has_table_privilege(%s, 'INSERT')", (client.table,)).fetchone()
        if allowed is not None and not allowed[0]:
            raise SinkError(f"{client.where} does not let this user write table {client.table}: ask for the right")
        return f"answers; table {client.table} is there"

    def _insert_batch(self, events: Sequence[Event]) -> None:
        import psycopg

        rows = [_row_of(event) for event in events]
        try:
            self._client.run(lambda db: self._insert_rows(db, rows), create=True)
        except psycopg.DataError:
            self._insert_alone(events, rows)

    def _insert_alone(self, events: Sequence[Event], rows: Sequence[tuple[Any, ...]]) -> None:
        """A value of one of them cannot be stored: the others are."""
        import psycopg

        refused: dict[str, str] = {}
        for index, (event, row) in enumerate(zip(events, rows, strict=True)):
            try:
                self._client.run(lambda db, row=row: self._insert_rows(db, [row]), create=True)  # type: ignore[misc]
            except psycopg.DataError as error:
                refused[event.id] = f"{self._client.where} refuses it ({' '.join(str(error).split())})"
            except SinkError as error:
                error.delivered = min(index, next((n for n, one in enumerate(events) if one.id in refused), index))
                raise
        if refused:
            raise PoisonError(f"{self._client.where} refuses {len(refused)} events for good", refused)

    def _insert_rows(self, db: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> None:
        with db.transaction(), db.cursor() as cursor:
            self._client.lock(db)
            cursor.executemany(self._client.query(_INSERT), rows)


def open_postgres(address: SinkAddress) -> PostgresSink:
    """Opens `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.

    Options: `table`, `timeout` (seconds a batch), the TLS options; with `cafile` or `certfile` the server's
    certificate and name are checked, without TLS is used where the server offers it.
    """
    client = open_client(address)
    address.options.finish()
    return PostgresSink(client)


async def read_postgres(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Rows in the order of their arrival."""
    client = open_client(address)
    address.options.finish()
    worker = SinkWorker("read-postgres")
    try:
        position = await worker.call(client.run, lambda db: _start_position(client, db, start), create=False)
        while True:
            after = position
            rows = await worker.call(client.run, lambda db, after=after: _rows_after(client, db, after), create=False)
            for position, text in rows:
                try:
                    yield Event.from_json(text)
                except ValueError:
                    yield UnreadableEvent(f"row {position} of {client.table} is no event")
            if not rows:
                if not follow:
                    return
                await asyncio.sleep(_POLL_S)
    finally:
        client.interrupt()
        await worker.aclose(last=client.close)


def _start_position(client: PostgresClient, db: psycopg.Connection[Any], start: StartPosition) -> int:
    """Reading goes on after this position."""
    if start.at == "earliest":
        return 0
    text = "SELECT coalesce(max(position), 0) FROM {table}"
    if start.at == "time":
        text = f"SELECT coalesce(min(position) - 1, ({text})) FROM {{table}} WHERE time >= %s"
    elif start.at == "id":
        text = "SELECT max(position) FROM {table} WHERE id = %s"
    found = db.execute(client.query(text), (start.value,) if "%s" in text else None).fetchone()
    if found is None or found[0] is None:
        raise SinkError(f"{client.where} has no event {start.value}: give an id from there, a time, or earliest")
    return int(found[0])


def _rows_after(client: PostgresClient, db: psycopg.Connection[Any], position: int) -> list[tuple[int, str]]:
    text = "SELECT position, event::text FROM {table} WHERE position > %s ORDER BY position LIMIT %s"
    return db.execute(client.query(text), (position, _ROWS)).fetchall()


def open_client(address: SinkAddress, *, table: str = _TABLE, timeout_s: float = 10.0) -> PostgresClient:
    """The client for an address; `table` and `timeout_s` are used where it has no such option. Raises
    `SinkAddressError`."""
    options = address.options
    try:
        import psycopg  # noqa: F401  imported here, so that its absence is reported at start
    except ImportError:
        raise SinkAddressError("the PostgreSQL sink needs psycopg: pip install 'groundstream[postgres]'") from None
    database = address.path.strip("/")
    if not address.host or not database:
        raise SinkAddressError(f"{address.public}: host or database is missing: write postgresql://HOST/DATABASE")
    table = options.text("table") or table
    if not _NAME.fullmatch(table):
        raise options.error(f"option table={table!r} must be NAME or SCHEMA.NAME of letters, digits and _")
    timeout_s = options.number("timeout", timeout_s, least=0.1)
    tls = TlsOptions.from_options(options)
    is_checked = bool(tls.cafile or tls.certfile)
    try:
        if is_checked:
            tls.context()
    except TlsOptionsError as error:
        raise options.error(str(error)) from None
    settings: dict[str, Any] = {
        "host": address.host,
        "port": address.port or 5432,
        "dbname": database,
        "user": address.user,
        "password": address.password,
        "sslmode": "require" if tls.insecure else "verify-full" if is_checked else "prefer",
        "sslrootcert": tls.cafile or ("system" if is_checked and not tls.insecure else None),
        "sslcert": tls.certfile,
        "sslkey": tls.keyfile or tls.certfile,
        "sslpassword": tls.key_password,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    return PostgresClient(f"{address.hosts}/{database}", table, settings, timeout_s)


def _row_of(event: Event) -> tuple[Any, ...]:
    """PostgreSQL's texts hold no NUL."""
    data = event.data

    def clean(text: str | None) -> str | None:
        return None if text is None else text.replace("\0", "\ufffd")

    return (
        clean(event.id),
        data.run,
        clean(data.stream),
        int(event.sequence),
        event.type.value,
        clean(event.subject),
        event.time,
        data.track.number if data.track else None,
        data.track.score if data.track else None,
        clean(data.zone.id) if data.zone else None,
        clean(data.line.id) if data.line else None,
        [clean(query) for query in event.queries],
        event.to_json().decode(),
    )
