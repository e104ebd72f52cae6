"""Boxes as coordinate rows: functions on (4, N) arrays `x1, y1, x2, y2` in pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

DENSE_CELLS = 20_000  # up to this many pairs a full table is cheaper than a search for neighbours


def to_centre(boxes: Floats) -> Floats:
    """(4, N) `x1, y1, x2, y2` -> `cx, cy, w, h`."""
    out = np.empty_like(boxes)
    np.subtract(boxes[2:], boxes[:2], out=out[2:])
    np.add(boxes[2:], boxes[:2], out=out[:2])
    out[:2] *= 0.5
    return out


def from_centre(centred: Floats) -> Floats:
    """(4, N) `cx, cy, w, h` -> `x1, y1, x2, y2`."""
    half = centred[2:] * 0.5
    out = np.empty_like(centred)
    np.subtract(centred[:2], half, out=out[:2])
    np.add(centred[:2], half, out=out[2:])
    return out


def box_centres(boxes: Floats) -> Floats:
    """(4, N) corners -> (2, N) centres."""
    return (boxes[:2] + boxes[2:]) * 0.5


def grown(boxes: Floats, share: float) -> Floats:
    """The boxes with `share` of their width and height added on each side."""
    margin = (boxes[2:] - boxes[:2]) * share
    return np.concatenate((boxes[:2] - margin, boxes[2:] + margin))


def overlapping(first: Floats, second: Floats) -> tuple[Ints, Ints, Floats]:
    """All pairs of boxes that overlap: rows of `first` (4, M), rows of `second` (4, N), and their IoU; row-major."""
    if first.shape[1] * second.shape[1] <= DENSE_CELLS:
        rows, cols = _overlapping_dense(first, second)
    else:
        rows, cols = _overlapping_sorted(first, second)
    return rows, cols, pair_iou(first, second, rows, cols)


def pair_iou(first: Floats, second: Floats, rows: Ints, cols: Ints) -> Floats:
    """IoU of the pairs `first[:, rows[k]]`, `second[:, cols[k]]`; 0 where they do not overlap."""
    a, b = first.take(rows, axis=1), second.take(cols, axis=1)
    sides = np.minimum(a[2:], b[2:])
    sides -= np.maximum(a[:2], b[:2])
    np.maximum(sides, 0.0, out=sides)
    intersection: Floats = sides[0] * sides[1]
    a[2:] -= a[:2]
    b[2:] -= b[:2]
    union = a[2] * a[3]
    union += b[2] * b[3]
    union -= intersection
    intersection /= union
    return intersection


def _overlapping_dense(first: Floats, second: Floats) -> tuple[Ints, Ints]:
    a = first[:, :, None]
    table = a[0] < second[2]
    table &= a[2] > second[0]
    table &= a[1] < second[3]
    table &= a[3] > second[1]
    flat = table.ravel().nonzero()[0]
    rows, cols = np.divmod(flat, max(second.shape[1], 1))
    return rows, cols


def _overlapping_sorted(first: Floats, second: Floats) -> tuple[Ints, Ints]:
    """Compares one range of `second`, sorted by x1, per box of `first`: boxes further apart cannot overlap."""
    order = np.argsort(second[0], kind="stable")
    left = second[0][order]
    widest = float(np.max(second[2] - second[0]))
    start = np.searchsorted(left, first[0] - widest, side="left")
    stop = np.searchsorted(left, first[2], side="right")
    counts = np.maximum(stop - start, 0)
    rows = np.repeat(np.arange(first.shape[1]), counts)
    ends = np.cumsum(counts)
    cols = order[np.arange(rows.size) + np.repeat(start - ends + counts, counts)]
    near = first[0].take(rows) < second[2].take(cols)
    near &= first[1].take(rows) < second[3].take(cols)
    near &= first[3].take(rows) > second[1].take(cols)
    near &= first[2].take(rows) > second[0].take(cols)
    rows, cols = rows[near], cols[near]
    order = np.argsort(rows * second.shape[1] + cols, kind="stable")
    return rows[order], cols[order]
