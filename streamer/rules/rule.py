"""Contract of a rule: the observation of a frame that it reads and the findings that it returns.

A rule is a pure function of time and tracks: its state comes from its observations alone, so the same observations give
the same findings, live or replayed. Geometry is in fractions of the frame, time is capture time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from sinks.event import EventType

if TYPE_CHECKING:
    import supervision as sv

    from streamer.frame import Frame
    from trackers import Tracker

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Anchor = Literal["feet", "centre", "any_corner"]
"""Which point of a box decides where its track is: the middle of the lower edge, the centre, or any of the corners."""
ANCHORS: tuple[str, ...] = get_args(Anchor)


def anchor_points(boxes: Floats, anchor: Anchor) -> Floats:
    """(N, K, 2) the points of each box (N, 4) that decide: one, or its four corners for `any_corner`."""
    x1, y1, x2, y2 = boxes.T
    if anchor == "feet":
        return _join_points((x1 + x2) / 2, y2)
    if anchor == "centre":
        return _join_points((x1 + x2) / 2, (y1 + y2) / 2)
    return np.stack([np.stack(corner, axis=1) for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], axis=1)


def _join_points(x: Floats, y: Floats) -> Floats:
    """(N, 1, 2) from the coordinates (N,); faster than `numpy.stack`."""
    points = np.empty((len(x), 1, 2))
    points[:, 0, 0], points[:, 0, 1] = x, y
    return points


def _are_among(ids: Ints, some: Ints) -> Bools:
    """(N,) whether each of `ids` is one of `some`; for the few tracks of a frame faster than `numpy.isin`."""
    if not len(some):
        return np.zeros(len(ids), np.bool_)
    known = set(some.tolist())
    return np.array([track in known for track in ids.tolist()], np.bool_)


NO_MATCHES: Mapping[int, AbstractSet[int]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class FrameObservation:
    """The tracks of one analysed frame, rows sorted by id.

    `ids` (N,) tracks seen in this frame; `boxes` (N, 4) x1, y1, x2, y2 as fractions of the frame, inside it; `scores`
    (N,) in 0..1; `labels` (K,) the numbers of the active queries; `label_scores` (N, K) the score of each detection for
    each of them, 0 where it does not answer; `stationary` (N,); `alive` (M,) sorted ids of all tracks that may be seen
    again; `merges` pairs of ids (ended, into) that are one object; `masks` (N, H, W) where the detector has them.
    `matched` holds for each track the numbers of the queries that it matches over time; `frame_index` is the frame's
    number, -1 when unknown.
    """

    time_ns: int
    ids: Ints
    boxes: Floats
    scores: Floats
    labels: Ints
    label_scores: Floats
    stationary: Bools
    alive: Ints
    merges: Sequence[tuple[int, int]] = ()
    masks: Bools | None = None
    matched: Mapping[int, AbstractSet[int]] = field(default_factory=lambda: NO_MATCHES)
    frame_index: int = -1

    @classmethod
    def of(cls, tracked: sv.Detections, tracker: Tracker, labels: Ints, frame: Frame) -> FrameObservation:
        """From a tracker's output for a frame, `tracked` in pixels with `data["label_scores"]` (N, K)."""
        size = (frame.width, frame.height, frame.width, frame.height)
        ids = np.zeros(0, np.int64) if tracked.tracker_id is None else np.asarray(tracked.tracker_id, np.int64)
        still = tracker.stationary_ids()
        scores = np.zeros(0) if tracked.confidence is None else np.asarray(tracked.confidence, np.float64)
        return cls(
            frame.time_ns,
            ids,
            np.clip(np.asarray(tracked.xyxy, np.float64) / np.array(size, np.float64), 0.0, 1.0),
            np.clip(scores, 0.0, 1.0),
            labels,
            np.asarray(tracked.data.get("label_scores", np.zeros((0, len(labels)))), np.float64),
            _are_among(ids, still),
            tracker.alive_ids,
            [(merge.ended_id, merge.into_id) for merge in tracker.merges],
            None if tracked.mask is None else np.asarray(tracked.mask, np.bool_),
            frame_index=frame.index,
        )


@dataclass(frozen=True, slots=True)
class RuleFinding:
    """A finding of a rule, from which the event writer makes an event.

    `track` is the tracker's id, None for a finding about the stream; `data` holds fields of the event's `data` by name.
    `time_ns` and `frame_index` say when it happened where that is earlier than the frame in which it became certain.
    `subject` is that of the event where the track may be gone by now.
    """

    type: EventType
    track: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    time_ns: int | None = None
    frame_index: int | None = None
    subject: str = ""


class Rule(Protocol):
    """Reads every analysed frame of one stream in order."""

    def update(self, seen: FrameObservation) -> Sequence[RuleFinding]: ...

    def close(self, time_ns: int) -> Sequence[RuleFinding]:
        """Ends everything that is open: the stream ended or is shut down."""
        ...
