"""Label scores: one detection per object, with its score for every query, on the scale of trackers."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, cast

import numpy as np

from streamer.boxes import overlaps_among
from streamer.rules.rule import Floats, Ints

if TYPE_CHECKING:
    import supervision as sv

OTHER_WORD_IOU = 0.6
"""IoU from which boxes of two queries are one object."""
SAME_WORD_IOU = 0.75
"""IoU from which boxes of one query are one object: in crowds different objects overlap up to about 0.7."""
PART_INSIDE = 0.8
"""Share of a box inside another of the same query from which it is a part of the same object ..."""
LEAST_PART = 0.4
"""... if its area is at least this share of the other's: a smaller one is another object farther away."""
TRACKER_BIRTH = 0.7
"""Score from which trackers begin a track (ByteTrack, arXiv:2110.06864)."""


def sure_detections(found: sv.Detections, threshold: float) -> sv.Detections:
    """Detections from `threshold` on; lower ones are of use to trackers only."""
    assert found.confidence is not None
    return cast("sv.Detections", found[found.confidence >= threshold])


def for_tracker(found: sv.Detections, numbers: Ints, thresholds: Floats) -> tuple[sv.Detections, Floats]:
    """Detections for a tracker, and the scores (N,) that the detector gave them.

    `class_id`, an index into the K queries, becomes the query's number; several boxes of one object, of the same or of
    different queries, are merged into the best one; `data["label_scores"]` (N, K) holds its score for each query;
    `confidence` is on the scale of trackers.
    """
    count, kinds = len(found), len(numbers)
    index = np.zeros(count, np.int64) if found.class_id is None else np.asarray(found.class_id, np.int64)
    scores = np.ones(count) if found.confidence is None else np.asarray(found.confidence, np.float64)
    label_scores = np.zeros((count, kinds))
    label_scores[np.arange(count), index] = scores
    if count > 1:
        keep = _merge_duplicates(np.asarray(found.xyxy, np.float64), scores, index, label_scores)
        if len(keep) < count:
            found = cast("sv.Detections", found[keep])
            index, scores, label_scores = index[keep], scores[keep], label_scores[keep]
    named = copy(found)  # of fields that are valid; `replace` would check each again
    named.class_id = numbers[index] if count else index
    named.confidence = calibrate_scores(label_scores, thresholds)
    named.data = {**found.data, "label_scores": label_scores}
    return named, scores


def calibrate_scores(label_scores: Floats, thresholds: Floats) -> Floats:
    """Best score (N,) over the queries of (N, K), stretched so that each query's threshold (K,) becomes the score at
    which trackers begin a track: the scales of models and queries differ, trackers have one."""
    safe = np.clip(thresholds, 1e-3, 1 - 1e-3)
    low = label_scores * (TRACKER_BIRTH / safe)
    high = 1 - (1 - label_scores) * ((1 - TRACKER_BIRTH) / (1 - safe))
    stretched = np.where(label_scores < safe, low, high)
    best: Floats = stretched.max(axis=1) if len(stretched) else np.zeros(0)
    return best


def _merge_duplicates(boxes: Floats, scores: Floats, index: Ints, label_scores: Floats) -> Ints:
    """Rows to keep, in their order; the label scores of the others are added to the row of the same object."""
    overlaps = overlaps_among(boxes)
    if overlaps is None:
        return np.arange(len(boxes))
    overlap, inside = overlaps
    close = (overlap >= OTHER_WORD_IOU) | (inside >= PART_INSIDE)  # the least of what is asked for below
    if np.count_nonzero(close) == np.count_nonzero(close.diagonal()):
        return np.arange(len(boxes))
    same_word = index[:, None] == index
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    similar = np.minimum(area[:, None], area) >= LEAST_PART * np.maximum(area[:, None], area)
    duplicate = overlap >= np.where(same_word, SAME_WORD_IOU, OTHER_WORD_IOU)
    duplicate |= same_word & similar & (inside >= PART_INSIDE)
    np.fill_diagonal(duplicate, False)
    if not duplicate.any():
        return np.arange(len(boxes))
    gone = np.zeros(len(boxes), bool)
    for row in np.argsort(-scores, kind="stable"):
        if gone[row]:
            continue
        others = np.flatnonzero(duplicate[row] & ~gone & (scores <= scores[row]))
        if len(others):
            np.maximum(label_scores[row], label_scores[others].max(axis=0), out=label_scores[row])
            gone[others] = True
    return np.flatnonzero(~gone)
