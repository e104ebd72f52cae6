"""Life cycle of tracks: one begin, updates where something changed, one end with its reason."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from sinks.event import Box, EventType, TrackInfo
from streamer.rules.mask_rle import mask_model
from streamer.rules.rule import Bools, FrameObservation, RuleFinding
from streamer.rules.track_ids import NewUid

LOST_AFTER_S = 0.5
"""Seconds unseen after which a track is reported as lost."""
LEFT_AFTER_S = 1.0
"""Seconds unseen after which a track whose last box touched the edge of the frame has left the view."""
FIND_AGAIN_S = 10.0
"""Seconds of analysed frames after an interruption in which a stationary track must be seen again."""
UPDATE_EVERY_S = 10.0
STATIONARY_UPDATE_EVERY_S = 60.0
BETTER_VIEW = 1.5
BETTER_VIEW_EVERY_S = 1.0
BORDER = 0.01
_REMEMBERED = 1024

EndReason = Literal["left_view", "lost", "stream_down", "query_removed", "merged", "shutdown", "crashed"]


@dataclass(slots=True)
class TrackRecord:
    """Present state of one track. `box` is in fractions of the frame; `is_asked_for` is false from the
    withdrawal of its last query until it matches another."""

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
    reported_ns: int = 0
    reported_view: float = 0.0

    @property
    def view(self) -> float:
        """Quality of the view: score times the square root of the area."""
        x1, y1, x2, y2 = self.box
        return self.score * math.sqrt(max(0.0, (x2 - x1) * (y2 - y1)))

    @property
    def is_at_border(self) -> bool:
        """Whether the box touches the edge of the frame."""
        x1, y1, x2, y2 = self.box
        return x1 <= BORDER or y1 <= BORDER or x2 >= 1 - BORDER or y2 >= 1 - BORDER

    def describe(self) -> TrackInfo:
        """The track as an event reports it; each call is a new revision."""
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
    """`track.begin` at the first sight of a confirmed track; `track.update` when it is lost, found again, stops or
    starts to move, is seen clearly better, and every `update_every_s`; `track.end` when it cannot be seen again;
    `track.merge` when one that had ended continues under another number.

    `records` holds the living tracks by number.
    """

    def __init__(
        self, new_uid: NewUid, update_every_s: float = UPDATE_EVERY_S, lost_after_s: float = LOST_AFTER_S
    ) -> None:
        self.records: dict[int, TrackRecord] = {}
        self._merged: dict[int, int] = {}
        self._past: dict[int, TrackRecord] = {}
        self._just_ended: list[TrackRecord] = []
        self._new_uid = new_uid
        self._update_every_ns = int(update_every_s * 1e9)
        self._still_update_every_ns = int(max(update_every_s, STATIONARY_UPDATE_EVERY_S) * 1e9)
        self._lost_after_ns = int(lost_after_s * 1e9)
        self._interrupted_ns: int | None = None
        self._resumed_ns: int | None = None

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        now = seen.time_ns
        for gone in self._just_ended:  # they are reported; a mask holds all masks of its frame in memory
            gone.mask = None
        self._just_ended.clear()
        findings: list[RuleFinding] = []
        rows = zip(seen.ids.tolist(), seen.boxes.tolist(), seen.scores.tolist(), seen.stationary.tolist(), strict=True)
        for number, box, score, stationary in rows:
            record = self.records.get(number)
            if record is None:
                uid = self._new_uid(number, now)
                record = TrackRecord(uid, number, now, now, tuple(box), score, stationary)
                self.records[number] = record
                findings.append(self._report(EventType.TRACK_BEGIN, record, now))
                continue
            changed = record.state != "confirmed" or record.stationary != stationary
            record.state = "confirmed"
            record.stationary = stationary
            record.last_seen_ns = now
            record.box = tuple(box)
            record.score = score
            if changed or self._is_worth_report(record, now):
                findings.append(self._report(EventType.TRACK_UPDATE, record, now))
        for ended, into in seen.merges:
            findings += self._merge_tracks(ended, into, now)
        if len(self.records) > len(seen.ids):
            findings += self._check_missing(seen)
        if seen.masks is not None:
            for number, mask in zip(seen.ids.tolist(), seen.masks, strict=True):
                self.records[number].mask = mask
        return findings

    def close(
        self, time_ns: int, keep: AbstractSet[int] = frozenset(), reason: EndReason = "shutdown"
    ) -> list[RuleFinding]:
        """Ends all tracks but those in `keep`, which must be seen again soon after the stream has returned."""
        if keep and reason == "stream_down":
            self._interrupted_ns, self._resumed_ns = time_ns, None
        return [self._end_track(number, reason, time_ns) for number in sorted(self.records.keys() - keep)]

    def departed(self, seen: FrameObservation) -> list[int]:
        """Tracks that will not be seen again although the tracker remembers them: those that have left the view, and
        those that were there before an interruption and not after it."""
        if self._interrupted_ns is not None and self._resumed_ns is None:
            self._resumed_ns = seen.time_ns
        if len(self.records) == len(seen.ids):
            return []
        return sorted(
            number
            for number in self.records.keys() - set(seen.ids.tolist())
            if self._has_departed(self.records[number], seen.time_ns)
        )

    def final_numbers(self) -> dict[int, int]:
        """Numbers of the tracks that were merged into another one, with the number of that one in the end."""
        final = {}
        for ended in self._merged:
            into = ended
            while into in self._merged:
                into = self._merged[into]
            final[ended] = into
        return final

    def find(self, number: int) -> TrackRecord | None:
        """A track that lives, or one that ended recently."""
        return self.records.get(number) or self._past.get(number)

    def _merge_tracks(self, ended: int, into: int, now: int) -> list[RuleFinding]:
        record, other = self.find(ended), self.find(into)
        if record is None or other is None:
            return []
        record.merged_into = other.uid
        self._merged[ended] = into
        other.first_seen_ns = min(other.first_seen_ns, record.first_seen_ns)
        other.is_asked_for |= record.is_asked_for
        if ended in self.records:
            return [self._end_track(ended, "merged", now)]
        return [RuleFinding(EventType.TRACK_MERGE, ended)]

    def _check_missing(self, seen: FrameObservation) -> list[RuleFinding]:
        findings = []
        present, alive = set(seen.ids.tolist()), set(seen.alive.tolist())
        for number in sorted(self.records.keys() - present):
            record = self.records[number]
            if number not in alive:
                findings.append(self._end_track(number, self._reason_of_end(record), seen.time_ns))
            elif record.state == "confirmed" and seen.time_ns - record.last_seen_ns >= self._lost_after_ns:
                record.state = "lost"
                findings.append(self._report(EventType.TRACK_UPDATE, record, seen.time_ns))
        return findings

    def _is_worth_report(self, record: TrackRecord, now: int) -> bool:
        since = now - record.reported_ns
        if since >= (self._still_update_every_ns if record.stationary else self._update_every_ns):
            return True
        return since >= BETTER_VIEW_EVERY_S * 1e9 and record.view > BETTER_VIEW * record.reported_view

    def _report(self, kind: EventType, record: TrackRecord, now: int) -> RuleFinding:
        record.reported_ns = now
        record.reported_view = max(record.view, record.reported_view)
        return RuleFinding(kind, record.number)

    def _end_track(self, number: int, reason: EndReason, now: int) -> RuleFinding:
        record = self._past[number] = self.records.pop(number)
        self._just_ended.append(record)
        if len(self._past) > _REMEMBERED:
            del self._past[next(iter(self._past))]
        record.state = "ended"
        record.end_reason = reason
        return self._report(EventType.TRACK_END, record, now)

    def _has_departed(self, record: TrackRecord, now: int) -> bool:
        if self._is_missing_since_interruption(record):
            assert self._resumed_ns is not None
            return now - self._resumed_ns >= FIND_AGAIN_S * 1e9
        return not record.stationary and record.is_at_border and now - record.last_seen_ns >= LEFT_AFTER_S * 1e9

    def _is_missing_since_interruption(self, record: TrackRecord) -> bool:
        return (
            self._interrupted_ns is not None
            and self._resumed_ns is not None
            and record.last_seen_ns <= self._interrupted_ns
        )

    def _reason_of_end(self, record: TrackRecord) -> EndReason:
        if not record.is_asked_for:
            return "query_removed"
        if self._is_missing_since_interruption(record):
            return "stream_down"
        return "left_view" if record.is_at_border else "lost"
