"""Cameras as sources: a stream that reconnects by itself, and of which only the newest frame counts."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from sinks.address import redact
from sinks.supervision import describe_error, new_thread
from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.camera_link import CameraLink, CameraTrouble
from streamer.sources.catch_up import CatchUp
from streamer.sources.clock import LiveClock
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.handover import FrameQueue, Handover, joined
from streamer.sources.pace import CameraPace, Stalled, StallWatchdog
from streamer.sources.packet_clips import PacketLimits, PacketRing
from streamer.sources.picture_choice import PictureChoice
from streamer.sources.rtsp import PORTS, RtspRelay, find_refusal, needs_relay
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange

if TYPE_CHECKING:
    from streamer.sources.decode import DecodedPicture, LostPictures, PictureReader, VideoReader

_ANSWER_S = 10.0  # how long a camera that was never seen may take to answer
_FIRST_OPEN_S = 65.0  # and to send its first pictures
_AGAIN_OPEN_S = 1.5  # one that was seen, at the least; this and the next two keep a restart within 3 s
_REACH_S = 1.5
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 0.8
_LOCKOUT_S = 10.0  # after a wrong password: cameras lock out who tries too often
_WAIT_S = 2.0  # a silence after which FFmpeg gives out the picture that it still holds
_HLS_BEHIND_MS = 30_000.0  # a player begins three segments before the newest; ten seconds each are common
_JOIN_S = 2.0
_CLOCK_SLACK_NS = 5_000_000
"""How far capture times may move against presentation times until the next wanted picture."""

_log = logging.getLogger(__name__)


class LiveSource:
    """The newest frame of a camera, for as long as it is not closed.

    A thread connects, decodes and, when the stream ends, stalls or fails in any way, connects again: at once, then
    after pauses that grow to a second. Frames that were not taken in time are counted `stale`, damaged ones `corrupt`;
    neither is handed on. `state` and `cause` say how it is; `on_state` is called in the event loop for each change,
    once an outage: `WAITING` or `STALLED` when it begins, `LIVE` when it is over.

    With `strict`, a first connection that cannot succeed as asked (refused, unknown host, wrong password or path)
    raises `SourceError` instead of being tried again.
    """

    live = True

    def __init__(self, link: CameraLink, name: str, *, strict: bool = False, on_state: OnState | None = None) -> None:
        self.name = name
        self.account = FrameCounter()
        self.expected_frames: int | None = None
        self.recording: Path | None = None
        self.remote: str | None = None
        self.state = SourceState.CONNECTING
        self.cause = ""
        self._link = link
        self._strict = strict
        self._on_state = on_state
        self._reported: SourceState | None = None
        self._pause_s = _FIRST_RETRY_S
        self._pace_offset_s = 0.0
        self._due_sampling: FrameSampling | None = None
        self._due_pts_ns: int | None = None  # presentation time before which sampling wants no picture
        self._watchdog: StallWatchdog | None = None
        self._is_relayed = False  # FFmpeg cannot authenticate itself, or would not notice losses
        self._clock = LiveClock(link.clock)
        self._pace = CameraPace(link.stall_s)
        self._connection = -1
        self._open_s: float | None = None  # what the last successful opening took
        self._handover: FrameQueue | None = None  # where frames go
        self._taken: Handover | None = None  # the same, where this object is iterated
        self._ring: PacketRing | None = None
        self._closing = threading.Event()
        self._thread = new_thread(self._run, name=f"watch {name}", on_failure=self._finish_failed)

    def __repr__(self) -> str:
        return f"LiveSource({redact(self._link.address)!r}, {self.state.value})"

    def __aiter__(self) -> Self:
        if self._handover is None and not self._closing.is_set():
            self._taken = Handover()
            self.start_reading(self._taken)
        return self

    async def __anext__(self) -> Frame:
        if self._taken is None:
            raise StopAsyncIteration
        return await self._taken.get()

    def recipe(self) -> SourceRecipe:
        return SourceRecipe(LiveSource, {"link": self._link, "name": self.name, "strict": self._strict})

    def keep_packets(self, limits: PacketLimits, on_kept: Callable[[bool], object] | None = None) -> PacketRing:
        self._ring = PacketRing(limits, on_kept)
        return self._ring

    def start_reading(self, queue: FrameQueue) -> None:
        self._handover = queue
        self._thread.start()

    async def aclose(self) -> None:
        """Returns within two seconds, even where the thread is held up in the network; it then ends by itself."""
        self._closing.set()
        if self._handover is not None:
            self.account.drop("shutdown", self._handover.close())
            await joined(self._thread, _JOIN_S)

    def _run(self) -> None:
        """Body of the thread: one connection after the other."""
        handover = self._handover
        assert handover is not None
        error: Exception | None = None
        while not self._closing.is_set() and error is None:
            try:
                self._enter(SourceState.CONNECTING)
                self._watch(handover)
                trouble = CameraTrouble("the camera ended the stream")
            except CameraTrouble as failure:
                trouble = failure
            except Stalled as failure:
                trouble = CameraTrouble(str(failure), stalled=True)
            except Exception as failure:  # whatever arrives, the source stays alive; what it was is reported
                if not self._closing.is_set():
                    _log.exception("stream %s: unexpected error, connecting again", self.name)
                trouble = CameraTrouble(redact(f"unexpected {type(failure).__name__}: {failure}".rstrip(": ")))
            if trouble.final and self._strict and self._connection < 0:
                error = SourceError(f"{redact(self._link.address)}: {trouble}")
            elif not self._closing.is_set():
                self._enter(SourceState.STALLED if trouble.stalled else SourceState.WAITING, str(trouble))
                self._closing.wait(max(self._pause_s, trouble.pause_s) * random.uniform(0.5, 1.0))
                self._pause_s = min(2 * self._pause_s, _LAST_RETRY_S)
        self._enter(SourceState.CLOSED, redact(str(error or "")))
        handover.finish(error)

    def _finish_failed(self, failure: BaseException) -> None:
        """Ends the frames with the error that ended the thread."""
        if self._handover is not None:
            cause = redact(describe_error(failure))
            self._handover.finish(SourceError(f"{redact(self._link.address)} is not watched any more: {cause}"))

    def _watch(self, handover: FrameQueue) -> None:
        """One connection, from opening it to its end. Raises `CameraTrouble` or `Stalled`."""
        from streamer.sources.decode import DecodeError, LostPictures, TimedOut, VideoReader, reason

        self._watchdog = None  # while opening, other limits hold
        video = self._open()
        try:
            self._connection += 1
            self._clock.reset()
            self._due_pts_ns = None
            watchdog = self._watchdog = StallWatchdog(self._pace)
            decoder = video.video if isinstance(video, RelayedReader) else video
            if isinstance(decoder, VideoReader) and video.timed and decoder.times == "own" and not video.bursts:
                decoder.catch_up = CatchUp()
                decoder.choice = PictureChoice(self._next_due_ns)
            if self._ring is not None:
                if isinstance(decoder, VideoReader):
                    decoder.keep_packets(self._ring)
                else:
                    self._ring.begin(None, is_timed=False)
            for picture in video.pictures():
                if self._closing.is_set():
                    return
                if isinstance(picture, LostPictures):
                    self.account.receive()
                    self.account.drop(_loss_of(picture))
                    if picture.is_unwanted:
                        watchdog.leaves_out()
                    elif picture.is_skipped:
                        watchdog.skips()
                    elif watchdog.misses(awaits_key=picture.awaits_key):
                        self._enter(SourceState.STALLED, "only damaged pictures come")
                    continue
                new = watchdog.moves(picture.pts_ns, picture.sample)
                index = self.account.receive()
                if new:
                    watchdog.sees(is_key=picture.is_key)
                    if video.bursts:
                        self._pace_out(picture.pts_ns)
                    self._hand_over(handover, picture, index, timed=video.timed, bursts=video.bursts)
                else:
                    self.account.drop("stale")
        except TimedOut:
            self._check_waiting()
            raise Stalled(f"no picture came for {self._pace.stall_s:g} s") from None
        except DecodeError as failure:
            raise CameraTrouble(f"the connection broke: {reason(failure)}") from None
        finally:
            video.close()

    def _check_waiting(self) -> None:
        """Called again and again while nothing comes. Raises `Stalled`, and `CameraTrouble` where the source closes."""
        if self._closing.is_set():
            raise CameraTrouble("closed")
        if self._watchdog is not None:
            self._watchdog.check_silence()

    def _open(self) -> PictureReader:
        """Raises `CameraTrouble`."""
        limit_s = _FIRST_OPEN_S if self._open_s is None else max(_AGAIN_OPEN_S, 3 * self._open_s)
        answer_s = _ANSWER_S if self._open_s is None else _AGAIN_OPEN_S
        began = time.monotonic()
        is_web = self._link.kind == "web"
        video = self._open_web(limit_s) if is_web else self._open_stream(limit_s, answer_s)
        self._open_s = time.monotonic() - began
        return video

    def _open_web(self, limit_s: float) -> PictureReader:
        from streamer.sources.web_camera import open_web_camera

        return open_web_camera(self._link, limit_s, self._check_waiting, seen=self._connection >= 0)

    def _open_stream(self, limit_s: float, answer_s: float) -> PictureReader:
        link = self._link
        if link.kind != "rtsp":
            return self._open_ffmpeg(link.address, limit_s)
        if not needs_relay(link.address) and not self._is_relayed:
            _reach(link.address, answer_s)
            try:
                video = self._open_ffmpeg(link.address, limit_s)
            except _Refused as refused:
                trouble, algorithm = find_refusal(link.address, link.tls)
                self._is_relayed = trouble is None and algorithm not in ("", "basic", "MD5")
                if not self._is_relayed:
                    raise trouble or refused.trouble from None
            else:
                if not (link.over_udp and video.codec == "hevc"):
                    return video
                video.close()
                self._is_relayed = True  # so that lost packets are noticed
        return self._open_relayed(limit_s, answer_s)

    def _open_relayed(self, limit_s: float, answer_s: float) -> PictureReader:
        relay = RtspRelay(self._link.address, self._link.tls, answer_s)
        # Over UDP the pictures would pass TLS by.
        transport = None if self._link.over_udp and not needs_relay(self._link.address) else "tcp"
        try:
            return RelayedReader(self._open_ffmpeg(relay.address, limit_s, transport), relay)
        except BaseException as failure:
            relay.close()
            if isinstance(failure, CameraTrouble | _Refused) and relay.trouble is not None:
                raise relay.trouble from None
            if isinstance(failure, _Refused):
                raise failure.trouble from None
            raise

    def _open_ffmpeg(self, address: str, limit_s: float, transport: str | None = None) -> VideoReader:
        """Raises `CameraTrouble`, and `_Refused` where asking the camera may bring the reason."""
        from streamer.sources.decode import (
            DecodeError,
            NoSuchTrack,
            NotFound,
            NoVideo,
            Unauthorised,
            VideoReader,
            is_refusal,
            reason,
        )

        link = self._link
        began = time.monotonic()
        try:
            return VideoReader(
                address,
                form=link.form,
                options={**link.options, **({"rtsp_transport": transport} if transport else {})},
                open_timeout_s=limit_s,
                read_timeout_s=_WAIT_S if link.stall_s is None else min(_WAIT_S, link.stall_s),
                on_wait=self._check_waiting,
                lossy=True,
                track=link.track,
                decode=link.decode,
            )
        except NoSuchTrack as failure:
            raise CameraTrouble(
                f"it has no video track {link.track}: give a track from 0 to {failure.count - 1}", final=True
            ) from None
        except NoVideo:
            raise CameraTrouble("it sends no pictures", final=True) from None
        except Unauthorised as failure:
            raise _Refused(CameraTrouble(reason(failure), final=True, pause_s=_LOCKOUT_S)) from None
        except NotFound as failure:
            raise CameraTrouble(reason(failure), final=True) from None
        except DecodeError as failure:
            if is_refusal(failure):
                raise _Refused(CameraTrouble(reason(failure))) from None
            late = time.monotonic() - began >= limit_s
            raise CameraTrouble(f"no picture within {limit_s:.0f} s" if late else reason(failure)) from None

    def _hand_over(
        self, handover: FrameQueue, picture: DecodedPicture, index: int, *, timed: bool, bursts: bool
    ) -> None:
        arrival_ns = time.time_ns() if bursts else picture.arrival_ns
        pts_ns = picture.pts_ns if timed else None
        time_ns, basis, uncertainty_ms = self._clock.read(pts_ns, picture.sender_ns, arrival_ns)
        uncertainty_ms += picture.arrival_slack_ns / 1e6
        if self._ring is not None:
            self._ring.note_time(pts_ns, time_ns)
        if bursts:
            uncertainty_ms += _HLS_BEHIND_MS
        clock = FrameClock(basis, uncertainty_ms, arrival_ns, self._connection)
        if self.state is not SourceState.LIVE:
            self._pause_s = _FIRST_RETRY_S
            self._enter(SourceState.LIVE)
        size = (picture.width, picture.height)
        frame = Frame(self.name, index, time_ns, clock, picture, size, picture.pixel_aspect)
        stale = handover.replace(frame)
        if stale is None:
            self.account.drop("shutdown")
        else:
            self.account.drop("stale", stale)
        sampling = self._due_sampling = handover.sampling  # another thread may exchange it at any time
        due_ns = None if sampling is None else sampling.due_ns
        self._due_pts_ns = None
        if due_ns is not None and pts_ns is not None:
            self._due_pts_ns = pts_ns + due_ns - time_ns - _CLOCK_SLACK_NS

    def _next_due_ns(self) -> int | None:
        """The presentation time before which sampling wants no picture; None where that is not known."""
        is_current = self._handover is not None and self._due_sampling is self._handover.sampling
        return self._due_pts_ns if is_current else None

    def _pace_out(self, pts_ns: int | None) -> None:
        """Wait until a picture that came in a burst is due."""
        if pts_ns is None:
            return
        now = time.monotonic()
        due = pts_ns / 1e9 + self._pace_offset_s
        if not now - 2 < due < now + 30:  # the first one, or so late that catching up would be a burst again
            self._pace_offset_s, due = now - pts_ns / 1e9, now
        self._closing.wait(max(0.0, due - now))

    def _enter(self, state: SourceState, cause: str = "") -> None:
        self.state, self.cause = state, cause
        down = {SourceState.WAITING, SourceState.STALLED}
        # Within an outage only its end is news.
        news = self._reported is not state and not (self._reported in down and state in down | {SourceState.CONNECTING})
        if news and self._handover is not None:
            self._reported = state
            if self._on_state is not None:
                self._handover.call(self._on_state, StateChange(self.name, state, time.time_ns(), cause))


def _loss_of(picture: LostPictures) -> str:
    """The reason that a picture which cannot be shown is counted under."""
    if picture.is_unwanted:
        return "not_sampled"
    return "overload" if picture.is_skipped else "corrupt"


class _Refused(Exception):
    """A camera refused in a way that FFmpeg reports without its number; `trouble` is what it reports."""

    def __init__(self, trouble: CameraTrouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


class RelayedReader:
    """A reader of pictures behind a relay; closing it closes both."""

    timed = True
    bursts = False

    def __init__(self, video: VideoReader, relay: RtspRelay) -> None:
        self.video = video
        self._relay = relay

    def pictures(self) -> Iterator[DecodedPicture | LostPictures]:
        return self.video.pictures()

    def close(self) -> None:
        self.video.close()
        self._relay.close()


def _reach(address: str, answer_s: float) -> None:
    """Says precisely what keeps us from a camera, as FFmpeg does not. Raises `CameraTrouble`.

    It is asked for its options: a camera that answers may then take its time for the first picture.
    """
    url = urlsplit(address)
    if url.hostname is None:
        return
    port = url.port or PORTS["rtsp"]
    try:
        with socket.create_connection((url.hostname, port), timeout=_REACH_S) as connection:
            host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            connection.settimeout(answer_s)
            connection.sendall(f"OPTIONS rtsp://{host}:{port}{url.path} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
            connection.recv(1)
    except socket.gaierror:
        raise CameraTrouble(f"the host {url.hostname} is not known", final=True) from None
    except ConnectionRefusedError:
        raise CameraTrouble(f"nothing listens at {url.hostname}:{port}", final=True) from None
    except ConnectionResetError:
        return  # it wants no such question
    except OSError:
        raise CameraTrouble(f"{url.hostname}:{port} does not answer") from None
