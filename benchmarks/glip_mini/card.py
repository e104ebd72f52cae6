"""What is written beside the weights of glip-mini: the threshold, the model card, and pictures of what it finds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.glip_mini.examination import HELD_OUT, Report, answer_of, examine_at, questions
from streamer.analysis.label_scores import sure_detections
from streamer.street import sample_picture
from streamer.street.dice import SeededDice

if TYPE_CHECKING:
    from detectors import Detector

CARD, SHEET = "README.md", "sheet.jpg"
GOALS = {"phrases": ">= 0.85", "kinds": ">= 0.90", "false_alarms": "<= 0.05", "refused_colours": ">= 0.95"}
THRESHOLDS = tuple(round(0.2 + 0.025 * step, 3) for step in range(25))
_CHOICE = 7_500_001  # the seed of the pictures by which the threshold is chosen: not that of the examination
_MOST_ALARMS, _LEAST_REFUSED = 0.04, 0.96  # in the choice, so that a little is left for other streets
_SHRUNK = 0.6  # of a picture on the sheet
_COLOURS = ((60, 60, 230), (60, 150, 60), (230, 120, 40), (20, 140, 220), (200, 60, 200))  # BGR; five phrases


@dataclass(frozen=True)
class Run:
    """How the weights came to be."""

    steps: int
    minutes: float
    crops: int
    weights: int
    command: str


def finish(folder: Path, run: Run, pictures: int = 200) -> Report:
    """Choose the threshold of the model in `folder`, examine it there and write its card and sheet.

    The threshold is chosen on as many other pictures. Returns the report at it.
    """
    from detectors import create_detector
    from detectors.glip.config import GlipConfig
    from detectors.glip.model_files import CONFIG

    detector = create_detector("glip-mini", weights=folder, threshold=THRESHOLDS[0])
    threshold = choose_threshold(examine_at(answer_of(detector), pictures, THRESHOLDS, seed=_CHOICE))
    config = GlipConfig.read(folder / CONFIG)
    rule = dataclasses.replace(config.postprocess, threshold=threshold)
    (folder / CONFIG).write_text(json.dumps(dataclasses.replace(config, postprocess=rule).to_plain(), indent=2) + "\n")
    around = sorted({*THRESHOLDS[4::4], threshold})
    reports = examine_at(answer_of(detector), pictures, around)
    (folder / CARD).write_text("\n".join(card(run, reports, threshold)) + "\n")
    write_sheet(detector, threshold, folder / SHEET)
    return next(report for report in reports if report.threshold == threshold)


def choose_threshold(reports: Sequence[Report]) -> float:
    """The lowest at which absent phrases and other colours are found seldom enough; the highest where none is."""
    good = [
        report.threshold
        for report in reports
        if report.false_alarms <= _MOST_ALARMS and report.refused_colours >= _LEAST_REFUSED
    ]
    return min(good, default=reports[-1].threshold)


def card(run: Run, reports: Sequence[Report], threshold: float) -> list[str]:
    """Markdown, line by line."""
    return [
        "# glip-mini",
        "",
        f"A small GLIP (Swin, text encoder, deep fusion, dynamic head; {run.weights / 1e6:.1f} million weights) that "
        "knows the words of the synthetic street and nothing else. It is there so that text queries work in the first "
        "minute, on a CPU, without a download, and so that the way from words to events is tested with a model that "
        "has learned. It is of no use on real footage: take `glip-tiny` there.",
        "",
        "* **Data:** pictures painted by `streamer.street`, with phrases of kind, colour, attribute, size and sex that "
        "are true of something in them and phrases that are not (`benchmarks/glip_mini/lessons.py`). No footage, no "
        "other data.",
        f"* **Recipe:** `{run.command}`; Muon for hidden matrices, AdamW for the rest, cosine, bf16, average of the "
        "weights (`benchmarks/glip_mini/train.py`).",
        f"* **Length:** {run.steps} steps, {run.crops} crops of 320x192, or in their place whole pictures and near "
        f"looks at single things, {run.minutes:.0f} minutes.",
        f"* **Threshold:** {threshold}, the lowest at which absent phrases were found in at most {_MOST_ALARMS:.0%} of "
        f"{reports[0].pictures} other pictures, and of the things of a kind that was asked for in another colour at "
        f"least {_LEAST_REFUSED:.0%} were not.",
        "",
        f"## {reports[0].pictures} streets it has not seen, 640x384",
        "",
        *tables(reports),
        "",
        f"![what it finds]({SHEET})",
    ]


def tables(reports: Sequence[Report]) -> list[str]:
    """The figures with their goals, and what depends on the threshold."""
    first = reports[0]
    return [
        "| figure | found | goal |",
        "| --- | --- | --- |",
        f"| AP50 of present phrases | {first.phrases:.3f} | {GOALS['phrases']} |",
        f"| AP50 of kinds alone | {first.kinds:.3f} | {GOALS['kinds']} |",
        *(f"| AP50 of {kind} | {value:.3f} | |" for kind, value in first.by_kind.items()),
        "",
        "| threshold | recall | precision | false alarms | pictures with any | refused colours | right colour |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r.threshold} | {r.recall:.3f} | {r.precision:.3f} | {r.false_alarms:.3f} | {r.alarmed_pictures:.3f} "
            f"| {r.refused_colours:.3f} | {r.right_colour:.3f} |"
            for r in reports
        ),
        "",
        "False alarms: how often an absent phrase was found in a picture; beside it the pictures in which any of the "
        "absent phrases was found, six of them as a rule. Refused colours: of all things of a kind that was asked for "
        "in another colour, those that were not found for it; right colour: of the things of the kind that were found, "
        f"those that have it. Goals: false alarms {GOALS['false_alarms']}, refused colours {GOALS['refused_colours']}.",
    ]


def write_sheet(detector: Detector, threshold: float, path: Path, rows: int = 4, columns: int = 3) -> None:
    """A picture of pictures, each with what was asked and what was found."""
    import cv2

    answer, panels = answer_of(detector), []
    for index in range(rows * columns):
        picture = sample_picture(HELD_OUT, 10_000 + index)
        texts = questions(picture, SeededDice(HELD_OUT, 91, index))
        found = sure_detections(answer(picture.image, texts), threshold)
        assert found.class_id is not None
        image = cv2.resize(picture.image, None, fx=_SHRUNK, fy=_SHRUNK, interpolation=cv2.INTER_AREA)
        for box, label in zip(found.xyxy * _SHRUNK, found.class_id, strict=True):
            x1, y1, x2, y2 = (round(float(edge)) for edge in box)
            cv2.rectangle(image, (x1, y1), (x2, y2), _COLOURS[label], 2)
        legend = np.full((16 * len(texts) + 6, image.shape[1], 3), 255, np.uint8)
        for line, text in enumerate(texts):
            place = 6, 15 + 16 * line
            cv2.putText(legend, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _COLOURS[line], 1, cv2.LINE_AA)
        panels.append(np.vstack([image, legend]))
    tallest = max(panel.shape[0] for panel in panels)
    even = [np.pad(panel, ((0, tallest - len(panel)), (0, 4), (0, 0)), constant_values=255) for panel in panels]
    cv2.imwrite(str(path), np.vstack([np.hstack(even[row * columns : (row + 1) * columns]) for row in range(rows)]))
