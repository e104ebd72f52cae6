"""Sinks by address. The module of a sink, and the library below it, is imported when such a sink is opened.

Other distributions add schemes by entry points: group `groundstream.sinks`, name = scheme, value = a function that
takes a `SinkAddress` and returns a `Sink`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points

from sinks.address import SinkAddress, parse_address
from sinks.formats.choose import FRAME_FORMATS, types_of_format
from sinks.sink import Sink, SinkAddressError

_NAME = re.compile(r"[\w.-]+")

# scheme -> "module:factory"; a factory takes the address, the registry sees to its common options
_FACTORIES: dict[str, str] = {
    "stdout": "sinks.files:open_stdout",
    "jsonl": "sinks.files:open_jsonl",
    "onvif": "sinks.files:open_onvif_file",
    "sqlite": "sinks.sqlite:open_sqlite",
    "parquet": "sinks.parquet:open_parquet",
    "kafka": "sinks.kafka.sink:open_kafka",
    "kafkas": "sinks.kafka.sink:open_kafka",
    "http": "sinks.webhook:open_webhook",
    "https": "sinks.webhook:open_webhook",
    "slack+https": "sinks.webhook:open_webhook",
    "discord+https": "sinks.webhook:open_webhook",
    "teams+https": "sinks.webhook:open_webhook",
    "slack+http": "sinks.webhook:open_webhook",
    "discord+http": "sinks.webhook:open_webhook",
    "teams+http": "sinks.webhook:open_webhook",
    "mqtt": "sinks.mqtt:open_mqtt",
    "mqtts": "sinks.mqtt:open_mqtt",
    "postgresql": "sinks.postgres:open_postgres",
    "redis": "sinks.redis:open_redis",
    "rediss": "sinks.redis:open_redis",
}


def sink_schemes() -> list[str]:
    """Every scheme that `open_sink` takes."""
    return list(_FACTORIES)


def open_sink(address: str) -> Sink:
    """The sink at `address`: `stdout:`, `jsonl:PATH`, `sqlite:PATH`, `kafka://HOST:PORT/TOPIC`, `https://...`, ...

    Every address takes the options `types`, `streams` and `queries` (lists with commas, see `EventFilter`) that choose
    what the sink gets, and `name`, under which a spool remembers it (see `sink_name`). Files are opened at once; peers
    in the network may be absent: the spool keeps trying.
    Raises `SinkAddressError` for what cannot be understood, and `SinkError` for a file that cannot be written.
    """
    from sinks.filters import EventFilter, FilteredSink

    parts = parse_address(address)
    factory = _find_factory(parts)
    chosen = {name: _split_list(parts.options.text(name)) for name in ("types", "streams", "queries")}
    _given_name(parts)
    EventFilter(**chosen)  # a wrong type is refused before anything is opened
    possible = types_of_format(parts.scheme, parts.options)
    if possible and (given := chosen["types"]):
        chosen["types"] = [kind for kind in possible if any(fnmatchcase(kind, pattern) for pattern in given)]
        if not chosen["types"]:
            known = ", ".join(possible)
            raise parts.options.error(f"types={','.join(given)} has no place in this format: choose among {known}")
    sink = factory(parts)
    types = chosen["types"] or possible or getattr(sink, "default_types", ())
    wanted = EventFilter(types, chosen["streams"], chosen["queries"])
    return FilteredSink(sink, wanted) if wanted else sink


def open_sinks(addresses: Iterable[str]) -> dict[str, Sink]:
    """The sinks by the names under which a spool remembers them (see `sink_name`).

    Raises as `open_sink` does, and `SinkAddressError` for a name that is given twice.
    """
    sinks: dict[str, Sink] = {}
    for address in addresses:
        name = sink_name(address)
        if name in sinks:
            raise SinkAddressError(f"sink {name} is given twice: keep one of them")
        sinks[name] = open_sink(address)
    return sinks


def wants_detections(addresses: Iterable[str]) -> bool:
    """Whether one of the sinks is for the detections of every frame."""
    parts = [parse_address(address) for address in addresses]
    return any(one.scheme == "onvif" or one.options.peek("format") in FRAME_FORMATS for one in parts)


def sink_name(address: str) -> str:
    """The name under which a spool remembers the sink: its option `name`, else its address without secrets.

    A name keeps the sink's place in the event stream whatever else changes in the address. Raises `SinkAddressError`.
    """
    parts = parse_address(address)
    return _given_name(parts) or parts.public


def _given_name(address: SinkAddress) -> str | None:
    name = address.options.text("name")
    if name is not None and not _NAME.fullmatch(name):
        raise address.options.error(f"option name={name!r} must be of letters, digits, '.', '_', '-': name=alarms")
    return name


def _find_factory(address: SinkAddress) -> Callable[[SinkAddress], Sink]:
    if address.scheme == "video":
        raise SinkAddressError(
            f"{address.public}: a video takes pictures, not events: only process and monitor draw it"
        )
    for point in entry_points(group="groundstream.sinks", name=address.scheme):
        added: Callable[[SinkAddress], Sink] = point.load()
        return added
    target = _FACTORIES.get(address.scheme)
    if target is None:
        near = difflib.get_close_matches(address.scheme, _FACTORIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(_FACTORIES)
        raise SinkAddressError(
            f"{address.public}: no sink is called {address.scheme!r}: {hint}known are {known}, video"
        )
    module, _, name = target.partition(":")
    factory: Callable[[SinkAddress], Sink] = getattr(import_module(module), name)
    return factory


def _split_list(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
