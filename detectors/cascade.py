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

Ints = npt.NDArray[np.int64]

SAME_IOU = 0.3
"""Overlap from which on a box of the cheap detector is the one of the picture before."""
_COVERED = 0.5  # share of a box that lies in another, from which on the one explains the other
_REMEMBERED = 5  # pictures for which a box of the cheap detector explains others after it was last seen
_LEAVES = 0.3  # share of a box that must stay inside the picture
_BORDER = 1.0  # pixels from the border within which an edge counts as cut off


@dataclass(slots=True)
class _StreamMemory:
    """What is known of a stream: the newest boxes of both detectors, and how many pictures ago the large one looked.

    `lost` (M, 4) are boxes of the cheap detector that were not seen again, `lost_for` (M,) pictures ago.
    """

    queries: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    shape: tuple[int, ...]
    seen: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    lost: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    lost_for: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
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
        """See `Detector.detect`; results of pictures between two looks follow from the ones before."""
        watched = [Request(request.image, self._gate_prompt, request.stream) for request in requests]
        boxes = [np.asarray(found.xyxy, np.float32) for found in self._gate.detect(watched)]
        steps = [self._plan_step(request, seen) for request, seen in zip(requests, boxes, strict=True)]
        chosen = [request for request, step in zip(requests, steps, strict=True) if step.is_looked_at]
        try:
            looked = iter(self._detector.detect(chosen) if chosen else ())
        except Exception:
            for request in chosen:  # the next picture of these streams is looked at
                self._streams.pop(request.stream, None)
            raise
        self.looks += len(chosen)
        self.pictures += len(requests)
        return [_follow_step(step, next(looked) if step.is_looked_at else None) for step in steps]

    def _plan_step(self, request: Request, now: Floats) -> _PictureStep:
        """Decides whether the large detector looks at a picture, and remembers the gate's boxes for the next one."""
        memory = self._streams.get(request.stream)
        settings = (request.prompt.queries, request.thresholds, request.image.shape)
        is_fresh = memory is None or (memory.queries, memory.thresholds, memory.shape) != settings
        if memory is None or is_fresh:
            memory = self._streams[request.stream] = _StreamMemory(*settings)
        before, memory.seen = memory.seen, now
        match = _match_boxes(before, now)
        has_changed = _note_changes(memory, before, now, match)
        memory.since += 1
        limit = self._moving_every if len(now) else self._still_every
        is_looked_at = is_fresh or has_changed or memory.since >= limit
        if is_looked_at:
            memory.since = 0
        return _PictureStep(memory, before, now, match, is_looked_at)


def _note_changes(memory: _StreamMemory, before: Floats, now: Floats, match: Ints) -> bool:
    """Whether a thing has appeared or is gone for the gate.

    Boxes of a cheap detector flicker, join and part: a box that lies in one of the last pictures, or holds one of them,
    is not new; one in whose place no other has been for `_REMEMBERED` pictures is gone.
    """
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


def _follow_step(step: _PictureStep, looked: sv.Detections | None) -> sv.Detections:
    """The detections of a picture: those of the large detector, else the ones before, moved with the gate's boxes."""
    memory = step.memory
    if looked is None:
        assert memory.found is not None, "the first picture of a stream is looked at"
        looked = _carry_boxes(memory.found, step, memory.shape, memory.queries)
    memory.found = looked
    return looked


def _carry_boxes(
    found: sv.Detections, step: _PictureStep, shape: tuple[int, ...], queries: Sequence[str]
) -> sv.Detections:
    """The detections, each moved with the smallest gate box that covers it; without those that leave the picture.

    A thing has left when little of its box is inside, or when its gate box ended at the border. Masks and embeddings do
    not move, so they are left out.
    """
    height, width = shape[:2]
    boxes = np.array(found.xyxy, np.float32)
    has_left = np.zeros(len(boxes), np.bool_)
    if len(boxes) and len(step.before):
        size = (step.before[:, 2:] - step.before[:, :2]).prod(-1)
        cover = np.where(_covered_shares(boxes, step.before) >= _COVERED, size[None], np.inf)
        holder = np.where(np.isfinite(cover.min(axis=1)), cover.argmin(axis=1), -1)
        for row, col in enumerate(step.match.tolist()):
            if col >= 0:
                boxes[holder == col] += np.tile(_shift(step.before[col], step.now[row], width, height), 2)
        low, high = step.before[:, :2] <= _BORDER, step.before[:, 2:] >= np.array([width, height]) - _BORDER
        has_ended: npt.NDArray[np.bool_] = np.any(low | high, axis=1)
        has_ended[step.match[step.match >= 0]] = False
        has_left = (holder >= 0) & has_ended[holder]
    inside = boxes.clip(0, (width, height, width, height))
    area, left = ((rows[:, 2:] - rows[:, :2]).prod(-1) for rows in (boxes, inside))
    kept = (left > _LEAVES * area) & ~has_left
    assert found.confidence is not None
    assert found.class_id is not None
    return detections(inside[kept], found.confidence[kept], found.class_id[kept], queries)


def _shift(before: Floats, now: Floats, width: int, height: int) -> Floats:
    """(2,) how far a thing has moved whose box was `before` and is `now`: the lesser way of its two edges.

    Both edges of what moves go the same way; where boxes join or part, one edge jumps and the other does not. An edge
    at the border of the picture says nothing, so the other one counts alone.
    """
    ways = (now - before).reshape(2, 2)
    lesser = np.where(np.sign(ways[0]) == np.sign(ways[1]), np.abs(ways).min(axis=0) * np.sign(ways[0]), 0)
    at_start = np.minimum(before[:2], now[:2]) <= _BORDER
    at_end = np.maximum(before[2:], now[2:]) >= np.array([width, height]) - _BORDER
    ways = np.where(at_start & at_end, 0, np.where(at_start, ways[1], np.where(at_end, ways[0], lesser)))
    shift: Floats = ways.astype(np.float32)
    return shift


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
