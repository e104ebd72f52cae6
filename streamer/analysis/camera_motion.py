"""Watch over the motion of a camera, estimated for every frame only while it moves.

Most cameras stand still, and checking every frame would cost a conversion and a comparison each time. So two successive
frames are compared every second at first, more rarely while nothing moves (every 4 s), and every frame while the camera
moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.frame import Frame
from trackers.camera_motion import CameraMotion

if TYPE_CHECKING:
    import supervision as sv

CHECK_EVERY_NS = 1_000_000_000
CHECK_AT_LEAST_EVERY_NS = 4_000_000_000
MOVED_PX = 0.5
"""Shift in pixels below which an estimate is noise; `ZOOMED` is the same for the change of scale."""
ZOOMED = 0.002

Affine = npt.NDArray[np.float64]


class CameraWatch:
    """The motion of one camera between frames: ask `wants` for each frame in order, `update` for those it wants."""

    def __init__(self) -> None:
        self._estimator = CameraMotion()
        self._is_checking = False
        self._has_last = False
        self._next_check_ns = 0
        self._pause_ns = CHECK_EVERY_NS
        self._moved_ns: int | None = None
        self._size = (0, 0)

    @property
    def is_checking(self) -> bool:
        """Whether frames are compared now, until the camera is found to stand still."""
        return self._is_checking

    def is_due(self, frame: Frame) -> bool:
        """Whether `wants` will want the frame; changes nothing."""
        return self._is_checking or frame.time_ns >= self._next_check_ns

    def wants(self, frame: Frame) -> bool:
        if not self._is_checking and frame.time_ns >= self._next_check_ns:
            self._is_checking = True
            self._has_last = False
            self._estimator.reset()
        return self._is_checking

    def update(self, frame: Frame, found: sv.Detections) -> Affine | None:
        """(2, 3) motion since the frame before in pixels, None for a still camera. Takes milliseconds."""
        if self._size != (frame.width, frame.height):  # frames of two sizes cannot be compared
            self._size = (frame.width, frame.height)
            self._estimator.reset()
        motion = self._estimator.update(frame.image, np.asarray(found.xyxy, np.float32))
        if motion is not None and _is_motion(motion):
            self._moved_ns = frame.time_ns
            self._pause_ns = CHECK_EVERY_NS
            self._has_last = True
            return motion
        if self._has_last and (self._moved_ns is None or frame.time_ns - self._moved_ns >= CHECK_EVERY_NS):
            self._is_checking = False
            self._next_check_ns = frame.time_ns + self._pause_ns
            self._pause_ns = min(2 * self._pause_ns, CHECK_AT_LEAST_EVERY_NS)
        self._has_last = True
        return None


def _is_motion(affine: Affine) -> bool:
    shift, scale = np.hypot(*affine[:, 2]), np.sqrt(abs(np.linalg.det(affine[:, :2])))
    return bool(shift > MOVED_PX or abs(scale - 1) > ZOOMED)
