"""Decoding with PyAV.

`VideoReader` opens anything FFmpeg reads and yields its pictures in presentation order. Damaged pictures are
never yielded: a `LostPictures` counts them for the reader.
"""

from __future__ import annotations

import datetime
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import av.error
from av.format import Flags
from av.stream import Disposition

from streamer.sources.h264 import FrameNumbers
from streamer.sources.planes import PictureLayout, layout_of, pack_planes, upright_bgr

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DecodeError = av.error.FFmpegError
Unauthorised = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
NotFound = av.error.HTTPNotFoundError
TimedOut = (av.error.ExitError, av.error.TimeoutError)


class NoVideo(Exception):
    """What was opened holds no picture stream that can be decoded."""


@dataclass(frozen=True, slots=True)
class LostPictures:
    """A frame that arrived damaged, or cannot be shown because it builds on one that did or never came."""

    pts_ns: int | None


class DecodedPicture:
    """One decoded picture. `pts_ns` is its presentation time in the container's clock, None where it has none.

    `sender_ns` is the sender's own wall clock (UTC) at capture, from RTCP sender reports, None where there are none.
    Calling the picture gives its pixels: BGR, (height, width, 3), uint8, upright; converted at the first call, from any
    thread, and the decoder's own memory is let go then.
    """

    __slots__ = ("_frame", "_lock", "_pixels", "_turns", "height", "pts_ns", "sender_ns", "width")

    def __init__(self, frame: VideoFrame, pts_ns: int | None, sender_ns: int | None) -> None:
        self.pts_ns = pts_ns
        self.sender_ns = sender_ns
        self._turns = round(frame.rotation / 90) % 4  # quarter turns, anticlockwise
        self.width, self.height = (frame.height, frame.width) if self._turns % 2 else (frame.width, frame.height)
        self._frame: VideoFrame | None = frame
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> npt.NDArray[np.uint8]:
        with self._lock:
            if self._frame is not None:
                self._pixels = upright_bgr(self._frame, self._turns)
                self._frame = None
            assert self._pixels is not None
            return self._pixels

    def packing(self) -> tuple[PictureLayout, Callable[[memoryview], None]] | None:
        """How to copy the picture as it was decoded: its layout and the function that fills a buffer; None where it
        has to be converted."""
        with self._lock:
            frame = self._frame
        layout = None if frame is None else layout_of(frame, self._turns)
        return None if frame is None or layout is None else (layout, partial(pack_planes, frame))


class _PictureGroup:
    """A key picture and those that build on it, in decoding order. Damage to one is damage to all that follow."""

    __slots__ = ("_key_pts_ns", "_previous", "broken")

    def __init__(self, key_pts_ns: int | None, previous: _PictureGroup | None) -> None:
        self._key_pts_ns = key_pts_ns
        self._previous = previous
        self.broken = False
        if previous is not None:
            previous._previous = None  # only neighbours matter, and the chain must not grow

    def shows(self, pts_ns: int | None) -> bool:
        """Whether a picture of this group is whole. One shown before the key picture builds on the last group, too."""
        if self._previous is not None and self._previous.broken and pts_ns is not None and self._key_pts_ns is not None:
            return not self.broken and pts_ns >= self._key_pts_ns
        return not self.broken


