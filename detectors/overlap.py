"""How much boxes overlap, as arrays: `x1, y1, x2, y2`, plain widths, no end pixel. `boxes` has GLIP's convention."""

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
