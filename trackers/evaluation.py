"""Scores of tracks: HOTA, CLEAR and identity metrics over MOTChallenge sequences.

Reading and the rules about distractors are implemented here; the metrics are those of `trackeval` (the code of the HOTA
paper, arXiv:2009.07736). Needs the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from trackers.boxes import Floats, Ints, pair_iou
from trackers.mot import MotFileError, SequenceInfo, by_frame, find, read_rows, to_corners
from trackers.tracker import TrackerError

PEDESTRIAN = 1
MATCH_OVERLAP = 0.5
# Classes of the MOTChallenge whose boxes count neither for nor against a tracker: person on a vehicle, static person,
# distractor, reflection; MOT20 adds the non-motorised vehicle.
DISTRACTORS = {"MOT16": (2, 7, 8, 12), "MOT17": (2, 7, 8, 12), "MOT20": (2, 6, 7, 8, 12)}


class TrackEvaluationError(TrackerError):
    """Tracks cannot be scored: a package is missing, or the files do not fit together."""


@dataclass(frozen=True)
class TrackingScore:
    """Percentages and counts of one sequence, or of several taken together."""

    hota: float
    det_a: float
    ass_a: float
    idf1: float
    mota: float
    id_switches: int
    false_positives: int
    misses: int
    truths: int


def evaluate(
    truths: Mapping[str, Floats], tracks: Mapping[str, Floats], infos: Mapping[str, SequenceInfo]
) -> tuple[dict[str, TrackingScore], TrackingScore]:
    """The score of every sequence and the score of all together (counts are added, percentages never averaged).

    `truths` are (N, 9) rows of `gt.txt`, `tracks` (N, 6) rows `frame, id, left, top, width, height`, by sequence.
    """
    metrics = _metrics()
    results: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for sequence, info in infos.items():
        data = prepare(truths[sequence], tracks[sequence], info)
        for name, metric in metrics.items():
            results[name][sequence] = metric.eval_sequence(data)
    alone = {sequence: _score({name: results[name][sequence] for name in metrics}) for sequence in infos}
    return alone, _score({name: metric.combine_sequences(results[name]) for name, metric in metrics.items()})


def prepare(truth: Floats, tracks: Floats, info: SequenceInfo) -> dict[str, Any]:
    """One sequence in trackeval's form, after the rules of its benchmark about distractors."""
    distractors = DISTRACTORS.get(info.benchmark)
    truth_frames, track_frames = by_frame(truth, info.length), by_frame(tracks, info.length)
    truth_ids, track_ids, similarities = [], [], []
    if len(tracks) and tracks[-1, 0] > info.length:
        raise TrackEvaluationError(
            f"{info.name}: the tracks go to frame {tracks[-1, 0]:.0f}, the sequence has {info.length} (seqLength in "
            "seqinfo.ini): are they those of another sequence?"
        )
    for frame, (true, found) in enumerate(zip(truth_frames, track_frames, strict=True), start=1):
        if np.unique(found[:, 1]).size < len(found):
            raise TrackEvaluationError(f"{info.name}, frame {frame}: two boxes have the same id")
        overlap = _overlaps(to_corners(true), to_corners(found))
        counted = true[:, 6] != 0
        if distractors is not None:
            left = ~_on_distractors(overlap, np.isin(true[:, 7], distractors))
            found, overlap = found[left], overlap[:, left]
            counted &= true[:, 7] == PEDESTRIAN
        truth_ids.append(true[counted, 1].astype(np.int64))
        track_ids.append(found[:, 1].astype(np.int64))
        similarities.append(overlap[counted])
    truth_ids, true_count = _renumber(truth_ids)
    track_ids, found_count = _renumber(track_ids)
    return {
        "seq": info.name,
        "num_timesteps": info.length,
        "gt_ids": truth_ids,
        "tracker_ids": track_ids,
        "similarity_scores": similarities,
        "num_gt_ids": true_count,
        "num_tracker_ids": found_count,
        "num_gt_dets": sum(ids.size for ids in truth_ids),
        "num_tracker_dets": sum(ids.size for ids in track_ids),
    }


def read_truth(folder: Path) -> Floats:
    """(N, 9) rows of the `gt.txt` of a sequence."""
    path = find(folder, "gt")
    if path is None:
        raise MotFileError(f"{folder} has no gt.txt")
    return read_rows(path, 9)


def read_tracks(path: Path) -> Floats:
    """(N, 6) rows of a tracks file."""
    return read_rows(path, 6)


def _overlaps(truth: Floats, found: Floats) -> Floats:
    rows, cols = np.indices((len(truth), len(found))).reshape(2, -1)
    return pair_iou(truth.T, found.T, rows, cols).reshape(len(truth), len(found))


def _on_distractors(overlap: Floats, distractor: Any) -> Any:
    """(N,) mask of track boxes whose best match, over all classes, is a distractor."""
    matched = np.zeros(overlap.shape[1], dtype=np.bool_)
    good = np.where(overlap >= MATCH_OVERLAP - np.finfo(float).eps, overlap, 0.0)
    rows, cols = linear_sum_assignment(-good)
    matched[cols[(good[rows, cols] > 0) & distractor[rows]]] = True
    return matched


def _renumber(frames: list[Ints]) -> tuple[list[Ints], int]:
    """Ids 0, 1, ... in place of the given ones, and their number."""
    known = np.unique(np.concatenate(frames)) if frames else np.empty(0, dtype=np.int64)
    return [np.searchsorted(known, ids) for ids in frames], known.size


def _metrics() -> dict[str, Any]:
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise TrackEvaluationError("scoring needs the package trackeval: install groundstream[eval]") from error
    quiet = {"PRINT_CONFIG": False}
    return {"HOTA": HOTA(), "CLEAR": CLEAR(quiet), "Identity": Identity(quiet)}


def _score(results: Mapping[str, Any]) -> TrackingScore:
    hota, clear, identity = results["HOTA"], results["CLEAR"], results["Identity"]
    return TrackingScore(
        hota=100 * float(np.mean(hota["HOTA"])),
        det_a=100 * float(np.mean(hota["DetA"])),
        ass_a=100 * float(np.mean(hota["AssA"])),
        idf1=100 * float(identity["IDF1"]),
        mota=100 * float(clear["MOTA"]),
        id_switches=int(clear["IDSW"]),
        false_positives=int(clear["CLR_FP"]),
        misses=int(clear["CLR_FN"]),
        truths=int(clear["CLR_TP"] + clear["CLR_FN"]),
    )
