"""Topics and payloads as Frigate publishes them, so that automations and cards made for Frigate work.

https://docs.frigate.video/integrations/mqtt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinks.event import EventType
from sinks.event_pictures import load_picture
from sinks.mqtt_styles import JPEG, JSON, MqttMessage, topic_level
from sinks.presence import Presence

if TYPE_CHECKING:
    from sinks.event import Event, TrackInfo

_MOST_TRACKS = 10_000
_TRACK_TYPES = frozenset(
    {EventType.TRACK_BEGIN, EventType.TRACK_UPDATE, EventType.TRACK_END, EventType.MATCH_BEGIN, EventType.MATCH_END,
     EventType.ZONE_ENTER, EventType.ZONE_EXIT}
)  # fmt: skip


class FrigateStyle:
    """`PREFIX/events` (new, update, end), `PREFIX/reviews`, counts by camera, object and zone, and availability.

    The label of an object is the id of its query. Where the pipeline stores pictures, `PREFIX/CAMERA/LABEL/snapshot`
    is the newest best view. Counts, availability and snapshots are retained.
    """

    stopped_text = "stopped"
    announce_topic = ""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._presence = Presence()
        self._states: dict[str, dict[str, Any]] = {}  # the newest published state of each open track
        self._labels: dict[str, str] = {}  # of the newest tracks, for pictures that come after their end
        self.status_topic = f"{prefix}/available"

    def messages_of(self, event: Event) -> Sequence[MqttMessage]:
        """The messages that Frigate would send for what happened."""
        stream = topic_level(event.data.stream)
        if event.type in {EventType.STREAM_ONLINE, EventType.STREAM_OFFLINE}:
            text = b"online" if event.type is EventType.STREAM_ONLINE else b"offline"
            return [MqttMessage(f"{self._prefix}/{stream}/status/detect", text, retain=True)]
        if event.type is EventType.ENRICH and event.data.description is not None:
            update = {"type": "description", "id": event.subject, "description": event.data.description.text}
            return [MqttMessage(f"{self._prefix}/tracked_object_update", json.dumps(update).encode(), JSON)]
        if event.type is EventType.MEDIA:
            return self._media_messages(event, stream)
        track = event.data.track
        if track is None or event.type not in _TRACK_TYPES:
            return []
        return [*self._track_messages(event, track), *self._count_messages(event, stream)]

    def welcome(self) -> Sequence[MqttMessage]:
        """Nothing beside the availability."""
        return ()

    def _track_messages(self, event: Event, track: TrackInfo) -> list[MqttMessage]:
        before = self._states.get(track.uid)
        after = _state(event, track, before)
        kind = "end" if event.type is EventType.TRACK_END else "new" if before is None else "update"
        _keep_newest(self._labels, track.uid, after["label"])
        if kind == "end":
            self._states.pop(track.uid, None)
        else:
            _keep_newest(self._states, track.uid, after)
        return self._change_messages(kind, before or after, after)

    def _media_messages(self, event: Event, stream: str) -> list[MqttMessage]:
        """The best view of a track, and its state if it goes on, which now has a snapshot or a clip."""
        messages = []
        has_clip = any(media.kind == "clip" for media in event.data.media or ())
        picture = load_picture(event, "crop")
        if picture is not None:
            label = topic_level(self._labels.get(event.subject, "object"))
            topic = f"{self._prefix}/{stream}/{label}/snapshot"
            messages.append(MqttMessage(topic, picture, JPEG, retain=True, may_be_left_out=True))
        before = self._states.get(event.subject)
        if before is not None and (has_clip or picture is not None):
            after = {
                **before,
                "has_snapshot": before["has_snapshot"] or picture is not None,
                "has_clip": before["has_clip"] or has_clip,
            }
            self._states[event.subject] = after
            messages += self._change_messages("update", before, after)
        return messages

    def _change_messages(self, kind: str, before: dict[str, Any], after: dict[str, Any]) -> list[MqttMessage]:
        body = {"type": kind, "before": before, "after": after}
        review = {"type": kind, "before": _review(before), "after": _review(after)}
        return [
            MqttMessage(f"{self._prefix}/events", json.dumps(body).encode(), JSON),
            MqttMessage(f"{self._prefix}/reviews", json.dumps(review).encode(), JSON),
        ]

    def _count_messages(self, event: Event, stream: str) -> list[MqttMessage]:
        """Counts of the zones and queries that the event touches, and of all objects of the camera."""
        camera = event.data.stream
        messages = []
        for kind, name in self._presence.update(event):
            place = f"{stream}/{topic_level(name)}" if kind == "query" else f"{topic_level(name)}/all"
            messages += self._numbers(place, *self._presence.count(camera, kind, name))
        return messages + self._numbers(f"{stream}/all", *self._presence.total(camera))

    def _numbers(self, place: str, count: int, active: int) -> list[MqttMessage]:
        topic = f"{self._prefix}/{place}"
        return [
            MqttMessage(topic, str(count).encode(), retain=True),
            MqttMessage(f"{topic}/active", str(active).encode(), retain=True),
        ]


def _keep_newest(kept: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of a key, and drops the oldest keys above `_MOST_TRACKS`."""
    kept[key] = value
    while len(kept) > _MOST_TRACKS:
        kept.pop(next(iter(kept)))


