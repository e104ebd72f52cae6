"""The motion detector against people's boxes in a real video: precision, recall, average precision, speed.

    python benchmarks/motion_pets.py FOLDER [--write] [--annotate DIR]

FOLDER holds `video.mp4` and `gt.txt` as MOTChallenge writes it (PETS09-S2L1). Run it on one core to compare speeds.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import av
import cv2
import numpy as np
import supervision as sv

from detectors import Request, create_detector
from detectors.registry import ANYTHING_THAT_MOVES

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results")
    parser.add_argument("--annotate", type=Path, help="a folder for every 25th frame with its boxes")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    truth = read_truth(arguments.folder / "gt.txt")
    detector = create_detector("motion")
    prompt = detector.prepare([ANYTHING_THAT_MOVES])
    if arguments.annotate:
        arguments.annotate.mkdir(parents=True, exist_ok=True)
    confidences, hits, strays, spent = [], [], [], 0.0
    with av.open(arguments.folder / "video.mp4") as video:
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
            if arguments.annotate and number % 25 == 0:
                annotate(arguments.annotate, number, image, found, people)
    frames, total = len(hits), sum(len(boxes) for boxes in truth.values())
    confidence, hit, stray = np.concatenate(confidences), np.concatenate(hits), np.concatenate(strays)
    sure = confidence >= detector.threshold
    precision, recall = hit[sure].mean(), hit[sure].sum() / total
    lines = [
        "| frames | people's boxes | AP at IoU 0.5 | precision | recall | F1 | false boxes | frames/s (CPU time) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {frames} | {total} | {average_precision(confidence, hit, total):.3f} | {precision:.3f} | {recall:.3f} "
        f"| {2 * precision * recall / (precision + recall):.3f} | {stray[sure].sum()} | {frames / spent:.0f} |",
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
