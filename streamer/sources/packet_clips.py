"""Clips of a stream made of its packets as they came: kept in a bounded ring, cut at key pictures, never re-encoded.

The thread that reads a stream adds its packets; any thread may order a clip, which another thread writes as fragmented
MP4. A stream whose packets cannot become such a file (its codec, or times that are not its own) keeps none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

CODECS = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9"})
"""Codecs that browsers play from MP4, by FFmpeg's names of their decoders."""
_LEAST_PICTURES = 512
"""Pictures that are kept whatever their age: the reader of a recording is ahead of its analysis by up to some 100."""
_MOST_UNTIMED = 16
_USUAL_STEP_S = Fraction(1, 25)
_REORDERED_NS = 2_000_000_000
"""By how much a picture may be shown before one that was decoded earlier: 16 pictures at most, at 8 a second."""
_MOVE_FLAGS = "frag_keyframe+empty_moov+default_base_moof+global_sidx"
"""Fragments at key pictures, and an index at the front by which a browser knows length and places."""


@dataclass(frozen=True, slots=True)
class PacketLimits:
    """What a ring keeps: the packets of the last `seconds` of capture time, in at most `max_bytes`."""

    seconds: float
    max_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class CutResult:
    """A clip that was written: its capture times (UTC, nanoseconds). With `error`, a short reason, there is no file."""

    begin_ns: int = 0
    end_ns: int = 0
    error: str = ""


DeliverCut = Callable[[CutResult], object]


class ClipCutter(Protocol):
    """Cuts clips from what is kept of one stream."""

    @property
    def can_cut(self) -> bool:
        """Whether packets of the present connection are kept."""
        ...

    def cut(self, from_ns: int, until_ns: int, path: Path, deliver: DeliverCut) -> None:
        """Orders a clip of the capture times `from_ns` to `until_ns` in the file `path`; returns at once.

        It begins at the last key picture up to `from_ns`, or the first one after it. `deliver` is called once, from
        any thread.
        """
        ...

    def release(self) -> None:
        """Forgets the packets; later orders fail."""
        ...


@runtime_checkable
class PacketSource(Protocol):
    """A source that can keep its packets."""

    def keep_packets(self, limits: PacketLimits, on_kept: Callable[[bool], object] | None = None) -> ClipCutter | None:
        """Keeps packets from now on; to be called before reading begins. `on_kept` hears for each connection whether
        its packets are kept. Returns None where packets never can be."""
        ...


class _KeptPacket(NamedTuple):
    """One packet; `pts_ns` by the container's clock, `offset_ns` from it to capture time where that was known."""

    data: bytes
    pts: int
    duration: int
    is_key: bool
    pts_ns: int
    offset_ns: int | None


@dataclass(slots=True, eq=False)
class _CameraConnection:
    """Groups of packets that share one clock and one set of codec parameters, which `template` holds."""

    template: VideoStream
    holder: OutputContainer  # keeps the template's memory
    tick: Fraction
    groups: deque[list[_KeptPacket]] = field(default_factory=deque)
    offset_ns: int | None = None
    newest_pts_ns: int | None = None
    untimed: list[Packet[VideoStream]] = field(default_factory=list)  # the first ones of RTSP

    def capture_ns(self, packet: _KeptPacket) -> int:
        offset_ns = packet.offset_ns if packet.offset_ns is not None else self.offset_ns
        return packet.pts_ns + (offset_ns or 0)


