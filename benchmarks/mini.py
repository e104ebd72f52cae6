"""glip-mini on streets that it has not seen: what it finds, what it makes up, how fast. Writes results/mini.md.

python benchmarks/mini.py [--pictures 200] [--weights FOLDER] [--sheet results/mini.png]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detectors import Detector
    from streamer.demo.examination import Report

HERE = Path(__file__).parent
THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
SPEEDS = (((320, 192), 5), ((640, 384), 1), ((640, 384), 5), ((640, 384), 10), ((1280, 768), 5))
GOALS = {"phrases": ">= 0.85", "kinds": ">= 0.90", "false_alarms": "<= 0.05", "right_colour": ">= 0.95"}


def main() -> None:
    from detectors import create_detector
    from streamer.demo.examination import answer_of, examine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "mini.md")
    parser.add_argument("--sheet", type=Path, default=HERE / "results" / "mini.png")
    options = parser.parse_args()
    given = {} if options.weights is None else {"weights": options.weights}
    detector = create_detector("glip-mini", **given)
    reports = [examine(answer_of(detector), options.pictures, threshold) for threshold in THRESHOLDS[:1]]
    base = reports[0]
    if base.phrases > 0.2:  # of a network that has learned nothing the other thresholds tell nothing
        reports += [examine(answer_of(detector), options.pictures, threshold) for threshold in THRESHOLDS[1:]]
    lines = [
        "# glip-mini on the synthetic street",
        "",
        f"`benchmarks/mini.py --pictures {options.pictures}`, {platform.machine()}, CPU. Held-out streets, 640x384.",
        "",
        *accuracy(reports),
        "",
        *speed(options.weights),
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sheet(detector, options.sheet)


def accuracy(reports: list[Report]) -> list[str]:
    first = reports[0]
    rows = [f"| AP50 of present phrases | {first.phrases:.3f} | {GOALS['phrases']} |"]
    rows += [f"| AP50 of kinds alone | {first.kinds:.3f} | {GOALS['kinds']} |"]
    rows += [f"| AP50 of {kind} | {value:.3f} | |" for kind, value in first.by_kind.items()]
    table = ["| figure | found | goal |", "| --- | --- | --- |", *rows, ""]
    table += ["| threshold | recall | precision | false alarms | right colour |", "| --- | --- | --- | --- | --- |"]
    table += [
        f"| {r.threshold} | {r.recall:.3f} | {r.precision:.3f} | {r.false_alarms:.3f} | {r.right_colour:.3f} |"
        for r in reports
    ]
    return [*table, "", f"Goals: false alarms {GOALS['false_alarms']}, right colour {GOALS['right_colour']}."]


def speed(weights: Path | None, rounds: int = 20) -> list[str]:
    """The detector alone, by size of the picture and number of queries."""
    import torch

    from detectors import create_detector
    from detectors.glip.speed import measure

    rows = [
        f"{torch.get_num_threads()} threads, {rounds} pictures one by one, the detector alone.",
        "",
        "| picture | queries | ms (median) | ms (p99) | frames/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    given = {} if weights is None else {"weights": weights}
    for (width, height), count in SPEEDS:
        detector = create_detector("glip-mini", short_side=height, long_side=width, **given)
        found = measure(detector, width=width, height=height, batch=1, asked=count, rounds=rounds)
        p50, p99 = found.latency_p50_s * 1e3, found.latency_p99_s * 1e3
        rows.append(f"| {width}x{height} | {count} | {p50:.0f} | {p99:.0f} | {found.frames_per_s:.1f} |")
    return rows


def sheet(detector: Detector, path: Path, rows: int = 4, columns: int = 3) -> None:
    """A picture of pictures, each with what was asked and what was found."""
    import cv2

    from streamer.demo.examination import HELD_OUT, answer_of, questions
    from streamer.street import sample
    from streamer.street.dice import Dice

    answer, panels = answer_of(detector), []
    for index in range(rows * columns):
        picture = sample(HELD_OUT, 10_000 + index)
        image, texts = picture.image.copy(), questions(picture, Dice(HELD_OUT, 91, index))
        found = answer(picture.image, texts)
        found = found[found.confidence >= detector.threshold]
        for box, label in zip(found.xyxy, found.class_id, strict=True):
            colour = tuple(int(v) for v in cv2.applyColorMap(np.uint8([[label * 50]]), cv2.COLORMAP_HSV)[0, 0])
            cv2.rectangle(image, box[:2].astype(int).tolist(), box[2:].astype(int).tolist(), colour, 2)
        for line, text in enumerate(texts):
            colour = tuple(int(v) for v in cv2.applyColorMap(np.uint8([[line * 50]]), cv2.COLORMAP_HSV)[0, 0])
            cv2.putText(image, text, (6, 16 + 16 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3)
            cv2.putText(image, text, (6, 16 + 16 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1)
        panels.append(image)
    grid = np.vstack([np.hstack(panels[row * columns : (row + 1) * columns]) for row in range(rows)])
    cv2.imwrite(str(path), grid)


if __name__ == "__main__":
    main()
