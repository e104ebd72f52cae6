"""Snapshots of events: the best view so far of each track, encoded and written by a thread outside the frame path.

The pipeline offers each analysed frame with its tracks and events and goes on at once. The thread keeps the best view
of each open track as JPEG in memory, and writes it for events of matches, zones and lines. Every event for which
pictures are wanted is counted: asked = written + dropped (by reason) + pending.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sinks.event import Box, Event, Media
from streamer.analysis.event_writer import EventTime
from streamer.frame import Frame
from streamer.media.folder import MediaStore
from streamer.media.media_writer import PICTURED, MediaWriter, Snapshot

if TYPE_CHECKING:
    import supervision as sv

VIEW_EVERY_S = 0.5
"""Least capture time between two frames of a stream that are kept for better views."""
BETTER_VIEW = 1.25
"""How much better a view must be to replace the one that is kept."""
_BORDER = 0.01
_BORDER_QUALITY = 0.5
_JPEG_QUALITY = 90
_QUEUE_SIZE = 32
_VIEWS_WAITING = 4
_VIEW_BYTES = 128 << 20

Kept = Literal["full", "crop"]


@dataclass(frozen=True, slots=True)
class _TrackBox:
    """A track in a frame: its box (x1, y1, x2, y2, fractions) and the quality of the view, above 0."""

    number: int
    box: tuple[float, float, float, float]
    quality: float


@dataclass(frozen=True, slots=True)
class _View:
    """A kept view of a track: the whole frame as JPEG, the track's box in it and the capture time."""

    picture: bytes
    box: tuple[float, float, float, float]
    time_ns: int


@dataclass(frozen=True, slots=True)
class _PictureRequest:
    """What is to be done with one frame, in this order: views to keep, snapshots to write, tracks to forget."""

    frame: Frame
    views: Sequence[_TrackBox]
    wanted: Sequence[Snapshot]
    ended: Sequence[int]


