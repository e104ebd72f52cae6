"""The little of a Confluent schema registry that is needed: register a schema, fetch one by its number.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from sinks.address import redact
from sinks.sink import SinkAddressError, SinkError

_TIMEOUT_S = 10.0
_KIND = "application/vnd.schemaregistry.v1+json"


class SchemaRegistry:
    """At `http(s)://USER:PASSWORD@HOST:PORT`. Raises `SinkError` when it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SinkAddressError(f"registry={redact(address)} is no address of a schema registry: http://HOST:8081")
        self.public = redact(address)
        self._headers = {"Content-Type": _KIND, "Accept": _KIND}
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        host = parts.netloc.rpartition("@")[2]
        self._base = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def register(self, subject: str, schema: str, kind: str) -> int:
        """The number of the schema; the same schema gets the same number again."""
        body = {"schema": schema, "schemaType": kind}
        return int(self._call(f"/subjects/{quote(subject, safe='')}/versions", body)["id"])

    def schema(self, number: int) -> str:
        return str(self._call(f"/schemas/ids/{number}")["schema"])

    def _call(self, path: str, body: dict[str, str] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode("utf-8", "replace")
            raise SinkError(f"the schema registry {self.public} answers {error.code} ({said})") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise SinkError(f"the schema registry {self.public} does not answer ({reason})") from None
