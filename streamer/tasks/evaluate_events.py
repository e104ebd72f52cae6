"""Scores of events: labelled ones that were found, missed or invented, and their delay."""

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

LATEST = 1e19
"""Greatest time in a file: nanoseconds of some centuries."""
PLACED = {"line.cross": "line", "zone.enter": "zone", "zone.exit": "zone"}


class LabelError(StreamerError, ValueError):
    """A file holds something else than events or labels."""


@dataclass(frozen=True)
class LabelledEvent:
    """An event at `time_s`: `type` as in `line.cross`, `place` the name of the line or zone."""

    time_s: float
    type: str
    place: str
    direction: str | None = None
    stream: str = ""
    published_s: float | None = None  # when it left the pipeline, on the same clock; unknown for files


@dataclass(frozen=True)
class EventScore:
    """Counts, shares 0..1 (NaN of nothing), and seconds: distances of reported from labelled times."""

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


def score_events(
    truth: Sequence[LabelledEvent], reported: Sequence[LabelledEvent], tolerance_s: float = 1.0
) -> EventScore:
    """Pairs labelled with reported events of the same stream, type, place and direction, at most `tolerance_s`
    apart: as many pairs as possible, and of those the nearest (Hungarian assignment)."""
    from scipy.optimize import linear_sum_assignment

    groups: dict[tuple[Any, ...], tuple[list[LabelledEvent], list[LabelledEvent]]] = defaultdict(lambda: ([], []))
    for side, listed in enumerate((truth, reported)):
        for one in listed:
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
    delays = [found.published_s - real.time_s for real, found in pairs if found.published_s is not None]
    return EventScore(
        len(pairs),
        len(truth) - len(pairs),
        len(reported) - len(pairs),
        *_middle_and_tail(offsets),
        *_middle_and_tail(delays),
    )


def _middle_and_tail(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    return float(np.median(values)), float(np.percentile(values, 95))


def read_labelled_events(path: Path) -> list[LabelledEvent]:
    """Lines of JSON: groundstream's events, or labels `{"time_s", "type", "place"}` with `direction` and `stream`.

    Only line crossings, zone entries and zone exits are read. Times of events are seconds since 1970, those of labels
    are taken as they are. Raises `LabelError` that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = _parse_line(line)
        except (ValueError, OverflowError, RecursionError) as error:
            raise LabelError(f"{path}, line {number} is not an event or a label: {error}") from error
        if one is not None:
            found.append(one)
    return found


def _parse_line(line: str) -> LabelledEvent | None:
    """The event or label of a line; None for other types. Raises `ValueError` with what is expected."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    if "specversion" not in row:
        return _parse_label(row)
    kind = _required_text(row, "type").removeprefix("groundstream.").removesuffix(".v1")
    if kind not in PLACED:
        return None
    data = _required_part(row, "data")
    place = _required_part(data, PLACED[kind])
    emitted = _required_part(data, "clock").get("emitted_ns")
    return LabelledEvent(
        datetime.fromisoformat(_required_text(row, "time")).timestamp(),
        kind,
        _required_text(place, "id"),
        _optional_text(place, "direction"),
        _required_text(data, "stream"),
        None if emitted is None else _finite_number(emitted, "data.clock.emitted_ns") / 1e9,
    )


def _parse_label(row: dict[str, Any]) -> LabelledEvent | None:
    kind = _required_text(row, "type")
    if kind not in PLACED:
        return None
    time_s = _finite_number(row.get("time_s"), "time_s")
    return LabelledEvent(
        time_s, kind, _required_text(row, "place"), _optional_text(row, "direction"), str(row.get("stream", ""))
    )


def _required_part(row: dict[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object as {name!r}, found {value!r:.40}")
    return value


def _required_text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text as {name!r}, found {value!r:.40}")
    return value


def _optional_text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected a text as {name!r}, found {value!r:.40}")
    return value


def _finite_number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LATEST:
        raise ValueError(f"expected a finite number as {name!r}, found {value!r:.40}")
    return float(value)


def shift_events(happenings: Iterable[LabelledEvent], seconds: float, stream: str | None) -> list[LabelledEvent]:
    """Labels of a recording, moved to the clock and the stream name of a run."""
    return [
        LabelledEvent(
            one.time_s + seconds, one.type, one.place, one.direction, one.stream if stream is None else stream
        )
        for one in happenings
    ]
