"""Life cycle of tracks: one begin, updates where something changed, one end with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sinks.event import Box, EventType, TrackInfo
from streamer.rules.mask_rle import mask_model
from streamer.rules.rule import Bools, FrameObservation, RuleFinding
from streamer.rules.track_ids import NewUid

LOST_AFTER_S = 0.5
UPDATE_EVERY_S = 10.0
STATIONARY_UPDATE_EVERY_S = 60.0
BETTER_VIEW = 1.5
BETTER_VIEW_EVERY_S = 1.0
BORDER = 0.01
_REMEMBERED = 1024

EndReason = Literal["left_view", "lost", "stream_down", "query_removed", "merged", "shutdown", "crashed"]


@dataclass(slots=True)
class TrackRecord:
    """What is known of one track now. `box` is in fractions of the frame; `is_asked_for` is false from when its last
    query was withdrawn until it answers another."""

    uid: str
    number: int
    first_seen_ns: int
    last_seen_ns: int
    box: tuple[float, float, float, float]
    score: float
    stationary: bool = False
    state: Literal["confirmed", "coasting", "lost", "ended"] = "confirmed"
    revision: int = 0
    end_reason: EndReason | None = None
    merged_into: str | None = None
    mask: Bools | None = None
    is_asked_for: bool = True
    told_ns: int = 0
    told_view: float = 0.0

    @property
    def view(self) -> float:
        """How well it is seen: its score times the root of its area."""
        x1, y1, x2, y2 = self.box
        return self.score * math.sqrt(max(0.0, (x2 - x1) * (y2 - y1)))

    def describe(self) -> TrackInfo:
        """The track as an event tells it; each telling is a new revision."""
        self.revision += 1
        x1, y1, x2, y2 = (round(value, 6) for value in self.box)
        return TrackInfo(
            uid=self.uid,
            number=self.number,
            state=self.state,
            revision=self.revision,
            first_seen_ns=self.first_seen_ns,
            last_seen_ns=self.last_seen_ns,
            box=Box(x1=x1, y1=y1, x2=x2, y2=y2),
            score=round(self.score, 6),
            stationary=self.stationary,
            end_reason=self.end_reason,
            merged_into=self.merged_into,
            mask=None if self.mask is None else mask_model(self.mask),
        )


class TrackLives:
    """`track.begin` at the first sight of a confirmed track; `track.update` when it is lost, found again, comes to rest
    or moves off, shows itself clearly better, and every `update_every_s`; `track.end` when the tracker gave it up;
    `track.merge` when one that had ended turns out to go on under another number.

    `records` holds the living tracks by number.
    """

    def __init__(
        self, new_uid: NewUid, update_every_s: float = UPDATE_EVERY_S, lost_after_s: float = LOST_AFTER_S
    ) -> None:
        self.records: dict[int, TrackRecord] = {}
        self._past: dict[int, TrackRecord] = {}
        self._new_uid = new_uid
        self._update_every_ns = int(update_every_s * 1e9)
        self._still_update_every_ns = int(max(update_every_s, STATIONARY_UPDATE_EVERY_S) * 1e9)
        self._lost_after_ns = int(lost_after_s * 1e9)

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        now = seen.time_ns
        happenings: list[RuleFinding] = []
        rows = zip(seen.ids.tolist(), seen.boxes.tolist(), seen.scores.tolist(), seen.stationary.tolist(), strict=True)
        for number, box, score, stationary in rows:
            record = self.records.get(number)
            if record is None:
                uid = self._new_uid(number, now)
                record = TrackRecord(uid, number, now, now, tuple(box), score, stationary)
                self.records[number] = record
                happenings.append(self._tell(EventType.TRACK_BEGIN, record, now))
                continue
            changed = record.state != "confirmed" or record.stationary != stationary
            record.state = "confirmed"
            record.stationary = stationary
            record.last_seen_ns = now
            record.box = tuple(box)
            record.score = score
            if changed or self._worth_telling(record, now):
                happenings.append(self._tell(EventType.TRACK_UPDATE, record, now))
        for ended, into in seen.merges:
            happenings += self._merge(ended, into, now)
        if len(self.records) > len(seen.ids):
            happenings += self._miss(seen)
        if seen.masks is not None:
            for number, mask in zip(seen.ids.tolist(), seen.masks, strict=True):
                self.records[number].mask = mask
        return happenings

    def close(self, time_ns: int, reason: EndReason = "shutdown") -> list[RuleFinding]:
        return [self._end(number, reason, time_ns) for number in sorted(self.records)]

    def find(self, number: int) -> TrackRecord | None:
        """A track that lives, or ended not long ago."""
        return self.records.get(number) or self._past.get(number)

    def _merge(self, ended: int, into: int, now: int) -> list[RuleFinding]:
        record, other = self.find(ended), self.find(into)
        if record is None or other is None:
            return []
        record.merged_into = other.uid
        if ended in self.records:
            return [self._end(ended, "merged", now)]
        return [RuleFinding(EventType.TRACK_MERGE, ended)]

    def _miss(self, seen: FrameObservation) -> list[RuleFinding]:
        happenings = []
        present, alive = set(seen.ids.tolist()), set(seen.alive.tolist())
        for number in sorted(self.records.keys() - present):
            record = self.records[number]
            if number not in alive:
                happenings.append(self._end(number, _why_gone(record), seen.time_ns))
            elif record.state == "confirmed" and seen.time_ns - record.last_seen_ns >= self._lost_after_ns:
                record.state = "lost"
                happenings.append(self._tell(EventType.TRACK_UPDATE, record, seen.time_ns))
        return happenings

    def _worth_telling(self, record: TrackRecord, now: int) -> bool:
        since = now - record.told_ns
        if since >= (self._still_update_every_ns if record.stationary else self._update_every_ns):
            return True
        return since >= BETTER_VIEW_EVERY_S * 1e9 and record.view > BETTER_VIEW * record.told_view

    def _tell(self, kind: EventType, record: TrackRecord, now: int) -> RuleFinding:
        record.told_ns = now
        record.told_view = max(record.view, record.told_view)
        return RuleFinding(kind, record.number)

    def _end(self, number: int, reason: EndReason, now: int) -> RuleFinding:
        record = self._past[number] = self.records.pop(number)
        if len(self._past) > _REMEMBERED:
            del self._past[next(iter(self._past))]
        record.state = "ended"
        record.end_reason = reason
        return self._tell(EventType.TRACK_END, record, now)


def _why_gone(record: TrackRecord) -> EndReason:
    if not record.is_asked_for:
        return "query_removed"
    x1, y1, x2, y2 = record.box
    at_border = x1 <= BORDER or y1 <= BORDER or x2 >= 1 - BORDER or y2 >= 1 - BORDER
    return "left_view" if at_border else "lost"
