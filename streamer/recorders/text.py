"""Text recorders: files that grow while a job runs, and tracks as MOTChallenge text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

import numpy as np
import supervision as sv

from streamer.errors import StreamerError

if TYPE_CHECKING:
    from streamer.frame import Frame


FinalNumbers = Callable[[], dict[int, int]]
"""Final number of each track that was found to be another one, known when the recording has ended."""

Row = TypeVar("Row")


def unmerged_numbers() -> dict[int, int]:
    """Final numbers where no tracks were merged."""
    return {}


class OutputError(StreamerError):
    """A file or folder cannot be written: no such folder, no permission, disk full."""


def open_output(path: Path) -> TextIO:
    """Opens a text file for writing and makes its folder. Raises `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


class TextOutput:
    """A text file that grows while a job runs. Raises `OutputError`, for example when the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_output(path)

    def _put_line(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _finish_file(self, text: str = "") -> None:
        if self._file.closed:
            return
        try:
            with self._file:
                self._file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _rewrite_lines(self, change: Callable[[Iterable[str]], Iterable[str]]) -> None:
        """Replaces the finished file by the changed lines, one at a time."""
        part = self.path.with_name(self.path.name + ".part")
        try:
            with self.path.open(encoding="utf-8") as old, part.open("w", encoding="utf-8") as new:
                new.writelines(change(old))
            part.replace(self.path)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


def first_of_each(
    rows: Iterable[Row], frame_of: Callable[[Row], Hashable], track_of: Callable[[Row], Hashable]
) -> Iterator[Row]:
    """Rows without those whose track the frame already has; rows of a frame follow one another."""
    frame: Hashable = None
    tracks: set[Hashable] = set()
    for row in rows:
        if frame_of(row) != frame:
            frame, tracks = frame_of(row), set()
        if track_of(row) not in tracks:
            tracks.add(track_of(row))
            yield row


class MotText(TextOutput):
    """`frame,id,left,top,width,height,score,-1,-1,-1` per line, frames from 1, boxes in pixels, as MOTChallenge.

    When it is closed, merged tracks get their final numbers.
    """

    def __init__(self, path: Path, final_numbers: FinalNumbers = unmerged_numbers) -> None:
        super().__init__(path)
        self._final_numbers = final_numbers

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        if not len(tracked):
            return
        assert tracked.tracker_id is not None
        scores = np.ones(len(tracked)) if tracked.confidence is None else tracked.confidence
        rows = zip(tracked.tracker_id.tolist(), tracked.xyxy.tolist(), scores.tolist(), strict=True)
        number = frame.index + 1
        self._put_line(
            "".join(
                f"{number},{track},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},-1,-1,-1\n"
                for track, (x1, y1, x2, y2), score in rows
            )
        )

    async def aclose(self) -> None:
        if self._file.closed:
            return
        self._finish_file()
        numbers = self._final_numbers()
        if numbers:
            self._rewrite_lines(lambda lines: _renumbered_lines(lines, numbers))


def _renumbered_lines(lines: Iterable[str], numbers: dict[int, int]) -> Iterator[str]:
    def fields() -> Iterator[list[str]]:
        for line in lines:
            frame, track, rest = line.split(",", 2)
            yield [frame, str(numbers.get(int(track), int(track))), rest]

    for row in first_of_each(fields(), lambda one: one[0], lambda one: one[1]):
        yield ",".join(row)
