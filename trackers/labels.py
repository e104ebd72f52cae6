"""What a track is, voted over its life: an open-vocabulary detector calls one thing by several words.

Each detection votes for its query with its score. Votes fade, so a track can change its mind; hysteresis keeps the
label that is shown from flickering. Some queries only say what a thing must not be ("a poster of a person"): their
votes count against the query they belong to, on the whole track instead of on single boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trackers.boxes import Bools, Floats, Ints
from trackers.tracker import TrackerInputError

if TYPE_CHECKING:
    import supervision as sv

HALF_LIFE_S = 1.14  # a vote fades by 2 % in 1/30 s
LEAD = 1.2  # a new label must have this many times the votes of the one shown ...
TURNS = 5  # ... in so many detections in a row


@dataclass(frozen=True)
class Labels:
    """The votes' outcome for the rows of one frame; labels are indices of queries."""

    label: Ints  # (N,) -1 for a track that had no class yet
    share: Floats  # (N,) of the votes that the label has, 0..1
    changed: Bools  # (N,) whether the label is another than in the frame before
    rejected: Bools  # (N,) whether a negative query has more votes than what it belongs to


class LabelVotes:
    """One vote per track and query. Feed it every result of a tracker, in order.

    `negatives` maps a negative query to the query that it denies, both as indices: {1: 0} for the queries
    ("a person", "a poster of a person"). `calibration` (K,) multiplies the scores of each query, for words that a
    detector scores too high or too low.
    """

    def __init__(
        self,
        queries: int,
        negatives: Mapping[int, int] | None = None,
        calibration: Any = None,
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        if queries < 1:
            raise TrackerInputError(f"there are {queries} queries: give at least one")
        if not half_life_s > 0:
            raise TrackerInputError(f"half_life_s is {half_life_s}: give seconds above 0")
        self._negatives = dict(negatives or {})
        for denying, denied in self._negatives.items():
            if not (0 <= denying < queries and 0 <= denied < queries) or denied in self._negatives:
                raise TrackerInputError(
                    f"the negative query {denying} denies {denied}: both are indices from 0 to {queries - 1}, "
                    "and a negative query cannot be denied itself"
                )
        self._calibration = np.ones(queries) if calibration is None else np.asarray(calibration, dtype=np.float64)
        if self._calibration.shape != (queries,) or not (self._calibration > 0).all():
            raise TrackerInputError(
                f"calibration has the shape {self._calibration.shape}: give {queries} factors above 0"
            )
        self._half_life_s = half_life_s
        self._positive = np.array([query not in self._negatives for query in range(queries)])
        self._ids: Ints = np.empty(0, dtype=np.int64)  # sorted
        self._votes: Floats = np.empty((0, queries))
        self._label: Ints = np.empty(0, dtype=np.int64)
        self._turns: Ints = np.empty(0, dtype=np.int64)
        self._voted_s: Floats = np.empty(0)

    def update(self, tracked: sv.Detections, time_s: float, alive_ids: Ints) -> Labels:
        """Count this frame's votes. `tracked` comes from a tracker's `update`, `alive_ids` from the tracker itself.

        A detection votes with `data["query_scores"]` (N, K) where the detector gives them, else with its confidence for
        its class_id. Tracks that are no longer alive are forgotten.
        """
        ids = tracked.tracker_id
        if ids is None:
            raise TrackerInputError("the detections have no tracker_id: give what a tracker's update returned")
        ids = np.asarray(ids, dtype=np.int64)
        self._follow(np.union1d(alive_ids, ids), time_s)
        row = np.searchsorted(self._ids, ids)
        votes = self._votes[row] * 0.5 ** ((time_s - self._voted_s[row]) / self._half_life_s)[:, None]
        votes += self._cast(tracked)
        self._votes[row], self._voted_s[row] = votes, time_s
        label, changed = self._decide(row, votes)
        total = votes.sum(axis=1)
        share = np.where(label >= 0, votes[np.arange(row.size), label], 0.0) / np.maximum(total, 1e-12)
        return Labels(label, share, changed, self._rejected(votes))

    def _follow(self, ids: Ints, time_s: float) -> None:
        """Forget the tracks that ended and make room for new ones."""
        if ids.size == self._ids.size and (ids == self._ids).all():
            return
        old = np.searchsorted(self._ids, ids)
        known = old < self._ids.size
        known[known] = self._ids[old[known]] == ids[known]
        old = old[known]
        votes = np.zeros((ids.size, self._votes.shape[1]))
        label, turns, voted = np.full(ids.size, -1), np.zeros(ids.size, dtype=np.int64), np.full(ids.size, time_s)
        votes[known], label[known], turns[known] = self._votes[old], self._label[old], self._turns[old]
        voted[known] = self._voted_s[old]
        self._ids, self._votes, self._label, self._turns, self._voted_s = ids, votes, label, turns, voted

    def _cast(self, tracked: sv.Detections) -> Floats:
        """(N, K) votes of this frame's detections."""
        count, queries = len(tracked), self._votes.shape[1]
        scores = tracked.data.get("query_scores")
        if scores is not None:
            votes = np.array(scores, dtype=np.float64)
            if votes.shape != (count, queries):
                raise TrackerInputError(
                    f'data["query_scores"] has the shape {votes.shape}: give ({count}, {queries}), a score per query'
                )
            return votes * self._calibration
        votes = np.zeros((count, queries))
        labels = tracked.class_id
        if labels is None or not count:
            return votes
        if labels.min() < 0 or labels.max() >= queries:
            raise TrackerInputError(
                f"class_id goes from {labels.min()} to {labels.max()}: queries are 0 to {queries - 1}"
            )
        weight = np.ones(count) if tracked.confidence is None else tracked.confidence
        votes[np.arange(count), labels] = weight * self._calibration[labels]
        return votes

    def _decide(self, row: Ints, votes: Floats) -> tuple[Ints, Bools]:
        shown = self._label[row]
        best = np.argmax(np.where(self._positive, votes, -1.0), axis=1)
        each = np.arange(row.size)
        has_votes = votes[each, best] > 0
        leads = has_votes & (best != shown) & (votes[each, best] > LEAD * votes[each, shown])
        turns = np.where(leads, self._turns[row] + 1, 0)
        first = (shown < 0) & has_votes
        changes = first | (turns >= TURNS)
        label = np.where(changes, best, shown)
        self._label[row], self._turns[row] = label, np.where(changes, 0, turns)
        return label, changes & ~first

    def _rejected(self, votes: Floats) -> Bools:
        rejected = np.zeros(len(votes), dtype=np.bool_)
        for denying, denied in self._negatives.items():
            rejected |= (votes[:, denying] > votes[:, denied]) & (
                votes[:, denied] >= votes[:, self._positive].max(axis=1)
            )
        return rejected
