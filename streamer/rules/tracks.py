"""The life of tracks: one begin, updates where something changed, one end with its reason, and the words that a track
answers to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _WordVote:
    """Evidence that one track answers one query: `support` fades with time as the ballot's weight does."""

    score: float
    since_ns: int
    support: float = 0.0
    matched: bool = False
    doubted_ns: int | None = None

    @property
    def strength(self) -> float:
        return self.support * self.score


@dataclass(slots=True)
class _VoteBallot:
    """All votes on one track; `weight` is the fading number of its sightings."""

    last_ns: int
    weight: float = 0.0
    votes: dict[int, _WordVote] = field(default_factory=dict)


class QueryMatches:
    """`match.begin` when a track has answered a query in most of its recent sightings for `settle_s`, `match.end` when
    it has answered in few of them for as long, or ends.

    A detector's words flicker from frame to frame; the vote fades with a half-life of `half_life_s`, and a match needs
    the share `begin_share` to begin and is kept down to `end_share`. `thresholds` are the least mean scores by query
    number. `denied_by` names for a query the numbers of those that deny it: a track whose votes for one of them weigh
    more is no match. Queries in `denials` are votes only.
    """

    def __init__(
        self,
        settle_s: float = 0.2,
        half_life_s: float = 1.0,
        begin_share: float = 0.5,
        end_share: float = 0.25,
    ) -> None:
        self.thresholds: dict[int, float] = {}
        self.denied_by: dict[int, tuple[int, ...]] = {}
        self.denials: frozenset[int] = frozenset()
        self._settle_ns = int(settle_s * 1e9)
        self._half_life_ns = half_life_s * 1e9
        self._begin_share = begin_share
        self._end_share = end_share
        self._ballots: dict[int, _VoteBallot] = {}
        self._matched: dict[int, frozenset[int]] = {}
        self._ended: dict[int, dict[int, float]] = {}
        self._stopped: dict[tuple[int, int], float] = {}

    @property
    def matched(self) -> dict[int, AbstractSet[int]]:
        """The queries that each track answers, by number; a track that ended in this frame, those that it answered."""
        ended = {track: frozenset(scores) for track, scores in self._ended.items()}
        return {**ended, **self._matched}

    def scores(self, track: int) -> dict[int, float]:
        """The queries that a track answers (or answered until it ended in this frame), with their mean scores."""
        if track in self._ended:
            return self._ended[track]
        ballot = self._ballots.get(track)
        votes = ballot.votes.items() if ballot else ()
        return {query: vote.score for query, vote in votes if vote.matched}

    def score(self, track: int, query: int) -> float:
        """The mean score of a track for one query, also for one that it has just stopped to answer."""
        if (track, query) in self._stopped:
            return self._stopped[track, query]
        return self._ballots[track].votes[query].score

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        self._ended.clear()
        self._stopped.clear()
        happenings: list[RuleFinding] = []
        labels = seen.labels.tolist()
        for track, scores in zip(seen.ids.tolist(), seen.label_scores.tolist(), strict=True):
            ballot = self._ballots.get(track)
            if ballot is None:
                ballot = self._ballots[track] = _VoteBallot(seen.time_ns)
            fade = 0.5 ** ((seen.time_ns - ballot.last_ns) / self._half_life_ns)
            ballot.last_ns = seen.time_ns
            ballot.weight = ballot.weight * fade + 1
            self._cast(ballot, zip(labels, scores, strict=True), fade, seen.time_ns)
            for query in labels:
                vote = ballot.votes.get(query)
                if vote is not None and query not in self.denials:
                    share = 0.0 if self._is_denied(query, ballot) else vote.support / ballot.weight
                    happenings += self._decide(track, query, vote, share, seen.time_ns)
        if len(self._ballots) > len(seen.ids):
            alive = set(seen.alive.tolist())
            for track in [track for track in self._ballots if track not in alive]:
                happenings += self._forget(track)
        return happenings

    def withdraw(self, query: int) -> list[RuleFinding]:
        """A query is no longer asked: whatever matched it stops matching."""
        happenings = []
        for track, ballot in sorted(self._ballots.items()):
            vote = ballot.votes.pop(query, None)
            if vote is not None and vote.matched:
                happenings.append(self._stop(track, query, vote))
        return happenings

    def close(self, time_ns: int) -> list[RuleFinding]:
        self._ended.clear()
        self._stopped.clear()
        return [happening for track in sorted(self._ballots) for happening in self._forget(track)]

    @staticmethod
    def _cast(ballot: _VoteBallot, scores: Iterable[tuple[int, float]], fade: float, now: int) -> None:
        for query, score in scores:
            vote = ballot.votes.get(query)
            if vote is None:
                if not score:
                    continue
                vote = ballot.votes[query] = _WordVote(score, now)
            vote.support = vote.support * fade + (score > 0)
            if score:
                vote.score += (score - vote.score) / max(1.0, vote.support)

    def _is_denied(self, query: int, ballot: _VoteBallot) -> bool:
        denying = [ballot.votes[other] for other in self.denied_by.get(query, ()) if other in ballot.votes]
        return any(vote.strength > ballot.votes[query].strength for vote in denying)

    def _decide(self, track: int, query: int, vote: _WordVote, share: float, now: int) -> list[RuleFinding]:
        if not vote.matched:
            if share < self._begin_share or vote.score < self.thresholds.get(query, 0.0):
                vote.since_ns = now
            elif now - vote.since_ns >= self._settle_ns:
                vote.matched = True
                self._matched[track] = self._matched.get(track, frozenset()) | {query}
                return [RuleFinding(EventType.MATCH_BEGIN, track, {"query_number": query})]
            return []
        if share >= self._end_share:
            vote.doubted_ns = None
            return []
        if vote.doubted_ns is None:
            vote.doubted_ns = now
        if now - vote.doubted_ns < self._settle_ns:
            return []
        vote.matched = False
        vote.doubted_ns = None
        vote.since_ns = now
        return [self._stop(track, query, vote)]

    def _stop(self, track: int, query: int, vote: _WordVote) -> RuleFinding:
        self._stopped[track, query] = vote.score
        self._matched[track] = self._matched[track] - {query}
        return RuleFinding(EventType.MATCH_END, track, {"query_number": query})

    def _forget(self, track: int) -> list[RuleFinding]:
        self._ended[track] = self.scores(track)
        votes = self._ballots.pop(track).votes
        ends = [self._stop(track, query, votes[query]) for query in sorted(self._matched.get(track, ()))]
        self._matched.pop(track, None)
        return ends
