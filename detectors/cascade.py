"""Cascade: a cheap detector watches every picture, and the large one analyses only those in which something changes.

Between two analyses the boxes of the large detector follow the pixels below them: points inside each box are tracked
from picture to picture, forward and backward, and the box moves by their median (median flow, Kalal et al. 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from detectors.detector import Detector, OptionError, Prompt, Request, detections
from detectors.overlap import ious

if TYPE_CHECKING:
    import supervision as sv

Floats = npt.NDArray[np.float32]

Ints = npt.NDArray[np.int64]
Grey = npt.NDArray[np.uint8]

SAME_IOU = 0.3
"""Overlap from which on a box of the cheap detector is the one of the picture before."""
_COVERED = 0.5  # share of a box that lies in another, from which on the one explains the other
_REMEMBERED = 5  # pictures for which a box of the cheap detector explains others after it was last seen
_LEAVES = 0.3  # share of a box that must stay inside the picture
_FLOW_SIDE = 320  # longest side at which points are tracked, pixels
_GRID = np.stack(np.meshgrid(*[np.linspace(0.2, 0.8, 6)] * 2), axis=-1).reshape(-1, 2)  # (36, 2) places in a box
_LEAST_POINTS = 9  # of a box that must be tracked both ways, else the box stays
_RETURN = 1.0  # pixels within which a point must come back


@dataclass(slots=True)
class _StreamMemory:
    """What is known of a stream: the newest boxes of both detectors, and how many pictures ago the large one ran.

    `lost` (M, 4) are boxes of the cheap detector that were not seen again, `lost_for` (M,) pictures ago.
    """

    queries: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    shape: tuple[int, ...]
    seen: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    lost: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    lost_for: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    found: sv.Detections | None = None
    grey: Grey | None = None
    since: int = 0


@dataclass(slots=True)
class _PictureStep:
    """One picture of a stream, the one before, and whether the large detector analyses it."""

    memory: _StreamMemory
    is_analysed: bool
    grey_before: Grey | None
    grey_now: Grey


class CascadeDetector:
    """The large `detector` behind the cheap one `gate`, whose queries are `gate_queries`.

    The large one analyses a picture of a stream when a thing appears or disappears for the gate, when `moving_every`
    pictures have passed since the last one while something moves, or `still_every` while nothing does, and when words,
    thresholds or the size of the pictures change. Pictures of a stream must come in order. `analysed` counts the
    pictures that the large one has seen, `pictures` all.
    """

    def __init__(
        self,
        detector: Detector,
        gate: Detector,
        gate_queries: Sequence[str],
        *,
        moving_every: int = 4,
        still_every: int = 100,
    ) -> None:
        """Raises `OptionError`."""
        if not 1 <= moving_every <= still_every:
            raise OptionError(
                f"gate_moving_every is {moving_every} and gate_still_every is {still_every}: expected 1 <= "
                "gate_moving_every <= gate_still_every, in pictures"
            )
        self.analysed = 0
        self.pictures = 0
        self._detector = detector
        self._gate = gate
        self._gate_prompt = gate.prepare(gate_queries)
        self._moving_every = moving_every
        self._still_every = still_every
        self._streams: dict[str, _StreamMemory] = {}

    @property
    def threshold(self) -> float:
        """That of the large detector."""
        return self._detector.threshold

    @property
    def device(self) -> str:
        """Where the large detector runs, as PyTorch names it."""
        return str(getattr(self._detector, "device", "cpu"))

    def prepare(self, queries: Sequence[str]) -> Prompt:
        """As the large detector does."""
        return self._detector.prepare(queries)

    def forget(self, stream: str) -> None:
        """Drops what is known of a stream."""
        self._streams.pop(stream, None)
        if (forget := getattr(self._gate, "forget", None)) is not None:
            forget(stream)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """See `Detector.detect`; results of pictures between two analyses follow from the ones before."""
        watched = [Request(request.image, self._gate_prompt, request.stream) for request in requests]
        boxes = [np.asarray(found.xyxy, np.float32) for found in self._gate.detect(watched)]
        steps = [self._plan_step(request, seen) for request, seen in zip(requests, boxes, strict=True)]
        chosen = [request for request, step in zip(requests, steps, strict=True) if step.is_analysed]
        try:
            analysed = iter(self._detector.detect(chosen) if chosen else ())
        except Exception:
            for request in chosen:  # the next picture of these streams is analysed
                self._streams.pop(request.stream, None)
            raise
        self.analysed += len(chosen)
        self.pictures += len(requests)
        return [_follow_step(step, next(analysed) if step.is_analysed else None) for step in steps]

    def _plan_step(self, request: Request, now: Floats) -> _PictureStep:
        """Decides whether the large detector analyses a picture, and remembers the gate's boxes for the next one."""
        memory = self._streams.get(request.stream)
        settings = (request.prompt.queries, request.thresholds, request.image.shape)
        is_fresh = memory is None or (memory.queries, memory.thresholds, memory.shape) != settings
        if memory is None or is_fresh:
            memory = self._streams[request.stream] = _StreamMemory(*settings)
        has_changed = _note_changes(memory, now)
        memory.since += 1
        limit = self._moving_every if len(now) else self._still_every
        is_analysed = is_fresh or has_changed or memory.since >= limit
        if is_analysed:
            memory.since = 0
        grey_before, memory.grey = memory.grey, _shrink_grey(request.image)
        return _PictureStep(memory, is_analysed, grey_before, memory.grey)


