"""Addresses of sinks: `kafka://user:secret@host:9092/topic?acks=all`, `jsonl:PATH`. Their secrets never leave here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from sinks.sink import SinkAddressError

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET = re.compile(
    r"(?i)(?<=[?&;])([^=&;\s]*(?:password|passwd|secret|token|key|auth|signature|credential)[^=&;\s]*)=[^&\s]*"
)
# Paths of topics, prefixes and keys are no secrets; that of a web address often is the only one there is.
_WEB = re.compile(
    r"""(?i)\b(?!(?:kafkas?|mqtts?|rediss?|rtsps?|file)://)
    ([a-z][a-z0-9+.-]*://[^\s/?\#&'"<>]*)([/?\#](?:[^\s'"<>]*[^\s'"<>.,:;)\]])?)""",
    re.VERBOSE,
)
_HIDDEN = re.compile(r"/\*\*\*#[0-9a-f]{8}|/")
_OPTIONS = re.compile(r"^[\w.-]+=[^&]*(&[\w.-]+=[^&]*)*$")
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}

Choice = TypeVar("Choice", bound=str)


def redact(address: str) -> str:
    """The address, or any text with addresses in it, without users, passwords, tokens and keys.

    Of a web address only the host stays: `https://hooks.example.com/***#5f2a81c0`. What follows it is different for
    every other path, and stays the same when only a password, token or key changes.
    """
    return _WEB.sub(_hide_path, _SECRET.sub(r"\1=***", _USER.sub("***@", address)))


def _hide_path(found: re.Match[str]) -> str:
    host, rest = found.groups()
    if _HIDDEN.fullmatch(rest):
        return found[0]
    return f"{host}/***#{hashlib.sha256(rest.encode()).hexdigest()[:8]}"


class AddressOptions:
    """What stands behind the `?`: every value is asked for by its name, and one that nobody asked for is an error."""

    def __init__(self, address: str, values: dict[str, str]) -> None:
        self._address = redact(address)
        self._values = dict(values)
        self._known: list[str] = []

    def __repr__(self) -> str:
        return f"AddressOptions({self._address!r})"

    def text(self, name: str, default: str | None = None) -> str | None:
        self._known.append(name)
        return self._values.pop(name, default)

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
        """Raises `SinkAddressError` when an option is left that nobody asked for."""
        for name in self._values:
            allowed = ", ".join(self._known) if self._known else "none"
            raise self.error(f"unknown option {name!r}: allowed are {allowed}")

    def error(self, sentence: str) -> SinkAddressError:
        return SinkAddressError(f"{self._address}: {sentence}")


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

    @property
    def hosts(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


def parse_address(text: str) -> SinkAddress:
    """Raises `SinkAddressError` where the text is no address at all; whether its scheme is known is not asked here."""
    match = _SCHEME.match(text)
    if match is None:
        raise SinkAddressError(
            f"{redact(text)!r} is no sink address: write stdout:, jsonl:PATH, sqlite:PATH, kafka://HOST:PORT/TOPIC, ..."
        )
    scheme, rest = match[1].lower(), text[match.end() :]
    if rest.startswith("//"):
        return _network(scheme, text)
    path, mark, options = rest.rpartition("?")
    if not mark or not _OPTIONS.match(options):
        path, options = rest, ""
    return SinkAddress(
        scheme, path, AddressOptions(text, dict(parse_qsl(options, keep_blank_values=True))), redact(text)
    )


def _network(scheme: str, text: str) -> SinkAddress:
    try:
        parts = urlsplit(text)
        # several Kafka brokers stand side by side: host:port,host:port
        several = "," in parts.netloc
        host = parts.netloc.rpartition("@")[2] if several else (parts.hostname or "")
        port = None if several else parts.port
    except ValueError as error:
        raise SinkAddressError(f"{redact(text)}: {error}: write {scheme}://HOST:PORT/...") from None
    return SinkAddress(
        scheme,
        unquote(parts.path.lstrip("/")),
        AddressOptions(text, dict(parse_qsl(parts.query, keep_blank_values=True))),
        redact(text),
        host,
        port,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
    )
