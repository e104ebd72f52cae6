"""Events to a Redis stream: one entry each, with the fields `id`, `type`, `stream` and `event`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinks.address import SinkAddress
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event


class RedisSink:
    """XADD to one key, in order, in one round trip a batch; `keep` bounds the stream's length (about; 0: never)."""

    def __init__(self, where: str, key: str, *, keep: int = 0, **connection: Any) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._where = where
        self._key = key
        self._keep = keep or None
        # protocol 2 is what every version of Redis speaks; trying again is the spool's work
        self._client = redis.Redis(protocol=2, retry=Retry(NoBackoff(), 0), **connection)
        self._worker = SinkWorker("sink-redis")

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._add, events)

    async def check(self) -> str:
        """How things stand, without writing. Raises `SinkError` where events could not go there."""
        return await self._worker.call(self._look)

    async def aclose(self) -> None:
        await self._worker.aclose(last=self._client.close)

    def _look(self) -> str:
        import redis

        try:
            kind = self._client.type(self._key)
            if kind == b"stream":
                return f"answers; {self._key} holds {self._client.xlen(self._key)} entries"
        except redis.RedisError as error:
            raise self._unreachable(error) from None
        if kind != b"none":
            raise self._no_stream()
        return f"answers; {self._key} begins with the first event"

    def _add(self, events: Sequence[Event]) -> None:
        import redis

        pipeline = self._client.pipeline(transaction=False)
        for event in events:
            fields: Any = {"id": event.id, "type": event.type.value, "stream": event.data.stream}
            pipeline.xadd(self._key, {**fields, "event": event.to_json()}, maxlen=self._keep, approximate=True)
        try:
            answers = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise self._unreachable(error) from None
        failed = [(index, answer) for index, answer in enumerate(answers) if isinstance(answer, Exception)]
        if not failed:
            return
        index, reason = failed[0]
        if "WRONGTYPE" in str(reason):
            raise self._no_stream()
        if "string exceeds" in str(reason):
            reasons = {events[number].id: str(why) for number, why in failed}
            raise PoisonError(f"Redis at {self._where} refuses {len(reasons)} events for good", reasons)
        # a full memory refuses some and takes later ones: all from the first one on are sent again, in order
        raise SinkError(f"Redis at {self._where} refuses ({reason})", delivered=index)

    def _unreachable(self, error: Exception) -> SinkError:
        import redis

        if isinstance(error, redis.AuthenticationError):
            return SinkError(f"Redis at {self._where} refuses the user or the password")
        return SinkError(f"Redis at {self._where} does not answer ({error})")

    def _no_stream(self) -> SinkError:
        return SinkError(f"Redis at {self._where}: {self._key} is no stream: give the sink another key")


def open_redis(address: SinkAddress) -> RedisSink:
    """`redis://USER:PASSWORD@HOST:PORT/KEY`; `rediss://` speaks TLS. Options: `keep`, `db`, `timeout`, `cafile`."""
    options = address.options
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write redis://HOST/KEY")
    keep, db = options.whole("keep", 0), options.whole("db", 0)
    timeout_s = options.number("timeout", 10.0, least=0.1)
    cafile = options.text("cafile")
    options.finish()
    connection: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if address.scheme == "rediss":
        connection |= {"ssl": True, "ssl_ca_certs": cafile}
    port = address.port or 6379
    try:
        return RedisSink(
            f"{address.host}:{port}",
            address.path or "groundstream:events",
            keep=keep,
            host=address.host,
            port=port,
            db=db,
            username=address.user,
            password=address.password,
            **connection,
        )
    except ImportError:
        raise SinkAddressError("the redis sink needs redis-py: pip install 'groundstream[redis]'") from None