class VideoReader:
    """An opened file, stream or device; a context manager. For one thread.

    `options` are FFmpeg's. The time-outs are in seconds; None waits for ever. `lossy` says that whole pictures may get
    lost on the way here.
    """

    def __init__(
        self,
        url: str,
        *,
        form: str | None = None,
        options: Mapping[str, str] | None = None,
        open_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        lossy: bool = False,
    ) -> None:
        """Raises `DecodeError` where it cannot be opened, `NoVideo` where it holds no pictures."""
        self._container: InputContainer = av.open(
            url, "r", format=form, options=dict(options or {}), timeout=(open_timeout_s, read_timeout_s)
        )
        try:
            self._stream = self._picture_stream()
        except NoVideo:
            self._container.close()
            raise
        self._stream.codec_context.copy_opaque = True  # so that a picture knows the packet it came in
        # One thread a stream: several within a picture make FFmpeg forget to report damage, several over pictures delay
        # a live stream by as many pictures.
        self._stream.thread_type = "NONE"
        self._stream.thread_count = 1
        if self._stream.codec_context.name == "hevc":
            # FFmpeg's H.265 decoder fills in what is missing and says nothing, unless told to fail.
            self._stream.codec_context.options = {"err_detect": "explode"}
        # Transport streams are made for lossy ways, too, and their packets show where units begin.
        self._lossy = (lossy or self.may_jump) and self._stream.codec_context.name == "h264"
        self._sender_offset_ns: int | None = None

    def _picture_stream(self) -> VideoStream:
        for stream in self._container.streams.video:
            # A cover picture in an audio file is a video stream to FFmpeg.
            if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic.value:
                return stream
        raise NoVideo

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def frame_count(self) -> int | None:
        """How many frames the container says it holds; None where it does not say."""
        return self._stream.frames or None

    @property
    def duration_s(self) -> float | None:
        """How long the pictures last by the container's own account; None where it does not say."""
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        tag = stream.metadata.get("DURATION")  # Matroska's, "00:00:10.040000000"
        if tag is None:
            return None
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    @property
    def recorded_ns(self) -> int | None:
        """When recording began, UTC, as the container says; None where it does not say or cannot be right."""
        text = self._stream.metadata.get("creation_time") or self._container.metadata.get("creation_time")
        if text is None:
            return None
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        # Recorders without a clock write the zero of their calendar: 1904 in MP4, 1970 elsewhere.
        return round(moment.timestamp()) * 1_000_000_000 if moment.year > 1980 else None

    @property
    def timed(self) -> bool:
        """Whether presentation times are the sender's own, rather than counted by FFmpeg at a guessed rate."""
        return self._container.format.name not in {"mpjpeg", "mjpeg"}

    @property
    def may_jump(self) -> bool:
        """Whether the container's clock may jump without time having passed (MPEG transport streams)."""
        return Flags.ts_discont in Flags(self._container.format.flags)

    def pictures(self) -> Iterator[DecodedPicture | LostPictures]:
        """Decode to the end. Raises `DecodeError` where reading fails, after all that could be decoded."""
        numbers = FrameNumbers() if self._lossy else None
        group: _PictureGroup | None = None
        for packet in self._container.demux(self._stream):
            self._note_sender_clock(packet)
            if packet.is_keyframe:
                group = _PictureGroup(_pts_ns(packet), group)
            if group is None:  # nothing can be shown before the first picture that builds on no other
                if packet.size:
                    yield LostPictures(_pts_ns(packet))
                continue
            packet.opaque = group
            if numbers is not None and numbers.gap(bytes(packet)) and not packet.is_keyframe:
                group.broken = True
            try:
                frames = self._stream.decode(packet)
            except av.error.InvalidDataError:
                group.broken = True
                yield LostPictures(_pts_ns(packet))
                continue
            for frame in frames:
                pts_ns = _pts_ns(frame)
                home = frame.opaque if isinstance(frame.opaque, _PictureGroup) else group
                home.broken = home.broken or frame.is_corrupt
                yield self._picture(frame, pts_ns) if home.shows(pts_ns) else LostPictures(pts_ns)

    def _note_sender_clock(self, packet: Packet[VideoStream]) -> None:
        """Learn how far the sender's wall clock is ahead of presentation time, from the packet's reference time."""
        pts_ns = _pts_ns(packet)
        if pts_ns is not None and packet.has_sidedata("prft"):
            wall_us: int = struct.unpack_from("<q", bytes(packet.get_sidedata("prft")))[0]
            self._sender_offset_ns = wall_us * 1000 - pts_ns

    def _picture(self, frame: VideoFrame, pts_ns: int | None) -> DecodedPicture:
        if pts_ns is None or self._sender_offset_ns is None:
            return DecodedPicture(frame, pts_ns, None)
        return DecodedPicture(frame, pts_ns, pts_ns + self._sender_offset_ns)


def reason(error: DecodeError) -> str:
    """Why reading failed, in a few words: FFmpeg's own message names the address, and so its password."""
    for kind, words in _REASONS.items():
        if isinstance(error, kind):
            return words
    return (error.strerror or type(error).__name__).lower()


_REASONS: dict[type[BaseException], str] = {
    av.error.HTTPUnauthorizedError: "user name or password is missing or wrong (401)",
    av.error.HTTPForbiddenError: "access is forbidden (403)",
    av.error.HTTPNotFoundError: "there is nothing at this path (404)",
    av.error.HTTPServerError: "the server reports a failure of its own (5xx)",
    av.error.ExitError: "no answer in time",
    TimeoutError: "no answer in time",
    av.error.InvalidDataError: "what it holds is not in a known video format",
    av.error.DecoderNotFoundError: "no decoder for its format",
    av.error.ProtocolNotFoundError: "its kind of address is not supported",
    ConnectionRefusedError: "connection refused",
}


def _pts_ns(timed: VideoFrame | Packet[VideoStream]) -> int | None:
    if timed.pts is None or timed.time_base is None:
        return None
    return timed.pts * timed.time_base.numerator * 1_000_000_000 // timed.time_base.denominator


def count_frames(path: Path | str) -> int:
    """Decode a whole file and do nothing with it: the bare speed that everything else is measured against."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def codecs_available(names: Iterable[str]) -> dict[str, bool]:
    """Which of these codecs this build of FFmpeg can decode."""
    return {name: name in av.codecs_available for name in names}
