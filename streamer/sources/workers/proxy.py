"""The analysing process's end of a source that a decode worker reads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self

from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.frame_counter import FrameCounter
from streamer.sources.packet_clips import ClipCutter, CutResult, DeliverCut, PacketLimits, PacketSource
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import MovableSource, OnState, SourceRecipe, SourceState, StateChange
from streamer.sources.workers.protocol import (
    ClipCut,
    CloseSource,
    CutClip,
    ForgetPackets,
    FrameDecoded,
    FramesCounted,
    FreeSlots,
    OpenSource,
    PacketsKept,
    RingOpened,
    SampleSource,
    SourceEnded,
    StateChanged,
)
from streamer.sources.workers.ring import ReadingRing

_CLOSE_S = 2.5
"""How long closing waits for the worker's last word; a camera that is held up in the network takes up to 2 s."""
_FRUITLESS_DEATHS = 3
"""A recording at whose same frame so many workers died in a row is given up."""
_TICK_NS = 1_000  # capture times rise by at least this across workers


class WorkerLink(Protocol):
    """The way to the worker that reads a source."""

    def send(self, item: object) -> None:
        """Queue an item for the worker; in the event loop."""
        ...


OpenLink = Callable[["WorkerSource"], WorkerLink]
"""Chooses the worker for a source, numbers the source there, and returns the way to it. Raises `OSError`."""


