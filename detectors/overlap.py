"""Overlap of boxes and boxes around masks, as arrays: `x1, y1, x2, y2` with plain widths (GLIP's own: `boxes`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ious(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M); 0 of empty boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    size_a, size_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b))
    both: npt.NDArray[np.float64] = shared / np.maximum(size_a[:, None] + size_b[None] - shared, 1e-12)
    return both


def mask_boxes(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The boxes around all pixels of masks, far edges one past the last pixel; 0 where empty: (N, H, W) -> (N, 4)."""
    rows: npt.NDArray[np.bool_] = np.asarray(masks.any(axis=2))
    columns: npt.NDArray[np.bool_] = np.asarray(masks.any(axis=1))
    boxes = np.zeros((len(masks), 4))
    filled = np.asarray(masks.any(axis=(1, 2)))
    for axis, along in ((0, columns[filled]), (1, rows[filled])):
        boxes[filled, axis] = along.argmax(axis=1)
        boxes[filled, axis + 2] = along.shape[1] - along[:, ::-1].argmax(axis=1)
    return boxes
