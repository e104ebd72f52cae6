"""The event's models as plain field lists, from which the Avro and Protobuf schemas are made."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from sinks.event import Event

Scalar = Literal["string", "long", "double", "boolean"]
_SCALARS: dict[type, Scalar] = {str: "string", bool: "boolean", int: "long", float: "double"}


@dataclass(frozen=True, slots=True)
class EventField:
    """One field: a scalar, a record (then `record` is its model), many of them, or a map from words to scalars."""

    name: str
    scalar: Scalar | None
    record: type[BaseModel] | None = None
    many: bool = False
    mapped: bool = False
    nullable: bool = False
    required: bool = True


def fields_of(model: type[BaseModel]) -> list[EventField]:
    """The fields of a model in their order. Words that are one of a list are strings: lists only grow."""
    return [_field_of(name, info.annotation, info.is_required()) for name, info in model.model_fields.items()]


def event_models() -> list[type[BaseModel]]:
    """Every model that an event holds, `Event` first, each before those that it holds."""
    found: dict[type[BaseModel], None] = {}

    def walk(model: type[BaseModel]) -> None:
        found.setdefault(model)
        for field in fields_of(model):
            if field.record is not None and field.record not in found:
                walk(field.record)

    walk(Event)
    return list(found)


def _field_of(name: str, annotation: Any, required: bool) -> EventField:
    nullable = many = mapped = False
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation = arguments[0]
        elif origin in {Union, types.UnionType}:
            nullable = True
            (annotation,) = (argument for argument in arguments if argument is not type(None))
        elif origin in {list, tuple}:
            many = True
            annotation = arguments[0]
        elif origin is dict:
            mapped = True
            annotation = arguments[1]
        elif origin is Literal:
            annotation = type(arguments[0])
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return EventField(name, None, annotation, many, mapped, nullable, required)
        else:
            base = str if issubclass(annotation, Enum) else annotation
            return EventField(name, _SCALARS[base], None, many, mapped, nullable, required)


def wire_header(schema_id: int) -> bytes:
    """Confluent's wire format: a zero, then the schema's number in the registry.

    https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
    """
    return b"\0" + schema_id.to_bytes(4, "big")


def split_header(message: bytes) -> tuple[int, bytes]:
    """The schema's number and what follows. Raises `ValueError` where there is no such head."""
    if len(message) < 5 or message[0] != 0:
        raise ValueError("the message does not begin with the number of a schema")
    return int.from_bytes(message[1:5], "big"), message[5:]


def defaults_of(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The fields that have a default, with it."""
    for name, info in model.model_fields.items():
        if not info.is_required():
            yield name, info.get_default(call_default_factory=True)
