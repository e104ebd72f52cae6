"""An own detector: bright regions, found with OpenCV, tracked and turned into events like any other detection."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cv2
import numpy as np
import supervision as sv

import groundstream
from detectors import Prompt
from detectors.detector import clean_queries


class BrightRegions:
    """Boxes around connected regions brighter than `level`, 0..255."""

    threshold = 0.5

    def __init__(self, level: int = 200) -> None:
        self._level = level

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(clean_queries(queries))

    def detect(self, requests: Sequence[groundstream.Request]) -> list[sv.Detections]:
        return [self._detect_one(request) for request in requests]

    def _detect_one(self, request: groundstream.Request) -> sv.Detections:
        bright = (cv2.cvtColor(request.image, cv2.COLOR_BGR2GRAY) > self._level).astype(np.uint8)
        rows = cv2.connectedComponentsWithStats(bright)[2][1:]  # the first one is the background
        boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, area in rows if area >= 25], np.float32)
        count, query = len(boxes), request.prompt.queries[0]
        return sv.Detections(
            xyxy=boxes.reshape(-1, 4),
            confidence=np.full(count, 0.9, np.float32),
            class_id=np.zeros(count, int),
            data={"class_name": np.full(count, query)},
        )


if __name__ == "__main__":
    for event in groundstream.watch_sync(sys.argv[1], "a bright region", detector=BrightRegions()):
        print(event.time, event.kind, event.subject)