class PacketRing:
    """The packets of one stream, whole groups from key picture to key picture. Thread-safe."""

    def __init__(self, limits: PacketLimits, on_kept: Callable[[bool], object] | None = None) -> None:
        self._limits = limits
        self._on_kept = on_kept
        self._lock = threading.Lock()
        self._connections: deque[_CameraConnection] = deque()
        self._bytes = self._pictures = 0
        self._is_keeping = self._is_released = False
        self._writer: ThreadPoolExecutor | None = None

    @property
    def can_cut(self) -> bool:
        return self._is_keeping

    # Called by the thread that reads.

    def begin(self, stream: VideoStream | None, *, is_timed: bool) -> None:
        """A connection was opened; None stands for one without packets that could be kept."""
        kept = stream is not None and is_timed and stream.codec_context.name in CODECS
        connection = _open_connection(stream) if kept and stream is not None else None
        with self._lock:
            self._is_keeping = connection is not None and not self._is_released
            if connection is not None:
                self._connections.append(connection)
        if self._on_kept is not None:
            self._on_kept(self._is_keeping)

    def add(self, packet: Packet[VideoStream], pts_ns: int | None) -> None:
        """Keeps a packet that was read; those before the first key picture are left out.

        The first packets of RTSP have no time yet: they are dated back from the first one that has.
        """
        if not self._is_keeping or not packet.size:
            return
        with self._lock:
            if not self._connections:
                return
            connection = self._connections[-1]
            if packet.pts is None or pts_ns is None:
                if not connection.groups and len(connection.untimed) < _MOST_UNTIMED:
                    connection.untimed.append(packet)
                return
            if connection.newest_pts_ns is not None and pts_ns < connection.newest_pts_ns - _REORDERED_NS:
                # The camera has set its clock back.
                connection = _CameraConnection(connection.template, connection.holder, connection.tick)
                self._connections.append(connection)
            connection.newest_pts_ns = max(pts_ns, connection.newest_pts_ns or pts_ns)
            untimed, connection.untimed = connection.untimed, []
            step = packet.duration or round(_USUAL_STEP_S / connection.tick)
            step_ns = int(step * connection.tick * 1_000_000_000)
            for back, early in zip(range(len(untimed), 0, -1), untimed, strict=True):
                self._append(connection, early, packet.pts - back * step, pts_ns - back * step_ns)
            self._append(connection, packet, packet.pts, pts_ns)

    def _append(self, connection: _CameraConnection, packet: Packet[VideoStream], pts: int, pts_ns: int) -> None:
        if packet.is_keyframe:
            connection.groups.append([])
        elif not connection.groups:
            return
        data = bytes(packet)
        kept = _KeptPacket(data, pts, packet.duration or 0, packet.is_keyframe, pts_ns, connection.offset_ns)
        connection.groups[-1].append(kept)
        self._bytes += len(data)
        self._pictures += 1
        self._trim(connection.capture_ns(kept))

    def note_time(self, pts_ns: int | None, time_ns: int) -> None:
        """The picture with that presentation time was captured at `time_ns` (UTC)."""
        if self._is_keeping and pts_ns is not None and self._connections:
            self._connections[-1].offset_ns = time_ns - pts_ns

    def _trim(self, newest_ns: int) -> None:
        """Drops the oldest groups that are not needed, or too much; a group alone that is too large goes, too."""
        oldest_ns = newest_ns - int(self._limits.seconds * 1e9)
        while self._connections:
            connection = self._connections[0]
            is_last = len(self._connections) == 1
            if not connection.groups:
                if is_last:
                    return
                self._connections.popleft()
                continue
            is_over = self._bytes > self._limits.max_bytes
            if not is_over:
                following = self._second_group()
                if following is None or self._pictures - len(connection.groups[0]) < _LEAST_PICTURES:
                    return
                owner, group = following
                if owner.capture_ns(group[0]) > oldest_ns:
                    return
            dropped = connection.groups.popleft()
            self._bytes -= sum(len(packet.data) for packet in dropped)
            self._pictures -= len(dropped)

    def _second_group(self) -> tuple[_CameraConnection, list[_KeptPacket]] | None:
        groups = ((connection, group) for connection in self._connections for group in connection.groups)
        next(groups, None)
        return next(groups, None)

    # Called by any thread.

    def cut(self, from_ns: int, until_ns: int, path: Path, deliver: DeliverCut) -> None:
        with self._lock:
            if self._writer is None and not self._is_released:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="clip-cutter")
            writer = self._writer
            found = self._choose(from_ns, until_ns)
        if writer is None or found is None:
            deliver(CutResult(error="no_packets"))
        else:
            writer.submit(_write_and_deliver, *found, path, deliver)

    def release(self) -> None:
        with self._lock:
            self._is_released, self._is_keeping = True, False
            self._connections.clear()
            self._bytes = self._pictures = 0
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.shutdown(wait=False)

    def _choose(self, from_ns: int, until_ns: int) -> tuple[_CameraConnection, list[_KeptPacket]] | None:
        """The packets of the connection that has most of that time; None where there is no picture of it."""
        found: list[tuple[int, _CameraConnection, list[_KeptPacket]]] = []
        for connection in self._connections:
            packets = list(_between(connection, from_ns, until_ns))
            if packets:
                times = [connection.capture_ns(packet) for packet in packets]
                found.append((max(times) - max(min(times), from_ns), connection, packets))
        if not found:
            return None
        _, connection, packets = max(found, key=lambda one: one[0])
        return connection, packets


