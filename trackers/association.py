"""Association of tracks with detections: the cascade of ByteTrack, and the single stage of SORT and OC-SORT.

Functions of their inputs, with two exceptions that are named at the parameter: `match` (T,), the detection of every
track or -1, and `free` (N,), the detections that are still to be given away, are filled in stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trackers import appearance
from trackers.adaptive import common_shift
from trackers.assignment import assign, assign_then_filter
from trackers.boxes import Bools, Floats, Ints, box_centres, grown, overlapping, pair_iou, to_centre
from trackers.tracker import TrackerInputError

if TYPE_CHECKING:
    import supervision as sv

    from trackers.kalman import MotionModel
    from trackers.memory import TrackSlots
    from trackers.options import TrackerOptions
    from trackers.tracks import Scores, TrackStates

LAST_PIXEL = np.array([[0.0], [0.0], [1.0], [1.0]])
"""Turns a box into one that counts both of its edge pixels."""
NEWBORN_SIZE_RATIO = 1.3
"""Greatest change of a side between the first two detections of a track that do not overlap."""


@dataclass(frozen=True, slots=True)
class FrameDetections:
    """The usable detections of one frame."""

    boxes: Floats  # (4, N)
    scores: Scores  # (N,)
    labels: npt.NDArray[np.integer[Any]]  # (N,)
    index: Ints  # (N,) row of each in the input
    given: sv.Detections  # the input, for masks and embeddings


@dataclass(frozen=True, slots=True)
class CandidatePairs:
    """Pairs of a track and a detection whose boxes overlap, in row-major order."""

    rows: Ints  # (P,) tracks
    cols: Ints  # (P,) detections
    overlap: Floats  # (P,) IoU


def associate_in_stages(
    tracks: TrackStates,
    found: FrameDetections,
    options: TrackerOptions,
    motion: MotionModel,
    memory: TrackSlots,
    centre: appearance.LookCentre,
    match: Ints,
    free: Bools,
) -> None:
    """Matches confident detections, then the others, then tracks that are not confirmed (ByteTrack, arXiv:2110.06864).

    Fills `match` and `free`; with `common_motion` it also moves tracks that were not matched along with the others.
    """
    scores = found.scores
    predicted = motion.decode(tracks.state[:4])
    shift = _common_motion(tracks, predicted, found.boxes, free) if options.common_motion else None
    if shift is not None:
        predicted += np.concatenate((shift, shift))
    pairs = _match_confident(tracks, predicted, found, options, memory, centre, match, free)
    if options.low_score is not None:
        low = (scores > options.low_score) & (scores <= options.high_score)
        if low.any():
            left = (match < 0) & (tracks.misses == 0)
            if options.tentative_limit is not None:
                left &= tracks.confirmed
            _match_stage(match, low, pairs, 1.0 - pairs.overlap, left, options.low_limit)
    if options.tentative_limit is not None and not tracks.confirmed.all():
        weight = scores.take(pairs.cols) if options.fuse_score else 1.0
        _match_stage(match, free, pairs, 1.0 - pairs.overlap * weight, ~tracks.confirmed, options.tentative_limit)
        if options.newborn_reach:
            _match_fast_newborns(tracks, predicted, found, options, match, free)
    if shift is not None:
        _carry_unseen(tracks, motion, shift, match < 0)


def associate_at_once(
    tracks: TrackStates,
    found: FrameDetections,
    options: TrackerOptions,
    motion: MotionModel,
    reference: tuple[Floats, Bools] | None,
    match: Ints,
    free: Bools,
) -> None:
    """Matches all tracks in one stage without a limit: SORT (arXiv:1602.00763), and OC-SORT with its two additions.

    `reference` is that of `reference_boxes` where `options.direction` asks for it. Fills `match` and `free`.
    """
    rows, cols, overlap = overlapping(motion.decode(tracks.state[:4]), found.boxes)
    offered = free[cols].nonzero()[0]
    rows, cols, overlap = rows[offered], cols[offered], overlap[offered]
    gains = overlap
    if reference is not None:
        gains = overlap + options.direction * _direction_agreement(tracks, found, reference, rows, cols)
    chosen = assign_then_filter(rows, cols, gains, overlap >= 1 - options.limit)
    match[rows[chosen]] = cols[chosen]
    free[cols[chosen]] = False
    if options.recover is not None:
        _recover_by_observation(tracks, found.boxes, options.recover, match, free)


def reference_boxes(tracks: TrackStates, memory: TrackSlots, frame: int) -> tuple[Floats, Bools]:
    """(4, T) the oldest observation of the last three frames, or else the latest; (T,) whether there is one.

    The detection that a track was born from does not count (as in the original).
    """
    rows = memory.read(tracks.slot, tracks.hits - 1)
    for back in (2, 3):
        older = memory.read(tracks.slot, tracks.hits - back)
        recent = (tracks.hits - back >= 1) & (older[:, 6] >= frame - 3)
        rows = np.where(recent[:, None], older, rows)
    return rows[:, 1:5].T, tracks.hits > 1


def unit_vectors(vectors: Floats) -> Floats:
    """(2, N) vectors of length one; the shortest ones stay shorter."""
    units: Floats = vectors / (np.hypot(vectors[0], vectors[1]) + 1e-6)
    return units


def remember_looks(
    tracks: TrackStates, found: FrameDetections, options: TrackerOptions, memory: TrackSlots, source: Ints
) -> None:
    """Keeps masks and embeddings of this frame's detections for the next one; `source` (T,) is each track's one."""
    who = (source >= 0).nonzero()[0]
    what, slots = source[who], tracks.slot[who]
    if options.mask_weight and found.given.mask is not None:
        crops = appearance.crop_masks(found.given, found.index, found.boxes)
        memory.column("mask", crops.shape[1:], np.bool_)[slots] = crops[what]
    if options.appearance and len(found.given):
        vectors = appearance.read_embeddings(found.given, found.index)
        kept = memory.column("embedding", vectors.shape[1:], np.float64)
        fresh = tracks.hits[who] <= 1
        sure = fresh | (found.scores[what] > options.high_score)
        mixed = appearance.blend(kept[slots], vectors[what], fresh)
        kept[slots[sure]] = mixed[sure]


def _match_confident(
    tracks: TrackStates,
    predicted: Floats,
    found: FrameDetections,
    options: TrackerOptions,
    memory: TrackSlots,
    centre: appearance.LookCentre,
    match: Ints,
    free: Bools,
) -> CandidatePairs:
    """Matches confirmed tracks to confident detections; returns the candidate pairs for the stages that follow."""
    boxes = found.boxes
    if options.whole_pixels:
        predicted, boxes = predicted + LAST_PIXEL, boxes + LAST_PIXEL
    if options.grow:
        rows, cols, near = overlapping(grown(predicted, options.grow), grown(boxes, options.grow))
        overlap = pair_iou(predicted, boxes, rows, cols)
    else:
        rows, cols, overlap = overlapping(predicted, boxes)
        near = overlap
    if options.per_class:
        same = (tracks.label[rows] == found.labels[cols]).nonzero()[0]
        rows, cols, overlap, near = rows[same], cols[same], overlap[same], near[same]
    pairs = CandidatePairs(rows, cols, overlap)
    if options.mask_weight and found.given.mask is not None:
        near = _with_masks(near, tracks, predicted, found, options, memory, pairs)
    costs = 1.0 - near * found.scores.take(cols) if options.fuse_score else 1.0 - near
    if options.class_weight:
        costs += options.class_weight * (tracks.label[rows] != found.labels[cols])
    if options.appearance:
        costs = _with_appearance(costs, tracks, found, options, memory, centre, pairs)
    pool = tracks.confirmed if options.tentative_limit is not None else np.ones_like(tracks.confirmed)
    _match_stage(match, free, pairs, costs, pool, options.limit)
    return pairs


def _match_stage(match: Ints, free: Bools, pairs: CandidatePairs, costs: Floats, left: Bools, limit: float) -> None:
    """Matches tracks that are `left` to `free` detections; fills `match` and `free`."""
    part = (left.take(pairs.rows) & free.take(pairs.cols)).nonzero()[0]
    if not part.size:
        return
    rows, cols = pairs.rows.take(part), pairs.cols.take(part)
    chosen = assign(rows, cols, costs.take(part), limit)
    cols = cols.take(chosen)
    match[rows.take(chosen)] = cols
    free[cols] = False


def _match_fast_newborns(
    tracks: TrackStates, predicted: Floats, found: FrameDetections, options: TrackerOptions, match: Ints, free: Bools
) -> None:
    """Matches tracks that were seen once to confident detections that are too far away to overlap.

    Nothing is known of the motion of such a track, and something fast leaves its own box between two frames. A pair is
    made where class and size agree and neither has a second candidate; it does not count towards the confirmation, so
    a further detection has to overlap with the motion that follows from the pair. Fills `match` and `free`, and marks
    the tracks by a negative streak.
    """
    young = (~tracks.confirmed & (match < 0) & (tracks.hits == 1)).nonzero()[0]
    left = (free & (found.scores >= options.birth_score)).nonzero()[0]
    if not (young.size and left.size):
        return
    before, after = to_centre(predicted[:, young])[:, :, None], to_centre(found.boxes[:, left])[:, None, :]
    apart = np.hypot(before[0] - after[0], before[1] - after[1])
    reach = options.newborn_reach * np.sqrt(before[2] * before[3])
    ratio = np.maximum(before[2:] / after[2:], after[2:] / before[2:]).max(axis=0)
    near = apart <= reach
    alone = (near.sum(axis=1, keepdims=True) == 1) & (near.sum(axis=0) == 1)
    same = tracks.label[young][:, None] == found.labels[left]
    row, col = (near & alone & same & (ratio <= NEWBORN_SIZE_RATIO)).nonzero()
    match[young[row]] = left[col]
    free[left[col]] = False
    tracks.streak[young[row]] -= 1


def _common_motion(tracks: TrackStates, predicted: Floats, boxes: Floats, high: Bools) -> Floats | None:
    known = (tracks.confirmed & (tracks.misses == 0) & (tracks.hits > 1)).nonzero()[0]
    centres = tracks.state[:2].take(known, axis=1)
    return common_shift(predicted.take(known, axis=1), centres, boxes.take(high.nonzero()[0], axis=1))


def _carry_unseen(tracks: TrackStates, motion: MotionModel, shift: Floats, unseen: Bools) -> None:
    """Moves tracks that were not seen with the common motion, as if it had been measured on them."""
    who = unseen.nonzero()[0]
    if who.size:
        state = tracks.state[:, who]
        variance = state[8:10] + motion.measurement_variance(state[:4])[:2]
        tracks.state[:2, who] += state[8:10] / variance * shift
        tracks.state[4:6, who] += state[12:14] / variance * shift


def _with_masks(
    near: Floats,
    tracks: TrackStates,
    predicted: Floats,
    found: FrameDetections,
    options: TrackerOptions,
    memory: TrackSlots,
    pairs: CandidatePairs,
) -> Floats:
    crops = appearance.crop_masks(found.given, found.index, found.boxes)
    kept = memory.column("mask", crops.shape[1:], np.bool_)[tracks.slot]
    return appearance.mask_similarity(
        near, options.mask_weight, (predicted, kept), (found.boxes, crops), pairs.rows, pairs.cols
    )


def _with_appearance(
    costs: Floats,
    tracks: TrackStates,
    found: FrameDetections,
    options: TrackerOptions,
    memory: TrackSlots,
    centre: appearance.LookCentre,
    pairs: CandidatePairs,
) -> Floats:
    vectors = appearance.read_embeddings(found.given, found.index)
    kept = memory.column("embedding", vectors.shape[1:], np.float64)
    if kept.shape[1:] != vectors.shape[1:]:
        raise TrackerInputError(
            f"embeddings have {vectors.shape[1]} numbers, those before had {kept.shape[1]}: use one model per tracker"
        )
    if options.appearance_weight is None:
        return appearance.fuse(costs, 1.0 - pairs.overlap, kept[tracks.slot], vectors, pairs.rows, pairs.cols)
    likeness = centre.likeness_of_pairs(kept[tracks.slot[pairs.rows]], vectors[pairs.cols])
    return costs if likeness is None else costs + options.appearance_weight * (appearance.EVEN_LOOK - likeness) / 2


def _direction_agreement(
    tracks: TrackStates, found: FrameDetections, reference: tuple[Floats, Bools], rows: Ints, cols: Ints
) -> Floats:
    """(P,) OC-SORT's momentum: how well the way to the detection continues the way of the track."""
    boxes, known = reference
    way = unit_vectors(box_centres(found.boxes)[:, cols] - box_centres(boxes)[:, rows])
    cosine = np.clip((way * tracks.heading[:, rows]).sum(axis=0), -1.0, 1.0)
    agreement: Floats = (np.pi / 2 - np.arccos(cosine)) / np.pi
    return agreement * found.scores[cols] * known[rows]


def _recover_by_observation(tracks: TrackStates, boxes: Floats, overlap: float, match: Ints, free: Bools) -> None:
    """Matches what is left by the last observation instead of the prediction; fills `match` and `free`."""
    left = ((match < 0) & (tracks.hits > 1)).nonzero()[0]
    found = free.nonzero()[0]
    if not (left.size and found.size):
        return
    rows, cols, iou = overlapping(tracks.observed[:, left], boxes[:, found])
    chosen = assign_then_filter(rows, cols, iou, iou >= overlap, shortcut=False)
    match[left[rows[chosen]]] = found[cols[chosen]]
    free[found[cols[chosen]]] = False
