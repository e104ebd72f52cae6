"""Matches: the queries that a track answers, by a vote over its life."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from sinks.event import EventType
from streamer.rules.rule import FrameObservation, RuleFinding


@dataclass(slots=True)
class _WordVote:
    """Evidence that one track answers one query: `support` fades with time like the ballot's weight."""

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

    A detector's words flicker from frame to frame; the vote fades with a half-life of `half_life_s`, and a match begins
    at the share `begin_share` and is kept down to `end_share`. `thresholds` are the least mean scores by query number.
    `denied_by` holds for a query the numbers of those that deny it: a track with more votes for one of them does not
    match. Queries in `denials` only deny others and never match themselves.
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
        """Queries by number that each track matches; of a track that ended in this frame, those that it matched."""
        ended = {track: frozenset(scores) for track, scores in self._ended.items()}
        return {**ended, **self._matched}

    def scores(self, track: int) -> dict[int, float]:
        """Mean scores of the queries that a track matches, or matched until it ended in this frame."""
        if track in self._ended:
            return self._ended[track]
        ballot = self._ballots.get(track)
        votes = ballot.votes.items() if ballot else ()
        return {query: vote.score for query, vote in votes if vote.matched}

    def score(self, track: int, query: int) -> float:
        """Mean score of a track for one query, also for one that it has just stopped to match."""
        if (track, query) in self._stopped:
            return self._stopped[track, query]
        return self._ballots[track].votes[query].score

    def update(self, seen: FrameObservation) -> list[RuleFinding]:
        self._ended.clear()
        self._stopped.clear()
        findings = [finding for ended, into in seen.merges for finding in self._merge_ballots(ended, into)]
        labels, now = seen.labels.tolist(), seen.time_ns
        deciding = [query for query in labels if query not in self.denials]
        fade, faded_from_ns = 1.0, now  # most tracks were last seen in the same frame
        for track, scores in zip(seen.ids.tolist(), seen.label_scores.tolist(), strict=True):
            ballot = self._ballots.get(track)
            if ballot is None:
                ballot = self._ballots[track] = _VoteBallot(now)
            if ballot.last_ns != faded_from_ns:
                faded_from_ns = ballot.last_ns
                fade = 0.5 ** ((now - faded_from_ns) / self._half_life_ns)
            ballot.last_ns = now
            ballot.weight = ballot.weight * fade + 1
            self._cast_votes(ballot, zip(labels, scores, strict=True), fade, now)
            for query in deciding:
                vote = ballot.votes.get(query)
                if vote is None:
                    continue
                is_denied = query in self.denied_by and self._is_denied(query, ballot)
                share = 0.0 if is_denied else vote.support / ballot.weight
                if vote.matched and share >= self._end_share:  # nearly all sightings
                    vote.doubted_ns = None
                else:
                    findings += self._decide_match(track, query, vote, share, now)
        if len(self._ballots) > len(seen.ids):
            alive = set(seen.alive.tolist())
            for track in [track for track in self._ballots if track not in alive]:
                findings += self._end_track(track)
        return findings

    def withdraw(self, query: int) -> list[RuleFinding]:
        """Ends the matches of a query that is no longer active."""
        findings = []
        for track, ballot in sorted(self._ballots.items()):
            vote = ballot.votes.pop(query, None)
            if vote is not None and vote.matched:
                findings.append(self._end_match(track, query, vote))
        return findings

    def close(self, time_ns: int, keep: AbstractSet[int] = frozenset()) -> list[RuleFinding]:
        self._ended.clear()
        self._stopped.clear()
        return [finding for track in sorted(self._ballots.keys() - keep) for finding in self._end_track(track)]

    def _merge_ballots(self, ended: int, into: int) -> list[RuleFinding]:
        """The votes and matches of `ended` continue under `into`; a match that both have ends once."""
        ballot, other = self._ballots.pop(ended, None), self._ballots.get(into)
        if ballot is None:
            return []
        matched = self._matched.pop(ended, frozenset())
        own = self._matched.get(into, frozenset())
        doubled = matched & own
        if other is None or other.weight <= ballot.weight:
            for query in own - matched:
                assert other is not None
                ballot.votes[query] = other.votes[query]
            self._ballots[into] = ballot
        else:
            other.votes |= {query: ballot.votes[query] for query in matched - own}
        if matched | own:
            self._matched[into] = matched | own
        ends = []
        for query in sorted(doubled):
            self._stopped[ended, query] = ballot.votes[query].score
            ends.append(RuleFinding(EventType.MATCH_END, ended, {"query_number": query}))
        return ends

    @staticmethod
    def _cast_votes(ballot: _VoteBallot, scores: Iterable[tuple[int, float]], fade: float, now: int) -> None:
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

    def _decide_match(self, track: int, query: int, vote: _WordVote, share: float, now: int) -> list[RuleFinding]:
        """Begin a match, or end one whose `share` is below `end_share`, once that has lasted."""
        if not vote.matched:
            if share < self._begin_share or vote.score < self.thresholds.get(query, 0.0):
                vote.since_ns = now
            elif now - vote.since_ns >= self._settle_ns:
                vote.matched = True
                self._matched[track] = self._matched.get(track, frozenset()) | {query}
                return [RuleFinding(EventType.MATCH_BEGIN, track, {"query_number": query})]
            return []
        if vote.doubted_ns is None:
            vote.doubted_ns = now
        if now - vote.doubted_ns < self._settle_ns:
            return []
        vote.matched = False
        vote.doubted_ns = None
        vote.since_ns = now
        return [self._end_match(track, query, vote)]

    def _end_match(self, track: int, query: int, vote: _WordVote) -> RuleFinding:
        self._stopped[track, query] = vote.score
        self._matched[track] = self._matched[track] - {query}
        return RuleFinding(EventType.MATCH_END, track, {"query_number": query})

    def _end_track(self, track: int) -> list[RuleFinding]:
        self._ended[track] = self.scores(track)
        votes = self._ballots.pop(track).votes
        ends = [self._end_match(track, query, votes[query]) for query in sorted(self._matched.get(track, ()))]
        self._matched.pop(track, None)
        return ends
