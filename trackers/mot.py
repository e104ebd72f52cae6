"""Files of the MOTChallenge: `det.txt`, `gt.txt`, `seqinfo.ini`, camera motion `gmc.txt`, and tracks."""

from __future__ import annotations

import configparser
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trackers.boxes import Floats, Ints
from trackers.tracker import TrackerError

DEFAULT_FRAME_RATE = 30.0


class MotFileError(TrackerError, ValueError):
    """A MOTChallenge file cannot be read: what was found and what belongs there."""


class MotWriteError(TrackerError):
    """A file cannot be written."""


@dataclass(frozen=True)
class SequenceInfo:
    """What `seqinfo.ini` tells; `length` is the number of frames, `benchmark` names the scoring rules."""

    name: str
    frame_rate: float
    length: int
    width: int
    height: int
    benchmark: str = ""


def read_rows(path: Path, columns: int) -> Floats:
    """(N, columns) numbers of a comma-separated file, sorted by their first column (the frame, from 1)."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MotFileError(f"{path} cannot be read as text ({error})") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            row = []
        if len(row) < columns:
            raise MotFileError(f"{path}, line {number} is {line[:80]!r}: expected {columns} or more numbers, by commas")
        if row[0] < 1 or row[0] != int(row[0]):
            raise MotFileError(f"{path}, line {number} starts with {row[0]:g}: frames are whole numbers from 1 on")
        rows.append(row[:columns])
    table = np.array(rows, dtype=np.float64).reshape(-1, columns)
    return table[np.argsort(table[:, 0], kind="stable")]


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
            length=part.getint("seqLength", 0),
            width=part.getint("imWidth", 0),
            height=part.getint("imHeight", 0),
            benchmark=parser.get("Bench", "benchmark", fallback=""),
        )
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, ValueError) as error:
        raise MotFileError(f"{path} cannot be used as a seqinfo.ini with a [Sequence] part ({error})") from error


def _positive(frame_rate: float) -> float:
    if not 0 < frame_rate < float("inf"):
        raise ValueError(f"frameRate is {frame_rate:g}")
    return frame_rate


def read_camera(path: Path) -> dict[int, Floats]:
    """Camera motion (2, 3) from the frame before to each frame, by frame."""
    return {int(row[0]): row[1:].reshape(2, 3) for row in read_rows(path, 7)}


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
        raise MotFileError(f"{folder} is no folder: give one that holds sequences")
    if find(folder, kind) is not None:
        return [folder]
    found = sorted(inner for inner in folder.iterdir() if inner.is_dir() and find(inner, kind) is not None)
    if not found:
        raise MotFileError(f"{folder} holds no sequence: expected SEQUENCE/{kind}.txt or SEQUENCE/{kind}/{kind}.txt")
    return found
