"""Newest frame of each live stream with its own tracks, as pictures and JSON for viewers.

`LiveRecorder` stands in the frame path: it puts each frame into a slot of one and returns. `LiveFrames` belongs to the
web server: it scales and encodes in its own threads, once for each stream and width that is watched.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from streamer.media.pictures import Image, encode_jpeg
from streamer.web.track_history import TrackHistory

if TYPE_CHECKING:
    import supervision as sv

    from streamer.analysis.stream_analysis import StreamAnalysis
    from streamer.frame import Frame

JPEG_QUALITY = 75
WIDTHS = (320, 480, 640, 960, 1280, 1920)
"""Widths in pixels that viewers get: a request is rounded up to one of them, so that viewers share encodings."""
MEMORY_FPS = 2.0
MEMORY_SIDE = 960
MEMORY_BYTES_STREAM = 64 << 20
MEMORY_BYTES = 512 << 20
_ENCODINGS_KEPT = 64
_COLOURS = ((255, 155, 47), (31, 138, 255), (115, 181, 34), (214, 88, 176), (60, 200, 230), (80, 80, 235))


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A followed frame with what was seen in it. `tracks` is JSON-ready, boxes as fractions of the frame."""

    frame: Frame
    tracks: list[dict[str, Any]]
    analysed: bool
    received_s: float

    @property
    def index(self) -> int:
        """The frame's index in its stream."""
        return self.frame.index


@dataclass(frozen=True, slots=True)
class RememberedFrame:
    """A frame of the recent past as JPEG, longest side 960 pixels at most."""

    index: int
    time_ns: int
    picture: bytes
    tracks: list[dict[str, Any]]


@dataclass(slots=True)
class _StreamSlot:
    """What is kept of one stream: the newest frame, the recent past and the tracks' history."""

    analysis: StreamAnalysis
    newest: LiveFrame | None = None
    memory: deque[RememberedFrame] = field(default_factory=deque)
    memory_bytes: int = 0
    remembered_ns: int = 0
    remembering: bool = False
    history: TrackHistory = field(default_factory=TrackHistory)


class LiveRecorder:
    """The recorder of one stream's live picture. Never waits: a newer frame replaces one that was not sent."""

    def __init__(self, stream: str, slot: _StreamSlot, frames: LiveFrames) -> None:
        self._stream = stream
        self._slot = slot
        self._frames = frames

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        """Keeps the frame as the newest one, with its tracks."""
        slot = self._slot
        tracks = _describe_tracks(frame, tracked, slot.analysis)
        if analysed:
            slot.history.add(frame.time_ns, tracked, tracks, slot.analysis.queries.at())
        slot.newest = LiveFrame(frame, tracks, analysed, time.monotonic())
        self._frames.announce(self._stream, slot)

    async def aclose(self) -> None:
        """Forgets the stream's pictures."""
        self._frames.forget(self._stream, self._slot)


