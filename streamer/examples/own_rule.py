"""An own rule: an event whenever more than a number of objects are in the picture at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import groundstream
from sinks.event import EventType, RuleInfo
from streamer.rules.rule import FrameObservation, RuleFinding


class Crowd:
    """Reports once when more than `limit` tracks are seen together, and again after the crowd has dissolved."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._is_crowded = False

    def update(self, seen: FrameObservation) -> Sequence[RuleFinding]:
        was_crowded, self._is_crowded = self._is_crowded, len(seen.ids) > self._limit
        if was_crowded or not self._is_crowded:
            return []
        rule = RuleInfo(id="crowd", text=f"{len(seen.ids)} objects at once", value=len(seen.ids))
        return [RuleFinding(EventType.RULE, data={"rule": rule})]

    def close(self, time_ns: int) -> Sequence[RuleFinding]:
        self._is_crowded = False
        return []


async def report_crowds(video: str, limit: int) -> None:
    """Writes the events of the rule to standard output as JSON lines."""
    config = groundstream.parse_config(
        {
            "streams": [{"source": video}],
            "queries": ["anything that moves"],
            "detector": "motion",
            "sinks": ["stdout:?types=rule"],
        }
    )
    async with groundstream.open_pipeline(config, rules=lambda stream: [Crowd(limit)]) as pipeline:
        await pipeline.run()


if __name__ == "__main__":
    asyncio.run(report_crowds(sys.argv[1], limit=2))
