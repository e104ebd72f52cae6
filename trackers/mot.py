"""MOTChallenge files: `det.txt`, `gt.txt`, `seqinfo.ini`, camera motion `gmc.txt`, and tracks."""

from __future__ import annotations

import configparser
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trackers.boxes import Floats, Ints
from trackers.tracker import TrackerError

DEFAULT_FRAME_RATE = 30.0
MOST_FRAMES = 1_000_000_000
"""Greatest frame number and id: larger ones are something else, such as a time stamp."""
MOST_PIXELS = 10_000_000
"""Greatest coordinate of a box, in pixels."""
LONGEST_SEQUENCE = 10_000_000
"""Frames of the longest sequence that can be scored."""


class MotFileError(TrackerError, ValueError):
    """A MOTChallenge file cannot be read; the text says what was found and what is expected."""


class MotWriteError(TrackerError):
    """A file cannot be written."""


@dataclass(frozen=True)
class SequenceInfo:
    """Content of `seqinfo.ini`; `length` is the number of frames, `benchmark` names the scoring rules."""

    name: str
    frame_rate: float
    length: int
    width: int
    height: int
    benchmark: str = ""


def read_rows(path: Path, columns: int, *, are_boxes: bool = True) -> Floats:
    """(N, columns) numbers of a comma-separated file, sorted by their first column (the frame, from 1).

    Where they `are_boxes`, columns 1 to 5 are id, left, top, width and height, and are checked as such. Raises
    `MotFileError` that names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MotFileError(f"{path} cannot be read as text ({error})") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.replace(",", " ").split()][:columns]
        except ValueError:
            row = []
        mistake = _mistake_of(row, columns, are_boxes=are_boxes)
        if mistake:
            raise MotFileError(f"{path}, line {number} is {line[:80]!r}: {mistake}")
        rows.append(row)
    table = np.array(rows, dtype=np.float64).reshape(-1, columns)
    return table[np.argsort(table[:, 0], kind="stable")]


def _mistake_of(row: list[float], columns: int, *, are_boxes: bool) -> str:
    """Sentence on the first mistake in the numbers of a line; empty without one."""
    if len(row) < columns:
        return f"expected {columns} or more numbers, separated by commas"
    if not all(math.isfinite(value) for value in row):
        return "expected finite numbers"
    if row[0] != int(row[0]) or not 1 <= row[0] <= MOST_FRAMES:
        return f"expected a whole frame number from 1 to {MOST_FRAMES:,} in the first column"
    if not are_boxes:
        return ""
    if row[1] != int(row[1]) or abs(row[1]) > MOST_FRAMES:
        return "expected a whole number as the id in the second column"
    if max(map(abs, row[2:6])) > MOST_PIXELS:
        return f"expected left, top, width and height in pixels, up to {MOST_PIXELS:,}"
    return "" if min(row[4:6]) >= 0 else "expected a width and a height from 0 on"


def frames_of(rows: Floats) -> Iterator[tuple[int, Floats]]:
    """The frames that have rows, in order: number and rows (n, columns)."""
    numbers, starts = np.unique(rows[:, 0], return_index=True)
    for number, part in zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True):
        yield int(number), part


def by_frame(rows: Floats, length: int) -> list[Floats]:
    """The rows of frame 1, 2, ... `length`, each (n, columns); rows of later frames are left out."""
    ends = np.searchsorted(rows[:, 0], np.arange(1, length + 2))
    return [rows[start:stop] for start, stop in itertools.pairwise(ends)]


def read_info(folder: Path) -> SequenceInfo:
    """Reads `folder/seqinfo.ini`."""
    path = folder / "seqinfo.ini"
    parser = configparser.ConfigParser()
    try:
        parser.read_string(path.read_text())
        part = parser["Sequence"]
        return SequenceInfo(
            name=part.get("name", folder.name),
            frame_rate=_positive(part.getfloat("frameRate", DEFAULT_FRAME_RATE)),
            length=_length(part.getint("seqLength", 0)),
            width=part.getint("imWidth", 0),
            height=part.getint("imHeight", 0),
            benchmark=parser.get("Bench", "benchmark", fallback=""),
        )
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, ValueError) as error:
        raise MotFileError(f"{path} cannot be used as a seqinfo.ini with a [Sequence] part ({error})") from error


def _length(frames: int) -> int:
    if not 0 <= frames <= LONGEST_SEQUENCE:
        raise ValueError(f"seqLength is {frames}: expected 0 to {LONGEST_SEQUENCE:,}")
    return frames


def _positive(frame_rate: float) -> float:
    if not 0 < frame_rate < float("inf"):
        raise ValueError(f"frameRate is {frame_rate:g}")
    return frame_rate


def read_camera(path: Path) -> dict[int, Floats]:
    """Camera motion (2, 3) from the frame before to each frame, by frame."""
    return {int(row[0]): row[1:].reshape(2, 3) for row in read_rows(path, 7, are_boxes=False)}


def to_corners(rows: Floats) -> Floats:
    """(N, 4) `x1, y1, x2, y2` of rows `frame, id, left, top, width, height, ...`."""
    return np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1)


def track_lines(frame: int, ids: Ints, boxes: Floats, scores: Floats) -> Iterator[str]:
    """Lines of a tracks file for one frame; `boxes` are (N, 4) corners."""
    for number, (x1, y1, x2, y2), score in zip(ids, boxes, scores, strict=True):
        yield f"{frame},{number},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},-1,-1,-1\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Raises `MotWriteError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    except OSError as error:
        raise MotWriteError(f"{path} cannot be written ({error.strerror or error})") from error


def find(folder: Path, kind: str) -> Path | None:
    """`det.txt`, `gt.txt` or `gmc.txt` of a sequence: beside `seqinfo.ini`, or in a folder of that name."""
    for path in (folder / f"{kind}.txt", folder / kind / f"{kind}.txt"):
        if path.is_file():
            return path
    return None


def sequence_folders(folder: Path, kind: str) -> list[Path]:
    """The sequences in a folder that have a file of this kind, by name; the folder itself when it is one."""
    if not folder.is_dir():
        raise MotFileError(f"{folder} is not a folder: give one that holds sequences")
    if find(folder, kind) is not None:
        return [folder]
    found = sorted(inner for inner in folder.iterdir() if inner.is_dir() and find(inner, kind) is not None)
    if not found:
        raise MotFileError(f"{folder} holds no sequence: expected SEQUENCE/{kind}.txt or SEQUENCE/{kind}/{kind}.txt")
    return found
