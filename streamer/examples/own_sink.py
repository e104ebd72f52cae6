"""An own sink: counts events by type while a video is processed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence

import groundstream


class EventCounter:
    """Counts events by type; every batch counts as delivered when `send_batch` returns."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    async def send_batch(self, events: Sequence[groundstream.Event]) -> None:
        self.counts.update(event.kind for event in events)

    async def aclose(self) -> None:
        pass


async def count_events(video: str) -> Counter[str]:
    """Returns how often each type of event occurred in a video."""
    config = groundstream.parse_config(
        {"streams": [{"source": video}], "queries": ["anything that moves"], "detector": "motion", "sinks": []}
    )
    counter = EventCounter()
    async with groundstream.open_pipeline(config, more_sinks={"counter": counter}) as pipeline:
        await pipeline.run()
    return counter.counts


if __name__ == "__main__":
    for kind, count in asyncio.run(count_events(sys.argv[1])).most_common():
        print(f"{count:6} {kind}")
