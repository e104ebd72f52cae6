"""Camera motion between two frames: sparse optical flow on the background and a robust affine fit.

The estimator is separate from the tracker, so that a stored motion file or an encoder's motion vectors can replace it.
OpenCV is loaded when the first estimator is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trackers.boxes import Floats
from trackers.tracker import TrackerInputError

Image = npt.NDArray[np.uint8]

MAX_ROWS = 360  # the picture is scaled down to this for the flow
MAX_CORNERS = 300
CORNER_QUALITY, CORNER_DISTANCE, CORNER_BLOCK = 0.01, 3, 3
BORDER = 0.02  # share of the image at its edge without corners
RANSAC_PIXELS = 3.0

THUMBNAIL = (64, 36)
STILL = 0.005  # mean difference of the thumbnails, as a share of white, up to which the camera did not move

STEADY_PIXELS = 0.5  # of the scaled image: a smaller displacement of its corners is no camera motion

LEAST_INLIERS, LEAST_SHARE = 10, 0.3  # inliers that an accepted fit needs ...
MOST_ZOOM, MOST_SHIFT = 0.2, 0.25  # ... and its largest change of scale and shift, as a share of the image


class CameraMotion:
    """Estimates the motion of one camera, frame by frame."""

    def __init__(self) -> None:
        import cv2

        self._cv2: Any = cv2
        self.reset()

    def reset(self) -> None:
        """Forgets the last frame."""
        self._grey: Image | None = None
        self._thumbnail: npt.NDArray[np.float32] | None = None

    def update(self, image: Image, boxes: npt.NDArray[np.floating[Any]] | None = None) -> Floats | None:
        """(2, 3) affine motion from the last frame to this one in pixels: x' = A x + t; None when it stood still.

        `image` is BGR or grey, (height, width[, 3]); corners inside the `boxes` (N, 4) are not used, because those
        objects move by themselves. Also None for a first frame, after a change of size, and without a reliable fit.
        """
        if image.ndim not in (2, 3) or image.dtype != np.uint8 or not image.size:
            raise TrackerInputError(
                f"the image has the shape {image.shape} and type {image.dtype}: give (height, width, 3) of uint8"
            )
        grey, scale = self._shrink(image)
        thumbnail = self._cv2.resize(grey, THUMBNAIL, interpolation=self._cv2.INTER_AREA).astype(np.float32)
        before, seen = self._grey, self._thumbnail
        self._grey, self._thumbnail = grey, thumbnail
        if before is None or seen is None or before.shape != grey.shape:
            return None
        if float(np.abs(thumbnail - seen).mean()) <= STILL * 255:
            return None
        return self._fit(before, grey, scale, boxes)

    def _shrink(self, image: Image) -> tuple[Image, float]:
        """The grey picture of at most 360 rows, and its size as a share of the original's."""
        scale = min(1.0, MAX_ROWS / image.shape[0])
        if scale < 1:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            image = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA)
        if image.ndim == 3:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2GRAY)
        return image, scale

    def _fit(
        self, before: Image, grey: Image, scale: float, boxes: npt.NDArray[np.floating[Any]] | None
    ) -> Floats | None:
        corners = self._cv2.goodFeaturesToTrack(
            before,
            maxCorners=MAX_CORNERS,
            qualityLevel=CORNER_QUALITY,
            minDistance=CORNER_DISTANCE,
            blockSize=CORNER_BLOCK,
            mask=_background(before.shape, scale, boxes),
        )
        if corners is None or len(corners) < LEAST_INLIERS:
            return None
        moved, status, _ = self._cv2.calcOpticalFlowPyrLK(before, grey, corners, None)
        found = status.ravel() == 1
        if np.count_nonzero(found) < LEAST_INLIERS:
            return None
        affine, inliers = self._cv2.estimateAffinePartial2D(
            corners[found], moved[found], method=self._cv2.RANSAC, ransacReprojThreshold=RANSAC_PIXELS
        )
        if affine is None or inliers is None:
            return None
        affine = np.asarray(affine, dtype=np.float64)
        count = int(np.count_nonzero(inliers))
        zoom = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
        far = np.abs(affine[:, 2]) > MOST_SHIFT * np.array(grey.shape[::-1])
        if count < LEAST_INLIERS or count < LEAST_SHARE * np.count_nonzero(found):
            return None
        if abs(zoom - 1) >= MOST_ZOOM or far.any():
            return None
        height, width = grey.shape
        corners_of_it = np.array([[0.0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
        if float(np.abs(affine @ corners_of_it - corners_of_it[:2]).max()) < STEADY_PIXELS:
            return None
        affine[:, 2] /= scale
        return affine


def _background(
    shape: tuple[int, ...], scale: float, boxes: npt.NDArray[np.floating[Any]] | None
) -> npt.NDArray[np.uint8]:
    """255 where corners may be taken: inside the border, outside of the boxes."""
    height, width = shape[:2]
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = round(BORDER * height), round(BORDER * width)
    mask[top : height - top, left : width - left] = 255
    if boxes is not None:
        for x1, y1, x2, y2 in np.round(np.maximum(np.asarray(boxes) * scale, 0)).astype(np.int64):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 0
    return mask
