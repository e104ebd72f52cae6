"""Video recorder: an MP4 of a stream with its tracks, zones and lines drawn in."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import supervision as sv

from streamer.recorders.text import OutputError
from streamer.rules.places import Line, Zone

if TYPE_CHECKING:
    from streamer.frame import Frame
    from streamer.recorders.painter import BoxPainter, LineCounts
    from streamer.recorders.video_writer import VideoWriter

NameOf = Callable[[int], str]
Places = tuple[Sequence[Zone], Sequence[Line]]
PlacesOf = Callable[[], Places]
log = logging.getLogger("groundstream")


class AnnotatedVideo:
    """An MP4 of the stream with its tracks drawn in. Drawing and encoding happen beside the frame path; with `wait`
    (recordings) every frame is written, else (live) frames that come too fast for the encoder are left out and counted
    in `skipped`. `places` returns the zones and lines to draw, which may change while the stream runs."""

    _AHEAD = 8

    def __init__(self, path: Path, name_of: NameOf, places: PlacesOf, *, wait: bool) -> None:
        self.path = path
        self.skipped = 0
        self._name_of = name_of
        self._places_of = places
        self._wait = wait
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="video")
        self._pending: deque[asyncio.Future[None]] = deque()
        self._painter: BoxPainter | None = None
        self._painted: tuple[tuple[int, int], Places] | None = None
        self._writer: VideoWriter | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path.parent}: {error.strerror}") from error

    async def write(self, frame: Frame, tracked: sv.Detections, *, analysed: bool) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        if len(self._pending) >= self._AHEAD:
            if not self._wait:
                if not self.skipped:
                    log.warning("%s cannot be encoded as fast as the stream comes: frames are left out", self.path)
                self.skipped += 1
                return
            await self._pending.popleft()
        loop = asyncio.get_running_loop()
        places = self._places_of()
        counts = [dict(line.counts) for line in places[1]]  # as of this frame: drawing comes later
        self._pending.append(loop.run_in_executor(self._pool, self._draw_frame, frame, tracked, places, counts))

    async def aclose(self) -> None:
        while self._pending:
            await self._pending.popleft()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await asyncio.to_thread(writer.close)
        self._pool.shutdown(wait=False)
        if self.skipped:
            log.warning("%s: %d frames were left out", self.path, self.skipped)

    def _draw_frame(self, frame: Frame, tracked: sv.Detections, places: Places, counts: LineCounts) -> None:
        size = (frame.width, frame.height)
        if self._painter is None or (size, places) != self._painted:
            from streamer.recorders.painter import BoxPainter

            self._painter, self._painted = BoxPainter(size, self._name_of, *places), (size, places)
        if self._writer is None:
            from streamer.recorders.video_writer import VideoWriter

            self._writer = VideoWriter(self.path, size, pixel_aspect=frame.pixel_aspect)
        self._writer.write(self._painter.paint(frame.image, tracked, counts), frame.time_ns, frame.pixel_aspect)
