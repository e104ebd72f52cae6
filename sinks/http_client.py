"""HTTP requests to one host, with bounds on everything that the peer controls, through the proxy of the environment.

`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` mean what they mean to curl and to Python's own library.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from sinks.address import redact
from sinks.sink import SinkError
from sinks.tls import find_tls_trouble, tls_cause
from sinks.worker import ExchangeLimit

MAX_BODY = 64 * 1024
"""Bytes of an answer that are read; a longer one costs the connection."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's answer: at most `MAX_BODY` bytes of its body, and its headers by lower-case name."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    is_whole: bool


class HttpClient:
    """One connection to `host`, opened when needed and kept open. Not for use from two threads at once.

    `context` is None for plain HTTP. A whole exchange, from the connection to the last byte, takes at most `timeout_s`
    seconds, however slowly the peer sends. Failures are `SinkError`s whose sentence names the peer and the cause.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        *,
        context: ssl.SSLContext | None = None,
        has_certificate: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        secure = context is not None
        shown = f"[{host}]" if ":" in host else host
        self.where = f"{shown}:{port}" if port else shown
        self._host, self._port = host, port or (443 if secure else 80)
        self._context = context
        self._has_certificate = has_certificate
        self._timeout_s = timeout_s
        self._limit = ExchangeLimit(self.where, timeout_s, self._shut_down)
        self._proxy, self._proxy_headers = _proxy_for(host, self._port, secure=secure)
        # The proxy of plain HTTP takes whole addresses.
        self._base = f"http://{self.where}" if self._proxy is not None and not secure else ""
        self._connection = self._new_connection()

    @property
    def is_secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self._context is not None

    def connect(self) -> None:
        """Opens a connection, with TLS where it is asked for, and closes it again."""
        self._connection.close()
        with self._limit.limit_exchange():
            try:
                self._connection.connect()
            except (OSError, http.client.HTTPException) as error:
                raise self._failure(error) from None
            finally:
                self._connection.close()

    def request(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """Sends a request for `target` (path and query, as they are to be sent) and returns the answer."""
        with self._limit.limit_exchange():
            try:
                response = self._begin(method, self._base + target, body, headers)
                received = response.read(MAX_BODY)
                is_whole = response.isclosed() or not response.read(1)
                if self._limit.is_late:  # an answer that was cut seems to have ended
                    raise TimeoutError
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise self._failure(error) from None
        if not is_whole:
            self._connection.close()
        lower = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, response.reason, lower, received, is_whole)

    def interrupt(self) -> None:
        """Ends an exchange in progress and refuses further ones; may be called from another thread."""
        self._limit.interrupt()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _begin(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Sends once more on a new connection where the peer has closed the old one between two requests."""
        if self._proxy is not None and not self.is_secure:
            headers = headers | self._proxy_headers
        reused = self._connection.sock is not None
        try:
            self._connection.request(method, target, body, headers)
            return self._connection.getresponse()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            self._connection.close()
            if not reused or self._limit.is_late or self._limit.is_closed:
                raise
        self._connection.request(method, target, body, headers)
        return self._connection.getresponse()

    def _new_connection(self) -> http.client.HTTPConnection:
        host, port = self._proxy or (self._host, self._port)
        connection = _Connection(host, port, self._context, self._host, self._timeout_s)
        if self._proxy is not None and self.is_secure:
            connection.set_tunnel(self._host, self._port, self._proxy_headers)
        return connection

    def _shut_down(self) -> None:
        connection = self._connection.sock
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _failure(self, error: OSError | http.client.HTTPException) -> SinkError:
        if self._limit.is_closed:
            return self._limit.closed_error()
        if self._limit.is_late or isinstance(error, TimeoutError):
            return SinkError(f"{self.where} does not finish an answer within {self._timeout_s:g} s")
        cause = tls_cause(error, has_certificate=self._has_certificate)
        if not cause and self._proxy is None and not isinstance(error, ConnectionRefusedError | socket.gaierror):
            cause = find_tls_trouble(
                self._host,
                self._port,
                self._context,
                has_certificate=self._has_certificate,
                timeout_s=min(3.0, self._timeout_s),
            )
        if cause:
            return SinkError(f"{self.where} {cause}")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        through = f" through the proxy {self._proxy[0]}:{self._proxy[1]}" if self._proxy else ""
        return SinkError(f"{self.where} does not answer{through} ({reason})")


class _Connection(http.client.HTTPConnection):
    """A connection whose socket can be shut down at every moment, also during a TLS handshake."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, server_name: str, timeout_s: float
    ) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._tls_context = context
        self._server_name = server_name

    def connect(self) -> None:
        super().connect()
        if self._tls_context is None:
            return
        try:
            self.sock = self._tls_context.wrap_socket(
                self.sock, server_hostname=self._server_name, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
        except BaseException:
            self.close()
            raise


def _proxy_for(host: str, port: int, *, secure: bool) -> tuple[tuple[str, int] | None, dict[str, str]]:
    """Returns host and port of the proxy of the environment, None without one, and the headers it wants.

    Raises `SinkError` for a proxy address that cannot be used.
    """
    proxies = getproxies_environment()
    name = "https" if secure else "http"
    address = proxies.get(name) or proxies.get("all")
    if not address or proxy_bypass(f"{host}:{port}", proxies):
        return None, {}
    variable = f"{name.upper()}_PROXY"
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        proxy = parts.hostname, parts.port or 80
    except ValueError:
        proxy = None, 0
    if proxy[0] is None or parts.scheme != "http":
        raise SinkError(f"{variable}={redact(address)} is not a proxy that can be used: give http://HOST:PORT")
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return (proxy[0], proxy[1]), headers
