"""A teacher labels videos, a student learns from them: glip-mini and its copy at half the size.

    python benchmarks/mini_student.py [--weights FOLDER] [--epochs 8]

`groundstream annotate` labels frames of unlabelled streets, `groundstream tune` fits a glip-mini that
sees pictures at 320x192, a quarter of the pixels. All three (teacher, the small one as it was, the student) are marked
against the truth of other streets. Writes results/mini_student.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.glip_mini.examination import truth_row
from streamer.street import sample_picture
from streamer.street.words import KINDS

RESULTS = Path(__file__).parent / "results" / "mini_student.md"
SEED, STREETS, SECONDS = 8_400_001, 4, 120  # what is labelled: a frame every two seconds
MARKED, PICTURES = 8_500_001, 150


def groundstream(*arguments: object) -> str:
    command = [sys.executable, "-m", "streamer.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def marks(weights: Path | None, short_side: int | None, pictures: list[Any]) -> tuple[float, float, float]:
    """AP, AP50 of the kinds, and milliseconds for a picture."""
    from detectors import Request, create_detector
    from detectors.evaluation import coco_score

    given: dict[str, Any] = {} if weights is None else {"weights": weights}
    if short_side is not None:
        given["short_side"] = short_side
    detector = create_detector("glip-mini", **given)
    prompt = detector.prepare(KINDS)
    detector.detect([Request(pictures[0].image, prompt)])
    boxes: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    spent = 0.0
    for number, picture in enumerate(pictures, 1):
        boxes += [truth_row(one, number, KINDS.index(one.thing.kind) + 1) for one in picture.truth.seen]
        started = time.perf_counter()
        (seen,) = detector.detect([Request(picture.image, prompt)])
        spent += time.perf_counter() - started
        for (x1, y1, x2, y2), score, label in zip(
            seen.xyxy.tolist(), seen.confidence.tolist(), seen.class_id.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": number, "category_id": label + 1, "bbox": box, "score": score})
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    images = [{"id": number} for number in range(1, len(pictures) + 1)]
    score = coco_score({"images": images, "annotations": boxes, "categories": categories}, found)
    return score.ap, score.ap50, spent / len(pictures) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    weights = [] if options.weights is None else ["--weights", options.weights]
    queries = [part for kind in KINDS for part in ("--query", kind)]
    streets = [f"synthetic:street?seed={SEED + n}&fps=1&duration={SECONDS}" for n in range(STREETS)]
    with tempfile.TemporaryDirectory() as name:
        data, student = Path(name) / "data", Path(name) / "student"
        groundstream("annotate", *streets, *queries, "--detector", "glip-mini", *weights, "--fps", 0.5, "--out", data)
        labels = data / "annotations.json"
        written = json.loads(labels.read_text())
        learning = ("--mode", "full", "--short-side", 192, "--epochs", options.epochs, "--rate", 3e-4)
        reported = groundstream("tune", labels, "--model", "glip-mini", *weights, *learning, "--out", student, "--json")
        pictures = [sample_picture(MARKED, index) for index in range(PICTURES)]
        rows = {
            "teacher, 640x384": marks(options.weights, None, pictures),
            "the same at 320x192": marks(options.weights, 192, pictures),
            "student, 320x192": marks(student, None, pictures),
        }
    lines = [
        "# A student of glip-mini",
        "",
        f"`benchmarks/mini_student.py --epochs {options.epochs}`: {len(written['images'])} frames with "
        f"{len(written['annotations'])} boxes labelled by the teacher; marked on {PICTURES} other pictures against the "
        f"truth. AP against the teacher's labels: {json.loads(reported)['ap']:.3f}.",
        "",
        "| who | AP | AP50 | ms a picture |",
        "| --- | --- | --- | --- |",
        *(f"| {who} | {ap:.3f} | {ap50:.3f} | {spent:.0f} |" for who, (ap, ap50, spent) in rows.items()),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
