"""The merge of many streams into one: bounded, fair, and undisturbed by any one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from streamer.frame import Frame
from streamer.sources.source import Source

OnError = Callable[[str, Exception], None]


class FrameMerge:
    """Takes frames from every source at its own pace and gives them out in fair turns.

    Of a live stream only the newest frame waits here, and those it replaces are counted `stale`; a recording is held
    back once `ahead` of its frames wait. A source that raises ends alone: `on_error` gets its name and the exception,
    after its last frame has come here. `on_end` gets the name of a source once its last frame has been taken. To be
    made and used inside one event loop, by one taker.
    """

    def __init__(
        self,
        sources: Iterable[Source] = (),
        *,
        on_error: OnError | None = None,
        on_end: Callable[[str], None] | None = None,
        ahead: int = 8,
    ) -> None:
        self._on_error = on_error
        self._on_end = on_end
        self._is_held_open = False
        self._ahead = ahead
        self._lanes: dict[str, _StreamLane] = {}  # the sources that may still give frames
        self._turns: deque[_StreamLane] = deque()  # the lanes that hold frames; the first is next
        self._waiting = 0  # frames in all lanes
        self._enough = 1  # how many frames the taker waits for
        self._changed = asyncio.Event()
        for source in sources:
            self.add(source)

    def add(self, source: Source) -> None:
        """Take frames from `source`, too. Raises `ValueError` where its name is in use."""
        if source.name in self._lanes:
            raise ValueError(f"two sources are called {source.name!r}: give one of them another name")
        lane = self._lanes[source.name] = _StreamLane(source)
        lane.pump = asyncio.create_task(self._pump(lane), name=f"pump {source.name}")
        self._changed.set()

    def pause(self, name: str) -> None:
        """Take no more frames from a recording; those that wait here still go out."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.going.clear()
            self._changed.set()

    def resume(self, name: str) -> None:
        """Take frames from a paused recording again."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.going.set()
            self._changed.set()

    @property
    def is_held_open(self) -> bool:
        """Whether `take` waits for a new or a resumed source when no present one can give frames."""
        return self._is_held_open

    @is_held_open.setter
    def is_held_open(self, value: bool) -> None:
        self._is_held_open = value
        self._changed.set()

    async def remove(self, name: str) -> None:
        """Close a source and drop what waits of it, counted `shutdown`. Unknown and ended ones are no error."""
        lane = self._lanes.get(name)
        if lane is not None:
            await self._close(lane)

    @property
    def streams(self) -> frozenset[str]:
        """Names of the sources that may still give frames."""
        return frozenset(self._lanes)

    async def take(self, limit: int, wait_s: float = 0.0) -> list[Frame]:
        """At least one frame, waiting for it, then up to `limit` of them or all that come within `wait_s` after it.

        Empty once no source can give frames, unless the merge is held open. Cancelling it loses no frame.
        """
        await self._until(1)
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._until(limit)
        return self._collect(limit)

    async def aclose(self) -> None:
        """Close every source; what still waits is counted `shutdown`."""
        await asyncio.gather(*(self._close(lane) for lane in list(self._lanes.values())))

    async def _until(self, enough: int) -> None:
        """Wait until `enough` frames wait here, or as many as can."""
        self._enough = enough
        while self._waiting < max(self._reachable(enough), self._is_held_open):
            self._changed.clear()
            await self._changed.wait()

    def _reachable(self, enough: int) -> int:
        """How many frames can wait here at most, up to `enough`."""
        return min(enough, sum(self._most(lane) for lane in self._lanes.values()))

    def _most(self, lane: _StreamLane) -> int:
        """How many frames of `lane` could wait here if the taker waited for ever."""
        if lane.ended or not lane.going.is_set():
            return len(lane.frames)
        return 1 if lane.source.live else self._ahead

    def _collect(self, limit: int) -> list[Frame]:
        """Up to `limit` frames, one of each stream in turn; those of the first one's size come before others, so that
        a detector gets pictures that fit into one batch. Streams that are passed over are first in the next batch."""
        taken: list[Frame] = []
        if self._turns:
            first = self._turns[0].frames[0]
            passed = self._take_turns(taken, limit, (first.width, first.height))
            self._turns.extendleft(reversed(passed))
            self._take_turns(taken, limit, None)
        self._waiting -= len(taken)
        return taken

    def _take_turns(self, taken: list[Frame], limit: int, size: tuple[int, int] | None) -> list[_StreamLane]:
        """Add frames of `size` (None: any) to `taken` until it has `limit`; returns the lanes that were passed over."""
        passed: list[_StreamLane] = []
        while self._turns and len(taken) < limit:
            lane = self._turns.popleft()
            frame = lane.frames[0]
            if size is not None and (frame.width, frame.height) != size:
                passed.append(lane)
                continue
            taken.append(lane.frames.popleft())
            lane.room.set()
            if lane.frames:
                self._turns.append(lane)
            elif lane.ended and not lane.closing:
                self._end(lane)
        return passed

    async def _pump(self, lane: _StreamLane) -> None:
        """Bring one source's frames here until it ends."""
        source = lane.source
        try:
            async for frame in source:
                self._hold(lane, frame)
                # The wait for room comes before the next frame, so that a cancelled pump never has one in its hands.
                while not source.live and len(lane.frames) >= self._ahead:
                    lane.room.clear()
                    await lane.room.wait()
                await lane.going.wait()
            await source.aclose()
        except Exception as error:
            if self._on_error is not None:
                self._on_error(source.name, error)
        finally:
            lane.ended = True
            if not lane.frames and not lane.closing:
                self._end(lane)
            self._changed.set()

    def _hold(self, lane: _StreamLane, frame: Frame) -> None:
        if not lane.frames:
            self._turns.append(lane)
        elif lane.source.live:
            lane.frames.clear()
            self._waiting -= 1
            lane.source.account.drop("stale")
        lane.frames.append(frame)
        self._waiting += 1
        if self._waiting >= self._enough:
            self._changed.set()

    async def _close(self, lane: _StreamLane) -> None:
        assert lane.pump is not None
        lane.closing = True  # it ends when its source has counted what it still held
        lane.pump.cancel()
        await asyncio.wait([lane.pump])
        await lane.source.aclose()
        if lane.frames:
            lane.source.account.drop("shutdown", len(lane.frames))
            self._waiting -= len(lane.frames)
            lane.frames.clear()
            self._turns.remove(lane)
        self._end(lane)
        self._changed.set()

    def _end(self, lane: _StreamLane) -> None:
        """Forget a source whose last frame has been taken."""
        if self._lanes.get(lane.source.name) is lane:
            del self._lanes[lane.source.name]
            if self._on_end is not None:
                self._on_end(lane.source.name)


class _StreamLane:
    """One source's place in the merge."""

    __slots__ = ("closing", "ended", "frames", "going", "pump", "room", "source")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.frames: deque[Frame] = deque()
        self.room = asyncio.Event()
        self.going = asyncio.Event()
        self.going.set()
        self.pump: asyncio.Task[None] | None = None
        self.ended = self.closing = False
