"""What has begun and not ended according to the events stored so far: tracks, visits, matches and streams.

The spool keeps it beside the events, so that the first start after a crash can close what the crash left open.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sinks.event import Event, EventType
from sinks.spool.schema import parse_line

log = logging.getLogger("sinks.spool")

OpenKind = Literal["track", "visit", "match", "rule", "stream"]

_KINDS: dict[str, OpenKind] = {"zone": "visit", "match": "match", "rule": "rule", "stream": "stream"}


@dataclass(frozen=True, slots=True)
class OpenItem:
    """Something that has begun and not ended. `event` is the last one of a track or a stream, and the one that opened a
    visit, a match or the finding of a rule. `key` is unique."""

    kind: OpenKind
    key: str
    event: Event


class OpenState:
    """Follows the events in their order. Not thread-safe.

    Keys: a track has its uid; the others are `zone UID ID`, `match UID ID`, `rule UID OTHER ID` and `stream NAME`.
    """

    def __init__(self) -> None:
        self._events: dict[str, Event] = {}
        self._parts: dict[str, set[str]] = {}  # by a track's uid: the keys of its visits and matches
        self._changed: dict[str, Event | None] = {}
        self._stream_keys: dict[str, str] = {}

    def load(self, rows: Mapping[str, bytes], path: object) -> int:
        """Takes the stored state; returns how many rows were damaged: each is named in the log and left out."""
        damaged = 0
        for key, line in rows.items():
            event = parse_line(line)
            if event is None or key not in (*_track_key(event), *_part_keys(event), f"stream {event.data.stream}"):
                damaged += 1
                log.error(
                    "the spool %s is damaged: the stored state of %r cannot be read, its end is unknown", path, key
                )
                self._changed[key] = None
            else:
                self._mark_open(key, event)
        return damaged

    def note(self, event: Event) -> None:
        """Takes one more event. Called for every event: identity tests, since hashing an enum member is slow."""
        data, kind = event.data, event.type
        track = data.track
        if track is not None:
            # What comes after a track's end, such as its merge, does not open it again.
            if track.state == "ended":
                self._mark_closed(track.uid)
                for key in list(self._parts.get(track.uid, ())):
                    self._mark_closed(key)
            else:
                self._events[track.uid] = self._changed[track.uid] = event
            if kind is EventType.ZONE_ENTER or kind is EventType.MATCH_BEGIN:
                for key in _part_keys(event):
                    self._mark_open(key, event)
            elif kind is EventType.ZONE_EXIT or kind is EventType.MATCH_END:
                for key in _part_keys(event):
                    self._mark_closed(key)
            elif kind is EventType.RULE and track.state != "ended":
                for key in _part_keys(event):
                    (self._mark_closed(key) if data.rule and data.rule.state == "end" else self._mark_open(key, event))
        stream = self._stream_keys.get(data.stream)
        if stream is None:
            stream = self._stream_keys[data.stream] = f"stream {data.stream}"
        if kind is EventType.STREAM_OFFLINE:
            self._mark_closed(stream)
        elif kind is EventType.STREAM_ONLINE or stream in self._events:
            self._events[stream] = self._changed[stream] = event

    def note_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.note(event)

    def items(self) -> list[OpenItem]:
        """Everything open."""
        return [OpenItem(_kind_of(key), key, event) for key, event in self._events.items()]

    def take_changes(self) -> dict[str, Event | None]:
        """What changed since the last call, None for what was closed."""
        changed, self._changed = self._changed, {}
        return changed

    def restore_changes(self, changed: Mapping[str, Event | None]) -> None:
        """After `take_changes`: they could not be stored and are changes still, unless newer ones came."""
        self._changed = {**changed, **self._changed}

    def _mark_open(self, key: str, event: Event) -> None:
        self._events[key] = self._changed[key] = event
        kind, _, rest = key.partition(" ")
        if kind in ("zone", "match", "rule") and rest:
            self._parts.setdefault(rest.partition(" ")[0], set()).add(key)

    def _mark_closed(self, key: str) -> None:
        self._events.pop(key, None)
        self._changed[key] = None
        uid = key.partition(" ")[2].partition(" ")[0]
        if (parts := self._parts.get(uid)) is not None:
            parts.discard(key)
            if not parts:
                del self._parts[uid]


def _track_key(event: Event) -> tuple[str, ...]:
    return () if event.data.track is None else (event.data.track.uid,)


def _part_keys(event: Event) -> list[str]:
    """The keys of the visit, the matches or the finding of a rule that the event is about."""
    track, zone = event.data.track, event.data.zone
    if track is None:
        return []
    if zone is not None:
        return [f"zone {track.uid} {zone.id}"]
    if event.data.rule is not None:
        rule = event.data.rule
        return [] if rule.state is None else [f"rule {track.uid} {rule.other or 0} {rule.id}"]
    return [f"match {track.uid} {match.query_id}" for match in event.data.matches or ()]


def _kind_of(key: str) -> OpenKind:
    prefix, space, _ = key.partition(" ")
    return _KINDS.get(prefix, "track") if space else "track"