class WorkerSource:
    """A source that is read by a decode worker; has the name, account and behaviour of the source that it moves there.

    Iterating it opens the source in a worker of `open_link`'s choice. When the worker dies, a camera is reported as
    lost with the cause and read by the next worker; a recording is read on from the frame after the last one that came.
    `on_state` is called in the event loop, before the frames that come after the change.
    """

    def __init__(
        self,
        source: MovableSource,
        open_link: OpenLink,
        close_link: Callable[[WorkerSource], None],
        on_state: OnState | None = None,
    ) -> None:
        self.name = source.name
        self.live = source.live
        self.account = FrameCounter()
        self.expected_frames = source.expected_frames
        self.recording, self.remote = source.recording, source.remote
        self.number = 0  # under which the pool knows it, while it is open
        self.threads = 1  # that may decode it, by the pool's choice
        self.deaths: list[float] = []  # when workers died under it, by the monotonic clock
        self._shown = repr(source)
        self._recipe = source.recipe()
        self._open_link, self._close_link = open_link, close_link
        self._on_state = on_state
        self._sampling: FrameSampling | None = None
        self._link: WorkerLink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._frames: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = asyncio.Event()
        self._is_closing = False
        self._error: Exception | None = None
        self._ring: ReadingRing | None = None
        self._rings = 0  # rings opened so far, by all workers
        self._next_index = 0  # of the next frame of a recording
        self._last_death_at = -1
        self._fruitless = 0
        self._last_ns = 0
        self._index_base = self._connection_base = self._last_connection = 0
        self._seen = FramesCounted(0, 0, {}, None)  # the account that this worker has given so far
        self._delivered = 0  # frames that came from this worker
        self._is_dark = False
        self._said_closed = False
        self._can_keep_packets = isinstance(source, PacketSource)
        self._packet_limits: PacketLimits | None = None
        self._cutter: _WorkerCutter | None = None
        self._clip_link: WorkerLink | None = None  # also after the end, until the packets are released
        self._freed: deque[tuple[int, int]] = deque()
        self._is_freeing = False

    def __repr__(self) -> str:
        return f"WorkerSource({self._shown})"

    @property
    def leased_slots(self) -> int:
        """How many pictures of this source are held here in shared memory."""
        return 0 if self._ring is None else self._ring.leased

    def sample_in_worker(self, sampling: FrameSampling) -> FrameSampling:
        """Let the worker drop the frames of a live source that `sampling` does not want; returns the sampling that is
        left to do here. For streams of which nothing needs the frames between."""
        if not self.live:
            return sampling
        self._sampling = FrameSampling(sampling.every, sampling.fps)
        if self._link is not None:
            self._link.send(SampleSource(self.number, self._sampling))
        return FrameSampling()

    def keep_packets(self, limits: PacketLimits, on_kept: Callable[[bool], object] | None = None) -> ClipCutter | None:
        """Has the worker keep packets, where the source can. To be called before the source is iterated."""
        if not self._can_keep_packets:
            return None
        self._packet_limits = limits
        self._cutter = _WorkerCutter(self._send_for_clips, self._release_packets, on_kept)
        return self._cutter

    def __aiter__(self) -> Self:
        if self._link is None and not self._is_closing and not self._is_over.is_set():
            self._loop = asyncio.get_running_loop()
            self._open(self._open_link)
        return self

    async def __anext__(self) -> Frame:
        while True:
            if self._frames:
                return self._frames.popleft()
            if self._is_over.is_set() or self._is_closing or self._loop is None:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            if self._ring is not None and self._ring.leased >= self._ring.slots:
                self._ring.detach_oldest()  # their holders keep them; the worker needs room
            self._waiter = self._loop.create_future()
            await self._waiter

    async def aclose(self) -> None:
        was_closing, self._is_closing = self._is_closing, True
        if self._link is not None and not was_closing:
            self._link.send(CloseSource(self.number))
        self._drop_waiting()
        if self._link is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), _CLOSE_S)
        self._finish(None)

    # Called by the pool, in the event loop.

    def receive(self, item: object, descriptors: deque[int]) -> None:
        """Handle one item that the worker sent; `descriptors` are those that came beside the messages, in order."""
        if isinstance(item, FrameDecoded):
            self._add_frame(item)
        elif isinstance(item, FramesCounted):
            self._add_counts(item)
        elif isinstance(item, StateChanged):
            self._add_state(item)
        elif isinstance(item, RingOpened):
            self._rings = item.ring
            self._ring = ReadingRing(item.ring, descriptors.popleft(), item.slot_bytes, item.slots, self._give_back)
        elif isinstance(item, PacketsKept | ClipCut):
            if self._cutter is not None:
                self._cutter.receive(item)
        elif isinstance(item, SourceEnded):
            error: Exception | None = None
            if item.error is not None:
                error = RuntimeError(item.error) if item.is_fault else SourceError(item.error)
            self._finish(error)

    def lose_worker(self, cause: str) -> bool:
        """The worker has died: count what it had not sent. Returns whether the source is to be opened again."""
        self._link, self._ring, self._clip_link = None, None, None
        if self._cutter is not None:
            self._cutter.lose_worker()
        if self._is_closing or self._is_over.is_set():
            self._finish(None)
            return False
        self.deaths.append(time.monotonic())
        if self.live:
            self._count_lost("worker_died")
            self._delivered = 0
            self._index_base = self.account.tally().received
            self._connection_base = self._last_connection + 1
            self._seen = FramesCounted(0, 0, {}, None)
            if not self._is_dark:
                self._is_dark = True
                self._report(SourceState.WAITING, cause)
            return True
        self._fruitless = self._fruitless + 1 if self._last_death_at == self._next_index else 1
        self._last_death_at = self._next_index
        if self._fruitless < _FRUITLESS_DEATHS:
            return True
        self._finish(
            SourceError(f"{self._shown} cannot be decoded from frame {self._next_index} on: {cause}, repeatedly")
        )
        return False

    def reopen(self, open_link: OpenLink) -> None:
        """Have another worker read on."""
        if not self._is_closing and not self._is_over.is_set():
            self._open(open_link)
        else:
            self._finish(None)

    def fail(self, error: OSError) -> None:
        """End: no worker can be started."""
        self._finish(SourceError(f"cannot start a decode worker for {self.name}: {error.strerror or error}"))

    def _open(self, open_link: OpenLink) -> None:
        recipe = self._recipe
        if self._last_ns and "strict" in recipe.arguments:  # a camera that was seen may be away for a while
            recipe = recipe._replace(arguments={**recipe.arguments, "strict": False})
        try:
            self._link = open_link(self)
        except OSError as error:
            self.fail(error)
            return
        self._clip_link = None if self._cutter is None else self._link
        self._link.send(self._order(recipe))

    def _order(self, recipe: SourceRecipe) -> OpenSource:
        first = 0 if self.live else self._next_index
        return OpenSource(
            self.number, recipe, self.live, first, self._rings, self._sampling, self._packet_limits, self.threads
        )

    def _add_frame(self, item: FrameDecoded) -> None:
        basis, uncertainty_ms, received_ns, connection = item.clock
        self._delivered += 1
        self._next_index = item.frame_index + 1
        self._last_connection = connection + self._connection_base
        time_ns = item.time_ns
        if self._connection_base:  # clocks of two workers may differ by a little
            time_ns = max(time_ns, self._last_ns + _TICK_NS)
        self._last_ns = time_ns
        assert self._ring is not None
        frame = Frame(
            self.name,
            item.frame_index + self._index_base,
            time_ns,
            FrameClock(basis, uncertainty_ms, received_ns, self._last_connection),
            self._ring.lease(item.slot, item.layout),
            item.size,
            item.pixel_aspect,
        )
        if self._is_closing:
            self.account.drop("shutdown")
            return
        if self.live and self._frames:
            self._frames.clear()
            self.account.drop("stale")
        self._frames.append(frame)
        self._wake()

    def _add_counts(self, item: FramesCounted) -> None:
        """Count what the worker has counted since its last account. A recording that is read again counts on where
        the account of the earlier worker ended."""
        before = self._seen
        news = {reason: count - before.dropped.get(reason, 0) for reason, count in item.dropped.items()}
        self.account.add(
            max(0, item.received - before.received), {reason: count for reason, count in news.items() if count > 0}
        )
        dropped: Mapping[str, int] = {
            reason: max(item.dropped.get(reason, 0), before.dropped.get(reason, 0))
            for reason in {*item.dropped, *before.dropped}
        }
        self._seen = FramesCounted(0, max(item.received, before.received), dropped, None)
        if item.expected_frames is not None:
            self.expected_frames = item.expected_frames

    def _add_state(self, item: StateChanged) -> None:
        state = SourceState(item.state)
        if self._is_dark:
            if state not in (SourceState.LIVE, SourceState.CLOSED):
                return  # within an outage only its end is news
            self._is_dark = False
        self._report(state, item.cause, item.time_ns)

    def _report(self, state: SourceState, cause: str, time_ns: int | None = None) -> None:
        if self._said_closed:
            return
        self._said_closed = state is SourceState.CLOSED
        if self._on_state is not None:
            self._on_state(StateChange(self.name, state, time_ns or time.time_ns(), cause))

    def _count_lost(self, reason: str) -> None:
        """Count the frames that the worker had received, and neither dropped nor sent."""
        lost = self._seen.received - sum(self._seen.dropped.values()) - self._delivered
        self.account.drop(reason, max(0, lost))

    def _drop_waiting(self) -> None:
        self.account.drop("shutdown", len(self._frames))
        self._frames.clear()
        self._wake()

    def _finish(self, error: Exception | None) -> None:
        """Nothing more comes: the taker gets what is left, then `error` or the end."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._error = error
        self._link = None
        self._count_lost("shutdown" if self._is_closing else "worker_died")
        if self._is_closing:
            self._error = None
            self._drop_waiting()
        if self._loop is not None:
            self._report(SourceState.CLOSED, str(error or ""))
        if self._clip_link is None:
            self._close_link(self)
        self._wake()

    def _send_for_clips(self, make: Callable[[int], object]) -> bool:
        if self._clip_link is None:
            return False
        self._clip_link.send(make(self.number))
        return True

    def _release_packets(self) -> None:
        if self._send_for_clips(ForgetPackets):
            self._clip_link = None
            if self._is_over.is_set():
                self._close_link(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Called from any thread.

    def _give_back(self, ring: int, slot: int) -> None:
        self._freed.append((ring, slot))
        if self._is_freeing or self._loop is None:
            return
        self._is_freeing = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the worker with it
            # In the loop's own thread, too: the garbage collector may come here while the loop is about to wait, and
            # `call_soon` would not wake it.
            self._loop.call_soon_threadsafe(self._send_freed)

    def _send_freed(self) -> None:
        self._is_freeing = False
        slots = []
        while self._freed:
            slots.append(self._freed.popleft())
        if slots and self._link is not None:
            self._link.send(FreeSlots(self.number, slots))


class _WorkerCutter:
    """The clips of a source that a decode worker keeps the packets of. For the event loop."""

    def __init__(
        self,
        send: Callable[[Callable[[int], object]], bool],
        release: Callable[[], None],
        on_kept: Callable[[bool], object] | None,
    ) -> None:
        self._send, self._release, self._on_kept = send, release, on_kept
        self._is_keeping = False
        self._orders: dict[int, DeliverCut] = {}
        self._count = 0

    @property
    def can_cut(self) -> bool:
        return self._is_keeping

    def cut(self, from_ns: int, until_ns: int, path: Path, deliver: DeliverCut) -> None:
        self._count += 1
        clip = self._count
        self._orders[clip] = deliver
        if not self._send(lambda source: CutClip(source, clip, from_ns, until_ns, str(path.absolute()))):
            self.lose_worker()

    def release(self) -> None:
        self._release()
        self.lose_worker()

    def receive(self, item: PacketsKept | ClipCut) -> None:
        if isinstance(item, PacketsKept):
            self._is_keeping = item.kept
            if self._on_kept is not None:
                self._on_kept(item.kept)
        elif (deliver := self._orders.pop(item.clip, None)) is not None:
            deliver(CutResult(item.begin_ns, item.end_ns, item.error))

    def lose_worker(self) -> None:
        """No answer comes to what was ordered."""
        self._is_keeping = False
        orders, self._orders = self._orders, {}
        for deliver in orders.values():
            deliver(CutResult(error="no_packets"))
