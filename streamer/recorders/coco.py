"""COCO recorder: tracks as COCO annotations, with the analysed frames as images."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import supervision as sv

from streamer.boxes import box_polygon
from streamer.recorders.text import FinalNumbers, OutputError, TextOutput, first_of_each, unmerged_numbers
from streamer.rules.mask_rle import mask_model

if TYPE_CHECKING:
    from streamer.frame import Frame

_FIELDS = 4  # of a listed image: frame index, capture time, width, height


class CocoJson(TextOutput):
    """COCO detection format, one image per frame of its own size, boxes inside the image.

    Every annotation has `score`, `segmentation` (the mask, or the box as a polygon) and the track's number as
    `track_id`, also in `attributes`, where CVAT reads it. Annotations go to the file as they come, so memory stays
    flat. With `images`, the analysed frames are saved there as JPEG and the file lists these frames alone; without, it
    lists all frames of the video. Categories are the queries, by number.
    """

    def __init__(
        self,
        path: Path,
        categories: Callable[[], dict[int, str]],
        images: Path | None = None,
        final_numbers: FinalNumbers = unmerged_numbers,
    ) -> None:
        super().__init__(path)
        self._categories = categories
        self._images = images
        self._final_numbers = final_numbers
        if images is not None:
            try:
                images.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {images}: {error.strerror}") from error
        self._frames = array("q")
        self._count = 0
        self._put_line('{"annotations": [')

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        if self._images is not None:
            if not analysed:
                return
            await asyncio.to_thread(self._save_image, self._images / _image_name(frame.index), frame)
        self._frames.extend((frame.index, frame.time_ns, frame.width, frame.height))
        if not len(tracked):
            return
        assert tracked.tracker_id is not None
        scores = np.ones(len(tracked)) if tracked.confidence is None else tracked.confidence
        labels = np.zeros(len(tracked), int) if tracked.class_id is None else tracked.class_id
        boxes = np.clip(tracked.xyxy, 0, np.array([frame.width, frame.height] * 2, np.float32))
        rows = zip(tracked.tracker_id.tolist(), boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
        for row, (track, box, score, label) in enumerate(rows):
            mask = None if tracked.mask is None else np.asarray(tracked.mask[row])
            if box[2] > box[0] and box[3] > box[1]:  # else it is predicted outside of the image
                self._add_annotation(frame, track, box, score, label, mask)

    def _add_annotation(
        self, frame: Frame, track: int, box: list[float], score: float, label: int, mask: Any | None
    ) -> None:
        self._count += 1
        x1, y1, x2, y2 = (round(value, 2) for value in box)
        annotation: dict[str, object] = {
            "id": self._count,
            "image_id": frame.index + 1,
            "category_id": label,
            "track_id": track,
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "area": round((x2 - x1) * (y2 - y1), 2),
            "segmentation": box_polygon((x1, y1, x2, y2)),
            "score": round(score, 4),
            "iscrowd": 0,
            "attributes": {"track_id": track},
        }
        if mask is not None and mask.any():
            encoded = mask_model(mask)
            annotation["segmentation"] = {"size": encoded.size, "counts": encoded.counts}
            annotation["area"] = int(mask.sum())
        self._put_line(("," if self._count > 1 else "") + "\n" + json.dumps(annotation))

    async def aclose(self) -> None:
        if self._file.closed:
            return
        frames = (self._frames[start : start + _FIELDS] for start in range(0, len(self._frames), _FIELDS))
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
            for index, time_ns, width, height in frames
        )
        categories = [{"id": number, "name": name} for number, name in sorted(self._categories().items())]
        self._put_line('\n],\n"categories": ' + json.dumps(categories) + ',\n"images": [\n' + ",\n".join(images))
        self._finish_file("]}\n")
        numbers = self._final_numbers()
        if numbers:
            self._rewrite_lines(lambda lines: _renumbered_lines(lines, numbers))

    @staticmethod
    def _save_image(path: Path, frame: Frame) -> None:
        import cv2

        if not cv2.imwrite(str(path), frame.image):
            raise OutputError(f"cannot write {path}: the disk may be full or the folder gone")


def _renumbered_lines(lines: Iterable[str], numbers: dict[int, int]) -> Iterator[str]:
    """The lines of the file with the tracks' final numbers, each at most once per image."""
    lines = iter(lines)
    yield next(lines)
    rest: list[str] = []

    def annotations() -> Iterator[dict[str, Any]]:
        for line in lines:
            if line.startswith("]"):
                rest.append(line)
                return
            annotation = json.loads(line.rstrip(",\n"))
            annotation["track_id"] = numbers.get(annotation["track_id"], annotation["track_id"])
            annotation["attributes"]["track_id"] = annotation["track_id"]
            yield annotation

    unique = first_of_each(annotations(), lambda one: one["image_id"], lambda one: one["track_id"])
    for position, annotation in enumerate(unique):
        yield (",\n" if position else "") + json.dumps(annotation)
    yield "\n"
    yield from rest
    yield from lines


def _image_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"
