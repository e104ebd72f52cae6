"""Client of a running monitor's HTTP API for Python programs.

monitor = groundstream.connect("http://127.0.0.1:8090")
async for event in monitor.subscribe(types=["zone.*"], follow=True):
    print(event.time, event.kind)
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from sinks.http_reader import TOKEN_VARIABLE
from sinks.subscribe import SequenceGap, Subscription, subscribe
from sinks.tls import TlsOptions
from streamer.errors import StreamerError

_TIMEOUT_S = 30.0
_MOST_ANSWER = 256 << 20


class ApiError(StreamerError):
    """The monitor refused a request; `status` is the HTTP status, 0 where it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class MonitorClient:
    """A monitor at an address. Every call opens a connection of its own, so that it may be used from many tasks."""

    def __init__(self, url: str, *, token: str | None = None, tls: TlsOptions | None = None) -> None:
        """`token` is an access token, `GROUNDSTREAM_TOKEN` of the environment when absent. Raises `ApiError`."""
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not self._host:
            raise ApiError("the address of a monitor cannot be used: write http://HOST:8090")
        self._scheme = parts.scheme
        self._prefix = parts.path.rstrip("/")
        self._token = token or parts.password or parts.username or os.environ.get(TOKEN_VARIABLE, "")
        self._tls = tls or TlsOptions()

    def subscribe(
        self,
        *,
        types: Collection[str] = (),
        streams: Collection[str] = (),
        queries: Collection[str] = (),
        since: str | datetime | None = None,
        follow: bool = False,
        on_gap: Callable[[SequenceGap], object] | None = None,
    ) -> Subscription:
        """Returns the monitor's events, each once, as `groundstream.subscribe` does for other addresses."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = f":{self._port}" if self._port else ""
        login = f":{quote(self._token, safe='')}@" if self._token else ""
        options = urlencode(self._tls.to_options()) if self._scheme == "https" else ""
        return subscribe(
            f"{self._scheme}://{login}{host}{port}{self._prefix}{'?' if options else ''}{options}",
            types=types,
            streams=streams,
            queries=queries,
            since=since,
            follow=follow,
            on_gap=on_gap,
        )

    async def list_streams(self) -> list[dict[str, Any]]:
        """Returns the state of every stream."""
        return list((await self.request("GET", "/streams"))["items"])

    async def list_sinks(self) -> list[dict[str, Any]]:
        """Returns the state of every sink."""
        return list((await self.request("GET", "/sinks"))["items"])

    async def list_events(self, **filters: Any) -> list[dict[str, Any]]:
        """Returns a page of events; `filters` are those of `/events`: stream, type, query, q, since, limit, ..."""
        return list((await self.request("GET", "/events", parameters=filters))["items"])

    async def list_queries(self, stream: str) -> list[dict[str, Any]]:
        """Returns the queries of a stream."""
        return list((await self.request("GET", f"/streams/{quote(stream, safe='')}/queries"))["items"])

    async def set_query(self, stream: str, query_id: str, text: str, **settings: Any) -> None:
        """Adds or replaces a query; `settings`: threshold, unless, paused."""
        path = f"/streams/{quote(stream, safe='')}/queries/{quote(query_id, safe='')}"
        await self.request("PUT", path, body={"text": text, **settings})

    async def remove_query(self, stream: str, query_id: str) -> None:
        """Removes a query."""
        await self.request("DELETE", f"/streams/{quote(stream, safe='')}/queries/{quote(query_id, safe='')}")

    async def read_snapshot(self, stream: str, *, boxes: bool = False) -> bytes:
        """Returns the newest picture of a stream as JPEG."""
        path = f"/streams/{quote(stream, safe='')}/snapshot.jpg"
        picture: bytes = await self.request("GET", path, parameters={"boxes": str(boxes).lower()})
        return picture

    async def request(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Any = None,
        etag: str = "*",
    ) -> Any:
        """Calls the API below `/api/v1`; returns the parsed body, bytes for a picture. Raises `ApiError`.

        `etag` is the condition of a write: the ETag of the value that was read, `*` replaces any.
        """
        return await asyncio.to_thread(self._request, method, path, parameters, body, etag)

    def _request(self, method: str, path: str, parameters: Mapping[str, Any] | None, body: Any, etag: str) -> Any:
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=self._tls.context())
            if self._scheme == "https"
            else http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        )
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if method != "GET":
            headers["If-Match"] = etag
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body)
        query = f"?{urlencode(parameters, doseq=True)}" if parameters else ""
        try:
            connection.request(method, f"{self._prefix}/api/v1{path}{query}", data, headers)
            response = connection.getresponse()
            raw = response.read(_MOST_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ApiError(f"the monitor at {self._host} does not answer: {cause}; check host and port") from None
        finally:
            connection.close()
        if len(raw) > _MOST_ANSWER:
            raise ApiError(f"the monitor at {self._host} sends more than {_MOST_ANSWER >> 20} MiB: check host and port")
        return _read_answer(response.status, response.headers.get_content_type(), raw)


def _read_answer(status: int, media_type: str, raw: bytes) -> Any:
    if status < 400:
        if media_type != "application/json":
            return raw
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise ApiError("the answer is not JSON: is there a monitor of groundstream at host and port?") from None
    try:
        detail = str(json.loads(raw)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = f"it answers with status {status}"
    raise ApiError(f"the monitor refuses the request: {detail}", status)


def connect(url: str, *, token: str | None = None, tls: TlsOptions | None = None) -> MonitorClient:
    """Returns a client of the monitor at `http(s)://HOST:PORT`; nothing is sent yet. Raises `ApiError`."""
    return MonitorClient(url, token=token, tls=tls)
