"""What `groundstream detect` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from detectors import Request, create_detector
from streamer.analysis.label_scores import sure
from streamer.errors import StreamerError
from streamer.sources.picture import read_picture

if TYPE_CHECKING:
    import supervision as sv

Image = npt.NDArray[np.uint8]


def detect(
    images: Sequence[Path],
    queries: Sequence[str],
    detector: str,
    weights: Path | None,
    threshold: float | None,
    *,
    batch: int,
    out: Path | None,
    as_json: bool,
) -> None:
    options: dict[str, Any] = {"weights": weights, "threshold": threshold}
    model = create_detector(detector, **{key: value for key, value in options.items() if value is not None})
    prompt = model.prepare(queries)
    if out is not None:
        _make_folder(out)
    results: list[sv.Detections] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for start in progress.track(range(0, len(images), batch), description="detecting"):
            files = images[start : start + batch]
            pictures = [read_picture(file) for file in files]
            found = model.detect(
                [Request(picture, prompt, str(file)) for picture, file in zip(pictures, files, strict=True)]
            )
            found = [sure(each, model.threshold) for each in found]
            results.extend(found)
            if out is not None:
                for file, picture, each in zip(_names(images)[start:], pictures, found, strict=False):
                    _write(out / file, draw(picture, each))
    if as_json:
        print(json.dumps([_plain(file, each) for file, each in zip(images, results, strict=True)], indent=2))  # noqa: T201 - the output asked for
    else:
        _print_table(images, results)


def draw(image: Image, found: sv.Detections) -> Image:
    """The picture with a box, the words and the score of each detection."""
    import supervision as sv

    labels = [f"{name} {score:.2f}" for _, name, score in _rows(found)]
    boxed = sv.BoxAnnotator().annotate(image.copy(), found)
    return np.asarray(sv.LabelAnnotator().annotate(boxed, found, labels), np.uint8)


def _rows(found: sv.Detections) -> Iterator[tuple[list[float], str, float]]:
    assert found.confidence is not None
    for box, name, score in zip(found.xyxy, found.data["class_name"], found.confidence, strict=True):
        yield [round(float(value), 1) for value in box], str(name), float(score)


def _plain(file: Path, found: sv.Detections) -> dict[str, Any]:
    return {
        "image": str(file),
        "detections": [{"query": name, "confidence": round(score, 4), "box": box} for box, name, score in _rows(found)],
    }


def _print_table(images: Sequence[Path], results: Sequence[sv.Detections]) -> None:
    table = Table("image", "query", "score", "x1", "y1", "x2", "y2", box=None)
    for file, found in zip(images, results, strict=True):
        for box, name, score in _rows(found):
            table.add_row(str(file), name, f"{score:.2f}", *(f"{value:.0f}" for value in box))
        if not len(found):
            table.add_row(str(file), "-", "", "", "", "", "")
    Console().print(table)


def _names(images: Sequence[Path]) -> list[str]:
    """A file name for each annotated picture; pictures of one name from several folders are numbered."""
    names = [
        file.stem + (file.suffix.lower() if file.suffix.lower() in {".jpg", ".png", ".webp"} else ".png")
        for file in images
    ]
    return [name if names.index(name) == place else f"{place + 1}-{name}" for place, name in enumerate(names)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StreamerError(f"the folder {folder} cannot be made: {error.strerror}") from None


def _write(file: Path, image: Image) -> None:
    try:
        written = cv2.imwrite(str(file), image)
    except cv2.error:
        written = False
    if not written:
        raise StreamerError(f"the picture {file} cannot be written: is the folder writable, the disk full?")
