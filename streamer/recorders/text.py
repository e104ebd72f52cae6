"""Text recorders: files that grow while a job runs, and tracks as MOTChallenge text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import supervision as sv

from streamer.errors import StreamerError

if TYPE_CHECKING:
    from streamer.frame import Frame


class OutputError(StreamerError):
    """Something cannot be written: no such folder, no permission, disk full."""


def open_output(path: Path) -> TextIO:
    """A text file to write, its folder made. Raises `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


class TextOutput:
    """A file that is written while the job runs; a full disk is one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_output(path)

    def _put(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _finish(self, text: str = "") -> None:
        if self._file.closed:
            return
        try:
            with self._file:
                self._file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


class MotText(TextOutput):
    """`frame,id,left,top,width,height,score,-1,-1,-1` per line, frames from 1, boxes in pixels, as MOTChallenge."""

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        if not len(tracked):
            return
        assert tracked.tracker_id is not None
        scores = np.ones(len(tracked)) if tracked.confidence is None else tracked.confidence
        rows = zip(tracked.tracker_id.tolist(), tracked.xyxy.tolist(), scores.tolist(), strict=True)
        number = frame.index + 1
        self._put(
            "".join(
                f"{number},{track},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},-1,-1,-1\n"
                for track, (x1, y1, x2, y2), score in rows
            )
        )

    async def aclose(self) -> None:
        self._finish()
