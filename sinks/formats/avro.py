"""Events as Avro in Confluent's wire format; the schema is made from the models."""

from __future__ import annotations

import io
import json
from enum import Enum
from functools import cache
from typing import Any

from pydantic import BaseModel

from sinks.event import Event
from sinks.formats.event_fields import EventField, defaults_of, fields_of, split_header, wire_header
from sinks.formats.schema_registry import SchemaRegistry
from sinks.sink import SinkAddressError
from sinks.tls import TlsOptions

SUBJECT = "dev.groundstream.Event"
_HEADERS = [("content-type", b"application/avro")]


@cache
def avro_schema() -> dict[str, Any]:
    """The schema of one event. Fields that are not required have defaults, so that readers and writers of
    different versions understand each other."""
    return _record_schema(Event, set())


class AvroFormat:
    """Writes with the schema of the models, registered under the name of the record; reads with the schema that the
    message names."""

    def __init__(self, registry: str | None, tls: TlsOptions | None = None) -> None:
        if registry is None:
            raise SinkAddressError("format=avro needs a schema registry: add registry=http://HOST:8081")
        try:
            import fastavro
        except ImportError:
            raise SinkAddressError("format=avro needs fastavro: pip install 'groundstream[avro]'") from None
        self._registry = SchemaRegistry(registry, tls)
        self._parse = fastavro.parse_schema
        self._schema = self._parse(avro_schema())
        self._header = b""
        self._writers: dict[int, Any] = {}

    def check(self) -> None:
        """Raises `SinkError` when the registry does not answer."""
        self._registry.check()

    def encode(self, event: Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        import fastavro

        if not self._header:
            self._header = wire_header(self._registry.register(SUBJECT, json.dumps(avro_schema()), "AVRO"))
        out = io.BytesIO(self._header)
        out.seek(len(self._header))
        fastavro.schemaless_writer(out, self._schema, event.model_dump(mode="json"))
        return out.getvalue(), _HEADERS

    def decode(self, message: bytes) -> Event:
        """Returns the event. Raises `ValueError` for a message that holds none."""
        import fastavro

        number, body = split_header(message)
        writer = self._writers.get(number)
        if writer is None:
            writer = self._writers[number] = self._parse(json.loads(self._registry.schema(number)))
        try:
            found = fastavro.schemaless_reader(io.BytesIO(body), writer, self._schema)
        except (EOFError, IndexError, TypeError) as error:
            raise ValueError(f"the message is no Avro of schema {number} ({error})") from None
        return Event.model_validate(_without_none(found))


def _record_schema(model: type[BaseModel], seen: set[type[BaseModel]]) -> dict[str, Any]:
    seen.add(model)
    defaults = dict(defaults_of(model))
    fields = []
    for field in fields_of(model):
        entry: dict[str, Any] = {"name": field.name, "type": _type_schema(field, seen)}
        if not field.required:
            default = defaults[field.name]
            entry["default"] = default.value if isinstance(default, Enum) else default
        fields.append(entry)
    return {"type": "record", "name": model.__name__, "namespace": "dev.groundstream", "fields": fields}


def _type_schema(field: EventField, seen: set[type[BaseModel]]) -> Any:
    kind: Any = field.scalar
    if field.record is not None:
        kind = (
            f"dev.groundstream.{field.record.__name__}" if field.record in seen else _record_schema(field.record, seen)
        )
    if field.many:
        kind = {"type": "array", "items": kind}
    if field.mapped:
        kind = {"type": "map", "values": kind}
    return ["null", kind] if field.nullable else kind


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
