"""Events as ONVIF metadata: one `tt:MetadataStream` document for each analysed frame and each event of a rule.

Source: ONVIF Analytics Service Specification and the schema of version 25.12. Boxes stay fractions of the frame: the
transformation in each frame maps them into ONVIF's system, whose x and y run from -1 to 1, y upwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, register_namespace, tostring

from sinks.event import EventType, rfc3339

if TYPE_CHECKING:
    from sinks.event import Box, Event

CONTENT_TYPE = "application/xml; charset=utf-8"
_TT = "http://www.onvif.org/ver10/schema"
_WSNT = "http://docs.oasis-open.org/wsn/b-2"
_TOPICS = "http://www.onvif.org/ver10/topics"
_DIALECT = "http://www.onvif.org/ver10/tev/topicExpression/ConcreteSet"
_KNOWN_TYPES: Mapping[str, Sequence[str]] = {
    "Human": ("person", "people", "man", "woman", "child", "boy", "girl", "pedestrian", "worker", "walker", "rider"),
    "HumanFace": ("face",),
    "LicensePlate": ("plate",),
    "Bus": ("bus", "coach"),
    "Truck": ("truck", "lorry"),
    "Motorcycle": ("motorcycle", "motorbike", "scooter"),
    "Bicycle": ("bicycle", "bike", "cyclist"),
    "Car": ("car", "taxi", "suv"),
    "Vehicle": ("vehicle", "van", "tram", "train", "tractor"),
    "Animal": ("animal", "dog", "cat", "bird", "horse", "cow", "sheep", "deer", "fox"),
    "Fire": ("fire", "flame"),
    "Smoke": ("smoke",),
}
"""ONVIF's object types by the nouns of queries; the first type in this order whose noun is in the words holds."""

register_namespace("tt", _TT)
register_namespace("wsnt", _WSNT)


