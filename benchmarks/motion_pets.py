"""The motion detector against people's boxes in a real video: precision, recall, average precision, tracks, speed.

    python benchmarks/motion_pets.py FOLDER [--write] [--annotate DIR]

FOLDER holds `video.mp4` and `gt.txt` as MOTChallenge writes it (PETS09-S2L1). Run it on one core to compare speeds.
The background model draws at random, and with the draws the figures of tracks vary: they are means over `--draws` runs.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import supervision as sv

from detectors import Request
from detectors.motion import MotionDetector
from detectors.registry import ANYTHING_THAT_MOVES
from streamer.analysis.label_scores import for_tracker
from trackers import create_tracker, evaluation, mot

RESULTS = Path(__file__).parent / "results" / "motion.md"


def read_truth(file: Path) -> dict[int, np.ndarray]:
    """Boxes (N, 4) of every frame, counted from 0, as x1, y1, x2, y2."""
    boxes = defaultdict(list)
    for line in file.read_text().splitlines():
        frame, _, left, top, width, height, flag = (float(value) for value in line.split(",")[:7])
        if flag:
            boxes[int(frame) - 1].append([left, top, left + width, top + height])
    return {frame: np.array(rows) for frame, rows in boxes.items()}


def match(found: sv.Detections, truth: np.ndarray, least: float) -> np.ndarray:
    """For each detection whether it is the surest one on a person that it covers with at least this IoU."""
    hit = np.zeros(len(found), bool)
    if len(found) and len(truth):
        overlap = sv.box_iou_batch(found.xyxy, truth)
        for row in np.argsort(-found.confidence, kind="stable"):
            best = overlap[row].argmax()
            if overlap[row, best] >= least:
                hit[row] = True
                overlap[:, best] = -1
    return hit


def average_precision(confidence: np.ndarray, hit: np.ndarray, total: int) -> float:
    """Area under the precision-recall curve at 101 recalls, as COCO counts it."""
    order = np.argsort(-confidence, kind="stable")
    true = np.cumsum(hit[order])
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
    places = np.searchsorted(true / total, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())


def annotate(folder: Path, number: int, image: np.ndarray, found: sv.Detections, truth: np.ndarray) -> None:
    """People in green, surely found things in red, doubtful ones in yellow."""
    image = image.copy()
    for box in truth.astype(int):
        cv2.rectangle(image, box[:2], box[2:], (0, 255, 0), 1)
    for box, confidence in zip(found.xyxy.astype(int), found.confidence, strict=True):
        colour = (0, 0, 255) if confidence >= 0.5 else (0, 255, 255)
        cv2.rectangle(image, box[:2], box[2:], colour, 2)
        cv2.putText(image, f"{confidence:.2f}", (box[0], box[1] - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1)
    cv2.imwrite(str(folder / f"{number:05d}.jpg"), image)


@dataclass
class DrawResult:
    """What one run of the detector and the default tracker gave."""

    frames: int
    confidence: np.ndarray  # (N,) of all detections
    hit: np.ndarray  # (N,) whether each is on a person of its own
    stray: np.ndarray  # (N,) whether each is near no person
    tracks: evaluation.TrackingScore
    cpu_s: float  # of the detector


def run_draw(folder: Path, seed: int, truth: dict[int, np.ndarray], pictures: Path | None) -> DrawResult:
    detector = MotionDetector(seed=seed)
    prompt = detector.prepare([ANYTHING_THAT_MOVES])
    tracker, number_of_query, thresholds = create_tracker("default"), np.array([0]), np.array([detector.threshold])
    confidences, hits, strays, rows, spent = [], [], [], [], 0.0
    with av.open(folder / "video.mp4") as video:
        for number, frame in enumerate(video.decode(video=0)):
            image = frame.to_ndarray(format="bgr24")
            begun = time.process_time()
            [found] = detector.detect([Request(image, prompt, "pets")])
            spent += time.process_time() - begun
            people = truth.get(number, np.zeros((0, 4)))
            confidences.append(found.confidence)
            hits.append(match(found, people, 0.5))
            near = sv.box_iou_batch(found.xyxy, people) if len(people) and len(found) else np.zeros((len(found), 1))
            strays.append(near.max(1, initial=0) < 0.05)
            tracked = tracker.update(for_tracker(found, number_of_query, thresholds)[0], frame.time)
            edge = np.tile(image.shape[1::-1], 2)
            for box, identity in zip(np.clip(tracked.xyxy, 0, edge), tracked.tracker_id, strict=True):
                rows.append([number + 1, identity, *box[:2], *(box[2:] - box[:2]), 1, -1, -1, -1])
            if pictures and number % 25 == 0:
                annotate(pictures, number, image, found, people)
    name = folder.name
    _, score = evaluation.evaluate(
        {name: evaluation.read_truth(folder)}, {name: np.array(rows)}, {name: mot.read_info(folder)}
    )
    joined = [np.concatenate(parts) for parts in (confidences, hits, strays)]
    return DrawResult(len(hits), *joined, score, spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=10, help="runs with other random draws")
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/results")
    parser.add_argument("--annotate", type=Path, help="a folder for every 25th frame with its boxes")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    truth = read_truth(arguments.folder / "gt.txt")
    if arguments.annotate:
        arguments.annotate.mkdir(parents=True, exist_ok=True)
    draws = [
        run_draw(arguments.folder, seed, truth, None if seed else arguments.annotate) for seed in range(arguments.draws)
    ]
    total, threshold = sum(len(boxes) for boxes in truth.values()), MotionDetector().threshold
    figures = []
    for draw in draws:
        sure = draw.confidence >= threshold
        precision, recall = draw.hit[sure].mean(), draw.hit[sure].sum() / total
        f1 = 2 * precision * recall / (precision + recall)
        figures.append(
            [average_precision(draw.confidence, draw.hit, total), precision, recall, f1, draw.stray[sure].sum()]
        )
    ap, precision, recall, f1, stray = np.mean(figures, axis=0)
    frames, spent = sum(draw.frames for draw in draws), sum(draw.cpu_s for draw in draws)
    scores = np.array([[d.tracks.hota, d.tracks.idf1, d.tracks.mota, d.tracks.id_switches] for d in draws])
    lines = [
        "| frames | people's boxes | AP at IoU 0.5 | precision | recall | F1 | false boxes | frames/s (CPU time) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {draws[0].frames} | {total} | {ap:.3f} | {precision:.3f} | {recall:.3f} "
        f"| {f1:.3f} | {stray:.0f} | {frames / spent:.0f} |",
        "",
        f"Tracks of the default tracker, mean of {len(draws)} runs with other random draws of the background model "
        "(standard deviation, lowest to highest):",
        "",
        "| HOTA | IDF1 | MOTA | identity switches |",
        "| --- | --- | --- | --- |",
        "| "
        + " | ".join(
            f"{column.mean():.1f} ({column.std():.1f}, {column.min():.1f} to {column.max():.1f})" for column in scores.T
        )
        + " |",
    ]
    print("\n".join(lines))
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            "# motion on PETS09-S2L1\n\nWritten by `benchmarks/motion_pets.py`; precision, recall and false boxes "
            "at the detector's own threshold.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
