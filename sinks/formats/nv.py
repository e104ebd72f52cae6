"""Events as systems by NVIDIA read them: `nv.Frame` and `nv.Incident` of VSS, and the minimal JSON of DeepStream.

Names, numbers and types of the messages are public (schema and ext of NVIDIA's VSS repository); `nv.proto` beside this
module holds those that are written here. `python -m sinks.formats.nv > sinks/formats/nv.proto` writes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from sinks.event import EventType
from sinks.sink import SinkAddressError

if TYPE_CHECKING:
    from sinks.event import Detection, Event

NvType = Literal["query_id", "text"]

_VERSION = "4.0"
_TIMESTAMP = "google.protobuf.Timestamp"
_MAP = "map<string, string>"
# message -> field -> (number, type, is it repeated)
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Bbox": {
        "leftX": (1, "float", False),
        "topY": (2, "float", False),
        "rightX": (3, "float", False),
        "bottomY": (4, "float", False),
    },
    "Object": {
        "id": (1, "string", False),
        "bbox": (2, "Bbox", False),
        "type": (3, "string", False),
        "confidence": (4, "float", False),
        "info": (5, _MAP, False),
    },
    "TypeMetrics": {
        "id": (1, "string", False),
        "type": (2, "string", False),
        "count": (3, "int32", False),
        "objectIds": (5, "string", True),
        "info": (6, _MAP, False),
    },
    "Frame": {
        "version": (1, "string", False),
        "id": (2, "string", False),
        "timestamp": (3, _TIMESTAMP, False),
        "sensorId": (4, "string", False),
        "objects": (5, "Object", True),
        "fov": (6, "TypeMetrics", True),
        "rois": (7, "TypeMetrics", True),
        "info": (12, _MAP, False),
    },
    "Incident": {
        "sensorId": (1, "string", False),
        "timestamp": (2, _TIMESTAMP, False),
        "end": (3, _TIMESTAMP, False),
        "objectIds": (4, "string", True),
        "frameIds": (5, "string", True),
        "category": (8, "string", False),
        "isAnomaly": (10, "bool", False),
        "info": (11, _MAP, False),
    },
}


class NvProtobufFormat:
    """One `nv.Frame` for each analysed frame, empty ones too, and one `nv.Incident` for each event of a zone or line.

    `object_type` says what names the class of an object: the query's id, which is one word, or its text.
    """

    def __init__(self, object_type: NvType = "query_id") -> None:
        try:
            self._classes = _message_classes()
        except ImportError:
            raise SinkAddressError("format=nv needs protobuf: pip install 'groundstream[protobuf]'") from None
        self._object_type = object_type
        self._clock = _RisingClock()

    def encode(self, event: Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        """The bare message, without headers."""
        message = self._frame_message(event) if event.type is EventType.DETECTIONS else self._incident_message(event)
        return message.SerializeToString(deterministic=True), []

    def _frame_message(self, event: Event) -> Any:
        data = event.data
        frame = self._classes["Frame"](version=_VERSION, id=_frame_id(event), sensorId=data.stream)
        _set_time(frame.timestamp, self._clock.time_of(event))
        width, height = _frame_size(event)
        frame.info.update({"width": str(width), "height": str(height), "clock": data.clock.basis})
        if data.clock.uncertainty_ms is not None:
            frame.info["uncertainty_ms"] = f"{data.clock.uncertainty_ms:g}"
        counted: dict[tuple[str, str], list[str]] = {}
        for detection in data.detections or ():
            name = _object_name(detection, self._object_type)
            number = "" if detection.track is None else str(detection.track)
            shown = frame.objects.add(id=number, type=name, confidence=detection.score)
            box = detection.box
            shown.bbox.leftX, shown.bbox.topY = box.x1 * width, box.y1 * height
            shown.bbox.rightX, shown.bbox.bottomY = box.x2 * width, box.y2 * height
            shown.info["groundstream.query"] = detection.query
            if detection.uid is not None:
                shown.info["groundstream.uid"] = detection.uid
            if detection.query_rev is not None:
                shown.info["groundstream.query_rev"] = str(detection.query_rev)
            counted.setdefault(("", name), []).append(number)
            for zone in detection.zones or ():
                counted.setdefault((zone, name), []).append(number)
        for (zone, name), numbers in sorted(counted.items()):
            if zone:
                frame.rois.add(id=zone, type=name, count=len(numbers), objectIds=numbers)
            else:
                frame.fov.add(type=name, count=len(numbers), objectIds=numbers)
        return frame

    def _incident_message(self, event: Event) -> Any:
        data = event.data
        place = data.zone.id if data.zone else f"{data.line.id}:{data.line.direction}" if data.line else ""
        incident = self._classes["Incident"](
            sensorId=data.stream,
            category=f"{event.kind}:{place}",
            objectIds=[str(data.track.number)] if data.track else [],
            frameIds=[_frame_id(event)] if data.frame else [],
        )
        _set_time(incident.timestamp, data.clock.captured_ns)
        _set_time(incident.end, data.clock.captured_ns)
        incident.info.update({"groundstream.id": event.id, "groundstream.query": ", ".join(event.queries)})
        if data.track is not None:
            incident.info["groundstream.uid"] = data.track.uid
        return incident


class NvJsonFormat:
    """DeepStream's minimal message: one JSON object a frame, whose objects are `ID|left|top|right|bottom|Type`."""

    def __init__(self, object_type: NvType = "query_id") -> None:
        self._object_type = object_type
        self._clock = _RisingClock()

    def encode(self, event: Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        """The object as UTF-8, without headers."""
        width, height = _frame_size(event)
        objects = []
        for detection in event.data.detections or ():
            box = detection.box
            places = (box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)
            number = "" if detection.track is None else str(detection.track)
            name = _object_name(detection, self._object_type).replace("|", " ")
            objects.append("|".join([number, *(f"{place:.2f}" for place in places), name]))
        milliseconds = self._clock.time_of(event) // 1_000_000
        message = {
            "version": _VERSION,
            "id": _frame_id(event),
            "@timestamp": _json_time(milliseconds),
            "sensorId": event.data.stream,
            "objects": objects,
        }
        return json.dumps(message, ensure_ascii=False).encode(), []


class _RisingClock:
    """Capture times that never run backwards for a stream, as consumers expect of a sensor."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def time_of(self, event: Event) -> int:
        stream = event.data.stream
        self._newest[stream] = time_ns = max(self._newest.get(stream, 0), event.data.clock.captured_ns)
        return time_ns


def nv_proto_text() -> str:
    """The messages in the language of Protobuf."""
    lines = ["// Generated from sinks/formats/nv.py.", 'syntax = "proto3";', "", "package nv;", ""]
    lines += ['import "google/protobuf/timestamp.proto";']
    for name, fields in _MESSAGES.items():
        lines += ["", f"message {name} {{"]
        for field, (number, kind, repeated) in fields.items():
            lines.append(f"  {'repeated ' * repeated}{kind} {field} = {number};")
        lines.append("}")
    return "\n".join(lines) + "\n"


@cache
def _message_classes() -> dict[str, Callable[..., Any]]:
    descriptors = import_module("google.protobuf.descriptor_pb2")
    timestamp = import_module("google.protobuf.timestamp_pb2")
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    factory = import_module("google.protobuf.message_factory")
    pool.AddSerializedFile(timestamp.DESCRIPTOR.serialized_pb)
    file = descriptors.FileDescriptorProto(name="nv.proto", package="nv", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            _describe_field(message, name, field, number, kind, repeated, descriptors.FieldDescriptorProto)
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(f"nv.{name}")) for name in _MESSAGES}


def _describe_field(message: Any, owner: str, name: str, number: int, kind: str, repeated: bool, kinds: Any) -> None:
    is_map = kind == _MAP
    label = kinds.LABEL_REPEATED if repeated or is_map else kinds.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if is_map:
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        for position, part in enumerate(("key", "value"), 1):
            entry.field.add(name=part, number=position, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
        kind = f"{owner}.{name.title()}Entry"
    scalar = getattr(kinds, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
        return
    field.type = kinds.TYPE_MESSAGE
    field.type_name = f".{kind}" if kind == _TIMESTAMP else f".nv.{kind}"


def _set_time(timestamp: Any, time_ns: int) -> None:
    timestamp.seconds, timestamp.nanos = divmod(time_ns, 1_000_000_000)


def _frame_id(event: Event) -> str:
    return str(event.data.frame.index) if event.data.frame else "0"


def _frame_size(event: Event) -> tuple[int, int]:
    frame = event.data.frame
    return (frame.width, frame.height) if frame else (1, 1)


def _object_name(detection: Detection, object_type: NvType) -> str:
    return detection.query if object_type == "text" else detection.query_id or detection.query


def _json_time(milliseconds: int) -> str:
    from sinks.event import rfc3339

    return rfc3339(milliseconds * 1_000_000)[:-4] + "Z"


if __name__ == "__main__":
    sys.stdout.write(nv_proto_text())
