"""Clips of events: some seconds before to some seconds after, written beside the frame path.

Where a source keeps its packets, a clip is made of them without encoding; else of the followed frames, which are kept
as JPEG and encoded when the clip is due. Events of a stream that are close together share a clip. Every event for which
a clip is wanted is counted: asked = written + dropped (by reason) + pending.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.event import Event, Media
from streamer.analysis.event_writer import EventTime
from streamer.frame import Frame
from streamer.media.folder import MediaStore
from streamer.media.media_writer import PICTURED, MediaWriter, Snapshot, SnapshotTally
from streamer.sources.packet_clips import CutResult, PacketLimits

if TYPE_CHECKING:
    from streamer.sources.packet_clips import ClipCutter

_LONGEST_EXTENSION_S = 10.0
"""How much longer than usual a clip may become because further events follow."""
_SLACK_S = 10.0
"""How long after an event's own time it may become certain, and its clip be ordered."""
_OVERDUE_S = 3.0
"""How long a clip of a live stream waits for a frame after its end: the camera may be gone."""
_FRAMES_PER_S = 12.5
_LONGEST_SIDE = 1280
_JPEG_QUALITY = 85
_FRAMES_WAITING = 2  # frames of a decode worker occupy its few slots while they wait
_FRAME_BYTES = 64 << 20
_QUEUE_SIZE = 64
_SCRATCH = "unfinished-"
_LEFTOVER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """Seconds of a clip before and after the time of its event."""

    before_s: float = 5.0
    after_s: float = 5.0

    def packet_limits(self) -> PacketLimits:
        """What a source has to keep of its packets."""
        return PacketLimits(self.before_s + self.after_s + _LONGEST_EXTENSION_S + _SLACK_S)


@dataclass(eq=False, slots=True)
class _OpenClip:
    """A clip whose end has not come yet, with the events that it is for."""

    stream: str
    from_ns: int
    until_ns: int
    latest_ns: int  # to which it may be made longer
    causes: list[Snapshot]
    cutter: ClipCutter | None
    opened_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _KeptFrame:
    """One frame as JPEG."""

    time_ns: int
    picture: bytes


@dataclass(slots=True)
class _StreamClips:
    """What is known of one stream. `frames` is for the writing thread; the rest is for the frame path."""

    is_live: bool
    open: list[_OpenClip] = field(default_factory=list)
    last_frame_ns: int | None = None  # of those that are kept
    frames: deque[_KeptFrame] = field(default_factory=deque)
    frame_bytes: int = 0