class LiveFrames:
    """Newest frames, encodings and picture memory of all streams. Thread-safe."""

    def __init__(self, *, memory_s: float = 60.0) -> None:
        self._memory_s = memory_s
        self._lock = threading.Lock()
        self._slots: dict[str, _StreamSlot] = {}
        self._listeners: set[Callable[[str], object]] = set()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="web-encoder")
        self._encodings: OrderedDict[tuple[str, int, int, bool], Future[bytes]] = OrderedDict()
        self.failures = 0
        """Frames whose encoding failed."""

    def new_recorder(self, stream: str, analysis: StreamAnalysis) -> LiveRecorder:
        """Returns the recorder of a stream, which replaces an earlier one of that name."""
        slot = _StreamSlot(analysis)
        with self._lock:
            self._slots[stream] = slot
        return LiveRecorder(stream, slot, self)

    def streams(self) -> list[str]:
        """Returns the names of the streams that are recorded."""
        with self._lock:
            return list(self._slots)

    def newest(self, stream: str) -> LiveFrame | None:
        """Returns a stream's newest frame, None before the first and for an unknown stream."""
        slot = self._slots.get(stream)
        return None if slot is None else slot.newest

    def history(self, stream: str) -> TrackHistory | None:
        """Returns the tracks' history of a stream."""
        slot = self._slots.get(stream)
        return None if slot is None else slot.history

    def remembered(self, stream: str) -> list[RememberedFrame]:
        """Returns the frames of the recent past, oldest first."""
        with self._lock:
            slot = self._slots.get(stream)
            return [] if slot is None else list(slot.memory)

    def listen(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Calls `listener` with the stream's name for each new frame; returns the function that ends it."""
        self._listeners = {*self._listeners, listener}

        def stop() -> None:
            self._listeners = self._listeners - {listener}

        return stop

    async def encode(self, stream: str, live: LiveFrame, width: int, *, boxes: bool = False) -> bytes:
        """Returns the frame as JPEG, at most `width` pixels wide; encodes once however many viewers wait for it."""
        width = round_width(width)
        key = (stream, live.index, width, boxes)
        with self._lock:
            future = self._encodings.get(key)
            if future is None:
                future = self._encoder.submit(encode_frame, live, width, boxes)
                self._encodings[key] = future
                while len(self._encodings) > _ENCODINGS_KEPT:
                    self._encodings.popitem(last=False)
        return await asyncio.shield(asyncio.wrap_future(future))

    def announce(self, stream: str, slot: _StreamSlot) -> None:
        """Tells listeners of a new frame, and remembers it when its turn has come."""
        live = slot.newest
        assert live is not None
        for listener in self._listeners:
            listener(stream)
        is_due = abs(live.frame.time_ns - slot.remembered_ns) >= 1e9 / MEMORY_FPS
        if self._memory_s > 0 and live.analysed and is_due and not slot.remembering:
            slot.remembered_ns, slot.remembering = live.frame.time_ns, True
            try:
                self._encoder.submit(self._remember, slot, live)
            except RuntimeError:  # the server is shutting down
                slot.remembering = False

    def forget(self, stream: str, slot: _StreamSlot) -> None:
        """Drops a stream that has ended, unless another of its name has begun."""
        with self._lock:
            if self._slots.get(stream) is slot:
                del self._slots[stream]

    def close(self) -> None:
        """Ends the encoding thread."""
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _remember(self, slot: _StreamSlot, live: LiveFrame) -> None:
        try:
            height, width = live.frame.height, live.frame.width
            scale = min(1.0, MEMORY_SIDE / max(height, width))
            picture = encode_jpeg(resize(live.frame.image, round(width * scale)), JPEG_QUALITY)
            kept = RememberedFrame(live.index, live.frame.time_ns, picture, live.tracks)
            with self._lock:
                slot.memory.append(kept)
                slot.memory_bytes += len(picture)
                oldest_ns = live.frame.time_ns - int(self._memory_s * 1e9)
                while slot.memory and (slot.memory[0].time_ns < oldest_ns or slot.memory_bytes > MEMORY_BYTES_STREAM):
                    slot.memory_bytes -= len(slot.memory.popleft().picture)
                self._limit_total()
        except Exception:  # a picture that cannot be encoded is counted and must not end the encoder
            self.failures += 1
        finally:
            slot.remembering = False

    def _limit_total(self) -> None:
        while sum(slot.memory_bytes for slot in self._slots.values()) > MEMORY_BYTES:
            largest = max(self._slots.values(), key=lambda slot: slot.memory_bytes)
            largest.memory_bytes -= len(largest.memory.popleft().picture)


def round_width(width: int) -> int:
    """Returns the smallest offered width that is at least `width`."""
    return next((offered for offered in WIDTHS if offered >= width), WIDTHS[-1])


def resize(image: Image, width: int) -> Image:
    """Returns the image at most `width` pixels wide: halved while that suffices, then scaled linearly."""
    while image.shape[1] >= 2 * width and min(image.shape[:2]) >= 2:
        image = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    if image.shape[1] > width:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return image


def encode_frame(live: LiveFrame, width: int, boxes: bool) -> bytes:
    """Returns a live frame as JPEG, with its tracks drawn on it where `boxes` is true."""
    image = resize(live.frame.image, width)
    return encode_jpeg(draw_tracks(image, live.tracks) if boxes else image, JPEG_QUALITY)


def draw_tracks(image: Image, tracks: Iterable[dict[str, Any]]) -> Image:
    """Returns a copy of the image with boxes and labels for programs that cannot draw them."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    for track in tracks:
        x1, y1, x2, y2 = track["box"]
        start, end = (round(x1 * width), round(y1 * height)), (round(x2 * width), round(y2 * height))
        match = track["matches"][0] if track["matches"] else None
        text = f"#{track['number']}" + (f" {match['text']} {match['score']:.2f}" if match else "")
        colour = _COLOURS[(match["number"] if match else 0) % len(_COLOURS)]
        cv2.rectangle(canvas, start, end, colour, 2)
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        left, top = max(0, min(start[0], width - wide - 6)), max(0, start[1] - high - 8)
        cv2.rectangle(canvas, (left, top), (left + wide + 6, top + high + 8), colour, cv2.FILLED)
        place = (left + 3, top + high + 3)
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def _describe_tracks(frame: Frame, tracked: sv.Detections, analysis: StreamAnalysis) -> list[dict[str, Any]]:
    """The tracks of one frame as viewers get them."""
    if not len(tracked) or tracked.tracker_id is None:
        return []
    size = np.array([frame.width, frame.height, frame.width, frame.height], np.float64)
    boxes = np.clip(np.asarray(tracked.xyxy, np.float64) / size, 0.0, 1.0).round(5).tolist()
    scores: Sequence[float] = [1.0] * len(tracked) if tracked.confidence is None else tracked.confidence.tolist()
    labels: Sequence[int] = [0] * len(tracked) if tracked.class_id is None else tracked.class_id.tolist()
    described = []
    for number, box, score, label in zip(tracked.tracker_id.tolist(), boxes, scores, labels, strict=True):
        record = analysis.tracks.find(number)
        matches = [
            {"query": query.id, "number": query.number, "text": query.text, "score": round(min(1.0, value), 3)}
            for query, value in _matched_queries(analysis, number, label, score)
        ]
        described.append(
            {
                "number": number,
                "uid": "" if record is None else record.uid,
                "box": box,
                "state": "confirmed" if record is None else record.state,
                "matches": matches,
            }
        )
    return described


def _matched_queries(analysis: StreamAnalysis, track: int, label: int, score: float) -> list[tuple[Any, float]]:
    """The queries that a track matches with their scores; that of its detection while none is decided."""
    found = sorted(analysis.matches.scores(track).items(), key=lambda item: -item[1])
    if not found:
        try:
            return [(analysis.queries.known(label), score)]
        except KeyError:
            return []
    return [(analysis.queries.known(number), value) for number, value in found]
