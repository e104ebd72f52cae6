"""Trials of a query on the recent past: what would these words have matched in the last minute?"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detectors.detector import DOUBTFUL_SHARE
from sinks.event import rfc3339
from streamer.web.problems import Problem
from streamer.web.track_history import score_histogram, suggest_threshold

if TYPE_CHECKING:
    from streamer.web.control import ControlRoom
    from streamer.web.live_frames import RememberedFrame

LEAST_SCORE = 0.05
SAME_OBJECT_IOU = 0.5
_MOST_RUNS = 8
_MOST_FRAMES = 120
_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(slots=True, eq=False)
class PreviewRun:
    """One trial: its results so far, oldest first, and the task that makes them. `pictures` holds the JPEG of each
    frame by its index: they must stay while the page shows them, also when the memory has gone on."""

    id: str
    stream: str
    owner: str
    frames: int
    pictures: dict[int, bytes] = field(default_factory=dict, repr=False)
    results: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    error: str = ""
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields ("frame", ...) for each result and one ("end", ...) or ("error", ...) at last."""
        position = 0
        while True:
            while position < len(self.results):
                yield "frame", self.results[position]
                position += 1
            if self.error:
                yield "error", {"detail": self.error}
                return
            if self.summary is not None:
                yield "end", self.summary
                return
            self.changed.clear()
            await self.changed.wait()

    def finish(self, error: str = "") -> None:
        """Ends the trial with its summary or an error."""
        if error:
            self.error = error
        elif self.summary is None:
            self.summary = _summarise(self.results, self.frames)
        self.changed.set()


@dataclass(slots=True)
class PreviewRuns:
    """The trials of all logins, one at a time for each."""

    runs: dict[str, PreviewRun] = field(default_factory=dict)

    def start(
        self,
        control: ControlRoom,
        stream: str,
        owner: str,
        frames: Sequence[RememberedFrame],
        text: str,
        unless: Sequence[str],
    ) -> PreviewRun:
        """Begins a trial on remembered frames, the newest first; an earlier trial of the same login is cancelled."""
        if not frames:
            raise Problem(409, f"there are no pictures of {stream!r} in memory yet: wait a moment and try again")
        for run in [run for run in self.runs.values() if run.owner == owner]:
            self.cancel(run.id)
        while len(self.runs) >= _MOST_RUNS:
            self.cancel(next(iter(self.runs)))
        chosen = list(frames)[-_MOST_FRAMES:][::-1]
        run = PreviewRun(secrets.token_urlsafe(9), stream, owner, len(chosen))
        run.pictures = {frame.index: frame.picture for frame in chosen}
        self.runs[run.id] = run
        run.task = asyncio.create_task(_try_frames(control, run, chosen, (text, *unless)), name="query-preview")
        return run

    def find(self, stream: str, run_id: str) -> PreviewRun:
        """Returns a trial. Raises `Problem` 404 for an unknown one."""
        run = self.runs.get(run_id)
        if run is None or run.stream != stream:
            raise Problem(404, "there is no such trial: it was cancelled or another one has begun")
        return run

    def find_picture(self, stream: str, index: int) -> bytes | None:
        """Returns a picture of a trial's frame as JPEG."""
        for run in self.runs.values():
            if run.stream == stream and index in run.pictures:
                return run.pictures[index]
        return None

    def cancel(self, run_id: str) -> None:
        """Ends a trial and forgets it."""
        run = self.runs.pop(run_id, None)
        if run is not None:
            if run.task is not None:
                run.task.cancel()
            run.finish("the trial was cancelled")

    def close(self) -> None:
        """Ends all trials."""
        for run_id in list(self.runs):
            self.cancel(run_id)


async def _try_frames(
    control: ControlRoom, run: PreviewRun, frames: Sequence[RememberedFrame], texts: tuple[str, ...]
) -> None:
    try:
        for frame in frames:
            image = await asyncio.to_thread(_decode, frame.picture)
            (found,) = await control.run_detector([image], texts, LEAST_SCORE / DOUBTFUL_SHARE)
            run.results.append(_describe(frame, image.shape, found))
            run.changed.set()
        run.finish()
    except asyncio.CancelledError:
        raise
    except Exception as error:  # its sentence is the answer; the page must not wait for ever
        run.finish(str(error) or type(error).__name__)


def _decode(picture: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)


def _describe(frame: RememberedFrame, shape: Sequence[int], found: Any) -> dict[str, Any]:
    """The boxes of the first text in one frame that no other text answers better."""
    height, width = shape[:2]
    boxes = np.asarray(found.xyxy, np.float64) / np.array([width, height, width, height])
    scores, labels = np.asarray(found.confidence, np.float64), np.asarray(found.class_id)
    detections = []
    for row in range(len(boxes)):
        if labels[row] != 0 or scores[row] < LEAST_SCORE:
            continue
        rivals = [
            scores[other] for other in range(len(boxes)) if labels[other] and _iou(boxes[row], boxes[other]) > 0.8
        ]
        if rivals and max(rivals) > scores[row]:
            continue
        track = next((t["number"] for t in frame.tracks if _iou(boxes[row], t["box"]) >= SAME_OBJECT_IOU), None)
        box = [round(float(value), 5) for value in np.clip(boxes[row], 0, 1)]
        detections.append({"box": box, "score": round(float(scores[row]), 4), "track": track})
    return {"time": rfc3339(frame.time_ns), "index": frame.index, "detections": detections}


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


def link_detections(results: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the best score of each object that the detections of successive frames show.

    A detection continues an object when they share a track, or when their boxes overlap by 0.3 in frames next to one
    another.
    """
    best: list[float] = []
    by_track: dict[int, int] = {}
    open_boxes: list[tuple[int, Sequence[float]]] = []
    for result in results:
        following: list[tuple[int, Sequence[float]]] = []
        for detection in result["detections"]:
            track, box, score = detection["track"], detection["box"], detection["score"]
            number = by_track.get(track) if track is not None else None
            if number is None:
                overlaps = [(_iou(box, other), known) for known, other in open_boxes]
                overlap, known = max(overlaps, default=(0.0, -1))
                number = known if overlap >= 0.3 else len(best)
            if number == len(best):
                best.append(0.0)
            if track is not None:
                by_track.setdefault(track, number)
            best[number] = max(best[number], score)
            following.append((number, box))
        open_boxes = following
    return best


def _summarise(results: Sequence[dict[str, Any]], frames: int) -> dict[str, Any]:
    """Counts at each threshold, the histogram of objects' best scores, and a suggested threshold."""
    scores = [detection["score"] for result in results for detection in result["detections"]]
    on_tracks = [
        detection["score"] for result in results for detection in result["detections"] if detection["track"] is not None
    ]
    objects = link_detections(results)
    counts = [
        {
            "threshold": threshold,
            "objects": sum(score >= threshold for score in objects),
            "detections": sum(score >= threshold for score in scores),
            "on_tracks": sum(score >= threshold for score in on_tracks),
        }
        for threshold in _THRESHOLDS
    ]
    return {
        "frames": frames,
        "objects": [round(score, 4) for score in objects],
        "counts": counts,
        "histogram": score_histogram(objects),
        "suggested_threshold": suggest_threshold(objects),
    }
