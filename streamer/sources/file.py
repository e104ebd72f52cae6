"""Video files: every frame, in order, at the pace of whoever reads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sinks.address import redact
from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.clock import FileClock
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.handover import FrameQueue, Handover, joined
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange

if TYPE_CHECKING:
    from streamer.sources.decode import DecodeError, VideoReader

_AHEAD = 8  # decoded frames that may wait for the reader
_AHEAD_BYTES = 64 * 2**20  # what they may take together where frames are large
_JOIN_S = 5.0


class FileSource:
    """The frames of one recording, a file or an `http(s)` address of one.

    Decodes in a thread a few frames ahead of the reader and waits for it. Damaged frames are counted, never handed on.
    Where the recording ends before its own account of itself does, all that there is comes first, then `SourceError`.

    `recording` is the file, None where it lies behind an address.
    Capture times are presentation times from `start_time_ns` (UTC), else from the recording date in the container,
    else from 1970.
    """

    live = False

    def __init__(
        self, path: str, name: str, *, start_time_ns: int | None = None, on_state: OnState | None = None
    ) -> None:
        self.name = name
        self.account = FrameCounter()
        self.expected_frames: int | None = None  # by the container's own account, once it is open
        self.recording = None if "://" in path else Path(path)
        self._path = path
        self._shown = redact(path)
        self._start_time_ns = start_time_ns
        self._on_state = on_state
        self._handover: FrameQueue | None = None  # where frames go
        self._taken: Handover | None = None  # the same, where this object is iterated
        self._thread = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._closed = False

    def __repr__(self) -> str:
        return f"FileSource({self._shown!r})"

    def __aiter__(self) -> Self:
        if self._handover is None and not self._closed:
            self._taken = Handover(_AHEAD)
            self.start_reading(self._taken)
        return self

    async def __anext__(self) -> Frame:
        if self._taken is None:
            raise StopAsyncIteration
        return await self._taken.get()

    def recipe(self) -> SourceRecipe:
        arguments = {"path": self._path, "name": self.name, "start_time_ns": self._start_time_ns}
        return SourceRecipe(FileSource, arguments)

    def start_reading(self, queue: FrameQueue) -> None:
        self._handover = queue
        self._thread.start()

    async def aclose(self) -> None:
        self._closed = True
        if self._handover is None:
            return
        self.account.drop("shutdown", self._handover.close())
        await joined(self._thread, _JOIN_S)

    def _read(self) -> None:
        """The thread: decode until the end, or until nobody wants more."""
        from streamer.sources.decode import DecodeError, NoVideo, VideoReader

        handover = self._handover
        assert handover is not None
        error: Exception | None = None
        try:
            with VideoReader(self._path, open_timeout_s=15, read_timeout_s=15) as video:
                self._hand_over(video, handover)
        except NoVideo:
            error = SourceError(f"{self._shown} holds no pictures that can be decoded: give a video file")
        except DecodeError as failure:
            error = SourceError(self._explain(failure))
        except Exception as failure:  # whatever it is, the reader hears of it rather than waits for ever
            error = failure
        self._tell(SourceState.CLOSED, str(error or self._damage()))
        handover.finish(error)

    def _hand_over(self, video: VideoReader, handover: FrameQueue) -> None:
        from streamer.sources.decode import LostPictures

        self.expected_frames = video.frame_count
        clock, basis = self._clocks(video)
        first_ns = last_ns = None
        shown = lost_at_end = 0
        for picture in video.pictures():
            if isinstance(picture, LostPictures):
                lost_at_end += 1
                self.account.receive()
                self.account.drop("corrupt")
                continue
            if not shown:
                first_ns = picture.pts_ns
                handover.resize(max(2, min(_AHEAD, _AHEAD_BYTES // (picture.width * picture.height * 3))))
                self._tell(SourceState.LIVE)
            shown, last_ns, lost_at_end = shown + 1, picture.pts_ns, 0
            frame = Frame(
                self.name,
                self.account.receive(),
                clock.time_ns(picture.pts_ns),
                basis,
                picture,
                (picture.width, picture.height),
            )
            if not handover.put(frame):
                self.account.drop("shutdown")
                return
        if not shown:
            raise SourceError(f"{self._shown} holds no frame that is whole: it is damaged or was cut off")
        if first_ns is not None and last_ns is not None:
            self._check_end((last_ns - first_ns) / 1e9, lost_at_end, video.duration_s)

    def _clocks(self, video: VideoReader) -> tuple[FileClock, FrameClock]:
        if self._start_time_ns is not None:
            start_ns, uncertainty_ms = self._start_time_ns, 0.0
        elif video.recorded_ns is not None:
            start_ns, uncertainty_ms = video.recorded_ns, 1000.0  # containers keep whole seconds
        else:
            start_ns, uncertainty_ms = 0, None
        return FileClock(start_ns, video.may_jump), FrameClock("file_pts", uncertainty_ms)

    def _check_end(self, seen_s: float, lost: int, told_s: float | None) -> None:
        """Raise where the recording ended more than a second (if short, a tenth of it) before it says it does."""
        steps = self.account.tally().received - lost - 1
        if told_s is None or steps < 1:
            return
        pace_s = seen_s / steps
        if seen_s + (lost + 2) * pace_s < told_s - min(1.0, told_s / 10):
            raise SourceError(
                f"{self._shown} was cut off: it says {told_s:.1f} s and ends after {seen_s:.1f} s; "
                "what there is has been read"
            )

    def _explain(self, failure: DecodeError) -> str:
        """One sentence on why this could not be read."""
        from streamer.sources.decode import reason

        path = Path(self._path)
        if not path.is_file():
            return f"{self._shown} cannot be read: {reason(failure)}"
        try:
            with path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            return f"{self._shown} cannot be read: {error.strerror}"
        if not head:
            return f"{self._shown} is empty (0 bytes): give a video file"
        if self.account.tally().received:
            return f"{self._shown} is damaged and could not be read to its end: {reason(failure)}"
        if head[4:8] == b"ftyp":
            return (
                f"{self._shown} was cut off: without its index (moov) an MP4 cannot be read; repair it or record anew"
            )
        return f"{self._shown} is no video: {reason(failure)}"

    def _damage(self) -> str:
        tally = self.account.tally()
        lost = tally.dropped.get("corrupt", 0)
        return f"{lost} of {tally.received} frames are damaged and were left out" if lost else ""

    def _tell(self, state: SourceState, cause: str = "") -> None:
        if self._on_state is not None and self._handover is not None:
            self._handover.call(self._on_state, StateChange(self.name, state, time.time_ns(), cause))
