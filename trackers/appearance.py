"""Appearance in the association: masks and embeddings, both optional inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trackers.boxes import Bools, Floats, Ints, overlapping
from trackers.tracker import TrackerInputError

if TYPE_CHECKING:
    import supervision as sv

MASK_SIDE = 32  # samples of a mask over its box, in each direction
MASK_PAIR = 0.1  # box overlap from which masks are compared
AMBIGUOUS = 0.5  # tracks that overlap each other more than this are separated by their masks alone

EVEN_LOOK = 0.5  # likeness that neither raises nor lowers a cost: the median of one object at two times
LEAST_LOOKS = 8  # embeddings from which on their common part is known

NEAR_COST = 0.5  # BoT-SORT: appearance counts only for boxes that overlap at least half ...
LIKE_COST = 0.25  # ... and up to this distance
MEMORY = 0.9  # share of the old embedding that remains after a confident detection


def crop_masks(detections: sv.Detections, index: Ints, boxes: Floats) -> Bools:
    """(N, 32, 32) masks of the detections `index`, each sampled over its own box (4, N)."""
    masks = np.asarray(detections.mask)[index]
    height, width = masks.shape[1:]
    steps = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
    x = np.clip((boxes[0, :, None] + steps * (boxes[2] - boxes[0])[:, None]).astype(np.int64), 0, width - 1)
    y = np.clip((boxes[1, :, None] + steps * (boxes[3] - boxes[1])[:, None]).astype(np.int64), 0, height - 1)
    cropped: Bools = masks[np.arange(len(masks))[:, None, None], y[:, :, None], x[:, None, :]].astype(np.bool_)
    return cropped


def mask_similarity(
    overlap: Floats, weight: float, tracks: tuple[Floats, Bools], found: tuple[Floats, Bools], rows: Ints, cols: Ints
) -> Floats:
    """(P,) overlaps of the pairs, weighted with their masks; `tracks` and `found` are boxes (4, M) and their crops.

    A track's mask moves and scales with its predicted box.
    """
    part = (overlap > MASK_PAIR).nonzero()[0]
    first, second, near = overlapping(tracks[0], tracks[0])
    crowded = np.zeros(tracks[0].shape[1], dtype=np.bool_)
    crowded[first[(near > AMBIGUOUS) & (first != second)]] = True
    share = np.where(crowded[rows[part]], 1.0, weight)
    out = overlap.copy()
    out[part] = (1 - share) * overlap[part] + share * _mask_iou(tracks, found, rows[part], cols[part])
    return out


def _mask_iou(tracks: tuple[Floats, Bools], found: tuple[Floats, Bools], rows: Ints, cols: Ints) -> Floats:
    a, b = tracks[0][:, rows], found[0][:, cols]
    low, high = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
    steps = (np.arange(2 * MASK_SIDE) + 0.5) / (2 * MASK_SIDE)
    grid = low[:, :, None] + steps * (high - low)[:, :, None]  # (2, P, 64) over the box around both
    first = _sample(tracks[1][rows], a, grid)
    second = _sample(found[1][cols], b, grid)
    both = np.count_nonzero(first & second, axis=(1, 2))
    either = np.count_nonzero(first | second, axis=(1, 2))
    shared: Floats = both / np.maximum(either, 1)
    return shared


def _sample(crops: Bools, boxes: Floats, grid: Floats) -> Bools:
    """(P, 64, 64) the crops (P, 32, 32) of `boxes` at the grid's points, false outside of their boxes."""
    place = (grid - boxes[:2, :, None]) / (boxes[2:] - boxes[:2])[:, :, None] * MASK_SIDE
    cell = np.floor(place).astype(np.int64)
    inside = (cell >= 0) & (cell < MASK_SIDE)
    cell = np.clip(cell, 0, MASK_SIDE - 1)
    values: Bools = crops[np.arange(len(crops))[:, None, None], cell[1][:, :, None], cell[0][:, None, :]]
    values &= inside[1][:, :, None] & inside[0][:, None, :]
    return values


def read_embeddings(detections: sv.Detections, index: Ints) -> Floats:
    """(N, D) unit vectors of the detections `index`, from `data["embedding"]`."""
    given = detections.data.get("embedding")
    if given is None:
        raise TrackerInputError(
            'a tracker with appearance=True needs data["embedding"], (N, D) numbers: provide it with the detections'
        )
    vectors = np.asarray(given, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(detections) or not np.isfinite(vectors).all():
        raise TrackerInputError(
            f'data["embedding"] has the shape {vectors.shape}: give finite numbers, one row for each of the '
            f"{len(detections)} detections"
        )
    return _normalised(vectors[index])


def fuse(costs: Floats, apart: Floats, kept: Floats, vectors: Floats, rows: Ints, cols: Ints) -> Floats:
    """BoT-SORT's fusion (arXiv:2206.14651, equations 12 and 13): the lesser of motion's cost and appearance's.

    `apart` (P,) is 1 - IoU of the pairs, `kept` (T, D) and `vectors` (N, D) are unit vectors.
    """
    distance = (1.0 - np.einsum("pd,pd->p", kept[rows], vectors[cols])) / 2
    distance[(distance > LIKE_COST) | (apart > NEAR_COST)] = 1.0
    fused: Floats = np.minimum(costs, distance)
    return fused


class LookCentre:
    """The common part of all embeddings of a stream, which is most of each of them and says nothing: their mean.

    Every track counts twice at most, so that one that stays long does not become the common part.
    """

    def __init__(self) -> None:
        self.total: Floats = np.zeros(0)
        self.count = 0

    def add(self, vectors: Floats) -> None:
        """Takes embeddings (N, D) of N tracks into account."""
        self.total = self.total + vectors.sum(axis=0) if self.count else vectors.sum(axis=0)
        self.count += len(vectors)

    def likeness(self, first: Floats, second: Floats) -> Floats | None:
        """(M, N) cosines, -1..1, between (M, D) and (N, D) without the common part; None while that is not known."""
        mean = self._mean()
        return None if mean is None else _normalised(first - mean) @ _normalised(second - mean).T

    def likeness_of_pairs(self, first: Floats, second: Floats) -> Floats | None:
        """(P,) cosines between the rows of (P, D) and (P, D), as `likeness`."""
        mean = self._mean()
        if mean is None:
            return None
        alike: Floats = np.einsum("pd,pd->p", _normalised(first - mean), _normalised(second - mean))
        return alike

    def _mean(self) -> Floats | None:
        return self.total / self.count if self.count >= LEAST_LOOKS else None


def blend(kept: Floats, vectors: Floats, fresh: Bools) -> Floats:
    """(N, D) the tracks' embeddings after these detections; `fresh` ones start from the detection."""
    return _normalised(np.where(fresh[:, None], vectors, MEMORY * kept + (1 - MEMORY) * vectors))


def _normalised(vectors: Floats) -> Floats:
    units: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return units
