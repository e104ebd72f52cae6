"""Sampled frames of several sources, one source after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from streamer.frame import Frame
from streamer.sources.sampling import FrameSampling
from streamer.sources.source import Source


async def sampled_frames(
    sources: Sequence[Source], *, every: int = 1, fps: float | None = None
) -> AsyncIterator[Frame]:
    """The frames to analyse, of one source after the other."""
    for source in sources:
        sampling = FrameSampling(every, fps)
        try:
            async for frame in source:
                if sampling.wants(frame):
                    source.account.analyse()
                    yield frame
                else:
                    source.account.drop("not_sampled")
        finally:
            await source.aclose()