class SnapshotWriter(MediaWriter[_PictureRequest]):
    """Writes pictures of events into `folder`: the full frame, the same with the box, and the part around the track;
    with `kept` crop the part alone.

    Pictures are dropped, and counted, as `queue_full` when too many frames wait, `no_view` when the track was never
    seen well enough, `error` when they cannot be written and `shutdown` at the end.
    """

    def __init__(self, folder: MediaStore, kept: Kept = "full", *, queue_size: int = _QUEUE_SIZE) -> None:
        super().__init__(folder, "pictures")
        self._kept = kept
        self._queue_size = queue_size
        self._best: dict[tuple[str, int], float] = {}  # quality of the views that are kept or queued
        self._next_view_ns: dict[str, int] = {}
        self._views: OrderedDict[tuple[str, int], _View] = OrderedDict()
        self._view_bytes = 0
        self._start_thread("snapshots")

    def offer(self, frame: Frame, tracked: sv.Detections, events: Iterable[Event]) -> bool:
        """Queue what one analysed frame gives; returns at once whether anything was queued.

        `tracked` holds the frame's tracks, `xyxy` in pixels. Called by one thread, in the order of the frames.
        """
        stream = frame.stream
        with_track = [(event, event.data.track) for event in events if event.data.track is not None]
        moment = EventTime.of(frame)
        wanted = [
            Snapshot(stream, moment, track.number, track.uid, event.id, ())
            for event, track in with_track
            if event.type in PICTURED
        ]
        ended = [track.number for _, track in with_track if track.state == "ended"]
        is_due = frame.time_ns >= self._next_view_ns.get(stream, 0)
        views = self._find_better(frame, tracked, {snapshot.track_number for snapshot in wanted}, is_due=is_due)
        if not (views or wanted or ended):
            return False
        with self._condition:
            self._asked += len(wanted)
            limit = self._queue_size if wanted or ended else min(_VIEWS_WAITING, self._queue_size)
            if self._is_closed or len(self._queue) >= limit:
                self._dropped["shutdown" if self._is_closed else "queue_full"] += len(wanted)
                return False
            self._queue.append((stream, _PictureRequest(frame, views, wanted, ended)))
            self._busy[stream] += 1
            self._best.update({(stream, view.number): view.quality for view in views})
            self._condition.notify_all()
        if is_due and views:
            self._next_view_ns[stream] = frame.time_ns + int(VIEW_EVERY_S * 1e9)
        return True

    def forget(self, stream: str) -> None:
        """Drop the views of a stream that has ended, and what is finished of it."""
        self._next_view_ns.pop(stream, None)
        with self._condition:
            self._finished.pop(stream, None)
            for key in [key for key in self._best if key[0] == stream]:
                self._drop_view(key)

    def _count_waiting(self) -> int:
        return sum(len(request.wanted) for _, request in self._queue)

    def _find_better(self, frame: Frame, tracked: sv.Detections, wanted: set[int], *, is_due: bool) -> list[_TrackBox]:
        """Tracks that this frame shows better than their kept view: those of events, and others where it is due."""
        import numpy as np

        if not (wanted or is_due) or tracked.tracker_id is None or not len(tracked):
            return []
        size = np.array([frame.width, frame.height, frame.width, frame.height], np.float64)
        boxes = np.clip(np.asarray(tracked.xyxy, np.float64) / size, 0.0, 1.0)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
        scores = np.ones(len(boxes)) if tracked.confidence is None else np.asarray(tracked.confidence, np.float64)
        qualities = scores * np.sqrt(sides.prod(axis=1))
        at_border = (boxes[:, :2] <= _BORDER).any(axis=1) | (boxes[:, 2:] >= 1 - _BORDER).any(axis=1)
        qualities[at_border] *= _BORDER_QUALITY
        found = []
        rows = zip(tracked.tracker_id.tolist(), boxes.tolist(), qualities.tolist(), strict=True)
        for number, (x1, y1, x2, y2), quality in rows:
            if not is_due and number not in wanted:
                continue
            factor = 1.0 if number in wanted else BETTER_VIEW
            if quality > factor * self._best.get((frame.stream, number), 0.0):
                found.append(_TrackBox(number, (x1, y1, x2, y2), quality))
        return found

    # Everything below runs in the thread of the writer.

    def _serve_job(self, request: _PictureRequest) -> None:
        stream = request.frame.stream
        try:
            self._keep_views(request)
        except Exception as error:
            self._log_failure(error)
            with self._condition:
                for lost in request.views:
                    self._best.pop((stream, lost.number), None)
        for snapshot in request.wanted:
            view = self._views.get((stream, snapshot.track_number))
            if view is None:
                self._count_dropped("no_view")
                continue
            try:
                media = self._write_view(view)
            except Exception as error:
                self._count_dropped("error")
                self._log_failure(error)
                continue
            self._has_failed = False
            with self._condition:
                self._written += 1
                self._finished.setdefault(stream, []).append(replace(snapshot, media=media))
        with self._condition:
            for number in request.ended:
                self._drop_view((stream, number))

    def _keep_views(self, request: _PictureRequest) -> None:
        if not request.views:
            return
        from streamer.media.pictures import encode_jpeg, square_pixels

        frame = request.frame
        picture = encode_jpeg(square_pixels(frame.image, frame.pixel_aspect), _JPEG_QUALITY)
        with self._condition:
            for view in request.views:
                key = (frame.stream, view.number)
                if (replaced := self._views.pop(key, None)) is not None:
                    self._view_bytes -= len(replaced.picture)
                self._views[key] = _View(picture, view.box, frame.time_ns)
                self._view_bytes += len(picture)
            while self._view_bytes > _VIEW_BYTES and len(self._views) > 1:
                self._drop_view(next(iter(self._views)))

    def _drop_view(self, key: tuple[str, int]) -> None:
        """Forget a view, so that the next one is kept whatever its quality; under the lock."""
        self._best.pop(key, None)
        if (view := self._views.pop(key, None)) is not None:
            self._view_bytes -= len(view.picture)

    def _write_view(self, view: _View) -> tuple[Media, ...]:
        """Stores the pictures of a view. Raises `OSError`, `ValueError`."""
        from streamer.media.pictures import cut_around, decode_jpeg, draw_box, encode_jpeg

        image = decode_jpeg(view.picture)
        crop = self._store(view, "crop", encode_jpeg(cut_around(image, view.box), _JPEG_QUALITY))
        if self._kept == "crop":
            return (crop,)
        boxed = encode_jpeg(draw_box(image, view.box), _JPEG_QUALITY)
        return (
            self._store(view, "snapshot", view.picture),
            self._store(view, "snapshot", boxed, is_boxed=True),
            crop,
        )

    def _store(
        self, view: _View, kind: Literal["snapshot", "crop"], picture: bytes, *, is_boxed: bool = False
    ) -> Media:
        stored = self._folder.store(picture, ".jpg")
        x1, y1, x2, y2 = (round(value, 6) for value in view.box)
        return Media(
            kind=kind,
            uri=stored.uri,
            sha256=stored.sha256,
            boxed=True if is_boxed else None,
            captured_ns=view.time_ns,
            box=Box(x1=x1, y1=y1, x2=x2, y2=y2),
        )

    def _count_dropped(self, reason: str) -> None:
        with self._condition:
            self._dropped[reason] += 1
