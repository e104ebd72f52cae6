"""Detections of a recording that were made in parts: their files, and the detector that gives them back."""

from __future__ import annotations

import os
import secrets
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv

from detectors import Detector, Prompt, Request
from detectors.detector import clean_queries, detections

_CLASS_NAME = "class_name"
_DATA = "data/"


def picture_checksum(image: npt.NDArray[np.uint8]) -> int:
    """A checksum of the pixels of an image, (height, width, 3), and of its size."""
    size = f"{image.shape[1]}x{image.shape[0]}".encode()
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(size))


class DetectionWriter:
    """Collects the detections of some pictures in order; `save` writes them to one file."""

    def __init__(self, threshold: float, queries: Sequence[str]) -> None:
        self._threshold = threshold
        self._queries = list(queries)
        self._checksums: list[int] = []
        self._found: list[sv.Detections] = []

    def add(self, image: npt.NDArray[np.uint8], found: sv.Detections) -> None:
        self._checksums.append(picture_checksum(image))
        self._found.append(found)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all. Raises `OSError`."""
        arrays: dict[str, Any] = {
            "threshold": np.float64(self._threshold),
            "queries": np.asarray(self._queries, dtype=np.str_),
            "checksums": np.asarray(self._checksums, dtype=np.uint32),
            "counts": np.asarray([len(found) for found in self._found], dtype=np.int64),
            "xyxy": _joined([found.xyxy for found in self._found], (0, 4), np.float32),
            "confidence": _joined([found.confidence for found in self._found], (0,), np.float32),
            "class_id": _joined([found.class_id for found in self._found], (0,), np.int64),
        }
        for key in sorted({key for found in self._found for key in found.data} - {_CLASS_NAME}):
            arrays[_DATA + key] = _joined([found.data[key] for found in self._found if len(found)], (0,), np.float32)
        for number, found in enumerate(self._found):
            if found.mask is not None and len(found):
                mask = np.asarray(found.mask, dtype=bool)
                arrays[f"mask/{number}"] = np.packbits(mask)
                arrays[f"mask_shape/{number}"] = np.asarray(mask.shape)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _joined(parts: Sequence[Any], empty: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(empty, kind)


def read_detections(path: Path) -> Iterator[tuple[int, sv.Detections]]:
    """The checksum of each picture in a file, and its detections. Raises `OSError` and `ValueError`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    queries = [str(query) for query in arrays["queries"]]
    start = 0
    for number, (checksum, count) in enumerate(zip(arrays["checksums"], arrays["counts"], strict=True)):
        rows = slice(start, start + int(count))
        start += int(count)
        mask = None
        if f"mask/{number}" in arrays:
            shape = arrays[f"mask_shape/{number}"]
            mask = np.unpackbits(arrays[f"mask/{number}"], count=int(shape.prod())).astype(bool).reshape(shape)
        found = detections(
            arrays["xyxy"][rows], arrays["confidence"][rows], arrays["class_id"][rows], queries, mask=mask
        )
        for name, values in arrays.items():
            if name.startswith(_DATA):
                found.data[name.removeprefix(_DATA)] = values[rows]
        yield int(checksum), found


class StoredDetector:
    """Gives back stored detections for the pictures that they were made of; others go to the detector itself.

    A stored result is used only where every picture of a batch is the expected one by its checksum, so results are
    those of the detector, whatever is in the files. The detector is loaded when the first picture needs it.
    """

    def __init__(self, name: str, paths: Sequence[Path], load: Callable[[], Detector]) -> None:
        """`paths` are files of `DetectionWriter` in the order of the recording. Raises `OSError`, `ValueError`."""
        self.name = name
        self.detected_again = 0
        self._load = load
        self._waiting = deque(paths)
        self._stored: deque[tuple[int, sv.Detections]] = deque()
        with np.load(paths[0], allow_pickle=False) as file:
            self._threshold = float(file["threshold"])
        self._detector: Detector | None = None

    @property
    def threshold(self) -> float:
        return self._threshold

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(clean_queries(queries, free_words=False))

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        stored = self._take(len(requests))
        expected = [checksum for checksum, _ in stored]
        if expected == [picture_checksum(request.image) for request in requests]:
            return [found for _, found in stored]
        self.detected_again += len(requests)
        if self._detector is None:
            self._detector = self._load()
        prompt = self._detector.prepare(requests[0].prompt.queries)
        return self._detector.detect(
            [Request(request.image, prompt, request.stream, request.thresholds) for request in requests]
        )

    def _take(self, count: int) -> list[tuple[int, sv.Detections]]:
        while len(self._stored) < count and self._waiting:
            self._stored.extend(read_detections(self._waiting.popleft()))
        return [self._stored.popleft() for _ in range(min(count, len(self._stored)))]
