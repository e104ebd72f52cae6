"""Many streams into one: fair, bounded, every frame accounted for, no stream hurt by another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.pipeline.merge import FrameMerge
from streamer.sources.frame_counter import FrameCounter

PIXELS = np.zeros((2, 2, 3), np.uint8)
CLOCK = FrameClock("arrival")


class Script:
    """A source that plays a script: pauses (seconds) before each of its frames, then ends or raises."""

    def __init__(
        self, name: str, pauses: Sequence[float], *, live: bool = False, error: Exception | None = None
    ) -> None:
        self.name, self.live = name, live
        self.account = FrameCounter()
        self.closed = 0
        self._pauses, self._error = pauses, error

    async def __aiter__(self) -> AsyncIterator[Frame]:
        for pause in self._pauses:
            if pause:
                await asyncio.sleep(pause)
            index = self.account.receive()
            yield Frame(self.name, index, index + 1, CLOCK, PIXELS, (2, 2))
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        self.closed += 1


async def drain(merge: FrameMerge, sources: Sequence[Script], limit: int = 8, wait_s: float = 0.0) -> list[Frame]:
    by_name = {source.name: source for source in sources}
    taken: list[Frame] = []
    while frames := await merge.take(limit, wait_s):
        assert len(frames) <= limit
        for frame in frames:
            by_name[frame.stream].account.analyse()
        taken += frames
    return taken


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def alone() -> None:
        before = asyncio.all_tasks()
        await work()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before  # nothing is left running

    asyncio.run(alone())


def test_recordings_lose_no_frame_and_keep_their_order() -> None:
    async def work() -> None:
        sources = [Script("a", [0] * 50), Script("b", [0] * 5), Script("c", [0.001] * 20)]
        taken = await drain(FrameMerge(sources), sources)
        assert Counter(frame.stream for frame in taken) == {"a": 50, "b": 5, "c": 20}
        for source in sources:
            indices = [frame.index for frame in taken if frame.stream == source.name]
            assert indices == list(range(len(indices)))
            assert source.account.tally().pending == 0
            assert source.closed

    run(work)


def test_streams_take_turns() -> None:
    async def work() -> None:
        sources = [Script(name, [0] * 8) for name in "abc"]
        merge = FrameMerge(sources)
        await asyncio.sleep(0.01)
        assert [frame.stream for frame in await merge.take(6)] == ["a", "b", "c", "a", "b", "c"]
        assert [frame.stream for frame in await merge.take(4)] == ["a", "b", "c", "a"]
        assert (await merge.take(1))[0].stream == "b"
        await merge.aclose()

    run(work)


def test_a_recording_is_held_back_and_a_camera_keeps_only_its_newest() -> None:
    async def work() -> None:
        recording, camera = Script("file", [0] * 100), Script("camera", [0.001] * 20, live=True)
        merge = FrameMerge([recording, camera], ahead=4)
        await asyncio.sleep(0.2)
        assert recording.account.tally().received == 4
        assert camera.account.tally().dropped == {"stale": 19}
        taken = await merge.take(8)
        assert [frame.index for frame in taken if frame.stream == "camera"] == [19]
        assert [frame.index for frame in taken if frame.stream == "file"] == [0, 1, 2, 3]
        await merge.aclose()
        assert recording.account.tally().pending == 4  # those in the taker's hands, whose last word is the taker's

    run(work)


def test_take_waits_for_the_first_frame_then_no_longer_than_it_was_reported() -> None:
    async def work() -> None:
        merge = FrameMerge([Script("slow", [0.05, 0.05, 30.0])])
        assert len(await merge.take(8, 0.0)) == 1
        assert len(await merge.take(8, 0.02)) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(merge.take(8, 0.0), 0.05)
        await merge.aclose()
        assert await merge.take(8) == []

    run(work)


def test_one_camera_alone_is_not_made_to_wait_for_a_batch_it_cannot_fill() -> None:
    async def work() -> None:
        merge = FrameMerge([Script("camera", [0.0, 60.0], live=True)])
        async with asyncio.timeout(5):
            assert len(await merge.take(8, 60.0)) == 1
        await merge.aclose()

    run(work)


def test_a_source_that_raises_ends_alone_and_after_its_last_frame() -> None:
    async def work() -> None:
        reported: list[tuple[str, str]] = []
        bad = Script("bad", [0, 0], error=SourceError("the tape is torn"))
        worse = Script("worse", [], error=RuntimeError("boom"))
        good = Script("good", [0.001] * 30)
        merge = FrameMerge([bad, worse, good], on_error=lambda name, error: reported.append((name, str(error))))
        taken = await drain(merge, [bad, worse, good])
        assert Counter(frame.stream for frame in taken) == {"bad": 2, "good": 30}
        assert sorted(reported) == [("bad", "the tape is torn"), ("worse", "boom")]

    run(work)


def test_bad_neighbours_leave_a_streams_frames_alone() -> None:
    async def frames_in_half_a_second(neighbours: list[Script]) -> int:
        good = Script("good", [0.002] * 10_000, live=True)
        sources = [good, *neighbours]
        merge = FrameMerge(sources)
        seen, end = 0, time.monotonic() + 0.5
        while time.monotonic() < end:
            seen += sum(frame.stream == "good" for frame in await merge.take(8, 0.005))
        await merge.aclose()
        assert good.account.tally().received > 50
        return seen

    async def work() -> None:
        alone = await frames_in_half_a_second([])
        bad = [
            Script("never connects", [3600], live=True),
            Script("blocks for a minute", [0, 60]),
            Script("raises", [0], error=OSError("gone")),
            Script("one a second", [0, 1, 1], live=True),
        ]
        # Not a timing test: a neighbour that blocked would leave nothing at all.
        assert await frames_in_half_a_second(bad) > alone / 4

    run(work)


def test_sources_come_and_go_while_it_runs() -> None:
    async def work() -> None:
        first, second = Script("first", [0] * 100), Script("second", [0] * 3)
        merge = FrameMerge([first], ahead=4)
        await merge.take(1)
        first.account.analyse()
        merge.add(second)
        with pytest.raises(ValueError, match="two sources are called 'second'"):
            merge.add(Script("second", []))
        await asyncio.sleep(0.01)
        await merge.remove("first")
        await merge.remove("never there")
        assert first.closed
        tally = first.account.tally()
        assert tally.pending == 0
        assert tally.dropped["shutdown"] > 0
        assert {frame.stream for frame in await drain(merge, [second])} == {"second"}

    run(work)


def test_a_cancelled_take_loses_no_frame() -> None:
    async def work() -> None:
        source = Script("file", [0.003] * 40)
        merge = FrameMerge([source])
        seen: list[int] = []
        while merge.streams:
            taking = asyncio.create_task(merge.take(8, 0.01))
            await asyncio.wait([taking], timeout=0.004)
            if taking.done():
                seen += [frame.index for frame in taking.result()]
            else:
                taking.cancel()
        assert seen == list(range(40))

    run(work)


@settings(max_examples=40, deadline=None)
@given(
    lives=st.lists(st.booleans(), min_size=1, max_size=4),
    counts=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    limit=st.integers(1, 9),
    ahead=st.integers(1, 6),
    takes=st.integers(0, 12),
    removed=st.integers(0, 3),
)
def test_received_is_analysed_plus_dropped_exactly_however_it_ends(
    lives: list[bool], counts: list[int], limit: int, ahead: int, takes: int, removed: int
) -> None:
    async def work() -> None:
        sources = [Script(str(n), [0] * counts[n], live=live) for n, live in enumerate(lives)]
        merge = FrameMerge(sources, ahead=ahead)
        for turn in range(takes):
            for frame in await merge.take(limit):
                sources[int(frame.stream)].account.analyse()
            if turn == 2:
                await merge.remove(str(removed))
        await merge.aclose()
        assert all(source.account.tally().pending == 0 for source in sources)
        assert await merge.take(limit) == []

    run(work)


class Sized(Script):
    """A script whose frames have a size of their own."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        super().__init__(name, [0.0] * 3)
        self._size = size

    async def __aiter__(self) -> AsyncIterator[Frame]:
        async for frame in super().__aiter__():
            yield Frame(self.name, frame.index, frame.time_ns, CLOCK, PIXELS, self._size)


def test_batches_are_of_one_picture_size_first_and_streams_of_other_sizes_come_next():
    async def work() -> list[list[str]]:
        sources = [Sized("a", (64, 48)), Sized("b", (32, 32)), Sized("c", (64, 48)), Sized("d", (32, 32))]
        merge = FrameMerge(sources)
        await asyncio.sleep(0.05)  # all frames wait now
        batches = []
        while frames := await merge.take(4):
            batches.append([f"{frame.stream}{frame.index}" for frame in frames])
        return batches

    assert asyncio.run(work()) == [["a0", "c0", "a1", "c1"], ["b0", "d0", "b1", "d1"], ["a2", "c2", "b2", "d2"]]
