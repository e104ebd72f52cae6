"""Addresses of sinks, such as `kafka://user:secret@host:9092/topic?acks=all`, and the redaction of their secrets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from sinks.sink import SinkAddressError

_WEB_SCHEME = re.compile(r"(?:[a-z]+\+)?https?")
_HOST = r"(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d+)?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*,?", re.IGNORECASE)
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_OPTIONS = re.compile(r"^[\w.-]+=[^&]*(&[\w.-]+=[^&]*)*$")
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}

# Redaction. Paths of these schemes are names of topics, prefixes, keys, tables and streams; that of any other URL may
# be its only secret.
_OPEN_PATHS = r"(?:kafkas?|mqtts?|rediss?|rtsps?|postgres(?:ql)?|s3|file)"
_LOCAL = r"(?:jsonl|sqlite|parquet|csv|stdout|video|file|images?|scripted|synthetic|webcam)"
# People write passwords with "/", "@", "?" and "#" in them, unencoded: everything up to the last "@" is user data.
_USER = re.compile(r"((?<=://))(\S*)@(\S*)")
# The same where the slashes are forgotten: `kafka:me:secret@host/topic`, `me:secret@host`.
_USER_WITHOUT_SLASHES = re.compile(
    rf"""(?ix) (?<![\w.+-]) (?! {_LOCAL} : )
    ({_OPEN_PATHS}:/?(?!/))? ((?(1)[^\s/]|[^\s:/@'"()\[\]{{}}=]+:(?!//))\S*) @ (\S*)"""
)
# An address that stands alone may have blanks in its password; a sentence has ": " somewhere before its next "@".
_USER_WITH_BLANKS = re.compile(rf"(?is)\A\s*(?!{_LOCAL}:)([a-z][a-z0-9+.-]*:(?://)?)([^/@\s]*:(?:(?!:\s).)*)@(\S*)")
_OPTION_BEGINS = re.compile(r"[?&;][^?&;=]*=")
_OPEN_SCHEME = re.compile(rf"(?i)\s*{_OPEN_PATHS}:")
_WEB = re.compile(rf"(?i)\b(?!{_OPEN_PATHS}://)([a-z][a-z0-9+.-]*://)(\S*)")
_WEB_END = re.compile(r"""[.,:;)\]}'">]+\Z""")
_HIDDEN_WEB = re.compile(r"(?:\*\*\*@)?[^/?#@]*/\*\*\*#[0-9a-f]{8}")
_SECRET_NAME = r"[^=&;?#\s'\"]*(?:pass|pwd|secret|token|key|auth|sig|cred|login|user)[^=&;?#\s'\"]*"
_WEB_SECRET = re.compile(rf"(?i)(?<=[?&;])({_SECRET_NAME})=[^&\s]*")
_SECRET = re.compile(rf"""(?i)(?<![\w.%+-])({_SECRET_NAME})=(?:'[^'\n]*'|"[^"\n]*"|[^&\s]+)""")
_OPTION = re.compile(r"(?<=[?&;])([^=&;?#\s'\"]*)=([^&\s]*)")
_HIDDEN_VALUE = re.compile(r"""\*\*\*[).,:;\]'">]*""")
_OPTION_WITHOUT_VALUE = re.compile(r"(?<=&)[^=&\s]+(?=[&\s]|\Z)")
# Options whose values may be shown. The value of any other option is hidden: its name may be a misspelt secret.
# fmt: off
_SHOWN_OPTIONS = frozenset({
    "acks", "analyzeduration", "anonymous", "batch", "batch_size", "bus", "cafile", "category", "certfile", "channel",
    "channels", "clean", "client_id", "codec", "compression", "compression_type", "coverage", "create", "db",
    "delivery_timeout_ms", "detections", "digest", "discovery", "duration", "enable_idempotence", "encoding", "end",
    "endpoint", "format", "fps", "fsync", "group", "h", "height", "idle", "incidents", "insecure", "keep", "level",
    "limit", "linger_ms", "live", "loop", "loops", "max_block_ms", "max_in_flight_requests_per_connection",
    "max_request_size",
    "mode", "model", "name", "noise", "nv_type", "objects", "partitions", "profile", "proto", "protocol", "qos",
    "queries", "rate", "region", "registry", "replication", "request_timeout_ms", "res", "resolution", "retention",
    "retries", "retry_backoff_ms", "rows", "run", "sasl_mechanism", "scale", "schema", "seconds", "security_protocol",
    "seed", "size", "speed", "start", "state", "stream", "streams", "style", "subject", "subtype", "table", "tcp",
    "template", "timeout", "transport", "transportmode", "type", "types", "udp", "unicast", "video", "w", "width",
})
# fmt: on

Choice = TypeVar("Choice", bound=str)


def redact(text: str) -> str:
    """Returns an address, or a text with addresses in it, without users, passwords, tokens and keys.

    Everything between `://` and the last `@` counts as user data. Values are shown only of options that are known to
    be harmless. Of a web address, and of any scheme that is not known, only the host stays:
    `https://hooks.example.com/***#5f2a81c0`; the number differs for every other path and is the same when only a
    password, token or key changes. A redacted text stays as it is when it is redacted again.
    """
    # The marks of web addresses are computed before other rules change the text.
    text = _WEB.sub(_hide_web_path, _USER_WITH_BLANKS.sub(_hide_user_with_blanks, text))
    text = _USER_WITHOUT_SLASHES.sub(_hide_user, _USER.sub(_hide_user, text))
    text = _OPTION.sub(_hide_option, _SECRET.sub(r"\1=***", text))
    return _OPTION_WITHOUT_VALUE.sub("***", text)


def _hide_user(found: re.Match[str]) -> str:
    """Hides what stands before the last `@`, and what follows where that may be the rest of an option's value."""
    scheme, user, rest = found.groups()
    return f"{scheme or ''}***@" + ("***" if _OPTION_BEGINS.search(user) else rest)


def _hide_user_with_blanks(found: re.Match[str]) -> str:
    scheme, user, rest = found.groups()
    if not re.search(r"\s", user):
        return found[0]  # left to the other rules
    if _OPEN_SCHEME.match(scheme) or not re.search(r"[/?#]", user):
        return _hide_user(found)
    return f"{scheme}***/***#{_mark_path(user + rest)}"


def _hide_web_path(found: re.Match[str]) -> str:
    """Hides what follows the host. Where `@` follows a slash, host and password cannot be distinguished: both go."""
    scheme, rest = found.groups()
    ending = match[0] if (match := _WEB_END.search(rest)) else ""
    rest = rest.removesuffix(ending)
    if _HIDDEN_WEB.fullmatch(rest):
        return found[0]
    end = next((place for place, character in enumerate(rest) if character in "/?#"), len(rest))
    user, _, host = rest[:end].rpartition("@")
    user, path = "***@" if user or "@" in rest[:end] else "", rest[end:]
    if "@" in path:
        user, host, path = "", "***", rest
    if path in {"", "/"}:
        return f"{scheme}{user}{host}{path}{ending}"
    return f"{scheme}{user}{host}/***#{_mark_path(path)}{ending}"


def _mark_path(path: str) -> str:
    return hashlib.sha256(_WEB_SECRET.sub(r"\1=***", path).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _hide_option(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name.lower() not in _SHOWN_OPTIONS:
        if _HIDDEN_VALUE.fullmatch(value):
            return found[0]
        return f"{name}=***"
    shown, mark, rest = value.partition(";")
    return f"{name}={shown}" + (_OPTION.sub(_hide_option, f";{rest}") if mark else "")


class AddressOptions:
    """The options behind the `?`. Each is read by its name; `finish` refuses those that were not read."""

    def __init__(self, address: str, values: dict[str, str]) -> None:
        self._address = redact(address)
        self._values = dict(values)
        self._known: list[str] = []

    def __repr__(self) -> str:
        return f"AddressOptions({self._address!r})"

    def text(self, name: str, default: str | None = None) -> str | None:
        self._known.append(name)
        return self._values.pop(name, default)

    def peek(self, name: str) -> str | None:
        """The value of an option that is asked for elsewhere."""
        return self._values.get(name)

    def rename(self, old: str, new: str) -> None:
        """Takes the option `old` for `new`, unless that is given too."""
        if old in self._values and new not in self._values:
            self._values[new] = self._values.pop(old)

    def number(self, name: str, default: float, *, least: float = 0) -> float:
        """A plain number, at least `least`."""
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise self.error(f"option {name}={text!r} must be a number of at least {least:g}")
        return value

    def whole(self, name: str, default: int, *, least: int = 0) -> int:
        value = self.number(name, default, least=least)
        if value != int(value):
            raise self.error(f"option {name}={value!r} must be a whole number")
        return int(value)

    def size(self, name: str, default: int) -> int:
        """Bytes: 5000, 64k, 1.5MiB, 2GB."""
        text = self.text(name)
        if text is None:
            return default
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
        if match is None or match[2] not in _UNITS:
            raise self.error(f"option {name}={text!r} must be a size such as 64k, 10MB or 1GiB")
        return int(float(match[1]) * _UNITS[match[2]])

    def flag(self, name: str, default: bool = False) -> bool:
        text = self.text(name)
        if text is None:
            return default
        if text.lower() not in {"true", "false", "1", "0", "yes", "no"}:
            raise self.error(f"option {name}={text!r} must be true or false")
        return text.lower() in {"true", "1", "yes"}

    def choice(self, name: str, allowed: Sequence[Choice], default: Choice) -> Choice:
        text = self.text(name)
        if text is None:
            return default
        for value in allowed:
            if value == text.lower():
                return value
        raise self.error(f"option {name}={text!r} must be one of {', '.join(allowed)}")

    def rest(self, prefix: str) -> dict[str, str]:
        """Every option whose name begins with `prefix`, without it: settings that are passed on."""
        self._known.append(prefix + "*")
        names = [name for name in self._values if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._values.pop(name) for name in names}

    def finish(self) -> None:
        """Raises `SinkAddressError` when there is an option that was not read."""
        for name in self._values:
            allowed = ", ".join(self._known) if self._known else "none"
            if not self._values[name]:  # its name may be the end of a password that holds an "&"
                raise self.error("an option has no value: write NAME=VALUE, with & in a value as %26")
            raise self.error(f"unknown option {name!r}: allowed are {allowed}")

    def error(self, sentence: str) -> SinkAddressError:
        """The error to raise, with the address before the sentence, both redacted."""
        return SinkAddressError(redact(f"{self._address}: {sentence}"))


@dataclass(frozen=True)
class SinkAddress:
    """A sink's address in its parts. `path` of a file is as written; that of a network address has no leading slash."""

    scheme: str
    path: str = field(repr=False)
    options: AddressOptions
    public: str  # the whole address without secrets
    host: str = ""
    port: int | None = None
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    target: str = field(default="", repr=False)  # path and query of a URL as they are written

    @property
    def hosts(self) -> str:
        """`host:port`, with an IPv6 address in brackets; several brokers as they are written."""
        if "," in self.host:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


_FILE_SCHEMES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".db": "sqlite",
    ".parquet": "parquet",
}  # fmt: skip
"""Schemes of files by the ends of their names."""


def parse_address(text: str) -> SinkAddress:
    """Returns the parts of an address of any scheme. Raises `SinkAddressError` for a text that is not an address."""
    match = _SCHEME.match(text)
    if match is None:
        scheme = _FILE_SCHEMES.get(PurePath(text).suffix.lower())
        hint = f"did you mean {scheme}:{redact(text)}? " if scheme else ""
        raise SinkAddressError(
            f"{redact(text)!r} is not the address of a sink: {hint}write stdout:, jsonl:PATH, sqlite:PATH, "
            "kafka://HOST:PORT/TOPIC, ..."
        )
    scheme, rest = match[1].lower(), text[match.end() :]
    if rest.startswith("//"):
        return _network_address(scheme, text)
    path, mark, options = rest.rpartition("?")
    if not mark or not _OPTIONS.match(options):
        path, options = rest, ""
    return SinkAddress(
        scheme, path, AddressOptions(text, dict(parse_qsl(options, keep_blank_values=True))), redact(text)
    )


def _network_address(scheme: str, text: str) -> SinkAddress:
    try:
        parts = urlsplit(text)
        # Several Kafka brokers stand side by side: host:port,host:port.
        several = "," in parts.netloc and scheme.startswith("kafka")
        host = parts.netloc.rpartition("@")[2] if several else (parts.hostname or "")
        port = None if several else parts.port
        names = "".join(option.partition("=")[0] for option in parts.query.split("&"))
        is_cut = "@" in parts.path + parts.fragment + names and _WEB_SCHEME.fullmatch(scheme) is None
        is_cut = is_cut or (several and (_HOSTS.fullmatch(host) is None or "@" in parts.query))
    except ValueError:
        # The reason that the library gives quotes the address.
        is_cut = "@" in text
        if not is_cut:
            raise SinkAddressError(
                f"{redact(text)}: the port is not a number from 0 to 65535: write {scheme}://HOST:PORT/..."
            ) from None
    if is_cut:
        raise SinkAddressError(
            f"{redact(text)}: the user or password holds a character that ends it: write {scheme}://USER:PASSWORD@"
            "HOST:PORT/..., with / ? # @ : in the user and password as %2F %3F %23 %40 %3A"
        )
    return SinkAddress(
        scheme,
        unquote(parts.path.lstrip("/")),
        AddressOptions(text, dict(parse_qsl(parts.query, keep_blank_values=True))),
        redact(text),
        host,
        port,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        parts.path + (f"?{parts.query}" if parts.query else ""),
    )