def _note_changes(memory: _StreamMemory, now: Floats) -> bool:
    """Whether a thing has appeared or is gone for the gate.

    Boxes of a cheap detector flicker, join and part: a box that lies in one of the last pictures, or holds one of them,
    is not new; one in whose place no other has been for `_REMEMBERED` pictures is gone.
    """
    before, memory.seen = memory.seen, now
    match = _match_boxes(before, now)
    known = np.concatenate([before, memory.lost])
    fresh = now[match < 0]
    is_new = bool((~_explained(fresh, known)).any())
    missed = np.delete(before, match[match >= 0], axis=0)
    lost = np.concatenate([memory.lost, missed])
    lost_for = np.concatenate([memory.lost_for + 1, np.ones(len(missed), np.int64)])
    is_open = ~_explained(lost, now)
    is_over = lost_for >= _REMEMBERED
    memory.lost, memory.lost_for = lost[is_open & ~is_over], lost_for[is_open & ~is_over]
    return is_new or bool((is_open & is_over).any())


def _explained(boxes: Floats, others: Floats) -> npt.NDArray[np.bool_]:
    """(N,) which boxes lie in one of the others, or hold one."""
    if not len(boxes) or not len(others):
        return np.zeros(len(boxes), np.bool_)
    held = _covered_shares(boxes, others) >= _COVERED
    holding = _covered_shares(others, boxes).T >= _COVERED
    explained: npt.NDArray[np.bool_] = np.any(held | holding, axis=1)
    return explained


def _covered_shares(boxes: Floats, others: Floats) -> Floats:
    """(N, M) the share of each of N boxes that lies in each of M others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    shares: Floats = shared / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-6)[:, None]
    return shares


def _follow_step(step: _PictureStep, analysed: sv.Detections | None) -> sv.Detections:
    """The detections of a picture: those of the large detector, else the ones before, moved with the gate's boxes."""
    memory = step.memory
    if analysed is None:
        assert memory.found is not None, "the first picture of a stream is analysed"
        analysed = _carry_boxes(memory.found, step, memory.shape, memory.queries)
    memory.found = analysed
    return analysed


def _carry_boxes(
    found: sv.Detections, step: _PictureStep, shape: tuple[int, ...], queries: Sequence[str]
) -> sv.Detections:
    """The detections, each moved with the pixels below it; without those that leave the picture.

    Masks and embeddings do not move, so they are left out.
    """
    height, width = shape[:2]
    boxes = np.array(found.xyxy, np.float32)
    if step.grey_before is not None and len(boxes):
        scale = step.grey_now.shape[1] / width
        boxes += np.tile(_track_shifts(step.grey_before, step.grey_now, boxes * scale) / scale, 2)
    inside = boxes.clip(0, (width, height, width, height))
    area, left = ((rows[:, 2:] - rows[:, :2]).prod(-1) for rows in (boxes, inside))
    kept = left > _LEAVES * area
    assert found.confidence is not None
    assert found.class_id is not None
    return detections(inside[kept], found.confidence[kept], found.class_id[kept], queries)


def _shrink_grey(image: npt.NDArray[np.uint8]) -> Grey:
    """A grey picture (h, w), uint8, of a BGR image, its longest side at most `_FLOW_SIDE` pixels."""
    scale = _FLOW_SIDE / max(image.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def _track_shifts(before: Grey, now: Grey, boxes: Floats) -> Floats:
    """(N, 2) how far what is below each of N boxes has moved, in pixels; zero where too few points can be tracked."""
    corners, sizes = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    points = (corners + _GRID[None] * sizes).astype(np.float32).reshape(-1, 1, 2)
    there, found_there, _ = cv2.calcOpticalFlowPyrLK(before, now, points, np.empty_like(points))
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(now, before, there, np.empty_like(points))
    returned = np.abs(back - points).max(axis=(1, 2)) <= _RETURN
    is_sure = (returned & (found_there[:, 0] == 1) & (found_back[:, 0] == 1)).reshape(len(boxes), -1)
    ways = (there - points).reshape(len(boxes), -1, 2)
    shifts = np.zeros((len(boxes), 2), np.float32)
    for row in np.flatnonzero(is_sure.sum(axis=1) >= _LEAST_POINTS):
        shifts[row] = np.median(ways[row][is_sure[row]], axis=0)
    return shifts


def _match_boxes(before: Floats, now: Floats) -> Ints:
    """(N,) the row of `before` that each box `now` continues, -1 for a new one; each row at most once."""
    match = np.full(len(now), -1, np.int64)
    if not len(before) or not len(now):
        return match
    overlap = ious(now, before)
    while True:
        row, col = np.unravel_index(int(overlap.argmax()), overlap.shape)
        if overlap[row, col] < SAME_IOU:
            return match
        match[row] = col
        overlap[row], overlap[:, col] = -1.0, -1.0
