"""One thing found under several words is one detection: the tracker should see one box, the rules every word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from streamer.boxes import box_ious
from streamer.rules.rule import Floats, Ints

if TYPE_CHECKING:
    import supervision as sv

SAME_THING_IOU = 0.8
TRACKER_BIRTH = 0.7
"""The score from which on trackers take a detection for a new thing (ByteTrack, arXiv:2110.06864)."""


def sure(found: sv.Detections, threshold: float) -> sv.Detections:
    """Without the doubtful ones, which only a tracker has a use for."""
    assert found.confidence is not None
    return cast("sv.Detections", found[found.confidence >= threshold])


def for_tracker(found: sv.Detections, numbers: Ints, thresholds: Floats) -> tuple[sv.Detections, Floats]:
    """Detections as trackers want them, and the scores (N,) that the detector gave them.

    `class_id`, an index into the K queries asked, becomes the query's number; boxes of one thing under several words
    are merged; `data["label_scores"]` (N, K) tells the score of each word; `confidence` is on the trackers' scale.
    """
    count, kinds = len(found), len(numbers)
    index = np.zeros(count, np.int64) if found.class_id is None else np.asarray(found.class_id, np.int64)
    scores = np.ones(count) if found.confidence is None else np.asarray(found.confidence, np.float64)
    label_scores = np.zeros((count, kinds))
    label_scores[np.arange(count), index] = scores
    if kinds > 1 and count > 1:
        keep = _merge(np.asarray(found.xyxy, np.float64), scores, index, label_scores)
        if len(keep) < count:
            found = cast("sv.Detections", found[keep])
            index, scores, label_scores = index[keep], scores[keep], label_scores[keep]
    named = replace(
        found,
        class_id=numbers[index] if count else index,
        confidence=calibrated(label_scores, thresholds),
        data={**found.data, "label_scores": label_scores},
    )
    return named, scores


def calibrated(label_scores: Floats, thresholds: Floats) -> Floats:
    """The best score (N,) over the words of (N, K), stretched so that each word's threshold (K,) is where trackers
    begin a track. Models and words differ in what score means "surely"; trackers know one scale."""
    safe = np.clip(thresholds, 1e-3, 1 - 1e-3)
    low = label_scores * (TRACKER_BIRTH / safe)
    high = 1 - (1 - label_scores) * ((1 - TRACKER_BIRTH) / (1 - safe))
    stretched = np.where(label_scores < safe, low, high)
    best: Floats = stretched.max(axis=1) if len(stretched) else np.zeros(0)
    return best


def _merge(boxes: Floats, scores: Floats, index: Ints, label_scores: Floats) -> Ints:
    """Rows to keep, in their order; the words of the rows that go are added to the row that they lie on."""
    order = np.argsort(-scores, kind="stable")
    overlap = box_ious(boxes, boxes)
    same = (overlap > SAME_THING_IOU) & (index[:, None] != index)
    if not same.any():
        return np.arange(len(boxes))
    gone = np.zeros(len(boxes), bool)
    for row in order:
        if gone[row]:
            continue
        others = np.flatnonzero(same[row] & ~gone & (scores <= scores[row]))
        others = others[others != row]
        if len(others):
            np.maximum(label_scores[row], label_scores[others].max(axis=0), out=label_scores[row])
            gone[others] = True
    return np.flatnonzero(~gone)
