"""Whatever moves before a still camera, found without a model: background subtraction with per-stream memory.

A mixture of Gaussians per pixel models the background (Zivkovic, "Improved adaptive Gaussian mixture model for
background subtraction", ICPR 2004; OpenCV's MOG2); what does not fit it is cleaned, gathered into blobs and judged.
It answers one query, "anything that moves".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from detectors.detector import Prompt, PromptError, Request, clean_queries, detections
from detectors.registry import ANYTHING_THAT_MOVES

if TYPE_CHECKING:
    import supervision as sv

_Mask = npt.NDArray[np.uint8]

WORK_HEIGHT = 288
"""Rows of the picture that is worked on; larger ones are reduced, which also averages noise away."""
HISTORY = 400
"""Frames after which what stands still belongs to the background."""
WARM_UP = 12
"""Frames before the background is known well enough to say anything."""
LIGHT_CHANGE = 0.4
"""Share of the picture that cannot all be moving things: a lamp was switched, or the camera's gain jumped."""
LEAST_AREA = 0.0004
"""Of the picture; smaller blobs are leaves, rain and noise."""
_SHADOW = 127


class Motion:
    """Finds moving things in the pictures of still cameras; one memory for each `Request.stream`.

    Confidence rises with how solid, how different from the background and how lasting a blob is. The first frames of
    a stream give nothing, as do frames in which the light changes everywhere at once.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._scenes: dict[str, _Scene] = {}

    def prepare(self, queries: Sequence[str]) -> Prompt:
        cleaned = clean_queries(queries)
        for query in cleaned:
            if query.lower() != ANYTHING_THAT_MOVES:
                raise PromptError(
                    f"the motion detector cannot look for {query!r}: its one query is {ANYTHING_THAT_MOVES!r}; "
                    "for other words choose a model, such as --detector glip-tiny"
                )
        return Prompt(cleaned)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        return [self._look(request) for request in requests]

    def _look(self, request: Request) -> sv.Detections:
        image = request.image
        scene = self._scenes.get(request.stream)
        if scene is None or scene.shape != image.shape:
            scene = self._scenes[request.stream] = _Scene(image.shape)
        boxes, scores = scene.look(image)
        return detections(boxes, scores, np.zeros(len(scores), np.int64), request.prompt.queries)


class _Scene:
    """What one camera has shown so far."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        height, width = shape[:2]
        self._scale = min(1.0, WORK_HEIGHT / height)
        self._size = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
        self._background: Any = cv2.createBackgroundSubtractorMOG2(HISTORY, 16.0, True)
        self._background.setShadowThreshold(0.6)
        self._heat: npt.NDArray[np.float32] = np.zeros(self._size[::-1], np.float32)
        self._seen = 0
        self._settling = WARM_UP

    def look(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Boxes (N, 4) in pixels of `image`, and scores (N,)."""
        small = image if self._scale == 1.0 else cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        # A young background learns as fast as a plain mean would; a light change makes it young again.
        self._seen += 1
        raw = self._background.apply(small, learningRate=1.0 / min(self._seen, HISTORY))
        moving = np.where(raw > _SHADOW, np.uint8(255), np.uint8(0))
        if cv2.countNonZero(moving) > LIGHT_CHANGE * moving.size:
            self._seen = min(self._seen, WARM_UP)
            self._settling = max(self._settling, 2)
        if self._settling:
            self._settling -= 1
            return _nothing()
        return self._judge(_cleaned(moving, small.shape[0]), moving)

    def _judge(self, cleaned: _Mask, moving: _Mask) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        self._heat *= 0.7
        self._heat += np.float32(0.3 / 255) * cleaned
        count, labels, stats, _ = cv2.connectedComponentsWithStats(cleaned, connectivity=8)
        boxes = []
        for number in range(1, count):
            x, y, width, height, area = stats[number].tolist()
            if area < LEAST_AREA * cleaned.size:
                continue
            window = labels[y : y + height, x : x + width] == number
            boxes += [(x + x1, y + y1, x + x2, y + y2) for x1, y1, x2, y2 in _parts(window)]
        kept = [(box, self._score(box, moving)) for box in _merged(boxes)]
        if not kept:
            return _nothing()
        xyxy = np.array([box for box, _ in kept], np.float32)
        width, height = self._size
        xyxy[:, ::2] *= self.shape[1] / width
        xyxy[:, 1::2] *= self.shape[0] / height
        return xyxy, np.array([score for _, score in kept], np.float32)

    def _score(self, box: tuple[int, int, int, int], moving: _Mask) -> float:
        x1, y1, x2, y2 = box
        solid = float(np.count_nonzero(moving[y1:y2, x1:x2])) / ((x2 - x1) * (y2 - y1))
        lasting = float(self._heat[y1:y2, x1:x2].max())
        size = (x2 - x1) * (y2 - y1) / (LEAST_AREA * moving.size)
        return min(1.0, solid / 0.45) * min(1.0, lasting / 0.65) * min(1.0, 0.4 + 0.2 * size)


def create(name: str, *, threshold: float = 0.5) -> Motion:
    """The factory for the registry."""
    return Motion(threshold=threshold)


def _nothing() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


def _cleaned(moving: _Mask, rows: int) -> _Mask:
    """Specks gone, holes and the gaps inside upright things closed."""
    unit = max(1, rows // 144)
    opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    tall = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * unit + 1, 6 * unit + 1))
    return np.asarray(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, tall), np.uint8)


def _parts(blob: npt.NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """The box of a blob, or several where it is a group side by side: valleys in how high it stands, column by column."""
    height, width = blob.shape
    whole = [(0, 0, width, height)]
    if width < 0.75 * height or width < 12:
        return whole
    tops = np.where(blob.any(axis=0), height - blob.argmax(axis=0), 0).astype(np.float32)
    smooth = np.convolve(tops, np.ones(5, np.float32) / 5, mode="same")
    step = max(6, round(0.3 * height))
    cuts = [
        x
        for x in range(step, width - step)
        if smooth[x] == smooth[x - step // 2 : x + step // 2 + 1].min()
        and smooth[x] < 0.75 * min(smooth[max(0, x - 2 * step) : x].max(), smooth[x : x + 2 * step].max())
    ]
    edges = [0]
    for cut in cuts:
        if cut - edges[-1] >= step:
            edges.append(cut)
    edges.append(width)
    if len(edges) == 2:
        return whole
    parts = []
    for left, right in zip(edges, edges[1:], strict=False):
        rows = np.flatnonzero(blob[:, left:right].any(axis=1))
        if len(rows):
            parts.append((left, int(rows[0]), right, int(rows[-1]) + 1))
    return parts


def _merged(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Fragments of one thing joined: one above the other with little between, or one inside the other."""
    boxes = sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    kept: list[tuple[int, int, int, int]] = []
    for box in boxes:
        for number, other in enumerate(kept):
            if _belong(box, other):
                kept[number] = (
                    min(box[0], other[0]),
                    min(box[1], other[1]),
                    max(box[2], other[2]),
                    max(box[3], other[3]),
                )
                break
        else:
            kept.append(box)
    return kept


def _belong(small: tuple[int, int, int, int], large: tuple[int, int, int, int]) -> bool:
    shared_x = min(small[2], large[2]) - max(small[0], large[0])
    gap_y = max(small[1], large[1]) - min(small[3], large[3])
    width, height = small[2] - small[0], large[3] - large[1]
    return shared_x > 0.6 * width and gap_y < 0.15 * height and small[3] - small[1] < 0.8 * height
