"""The contract of a tracker: detections of one stream in, the same with identities out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import supervision as sv

    from trackers.relink import Merge


class TrackerError(Exception):
    """A tracker cannot go on: time went backwards, or a saved state does not fit."""


class TrackerInputError(TrackerError, ValueError):
    """What a tracker was asked for, or was given, cannot be used: what was found, what is allowed, what to do."""


class Tracker(Protocol):
    """Gives every thing in one stream an identity. One tracker per stream; not thread-safe."""

    def update(
        self, detections: sv.Detections, time_s: float, camera: npt.NDArray[np.float64] | None = None
    ) -> sv.Detections:
        """The confirmed tracks seen in this frame, each with its `tracker_id`, rows sorted by id.

        Call it for frames without detections too: time passes. `time_s` is the capture time in seconds and must not
        fall. `camera` is the (2, 3) affine motion from the last frame to this one in pixels, None for a still camera.
        Rows keep the `confidence`, `class_id`, `mask` and `data` of the detection they came from;
        `data["detection_index"]` is that detection's row in the input.
        """
        ...

    def predict(self, time_s: float) -> sv.Detections:
        """Where the confirmed tracks would be at `time_s`, for frames that no detector looked at. Changes nothing."""
        ...

    @property
    def alive_ids(self) -> npt.NDArray[np.int64]:
        """Sorted ids of tracks that were shown and may be shown again (confirmed or lost); the others have ended."""
        ...

    @property
    def merges(self) -> Sequence[Merge]:
        """Ids that turned out in the last update to be one thing."""
        ...

    def stationary_ids(self, for_s: float = 2.0) -> npt.NDArray[np.int64]:
        """Sorted ids of tracks that have stood for `for_s` seconds."""
        ...

    def reset(self) -> None:
        """Forget all tracks; ids go on counting, so none is ever used again."""
        ...
