"""Ground plane of a camera: from points of the frame to metres on the ground.

A homography from four or more known points: Hartley and Zisserman, Multiple View Geometry, 2nd edition, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamer.errors import ConfigError
from streamer.rules.rule import Floats

LEAST_POINTS = 4
_WORST_FIT_M = 1.0  # distance on the ground by which a known point may be missed
_LEAST_AREA = 1e-4  # of the frame: below it the points lie in a line or on top of one another


class GroundPlane:
    """Maps points (fractions of the frame) to metres, from pairs of (x, y) in the frame and (x, y) on the ground."""

    def __init__(self, image: Sequence[tuple[float, float]], ground: Sequence[tuple[float, float]]) -> None:
        """Raises `ConfigError` for points that fix no plane, or contradict one another."""
        import cv2  # only calibrated cameras need it

        if len(image) < LEAST_POINTS or len(image) != len(ground):
            raise ConfigError(f"calibration has {len(image)} points: give at least {LEAST_POINTS}, each with its place")
        seen, known = np.asarray(image, np.float64), np.asarray(ground, np.float64)
        for name, points in (("image", seen), ("ground", known)):
            extent = np.ptp(points, axis=0).max() or 1.0
            hull = cv2.convexHull((points / extent).astype(np.float32))
            if cv2.contourArea(hull) < _LEAST_AREA or len(hull) < LEAST_POINTS - 1:
                raise ConfigError(f"calibration: the {name} points lie in a line: give points that span an area")
        matrix, _ = cv2.findHomography(seen, known)
        if matrix is None or not np.isfinite(matrix).all():
            raise ConfigError("calibration: the points fix no plane: no three of the four may lie in a line")
        self._matrix = np.asarray(matrix, np.float64)
        # Before the camera the third coordinate has the sign that it has at the known points.
        depth = self._depth(seen)
        if not (np.sign(depth) == np.sign(depth[0])).all():
            raise ConfigError("calibration: the points lie on both sides of the horizon: check which point is which")
        self._matrix *= np.sign(depth[0])
        missed = np.hypot(*(self.locate(seen) - known).T)
        if missed.max() > _WORST_FIT_M:
            worst = int(missed.argmax())
            raise ConfigError(
                f"calibration: point {worst + 1} is missed by {missed[worst]:.1f} m: the points contradict one "
                "another, or the ground is not flat"
            )

    def locate(self, points: Floats) -> Floats:
        """(N, 2) metres of points (N, 2) in fractions of the frame; NaN at and above the horizon."""
        depth = self._depth(points)
        mapped = np.column_stack([points, np.ones(len(points))]) @ self._matrix.T
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = np.where(depth[:, None] > 1e-9, mapped[:, :2] / depth[:, None], np.nan)
        return found

    def _depth(self, points: Floats) -> Floats:
        found: Floats = points @ self._matrix[2, :2] + self._matrix[2, 2]
        return found
