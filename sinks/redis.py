"""Events to a Redis stream: one entry each, with the fields `id`, `type`, `stream` and `event`."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sinks.address import SinkAddress
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.tls import TlsOptions, TlsOptionsError, find_tls_trouble
from sinks.worker import ExchangeLimit, SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_MOST_ANSWER = 4 << 20
"""Bytes that the answers of one exchange may have: the largest batch gets about 200 kB."""


class RedisSink:
    """Adds entries to one key, in order: a batch is one transaction, so it is stored as a whole or not at all.

    A user without the right to MULTI and EXEC gets each entry in a round trip of its own. `keep` bounds the stream's
    length (about; 0: no bound). An exchange takes at most `timeout_s` seconds and `_MOST_ANSWER` bytes, whatever the
    peer sends.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        *,
        keep: int = 0,
        tls: ssl.SSLContext | None = None,
        has_certificate: bool = False,
        timeout_s: float = 10.0,
        **connection: Any,
    ) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._host, self._port = host, port
        self._where = f"Redis at {f'[{host}]' if ':' in host else host}:{port}"
        self._tls, self._has_certificate = tls, has_certificate
        self._timeout_s = timeout_s
        self._limit = ExchangeLimit(self._where, timeout_s, self._shut_down)
        self._socket: _CountingSocket | None = None
        self._key = key
        self._keep = keep or None
        self._can_transact = True
        # Protocol 2 is spoken by every version of Redis; trying again is the spool's work.
        pool = redis.ConnectionPool(
            connection_class=self._counting_connection(tls is not None),
            host=host,
            port=port,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            **connection,
        )
        self._client = redis.Redis(connection_pool=pool)
        self._worker = SinkWorker("sink-redis")

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Adds the events; see `Sink.send_batch`."""
        await self._worker.call(self._add_entries, events)

    async def check(self) -> str:
        """Says how things stand, without writing. Raises `SinkError` where events could not go there."""
        return await self._worker.call(self._check_key)

    async def aclose(self) -> None:
        """Ends an exchange in progress and closes the connection."""
        self._limit.interrupt()
        await self._worker.aclose(last=self._disconnect)

    def _disconnect(self) -> None:
        self._client.connection_pool.disconnect()
        self._client.close()

    def _counting_connection(self, is_secure: bool) -> Any:
        """The library's class of connections, with sockets that count what they receive."""
        from redis.connection import Connection, SSLConnection

        base: Any = SSLConnection if is_secure else Connection
        sink = self

        class CountingConnection(base):  # type: ignore[misc]  # which of the two is known at run time
            def _connect(self) -> Any:
                sink._socket = None
                sink._socket = _CountingSocket(super()._connect())
                return sink._socket

        return CountingConnection

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        if self._socket is not None:
            self._socket.received = 0
        with self._limit.limit_exchange():
            yield

    def _shut_down(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _check_key(self) -> str:
        import redis

        try:
            with self._exchange():
                self._check_role()
                kind = self._client.type(self._key)
                if kind == b"stream":
                    return f"answers; {self._key} holds {self._client.xlen(self._key)} entries"
        except redis.exceptions.NoPermissionError:
            return f"answers; this user may not read {self._key}: whether it may write, only an event shows"
        except redis.RedisError as error:
            raise self._failure(error) from None
        if kind != b"none":
            raise self._wrong_type()
        return f"answers; {self._key} begins with the first event"

    def _check_role(self) -> None:
        import redis

        try:
            found: Any = self._client.info("replication")
        except redis.ResponseError:  # no right to ask, or no answer to it
            return
        if found.get("role") == "slave" and str(found.get("slave_read_only", "1")) == "1":
            raise self._read_only()

    def _add_entries(self, events: Sequence[Event]) -> None:
        import redis

        if self._can_transact:
            try:
                self._add_batch(events)
            except redis.exceptions.NoPermissionError as error:
                if not any(command in str(error).lower() for command in ("multi", "exec")):
                    raise self._failure(error) from None
                self._can_transact = False
            except redis.RedisError as error:
                raise self._failure(error) from None
            else:
                return
        for index, event in enumerate(events):
            try:
                with self._exchange():
                    self._client.xadd(self._key, _fields_of(event), maxlen=self._keep, approximate=True)
            except redis.RedisError as error:
                failure = self._failure(error)
                failure.delivered = index
                raise failure from None

    def _add_batch(self, events: Sequence[Event]) -> None:
        pipeline = self._client.pipeline(transaction=True)
        for event in events:
            pipeline.xadd(self._key, _fields_of(event), maxlen=self._keep, approximate=True)
        with self._exchange():
            answers = pipeline.execute(raise_on_error=False)
        failed = [(index, answer) for index, answer in enumerate(answers) if isinstance(answer, Exception)]
        if not failed:
            return
        index, reason = failed[0]
        if "string exceeds" in str(reason):
            reasons = {events[number].id: str(why) for number, why in failed}
            raise PoisonError(f"{self._where} refuses {len(reasons)} events for good", reasons)
        failure = self._failure(reason)
        failure.delivered = index
        raise failure

    def _failure(self, error: Exception) -> SinkError:
        import redis

        if self._limit.is_closed:
            return self._limit.closed_error()
        if self._limit.is_late and self._socket is not None:
            return SinkError(f"{self._where} does not finish an answer within {self._timeout_s:g} s")
        if self._socket is not None and self._socket.received > _MOST_ANSWER:
            return SinkError(f"{self._where} answers with more than {_MOST_ANSWER >> 20} MiB: is it Redis?")
        if isinstance(error, redis.AuthenticationError) or "WRONGPASS" in str(error):
            return SinkError(f"{self._where} refuses the user or the password")
        if isinstance(error, redis.exceptions.ReadOnlyError) or "READONLY" in str(error):
            return self._read_only()
        if "WRONGTYPE" in str(error):
            return self._wrong_type()
        if isinstance(error, redis.exceptions.NoPermissionError):
            return SinkError(
                f"{self._where} does not let this user write {self._key} ({error}): ask for the right to XADD"
            )
        if isinstance(error, redis.ResponseError):
            return SinkError(f"{self._where} refuses ({error})")
        cause = find_tls_trouble(
            self._host,
            self._port,
            self._tls,
            has_certificate=self._has_certificate,
            timeout_s=min(3.0, self._timeout_s),
        )
        return SinkError(f"{self._where} {cause or f'does not answer ({error})'}")

    def _read_only(self) -> SinkError:
        return SinkError(f"{self._where} is a read-only replica: give the address of its primary")

    def _wrong_type(self) -> SinkError:
        return SinkError(f"{self._where}: {self._key} is not a stream: give the sink another key")


class _CountingSocket:
    """A socket, plain or with TLS, that fails when the answers of an exchange are too long."""

    def __init__(self, connected: socket.socket) -> None:
        self.received = 0
        self._connected = connected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receives as a socket does. Raises `OSError` for too long an answer."""
        data = self._connected.recv(size, flags)
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """Receives as a socket does. Raises `OSError` for too long an answer."""
        received = self._connected.recv_into(buffer, size, flags)
        self._count(received)
        return received

    def _count(self, received: int) -> None:
        self.received += received
        if self.received > _MOST_ANSWER:
            raise OSError(f"the answer has more than {_MOST_ANSWER} bytes")


def open_redis(address: SinkAddress) -> RedisSink:
    """Opens `redis://USER:PASSWORD@HOST:PORT/KEY`; `rediss://` uses TLS.

    Options: `keep` (entries), `db` (number), `timeout` (seconds), the TLS options.
    """
    options = address.options
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write redis://HOST/KEY")
    keep, db = options.whole("keep", 0), options.whole("db", 0)
    timeout_s = options.number("timeout", 10.0, least=0.1)
    secure = address.scheme == "rediss"
    tls = TlsOptions.from_options(options, secure=secure)
    options.finish()
    try:
        context = tls.context() if secure else None
    except TlsOptionsError as error:
        raise options.error(str(error)) from None
    connection: dict[str, Any] = {}
    if secure:
        connection = {
            "ssl_cert_reqs": "none" if tls.insecure else "required",
            "ssl_check_hostname": not tls.insecure,
            "ssl_ca_certs": tls.cafile,
            "ssl_certfile": tls.certfile,
            "ssl_keyfile": tls.keyfile or tls.certfile,
            "ssl_password": tls.key_password,
        }
    try:
        return RedisSink(
            address.host,
            address.port or 6379,
            address.path or "groundstream:events",
            keep=keep,
            tls=context,
            has_certificate=tls.certfile is not None,
            timeout_s=timeout_s,
            db=db,
            username=address.user,
            password=address.password,
            **connection,
        )
    except ImportError:
        raise SinkAddressError("the redis sink needs redis-py: pip install 'groundstream[redis]'") from None


def _fields_of(event: Event) -> Any:
    return {"id": event.id, "type": event.type.value, "stream": event.data.stream, "event": event.to_json()}
