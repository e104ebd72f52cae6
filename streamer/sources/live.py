"""Cameras: a stream that heals itself, and of which only the newest frame counts."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from sinks.address import redact
from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.catch_up import CatchUp
from streamer.sources.clock import LiveClock
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.handover import FrameQueue, Handover, joined
from streamer.sources.source import OnState, SourceRecipe, SourceState, StateChange

if TYPE_CHECKING:
    from streamer.sources.decode import DecodedPicture, VideoReader

_FIRST_OPEN_S = 10.0  # how long a camera that was never seen may take to answer
_AGAIN_OPEN_S = 1.5  # and one that was, at the least; this and the next two keep a restart within 3 s
_REACH_S = 1.5
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 0.8
_LOCKOUT_S = 10.0  # after a wrong password: cameras lock out who tries too often
_DAMAGED_S = 20.0  # whole groups of pictures pass in this time: if no picture is whole by then, connect anew
_JOIN_S = 2.0
_RTSP_PORTS = {"rtsp": 554, "rtsps": 322}
_PORTS = {**_RTSP_PORTS, "http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class CameraLink:
    """How FFmpeg is to open a camera; after `stall_s` without a new picture it counts as stalled."""

    address: str
    form: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = 4.0
    bursts: bool = False  # pictures come by the second, as in HLS, and are to be shown one after the other


class CameraTrouble(Exception):
    """A connection failed. `final` where trying again as asked cannot help."""

    def __init__(self, cause: str, *, final: bool = False, stalled: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(cause)
        self.pause_s = pause_s
        self.final = final
        self.stalled = stalled


class LiveSource:
    """The newest frame of a camera, for as long as it is not closed.

    A thread connects, decodes and, when the stream ends, stalls or fails, connects again: at once, then after pauses
    that grow to a second. Frames that nobody took in time are counted `stale`, damaged ones `corrupt`; neither is
    handed on. `state` and `cause` tell where it stands; `on_state` hears of each change once an outage, in the event
    loop: `WAITING` or `STALLED` when it begins, `LIVE` when it is over.

    With `strict`, a first connection that cannot succeed as asked (refused, unknown host, wrong password or path)
    raises `SourceError` instead of being tried again.
    """

    live = True

    def __init__(self, link: CameraLink, name: str, *, strict: bool = False, on_state: OnState | None = None) -> None:
        self.name = name
        self.account = FrameCounter()
        self.expected_frames: int | None = None
        self.recording: Path | None = None
        self.state = SourceState.CONNECTING
        self.cause = ""
        self._link = link
        self._strict = strict
        self._on_state = on_state
        self._told: SourceState | None = None
        self._pause_s = _FIRST_RETRY_S
        self._pace_offset_s = 0.0
        self._clock = LiveClock()
        self._connection = -1
        self._open_s: float | None = None  # what the last successful opening took
        self._handover: FrameQueue | None = None  # where frames go
        self._taken: Handover | None = None  # the same, where this object is iterated
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

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
        """The thread: one connection after the other."""
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
            except Exception as failure:  # a bug of ours must be heard of, not end in a thread that is gone
                error = failure
                break
            if trouble.final and self._strict and self._connection < 0:
                error = SourceError(f"{redact(self._link.address)}: {trouble}")
            elif not self._closing.is_set():
                self._enter(SourceState.STALLED if trouble.stalled else SourceState.WAITING, str(trouble))
                self._closing.wait(max(self._pause_s, trouble.pause_s) * random.uniform(0.5, 1.0))
                self._pause_s = min(2 * self._pause_s, _LAST_RETRY_S)
        self._enter(SourceState.CLOSED, redact(str(error or "")))
        handover.finish(error)

    def _watch(self, handover: FrameQueue) -> None:
        """One connection, from opening it to its end. Raises `CameraTrouble`."""
        from streamer.sources.decode import DecodeError, LostPictures, TimedOut, reason

        with self._open() as video:
            self._connection += 1
            self._clock.reconnected()
            watchdog = _StallWatchdog(self._link.stall_s)
            if not self._link.bursts and video.timed and video.times == "own":
                video.catch_up = CatchUp()
            try:
                for picture in video.pictures():
                    if self._closing.is_set():
                        return
                    new = watchdog.moves(picture.pts_ns)
                    index = self.account.receive()
                    if isinstance(picture, LostPictures):
                        self.account.drop("overload" if picture.is_skipped else "corrupt")
                        if not picture.is_skipped and watchdog.blind():
                            self._enter(SourceState.STALLED, "only damaged pictures come")
                    elif new:
                        watchdog.sees()
                        if self._link.bursts:
                            self._pace(picture.pts_ns)
                        self._hand_over(handover, picture, index, timed=video.timed)
                    else:
                        self.account.drop("stale")
            except TimedOut:
                raise _silence(self._link.stall_s) from None
            except DecodeError as failure:
                raise CameraTrouble(f"the connection broke: {reason(failure)}") from None

    def _open(self) -> VideoReader:
        from streamer.sources.decode import DecodeError, NotFound, NoVideo, Unauthorised, VideoReader, reason

        link = self._link
        is_rtsp = urlsplit(link.address).scheme in _RTSP_PORTS
        if is_rtsp:
            _reach(link.address)
        limit_s = _FIRST_OPEN_S if self._open_s is None else max(_AGAIN_OPEN_S, 3 * self._open_s)
        began = time.monotonic()
        try:
            video = VideoReader(
                link.address,
                form=link.form,
                options=link.options,
                open_timeout_s=limit_s,
                read_timeout_s=link.stall_s,
                lossy=True,
            )
        except NoVideo:
            raise CameraTrouble("it sends no pictures", final=True) from None
        except Unauthorised as failure:
            raise CameraTrouble(reason(failure), final=True, pause_s=_LOCKOUT_S) from None
        except NotFound as failure:
            raise CameraTrouble(reason(failure), final=True) from None
        except DecodeError as failure:
            late = time.monotonic() - began >= limit_s
            if not late and not is_rtsp:  # only now: some cameras over HTTP take one connection and no more
                _reach(link.address)
            raise CameraTrouble(f"no answer within {limit_s:.0f} s" if late else reason(failure)) from None
        self._open_s = time.monotonic() - began
        return video

    def _hand_over(self, handover: FrameQueue, picture: DecodedPicture, index: int, *, timed: bool) -> None:
        arrival_ns = time.time_ns()
        pts_ns = picture.pts_ns if timed else None
        time_ns, basis, uncertainty_ms = self._clock.read(pts_ns, picture.sender_ns, arrival_ns)
        clock = FrameClock(basis, uncertainty_ms, arrival_ns, self._connection)
        if self.state is not SourceState.LIVE:
            self._pause_s = _FIRST_RETRY_S
            self._enter(SourceState.LIVE)
        stale = handover.replace(Frame(self.name, index, time_ns, clock, picture, (picture.width, picture.height)))
        if stale is None:
            self.account.drop("shutdown")
        else:
            self.account.drop("stale", stale)

    def _pace(self, pts_ns: int | None) -> None:
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
        news = self._told is not state and not (self._told in down and state in down | {SourceState.CONNECTING})
        if news and self._handover is not None:
            self._told = state
            if self._on_state is not None:
                self._handover.call(self._on_state, StateChange(self.name, state, time.time_ns(), cause))


class _StallWatchdog:
    """Whether timestamps still move, and whether there is anything to see."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._newest_ns: int | None = None
        self._called_at = self._moved_at = self._seen_at = time.monotonic()

    def moves(self, pts_ns: int | None) -> bool:
        """Whether a picture with this timestamp is a new one. Raises `CameraTrouble` where none came for too long."""
        now = time.monotonic()
        waited_s, self._called_at = now - self._called_at, now
        newest_ns = self._newest_ns
        # A camera that sets its clock back starts a new count; one that repeats itself is frozen.
        moved = pts_ns is None or newest_ns is None or pts_ns > newest_ns or pts_ns < newest_ns - 1_000_000_000
        if waited_s >= self._stall_s:  # the time-out made FFmpeg give out its last picture, as old as the silence
            raise _silence(self._stall_s)
        if moved:
            self._newest_ns, self._moved_at = pts_ns, now
        elif now - self._moved_at > self._stall_s:
            raise CameraTrouble(f"the same picture came for {self._stall_s:g} s: the camera is frozen", stalled=True)
        return moved

    def sees(self) -> None:
        self._seen_at = time.monotonic()

    def blind(self) -> bool:
        """Whether no intact picture arrived for a while. Raises `CameraTrouble` when waiting longer is pointless."""
        blind_s = time.monotonic() - self._seen_at
        if blind_s > max(_DAMAGED_S, self._stall_s):
            raise CameraTrouble(f"only damaged pictures came for {blind_s:.0f} s", stalled=True)
        return blind_s > self._stall_s


def _silence(stall_s: float) -> CameraTrouble:
    return CameraTrouble(f"no picture came for {stall_s:g} s", stalled=True)


def _reach(address: str) -> None:
    """Say precisely what keeps us from a server, as FFmpeg does not. Raises `CameraTrouble`."""
    url = urlsplit(address)
    if url.scheme not in _PORTS or url.hostname is None:
        return
    if url.scheme not in _RTSP_PORTS and os.environ.get("http_proxy"):
        return  # FFmpeg asks the proxy, which may know hosts that we do not
    port = url.port or _PORTS[url.scheme]
    try:
        socket.create_connection((url.hostname, port), timeout=_REACH_S).close()
    except socket.gaierror:
        raise CameraTrouble(f"the host {url.hostname} is not known", final=True) from None
    except ConnectionRefusedError:
        raise CameraTrouble(f"nothing listens at {url.hostname}:{port}", final=True) from None
    except OSError:
        raise CameraTrouble(f"{url.hostname}:{port} does not answer") from None
