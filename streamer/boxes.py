"""Overlap of boxes `x1, y1, x2, y2` as NumPy arrays: intersection over union, and over the smaller box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating[Any]]
Shares = npt.NDArray[np.float64]


def box_ious(first: Boxes, second: Boxes) -> Shares:
    """IoU of each box (N, 4) with each (M, 4): (N, M); 0 for boxes without area."""
    shared, area, other = _intersections(first, second)
    both: Shares = shared / np.maximum(area[:, None] + other - shared, 1e-12)
    return both


def overlaps_among(boxes: Boxes) -> tuple[Shares, Shares] | None:
    """IoU of the boxes (N, 4) with one another, and intersection over the smaller box, 1 where one lies inside the
    other: (N, N) each, 0 for boxes without area; None where no two overlap."""
    shared, area, _ = _intersections(boxes, boxes)
    if np.count_nonzero(shared) == np.count_nonzero(shared.diagonal()):
        return None
    ious: Shares = shared / np.maximum(area[:, None] + area - shared, 1e-12)
    parts: Shares = shared / np.maximum(np.minimum(area[:, None], area), 1e-12)
    return ious, parts


def _intersections(first: Boxes, second: Boxes) -> tuple[Shares, Shares, Shares]:
    """Areas of the intersections (N, M), of `first` (N,) and of `second` (M,)."""
    a, b = np.asarray(first, np.float64).reshape(-1, 4), np.asarray(second, np.float64).reshape(-1, 4)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T, b.T
    shared = np.minimum(ax2[:, None], bx2) - np.maximum(ax1[:, None], bx1)
    height = np.minimum(ay2[:, None], by2) - np.maximum(ay1[:, None], by1)
    np.maximum(shared, 0, out=shared)
    np.maximum(height, 0, out=height)
    shared *= height
    return shared, (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)


def box_polygon(box: Sequence[float]) -> list[list[float]]:
    """The box `x1, y1, x2, y2` as a COCO segmentation of one polygon."""
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]
