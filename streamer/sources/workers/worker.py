"""A decode worker: a process that reads and decodes several sources for another one.

`python -m streamer.sources.workers.worker DESCRIPTOR` serves the process at the other end of that Unix socket until
the socket is closed. It loads neither a model's library nor the configuration, so that it is ready within a fraction
of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sinks.supervision import start_thread
from streamer.errors import SourceError
from streamer.frame import Frame
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.packet_clips import ClipCutter, CutResult, PacketSource
from streamer.sources.source import PushSource, Source, StateChange, ThreadedSource
from streamer.sources.workers.protocol import (
    ClipCut,
    CloseSource,
    CutClip,
    ForgetPackets,
    FrameDecoded,
    FramesCounted,
    FreeSlots,
    MessageDecoder,
    OpenSource,
    PacketsKept,
    RingOpened,
    SampleSource,
    SourceEnded,
    StateChanged,
    WorkerLogged,
    encode_message,
)
from streamer.sources.workers.ring import WritingRing
from streamer.threads import limit_decoding

if TYPE_CHECKING:
    from streamer.sources.planes import PictureLayout
    from streamer.sources.sampling import FrameSampling

T = TypeVar("T")

log = logging.getLogger("groundstream")

BEAT_S = 1.0
"""How often a worker says that it lives, and how it stands with its frames, whether or not any come."""

_LIVE_SLOTS = 6  # one waiting, some in the detector's hands and on the way to the tracker
_FILE_SLOTS = 48
_FILE_BYTES = 128 * 2**20  # what the pictures of a recording may take together, where they are large
_LEAST_SLOTS = 4
_BATCH = 4  # frames of a recording in one message
_BATCH_S = 0.01
_IDLE_CHECK_S = 0.05
"""How often batches of recordings are checked that no further frame completes, because reading has paused."""


class _Outlet:
    """The sending side of the socket, shared by all threads of the worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, items: list[object], descriptor: int | None = None) -> None:
        """Send one message, waiting while the reader is behind."""
        data = memoryview(encode_message(items))
        with self._lock:
            sent = 0
            if descriptor is not None:
                sent = socket.send_fds(self._connection, [data], [descriptor])
            self._connection.sendall(data[sent:])


class _ForwardingHandler(logging.Handler):
    """Sends the worker's log to the analysing process, whose log has its own form and place."""

    def __init__(self, outlet: _Outlet) -> None:
        super().__init__()
        self._outlet = outlet
        self._last_resort = logging.StreamHandler()

    def emit(self, record: logging.LogRecord) -> None:
        item = WorkerLogged(record.name, record.levelno, self.format(record), hasattr(record, "is_said_once"))
        try:
            self._outlet.send([item])
        except OSError:  # the other end is gone
            self._last_resort.emit(record)


