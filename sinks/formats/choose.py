"""How an event is written into a message: JSON, CloudEvents binary mode, Avro or Protobuf."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sinks.address import AddressOptions
from sinks.tls import TlsOptions

if TYPE_CHECKING:
    from sinks.event import Event

Headers = list[tuple[str, bytes]]
Encode = Callable[["Event"], tuple[bytes, Headers]]
Decode = Callable[[bytes, Headers], "Event"]

FORMATS = ("json", "binary", "avro", "protobuf", "nv", "nv-json", "onvif")
NV_FORMATS = ("nv", "nv-json")
FRAME_FORMATS = (*NV_FORMATS, "onvif")
"""Formats of the per-frame detections; they cannot be read back."""
INCIDENT_TYPES = ("zone.enter", "zone.dwell", "line.cross")
ONVIF_TYPES = (
    *("detections", "track.end", "track.merge", "match.begin"),
    *("zone.enter", "zone.exit", "zone.dwell", "line.cross", "count"),
)
"""Kinds of events that ONVIF metadata has a place for."""

_STRUCTURED: Headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
_ATTRIBUTES = (
    *("specversion", "id", "source", "type", "subject", "time", "dataschema"),
    *("partitionkey", "sequence", "epoch", "traceparent"),
)


def open_format(options: AddressOptions, tls: TlsOptions | None = None) -> Encode:
    """Returns the encoder that the options `format` (one of `FORMATS`) and `registry` ask for.

    `tls` is for a registry at `https://`.
    """
    name = options.choice("format", FORMATS, "json")
    registry = options.text("registry")
    if registry is None and name in NV_FORMATS:
        from sinks.formats.nv import NvJsonFormat, NvProtobufFormat, NvType

        names: tuple[NvType, NvType] = ("query_id", "text")
        object_type = options.choice("nv_type", names, "query_id")
        return (NvProtobufFormat if name == "nv" else NvJsonFormat)(object_type).encode
    if registry is None and name == "onvif":
        from sinks.formats.onvif import OnvifFormat

        return OnvifFormat().encode
    if name == "avro":
        from sinks.formats.avro import AvroFormat

        return AvroFormat(registry, tls).encode
    if name == "protobuf":
        from sinks.formats.protobuf import ProtobufFormat

        return ProtobufFormat(registry, tls).encode
    if registry is not None:
        raise options.error(f"option registry has no use with format={name}: it is for avro and protobuf")
    return encode_json if name == "json" else encode_binary


def types_of_format(scheme: str, options: AddressOptions) -> tuple[str, ...]:
    """Returns the only types of events that the address's format has a place for; empty: all."""
    kind = "onvif" if scheme == "onvif" else options.peek("format")
    if kind == "onvif":
        return ONVIF_TYPES
    if kind in NV_FORMATS:
        incidents = options.peek("incidents")
        return ("detections", *(INCIDENT_TYPES if kind == "nv" and incidents not in (None, "none") else ()))
    return ()


def encode_json(event: Event) -> tuple[bytes, Headers]:
    """CloudEvents structured mode: the whole event is the value."""
    return event.to_json(), _STRUCTURED


def encode_binary(event: Event) -> tuple[bytes, Headers]:
    """CloudEvents binary mode: the attributes are headers `ce_...`, the value is `data`.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
    """
    values = ((name, getattr(event, name)) for name in _ATTRIBUTES)
    headers = [(f"ce_{name}", str(value).encode()) for name, value in values if value is not None]
    headers.append(("content-type", event.datacontenttype.encode()))
    return event.data.model_dump_json(exclude_none=True).encode(), headers


def open_decoder(options: AddressOptions, tls: TlsOptions | None = None) -> Decode:
    """Returns a reader of messages of every format; Avro needs the option `registry`.

    It raises `ValueError` for a message that holds no event.
    """
    registry = options.text("registry")
    others: dict[bytes, Callable[[bytes], Event]] = {}

    def decode(value: bytes, headers: Headers) -> Event:
        kept = dict(headers)
        kind = kept.get("content-type", b"").partition(b";")[0]
        if "ce_id" in kept:
            return _decode_binary(value, kept)
        if kind in {b"application/avro", b"application/protobuf"}:
            if kind not in others:
                others[kind] = _other_decoder(kind, registry, tls)
            return others[kind](value)
        return Event.from_json(value)

    from sinks.event import Event

    return decode


def _decode_binary(value: bytes, headers: dict[str, bytes]) -> Event:
    from sinks.event import Event, EventData

    attributes = {name: headers[f"ce_{name}"].decode() for name in _ATTRIBUTES if f"ce_{name}" in headers}
    return Event.model_validate({**attributes, "data": EventData.model_validate_json(value)})


def _other_decoder(kind: bytes, registry: str | None, tls: TlsOptions | None) -> Callable[[bytes], Event]:
    if kind == b"application/avro":
        from sinks.formats.avro import AvroFormat

        return AvroFormat(registry, tls).decode
    from sinks.formats.protobuf import ProtobufFormat

    return ProtobufFormat(registry, tls).decode
