"""What a rule sees and what it says.

A rule is a pure function of time and tracks: its state comes from what it has seen alone, so the same observations
give the same happenings again, live or replayed. Geometry is in fractions of the frame, time in seconds of capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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


NO_MATCHES: Mapping[int, AbstractSet[int]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class FrameObservation:
    """The tracks of one analysed frame, rows sorted by id.

    `ids` (N,) tracker ids seen in this frame; `boxes` (N, 4) x1, y1, x2, y2 as fractions of the frame, inside it;
    `scores` (N,) in 0..1; `labels` (K,) the numbers of the queries in force; `label_scores` (N, K) what each detection
    scored for each of them, 0 where it does not answer; `stationary` (N,); `alive` (M,) sorted ids of all tracks that
    may still be seen again; `merges` pairs of ids (ended, into) that turned out to be one thing; `masks` (N, H, W)
    where the detector gives them. `matched` tells for each track which queries, by number, it answers over time.
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

    @property
    def feet(self) -> Floats:
        """Where each thing touches the ground, (N, 2): the middle of its box's lower edge."""
        return np.stack([(self.boxes[:, 0] + self.boxes[:, 2]) / 2, self.boxes[:, 3]], axis=1)

    @classmethod
    def of(cls, tracked: sv.Detections, tracker: Tracker, labels: Ints, frame: Frame) -> FrameObservation:
        """From what a tracker said of a frame, `tracked` in pixels with `data["label_scores"]` (N, K)."""
        size = (frame.width, frame.height, frame.width, frame.height)
        ids = np.zeros(0, np.int64) if tracked.tracker_id is None else np.asarray(tracked.tracker_id, np.int64)
        scores = np.zeros(0) if tracked.confidence is None else np.asarray(tracked.confidence, np.float64)
        return cls(
            frame.time_ns,
            ids,
            np.clip(np.asarray(tracked.xyxy, np.float64) / np.array(size, np.float64), 0.0, 1.0),
            np.clip(scores, 0.0, 1.0),
            labels,
            np.asarray(tracked.data.get("label_scores", np.zeros((0, len(labels)))), np.float64),
            np.isin(ids, tracker.stationary_ids(), assume_unique=True),
            tracker.alive_ids,
            [(merge.ended_id, merge.into_id) for merge in tracker.merges],
            None if tracked.mask is None else np.asarray(tracked.mask, np.bool_),
        )


@dataclass(frozen=True, slots=True)
class RuleFinding:
    """Something a rule noticed. `track` is the tracker's id, None for what concerns the stream; `data` holds fields of
    the event's `data` by name. The journal makes an event of it."""

    type: EventType
    track: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """Sees every analysed frame of one stream in order."""

    def update(self, seen: FrameObservation) -> Sequence[RuleFinding]: ...

    def close(self, time_ns: int) -> Sequence[RuleFinding]:
        """The stream ends or goes dark: nothing that is open stays open. The rule starts afresh after it."""
        ...
