"""Decoding of files and streams with PyAV.

`VideoReader` opens anything FFmpeg reads and yields its pictures in presentation order. Damaged pictures are
never yielded: a `LostPictures` counts each of them.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import heapq
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

import av
import av.error
from av.format import Flags
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition

from streamer.sources.catch_up import CatchUp
from streamer.sources.h264 import FrameNumbers
from streamer.sources.h265 import PictureUnits
from streamer.sources.hardware import Decode, choose_device, has_failed, make_accelerator, note_format, note_use
from streamer.sources.nal_units import UnitLayout, parameter_sets
from streamer.sources.orientation import UPRIGHT, Orientation
from streamer.sources.picture_choice import PacketUse, PictureChoice
from streamer.sources.planes import PictureLayout, layout_of, pack_planes, upright_bgr
from streamer.threads import decoding_turn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamer.sources.packet_clips import PacketRing

DecodeError = av.error.FFmpegError
Unauthorised = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
NotFound = av.error.HTTPNotFoundError
Refused = (av.error.HTTPOtherClientError, av.error.HTTPServerError, av.error.HTTPBadRequestError)
TimedOut = (av.error.ExitError, av.error.TimeoutError)

_LONGEST_STEP = 1.5  # frames between two pictures, where no picture is missing
_WAITING_PICTURES = 32  # a decoder holds back at most 16 pictures; one that waits longer never comes
# Formats whose packets FFmpeg completes only when the next one begins: what it returns came before that.
_LATE_FORMATS = frozenset({"rtsp", "sdp", "rtp", "mpegts", "mpeg", "h264", "hevc"})
# Codecs whose streams may begin amid a group of pictures; of others, some demultiplexers mark no key picture at all.
_WITH_KEYS = frozenset(
    {"av1", "flv1", "h263", "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "theora", "vc1", "vp8", "vp9", "vvc"}
)
_BY_FRAME = frozenset({"h264", "hevc", "mjpeg"})  # codecs in which every packet with a slice is one picture to show


class NoVideo(Exception):
    """What was opened holds no picture stream that can be decoded."""


class NoSuchTrack(NoVideo):
    """The video track that was asked for does not exist; `count` is how many there are."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class DamageFound(Exception):
    """Several threads came upon damage, which they report too late to say what it spoils, or upon pictures that are
    shown in another order than decoded. What came before is right; the recording is to be read again with one thread.
    """


@dataclass(frozen=True, slots=True)
class LostPictures:
    """A frame that arrived damaged, or cannot be shown because it builds on one that did or never came.

    `awaits_key` is True for one that came before the first key picture, `is_skipped` for one that was left undecoded
    because decoding was behind, `is_unwanted` for one that sampling does not want: nothing is wrong with any of them.
    """

    pts_ns: int | None
    awaits_key: bool = False
    is_skipped: bool = False
    is_unwanted: bool = False


