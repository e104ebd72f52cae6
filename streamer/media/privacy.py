"""Privacy of pictures: what leaves the frame path shows named things blurred, or nothing at all.

Frames are replaced before anything is stored, recorded or shown; the detector alone works with the pixels as they came.
Where it is not certain that all the named things were looked for in a frame, the whole frame is blurred.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from streamer.frame import Frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import supervision as sv

    from streamer.analysis.queries import Query
    from streamer.rules.matches import QueryMatches

log = logging.getLogger("groundstream")

_HOLD_NS = 1_000_000_000
"""How long a place stays blurred after the thing was last seen there: detections flicker."""
_MARGIN = 0.08
_BLANK = 40
_LEAST_CELL = 8

_Box = tuple[float, float, float, float]


_Change = Callable[["npt.NDArray[np.uint8]"], "npt.NDArray[np.uint8]"]


@dataclass(slots=True)
class _StreamCover:
    """Boxes of things to blur in one stream, with the capture time of their frame."""

    boxes: list[tuple[int, _Box]] = field(default_factory=list)
    known_ns: int | None = None  # capture time of the last frame that was analysed for all names
    is_whole: bool | None = None  # whether the last frame was blurred as a whole


class PictureCover:
    """Covers the pictures of all streams, in the order of their frames.

    With "none" every picture is blank. With "blur" the boxes of the queries in `names` (ids or texts) are blurred:
    those of raw detections, whatever their score, and of tracks, for a second after they were last seen. Where not all
    names were looked for within the last second (a query is paused or missing, the detector fails, few frames are
    sampled), the whole frame is.
    """

    def __init__(self, pictures: Literal["blur", "none"], names: Collection[str] = ()) -> None:
        self._pictures = pictures
        self._names = frozenset(names)
        self._streams: dict[str, _StreamCover] = {}

    def cover(
        self,
        frame: Frame,
        tracked: sv.Detections,
        detections: sv.Detections | None,
        queries: Sequence[Query],
        matches: QueryMatches,
    ) -> Frame:
        """Returns the frame as it may be shown; its pixels are made when they are first used.

        `detections` are those of this frame, None where it was not analysed; `queries` are those it was analysed for.
        """
        if self._pictures == "none":
            return _replaced(frame, _blank_all)
        seen = self._streams.setdefault(frame.stream, _StreamCover())
        wanted = {query.number for query in queries if self._names & {query.id, query.text}}
        if detections is not None:
            asked = [query for query in queries if not query.is_denial]
            if all(any(name in (query.id, query.text) for query in asked) for name in self._names):
                seen.known_ns = frame.time_ns
            else:
                seen.known_ns = None
            rows = {at for at, query in enumerate(queries) if query.number in wanted}
            seen.boxes += [(frame.time_ns, box) for box in _boxes_of(detections, rows)]
            seen.boxes += [(frame.time_ns, box) for box in _boxes_of_tracks(tracked, wanted, matches)]
        seen.boxes = [(time_ns, box) for time_ns, box in seen.boxes if frame.time_ns - time_ns <= _HOLD_NS]
        is_whole = seen.known_ns is None or frame.time_ns - seen.known_ns > _HOLD_NS
        self._log_change(frame.stream, seen, is_whole=is_whole)
        if is_whole:
            return _replaced(frame, _blur_all)
        boxes = [box for _, box in seen.boxes]
        if detections is None:  # where the motion of the tracks has brought them
            boxes += _boxes_of_tracks(tracked, None, matches)
        return _replaced(frame, lambda image: blur_boxes(image, boxes)) if boxes else frame

    def forget(self, stream: str) -> None:
        """Drops what is known of a stream that has ended."""
        self._streams.pop(stream, None)

    def _log_change(self, stream: str, seen: _StreamCover, *, is_whole: bool) -> None:
        if is_whole and seen.is_whole is False:
            names = ", ".join(sorted(self._names))
            log.warning("%s: whole pictures are blurred: not every frame is analysed for %s", stream, names)
        elif seen.is_whole and not is_whole:
            log.info("%s: named things alone are blurred", stream)
        seen.is_whole = is_whole


def blur_boxes(image: npt.NDArray[np.uint8], boxes: Sequence[_Box]) -> npt.NDArray[np.uint8]:
    """Returns a copy of the image (BGR) in which the boxes (pixels), with a margin, hold nothing but coarse cells."""
    covered = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in boxes:
        margin_x, margin_y = (x2 - x1) * _MARGIN + 2, (y2 - y1) * _MARGIN + 2
        left, top = max(0, int(x1 - margin_x)), max(0, int(y1 - margin_y))
        right, bottom = min(width, int(x2 + margin_x) + 1), min(height, int(y2 + margin_y) + 1)
        if right > left and bottom > top:
            covered[top:bottom, left:right] = _pixelate(image[top:bottom, left:right])
    return covered


def _pixelate(part: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Averages over cells of an eighth of the longer side: a face or a figure cannot be recognised in them."""
    import cv2
    import numpy as np

    height, width = part.shape[:2]
    cell = max(_LEAST_CELL, max(height, width) // 8)
    small = cv2.resize(part, (max(1, width // cell), max(1, height // cell)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _blur_all(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return _pixelate(image)


def _blank_all(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.full_like(image, _BLANK)


def _replaced(frame: Frame, change: _Change) -> Frame:
    return Frame(
        frame.stream,
        frame.index,
        frame.time_ns,
        frame.clock,
        lambda: change(frame.image),
        (frame.width, frame.height),
        frame.pixel_aspect,
    )


def _boxes_of(detections: sv.Detections, labels: Collection[int]) -> list[_Box]:
    if detections.class_id is None:
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in detections.xyxy.tolist()]
    rows = zip(detections.xyxy.tolist(), detections.class_id.tolist(), strict=True)
    return [(x1, y1, x2, y2) for (x1, y1, x2, y2), label in rows if label in labels]


def _boxes_of_tracks(tracked: sv.Detections, numbers: Collection[int] | None, matches: QueryMatches) -> list[_Box]:
    """Boxes of tracks that match one of the queries, or whose detection answered one; all without `numbers`."""
    if tracked.tracker_id is None or not len(tracked):
        return []
    labels = [-1] * len(tracked) if tracked.class_id is None else tracked.class_id.tolist()
    boxes: list[_Box] = []
    rows = zip(tracked.xyxy.tolist(), tracked.tracker_id.tolist(), labels, strict=True)
    for (x1, y1, x2, y2), track, label in rows:
        if numbers is None or label in numbers or any(number in numbers for number in matches.scores(track)):
            boxes.append((x1, y1, x2, y2))
    return boxes
