"""Frame sizes of a stream that changes its resolution: the tracker sees all boxes in pixels of the first frame."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import supervision as sv

    from streamer.analysis.camera_motion import Affine
    from streamer.frame import Frame
    from trackers import Tracker


class FrameSizes:
    """Scales boxes between the pixels of a frame and those of the stream's first frame."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None

    def update(self, tracker: Tracker, found: sv.Detections, frame: Frame, moved: Affine | None) -> sv.Detections:
        """Lets the tracker follow a frame; `found`, `moved` (2, 3) and the result are in pixels of the frame."""
        scale = self._scale(frame)
        if scale is None:
            return tracker.update(found, frame.time_s, moved)
        x, y = scale
        if moved is not None:
            moved = moved * np.array([[1.0, x / y, x], [y / x, 1.0, y]])
        return self.from_tracker(tracker.update(_scale_boxes(found, scale), frame.time_s, moved), frame)

    def from_tracker(self, tracked: sv.Detections, frame: Frame) -> sv.Detections:
        """The tracker's boxes in pixels of the frame."""
        scale = self._scale(frame)
        return tracked if scale is None else _scale_boxes(tracked, 1 / scale)

    def _scale(self, frame: Frame) -> npt.NDArray[np.float64] | None:
        """The first frame's width and height by this one's; None where they are the same."""
        size = (frame.width, frame.height)
        if self._first is None:
            self._first = size
        return None if size == self._first else np.array(self._first, np.float64) / size


def _scale_boxes(boxes: sv.Detections, scale: npt.NDArray[np.float64]) -> sv.Detections:
    xyxy = np.asarray(boxes.xyxy) * np.tile(scale, 2)
    return replace(boxes, xyxy=xyxy.astype(np.asarray(boxes.xyxy).dtype))