class OnvifFormat:
    """Encoder of events into documents; it keeps which objects each zone holds, a property in ONVIF."""

    def __init__(self) -> None:
        self._inside: dict[tuple[str, str], set[int]] = {}

    def encode(self, event: Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Returns the document in one line of UTF-8, and its headers."""
        root = Element(f"{{{_TT}}}MetadataStream")
        if event.type in (EventType.DETECTIONS, EventType.TRACK_END, EventType.TRACK_MERGE):
            frame = SubElement(SubElement(root, f"{{{_TT}}}VideoAnalytics"), f"{{{_TT}}}Frame")
            frame.set("UtcTime", event.time)
            frame.set("Source", event.data.stream)
            if event.type is EventType.DETECTIONS:
                _add_objects(frame, event)
            else:
                _add_change(frame, event)
        else:
            self._add_notification(root, event)
        return tostring(root, encoding="utf-8"), [("content-type", CONTENT_TYPE.encode())]

    def _add_notification(self, root: Element, event: Event) -> None:
        data = event.data
        number = data.track.number if data.track is not None else 0
        place, operation, items = "", None, {"ObjectId": str(number)}
        if data.zone is not None:
            place = data.zone.id
        elif data.line is not None:
            place = data.line.id
        elif data.count is not None:
            place = data.count.id
        if event.type in (EventType.ZONE_ENTER, EventType.ZONE_EXIT):
            inside = self._inside.setdefault((data.stream, place), set())
            operation = "Initialized" if not inside and event.type is EventType.ZONE_ENTER else "Changed"
            (inside.add if event.type is EventType.ZONE_ENTER else inside.discard)(number)
            topic = "FieldDetector/ObjectsInside"
            items = {"ObjectId": str(number), "IsInside": str(event.type is EventType.ZONE_ENTER).lower()}
        elif event.type is EventType.ZONE_DWELL:
            dwell_ns = round(((data.zone and data.zone.dwell_s) or 0.0) * 1e9)
            topic = "LoiteringDetector/ObjectIsLoitering"
            items["Since"] = rfc3339(max(0, data.clock.captured_ns - dwell_ns))
        elif event.type is EventType.LINE_CROSS:
            topic = "LineDetector/Crossed"
            if data.line is not None:
                items["Direction"] = data.line.direction
        elif event.type is EventType.COUNT and data.count is not None:
            count = data.count
            has_occupancy = count.occupancy is not None
            topic = "CountAggregation/OccupancyCounter" if has_occupancy else "CountAggregation/Counter"
            items = {"Count": str(count.occupancy if count.occupancy is not None else count.entered + count.left)}
        else:
            topic = "ObjectDetection/Object"
            types = [name for match in data.matches or () for name in _types_of(match.text)]
            items = {"ClassTypes": " ".join(dict.fromkeys(types)) or "Other"}
        if event.queries:
            items["Query"] = ", ".join(event.queries)
        items["EventId"] = event.id
        _write_notification(root, event, topic, place, operation, items)


def _add_objects(frame: Element, event: Event) -> None:
    transformation = SubElement(frame, f"{{{_TT}}}Transformation")
    SubElement(transformation, f"{{{_TT}}}Translate", x="-1", y="1")
    SubElement(transformation, f"{{{_TT}}}Scale", x="2", y="-2")
    for detection in event.data.detections or ():
        # An object without a track has no identity yet; ONVIF leaves the attribute out then.
        shown = SubElement(frame, f"{{{_TT}}}Object")
        if detection.track is not None:
            shown.set("ObjectId", str(detection.track))
        if detection.uid is not None:
            shown.set("UUID", detection.uid)
        appearance = SubElement(shown, f"{{{_TT}}}Appearance")
        _add_shape(appearance, detection.box)
        kinds = SubElement(appearance, f"{{{_TT}}}Class")
        for name in [*_types_of(detection.query), detection.query]:
            SubElement(kinds, f"{{{_TT}}}Type", Likelihood=f"{detection.score:.3f}").text = _clean_text(name)


def _add_shape(appearance: Element, box: Box) -> None:
    shape = SubElement(appearance, f"{{{_TT}}}Shape")
    sides = {"left": box.x1, "top": box.y1, "right": box.x2, "bottom": box.y2}
    SubElement(shape, f"{{{_TT}}}BoundingBox", {side: f"{value:.6g}" for side, value in sides.items()})
    centre = {"x": (box.x1 + box.x2) / 2, "y": (box.y1 + box.y2) / 2}
    SubElement(shape, f"{{{_TT}}}CenterOfGravity", {axis: f"{value:.6g}" for axis, value in centre.items()})


def _add_change(frame: Element, event: Event) -> None:
    track = event.data.track
    if track is None:
        return
    tree = SubElement(frame, f"{{{_TT}}}ObjectTree")
    # The survivor of a merge is named by its public id, not by a number: for ONVIF the merged object ends.
    SubElement(tree, f"{{{_TT}}}Delete", ObjectId=str(track.number))


def _write_notification(
    root: Element, event: Event, topic: str, place: str, operation: str | None, items: Mapping[str, str]
) -> None:
    note = SubElement(SubElement(root, f"{{{_TT}}}Event"), f"{{{_WSNT}}}NotificationMessage")
    name = SubElement(note, f"{{{_WSNT}}}Topic", {"Dialect": _DIALECT, "xmlns:tns1": _TOPICS})
    name.text = f"tns1:RuleEngine/{topic}"
    message = SubElement(SubElement(note, f"{{{_WSNT}}}Message"), f"{{{_TT}}}Message", UtcTime=event.time)
    if operation is not None:
        message.set("PropertyOperation", operation)
    source = SubElement(message, f"{{{_TT}}}Source")
    SubElement(source, f"{{{_TT}}}SimpleItem", Name="VideoSource", Value=_clean_text(event.data.stream))
    if place:
        SubElement(source, f"{{{_TT}}}SimpleItem", Name="Rule", Value=_clean_text(place))
    data = SubElement(message, f"{{{_TT}}}Data")
    for key, value in items.items():
        SubElement(data, f"{{{_TT}}}SimpleItem", Name=key, Value=_clean_text(value))


def _types_of(words: str) -> list[str]:
    """ONVIF's type of an object that a query names, with `Vehicle` before the kinds of vehicles; none when unknown."""
    nouns = {word.removesuffix("s") for word in re.findall(r"[a-z]+", words.lower())} | set(words.lower().split())
    for name, known in _KNOWN_TYPES.items():
        if nouns & set(known):
            return ["Vehicle", name] if name in ("Bus", "Truck", "Motorcycle", "Bicycle", "Car") else [name]
    return []


def _clean_text(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
