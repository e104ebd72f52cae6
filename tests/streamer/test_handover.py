"""The hand-over from a reading thread to the event loop: none is lost or counted twice, whichever side closes first."""

from __future__ import annotations

import asyncio
import random
import sys
import threading

import numpy as np
import pytest

from streamer.frame import Frame, FrameClock
from streamer.sources.handover import Handover

FRAME = Frame("cam", 0, 0, FrameClock("arrival"), np.zeros((2, 2, 3), np.uint8), (2, 2))


class SlowToFinish(Handover):
    """A reading thread gets its turn whenever `finish` is called."""

    def finish(self, error: BaseException | None = None) -> None:
        self.accepted_late = self.put(FRAME)
        super().finish(error)


@pytest.mark.parametrize("keep", ["put", "replace"])
def test_a_frame_is_either_counted_by_close_or_refused(keep: str):
    """Closing at random moments: what the thread could hand over is what was taken or was waiting."""
    dice = random.Random(3)

    async def close_once() -> tuple[int, int]:
        handover = Handover(8)
        accepted = 0

        def read() -> None:
            nonlocal accepted
            while True:
                if keep == "put":
                    if not handover.put(FRAME):
                        return
                    accepted += 1
                else:
                    stale = handover.replace(FRAME)
                    if stale is None:
                        return
                    accepted += 1 - stale

        thread = threading.Thread(target=read)
        thread.start()
        taken = 0
        for _ in range(dice.randrange(6)):
            await handover.get()
            taken += 1
        left = handover.close()
        await asyncio.to_thread(thread.join)
        return accepted, taken + left

    async def work() -> list[tuple[int, int]]:
        return [await close_once() for _ in range(600)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        counts = asyncio.run(work())
    finally:
        sys.setswitchinterval(interval)
    assert [accepted for accepted, _ in counts] == [accounted for _, accounted in counts]


def test_nothing_is_accepted_between_emptying_and_finishing():
    async def work() -> None:
        handover = SlowToFinish(8)
        handover.put(FRAME)
        left = handover.close()
        assert (left, handover.close()) == (1, 0)
        assert not getattr(handover, "accepted_late", False)
        assert not handover.put(FRAME)

    asyncio.run(work())
