"""The `detect` command: finds queries in picture files, prints the detections and draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from rich.table import Table

from detectors import Request
from detectors.phrases import Phrase, prepare_sentence, require_phrases
from streamer.analysis.label_scores import sure_detections
from streamer.detector_choice import DetectorChoice
from streamer.errors import ConfigError, StreamerError
from streamer.sources.picture import PictureError, read_picture
from streamer.tasks.console import make_folder, report_line, user_console

if TYPE_CHECKING:
    import supervision as sv

Image = npt.NDArray[np.uint8]
_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def detect(
    images: Sequence[Path],
    queries: Sequence[str],
    choice: DetectorChoice,
    *,
    batch: int,
    out: Path | None,
    as_json: bool,
    sentence: str | None = None,
) -> bool:
    """Detect and print; returns whether every picture could be read. Raises `PictureError` when none could.

    With a sentence in place of queries, the things that it names are detected, each in its place in the sentence.
    A picture that cannot be read is reported on standard error and does not stop the others.
    """
    phrases = _phrases_of(sentence, queries)
    targets = [None] * len(images) if out is None else output_files(images, out)
    model = choice.load(queries)
    prompt = model.prepare(queries) if sentence is None else prepare_sentence(model, sentence, phrases)
    results: list[sv.Detections | PictureError] = []
    console = user_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for start in progress.track(range(0, len(images), batch), description="detecting"):
            read = [_try_to_read(file) for file in images[start : start + batch]]
            requests = [
                Request(picture, prompt, str(file))
                for picture, file in zip(read, images[start:], strict=False)
                if not isinstance(picture, PictureError)
            ]
            found = iter(model.detect(requests) if requests else [])
            for picture, target in zip(read, targets[start:], strict=False):
                if isinstance(picture, PictureError):
                    results.append(picture)
                    report_line(str(picture))
                    continue
                each = sure_detections(next(found), model.threshold)
                results.append(each)
                if target is not None:
                    write_picture(target, draw_detections(picture, each))
    failures = [result for result in results if isinstance(result, PictureError)]
    if len(failures) == len(images):
        raise failures[0]
    if as_json:
        plain = [_plain_result(file, each, sentence, phrases) for file, each in zip(images, results, strict=True)]
        print(json.dumps(plain, indent=2))  # noqa: T201 - the output asked for
    else:
        if sentence is not None:
            user_console().print(f"phrases: {', '.join(phrase.text for phrase in phrases)}")
        _print_table(images, results)
    return not failures


def _phrases_of(sentence: str | None, queries: Sequence[str]) -> tuple[Phrase, ...]:
    """The phrases of the sentence, none without one. Raises `ConfigError` unless either it or queries are given."""
    if (sentence is None) != bool(queries):
        problem = "both queries and a sentence are given" if queries else "neither a query nor a sentence is given"
        raise ConfigError(f"{problem}: use --query WORDS, or --sentence TEXT")
    return () if sentence is None else require_phrases(sentence)


def _try_to_read(file: Path) -> Image | PictureError:
    try:
        return read_picture(file)
    except PictureError as error:
        return error


def draw_detections(image: Image, found: sv.Detections) -> Image:
    """A copy of the picture with the box, the query and the score of each detection."""
    import supervision as sv

    labels = [f"{name} {score:.2f}" for _, name, score in _detection_rows(found)]
    masked = image.copy() if found.mask is None else sv.MaskAnnotator().annotate(image.copy(), found)
    boxed = sv.BoxAnnotator().annotate(masked, found)
    return np.asarray(sv.LabelAnnotator().annotate(boxed, found, labels), np.uint8)


def _detection_rows(found: sv.Detections) -> Iterator[tuple[list[float], str, float]]:
    assert found.confidence is not None
    for box, name, score in zip(found.xyxy, found.data["class_name"], found.confidence, strict=True):
        yield [round(float(value), 1) for value in box], str(name), float(score)


def _plain_result(
    file: Path, found: sv.Detections | PictureError, sentence: str | None, phrases: Sequence[Phrase]
) -> dict[str, Any]:
    from streamer.rules.mask_rle import mask_model

    if isinstance(found, PictureError):
        return {"image": str(file), "error": str(found), "detections": []}
    rows: list[dict[str, Any]] = [
        {"query": name, "confidence": round(score, 4), "box": box} for box, name, score in _detection_rows(found)
    ]
    if found.mask is not None:
        for row, mask in zip(rows, np.asarray(found.mask, np.bool_), strict=True):
            row["mask"] = mask_model(mask).model_dump()
    if sentence is None:
        return {"image": str(file), "detections": rows}
    assert found.class_id is not None
    for row, number in zip(rows, found.class_id, strict=True):
        row["spans"] = [list(span) for span in phrases[number].spans]
    named = [{"text": phrase.text, "spans": [list(span) for span in phrase.spans]} for phrase in phrases]
    return {"image": str(file), "sentence": sentence, "phrases": named, "detections": rows}


def _print_table(images: Sequence[Path], results: Sequence[sv.Detections | PictureError]) -> None:
    table = Table("image", "query", "score", "x1", "y1", "x2", "y2", box=None)
    for file, found in zip(images, results, strict=True):
        if isinstance(found, PictureError):
            continue
        for box, name, score in _detection_rows(found):
            table.add_row(str(file), name, f"{score:.2f}", *(f"{value:.0f}" for value in box))
        if not len(found):
            table.add_row(str(file), "-", "", "", "", "", "")
    user_console().print(table)


def output_files(images: Sequence[Path], out: Path) -> list[Path]:
    """A file in `out` for each picture's result; equal names are numbered.

    Makes the folder. Raises `ConfigError` when a result would overwrite one of the pictures.
    """
    names: list[str] = []
    for file in images:
        suffix = file.suffix.lower()
        base = file.stem + (suffix if suffix in _KEPT_SUFFIXES else ".png")
        name, number = base, len(names) + 1
        while name in names:
            name, number = f"{number}-{base}", number + 1
        names.append(name)
    targets = [make_folder(out) / name for name in names]
    inputs = {file.resolve() for file in images}
    for target in targets:
        if target.resolve() in inputs:
            raise ConfigError(f"cannot write results into {out}: {target} is one of the pictures; choose another --out")
    return targets


def write_picture(file: Path, image: Image) -> None:
    """Writes a picture in the format of the file's suffix. Raises `StreamerError` when that fails."""
    try:
        written = cv2.imwrite(str(file), image)
    except cv2.error:
        written = False
    if not written:
        raise StreamerError(f"cannot write the picture {file}: check that the folder is writable and the disk not full")
