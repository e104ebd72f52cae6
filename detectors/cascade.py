"""Cascade: a cheap detector watches every picture, and the large one looks only when something has changed.

Between two looks the boxes of the large detector are carried along with those of the cheap one: what moves is shifted
with the box that covers it, what stands still stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from detectors.detector import Detector, OptionError, Prompt, Request, detections
from detectors.overlap import ious

if TYPE_CHECKING:
    import supervision as sv

Floats = npt.NDArray[np.float32]

SAME_IOU = 0.3
"""Overlap from which on a box of the cheap detector is the one of the picture before."""
_LEAVES = 0.3  # share of a box that must stay inside the picture
_COVERED = 0.5  # share of a box that lies in a box of the cheap detector, from which on it moves with it


Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class _StreamMemory:
    """What is known of a stream: the newest boxes of both detectors, and how many pictures ago the large one looked."""

    prompt: Prompt
    thresholds: tuple[float, ...] | None
    shape: tuple[int, ...]
    seen: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    found: sv.Detections | None = None
    since: int = 0


@dataclass(slots=True)
class _PictureStep:
    """One picture: the gate's boxes before and now, which are the same, and whether the large detector looks at it."""

    memory: _StreamMemory
    before: Floats
    now: Floats
    match: Ints
    is_looked_at: bool


class CascadeDetector:
    """The large `detector` behind the cheap one `gate`, whose queries are `gate_queries`.

    The large one looks at a picture of a stream when a thing appears or disappears for the gate, when `moving_every`
    pictures have passed since its last look while something moves, or `still_every` while nothing does, and when words,
    thresholds or the size of the pictures change. Pictures of a stream must come in order. `looks` counts the pictures
    that the large one has seen, `pictures` all.
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
        self.looks = 0
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

    def prepare(self, queries: Sequence[str]) -> Prompt:
        """As the large detector does."""
        return self._detector.prepare(queries)

    def forget(self, stream: str) -> None:
        """Drops what is known of a stream."""
        self._streams.pop(stream, None)
        if (forget := getattr(self._gate, "forget", None)) is not None:
            forget(stream)

    def detect(self, requests: Sequence[Request]) -> list[sv.Detections]:
        """See `Detector.detect`; results of pictures between two looks follow from the ones before."""
        watched = [Request(request.image, self._gate_prompt, request.stream) for request in requests]
        boxes = [np.asarray(found.xyxy, np.float32) for found in self._gate.detect(watched)]
        steps = [self._plan_step(request, seen) for request, seen in zip(requests, boxes, strict=True)]
        chosen = [request for request, step in zip(requests, steps, strict=True) if step.is_looked_at]
        looked = iter(self._detector.detect(chosen) if chosen else ())
        self.looks += len(chosen)
        self.pictures += len(requests)
        return [_follow_step(step, next(looked) if step.is_looked_at else None) for step in steps]

    def _plan_step(self, request: Request, now: Floats) -> _PictureStep:
        """Decides whether the large detector looks at a picture, and remembers the gate's boxes for the next one."""
        memory = self._streams.get(request.stream)
        settings = (request.prompt, request.thresholds, request.image.shape)
        is_fresh = memory is None or (memory.prompt, memory.thresholds, memory.shape) != settings
        if memory is None or is_fresh:
            memory = self._streams[request.stream] = _StreamMemory(*settings)
        before, memory.seen = memory.seen, now
        match = _match_boxes(before, now)
        has_changed = len(before) != len(now) or bool((match < 0).any())
        memory.since += 1
        limit = self._moving_every if len(now) else self._still_every
        is_looked_at = is_fresh or has_changed or memory.since >= limit
        if is_looked_at:
            memory.since = 0
        return _PictureStep(memory, before, now, match, is_looked_at)


def _follow_step(step: _PictureStep, looked: sv.Detections | None) -> sv.Detections:
    """The detections of a picture: those of the large detector, else the ones before, moved with the gate's boxes."""
    memory = step.memory
    if looked is None:
        assert memory.found is not None, "the first picture of a stream is looked at"
        looked = _carry_boxes(memory.found, step, memory.shape, memory.prompt.queries)
    memory.found = looked
    return looked


def _carry_boxes(
    found: sv.Detections, step: _PictureStep, shape: tuple[int, ...], queries: Sequence[str]
) -> sv.Detections:
    """The detections, each moved by the way of the centre of the smallest gate box that covers it; without those that
    leave the picture. Masks and embeddings do not move, so they are left out."""
    boxes = np.array(found.xyxy, np.float32)
    if len(boxes) and len(step.before):
        low = np.maximum(boxes[:, None, :2], step.before[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], step.before[None, :, 2:])
        shared = (high - low).clip(min=0).prod(-1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-6)[:, None]
        size = (step.before[:, 2:] - step.before[:, :2]).prod(-1)
        cover = np.where(shared >= _COVERED, size[None], np.inf)
        holder = np.where(np.isfinite(cover.min(axis=1)), cover.argmin(axis=1), -1)
        for row, col in enumerate(step.match.tolist()):
            if col >= 0:
                way = (step.now[row].reshape(2, 2).mean(axis=0) - step.before[col].reshape(2, 2).mean(axis=0)).tolist()
                boxes[holder == col] += np.array(way * 2, np.float32)
    height, width = shape[:2]
    inside = boxes.clip(0, (width, height, width, height))
    area, left = ((rows[:, 2:] - rows[:, :2]).prod(-1) for rows in (boxes, inside))
    kept = left > _LEAVES * area
    assert found.confidence is not None
    assert found.class_id is not None
    return detections(inside[kept], found.confidence[kept], found.class_id[kept], queries)


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
