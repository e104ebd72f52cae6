"""Video files as sources: every frame, in order, at the pace of the reader."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sinks.address import redact
from sinks.supervision import describe_error, new_thread
from sinks.tls import TlsOptions
from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.object_store import ObjectFile, ObjectStoreError, parse_s3
from streamer.sources.clock import FileClock
from streamer.sources.completeness import is_cut_off
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.handover import FrameQueue, Handover, joined
from streamer.sources.packet_clips import PacketLimits, PacketRing
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange
from streamer.sources.transport_stream import clock_gap_ns
from streamer.sources.web import HttpConnection, WebError, WebFile

if TYPE_CHECKING:
    from streamer.sources.decode import DecodedPicture, VideoReader
    from streamer.sources.hardware import Decode
    from streamer.sources.playlist import Playlist

_AHEAD = 8  # decoded frames that may wait for the reader
_AHEAD_BYTES = 64 * 2**20  # what they may take together where frames are large
_JOIN_S = 5.0


class FileSource:
    """Frames of one recording: a file, or an `http(s)` or `s3` address of one.

    Decodes in a thread a few frames ahead of the reader and waits for it. Damaged frames are counted, never handed on.
    Where the end of the recording is missing, all that there is comes first, then `SourceError`.

    `recording` is the file, None where it lies behind an address, which is then in `remote`. `track` is the number of
    the video track, from 0; None takes the one marked as default, of several the largest. `decode` is the device
    that decodes.
    Capture times are presentation times from `start_time_ns` (UTC), else from the recording date in the container,
    else from 1970.
    """

    live = False

    def __init__(
        self,
        path: str,
        name: str,
        *,
        start_time_ns: int | None = None,
        track: int | None = None,
        decode: Decode = "cpu",
        tls: TlsOptions | None = None,
        on_state: OnState | None = None,
    ) -> None:
        self.name = name
        self.account = FrameCounter()
        self.expected_frames: int | None = None  # by the container's own account, once it is open
        self._is_web = "://" in path
        # What can be read only once, such as a named pipe, has no second reader.
        self.recording = Path(path) if not self._is_web and not Path(path).is_fifo() else None
        self.remote = path if self.recording is None else None
        self._path = path
        self._shown = redact(path)
        self._start_time_ns = start_time_ns
        self._track = track
        self._decode = decode
        self._tls = tls or TlsOptions()
        self._on_state = on_state
        self._threads = 1
        self._has_begun = False
        self._handover: FrameQueue | None = None  # where frames go
        self._taken: Handover | None = None  # the same, where this object is iterated
        self._thread = new_thread(self._read_all, name=f"read {name}", on_failure=self._finish_failed)
        self._closed = False
        self._remote_parts: WebFile | Playlist | ObjectFile | None = None
        self._ring: PacketRing | None = None

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
        arguments = {
            "path": self._path,
            "name": self.name,
            "start_time_ns": self._start_time_ns,
            "track": self._track,
            "decode": self._decode,
            "tls": self._tls,
        }
        return SourceRecipe(FileSource, arguments)

    def keep_packets(self, limits: PacketLimits, on_kept: Callable[[bool], object] | None = None) -> PacketRing:
        self._ring = PacketRing(limits, on_kept)
        return self._ring

    def use_threads(self, count: int) -> None:
        """Decode with `count` threads, where the recording can be read again. To be called before it is iterated."""
        self._threads = count

    def start_reading(self, queue: FrameQueue) -> None:
        self._handover = queue
        self._thread.start()

    async def aclose(self) -> None:
        self._closed = True
        if self._handover is None:
            return
        self.account.drop("shutdown", self._handover.close())
        await joined(self._thread, _JOIN_S)

    def _read_all(self) -> None:
        """Body of the thread: decodes until the recording ends or the reader does."""
        from streamer.sources.decode import DecodeError, NoSuchTrack, NoVideo, reason

        handover = self._handover
        assert handover is not None
        error: Exception | None = None
        try:
            self._read_video(handover)
        except NoSuchTrack as failure:
            error = SourceError(
                f"{self._shown} has no video track {self._track}: give a track from 0 to {failure.count - 1}"
            )
        except NoVideo:
            error = SourceError(f"{self._shown} holds no pictures that can be decoded: give a video file")
        except DecodeError as failure:
            error = SourceError(self._explain(reason(failure)))
        except (WebError, ObjectStoreError) as failure:
            error = SourceError(f"{self._shown} cannot be read: {failure}")
        except Exception as failure:  # any other one reaches the reader too, instead of ending this thread in silence
            error = failure
        self._report_state(SourceState.CLOSED, str(error or self._damage()))
        handover.finish(error)

    def _finish_failed(self, failure: BaseException) -> None:
        """Ends the frames with the error that ended the thread."""
        if self._handover is not None:
            self._handover.finish(SourceError(f"{self._shown} cannot be read any more: {describe_error(failure)}"))

    def _read_video(self, handover: FrameQueue) -> None:
        """Reads with several threads until damage comes, then with one, which knows what it spoils, from the start."""
        from streamer.sources.decode import DamageFound

        can_repeat = self.recording is not None and self.recording.is_file() and self._ring is None
        try:
            with self.open_reader(self._threads if can_repeat else 1) as video:
                self._hand_over(video, handover)
        except DamageFound:
            with self.open_reader() as video:
                self._hand_over(video, handover, known=self.account.tally().received)

    def open_reader(self, threads: int = 1) -> VideoReader:
        """Opens the recording, to be decoded by up to `threads`. Raises what `VideoReader`, the web and the object
        store raise."""
        from streamer.sources.decode import VideoReader

        if self._path.startswith("s3://"):
            return self._open_remote(ObjectFile(parse_s3(self._path), self._tls))
        if self._is_web:
            return self._open_web()
        # Without "file:" FFmpeg takes what stands before a colon in a file's name for a protocol.
        return VideoReader(f"file:{self._path}", track=self._track, decode=self._decode, threads=threads)

    def _open_web(self) -> VideoReader:
        from streamer.sources.playlist import Playlist
        from streamer.sources.web_kind import find_kind

        client = HttpConnection(self._path, self._tls)
        kind = find_kind(client)
        if kind.form == "playlist":
            playlist = self._remote_parts = Playlist(client, kind)
            return playlist.open_video(self._track, self._decode)
        return self._open_remote(WebFile(client, client.open()))

    def _open_remote(self, file: WebFile | ObjectFile) -> VideoReader:
        from streamer.sources.decode import VideoReader

        with contextlib.ExitStack() as stack:
            self._remote_parts = stack.enter_context(contextlib.closing(file))
            video = VideoReader(file, track=self._track, decode=self._decode)
            stack.pop_all()
        return video

    def _hand_over(self, video: VideoReader, handover: FrameQueue, known: int = 0) -> None:
        """Hands on the pictures after the first `known`, which were handed on or counted as lost before."""
        from streamer.sources.decode import LostPictures

        if self._ring is not None:
            video.keep_packets(self._ring)
        self.expected_frames = video.frame_count
        clock, basis = self._clocks(video)
        before: DecodedPicture | None = None
        for number, picture in enumerate(video.pictures()):
            if isinstance(picture, LostPictures):
                if number >= known:
                    self.account.receive()
                    self.account.drop("corrupt")
                continue
            if before is None:
                handover.resize(max(2, min(_AHEAD, _AHEAD_BYTES // (picture.width * picture.height * 3))))
                if not self._has_begun:
                    self._report_state(SourceState.LIVE)
                self._has_begun = True
            gap_ns = None
            if clock.leaps(picture.pts_ns) and before is not None:
                gap_ns = self._gap_ns(before, picture)
            time_ns = clock.time_ns(picture.pts_ns, gap_ns)
            if self._ring is not None:
                self._ring.note_time(picture.pts_ns, time_ns)
            before = picture
            if number < known:
                if self._closed:
                    return
                continue
            frame = Frame(
                self.name,
                self.account.receive(),
                time_ns,
                basis,
                picture,
                (picture.width, picture.height),
                picture.pixel_aspect,
            )
            if not handover.put(frame):
                self.account.drop("shutdown")
                return
        if before is None and self.recording is not None and _is_animated_webp(self.recording):
            raise SourceError(f"{self._shown} is an animated WebP, which cannot be decoded here: convert it to a video")
        if before is None:
            raise SourceError(f"{self._shown} holds no frame that is whole: it is damaged or was cut off")
        if self._remote_parts is not None and self._remote_parts.broken is not None:
            raise self._remote_parts.broken
        self._check_end(video)

    def _gap_ns(self, before: DecodedPicture, after: DecodedPicture) -> int | None:
        if self.recording is None or before.place is None or after.place is None:
            return None
        return clock_gap_ns(self.recording, before.place, after.place)

    def _clocks(self, video: VideoReader) -> tuple[FileClock, FrameClock]:
        if self._start_time_ns is not None:
            start_ns, uncertainty_ms = self._start_time_ns, 0.0
        elif video.recorded_ns is not None:
            start_ns, uncertainty_ms = video.recorded_ns, 1000.0  # containers keep whole seconds
        else:
            start_ns, uncertainty_ms = 0, None
        if video.times != "own" and uncertainty_ms is not None:
            uncertainty_ms += video.frame_ns / 1e6  # times follow from the order of pictures
        return FileClock(start_ns, video.frame_ns, video.may_jump), FrameClock("file_pts", uncertainty_ms)

    def _check_end(self, video: VideoReader) -> None:
        """Raises `SourceError` where the end of the recording is missing.

        It is where fewer frames came than the container counts, or where the last one ends more than a second (if
        short, a tenth of it, but some frames) before the recording should, unless the file is whole by its structure.
        Where bytes are missing by its structure, every frame that is missing counts.
        """
        is_cut = None if self.recording is None else is_cut_off(self.recording)
        if is_cut is False:
            return
        counted, stated_ns, end_ns = video.frame_count, video.stated_end_ns, video.end_ns
        if counted is not None and video.frames_read < counted - (0 if is_cut else max(1, counted // 100)):
            raise SourceError(
                f"{self._shown} was cut off: it says {counted} frames and ends after {video.frames_read}; "
                "what there is has been read"
            )
        if counted is None and is_cut and (stated_ns is None or stated_ns <= 0):
            raise SourceError(f"{self._shown} was cut off: bytes are missing at its end; what there is has been read")
        if counted is not None or stated_ns is None or end_ns is None or stated_ns <= 0:
            return
        slack_ns = min(1_000_000_000, max(stated_ns // 10, 4 * video.frame_ns))
        if end_ns < stated_ns - (video.frame_ns if is_cut else slack_ns):
            raise SourceError(
                f"{self._shown} was cut off: it says {stated_ns / 1e9:.1f} s and ends after {end_ns / 1e9:.1f} s; "
                "what there is has been read"
            )

    def _explain(self, cause: str) -> str:
        """One sentence on why this could not be read."""
        path = Path(self._path)
        if self._is_web or not path.is_file():
            return f"{self._shown} cannot be read: {cause}"
        try:
            with path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            return f"{self._shown} cannot be read: {error.strerror}"
        if not head:
            return f"{self._shown} is empty (0 bytes): give a video file"
        if self.account.tally().received:
            return f"{self._shown} is damaged and could not be read to its end: {cause}"
        if head[4:8] == b"ftyp" and is_cut_off(path):
            return f"{self._shown} was cut off: without its index (moov) an MP4 cannot be read; repair or re-record it"
        return f"{self._shown} is not a video: {cause}"

    def _damage(self) -> str:
        tally = self.account.tally()
        lost = tally.dropped.get("corrupt", 0)
        return f"{lost} of {tally.received} frames are damaged and were left out" if lost else ""

    def _report_state(self, state: SourceState, cause: str = "") -> None:
        if self._on_state is not None and self._handover is not None:
            self._handover.call(self._on_state, StateChange(self.name, state, time.time_ns(), cause))


def _is_animated_webp(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and b"ANIM" in head