class ClipWriter(MediaWriter[Callable[[], None]]):
    """Writes clips of events into `folder`; unfinished ones lie in a temporary folder within it.

    Clips are dropped, and counted, as `no_packets` when there is nothing of that time, `queue_full` when too many
    wait, `error` when they cannot be written and `shutdown` at the end.
    """

    def __init__(self, folder: MediaStore, span: ClipSpan, *, queue_size: int = _QUEUE_SIZE) -> None:
        """Raises `OSError` where the folder cannot be written."""
        super().__init__(folder, "clips")
        self.span = span
        self._scratch = _make_scratch(folder.local_path)
        self._queue_size = queue_size
        self._streams: dict[str, _StreamClips] = {}
        self._retired: list[tuple[str, ClipCutter]] = []
        self._clips_waiting = 0
        self._waiting_frames: Counter[str] = Counter()
        self._numbers = 0
        self._frames_dropped = 0
        self._start_thread("clips")

    @property
    def frames_dropped(self) -> int:
        """Frames that are missing in encoded clips, because encoding was behind."""
        return self._frames_dropped

    def offer(self, frame: Frame, events: Iterable[Event], cutter: ClipCutter | None, *, is_live: bool) -> bool:
        """Notes the events of one followed frame, and the frame itself where the stream keeps no packets.

        Returns at once whether a recording has to wait (`drain`), so that its clips are complete at the same frame
        each time. Called by one thread, in the order of the frames.
        """
        clips = self._streams.setdefault(frame.stream, _StreamClips(is_live))
        moment = EventTime.of(frame)
        uses_packets = cutter is not None and cutter.can_cut
        for event in events:
            track = event.data.track
            if event.type in PICTURED and track is not None:
                cause = Snapshot(frame.stream, moment, track.number, track.uid, event.id, ())
                self._open_clip(clips, cause, event.data.clock.captured_ns, cutter if uses_packets else None)
        is_queued = not uses_packets and self._queue_frame(clips, frame)
        due = [clip for clip in clips.open if frame.time_ns >= clip.until_ns]
        for clip in due:
            self._finish_clip(clips, clip)
        return not is_live and (is_queued or bool(due))

    def finish_overdue(self) -> None:
        """Writes the clips of live streams from which no frame has come for some time, and releases the packets of
        sources that were retired."""
        for clips in self._streams.values():
            for clip in list(clips.open) if clips.is_live else ():
                length_s = (clip.until_ns - clip.from_ns) / 1e9
                if time.monotonic() - clip.opened_s > length_s + _OVERDUE_S:
                    self._finish_clip(clips, clip)
        waiting = [(stream, cutter) for stream, cutter in self._retired if self.is_busy(stream)]
        for retired in self._retired:
            if retired not in waiting:
                retired[1].release()
        self._retired = waiting

    def finish(self, stream: str) -> None:
        """Writes what there is of the open clips of a stream, which has ended or was paused."""
        if (clips := self._streams.get(stream)) is not None:
            for clip in list(clips.open):
                self._finish_clip(clips, clip)

    def retire(self, stream: str, cutter: ClipCutter) -> None:
        """Has the packets of a closed source released once no clip is made of them any more."""
        self._retired.append((stream, cutter))

    def is_busy(self, stream: str) -> bool:
        """Whether something of a stream is ordered or queued. Thread-safe."""
        return self._busy[stream] > 0

    def forget(self, stream: str) -> None:
        """Drops what is kept of a stream that has ended."""
        self._streams.pop(stream, None)
        with self._condition:
            self._finished.pop(stream, None)

    def tally(self) -> SnapshotTally:
        """Returns the counts so far, without reasons for which none was dropped. Thread-safe."""
        tally = super().tally()
        return replace(tally, dropped={reason: count for reason, count in tally.dropped.items() if count})

    def close(self, timeout_s: float = 5.0) -> None:
        """See `MediaWriter.close`; what is unfinished is removed."""
        super().close(timeout_s)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _count_waiting(self) -> int:
        return self._asked - self._written - sum(self._dropped.values())

    def _open_clip(self, clips: _StreamClips, cause: Snapshot, time_ns: int, cutter: ClipCutter | None) -> None:
        until_ns = time_ns + int(self.span.after_s * 1e9)
        with self._condition:
            self._asked += 1
            if self._is_closed:
                self._dropped["shutdown"] += 1
                return
        for clip in clips.open:
            if clip.from_ns <= time_ns and until_ns <= clip.latest_ns and clip.cutter is cutter:
                clip.until_ns = max(clip.until_ns, until_ns)
                clip.causes.append(cause)
                return
        from_ns = time_ns - int(self.span.before_s * 1e9)
        clips.open.append(
            _OpenClip(cause.stream, from_ns, until_ns, until_ns + int(_LONGEST_EXTENSION_S * 1e9), [cause], cutter)
        )

    def _finish_clip(self, clips: _StreamClips, clip: _OpenClip) -> None:
        """Orders a clip: from the source's packets, or from the frames."""
        clips.open.remove(clip)
        with self._condition:
            if self._is_closed:
                return  # counted as dropped already
            if self._clips_waiting >= self._queue_size:
                self._dropped["queue_full"] += len(clip.causes)
                return
            self._numbers += 1
            self._clips_waiting += 1
            self._busy[clip.stream] += 1
        path = self._scratch / f"{self._numbers}.mp4"
        if clip.cutter is None:
            self._queue_job(clip.stream, lambda: self._encode(clips, clip, path))
            return

        def deliver(result: CutResult) -> None:
            self._queue_job(clip.stream, lambda: self._store(clip, path, result))

        clip.cutter.cut(clip.from_ns, clip.until_ns, path, deliver)

    def _queue_frame(self, clips: _StreamClips, frame: Frame) -> bool:
        """Queues a frame to be kept as JPEG, where one is due, and counts it where too many wait; returns whether a
        recording has to wait, because too many do."""
        last_ns = clips.last_frame_ns
        if last_ns is not None and 0 <= frame.time_ns - last_ns < 0.9e9 / _FRAMES_PER_S:
            return False
        with self._condition:
            is_full = self._waiting_frames[frame.stream] >= _FRAMES_WAITING
            if self._is_closed:
                return False
            if is_full and clips.is_live:
                self._frames_dropped += 1
                return False
            self._waiting_frames[frame.stream] += 1
            self._busy[frame.stream] += 1
        clips.last_frame_ns = frame.time_ns
        self._queue_job(frame.stream, lambda: self._keep_frame(clips, frame))
        return is_full

    def _queue_job(self, stream: str, job: Callable[[], None]) -> None:
        with self._condition:
            if not self._is_closed:
                self._queue.append((stream, job))
                self._condition.notify_all()

    # Everything below runs in the thread of the writer.

    def _serve_job(self, job: Callable[[], None]) -> None:
        job()

    def _keep_frame(self, clips: _StreamClips, frame: Frame) -> None:
        from streamer.media.pictures import encode_jpeg, fit_within, square_pixels

        with self._condition:
            self._waiting_frames[frame.stream] -= 1
        image = fit_within(square_pixels(frame.image, frame.pixel_aspect), _LONGEST_SIDE)
        picture = encode_jpeg(image, _JPEG_QUALITY)
        clips.frames.append(_KeptFrame(frame.time_ns, picture))
        clips.frame_bytes += len(picture)
        oldest_ns = frame.time_ns - int(self.span.packet_limits().seconds * 1e9)
        while clips.frames and (clips.frames[0].time_ns < oldest_ns or clips.frame_bytes > _FRAME_BYTES):
            clips.frame_bytes -= len(clips.frames.popleft().picture)

    def _encode(self, clips: _StreamClips, clip: _OpenClip, path: Path) -> None:
        """Encodes the kept frames of a clip's time."""
        from streamer.media.pictures import decode_jpeg
        from streamer.recorders.video_writer import VideoWriter

        kept = [frame for frame in clips.frames if clip.from_ns <= frame.time_ns <= clip.until_ns]
        if not kept:
            self._store(clip, path, CutResult(error="no_packets"))
            return
        try:
            first = decode_jpeg(kept[0].picture)
            with VideoWriter(path, (first.shape[1], first.shape[0])) as video:
                for frame in kept:
                    video.write(decode_jpeg(frame.picture), frame.time_ns)
        except Exception as error:
            self._log_failure(error)
            self._store(clip, path, CutResult(error="error"))
            return
        step_ns = (kept[-1].time_ns - kept[0].time_ns) // max(1, len(kept) - 1)
        self._store(clip, path, CutResult(kept[0].time_ns, kept[-1].time_ns + step_ns))

    def _store(self, clip: _OpenClip, path: Path, result: CutResult) -> None:
        """Moves a written clip into the folder and reports it for each of its events."""
        error, media = result.error, tuple[Media, ...]()
        if not error:
            try:
                stored = self._folder.store(path.read_bytes(), ".mp4")
                uri, sha256 = stored.uri, stored.sha256
                times = {"begin_ns": result.begin_ns, "end_ns": result.end_ns}
                media = (Media(kind="clip", uri=uri, sha256=sha256, **times),)
            except OSError as failure:
                self._log_failure(failure)
                error = "error"
        path.unlink(missing_ok=True)
        with self._condition:
            self._clips_waiting -= 1
            if self._is_closed:
                return  # counted as dropped already
            if error:
                self._dropped[error] += len(clip.causes)
                return
            self._has_failed = False
            self._written += len(clip.causes)
            finished = self._finished.setdefault(clip.stream, [])
            finished += [replace(cause, media=media) for cause in clip.causes]


def _make_scratch(folder: Path) -> Path:
    """Makes a folder for unfinished clips within `folder`, and removes those that crashes have left. Raises
    `OSError`."""
    for left in folder.glob(f"{_SCRATCH}*"):
        if left.stat().st_mtime < time.time() - _LEFTOVER_S:
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder)).absolute()
