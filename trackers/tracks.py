"""Track state of one stream: the arrays over all tracks and the table that callers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trackers.boxes import Bools, Floats, Ints, box_centres

Scores = npt.NDArray[np.floating[Any]]


@dataclass
class TrackStates:
    """All tracks of one stream, oldest first: one array per field, the track along the last axis."""

    state: Floats  # (20, T) filter, see kalman.MotionModel
    observed: Floats  # (4, T) box of the last detection, moved with the camera since
    innovation: Floats  # (2, T) error of the last prediction in standard deviations, 0 when there was none
    heading: Floats  # (2, T) unit vector of the motion between the last observations, 0 when unknown
    saved: Floats  # (20, T) filter at the first frame of the present gap
    anchor: Floats  # (3, T) x, y of the last position that counted as a movement, and its time
    steady: Bools  # whether `innovation` is known
    id: Ints  # public identity, 0 until confirmed
    hits: Ints  # detections matched, the first included
    streak: Ints  # ... since the first one or the last miss, whichever is later
    misses: Ints  # frames since the last match
    confirmed: Bools
    first_s: Floats  # time of the first detection
    last_s: Floats  # time of the last one
    score: Floats  # score of the last one
    label: Ints  # class_id of the last one, -1 when it had none
    slot: Ints  # row in the memory

    @classmethod
    def empty(cls) -> TrackStates:
        """No tracks."""
        return cls.newborn(np.empty((20, 0)), np.empty((4, 0)), np.empty(0), np.empty(0, dtype=np.int64), 0.0)

    @classmethod
    def newborn(
        cls, state: Floats, boxes: Floats, scores: Scores, labels: npt.NDArray[np.integer[Any]], now: float
    ) -> TrackStates:
        """Tentative tracks that start at the detections `boxes` (4, N) at time `now`."""
        count = boxes.shape[1]

        def zeros() -> Ints:
            return np.zeros(count, dtype=np.int64)

        anchor = np.concatenate((box_centres(boxes), np.full((1, count), now)))
        return cls(
            state=state,
            observed=boxes,
            innovation=np.zeros((2, count)),
            heading=np.zeros((2, count)),
            saved=state,
            anchor=anchor,
            steady=np.zeros(count, dtype=np.bool_),
            id=zeros(),
            hits=zeros(),
            streak=zeros(),
            misses=zeros(),
            confirmed=np.zeros(count, dtype=np.bool_),
            first_s=anchor[2],
            last_s=anchor[2],
            score=scores.astype(np.float64),
            label=labels.astype(np.int64),
            slot=zeros(),
        )

    def __len__(self) -> int:
        return self.id.size

    def keep(self, those: Bools) -> None:
        """Removes the tracks that are not in the mask `those` (T,)."""
        kept = those.nonzero()[0]
        for name, values in vars(self).items():
            setattr(self, name, values.take(kept, axis=-1))

    def add(self, new: TrackStates) -> None:
        """Appends the tracks of `new`."""
        for name, values in vars(self).items():
            setattr(self, name, np.concatenate((values, getattr(new, name)), axis=-1))


@dataclass(frozen=True)
class TrackTable:
    """State of every track that was shown and has not ended, sorted by id: one array per field."""

    id: Ints  # (N,)
    xyxy: Floats  # (N, 4) the filter's present estimate
    observed_xyxy: Floats  # (N, 4) its last detection
    velocity: Floats  # (N, 2) pixels per second
    score: Floats  # (N,) of the last detection
    label: Ints  # (N,) class_id of the last detection, -1 without one
    hits: Ints  # (N,) detections so far
    first_s: Floats  # (N,) time of the first detection
    last_s: Floats  # (N,) time of the last one
    standing_s: Floats  # (N,) seconds for which it has not moved by more than a quarter of its height
    predicted: Bools  # (N,) whether it was not seen in the last frame