class DecodedPicture:
    """One decoded picture. `pts_ns` is its presentation time in the container's clock, None where it has none.

    `sender_ns` is the sender's own wall clock (UTC) at capture, from RTCP sender reports, None where there are none;
    `arrival_ns` is when its first bytes were here (UTC), or up to `arrival_slack_ns` before; `place` is
    where they are in the file.
    `pixel_aspect` is the width of a pixel by its height.
    `is_key` says whether it builds on no other.
    Calling the picture gives its pixels: BGR, (height, width, 3), uint8, upright; converted at the first call, from any
    thread, and the decoder's own memory is released then.
    """

    __slots__ = (
        "_frame",
        "_lock",
        "_orientation",
        "_pixels",
        "arrival_ns",
        "arrival_slack_ns",
        "height",
        "is_key",
        "pixel_aspect",
        "place",
        "pts_ns",
        "sender_ns",
        "width",
    )

    def __init__(
        self,
        frame: VideoFrame,
        pts_ns: int | None,
        sender_ns: int | None,
        arrival_ns: int,
        pixel_aspect: float = 1.0,
        place: int | None = None,
        orientation: Orientation = UPRIGHT,
        arrival_slack_ns: int = 0,
    ) -> None:
        self.arrival_slack_ns = arrival_slack_ns
        self.pts_ns = pts_ns
        self.sender_ns = sender_ns
        self.arrival_ns = arrival_ns
        self.place = place
        self._orientation = orientation
        self.width, self.height = orientation.size(frame.width, frame.height)
        self.pixel_aspect = 1 / pixel_aspect if orientation.transposed else pixel_aspect
        self.is_key = frame.key_frame
        self._frame: VideoFrame | None = frame
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> npt.NDArray[np.uint8]:
        with self._lock:
            if self._frame is not None:
                self._pixels = upright_bgr(self._frame, self._orientation)
                self._frame = None
            assert self._pixels is not None
            return self._pixels

    def packing(self) -> tuple[PictureLayout, Callable[[memoryview], None]] | None:
        """How to copy the picture as it was decoded: its layout and the function that fills a buffer; None where it
        has to be converted."""
        with self._lock:
            frame = self._frame
        layout = None if frame is None else layout_of(frame, self._orientation)
        return None if frame is None or layout is None else (layout, partial(pack_planes, frame))

    def sample(self) -> bytes:
        """Some of its brightness values, to compare it with another picture without converting it."""
        with self._lock:
            if self._frame is None:
                return b""
            plane = self._frame.planes[0]
            return bytes(memoryview(plane)[:: max(1, plane.buffer_size // 2048)])


class PictureReader(Protocol):
    """What pictures are read from, one after the other; for one thread."""

    timed: bool
    """Whether presentation times are the sender's own, rather than counted at a guessed rate."""
    bursts: bool
    """Whether pictures come some seconds at a time, as in HLS, and are to be shown one after the other."""

    def pictures(self) -> Iterator[DecodedPicture | LostPictures]: ...

    def close(self) -> None: ...


class _PictureGroup:
    """A key picture and those that build on it, in decoding order. Damage to one is damage to all that follow.

    Where pictures are refreshed part by part (H.264 without whole key pictures), a group that follows damage is whole
    only after as many reference pictures as its first one says.
    """

    __slots__ = (
        "_is_lead_broken",
        "_key_pts_ns",
        "_previous",
        "_unhealed",
        "broken",
        "is_cut",
        "orientation",
        "pixel_aspect",
    )

    def __init__(self, key_pts_ns: int | None, previous: _PictureGroup | None, heals_after: int = 0) -> None:
        """`heals_after` is the number of reference pictures from the first one on that are not whole by themselves."""
        self._key_pts_ns = key_pts_ns
        self._previous = previous
        self._unhealed = heals_after if previous is None or previous.ends_broken else 0
        self._is_lead_broken = False
        self.broken = False
        self.is_cut = False  # its end was not decoded
        self.orientation: Orientation | None = None  # both once the first frame is there
        self.pixel_aspect = 1.0
        if previous is not None:
            previous._previous = None  # only neighbours matter, and the chain must not grow

    @property
    def ends_broken(self) -> bool:
        """Whether pictures that build on the last ones of this group are damaged."""
        return self.broken or self.is_cut or self._unhealed > 0

    def heals(self, *, is_reference: bool) -> bool:
        """The next picture in decoding order; returns whether it is still being put together from its parts."""
        is_healing = self._unhealed > 0
        if is_healing and is_reference:
            self._unhealed -= 1
        return is_healing

    def damage(self, pts_ns: int | None) -> None:
        """Notes a damaged picture. Those shown before the key picture are no part of what is shown after it."""
        if self._leads(pts_ns):
            self._is_lead_broken = True
        else:
            self.broken = True

    def shows(self, pts_ns: int | None) -> bool:
        """Whether a picture of this group is whole. One shown before the key picture builds on the last group, too."""
        if not self._leads(pts_ns):
            return not self.broken
        is_alone = self._previous is not None and self._previous.ends_broken
        return not (is_alone or self._is_lead_broken or self.broken)

    def _leads(self, pts_ns: int | None) -> bool:
        return pts_ns is not None and self._key_pts_ns is not None and pts_ns < self._key_pts_ns


class _Fate(Enum):
    WAITING = auto()
    SHOWN = auto()
    LOST = auto()
    UNWANTED = auto()  # counted already; decoded because others build on it


class _SentPicture:
    """What is known of a packet that was given to the decoder; its frame brings this back."""

    __slots__ = ("arrival_ns", "fate", "group", "is_healing", "number", "place", "pts_ns")

    def __init__(
        self, number: int, group: _PictureGroup, pts_ns: int | None, arrival_ns: int, place: int | None, fate: _Fate
    ) -> None:
        self.number = number  # in decoding order
        self.is_healing = False
        self.group = group
        self.pts_ns = pts_ns
        self.place = place
        self.arrival_ns = arrival_ns
        self.fate = fate


@dataclass(frozen=True, slots=True)
class _JudgedPicture:
    """A decoded picture with its presentation time, its group and the packet it came in."""

    picture: DecodedPicture
    pts_ns: int | None
    group: _PictureGroup
    sent: _SentPicture | None


class VideoReader:
    """An opened file, stream or device; a context manager. For one thread.

    `url` may be a file object. `options` are FFmpeg's. The time-outs are in seconds; None waits for ever. With
    `on_wait`, reading goes on after each `read_timeout_s` without data, once `on_wait` has returned; what it raises
    ends reading. `lossy` says that whole pictures may get lost on the way here. `track` is the number of the video
    track, from 0; None takes the one marked as default, of several the largest. `decode` chooses the device.
    Up to `threads` decode where that hides no damage; pictures then come later by as many, and `pictures` raises
    `DamageFound` where one is damaged.
    """

    def __init__(
        self,
        url: str | object,
        *,
        form: str | None = None,
        options: Mapping[str, str] | None = None,
        open_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        on_wait: Callable[[], None] | None = None,
        io_open: Callable[..., object] | None = None,
        lossy: bool = False,
        track: int | None = None,
        decode: Decode = "cpu",
        threads: int = 1,
    ) -> None:
        """Raises `DecodeError` where it cannot be opened, `NoVideo` where it holds no pictures."""
        began_ns = time.time_ns()
        device = choose_device(decode)
        # Titles and comments come from outside, in any encoding: none of them may keep a video from being read.
        open_video = partial(
            av.open,
            url,
            "r",
            format=form,
            options=dict(options or {}),
            timeout=(open_timeout_s, read_timeout_s),
            io_open=io_open,
            metadata_errors="replace",
        )
        try:
            self._container: InputContainer = open_video(hwaccel=make_accelerator(device))
        except DecodeError:
            # A file object has been read by now: its owner opens it again.
            if device is None or not has_failed(device) or not isinstance(url, str):
                raise
            device = choose_device(decode)
            self._container = open_video(hwaccel=make_accelerator(device))
        self._on_wait = on_wait
        # What is read right after opening came at any time during it.
        self._opening_ns = time.time_ns() - began_ns
        self._opened_ns = began_ns + self._opening_ns + 20_000_000
        try:
            self._stream = self._choose_track(track)
        except NoVideo:
            self._container.close()
            raise
        for stream in self._container.streams:
            if stream is not self._stream:
                stream.discard = Discard.all
        codec = self._stream.codec_context
        if device is not None:
            note_use(decode, codec.name, is_used=codec.is_hwaccel)
        self._unproved: Decode = decode if codec.is_hwaccel else "cpu"  # its first picture shows whether it decodes
        base = self._stream.time_base or Fraction(1, 90_000)
        self._tick_ns = base.numerator * 1_000_000_000, base.denominator
        codec.copy_opaque = True  # so that a picture knows the packet it came in
        # One thread a camera: several within a picture make FFmpeg forget to report damage, several over pictures delay
        # a live stream by as many pictures. The latter report all damage of H.264 where pictures are shown in the order
        # that they are decoded in, as cameras and their recorders send them; else some of it is forgotten, and H.265
        # shows other pictures for damage that it does not notice.
        self._codec = codec.name
        is_threaded = threads > 1 and device is None and self._codec == "h264" and not codec.has_b_frames
        codec.thread_type = "FRAME" if is_threaded else "NONE"
        codec.thread_count = self._threads = threads if is_threaded else 1
        if self._codec in _SILENT_CODECS:
            codec.options = _SILENT_CODECS[self._codec]
        layout = self._codec in ("h264", "hevc")
        self._layout = UnitLayout(self._codec, codec.extradata) if layout else None
        self._units = self._open_h265(codec) if self._codec == "hevc" else None
        self._numbers = FrameNumbers(codec.extradata) if self._codec == "h264" else None
        # Transport streams are made for lossy ways, too.
        self._lossy = lossy or self.may_jump
        self._is_late = not _LATE_FORMATS.isdisjoint(self._container.format.name.split(","))
        self._sender_offset_ns: int | None = None
        self._sent: dict[_SentPicture, Packet[VideoStream]] = {}  # to the decoder, and not seen again yet
        self._sent_count = 0
        self._judged: deque[_JudgedPicture] = deque()  # decoded, but what they build on may still prove damaged
        self._newest_ns: int | None = None  # presentation time of the newest decoded picture
        self._needs_key = self._codec in _WITH_KEYS
        self._order = _OrderTimes(self._rate) if self.times != "own" else None
        self.timed = self._container.format.name not in {"mpjpeg", "mjpeg"}
        self.bursts = "hls" in self._container.format.name.split(",")
        self.catch_up: CatchUp | None = None  # for live streams: what to skip when decoding falls behind
        self.choice: PictureChoice | None = None  # for live streams: what to leave out because it is not wanted
        self._held: list[tuple[Packet[VideoStream], int, bool]] = []  # undecoded, until a wanted picture needs them
        self.packets_read = 0  # those that hold part of a picture
        self._last_tick = self._ticks_read = 0  # of AVI, which counts frames that repeat the last one, too
        self._ring: PacketRing | None = None
        self._packet_ns: int | None = None  # presentation time of the last of them that was decoded by several threads
        self._end: int | None = None  # where the last of them ends

    def _open_h265(self, codec: VideoCodecContext) -> PictureUnits:
        """Opens the decoder, which refuses a flaw in any parameter set that came with the container."""
        extradata = codec.extradata
        try:
            codec.open(strict=False)
            return PictureUnits(extradata)
        except DecodeError:
            codec.extradata = None
            codec.open(strict=False)
        for one in parameter_sets("hevc", extradata):
            with contextlib.suppress(DecodeError):  # the slices show whether it is needed
                codec.decode(av.Packet(b"\0\0\0\1" + one))
        return PictureUnits(extradata, start_codes=True)

    def _choose_track(self, track: int | None) -> VideoStream:
        # A cover picture in an audio file is a video stream to FFmpeg.
        unfit = Disposition.attached_pic.value | Disposition.timed_thumbnails.value
        found = [
            stream
            for stream in self._container.streams.video
            if stream.codec_context is not None and not stream.disposition & unfit
        ]
        if track is not None and found:
            if track >= len(found):
                raise NoSuchTrack(len(found))
            return found[track]
        if not found:
            raise NoVideo
        default = Disposition.default.value
        return max(found, key=lambda s: (bool(s.disposition & default), s.codec_context.width * s.codec_context.height))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sent.clear()
        self._judged.clear()
        self._container.close()

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self._codec

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return self._container.format.name

    @property
    def frame_count(self) -> int | None:
        """How many frames the container says it holds; None where it does not say."""
        return self._stream.frames or None

    @property
    def frames_read(self) -> int:
        """How many frames have been read, as the container counts them: with those that only repeat the last one."""
        return max(self.packets_read, self._ticks_read)

    @property
    def stated_end_ns(self) -> int | None:
        """Where the last picture ends in the container's clock, as the container says; None where it does not."""
        stream = self._stream
        start_ns = self._ns(stream.start_time) or 0
        length_ns = self._ns(stream.duration)
        if length_ns is not None and length_ns > 0:
            return start_ns + length_ns
        # Matroska's tag, "00:00:10.040000000", is an end on the container's clock and no length.
        tag_s = _clock_seconds(stream.metadata.get("DURATION"))
        if tag_s is not None:
            return round(tag_s * 1e9)
        whole = self._container.duration
        if whole is None or whole <= 0 or self.may_jump or len(self._container.streams) > 1:
            return None
        return ((self._container.start_time or 0) + whole) * 1000

    @property
    def end_ns(self) -> int | None:
        """Where the last picture that was read ends, in the container's clock; None before there is one."""
        return self._ns(self._end)

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
    def times(self) -> Literal["own", "order", "rate"]:
        """Where presentation times come from.

        `own`: the container has one for each picture. `order`: it only has the times of decoding (AVI); pictures
        are shown at the same times, in another order. `rate`: it has none (raw streams), pictures are counted.
        """
        if Flags.no_timestamps in Flags(self._container.format.flags):
            return "rate"
        return "order" if self._container.format.name == "avi" else "own"

    @property
    def _rate(self) -> float:
        return float(self._stream.guessed_rate or self._stream.average_rate or 25)

    @property
    def frame_ns(self) -> int:
        """How long a frame lasts at the rate that the container states or FFmpeg guesses."""
        return round(1e9 / self._rate)

    @property
    def may_jump(self) -> bool:
        """Whether the container's clock may jump without time having passed (MPEG transport streams)."""
        return Flags.ts_discont in Flags(self._container.format.flags)

    def index_pictures(self) -> Iterator[tuple[int | None, int | None, bool]]:
        """Reads to the end without decoding: of each packet with part of a picture, in decoding order, its presentation
        time in nanoseconds, where `seek_key` finds it, and whether it is a key picture. Raises `DecodeError`."""
        for packet in self._demux():
            if self._is_picture(packet):
                # Transport streams have no index: FFmpeg searches them by times of decoding.
                place = packet.dts if self.may_jump else packet.pts
                yield self._ns(packet.pts), place, packet.is_keyframe

    def seek_key(self, place: int) -> None:
        """Goes on at a key picture that `index_pictures` found, or before it. Raises `DecodeError`."""
        self._container.seek(place, stream=self._stream, backward=True, any_frame=False)

    def pictures(self) -> Iterator[DecodedPicture | LostPictures]:
        """Decodes to the end: each packet with part of a picture becomes a picture, or is counted as lost.

        Raises `DecodeError` where reading fails, after all that could be decoded; `DamageFound` where several threads
        decode and there is any.
        """
        group: _PictureGroup | None = None
        failure: Exception | None = None
        packets = self._packets()
        while True:
            try:
                packet, arrival_ns, is_cut = next(packets)
            except StopIteration:
                break
            except Exception as error:  # what was read before counts first
                failure = error
                break
            self._note_sender_clock(packet)
            if self._ring is not None:
                self._ring.add(packet, self._ns(packet.pts))
            if packet.is_keyframe or (group is None and not self._needs_key and packet.size):
                if group is not None and self._held:
                    group.is_cut = True
                group = _PictureGroup(self._ns(packet.pts), group, self._healing_count(packet))
                self._held.clear()
            if group is None:  # nothing can be shown before the first picture that builds on no other
                if self._is_picture(packet):
                    self._note_packet(packet)
                    yield LostPictures(self._shown_ns(self._ns(packet.pts)), awaits_key=True)
                continue
            if self.catch_up is not None and self._is_skipped(packet):
                if self._is_picture(packet):
                    group.is_cut = group.is_cut or self._is_reference(packet)
                    self._note_packet(packet)
                    pts_ns = self._ns(packet.pts)
                    unwanted = self.choice is not None and not self.choice.note_skipped(pts_ns)
                    yield LostPictures(self._shown_ns(pts_ns), is_skipped=not unwanted, is_unwanted=unwanted)
                continue
            use = PacketUse.DECODE if self.choice is None else self._choose_use(self.choice, packet)
            if use is not PacketUse.DECODE:
                self._note_packet(packet)
                if use is PacketUse.HOLD:
                    self._held.append((packet, arrival_ns, is_cut))
                yield LostPictures(self._shown_ns(self._ns(packet.pts)), is_unwanted=True)
                continue
            held, self._held = self._held, []
            for earlier in held:
                yield from self._decode(earlier[0], group, *earlier[1:], fate=_Fate.UNWANTED)
            yield from self._decode(packet, group, arrival_ns, is_cut)
        for sent in list(self._sent):
            yield from self._give_up(sent)
        yield from self._release()
        if failure is not None:
            raise failure

    def _choose_use(self, choice: PictureChoice, packet: Packet[VideoStream]) -> PacketUse:
        if not self._is_picture(packet):
            return PacketUse.DECODE
        pts_ns = self._ns(packet.pts)
        if packet.is_keyframe:
            choice.note_key(pts_ns)
            return PacketUse.DECODE
        return choice.use(pts_ns, is_reference=lambda: self._is_reference(packet))

    def _check_step(self, packet: Packet[VideoStream]) -> None:
        """Takes a leap for pictures that are missing in the file: several threads show others after it, also where the
        next one counts as a key picture and builds on earlier ones (intra refresh)."""
        before_ns, self._packet_ns = self._packet_ns, self._ns(packet.pts)
        if before_ns is None or self._packet_ns is None:
            return
        if self._packet_ns - before_ns > _LONGEST_STEP * self.frame_ns:
            self._note_damage()

    def _note_damage(self) -> None:
        if self._threads > 1:
            raise DamageFound

    def keep_packets(self, ring: PacketRing) -> None:
        """Adds every packet that is read from now on to `ring`."""
        ring.begin(self._stream, is_timed=self.timed and self.times == "own")
        self._ring = ring

    def _is_skipped(self, packet: Packet[VideoStream]) -> bool:
        """Whether the picture is to be left out, because decoding is behind."""
        assert self.catch_up is not None
        # At the beginning FFmpeg may not know decoding times yet; presentation times leap where pictures are reordered.
        return self.catch_up.skips(
            self._ns(packet.dts),
            time.monotonic_ns(),
            is_key=packet.is_keyframe,
            is_reference=lambda: self._is_reference(packet),
        )

    def _is_reference(self, packet: Packet[VideoStream]) -> bool:
        """Whether other pictures may build on the one in the packet."""
        return self._layout is None or self._layout.is_reference(bytes(packet))

    def _healing_count(self, key_packet: Packet[VideoStream]) -> int:
        """How many reference pictures a decoder needs that begins with this one until they are whole."""
        return 0 if self._numbers is None else self._numbers.recovery_count(bytes(key_packet))

    def _packets(self) -> Iterator[tuple[Packet[VideoStream], int, bool]]:
        """Each packet, when its first bytes came (UTC), and whether part of it is missing by the container's count."""
        waiting: tuple[Packet[VideoStream], int] | None = None
        before_ns = time.time_ns()
        while True:
            try:
                for packet in self._demux():
                    now_ns = time.time_ns()
                    arrival_ns, before_ns = (before_ns if self._is_late else now_ns), now_ns
                    if waiting is not None:
                        # Where recordings were joined, their counters part, too, but the second begins with a key.
                        yield *waiting, not packet.is_keyframe
                        waiting = None
                    if packet.is_corrupt and self._codec == "hevc" and not packet.is_keyframe:
                        waiting = packet, arrival_ns
                    else:
                        yield packet, arrival_ns, False
                break
            except av.error.ExitError:
                if self._on_wait is None:
                    raise
                self._on_wait()
        if waiting is not None:
            yield *waiting, True

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        """The packets of the track. PyAV raises `IndexError` at a packet of a track that has appeared since."""
        while True:
            try:
                yield from self._container.demux(self._stream)
            except IndexError:
                continue
            return

    def _is_picture(self, packet: Packet[VideoStream]) -> bool:
        if not packet.size:
            return False
        return self._layout is None or self._layout.holds_slice(bytes(packet))

    def _note_packet(self, packet: Packet[VideoStream]) -> None:
        self.packets_read += 1
        if self._order is not None:
            self._order.note(self._ns(packet.dts))
            if packet.dts is not None:
                self._ticks_read = packet.dts + max(1, packet.dts - self._last_tick)
                self._last_tick = packet.dts
        if packet.pts is not None:
            end = packet.pts + (packet.duration or 0)
            if self._end is None or end > self._end:
                self._end = end

    def _decode(
        self,
        packet: Packet[VideoStream],
        group: _PictureGroup,
        arrival_ns: int,
        is_cut: bool,
        fate: _Fate = _Fate.WAITING,
    ) -> Iterator[DecodedPicture | LostPictures]:
        self._sent_count += 1
        sent = _SentPicture(self._sent_count, group, self._ns(packet.pts), arrival_ns, packet.pos, fate)
        if packet.size:
            if fate is _Fate.WAITING:
                self._note_packet(packet)
            self._sent[sent] = packet
            packet.opaque = sent
            if is_cut:
                group.damage(sent.pts_ns)
            gap = self._lossy and self._numbers is not None and self._numbers.has_gap(bytes(packet))
            if gap and not packet.is_keyframe:
                self._note_damage()
                group.broken = True
            if self._threads > 1:
                self._check_step(packet)
            if group.ends_broken:
                sent.is_healing = group.heals(is_reference=self._is_reference(packet))
        try:
            with decoding_turn():
                frames = self._frames(packet, sent)
        except av.error.EOFError:
            frames = []
        except DecodeError:
            frames = []
            self._note_damage()
            if self._is_picture(packet):
                group.damage(sent.pts_ns)
                yield from self._give_up(sent)
        for frame in frames:
            self._judge(frame, group)
        while len(self._sent) > _WAITING_PICTURES:
            yield from self._give_up(next(iter(self._sent)))
        yield from self._release()

    def _frames(self, packet: Packet[VideoStream], sent: _SentPicture) -> list[VideoFrame]:
        if self._units is None or not packet.size:
            return self._stream.decode(packet)
        data = bytes(packet)
        bare = self._units.without_messages(data)
        if not bare:
            return []
        bare_packet = packet if bare is data else _copied(packet, bare)
        bare_packet.opaque = sent
        try:
            return self._stream.decode(bare_packet)
        except DecodeError:
            sets, slices = self._units.sets_and_slices(bare)
            if not sets or not slices:
                raise
        # The decoder stopped at a parameter set, before the slices; whether they need it is for it to say.
        for one in sets:
            with contextlib.suppress(DecodeError):
                self._stream.decode(_copied(packet, one))
        slice_packet = _copied(packet, slices)
        slice_packet.opaque = sent
        return self._stream.decode(slice_packet)

    def _judge(self, frame: VideoFrame, group: _PictureGroup) -> None:
        """Notes a decoded frame, unless its packet has been counted already."""
        if self._unproved != "cpu":
            note_format(self._unproved, self._codec, frame.format.name)
            self._unproved = "cpu"
        if frame.is_corrupt or (self._threads > 1 and self._stream.codec_context.has_b_frames):
            self._note_damage()
        sent = frame.opaque if isinstance(frame.opaque, _SentPicture) else next(iter(self._sent), None)
        pts_ns = self._newest_ns = self._ns(frame.pts)
        arrival_ns, place = time.time_ns(), None
        if sent is not None:
            self._sent.pop(sent, None)
            if sent.fate is _Fate.LOST:
                return
            if sent.fate is _Fate.UNWANTED:
                if frame.is_corrupt:
                    sent.group.damage(pts_ns)
                return
            sent.fate = _Fate.SHOWN
            group, arrival_ns, place = sent.group, sent.arrival_ns, sent.place
        if frame.is_corrupt:
            group.damage(pts_ns)
        shown_ns = self._shown_ns(pts_ns)
        sender_ns = None if pts_ns is None or self._sender_offset_ns is None else pts_ns + self._sender_offset_ns
        if group.orientation is None:
            aspect = self._stream.codec_context.sample_aspect_ratio
            group.orientation, group.pixel_aspect = _orientation(frame), float(aspect) if aspect else 1.0
        slack_ns = self._opening_ns if arrival_ns < self._opened_ns else 0
        picture = DecodedPicture(
            frame, shown_ns, sender_ns, arrival_ns, group.pixel_aspect, place, group.orientation, slack_ns
        )
        self._judged.append(_JudgedPicture(picture, pts_ns, group, sent))

    def _release(self) -> Iterator[DecodedPicture | LostPictures]:
        """The pictures about which nothing more can become known, in the order shown, or their loss."""
        while self._judged and not self._may_prove_damaged(self._judged[0].sent):
            judged = self._judged.popleft()
            is_healing = judged.sent is not None and judged.sent.is_healing
            if is_healing or not judged.group.shows(judged.pts_ns):
                yield LostPictures(judged.picture.pts_ns)
            else:
                yield judged.picture

    def _may_prove_damaged(self, sent: _SentPicture | None) -> bool:
        """Whether the decoder still holds a picture that this one may build on: decoded before it, and shown after."""
        if sent is None or self._newest_ns is None:
            return False
        for waiting in self._sent:
            if waiting.number > sent.number:
                return False
            if waiting.pts_ns is not None and waiting.pts_ns > self._newest_ns:
                return True
        return False

    def _give_up(self, sent: _SentPicture) -> Iterator[LostPictures]:
        """Counts a packet whose picture does not come, unless there is none to come."""
        packet = self._sent.pop(sent, None)
        if packet is None or sent.fate is not _Fate.WAITING:
            return
        sent.fate = _Fate.LOST
        if self._codec not in _BY_FRAME or not self._is_picture(packet):
            return
        if self._numbers is not None:
            data = bytes(packet)
            if not self._lossy:
                self._numbers.learn(data)
            if not sent.group.broken and self._numbers.is_field(data):
                return  # the other field of its picture has brought the frame
        self._note_damage()
        yield LostPictures(self._shown_ns(sent.pts_ns))

    def _ns(self, ticks: int | None) -> int | None:
        """Nanoseconds of the track's own ticks."""
        return None if ticks is None else ticks * self._tick_ns[0] // self._tick_ns[1]

    def _shown_ns(self, pts_ns: int | None) -> int | None:
        return pts_ns if self._order is None else self._order.next_ns()

    def _note_sender_clock(self, packet: Packet[VideoStream]) -> None:
        """Learn how far the sender's wall clock is ahead of presentation time, from the packet's reference time."""
        pts_ns = self._ns(packet.pts)
        if pts_ns is not None and packet.has_sidedata("prft"):
            wall_us: int = struct.unpack_from("<q", bytes(packet.get_sidedata("prft")))[0]
            self._sender_offset_ns = wall_us * 1000 - pts_ns


class JpegReader:
    """Pictures that come as whole files (JPEG, PNG, WebP, BMP, GIF), one by one, without times of their own."""

    timed = False
    bursts = False

    def __init__(self, images: Iterator[bytes], close: Callable[[], None] = lambda: None) -> None:
        self._images = images
        self._close = close
        self._decoders: dict[str, VideoCodecContext] = {}

    def pictures(self) -> Iterator[DecodedPicture | LostPictures]:
        for image in self._images:
            arrival_ns = time.time_ns()
            frame = self._decode(image)
            yield LostPictures(None) if frame is None else DecodedPicture(frame, None, None, arrival_ns)

    def close(self) -> None:
        self._close()

    def _decode(self, image: bytes) -> VideoFrame | None:
        name = next((codec for mark, codec in _PICTURE_CODECS if image.startswith(mark)), "mjpeg")
        decoder = self._decoders.get(name)
        if decoder is None:
            decoder = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
            decoder.options = _SILENT_CODECS.get(name, {})
            if name == "mjpeg":  # the others build a picture on the one before
                self._decoders[name] = decoder
        try:
            frames = decoder.decode(av.Packet(image))
        except DecodeError:
            return None
        return frames[0] if frames and not frames[0].is_corrupt else None


_PICTURE_CODECS = (
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"BM", "bmp"),
    (b"GIF8", "gif"),
    (b"II*", "tiff"),
    (b"MM", "tiff"),
)
# FFmpeg's decoders of these fill in what is missing without a report, unless they are asked to fail.
_SILENT_CODECS = {"hevc": {"err_detect": "explode"}, "mjpeg": {"err_detect": "explode"}}


class _OrderTimes:
    """Presentation times for a container that has none, from the times of decoding, else from the rate.

    Pictures are shown in another order than they are decoded in, but at the same times: the next picture shown gets
    the earliest time that none has had.
    """

    def __init__(self, rate: float) -> None:
        self._step_ns = round(1e9 / rate)
        self._times: list[int] = []
        self._newest_ns: int | None = None

    def note(self, dts_ns: int | None) -> None:
        """A packet was read, decoded at `dts_ns`; None where the container does not say."""
        if dts_ns is None:
            dts_ns = 0 if self._newest_ns is None else self._newest_ns + self._step_ns
        self._newest_ns = dts_ns
        heapq.heappush(self._times, dts_ns)

    def next_ns(self) -> int | None:
        return heapq.heappop(self._times) if self._times else None


def is_refusal(error: DecodeError) -> bool:
    """Whether a server answered that it will not do what it was asked for."""
    return isinstance(error, Refused) or error.errno == errno.EPROTONOSUPPORT


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


def _clock_seconds(text: str | None) -> float | None:
    """Seconds of "hours:minutes:seconds"; None where it is something else."""
    try:
        hours, minutes, seconds = (text or "").strip("\0 ").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _copied(packet: Packet[VideoStream], data: bytes) -> Packet[VideoStream]:
    """A packet of other bytes with the times of `packet`."""
    copy = cast("Packet[VideoStream]", av.Packet(data))
    copy.time_base, copy.pts, copy.dts, copy.is_keyframe = (
        packet.time_base,
        packet.pts,
        packet.dts,
        packet.is_keyframe,
    )
    return copy


def _orientation(frame: VideoFrame) -> Orientation:
    for data in cast("Iterable[SideData]", frame.side_data):
        if data.type is SideDataType.DISPLAYMATRIX:
            return Orientation.from_matrix(bytes(data))
    return UPRIGHT


def count_frames(path: Path | str) -> int:
    """Decode a whole file and do nothing with it: the bare speed that everything else is measured against."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def codecs_available(names: Iterable[str]) -> dict[str, bool]:
    """Which of these codecs this build of FFmpeg can decode."""
    return {name: name in av.codecs_available for name in names}
