"""The part of a Confluent schema registry's API that is needed: register a schema, fetch one by its number.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from sinks.address import redact
from sinks.http_client import HttpClient
from sinks.sink import SinkAddressError, SinkError
from sinks.tls import TlsOptions, TlsOptionsError

_TIMEOUT_S = 10.0
_KIND = "application/vnd.schemaregistry.v1+json"
_LONGEST_REASON = 300


class SchemaRegistry:
    """A registry at `http(s)://USER:PASSWORD@HOST:PORT`. Raises `SinkError` when it does not answer or refuses."""

    def __init__(self, address: str, tls: TlsOptions | None = None) -> None:
        self.public = redact(address)
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in {"http", "https"}:
            raise SinkAddressError(
                f"registry={self.public} is not the address of a schema registry: write http://HOST:8081"
            )
        tls = tls or TlsOptions()
        self._headers = {"Content-Type": _KIND, "Accept": _KIND}
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        self._path = parts.path.rstrip("/")
        try:
            self._client = HttpClient(
                host,
                port,
                context=tls.context() if parts.scheme == "https" else None,
                has_certificate=tls.certfile is not None,
                timeout_s=_TIMEOUT_S,
            )
        except (TlsOptionsError, SinkError) as error:
            raise SinkAddressError(f"registry={self.public}: {error}") from None

    def check(self) -> None:
        """Raises `SinkError` when the registry does not answer."""
        self._call_registry("/subjects")

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Returns the number of the schema; the same schema gets the same number again."""
        answer = self._call_registry(
            f"/subjects/{quote(subject, safe='')}/versions", {"schema": schema, "schemaType": kind}
        )
        number = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(number, int):
            raise SinkError(f"the schema registry {self.public} does not answer as a registry does: check its address")
        return number

    def schema(self, number: int) -> str:
        """Returns the schema with the number."""
        answer = self._call_registry(f"/schemas/ids/{number}")
        if not isinstance(answer, dict) or "schema" not in answer:
            raise SinkError(f"the schema registry {self.public} does not answer as a registry does: check its address")
        return str(answer["schema"])

    def _call_registry(self, path: str, body: dict[str, str] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._client.request("GET" if data is None else "POST", self._path + path, data, self._headers)
        except SinkError as error:
            raise SinkError(f"the schema registry {self.public} cannot be used: {error}") from None
        text = answer.body.decode("utf-8", "replace")
        if answer.status >= 300:
            raise SinkError(f"the schema registry {self.public} answers {answer.status} ({text[:_LONGEST_REASON]})")
        try:
            if answer.is_whole:
                return json.loads(text)
            reason = "its answer is too long"
        except (ValueError, RecursionError):
            reason = "its answer is not JSON"
        raise SinkError(f"the schema registry {self.public} cannot be used: {reason}: check its address")
