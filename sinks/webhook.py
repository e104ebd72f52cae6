"""Events to a web address: CloudEvents over HTTP, signed, one by one or in batches, or messages for people.

Signature: https://github.com/standard-webhooks/standard-webhooks (HMAC-SHA256 over id.timestamp.body).
Batches: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_plus

from sinks.address import SinkAddress
from sinks.chat import CHAT_TYPES, MessageFormat
from sinks.formats.onvif import CONTENT_TYPE, OnvifFormat
from sinks.http_client import Answer, HttpClient
from sinks.sink import PoisonError, SinkAddressError, SinkError
from sinks.tls import TLS_OPTIONS, TlsOptions, TlsOptionsError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_ONE = "application/cloudevents+json; charset=utf-8"
_MANY = "application/cloudevents-batch+json; charset=utf-8"
_MALFORMED = frozenset({400, 413, 415, 422})
_LONGEST_WAIT_S = 300.0
_LEAST_SECRET = 6
_WITNESSES = 8
_FORMATS = ("events", "binary", "onvif", "text", "slack", "discord", "teams")
_CHAT_BATCH = 1000
_CHAT_RATE = 20.0
_OURS = frozenset({"secret", "token", "batch", "timeout", "format", "name", "template", "rate", "digest", "types",
                   "streams", "queries", *TLS_OPTIONS})  # fmt: skip
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_KEPT = "".join(chr(code) for code in range(0x21, 0x7F))


class CloudEventFormat:
    """CloudEvents in JSON: one event as itself, a batch as a list, or, `binary`, the attributes as headers."""

    def __init__(self, batch: int, *, binary: bool = False) -> None:
        self._is_binary = binary
        self.content_type = "application/json" if binary else _ONE if batch == 1 else _MANY

    def headers_of(self, events: Sequence[Event]) -> dict[str, str]:
        """The headers that belong to these events."""
        if not self._is_binary:
            return {}
        return {name.replace("_", "-"): quote(text, safe=_HEADER_SAFE) for name, text in _attributes(events[0])}

    def body_of(self, events: Sequence[Event]) -> bytes:
        """The body of a request with these events."""
        if self._is_binary:
            return events[0].data.model_dump_json(exclude_none=True).encode()
        if self.content_type == _ONE:
            return events[0].to_json()
        return b"[" + b",".join([event.to_json() for event in events]) + b"]"


class OnvifDocuments:
    """ONVIF metadata, one document a request."""

    content_type = CONTENT_TYPE

    def __init__(self) -> None:
        self._format = OnvifFormat()

    def body_of(self, events: Sequence[Event]) -> bytes:
        """The document of the one event."""
        return self._format.encode(events[0])[0]


class WebhookSink:
    """POSTs to `target` of one host over one connection that stays open. Any 2xx answer is the acknowledgement.

    400, 413, 415 and 422 mean that an event will never be taken, where other events are taken: a peer that answers so
    to everything has a wrong address, and the events wait. All other answers mean that it may be taken later, not
    before the time that Retry-After names. `rate` bounds the messages a minute (0: no bound): what comes in between
    goes with the next message.
    """

    def __init__(
        self,
        client: HttpClient,
        target: str,
        *,
        headers: dict[str, str],
        form: CloudEventFormat | OnvifDocuments | MessageFormat,
        secret: bytes | None = None,
        batch: int = 1,
        rate: float = 0.0,
        digest_s: float = 0.0,
        hidden: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._where = client.where
        self._target = target
        self._secrets = sorted({*_secrets_of(target), *hidden}, key=len, reverse=True)
        self._headers = headers
        self._form = form
        self._secret = secret
        self._batch = batch
        self._pause_s = 60.0 / rate if rate else 0.0
        self.is_chat = isinstance(form, MessageFormat)
        self.default_types = CHAT_TYPES if self.is_chat else ()
        if self.is_chat:
            self.batch_events = batch
            self.linger_s = digest_s
        self._worker = SinkWorker("sink-webhook")
        self._closing = False
        self._not_before = 0.0
        self._last_sent = float("-inf")
        self._has_taken = False
        self._refused_in_a_row = 0

    async def send_batch(self, events: Sequence[Event]) -> None:
        """Sends the events; see `Sink.send_batch`."""
        await self._worker.call(self._send_chunks, events)

    async def check(self) -> str:
        """Says whether a server answers, with TLS where it is asked for, without sending an event."""
        await self._worker.call(self._client.connect)
        secure = ", with a certificate that is trusted" if self._client.is_secure else ""
        return f"a server answers there{secure}; only a test message shows that it takes events"

    async def send_test(self, event: Event) -> str:
        """Sends one message that is marked as a test and returns the peer's answer. Raises `SinkError`."""
        return await self._worker.call(self._send_test, event)

    async def aclose(self) -> None:
        """Ends an exchange in progress and closes the connection."""
        self._closing = True
        self._client.interrupt()
        await self._worker.aclose(last=self._client.close)

    def _send_test(self, event: Event) -> str:
        if isinstance(self._form, MessageFormat):
            body = self._form.body_of_text("groundstream: a test message; sinks of this address work")
        else:
            body = self._form.body_of([event])
        answer = self._exchange([event], body)
        self._judge(answer)
        return f"took a test message ({answer.status} {answer.reason})"

    def _send_chunks(self, events: Sequence[Event]) -> None:
        refused: dict[str, str] = {}
        doubtful: list[Event] = []  # refused, and no event was taken since: the address may be wrong
        taken_here = False
        delivered = 0
        for chunk in _chunks(events, self._batch):
            if self._closing:
                raise SinkError(f"{self._where}: the sink was closed while it sent", delivered=delivered)
            try:
                accepted, now_refused = self._send_chunk(chunk)
            except SinkError as error:
                # what was refused comes again and is refused again: it is not in the dead letters yet
                first_refused = next((n for n, event in enumerate(events) if event.id in refused), delivered)
                error.delivered = min(delivered, first_refused)
                raise
            refused |= now_refused
            taken_here |= accepted
            doubtful = [] if taken_here else [*doubtful, *chunk]
            if len(doubtful) >= max(_WITNESSES, self._batch):
                break
            delivered += len(chunk)
        if doubtful:
            self._doubt(doubtful, refused)
        if refused:
            raise PoisonError(f"{self._where} refuses {len(refused)} events for good", refused)

    def _doubt(self, doubtful: Sequence[Event], refused: dict[str, str]) -> None:
        """Raises `SinkError` unless one refused event stands alone after others were taken."""
        if self._has_taken and self._refused_in_a_row == len(doubtful) == 1:
            return
        reason = refused[doubtful[0].id]
        before = "now refuses everything" if self._has_taken else "has not taken any event yet"
        raise SinkError(f"{reason}: it {before}, so the events wait: check the address, its scheme and its format")

    def _send_chunk(self, chunk: Sequence[Event]) -> tuple[bool, dict[str, str]]:
        """Whether an event was taken, and the ids of those that are refused, with the reasons."""
        try:
            self._post(chunk)
            return True, {}
        except PoisonError as poison:
            if len(chunk) == 1:
                return False, {chunk[0].id: str(poison)}
        refused: dict[str, str] = {}
        for event in chunk:
            try:
                self._post([event])
            except PoisonError as poison:
                refused[event.id] = str(poison)
                if len(refused) >= _WITNESSES and list(refused) == [one.id for one in chunk[: len(refused)]]:
                    return False, {one.id: str(poison) for one in chunk}
        return len(refused) < len(chunk), refused

    def _post(self, events: Sequence[Event]) -> None:
        wait_s = self._not_before - time.monotonic()
        if wait_s > 0:
            raise SinkError(f"{self._where} asked for a pause: {wait_s:.0f} s are left")
        self._wait_for_rate()
        try:
            self._judge(self._exchange(events, self._form.body_of(events)))
        except PoisonError:
            self._refused_in_a_row += 1
            raise
        self._has_taken = True
        self._refused_in_a_row = 0

    def _wait_for_rate(self) -> None:
        while not self._closing and (left_s := self._last_sent + self._pause_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.2))
        self._last_sent = time.monotonic()

    def _exchange(self, events: Sequence[Event], body: bytes) -> Answer:
        headers = {**self._headers, "Content-Type": self._form.content_type, **self._signature(events[0].id, body)}
        if isinstance(self._form, CloudEventFormat):
            headers |= self._form.headers_of(events)
        try:
            return self._client.request("POST", self._target, body, headers)
        except SinkError as error:
            raise SinkError(self._conceal(str(error))) from None

    def _judge(self, answer: Answer) -> None:
        """Raises `PoisonError` or `SinkError` for an answer that is no acknowledgement."""
        status = answer.status
        if 200 <= status < 300:
            return
        text = self._conceal(answer.body[:200].decode("utf-8", "replace").strip())
        text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
        reason = f"{self._where} answers {status} {self._conceal(answer.reason)}" + (f" ({text[:100]})" if text else "")
        if status in _MALFORMED:
            raise PoisonError(reason)
        if 300 <= status < 400:
            raise SinkError(f"{reason}: it has moved, give the sink its new address")
        if status in {401, 403}:
            raise SinkError(f"{reason}: check user, password or token")
        if status == 407:
            raise SinkError(f"{reason}: the proxy wants a user and password, in HTTP_PROXY or HTTPS_PROXY")
        self._not_before = time.monotonic() + _retry_after_s(answer.headers.get("retry-after"))
        raise SinkError(reason)

    def _conceal(self, text: str) -> str:
        """The peer's words without our secrets and the parts of our path: many peers repeat them."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _signature(self, message_id: str, body: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        now = str(int(time.time()))
        digest = hmac.new(self._secret, f"{message_id}.{now}.".encode() + body, hashlib.sha256).digest()
        return {
            "Webhook-Id": quote(message_id, safe=_KEPT),
            "Webhook-Timestamp": now,
            "Webhook-Signature": "v1," + base64.b64encode(digest).decode(),
        }


def open_webhook(address: SinkAddress) -> WebhookSink:
    """Opens `https://USER:PASSWORD@HOST/PATH?...`; `http://` for tests and closed networks.

    Options: `secret` (signs; `whsec_...` is base64), `token` (bearer), `batch` (events a request), `timeout` (seconds
    for a whole exchange), the TLS options. `format=binary` sends CloudEvents in binary mode; text, slack, discord or
    teams (also as `slack+https://`, and by themselves for the hosts of those services) send messages for people, with
    `template` (a line for each event), `rate` (messages a minute) and `digest` (seconds to collect events for one
    message). Everything else behind the `?` belongs to the address and is sent as it is written.
    """
    options = address.options
    prefix, _, scheme = address.scheme.rpartition("+")
    if not address.host:
        raise SinkAddressError(f"{address.public}: a host is missing: write {address.scheme}://HOST/PATH")
    default = prefix or _format_by_host(address.host, address.path)
    kind = options.choice("format", _FORMATS, default)
    if prefix and kind != prefix:
        raise options.error(f"option format={kind!r} contradicts the scheme {address.scheme}: leave it out")
    is_chat = kind not in {"events", "binary", "onvif"}
    token, secret = _secret_text(address, "token"), _secret_text(address, "secret")
    batch = options.whole("batch", _CHAT_BATCH if is_chat else 1, least=1)
    if kind in ("binary", "onvif") and batch > 1:
        raise options.error(f"option batch={batch} does not go with format={kind}, which carries one event a request")
    template = options.text("template")
    rate = options.number("rate", _CHAT_RATE if is_chat else 0.0)
    digest_s = options.number("digest", 0.0)
    if not is_chat and (template is not None or digest_s):
        raise options.error("options template and digest are for messages: add format=text, slack, discord or teams")
    try:
        form = _open_form(kind, template, batch)
    except SinkAddressError as error:
        raise options.error(str(error)) from None
    client = _open_client(address, secure=scheme == "https")
    options.rest("")
    headers = {"User-Agent": "groundstream"}
    if address.user is not None:
        pair = f"{address.user}:{address.password or ''}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return WebhookSink(
        client,
        _target_of(address.target),
        headers=headers,
        form=form,
        secret=_secret_bytes(address, secret) if secret else None,
        batch=batch,
        rate=rate,
        digest_s=digest_s,
        hidden=[text for text in (token, secret, address.password) if text],
    )


def _open_form(kind: str, template: str | None, batch: int) -> CloudEventFormat | OnvifDocuments | MessageFormat:
    if kind == "onvif":
        return OnvifDocuments()
    if kind in ("events", "binary"):
        return CloudEventFormat(batch, binary=kind == "binary")
    return MessageFormat(kind, template)


def _open_client(address: SinkAddress, *, secure: bool) -> HttpClient:
    options = address.options
    timeout_s = options.number("timeout", 10.0, least=0.1)
    tls = TlsOptions.from_options(options, secure=secure)
    try:
        context = tls.context() if secure else None
        return HttpClient(
            address.host,
            address.port,
            context=context,
            has_certificate=tls.certfile is not None,
            timeout_s=timeout_s,
        )
    except (TlsOptionsError, SinkError) as error:
        raise options.error(str(error)) from None


def _format_by_host(host: str, path: str) -> str:
    """Services that take nothing but their own messages are known by their hosts."""
    if host == "hooks.slack.com":
        return "slack"
    if host in {"discord.com", "discordapp.com"} and path.startswith("api/webhooks"):
        return "discord"
    return "teams" if host.endswith(".webhook.office.com") else "events"


def _target_of(target: str) -> str:
    """Path and query as they are written, without our own options; only what HTTP cannot carry is encoded."""
    path, mark, query = target.partition("?")
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) not in _OURS]
    rest = "&".join(kept)
    return quote(f"{path if path.startswith('/') else '/' + path}{mark if rest else ''}{rest}", safe=_KEPT)


def _secrets_of(target: str) -> list[str]:
    """The parts of a path and query that are long enough to be secret, as they are sent and as they are meant."""
    parts = {part for part in re.split(r"[/?&=]", target) if len(part) >= _LEAST_SECRET}
    return list(parts | {unquote(part) for part in parts})


def _secret_text(address: SinkAddress, name: str) -> str | None:
    text = address.options.text(name)
    if text is not None and not (text.isascii() and text.isprintable() and text.strip()):
        raise address.options.error(f"option {name} is empty or holds characters that cannot be sent: give its text")
    return text


def _secret_bytes(address: SinkAddress, secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise address.options.error("option secret begins with whsec_, but no base64 follows: copy it whole")
    return key


def _attributes(event: Event) -> Iterator[tuple[str, str]]:
    from sinks.formats.choose import encode_binary

    return ((name, value.decode()) for name, value in encode_binary(event)[1] if name.startswith("ce_"))


def _retry_after_s(text: str | None) -> float:
    """Seconds, or a date. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if not text:
        return 0.0
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(0.0, wait_s), _LONGEST_WAIT_S) if wait_s == wait_s else 0.0


def _chunks(events: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]
