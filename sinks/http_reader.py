"""Reader of a monitor's event feed over HTTP: server-sent events, resumed where a connection was lost.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlencode

from sinks.address import SinkAddress
from sinks.event import Event
from sinks.sink import SinkAddressError, SinkError
from sinks.subscribe import Reader, StartPosition, UnreadableEvent
from sinks.tls import TlsOptions
from sinks.worker import SinkWorker

TOKEN_VARIABLE = "GROUNDSTREAM_TOKEN"
FEED_PATH = "/api/v1/events/stream"
_TIMEOUT_S = 45.0
_BACK_OFF_S = (0.5, 10.0)
_MOST_LINE = 16 << 20


async def read_http(address: SinkAddress, start: StartPosition, follow: bool, group: str | None) -> Reader:
    """Events of the monitor at `http(s)://HOST:PORT`, in the order in which it stored them.

    The access token is the password of the address or the environment variable `GROUNDSTREAM_TOKEN`. A connection that
    is lost is opened again and resumed; events that have expired in the meantime are reported as unreadable. Raises
    `SinkAddressError` for a token that is refused, `SinkError` when the monitor does not answer at the beginning.
    """
    feed = _EventFeed(address, start, follow)
    address.options.finish()
    worker = SinkWorker("read-http")
    delay_s, is_first = _BACK_OFF_S[0], True
    try:
        while True:
            try:
                await worker.call(feed.connect)
                is_first, delay_s = False, _BACK_OFF_S[0]
                while (batch := await worker.call(feed.read)) is not None:
                    for event in batch:
                        yield event
                if not follow:
                    return
            except SinkAddressError:
                raise
            except (OSError, http.client.HTTPException, SinkError) as error:
                if is_first or not follow:
                    raise error if isinstance(error, SinkError) else feed.unreachable(error) from None
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _BACK_OFF_S[1])
    finally:
        feed.interrupt()
        await worker.aclose(last=feed.close)


class _EventFeed:
    """One connection at a time to the feed; its methods but `interrupt` run in one thread."""

    def __init__(self, address: SinkAddress, start: StartPosition, follow: bool) -> None:
        secure = address.scheme == "https"
        tls = TlsOptions.from_options(address.options, secure=secure)
        self._public = address.public
        if not address.host:
            raise SinkAddressError(f"{address.public}: the host is missing: write http://HOST:8090")
        port = address.port or (443 if secure else 80)
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(address.host, port, timeout=_TIMEOUT_S, context=tls.context())
            if secure
            else http.client.HTTPConnection(address.host, port, timeout=_TIMEOUT_S)
        )
        self._prefix = f"/{address.path.strip('/')}" if address.path.strip("/") else ""
        self._token = address.password or address.user or os.environ.get(TOKEN_VARIABLE, "")
        self._parameters = _start_parameters(start)
        if not follow:
            self._parameters["follow"] = "false"
        self._last_id = ""
        self._response: http.client.HTTPResponse | None = None

    def connect(self) -> None:
        """Opens the feed at the start, or behind the last event that was read."""
        self._connection.close()
        headers = {"Accept": "text/event-stream"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        self._connection.request("GET", f"{self._prefix}{FEED_PATH}?{urlencode(self._parameters)}", headers=headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise self._refusal(response.status, response.read(64 * 1024))
        self._response = response

    def read(self) -> list[Event | UnreadableEvent] | None:
        """Waits for something of the feed: events, an empty list for a sign of life, None at its end."""
        assert self._response is not None
        fields: dict[str, str] = {}
        for name, value in self._fields(self._response):
            if name:
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
            elif "data" in fields:
                return [self._parse(fields)]
            elif not fields.keys() - {"retry"}:
                return []
        return None

    def interrupt(self) -> None:
        """From another thread: lets a read that waits end at once."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def unreachable(self, error: Exception) -> SinkError:
        """Returns the error for a monitor that does not answer."""
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return SinkError(f"{self._public}: the monitor does not answer: {cause}; check host and port")

    @staticmethod
    def _fields(response: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
        """(name, value) of each line; ("", "") for the empty line that ends an event."""
        while line := response.readline(_MOST_LINE):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if text.startswith(":"):
                continue
            name, _, value = text.partition(":")
            yield name, value.removeprefix(" ")

    def _parse(self, fields: dict[str, str]) -> Event | UnreadableEvent:
        self._last_id = fields.get("id", self._last_id)
        if fields.get("event") == "gap":
            return UnreadableEvent(f"{self._public}: events have expired before they were read")
        try:
            return Event.from_json(fields["data"])
        except ValueError:
            return UnreadableEvent(f"{self._public}: what follows {self._last_id or 'the beginning'} is not an event")

    def _refusal(self, status: int, body: bytes) -> SinkError:
        try:
            detail = str(json.loads(body)["detail"])
        except (ValueError, KeyError, TypeError, RecursionError):
            detail = f"it answers with status {status}"
        if status in {401, 403}:
            return SinkAddressError(f"{self._public}: {detail}; set {TOKEN_VARIABLE} to an access token of the monitor")
        if status in {404, 422}:
            return SinkAddressError(f"{self._public}: {detail}")
        return SinkError(f"{self._public}: {detail}")


def _start_parameters(start: StartPosition) -> dict[str, str]:
    if start.at == "latest":
        return {}
    if start.at == "time":
        return {"after": "0", "since": start.value}
    if start.at == "id":
        return {"after_event": start.value}
    return {"after": "0"}
