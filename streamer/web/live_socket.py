"""Live socket: pictures with their boxes, stream states, events and health for one viewer.

A browser's WebSocket has no back-pressure, so the page acknowledges each picture that it has drawn; at most four are
under way for the whole connection, and of each stream only the newest frame waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from streamer.web.live_frames import LiveFrame, LiveFrames
from streamer.web.models import Name

CREDITS = 4
_MOST_TEXTS = 500
_MESSAGES_S = 20
_MOST_MESSAGE = 64 * 1024
_POLICY, _TRY_LATER, _GOING_AWAY = 1008, 1013, 1001


class StreamWish(BaseModel):
    """How a viewer wants one stream."""

    model_config = ConfigDict(extra="forbid")
    width: int = Field(640, ge=16, le=1920)
    fps: float = Field(10.0, ge=0.1, le=60)


class _Watch(BaseModel):
    op: Literal["watch"]
    streams: dict[Name, StreamWish] = Field(max_length=256)


class _Ack(BaseModel):
    op: Literal["ack"]
    count: int = Field(1, ge=1, le=CREDITS)


class _Switch(BaseModel):
    op: Literal["pause", "resume"]


_MESSAGE: TypeAdapter[_Watch | _Ack | _Switch] = TypeAdapter(
    Annotated[_Watch | _Ack | _Switch, Field(discriminator="op")]
)


class LiveSocket:
    """One viewer's connection."""

    def __init__(self, websocket: WebSocket, frames: LiveFrames, is_allowed: Callable[[], bool]) -> None:
        """`is_allowed` says whether the login that opened the connection still holds."""
        self._websocket = websocket
        self.is_allowed = is_allowed
        self._frames = frames
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._wishes: dict[str, StreamWish] = {}
        self._sent: dict[str, tuple[LiveFrame, float]] = {}
        self._texts: deque[str] = deque()
        self._unacknowledged = 0
        self._paused = False
        self._messages: deque[float] = deque(maxlen=_MESSAGES_S)
        self._close_code: int | None = None

    def post(self, text: str) -> None:
        """Queues a text message; a viewer that is too far behind is disconnected and comes back."""
        if len(self._texts) >= _MOST_TEXTS:
            self.close(_TRY_LATER)
        self._texts.append(text)
        self._wake.set()

    def close(self, code: int) -> None:
        """Lets the connection end with a code."""
        self._close_code = code
        self._wake.set()

    async def run(self) -> None:
        """Serves the viewer until it leaves or misbehaves."""
        stop = self._frames.listen(self._note_frame)
        receiving = asyncio.create_task(self._receive_all(), name="live-socket-receive")
        sending = asyncio.create_task(self._send_all(), name="live-socket-send")
        try:
            await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop()
            for task in (receiving, sending):
                task.cancel()
            await asyncio.wait({receiving, sending})
        if self._close_code is not None:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._websocket.close(self._close_code)
        for task in (receiving, sending):
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, WebSocketDisconnect):
                raise error

    def _note_frame(self, stream: str) -> None:
        """From the pipeline's thread: a frame of a watched stream wakes the sender."""
        if stream in self._wishes and not self._paused:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _receive_all(self) -> None:
        while self._close_code is None:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            try:
                if text is None or len(text) > _MOST_MESSAGE:
                    raise ValueError
                self._obey(_MESSAGE.validate_json(text))
            except ValueError:  # pydantic's errors are among them
                self.close(_POLICY)

    def _obey(self, message: _Watch | _Ack | _Switch) -> None:
        if isinstance(message, _Ack):
            self._unacknowledged = max(0, self._unacknowledged - message.count)
        else:
            now = time.monotonic()
            if len(self._messages) == _MESSAGES_S and now - self._messages[0] < 1.0:
                self.close(_POLICY)
            self._messages.append(now)
            if isinstance(message, _Watch):
                self._wishes = dict(message.streams)
            else:
                self._paused = message.op == "pause"
        self._wake.set()

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._texts:
                await self._websocket.send_text(self._texts.popleft())
            if self._close_code is not None:
                return
            while (found := self._choose_frame()) is not None:
                stream, live = found
                picture = await self._frames.encode(stream, live, self._wishes[stream].width)
                if stream not in self._wishes:
                    continue
                self._unacknowledged += 1
                self._sent[stream] = (live, time.monotonic())
                await self._websocket.send_bytes(pack_message(stream, live, picture))
                while self._texts:
                    await self._websocket.send_text(self._texts.popleft())

    def _choose_frame(self) -> tuple[str, LiveFrame] | None:
        """The newest frame of the watched stream that has waited longest; None while nothing may be sent."""
        if self._paused or self._unacknowledged >= CREDITS or self._close_code is not None:
            return None
        now = time.monotonic()
        chosen: tuple[float, str, LiveFrame] | None = None
        for stream, wish in self._wishes.items():
            live = self._frames.newest(stream)
            sent, sent_s = self._sent.get(stream, (None, 0.0))
            if live is None or live is sent:
                continue
            wait_s = sent_s + 0.9 / wish.fps - now
            if wait_s > 0:
                self._loop.call_later(wait_s, self._wake.set)
            elif chosen is None or sent_s < chosen[0]:
                chosen = (sent_s, stream, live)
        return None if chosen is None else chosen[1:]


def pack_message(stream: str, live: LiveFrame, picture: bytes) -> bytes:
    """Returns a binary message: 4 bytes little endian length of the header, JSON header, picture."""
    frame = live.frame
    header = {
        "stream": stream,
        "index": frame.index,
        "time": frame.time_ns / 1e6,
        "width": frame.width,
        "height": frame.height,
        "analysed": live.analysed,
        "format": "jpeg",
        "key": True,
        "age_ms": frame_age_ms(live),
        "clock": {"basis": frame.clock.basis, "uncertainty_ms": frame.clock.uncertainty_ms},
        "tracks": live.tracks,
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<I", len(raw)) + raw + picture


def frame_age_ms(live: LiveFrame) -> float:
    """Returns how old a frame is now; since its arrival where its capture time is no time of day."""
    if live.frame.clock.received_ns is None:
        return round((time.monotonic() - live.received_s) * 1000, 1)
    return round(max(0.0, (time.time_ns() - live.frame.time_ns) / 1e6), 1)


class SocketGroup:
    """All viewers: sends each of them states, health and events as they change."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._sockets: set[LiveSocket] = set()

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def is_full(self) -> bool:
        """Whether no further viewer is taken."""
        return len(self._sockets) >= self._most

    @contextlib.contextmanager
    def joined(self, socket: LiveSocket) -> Any:
        """Keeps a socket in the group."""
        self._sockets.add(socket)
        try:
            yield
        finally:
            self._sockets.discard(socket)

    def post(self, message: dict[str, Any]) -> None:
        """Sends a text message to all viewers."""
        text = json.dumps(message, separators=(",", ":"))
        for socket in list(self._sockets):
            socket.post(text)

    def close(self) -> None:
        """Disconnects all viewers because the server ends."""
        for socket in list(self._sockets):
            socket.close(_GOING_AWAY)

    def close_refused(self) -> None:
        """Disconnects the viewers whose login has ended."""
        for socket in list(self._sockets):
            if not socket.is_allowed():
                socket.close(_POLICY)
