"""Events as Protobuf, in Confluent's wire format where there is a registry; the messages are made from the models.

`python -m sinks.formats.protobuf` writes `event.v1.proto` beside this module. Its field numbers never change: they are
read from the present file, and a new field gets the next free one.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module, resources
from typing import Any

from pydantic import BaseModel

from sinks.event import Event
from sinks.formats.event_fields import EventField, event_models, fields_of, split_header, wire_header
from sinks.formats.schema_registry import SchemaRegistry
from sinks.sink import SinkAddressError
from sinks.tls import TlsOptions

SUBJECT = "groundstream.v1.Event"
_PACKAGE = "groundstream.v1"
_HEADERS = [("content-type", b"application/protobuf")]
_SCALARS = {"string": "string", "long": "int64", "double": "double", "boolean": "bool"}


class ProtobufFormat:
    """One `Event` message. With a registry its schema's number stands before it; without, it stands alone."""

    def __init__(self, registry: str | None, tls: TlsOptions | None = None) -> None:
        try:
            self._json = import_module("google.protobuf.json_format")
            self._message = _message_class()
        except ImportError:
            raise SinkAddressError("format=protobuf needs protobuf: pip install 'groundstream[protobuf]'") from None
        self._registry = SchemaRegistry(registry, tls) if registry is not None else None
        self._header = b""

    def check(self) -> None:
        """Raises `SinkError` when there is a registry that does not answer."""
        if self._registry is not None:
            self._registry.check()

    def encode(self, event: Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        if self._registry is not None and not self._header:
            number = self._registry.register(SUBJECT, proto_text(), "PROTOBUF")
            self._header = wire_header(number) + b"\0"  # the first message of the file
        message = self._json.ParseDict(event.model_dump(mode="json", exclude_none=True), self._message())
        body: bytes = message.SerializeToString(deterministic=True)
        return self._header + body, _HEADERS

    def decode(self, message: bytes) -> Event:
        """Returns the event; unknown fields are ignored. Raises `ValueError` for a message that holds none."""
        if message[:1] == b"\0":  # no message of ours begins so: 0 is no field
            message = split_header(message)[1][1:]
        found = self._message()
        try:
            found.ParseFromString(message)
        except Exception as error:  # the library's error type differs between its implementations
            raise ValueError(f"the message is no Protobuf ({error})") from None
        return Event.model_validate(self._json.MessageToDict(found, preserving_proto_field_name=True))


def proto_text() -> str:
    """The messages in the language of Protobuf, `Event` first."""
    numbers = _field_numbers()
    lines = ["// Generated from sinks/event.py; numbers are never given twice.", 'syntax = "proto2";', ""]
    lines += [f"package {_PACKAGE};"]
    for model in event_models():
        lines += ["", f"message {model.__name__} {{"]
        for field in fields_of(model):
            lines.append(f"  {_declared_type(field)} {field.name} = {numbers[model.__name__, field.name]};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _declared_type(field: EventField) -> str:
    kind = field.record.__name__ if field.record else _SCALARS[field.scalar or ""]
    if field.mapped:
        return f"map<string, {kind}>"
    return f"{'repeated' if field.many else 'optional'} {kind}"


@cache
def _field_numbers() -> dict[tuple[str, str], int]:
    """(message, field) -> number: those of the shipped file, then the next free ones."""
    numbers: dict[tuple[str, str], int] = {}
    message = ""
    shipped = resources.files("sinks.formats") / "event.v1.proto"
    for line in shipped.read_text(encoding="utf-8").splitlines() if shipped.is_file() else ():
        if match := re.match(r"message (\w+)", line):
            message = match[1]
        elif match := re.match(r"\s+.* (\w+) = (\d+);", line):
            numbers[message, match[1]] = int(match[2])
    for model in event_models():
        used = [number for (name, _), number in numbers.items() if name == model.__name__]
        free = max(used, default=0) + 1
        for field in fields_of(model):
            if (model.__name__, field.name) not in numbers:
                numbers[model.__name__, field.name] = free
                free += 1
    return numbers


@cache
def _message_class() -> Any:
    descriptors = import_module("google.protobuf.descriptor_pb2")
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    factory = import_module("google.protobuf.message_factory")
    file = descriptors.FileDescriptorProto(name="event.v1.proto", package=_PACKAGE, syntax="proto2")
    for model in event_models():
        _describe_message(file.message_type.add(name=model.__name__), model, descriptors.FieldDescriptorProto)
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Event"))


def _describe_message(message: Any, model: type[BaseModel], kinds: Any) -> None:
    numbers = _field_numbers()
    for field in fields_of(model):
        label = kinds.LABEL_REPEATED if field.many or field.mapped else kinds.LABEL_OPTIONAL
        entry = message.field.add(name=field.name, number=numbers[model.__name__, field.name], label=label)
        if field.mapped:
            entry.type = kinds.TYPE_MESSAGE
            name = field.name.title().replace("_", "") + "Entry"
            entry.type_name = f".{_PACKAGE}.{model.__name__}.{name}"
            nested = message.nested_type.add(name=name)
            nested.options.map_entry = True
            nested.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
            value = nested.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL)
            value.type = getattr(kinds, f"TYPE_{_SCALARS[field.scalar or ''].upper()}")
        elif field.record is not None:
            entry.type = kinds.TYPE_MESSAGE
            entry.type_name = f".{_PACKAGE}.{field.record.__name__}"
        else:
            entry.type = getattr(kinds, f"TYPE_{_SCALARS[field.scalar or ''].upper()}")


if __name__ == "__main__":
    with resources.as_file(resources.files("sinks.formats") / "event.v1.proto") as _file:
        _file.write_text(proto_text(), encoding="utf-8")
