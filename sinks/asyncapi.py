"""The AsyncAPI document of topics and payloads, generated from the models of the events.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from typing import Any

from sinks.event import EventType, json_schema

_STATE_TYPES = (EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE, EventType.COVERAGE)
_SCHEMAS = "#/components/schemas/"
_MESSAGES = "#/components/messages/"


def asyncapi_document(version: str) -> dict[str, Any]:
    """Returns the document (AsyncAPI 3.0) of what the Kafka, MQTT and webhook sinks send by default.

    `version` is that of the program.
    """
    events = [kind for kind in EventType if kind is not EventType.DETECTIONS]
    channels = {
        "kafkaEvents": _channel("groundstream.events", "All events; key: the stream.", events),
        "kafkaDetections": _channel("groundstream.detections", "Detections of every frame.", [EventType.DETECTIONS]),
        "kafkaState": _channel("groundstream.state", "Compacted: the newest state of each stream.", _STATE_TYPES),
        "mqttEvents": _channel(
            "groundstream/{stream}/{kind}", "Every event under its kind, such as track/begin.", list(EventType),
            stream="Name of the stream.", kind="Type of the event without groundstream. and version, dots as slashes.",
        ),
        "mqttState": _channel(
            "groundstream/{stream}/state", "Retained: the newest state of the stream.", _STATE_TYPES,
            stream="Name of the stream.",
        ),
        "webhook": _channel("/", "POST of one event, or of a batch as a JSON list.", list(EventType)),
    }  # fmt: skip
    schema = json_schema()
    definitions = schema.pop("$defs")
    schema.pop("$schema")
    schema.pop("$id")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "groundstream",
            "version": version,
            "description": "Events about things in video, as CloudEvents 1.0. Delivery is at least once: the same "
            "event has the same id.",
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": channels,
        "operations": {
            f"send{name[0].upper()}{name[1:]}": {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}
            for name in channels
        },
        "components": {
            "messages": {_message_name(kind): _message(kind) for kind in EventType},
            "schemas": _relocated({"Event": schema, **definitions}),
        },
    }


def _channel(address: str, description: str, kinds: Any, **parameters: str) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": {_message_name(kind): {"$ref": _MESSAGES + _message_name(kind)} for kind in kinds},
    }
    if parameters:
        channel["parameters"] = {name: {"description": text} for name, text in parameters.items()}
    return channel


def _message(kind: EventType) -> dict[str, Any]:
    return {
        "name": kind.value,
        "contentType": "application/cloudevents+json",
        "payload": {"allOf": [{"$ref": _SCHEMAS + "Event"}, {"properties": {"type": {"const": kind.value}}}]},
    }


def _message_name(kind: EventType) -> str:
    return "".join(part.title() for part in kind.value.removeprefix("groundstream.").removesuffix(".v1").split("."))


def _relocated(value: Any) -> Any:
    """The schema with its references to `$defs` turned into references to the components."""
    if isinstance(value, dict):
        return {
            key: item.replace("#/$defs/", _SCHEMAS) if key == "$ref" else _relocated(item)
            for key, item in value.items()
        }
    return [_relocated(item) for item in value] if isinstance(value, list) else value
