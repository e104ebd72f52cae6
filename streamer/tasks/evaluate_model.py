"""Detections of a model over a data set, for `evaluate detection` and `evaluate grounding`: with progress and resume.

What is found in a picture is appended to `OUT.partial`; an interrupted run continues there. The complete results are
COCO's: `[{image_id, category_id, bbox, score}]`, with `phrase` and `tokens_positive` for grounding.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from detectors import Detector, Prompt, PromptError, Request
from detectors.coco_data import check_pictures, read_data_set
from detectors.data_files import DataSetError
from detectors.flickr import is_flickr, read_flickr
from detectors.phrases import Phrase, Span, TextGrounder, prepare_sentence
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError, StreamerError
from streamer.sources.picture import read_picture
from streamer.tasks.closing import SignalWatch
from streamer.tasks.console import make_folder, report_line, user_console, write_text

_MOST_PER_PHRASE = 100  # boxes, the surest; scores of grounding use ten
_SHOWN = 5  # captions that the model refuses, reported one by one


@dataclass(frozen=True)
class ModelRun:
    """A model to run over the pictures of a data set; `out` is the file of results."""

    truth: Path
    images: Path
    choice: DetectorChoice
    out: Path
    batch: int = 4

    @property
    def partial(self) -> Path:
        """The file that an unfinished run writes."""
        return self.out.with_name(f"{self.out.name}.partial")


class _AskedPhrase(NamedTuple):
    """A phrase of a caption and the category of its annotations."""

    phrase: Phrase
    category: Any


def read_truth(path: Path) -> dict[str, Any]:
    """A data set in COCO's or LVIS's form, or Flickr30k Entities as published. Raises `DataSetError`."""
    return read_flickr(path) if is_flickr(path) else read_data_set(path)


def run_detection(run: ModelRun, data: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Detects the categories of the data set in its pictures; None when it was interrupted."""
    queries = _category_queries(data, tuned=run.choice.tuned is not None)
    work = _ModelWork(run, data, "detection", tuple(queries))
    prompt = work.detector.prepare(list(queries))
    ids = list(queries.values())

    def rows_of(image: Mapping[str, Any], found: Any) -> list[dict[str, Any]]:
        return [
            {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            for box, score, number in _plain_rows(found)
            for category in ids[number]
        ]

    return work.run_all(lambda image: prompt, rows_of)


def run_grounding(run: ModelRun, data: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Grounds the phrases of each image's caption; None when it was interrupted."""
    named = _phrases_by_image(data)
    work = _ModelWork(run, data, "grounding", ())
    phrases = named if isinstance(work.detector, TextGrounder) else {i: _merge_equal(own) for i, own in named.items()}
    refused = 0

    def prompt_of(image: Mapping[str, Any]) -> Prompt | None:
        nonlocal refused
        if not phrases[image["id"]]:
            return None
        try:
            return prepare_sentence(work.detector, image["caption"], [own[0].phrase for own in phrases[image["id"]]])
        except PromptError as error:
            refused += 1
            if refused <= _SHOWN:
                report_line(f"image {image['id']!r} counts as without results: {error}")
            return None

    def rows_of(image: Mapping[str, Any], found: Any) -> list[dict[str, Any]]:
        kept: dict[int, int] = {}
        rows = []
        for box, score, number in _plain_rows(found):
            kept[number] = kept.get(number, 0) + 1
            if kept[number] <= _MOST_PER_PHRASE:
                rows += [
                    {
                        "image_id": image["id"],
                        "category_id": asked.category,
                        "bbox": box,
                        "score": score,
                        "phrase": asked.phrase.text,
                        "tokens_positive": [list(span) for span in asked.phrase.spans],
                    }
                    for asked in phrases[image["id"]][number]
                ]
        return rows

    results = work.run_all(prompt_of, rows_of)
    if refused:
        report_line(f"{refused} captions could not be read by the model: their phrases count as not found")
    return results


class _ModelWork:
    """One run: pictures in, rows of results out, kept in the partial file."""

    def __init__(self, run: ModelRun, data: Mapping[str, Any], task: str, queries: Sequence[str]) -> None:
        self._run = run
        self._images = _with_file_names(data, run.images)
        self._as_stored = check_pictures({"images": self._images}, run.images, run.truth)
        if run.out.exists():
            raise ConfigError(
                f"{run.out} exists: score it with `evaluate {task} {run.truth} {run.out}`, remove it, "
                "or choose another --out"
            )
        self._settings = {
            "task": task,
            "truth": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
            "detector": {name: str(value) for name, value in sorted(run.choice.section().items())},
        }
        self._done = _read_partial(run.partial, self._settings)
        self.detector: Detector = run.choice.load(queries)

    def run_all(self, prompt_of: Any, rows_of: Any) -> list[dict[str, Any]] | None:
        """`prompt_of(image)` is an image's prompt, None where nothing is asked; `rows_of(image, found)` its results."""
        run, stop = self._run, threading.Event()
        make_folder(run.out.parent)
        waiting = [image for image in self._images if image["id"] not in self._done]
        if self._done:
            report_line(f"{run.partial}: {len(self._done)} of {len(self._images)} images are done; going on")
        console = user_console(stderr=True)
        try:
            file = run.partial.open("a", encoding="utf-8")
        except OSError as error:
            raise StreamerError(f"cannot write {run.partial}: {error.strerror}; choose another --out") from error
        with file, SignalWatch(stop.set), Progress(console=console, disable=not console.is_terminal) as progress:
            if not file.tell():
                file.write(json.dumps(self._settings) + "\n")
            for start in progress.track(range(0, len(waiting), run.batch), description="images"):
                for image, rows in self._detect_images(waiting[start : start + run.batch], prompt_of, rows_of):
                    self._done[image["id"]] = rows
                    file.write(json.dumps({"image": image["id"], "rows": rows}) + "\n")
                file.flush()
                if stop.is_set():
                    report_line(
                        f"interrupted: {len(self._done)} of {len(self._images)} images are in {run.partial}; "
                        "the same command goes on from there"
                    )
                    return None
        results = [row for image in self._images for row in self._done[image["id"]]]
        write_text(run.out, json.dumps(results))
        run.partial.unlink()
        return results

    def _detect_images(
        self, images: Sequence[Mapping[str, Any]], prompt_of: Any, rows_of: Any
    ) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
        prompts = [(image, prompt_of(image)) for image in images]
        asked = [
            (image, Request(self._read_image(image), prompt, str(image["id"]), [0.0] * len(prompt.queries)))
            for image, prompt in prompts
            if prompt is not None
        ]
        found = iter(self.detector.detect([request for _, request in asked]) if asked else ())
        for image, prompt in prompts:
            yield image, [] if prompt is None else rows_of(image, next(found))

    def _read_image(self, image: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        return read_picture(self._run.images / image["file_name"], as_stored=self._as_stored[image["id"]])


def _read_partial(path: Path, settings: Mapping[str, Any]) -> dict[Any, list[dict[str, Any]]]:
    """What an earlier run of the same settings found, by image. Raises `ConfigError` for one of other settings."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        rows = [json.loads(line) for line in whole]
        if not rows or rows[0] != settings:
            raise ConfigError(f"{path} is of another data set, model or options: remove it, or choose another --out")
        done = {row["image"]: row["rows"] for row in rows[1:]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it to begin from the first image") from error
    if len(whole) < len(lines):  # a line that was cut off by a crash
        path.write_text("".join(whole), encoding="utf-8")
    return done


def _category_queries(data: Mapping[str, Any], *, tuned: bool) -> dict[str, list[Any]]:
    """Words for the categories of a data set, each with the ids that it stands for.

    Underscores and parentheses, as in LVIS's `bat_(animal)`, are left out, so that names may read alike: what is found
    for such words counts for each of their categories. Tuned words are taken as they are.
    """
    if not data.get("categories"):
        raise DataSetError("the data set has no categories: the model has no names to detect")
    queries: dict[str, list[Any]] = {}
    alike: dict[str, str] = {}
    for category in data["categories"]:
        name = category["name"]
        words = name if tuned else " ".join(re.sub(r"\(.*?\)|[_,;|]", " ", name).split()) or name
        queries.setdefault(alike.setdefault(words.lower(), words), []).append(category["id"])
    return queries


def _merge_equal(phrases: Sequence[Sequence[_AskedPhrase]]) -> list[list[_AskedPhrase]]:
    """Phrases of equal words as one, for detectors that do not read them in their places."""
    merged: dict[str, list[_AskedPhrase]] = {}
    for own in phrases:
        merged.setdefault(own[0].phrase.text.lower(), []).extend(own)
    return list(merged.values())


def _phrases_by_image(data: Mapping[str, Any]) -> dict[Any, list[list[_AskedPhrase]]]:
    """The phrases that have boxes in each image: for each label of a prompt the phrases that it answers, one here."""
    captions = {image["id"]: image.get("caption", "") for image in data["images"]}
    if not any(captions.values()):
        raise DataSetError("the images of the data set have no captions: grounding needs `caption` and phrases")
    found: dict[Any, dict[tuple[Span, ...], _AskedPhrase]] = {image: {} for image in captions}
    for number, row in enumerate(data["annotations"]):
        caption = captions[row["image_id"]]
        spans = tuple((start, end) for start, end in row.get("tokens_positive") or ())
        if not spans and "phrase" in row and (start := caption.lower().find(row["phrase"].lower())) >= 0:
            spans = ((start, start + len(row["phrase"])),)
        if not spans or max(end for _, end in spans) > len(caption):
            raise DataSetError(
                f"annotations[{number}] names no phrase of its image's caption {caption!r:.60}: expected "
                "tokens_positive, [[begin, end], ...] within it, or phrase"
            )
        text = row.get("phrase") or " ".join(caption[start:end] for start, end in spans)
        asked = _AskedPhrase(Phrase(text, spans), row.get("category_id", 1))
        found[row["image_id"]].setdefault(spans, asked)
    return {image: [[asked] for asked in phrases.values()] for image, phrases in found.items()}


def _with_file_names(data: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The images with the files that they have in `folder`: by name, by split and name as in LVIS's addresses."""
    images = []
    for number, image in enumerate(data["images"]):
        name = image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])
        if not name:
            raise DataSetError(f"images[{number}] has neither file_name nor coco_url: the picture cannot be found")
        places = [name, Path(name).name]
        images.append({**image, "file_name": next((one for one in places if (folder / one).is_file()), name)})
    return images


def _plain_rows(found: Any) -> Iterator[tuple[list[float], float, int]]:
    """(x, y, width, height), score and query of each detection."""
    order = np.argsort(-found.confidence, kind="stable")
    for place in order:
        x1, y1, x2, y2 = (round(float(value), 2) for value in found.xyxy[place])
        box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        yield box, round(float(found.confidence[place]), 5), int(found.class_id[place])
