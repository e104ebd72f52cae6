"""What a job keeps of every frame: tracks as MOTChallenge text, as COCO JSON, and an annotated video."""

from __future__ import annotations

import asyncio
import json
import logging
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import supervision as sv

from streamer.errors import StreamerError
from streamer.rules.mask_rle import mask_model
from streamer.rules.places import Line, Zone

if TYPE_CHECKING:
    from streamer.frame import Frame
    from streamer.recorders.painter import BoxPainter
    from streamer.recorders.video_writer import VideoWriter

NameOf = Callable[[int], str]
log = logging.getLogger("groundstream")


class OutputError(StreamerError):
    """Something cannot be written: no such folder, no permission, disk full."""


def open_output(path: Path) -> TextIO:
    """A text file to write, its folder made. Raises `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


class _TextOutput:
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


class MotText(_TextOutput):
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


class CocoJson(_TextOutput):
    """COCO detection format with `track_id` and `score` on every annotation, one image per frame.

    Annotations go to the file as they come, so memory stays flat. With `images`, analysed frames are saved there as
    JPEG; categories are the queries, by number.
    """

    def __init__(self, path: Path, categories: Callable[[], dict[int, str]], images: Path | None = None) -> None:
        super().__init__(path)
        self._categories = categories
        self._images = images
        if images is not None:
            try:
                images.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {images}: {error.strerror}") from error
        self._frames = array("q")
        self._size = (0, 0)
        self._count = 0
        self._put('{"annotations": [')

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        self._frames.extend((frame.index, frame.time_ns))
        self._size = (frame.width, frame.height)
        if self._images is not None and analysed:
            await asyncio.to_thread(self._save, self._images / _image_name(frame.index), frame)
        if not len(tracked):
            return
        assert tracked.tracker_id is not None
        scores = np.ones(len(tracked)) if tracked.confidence is None else tracked.confidence
        labels = np.zeros(len(tracked), int) if tracked.class_id is None else tracked.class_id
        rows = zip(tracked.tracker_id.tolist(), tracked.xyxy.tolist(), scores.tolist(), labels.tolist(), strict=True)
        for row, (track, (x1, y1, x2, y2), score, label) in enumerate(rows):
            self._count += 1
            annotation: dict[str, object] = {
                "id": self._count,
                "image_id": frame.index + 1,
                "category_id": label,
                "track_id": track,
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "score": round(score, 4),
                "iscrowd": 0,
            }
            if tracked.mask is not None:
                mask = mask_model(np.asarray(tracked.mask[row]))
                annotation["segmentation"] = {"size": mask.size, "counts": mask.counts}
            self._put(("," if self._count > 1 else "") + "\n" + json.dumps(annotation))

    async def aclose(self) -> None:
        width, height = self._size
        images = (
            json.dumps(
                {
                    "id": index + 1,
                    "file_name": _image_name(index),
                    "width": width,
                    "height": height,
                    "time_ns": time_ns,
                }
            )
            for index, time_ns in zip(self._frames[::2], self._frames[1::2], strict=True)
        )
        categories = [{"id": number, "name": name} for number, name in sorted(self._categories().items())]
        if not self._file.closed:
            self._put('],\n"categories": ' + json.dumps(categories) + ',\n"images": [\n' + ",\n".join(images))
        self._finish("]}\n")

    @staticmethod
    def _save(path: Path, frame: Frame) -> None:
        import cv2

        if not cv2.imwrite(str(path), frame.image):
            raise OutputError(f"cannot write {path}: the disk may be full or the folder gone")


def _image_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


class AnnotatedVideo:
    """An MP4 of the stream with its tracks drawn in. Drawing and encoding happen beside the frame path; with `wait`
    (recordings) every frame is in it, else (live) frames that come too fast for the encoder are left out and counted
    in `skipped`."""

    _AHEAD = 8

    def __init__(
        self, path: Path, name_of: NameOf, zones: Sequence[Zone], lines: Sequence[Line], *, wait: bool
    ) -> None:
        self.path = path
        self.skipped = 0
        self._name_of = name_of
        self._zones, self._lines = zones, lines
        self._wait = wait
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="video")
        self._pending: deque[asyncio.Future[None]] = deque()
        self._painter: BoxPainter | None = None
        self._writer: VideoWriter | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path.parent}: {error.strerror}") from error

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        if len(self._pending) >= self._AHEAD:
            if not self._wait:
                if not self.skipped:
                    log.warning("%s cannot be encoded as fast as the stream comes: frames are left out", self.path)
                self.skipped += 1
                return
            await self._pending.popleft()
        loop = asyncio.get_running_loop()
        self._pending.append(loop.run_in_executor(self._pool, self._draw, frame, tracked))

    async def aclose(self) -> None:
        while self._pending:
            await self._pending.popleft()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await asyncio.to_thread(writer.close)
        self._pool.shutdown(wait=False)
        if self.skipped:
            log.warning("%s: %d frames were left out", self.path, self.skipped)

    def _draw(self, frame: Frame, tracked: sv.Detections) -> None:
        if self._writer is None or self._painter is None:
            from streamer.recorders.painter import BoxPainter
            from streamer.recorders.video_writer import VideoWriter

            size = (frame.width, frame.height)
            self._painter = BoxPainter(size, self._name_of, self._zones, self._lines)
            self._writer = VideoWriter(self.path, size)
        self._writer.write(self._painter.paint(frame.image, tracked), frame.time_ns)
