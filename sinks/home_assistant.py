"""Home Assistant: entities of each camera by MQTT discovery, beside the topics of CloudEvents.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinks.event import EventType
from sinks.event_pictures import load_picture
from sinks.mqtt_styles import JPEG, JSON, CloudEventStyle, MqttMessage, topic_level
from sinks.presence import Presence

if TYPE_CHECKING:
    from sinks.event import Event

_EVENT_TYPES = {
    EventType.TRACK_BEGIN: "track_begin",
    EventType.MATCH_BEGIN: "match_begin",
    EventType.MATCH_END: "match_end",
    EventType.ZONE_ENTER: "zone_enter",
    EventType.ZONE_EXIT: "zone_exit",
    EventType.LINE_CROSS: "line_cross",
}


class HomeAssistantStyle:
    """One device for each stream: occupancy and count of each query and zone, an event entity, and the newest picture.

    `PREFIX/STREAM/query/ID/occupied` (ON, OFF) and `.../count` are retained, `zone` alike, and `PREFIX/STREAM/image`
    (JPEG) where the pipeline stores pictures; entities are available while this program and the camera are. Queries and
    zones become entities with the first event that names them, the picture with the first one.
    """

    stopped_text = "offline"

    def __init__(self, prefix: str, discovery: str = "homeassistant") -> None:
        self._events = CloudEventStyle(prefix)
        self._prefix = prefix
        self._discovery = discovery
        self._presence = Presence()
        self._texts: dict[tuple[str, str, str], str] = {}  # of queries and zones, by stream, kind and id
        self._versions: dict[str, str] = {}
        self._pictured: set[str] = set()  # streams that have an image entity
        self.status_topic = self._events.status_topic
        self.announce_topic = f"{discovery}/status"

    def messages_of(self, event: Event) -> Sequence[MqttMessage]:
        """The CloudEvent, what it changes in the counts, and the device where it gains or loses an entity."""
        stream = event.data.stream
        place = f"{self._prefix}/{topic_level(stream)}"
        messages = list(self._events.messages_of(event))
        messages += self._discover(event)
        if event.type in {EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE}:
            text = b"online" if event.type is EventType.STREAM_ONLINE else b"offline"
            messages.append(MqttMessage(f"{place}/availability", text, retain=True))
        if event.type is EventType.MEDIA and (picture := load_picture(event, "boxed")) is not None:
            if stream not in self._pictured:
                self._pictured.add(stream)
                messages.append(self._device(stream))
            messages.append(MqttMessage(f"{place}/image", picture, JPEG, retain=True, may_be_left_out=True))
        for kind, name in self._presence.update(event):
            count, _ = self._presence.count(stream, kind, name)
            topic = f"{place}/{kind}/{topic_level(name)}"
            messages.append(MqttMessage(f"{topic}/count", str(count).encode(), retain=True))
            messages.append(MqttMessage(f"{topic}/occupied", b"ON" if count else b"OFF", retain=True))
        if (event_type := _EVENT_TYPES.get(event.type)) is not None:
            messages.append(MqttMessage(f"{place}/ha/event", _dump(_entity_event(event, event_type)), JSON))
        return messages

    def welcome(self) -> Sequence[MqttMessage]:
        """The devices that are known, once more."""
        return [self._device(stream) for stream in self._versions]

    def _discover(self, event: Event) -> list[MqttMessage]:
        stream, data = event.data.stream, event.data
        is_new = stream not in self._versions
        self._versions[stream] = data.producer.version
        named = {("query", match.query_id): match.text for match in data.matches or ()}
        if data.zone is not None:
            named["zone", data.zone.id] = data.zone.id
        if data.query is not None and data.query.change == "removed":
            return self._remove(stream, "query", data.query.id)
        if data.query is not None:
            named["query", data.query.id] = data.query.text
        added = {(stream, *key): text for key, text in named.items() if self._texts.get((stream, *key)) != text}
        self._texts |= added
        return [self._device(stream)] if added or is_new else []

    def _remove(self, stream: str, kind: str, name: str) -> list[MqttMessage]:
        """Components go by being sent without content once."""
        if self._texts.pop((stream, kind, name), None) is None:
            return []
        self._presence.forget(stream, kind, name)
        gone = {_entity_id(kind, name): {"p": "binary_sensor"}, f"{_entity_id(kind, name)}_count": {"p": "sensor"}}
        return [self._device(stream, gone), self._device(stream)]

    def _device(self, stream: str, gone: dict[str, Any] | None = None) -> MqttMessage:
        place = f"{self._prefix}/{topic_level(stream)}"
        node = f"groundstream_{_plain(stream)}"
        components: dict[str, Any] = dict(gone or {})
        for (of_stream, kind, name), text in self._texts.items():
            if of_stream == stream:
                components |= _components(place, stream, node, kind, name, text)
        components["events"] = {
            "p": "event",
            "name": "Events",
            "unique_id": f"{node}_events",
            "default_entity_id": f"event.{_plain(stream).lower()}_events",
            "stat_t": f"{place}/ha/event",
            "event_types": list(_EVENT_TYPES.values()),
        }
        if stream in self._pictured:
            components["picture"] = {
                "p": "image",
                "name": "Best view",
                "unique_id": f"{node}_picture",
                "default_entity_id": f"image.{_plain(stream).lower()}_best_view",
                "image_topic": f"{place}/image",
                "content_type": JPEG,
            }
        version = self._versions.get(stream, "")
        device = {
            "dev": {"ids": [node], "name": stream, "mf": "groundstream", "sw": version},
            "o": {"name": "groundstream", "sw": version},
            "avty": [{"t": self.status_topic}, {"t": f"{place}/availability"}],
            "avty_mode": "all",
            "cmps": components,
        }
        return MqttMessage(f"{self._discovery}/device/{node}/config", _dump(device), JSON, retain=True)


def _components(place: str, stream: str, node: str, kind: str, name: str, text: str) -> dict[str, Any]:
    entity = _entity_id(kind, name)
    shown = text if kind == "query" else f"Zone {text}"
    topic = f"{place}/{kind}/{topic_level(name)}"
    label = f"{_plain(stream)}_{_plain(text)}".lower()
    return {
        entity: {
            "p": "binary_sensor",
            "dev_cla": "occupancy",
            "name": shown,
            "unique_id": f"{node}_{entity}",
            "default_entity_id": f"binary_sensor.{label}",
            "stat_t": f"{topic}/occupied",
            "pl_on": "ON",
            "pl_off": "OFF",
        },
        f"{entity}_count": {
            "p": "sensor",
            "stat_cla": "measurement",
            "name": f"{shown} count",
            "unique_id": f"{node}_{entity}_count",
            "default_entity_id": f"sensor.{label}_count",
            "stat_t": f"{topic}/count",
        },
    }


def _entity_event(event: Event, name: str) -> dict[str, Any]:
    data = event.data
    found = {
        "event_type": name,
        "id": event.id,
        "time": event.time,
        "queries": event.queries,
        "track": data.track.number if data.track else None,
        "zone": data.zone.id if data.zone else None,
        "line": data.line.id if data.line else None,
        "direction": data.line.direction if data.line else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _entity_id(kind: str, name: str) -> str:
    return f"{kind}_{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_") or "x"


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
