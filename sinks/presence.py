"""Who is present where, kept from events: tracks by query and zone of every stream, for counts that others display."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sinks.event import EventType

if TYPE_CHECKING:
    from sinks.event import Event

_Key = tuple[str, str, str]


class Presence:
    """Tracks by (stream, kind, id), where kind is `query` or `zone`. The same event twice changes nothing more."""

    def __init__(self) -> None:
        self._tracks: dict[_Key, dict[str, bool]] = {}

    def update(self, event: Event) -> list[tuple[str, str]]:
        """Takes the event and returns the (kind, id) pairs that it is about, whose counts are to be published."""
        data = event.data
        touched: dict[tuple[str, str], None] = {}
        if data.track is None:
            return []
        uid, is_active = data.track.uid, not data.track.stationary
        ends = event.type in {EventType.MATCH_END, EventType.TRACK_END} or data.track.state == "ended"
        for match in data.matches or ():
            touched["query", match.query_id] = None
            self._set_presence(data.stream, "query", match.query_id, uid, None if ends else is_active)
        if data.zone is not None:
            touched["zone", data.zone.id] = None
            left = event.type is EventType.ZONE_EXIT
            self._set_presence(data.stream, "zone", data.zone.id, uid, None if left else is_active)
        if data.track.state == "ended":
            for (stream, kind, name), tracks in self._tracks.items():
                if stream == data.stream and tracks.pop(uid, None) is not None:
                    touched[kind, name] = None
        return list(touched)

    def count(self, stream: str, kind: str, name: str) -> tuple[int, int]:
        """How many tracks are there, and how many of them move."""
        tracks = self._tracks.get((stream, kind, name), {})
        return len(tracks), sum(tracks.values())

    def total(self, stream: str) -> tuple[int, int]:
        """How many tracks that match a query the stream has, and how many of them move."""
        found: dict[str, bool] = {}
        for (of_stream, kind, _), tracks in self._tracks.items():
            if of_stream == stream and kind == "query":
                found |= tracks
        return len(found), sum(found.values())

    def names(self, stream: str, kind: str) -> Iterator[str]:
        """The ids of the queries or zones that the stream's events named so far."""
        return (name for of_stream, of_kind, name in self._tracks if (of_stream, of_kind) == (stream, kind))

    def forget(self, stream: str, kind: str, name: str) -> None:
        """Drops a query or a zone that there is no more."""
        self._tracks.pop((stream, kind, name), None)

    def _set_presence(self, stream: str, kind: str, name: str, uid: str, is_active: bool | None) -> None:
        tracks = self._tracks.setdefault((stream, kind, name), {})
        if is_active is None:
            tracks.pop(uid, None)
        else:
            tracks[uid] = is_active
