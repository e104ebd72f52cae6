"""The lag of the event loop: nothing while it idles, and what held it up."""

from __future__ import annotations

import asyncio
import time

from streamer.pipeline.loop_lag import LoopLag


def test_work_that_holds_up_the_loop_is_seen():
    async def work() -> LoopLag:
        lag = LoopLag()
        assert lag.quantile(1.0) == 0.0
        probe = asyncio.create_task(lag.run())
        await asyncio.sleep(0.12)
        time.sleep(0.3)  # noqa: ASYNC251
        await asyncio.sleep(0.12)
        probe.cancel()
        return lag

    lag = asyncio.run(work())
    assert lag.quantile(1.0) > 0.2
    assert lag.quantile(0.0) < lag.quantile(1.0)
