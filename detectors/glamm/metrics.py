"""How GLaMM's masks and phrases were scored (arXiv:2311.03356, section 5), as the released scripts count.

Masks are bool arrays (K, H, W). Some counts are kinder or harsher than their names promise; they stay, because the
published figures were made with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Masks = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float64]

_EPSILON = 1e-5


def mask_ious(truth: Masks, predicted: Masks) -> Matrix:
    """IoU of every pair, (G, P); two empty masks have 0."""
    if not len(truth) or not len(predicted):
        return np.zeros((len(truth), len(predicted)))
    a = np.asarray(truth, dtype=bool).reshape(len(truth), -1).astype(np.float64)
    b = np.asarray(predicted, dtype=bool).reshape(len(predicted), -1).astype(np.float64)
    overlap = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - overlap
    ious: Matrix = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ious


def _best_pairs(ious: Matrix) -> Iterator[tuple[int, int, float]]:
    """The pair of largest IoU, then the largest of the rows and columns left, and so on while it is above 0."""
    left = ious.copy()
    while left.size and left.max() > 0:
        row, column = (int(index) for index in np.unravel_index(left.argmax(), left.shape))
        yield row, column, float(left[row, column])
        left[row, :] = left[:, column] = 0


def mean_iou(truth: Masks, predicted: Masks) -> float:
    """Mean IoU of greedily paired masks of one image; what finds no partner costs nothing. 0 without a pair."""
    paired = [iou for *_, iou in _best_pairs(mask_ious(truth, predicted))]
    return float(np.mean(paired)) if paired else 0.0


def recall_matches(
    truth: Masks, predicted: Masks, similarity: Matrix, iou_threshold: float = 0.5, text_threshold: float = 0.5
) -> list[tuple[int, int]]:
    """Pairs (truth, predicted) whose masks and phrases both agree, best masks first.

    `similarity` (G, P) compares the phrases. The first best pair that fails ends the search, even where a later one
    would pass.
    """
    matches = []
    for row, column, iou in _best_pairs(mask_ious(truth, predicted)):
        if iou < iou_threshold or similarity[row, column] < text_threshold:
            break
        matches.append((row, column))
    return matches


@dataclass
class ReferringScore:
    """Sums over masks that were asked for in words: cIoU weighs pixels alike, gIoU masks."""

    intersection: float = 0.0
    union: float = 0.0
    iou_sum: float = 0.0
    count: int = 0

    def add(self, truth: Masks, predicted: Masks) -> None:
        """Masks of one image, paired in order."""
        for wanted, found in zip(np.asarray(truth, bool), np.asarray(predicted, bool), strict=True):
            overlap, union = float((wanted & found).sum()), float((wanted | found).sum())
            self.intersection += overlap
            self.union += union
            self.iou_sum += overlap / (union + _EPSILON) if union else 1.0
            self.count += 1

    @property
    def ciou(self) -> float:
        return self.intersection / self.union if self.union else 0.0

    @property
    def giou(self) -> float:
        return self.iou_sum / self.count if self.count else 0.0


def run_lengths(mask: Masks) -> list[int]:
    """Uncompressed COCO counts of one mask (H, W), down the columns, beginning with the zeros."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def average_recall(hits: Sequence[int], wanted: Sequence[int]) -> float:
    """Hits of all images over their wanted phrases."""
    return sum(hits) / sum(wanted) if sum(wanted) else 0.0