def _between(connection: _CameraConnection, from_ns: int, until_ns: int) -> Iterator[_KeptPacket]:
    """The packets, in decoding order, from the key picture up to `from_ns` to the last one before a picture after
    `until_ns`: whatever a picture refers to is decoded, and so chosen, before it.

    Pictures that are shown before the first key picture are left out: they refer to the group before it.
    """
    if connection.offset_ns is None or not connection.groups:
        return
    starts = [connection.capture_ns(group[0]) for group in connection.groups]
    first = max((at for at, start_ns in enumerate(starts) if start_ns <= from_ns), default=0)
    first_pts = connection.groups[first][0].pts
    for group in list(connection.groups)[first:]:
        for packet in group:
            if connection.capture_ns(packet) > until_ns:
                return
            if packet.pts >= first_pts:
                yield packet


def _open_connection(stream: VideoStream) -> _CameraConnection | None:
    """A copy of the stream's codec parameters that outlives its container; None where MP4 does not take them."""
    import av

    try:
        holder = av.open(io.BytesIO(), "w", format="null")
        template = holder.add_stream_from_template(stream, opaque=True)
    except (av.FFmpegError, ValueError) as error:
        _log.warning("packets of this stream are not kept for clips: %s", error)
        return None
    return _CameraConnection(template, holder, stream.time_base or Fraction(1, 90_000))


def _write_and_deliver(
    connection: _CameraConnection, packets: list[_KeptPacket], path: Path, deliver: DeliverCut
) -> None:
    try:
        result = _write_clip(connection, packets, path)
    except Exception as error:
        _log.error("a clip cannot be written to %s: %s", path.parent, error)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        result = CutResult(error="error")
    deliver(result)


def _write_clip(connection: _CameraConnection, packets: list[_KeptPacket], path: Path) -> CutResult:
    """Writes the packets as MP4. Raises `OSError`, `av.FFmpegError`."""
    import av

    times = [connection.capture_ns(packet) for packet in packets]
    begin_ns = min(times)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)  # FFmpeg would make it readable for others
    with av.open(str(path), "w", format="mp4", container_options={"movflags": _MOVE_FLAGS}) as container:
        container.metadata["creation_time"] = datetime.fromtimestamp(begin_ns / 1e9, UTC).isoformat()
        stream = container.add_stream_from_template(connection.template, opaque=True)
        for kept, (pts, dts) in zip(packets, _file_times([kept.pts for kept in packets]), strict=True):
            packet = cast("Packet[VideoStream]", av.Packet(kept.data))
            packet.stream = stream
            packet.time_base = connection.tick
            packet.pts, packet.dts = pts, dts
            packet.duration = kept.duration
            packet.is_keyframe = kept.is_key
            container.mux(packet)
    step_ns = (max(times) - begin_ns) // max(1, len(times) - 1)
    return CutResult(begin_ns, max(times) + step_ns)


def _file_times(shown: Sequence[int]) -> list[tuple[int, int]]:
    """Presentation and decoding times of a file whose pictures have the presentation times `shown`, in decoding order.

    Cameras leave decoding times out, or send wrong ones. Here they rise from 0, and none is after its presentation.
    """
    rising: list[int] = []
    for time in sorted(shown):
        rising.append(max(time, rising[-1] + 1) if rising else time)
    ranks = sorted(range(len(shown)), key=lambda at: shown[at])
    pts = [0] * len(shown)
    for rank, at in enumerate(ranks):
        pts[at] = rising[rank]
    delay = max(decoded - presented for decoded, presented in zip(rising, pts, strict=True))
    first = rising[0] - delay
    return [(presented - first, decoded - delay - first) for presented, decoded in zip(pts, rising, strict=True)]
