"""Contract of a tracker: detections of one stream in, the same detections with identities out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from groundstream import GroundstreamError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import supervision as sv


class TrackerError(GroundstreamError):
    """A tracker cannot continue: time went backwards, or a saved state does not fit."""


class TrackerInputError(TrackerError, ValueError):
    """An option, name or input of a tracker is invalid; the text says what is allowed."""


@dataclass(frozen=True)
class TrackMerge:
    """Two ids of one object: `ended_id` continues as `into_id`, `gap_s` seconds later (0 for duplicates)."""

    ended_id: int
    into_id: int
    gap_s: float


class Tracker(Protocol):
    """Assigns identities to the objects of one stream. One tracker per stream; not thread-safe."""

    def update(
        self, detections: sv.Detections, time_s: float, camera: npt.NDArray[np.float64] | None = None
    ) -> sv.Detections:
        """The confirmed tracks seen in this frame, each with its `tracker_id`, rows sorted by id.

        Must be called for frames without detections as well. `time_s` is the capture time in seconds and must not
        fall. `camera` is the (2, 3) affine motion from the last frame to this one in pixels, None for a still camera.
        Rows keep the `confidence`, `class_id`, `mask` and `data` of the detection they came from;
        `data["detection_index"]` is that detection's row in the input.
        """
        ...

    def predict(self, time_s: float) -> sv.Detections:
        """Predicted boxes of the tracks shown last at `time_s`, for frames without detections. Changes nothing."""
        ...

    @property
    def alive_ids(self) -> npt.NDArray[np.int64]:
        """Sorted ids of tracks that were shown and may be shown again; all others have ended."""
        ...

    @property
    def merges(self) -> Sequence[TrackMerge]:
        """Pairs of ids that the last update found to be one object."""
        ...

    def suspend(self) -> None:
        """Ends all tracks but stationary ones, which are remembered: the stream is interrupted."""
        ...

    def forget(self, ids: npt.NDArray[np.int64]) -> None:
        """Ends lost tracks: a later detection at their place is a new track."""
        ...

    def stationary_ids(self, for_s: float = 2.0) -> npt.NDArray[np.int64]:
        """Sorted ids of tracks that have been stationary for `for_s` seconds."""
        ...

    def history(self, tracker_id: int) -> npt.NDArray[np.float64]:
        """(n, 6) the last observations of one living track, oldest first: time in seconds, x1, y1, x2, y2, score."""
        ...

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that decides what comes next, as arrays that `numpy.savez` can keep without pickling."""
        ...

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues exactly where the tracker that gave `state` stopped; it must have had the same options."""
        ...

    def reset(self) -> None:
        """Forgets all tracks; ids continue to count, so none is used twice."""
        ...
