"""How well events were told: which of the labelled ones were found, which were made up, and how late they came."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from streamer.errors import StreamerError

PLACED = {"line.cross": "line", "zone.enter": "zone", "zone.exit": "zone"}


class LabelError(StreamerError, ValueError):
    """A file of events that is none."""


@dataclass(frozen=True)
class LabelledEvent:
    """Something that happened at `time_s`: `type` as in `line.cross`, `place` the line's or zone's name."""

    time_s: float
    type: str
    place: str
    direction: str | None = None
    stream: str = ""
    told_s: float | None = None  # when it left the pipeline, on the same clock; unknown for files


@dataclass(frozen=True)
class EventScore:
    """Counts, shares 0..1 (NaN of nothing), and seconds: how far told times lie from the labelled ones."""

    right: int
    missed: int
    false: int
    offset_median_s: float
    offset_p95_s: float
    delay_median_s: float
    delay_p95_s: float

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.false) if self.right + self.false else float("nan")

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed) if self.right + self.missed else float("nan")


def score_events(truth: Sequence[LabelledEvent], told: Sequence[LabelledEvent], tolerance_s: float = 1.0) -> EventScore:
    """One labelled event answers for one told event of the same stream, type, place and direction, at most
    `tolerance_s` apart: as many pairs as possible, and of those the nearest (Hungarian assignment)."""
    from scipy.optimize import linear_sum_assignment

    groups: dict[tuple[Any, ...], tuple[list[LabelledEvent], list[LabelledEvent]]] = defaultdict(lambda: ([], []))
    for side, happenings in enumerate((truth, told)):
        for one in happenings:
            groups[one.stream, one.type, one.place, one.direction][side].append(one)
    pairs: list[tuple[LabelledEvent, LabelledEvent]] = []
    for real, found in groups.values():
        if not real or not found:
            continue
        apart = np.abs(np.subtract.outer([one.time_s for one in real], [one.time_s for one in found]))
        never = 1e6  # dearer than any number of allowed pairs
        rows, columns = linear_sum_assignment(np.where(apart <= tolerance_s, apart, never))
        pairs += [(real[r], found[c]) for r, c in zip(rows, columns, strict=True) if apart[r, c] <= tolerance_s]
    offsets = [abs(found.time_s - real.time_s) for real, found in pairs]
    delays = [found.told_s - real.time_s for real, found in pairs if found.told_s is not None]
    return EventScore(
        len(pairs),
        len(truth) - len(pairs),
        len(told) - len(pairs),
        *_middle_and_tail(offsets),
        *_middle_and_tail(delays),
    )


def _middle_and_tail(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    return float(np.median(values)), float(np.percentile(values, 95))


def read_happenings(path: Path) -> list[LabelledEvent]:
    """Lines of JSON: groundstream's events, or labels `{"time_s", "type", "place"}` with `direction` and `stream`.

    Only line crossings and zone entries and exits are taken. Times of events are seconds since 1970, labels' as they
    are. Raises `LabelError` that names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            one = _event(row) if "specversion" in row else _label(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabelError(
                f"{path}, line {number} is neither an event nor a label with time_s, type and place: {error}"
            ) from error
        if one is not None:
            found.append(one)
    return found


def _label(row: dict[str, Any]) -> LabelledEvent | None:
    if row["type"] not in PLACED:
        return None
    return LabelledEvent(
        float(row["time_s"]), str(row["type"]), str(row["place"]), row.get("direction"), str(row.get("stream", ""))
    )


def _event(row: dict[str, Any]) -> LabelledEvent | None:
    kind = row["type"].removeprefix("groundstream.").removesuffix(".v1")
    if kind not in PLACED:
        return None
    data = row["data"]
    place = data[PLACED[kind]]
    emitted = data["clock"].get("emitted_ns")
    return LabelledEvent(
        datetime.fromisoformat(row["time"]).timestamp(),
        kind,
        place["id"],
        place.get("direction"),
        data["stream"],
        None if emitted is None else emitted / 1e9,
    )


def shifted(happenings: Iterable[LabelledEvent], seconds: float, stream: str | None) -> list[LabelledEvent]:
    """Labels of a film brought to the clock and the stream's name of a run."""
    return [
        LabelledEvent(
            one.time_s + seconds, one.type, one.place, one.direction, one.stream if stream is None else stream
        )
        for one in happenings
    ]