def _state(event: Event, track: TrackInfo, before: dict[str, Any] | None) -> dict[str, Any]:
    data = event.data
    frame = data.frame
    width, height = (frame.width, frame.height) if frame else (1, 1)
    box = [
        round(track.box.x1 * width),
        round(track.box.y1 * height),
        round(track.box.x2 * width),
        round(track.box.y2 * height),
    ]
    matches = sorted(data.matches or (), key=lambda match: -match.score)
    label = matches[0].query_id if matches else before["label"] if before else "object"
    zones = list(before["current_zones"]) if before else []
    entered = list(before["entered_zones"]) if before else []
    if data.zone is not None and event.type is EventType.ZONE_EXIT:
        zones = [zone for zone in zones if zone != data.zone.id]
    elif data.zone is not None:
        zones = [*(zone for zone in zones if zone != data.zone.id), data.zone.id]
        entered = [*(zone for zone in entered if zone != data.zone.id), data.zone.id]
    wide, high = box[2] - box[0], box[3] - box[1]
    score = round(track.score, 4)
    now, since = data.clock.captured_ns / 1e9, track.first_seen_ns / 1e9
    has_ended = event.type is EventType.TRACK_END
    return {
        "id": track.uid,
        "camera": data.stream,
        "frame_time": now,
        "start_time": since,
        "end_time": track.last_seen_ns / 1e9 if has_ended else None,
        "label": label,
        "sub_label": None,
        "top_score": max(score, before["top_score"] if before else 0.0),
        "score": score,
        "false_positive": False,
        "box": box,
        "area": wide * high,
        "ratio": round(wide / high, 2) if high else 0.0,
        "region": [0, 0, width, height],
        "current_zones": [] if has_ended else zones,
        "entered_zones": entered,
        "stationary": track.stationary,
        "active": not track.stationary,
        "motionless_count": int(track.stationary),
        "position_changes": int(not track.stationary),
        "has_snapshot": bool(before and before["has_snapshot"]),
        "has_clip": bool(before and before["has_clip"]),
        "snapshot": {
            "frame_time": now,
            "box": box,
            "area": wide * high,
            "region": [0, 0, width, height],
            "score": score,
            "attributes": [],
        },
        "attributes": {},
        "current_attributes": [],
        "current_estimated_speed": 0,
        "average_estimated_speed": 0,
        "velocity_angle": 0,
        "thumbnail": None,
    }


def _review(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": state["id"],
        "camera": state["camera"],
        "start_time": state["start_time"],
        "end_time": state["end_time"],
        "severity": "alert" if state["entered_zones"] else "detection",
        "thumb_path": "",
        "data": {
            "detections": [state["id"]],
            "objects": [state["label"]],
            "sub_labels": [],
            "zones": state["entered_zones"],
            "audio": [],
        },
    }
