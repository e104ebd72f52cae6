"""Events to a web address: CloudEvents over HTTP, signed, one by one or in batches.

Signature: https://github.com/standard-webhooks/standard-webhooks (HMAC-SHA256 over id.timestamp.body).
Batches: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode

from sinks.address import SinkAddress
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_ONE = "application/cloudevents+json; charset=utf-8"
_MANY = "application/cloudevents-batch+json; charset=utf-8"
_MALFORMED = frozenset({400, 413, 415, 422})
_LONGEST_WAIT_S = 300.0
_LEAST_SECRET = 6


class WebhookSink:
    """POSTs to `path` of one host over one connection that stays open. Any 2xx answer is the acknowledgement.

    400, 413, 415 and 422 mean that an event will never be taken; all other answers that it may be taken later, not
    before the time that Retry-After names.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        path: str,
        *,
        tls: ssl.SSLContext | None,
        headers: dict[str, str],
        secret: bytes | None = None,
        batch: int = 1,
        timeout_s: float = 10.0,
    ) -> None:
        self._where = f"{host}:{port}" if port else host
        self._path = path
        self._secrets = _secrets_of(path)
        self._headers = headers
        self._secret = secret
        self._batch = batch
        self._worker = SinkWorker("sink-webhook")
        self._closing = False
        self._not_before = 0.0
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(host, port, timeout=timeout_s)
            if tls is None
            else http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
        )

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._send, events)

    async def check(self) -> str:
        """Whether somebody answers, with TLS where it is asked for: what the path is for, only an event would tell."""
        return await self._worker.call(self._look)

    async def aclose(self) -> None:
        self._closing = True
        await self._worker.aclose(last=self._connection.close)

    def _look(self) -> str:
        try:
            self._connection.connect()
        except OSError as error:
            raise self._unreachable(error) from None
        finally:
            self._connection.close()
        is_secure = isinstance(self._connection, http.client.HTTPSConnection)
        return "somebody answers there" + (", with a certificate that is trusted" if is_secure else "")

    def _send(self, events: Sequence[Event]) -> None:
        refused: dict[str, str] = {}
        delivered = 0
        for chunk in _chunks(events, self._batch):
            if self._closing:
                raise SinkError(f"{self._where}: the sink was closed while it sent", delivered=delivered)
            try:
                self._post(chunk)
            except PoisonError as poison:
                if len(chunk) == 1:
                    refused[chunk[0].id] = str(poison)
                else:
                    refused |= self._find_poison(chunk, delivered)
            except SinkError as error:
                # what was refused comes again and is refused again: its letter is not written yet
                first_refused = next((n for n, event in enumerate(events) if event.id in refused), delivered)
                error.delivered = min(delivered, first_refused)
                raise
            delivered += len(chunk)
        if refused:
            raise PoisonError(f"{self._where} refuses {len(refused)} events for good", refused)

    def _find_poison(self, chunk: Sequence[Event], delivered: int) -> dict[str, str]:
        """A batch was refused: send its events one by one."""
        refused = {}
        for event in chunk:
            try:
                self._post([event])
            except PoisonError as poison:
                refused[event.id] = str(poison)
            except SinkError as error:
                error.delivered = delivered
                raise
        return refused

    def _post(self, events: Sequence[Event]) -> None:
        wait_s = self._not_before - time.monotonic()
        if wait_s > 0:
            raise SinkError(f"{self._where} asked for a pause: {wait_s:.0f} s are left")
        if self._batch == 1:
            body, kind = events[0].to_json(), _ONE
        else:
            body, kind = b"[" + b",".join([event.to_json() for event in events]) + b"]", _MANY
        headers = {**self._headers, "Content-Type": kind, **self._signature(events[0].id, body)}
        try:
            response = self._request(body, headers)
            answer = self._conceal(response.read(200).decode("utf-8", "replace").strip())
            response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from None
        self._judge(response, answer)

    def _unreachable(self, error: OSError | http.client.HTTPException) -> SinkError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return SinkError(f"{self._where} shows a certificate that is not trusted ({error.verify_message})")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return SinkError(f"{self._where} does not answer ({self._conceal(reason)})")

    def _request(self, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Once more on a new connection where the peer has closed the old one between two requests."""
        reused = self._connection.sock is not None
        try:
            self._connection.request("POST", self._path, body, headers)
            return self._connection.getresponse()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            self._connection.close()
            if not reused:
                raise
        self._connection.request("POST", self._path, body, headers)
        return self._connection.getresponse()

    def _judge(self, response: http.client.HTTPResponse, answer: str) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        said = f"{self._where} answers {status} {response.reason}" + (f" ({answer[:100]})" if answer else "")
        if status in _MALFORMED:
            raise PoisonError(said)
        if 300 <= status < 400:
            raise SinkError(f"{said}: it has moved, give the sink its new address")
        if status in {401, 403}:
            raise SinkError(f"{said}: check user, password or token")
        self._not_before = time.monotonic() + _retry_after_s(response.headers.get("Retry-After"))
        raise SinkError(said)

    def _conceal(self, said: str) -> str:
        """What the peer said without the parts of our path: many repeat it, and it may be the secret."""
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said

    def _signature(self, message_id: str, body: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        now = str(int(time.time()))
        digest = hmac.new(self._secret, f"{message_id}.{now}.".encode() + body, hashlib.sha256).digest()
        return {
            "Webhook-Id": message_id,
            "Webhook-Timestamp": now,
            "Webhook-Signature": "v1," + base64.b64encode(digest).decode(),
        }


def open_webhook(address: SinkAddress) -> WebhookSink:
    """`https://USER:PASSWORD@HOST/PATH?...`; `http://` for tests and closed networks.

    Options: `secret` (signs; `whsec_...` is base64), `token` (bearer), `batch` (events a request), `timeout`
    (seconds), `cafile`. Everything else behind the `?` belongs to the address.
    """
    options = address.options
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write https://HOST/PATH")
    headers = {"User-Agent": "groundstream"}
    if address.user is not None:
        pair = f"{address.user}:{address.password or ''}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    if token := options.text("token"):
        headers["Authorization"] = f"Bearer {token}"
    secret = options.text("secret")
    batch = options.whole("batch", 1, least=1)
    timeout_s = options.number("timeout", 10.0, least=0.1)
    cafile = options.text("cafile")
    tls = None
    if address.scheme == "https":
        try:
            tls = ssl.create_default_context(cafile=cafile)
        except OSError as error:
            raise options.error(f"option cafile={cafile!r} cannot be read ({error.strerror or error})") from None
    query = urlencode(options.rest(""))
    path = "/" + quote(address.path, safe="/%:@") + (f"?{query}" if query else "")
    return WebhookSink(
        address.host,
        address.port,
        path,
        tls=tls,
        headers=headers,
        secret=_secret_bytes(secret) if secret else None,
        batch=batch,
        timeout_s=timeout_s,
    )


def _secrets_of(path: str) -> list[str]:
    """The parts of a path and a query that are long enough to be secret, as they are sent and as they are meant."""
    parts = {part for part in re.split(r"[/?&=]", path) if len(part) >= _LEAST_SECRET}
    return sorted(parts | {unquote(part) for part in parts}, key=len, reverse=True)


def _secret_bytes(secret: str) -> bytes:
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


def _retry_after_s(text: str | None) -> float:
    """Seconds, or a date. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if not text:
        return 0.0
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, wait_s), _LONGEST_WAIT_S)


def _chunks(events: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]
