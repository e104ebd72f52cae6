"""Small worlds for the tests of rules: things at places at times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sinks.event import EventType
from streamer.rules.rule import FrameObservation, RuleFinding

SIZE = 0.1


def seen(
    time_s: float,
    feet: Mapping[int, tuple[float, float]],
    *,
    alive: Iterable[int] | None = None,
    labels: Iterable[int] = (1,),
    scores: Mapping[int, Iterable[float]] | None = None,
    still: Iterable[int] = (),
    matched: Mapping[int, set[int]] | None = None,
) -> FrameObservation:
    """Tracks whose foot points are at `feet`; each answers the first label with 0.9 where `scores` says nothing."""
    ids = np.array(sorted(feet), np.int64)
    points = np.array([feet[track] for track in ids.tolist()], float).reshape(-1, 2)
    numbers = np.array(list(labels), np.int64)
    default = [0.9] + [0.0] * (len(numbers) - 1)
    rows = [list((scores or {}).get(track, default)) for track in ids.tolist()]
    boxes = np.concatenate([points - [SIZE / 2, SIZE], points + [SIZE / 2, 0]], axis=1).clip(0, 1)
    table = np.array(rows, float).reshape(len(ids), len(numbers))
    return FrameObservation(
        time_ns=round(time_s * 1e9),
        ids=ids,
        boxes=boxes,
        scores=table.max(axis=1) if len(ids) else np.zeros(0),
        labels=numbers,
        label_scores=table,
        stationary=np.array([track in set(still) for track in ids.tolist()], bool),
        alive=np.array(sorted(ids.tolist() if alive is None else alive), np.int64),
        matched=matched or {},
    )


def reported(happenings: Iterable[RuleFinding]) -> list[tuple[str, int | None]]:
    """('zone.enter', 3) for each happening."""
    return [(short(happening.type), happening.track) for happening in happenings]


def short(kind: EventType) -> str:
    return kind.removeprefix("groundstream.").rpartition(".")[0]
