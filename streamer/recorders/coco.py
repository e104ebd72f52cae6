"""COCO recorder: tracks as COCO annotations, with the analysed frames as images."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import supervision as sv

from streamer.recorders.text import OutputError, TextOutput
from streamer.rules.mask_rle import mask_model

if TYPE_CHECKING:
    from streamer.frame import Frame


class CocoJson(TextOutput):
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
