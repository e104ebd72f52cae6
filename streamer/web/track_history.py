"""Positions and best scores of a stream's tracks in the last hour: score histograms and trials of zones and lines."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sinks.event import EventType
from streamer.rules.places import Line, Zone
from streamer.rules.rule import FrameObservation

if TYPE_CHECKING:
    import supervision as sv

    from streamer.analysis.queries import Query

HOUR_NS = 3_600_000_000_000
BUCKETS = 20
_SAMPLE_NS = 200_000_000
_MOST_POSITIONS = 120_000
_MOST_TRACKS = 5_000


@dataclass(slots=True)
class _TrackScores:
    """The best score of one track for each query, by the query's id."""

    last_ns: int
    best: dict[str, float] = field(default_factory=dict)


class TrackHistory:
    """What the last hour of one stream is remembered by. Bounded; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions: deque[tuple[int, list[tuple[int, float, float]]]] = deque()
        self._count = 0
        self._scores: OrderedDict[int, _TrackScores] = OrderedDict()

    def add(
        self, time_ns: int, tracked: sv.Detections, tracks: Iterable[dict[str, Any]], queries: Sequence[Query]
    ) -> None:
        """Adds an analysed frame; positions are kept five times a second."""
        label_scores = tracked.data.get("label_scores")
        with self._lock:
            if len(tracked) and tracked.tracker_id is not None and label_scores is not None:
                for number, row in zip(tracked.tracker_id.tolist(), np.asarray(label_scores).tolist(), strict=True):
                    known = self._scores.setdefault(number, _TrackScores(time_ns))
                    known.last_ns = time_ns
                    self._scores.move_to_end(number)
                    for query, score in zip(queries, row, strict=False):
                        if score > known.best.get(query.id, 0.0):
                            known.best[query.id] = score
            while self._scores and (
                len(self._scores) > _MOST_TRACKS or next(iter(self._scores.values())).last_ns < time_ns - HOUR_NS
            ):
                self._scores.popitem(last=False)
            if self._positions and 0 <= time_ns - self._positions[-1][0] < _SAMPLE_NS:
                return
            feet = [(track["number"], (track["box"][0] + track["box"][2]) / 2, track["box"][3]) for track in tracks]
            self._positions.append((time_ns, feet))
            self._count += len(feet) + 1
            while self._positions and (self._count > _MOST_POSITIONS or self._positions[0][0] < time_ns - HOUR_NS):
                self._count -= len(self._positions.popleft()[1]) + 1

    def best_scores(self, query_id: str) -> list[float]:
        """Returns the best score of each track for a query."""
        with self._lock:
            return [known.best[query_id] for known in self._scores.values() if known.best.get(query_id, 0.0) > 0.0]

    def try_zone(self, zone: Zone) -> int:
        """Returns how many tracks would have entered a zone, by the rule itself."""
        return self._try_rule(zone, EventType.ZONE_ENTER)

    def try_line(self, line: Line) -> int:
        """Returns how many tracks would have crossed a line, by the rule itself."""
        return self._try_rule(line, EventType.LINE_CROSS)

    def _try_rule(self, rule: Zone | Line, kind: EventType) -> int:
        with self._lock:
            samples = list(self._positions)
        found: set[int] = set()
        for time_ns, feet in samples:
            observation = _observation(time_ns, feet)
            found |= {finding.track for finding in rule.update(observation) if finding.type is kind and finding.track}
        return len(found)


def _observation(time_ns: int, feet: Sequence[tuple[int, float, float]]) -> FrameObservation:
    """A frame in which tracks stand with their feet at the given points."""
    rows = sorted(feet)
    ids = np.array([number for number, _, _ in rows], np.int64)
    boxes = np.array([[x, y, x, y] for _, x, y in rows], np.float64).reshape(-1, 4)
    count = len(rows)
    return FrameObservation(
        time_ns,
        ids,
        boxes,
        np.ones(count),
        np.zeros(0, np.int64),
        np.zeros((count, 0)),
        np.zeros(count, np.bool_),
        ids,
    )


def score_histogram(scores: Sequence[float]) -> list[int]:
    """Returns the counts of scores in 20 equal parts of 0..1."""
    counts, _ = np.histogram(np.clip(scores, 0.0, 1.0), bins=BUCKETS, range=(0.0, 1.0))
    return [int(count) for count in counts]


def suggest_threshold(scores: Sequence[float], *, least_separation: float = 0.7) -> float | None:
    """Returns a threshold in the gap between what is there and what is not, None where no gap shows.

    The split maximises the variance between its two sides (Otsu, IEEE Trans. SMC 9(1), 1979); it counts only when
    that explains `least_separation` of the whole variance and at least four scores are known. The threshold lies in
    the middle of the gap, rounded to hundredths.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    if len(ordered) < 4 or ordered[-1] - ordered[0] < 0.1:
        return None
    total = ordered.var() * len(ordered)
    best_share, best_split = 0.0, 0
    for split in range(1, len(ordered)):
        low, high = ordered[:split], ordered[split:]
        between = split * len(high) / len(ordered) * (high.mean() - low.mean()) ** 2
        share = between / total if total > 0 else 0.0
        if share > best_share:
            best_share, best_split = share, split
    if best_share < least_separation:
        return None
    return round(float(ordered[best_split - 1] + ordered[best_split]) / 2, 2)