class RingHandover:
    """The place of a `Handover` in a worker: frames go into shared memory and on to the reader.

    `put` and `replace` are for the reading thread, the rest for any.
    """

    def __init__(self, number: int, outlet: _Outlet, order: OpenSource) -> None:
        self.sampling: FrameSampling | None = order.sampling
        self.account = FrameCounter()  # replaced by the source's own before anything is read
        self.expected_frames: Callable[[], int | None] = lambda: None
        self._number = number
        self._outlet = outlet
        self._live = order.live
        self._first = order.first
        self._changed = threading.Condition()
        self._ring: WritingRing | None = None
        self._rings = order.rings
        self._batch: list[object] = []
        self._batch_began = 0.0
        self._pending: Frame | None = None  # of a live source: the newest, while the reader holds every slot
        self._closed = False
        self._is_finishing = self._ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the end has been sent: nothing follows."""
        return self._ended

    def put(self, frame: Frame) -> bool:
        """Send `frame`, waiting for a free slot; False where the reader wants no more."""
        if frame.index < self._first:
            return not self._closed
        with self._changed:
            while not self._closed and not self._write(frame):
                self._flush()
                self._changed.wait()
            if self._closed:
                return False
            if len(self._batch) >= _BATCH or time.monotonic() - self._batch_began > _BATCH_S:
                self._flush()
        return True

    def replace(self, frame: Frame) -> int | None:
        """Send `frame`, or hold it instead of an older one until a slot is free; returns how many were replaced, None
        where the reader wants no more."""
        with self._changed:
            if self._closed:
                return None
            if self.sampling is not None and not self.sampling.wants(frame):
                self.account.drop("not_sampled")
                return 0
            stale = self._pending is not None
            self._pending = None if self._write(frame) else frame
            self._flush()
        return int(stale)

    def resize(self, capacity: int) -> None:
        """Nothing: the ring bounds what waits."""

    def call(self, function: Callable[[T], object], argument: T) -> None:
        """Call `function`, after the frames before it have been sent."""
        with self._changed:
            self._flush()
        function(argument)

    def finish(self, error: BaseException | None = None) -> None:
        """Send what is left and the end."""
        with self._changed:
            if self._is_finishing:
                return
            self._is_finishing = True
            if self._pending is not None:  # no slot became free in time: the reader is behind by all of them
                self._pending = None
                self.account.drop("stale")
            self._flush()
            items: list[object] = [self._counts()]
            if error is None or isinstance(error, SourceError):
                items.append(SourceEnded(self._number, None if error is None else str(error)))
            else:
                log.error("decode worker: %s", error, exc_info=error)
                items.append(SourceEnded(self._number, f"{type(error).__name__}: {error}", is_fault=True))
            self._outlet.send(items)
            self._ended, self._ring = True, None

    def close(self) -> int:
        """Take no more; returns how many frames were waiting here."""
        with self._changed:
            waiting = int(self._pending is not None)
            self._pending, self._closed = None, True
            self._changed.notify_all()
        return waiting

    def free(self, slots: list[tuple[int, int]]) -> None:
        """The reader has let go of these: (ring, slot)."""
        with self._changed:
            for ring, slot in slots:
                if self._ring is not None and ring == self._rings:
                    self._ring.give_back(slot)
            if self._pending is not None and self._write(self._pending):
                self._pending = None
                self._flush()
            self._changed.notify_all()

    def flush_overdue(self) -> None:
        """Send a batch that has waited for its next frame for too long: reading has paused, as in the network."""
        with self._changed:
            if self._batch and time.monotonic() - self._batch_began > _BATCH_S:
                self._flush()

    def report_counts(self) -> None:
        with self._changed:
            if not self._is_finishing:
                self._outlet.send([self._counts()])

    def _write(self, frame: Frame) -> bool:
        """Put `frame` into a slot and the batch; False where the reader holds every slot."""
        layout, fill = _how_to_pack(frame)
        if self._ring is None or self._ring.slot_bytes < layout.byte_count:
            self._open_ring(layout.byte_count)
        assert self._ring is not None
        slot = self._ring.take()
        if slot is None:
            return False
        fill(self._ring.buffer(slot))
        clock = (frame.clock.basis, frame.clock.uncertainty_ms, frame.clock.received_ns, frame.clock.connection)
        size = (frame.width, frame.height)
        if not self._batch:
            self._batch_began = time.monotonic()
        self._batch.append(
            FrameDecoded(
                self._number, frame.index, frame.time_ns, clock, size, self._rings, slot, layout, frame.pixel_aspect
            )
        )
        return True

    def _open_ring(self, byte_count: int) -> None:
        self._flush()
        slots = _LIVE_SLOTS if self._live else max(_LEAST_SLOTS, min(_FILE_SLOTS, _FILE_BYTES // byte_count))
        ring = WritingRing(byte_count, slots)
        self._ring, self._rings = ring, self._rings + 1
        self._outlet.send([RingOpened(self._number, self._rings, ring.slot_bytes, slots)], ring.descriptor)
        os.close(ring.descriptor)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._outlet.send([*batch, self._counts()])

    def _counts(self) -> FramesCounted:
        tally = self.account.tally()
        return FramesCounted(self._number, tally.received, tally.dropped, self.expected_frames())


def _how_to_pack(frame: Frame) -> tuple[PictureLayout, Callable[[memoryview], None]]:
    """How the pixels of `frame` cross, and the function that writes them into a buffer."""
    import numpy as np

    from streamer.sources.decode import DecodedPicture
    from streamer.sources.planes import BGR, PictureLayout

    if isinstance(frame.pixels, DecodedPicture):
        packing = frame.pixels.packing()
        if packing is not None:
            return packing
    image = frame.image

    def fill(buffer: memoryview) -> None:
        np.copyto(np.frombuffer(buffer, np.uint8, image.size).reshape(image.shape), image)

    return PictureLayout(BGR, frame.width, frame.height), fill


class _ServedSource:
    """One source that this worker reads."""

    def __init__(self, order: OpenSource, outlet: _Outlet) -> None:
        self.is_live = order.live
        self._number = order.source
        self._outlet = outlet
        self.handover = RingHandover(order.source, outlet, order)
        try:
            self._source = order.recipe.make(self._report_state)
        except Exception as error:
            self.handover.finish(error)
            raise
        source = self._source
        if isinstance(source, ThreadedSource):
            source.use_threads(order.threads)
        self.cutter: ClipCutter | None = None
        if order.packets is not None and isinstance(source, PacketSource):
            self.cutter = source.keep_packets(order.packets, self._report_packets)
        self.handover.account = source.account
        self.handover.expected_frames = lambda: source.expected_frames
        if isinstance(source, PushSource):
            source.start_reading(self.handover)
        else:
            start_thread(self._iterate, name=f"read {source.name}")

    def close(self) -> None:
        """Stop reading, beside everything else: a source may be held up in the network for seconds."""
        start_thread(self._close, name=f"close {self._source.name}")

    def _close(self) -> None:
        try:
            asyncio.run(self._source.aclose())
        finally:
            self.handover.close()
            self.handover.finish()

    def _iterate(self) -> None:
        error: Exception | None = None
        try:
            asyncio.run(self._pass_on(self._source))
        except Exception as failure:
            error = failure
        self.handover.finish(error)

    async def _pass_on(self, source: Source) -> None:
        async for frame in source:
            if source.live:
                stale = self.handover.replace(frame)
                source.account.drop("shutdown" if stale is None else "stale", 1 if stale is None else stale)
            elif not await asyncio.to_thread(self.handover.put, frame):
                source.account.drop("shutdown")
                return

    def _report_packets(self, kept: bool) -> None:
        self._outlet.send([PacketsKept(self._number, kept)])

    def _report_state(self, change: StateChange) -> None:
        self._outlet.send([StateChanged(self._number, change.state.value, change.time_ns, change.cause)])


class DecodeWorker:
    """Serves the sources that the process at the other end of `connection` opens."""

    def __init__(self, connection: socket.socket, outlet: _Outlet) -> None:
        self._connection = connection
        self._outlet = outlet
        self._decoder = MessageDecoder()
        self._sources: dict[int, _ServedSource] = {}
        self._cutters: dict[int, ClipCutter] = {}  # also of sources that have ended

    def serve(self) -> None:
        """Until the other end is closed."""
        due = time.monotonic() + BEAT_S
        while True:
            wait_s = max(0.0, due - time.monotonic())
            batching = [served.handover for served in self._sources.values() if not served.is_live]
            if batching:
                wait_s = min(wait_s, _IDLE_CHECK_S)
            if select.select([self._connection], [], [], wait_s)[0]:
                data = self._connection.recv(65536)
                if not data:
                    return
                for item in self._decoder.feed(data):
                    self._obey(item)
            for handover in batching:
                handover.flush_overdue()
            if time.monotonic() >= due:
                due = time.monotonic() + BEAT_S
                self._outlet.send([])
                for number, served in list(self._sources.items()):
                    if served.handover.has_ended:
                        del self._sources[number]
                    else:
                        served.handover.report_counts()

    def _obey(self, item: Any) -> None:
        if isinstance(item, OpenSource):
            try:
                served = self._sources[item.source] = _ServedSource(item, self._outlet)
                if served.cutter is not None:
                    self._cutters[item.source] = served.cutter
            except Exception:
                log.debug("a source could not be opened; its reader has been informed", exc_info=True)
            return
        if isinstance(item, CutClip):
            self._cut_clip(item)
            return
        if isinstance(item, ForgetPackets):
            if (cutter := self._cutters.pop(item.source, None)) is not None:
                cutter.release()
            return
        found = self._sources.get(item.source)
        if found is None:
            return
        if isinstance(item, FreeSlots):
            found.handover.free(list(item.slots))
        elif isinstance(item, SampleSource):
            found.handover.sampling = item.sampling
        elif isinstance(item, CloseSource):
            found.close()
            del self._sources[item.source]

    def _cut_clip(self, order: CutClip) -> None:
        def deliver(result: CutResult) -> None:
            answer = ClipCut(order.source, order.clip, result.begin_ns, result.end_ns, result.error)
            with contextlib.suppress(OSError):  # the other end is gone, and this process ends
                self._outlet.send([answer])

        cutter = self._cutters.get(order.source)
        if cutter is None:
            deliver(CutResult(error="no_packets"))
        else:
            cutter.cut(order.from_ns, order.until_ns, Path(order.path), deliver)


def main() -> None:
    """Run as a process of its own: the argument is the descriptor of a connected Unix socket."""
    # The analysing process decides when to end and closes the socket then; signals to the whole group are for it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0001)  # see `streamer.cli.main`
    limit_decoding()
    connection = socket.socket(fileno=int(sys.argv[1]))
    outlet = _Outlet(connection)
    level = os.environ.get("GROUNDSTREAM_WORKER_LOG", "WARNING")
    logging.basicConfig(level=level, handlers=[_ForwardingHandler(outlet)])
    code = 0
    try:
        DecodeWorker(connection, outlet).serve()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception:
        log.exception("a decode worker failed")
        code = 1
    finally:
        # Threads may be held up in the network: nothing waits for them, the system closes what they hold.
        os._exit(code)


if __name__ == "__main__":
    main()
