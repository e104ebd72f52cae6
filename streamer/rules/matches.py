"""Matches: the queries that a track answers, by a vote over its life."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sinks.event import EventType
from streamer.rules.rule import FrameObservation, RuleFinding


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
