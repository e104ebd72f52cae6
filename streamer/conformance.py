"""Tests that every source and every rule passes: subclass `SourceConformance` or `RuleConformance` in a test file.

    class TestMySource(SourceConformance):
        def make_source(self) -> Source:
            return MySource("cam")

Needs pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from streamer.frame import Frame
from streamer.rules.rule import FrameObservation, Rule, RuleFinding
from streamer.sources.source import Source

_WAIT_S = 60.0


class SourceConformance:
    """Order, numbering, accounting and closing of a source."""

    most_frames = 20
    """Frames that are read of a source without an end."""

    def make_source(self) -> Source:
        """Returns a source that delivers at least one frame."""
        raise NotImplementedError

    def read_frames(self, source: Source) -> list[Frame]:
        """Returns up to `most_frames` frames and closes the source."""

        async def run() -> list[Frame]:
            frames: list[Frame] = []
            try:
                async with asyncio.timeout(_WAIT_S):
                    async for frame in source:
                        source.account.analyse()
                        frames.append(frame)
                        if len(frames) == self.most_frames:
                            break
            finally:
                await source.aclose()
            return frames

        return asyncio.run(run())

    def test_frames_are_numbered_and_timed_in_order(self) -> None:
        """Indexes and capture times rise; a gap in the indexes is a dropped frame."""
        source = self.make_source()
        frames = self.read_frames(source)
        assert frames
        assert all(frame.stream == source.name for frame in frames)
        indexes, times = [frame.index for frame in frames], [frame.time_ns for frame in frames]
        assert indexes == sorted(set(indexes))
        assert times == sorted(set(times))

    def test_images_are_bgr_of_the_stated_size(self) -> None:
        """`image` is (height, width, 3), uint8."""
        for frame in self.read_frames(self.make_source()):
            assert frame.image.dtype == np.uint8
            assert frame.image.shape == (frame.height, frame.width, 3)

    def test_every_received_frame_is_accounted_for(self) -> None:
        """Received = analysed + dropped, once the source is closed."""
        source = self.make_source()
        frames = self.read_frames(source)
        tally = source.account.tally()
        assert tally.analysed == len(frames)
        assert tally.received == tally.analysed + sum(tally.dropped.values())

    def test_closing_is_safe_twice_and_before_the_first_frame(self) -> None:
        """`aclose` ends threads and connections at any time."""

        async def run() -> None:
            source = self.make_source()
            await source.aclose()
            await source.aclose()

        asyncio.run(run())


def observation(time_s: float, *boxes: tuple[int, float, float, float, float]) -> FrameObservation:
    """One analysed frame: tracks as (id, x1, y1, x2, y2), boxes as fractions of the frame."""
    ids = np.array([box[0] for box in boxes], np.int64)
    return FrameObservation(
        time_ns=round(time_s * 1e9),
        ids=ids,
        boxes=np.array([box[1:] for box in boxes], np.float64).reshape(-1, 4),
        scores=np.ones(len(boxes)),
        labels=np.zeros(1, np.int64),
        label_scores=np.ones((len(boxes), 1)),
        stationary=np.zeros(len(boxes), np.bool_),
        alive=ids,
    )


class RuleConformance:
    """Purity of a rule: the same observations give the same findings."""

    def make_rule(self) -> Rule:
        """Returns a new rule."""
        raise NotImplementedError

    def observations(self) -> Sequence[FrameObservation]:
        """Frames in which a walker crosses the picture while another one stands; override for other scenes."""
        return [observation(n / 10, (1, n / 50, 0.3, n / 50 + 0.1, 0.9), (2, 0.45, 0.2, 0.55, 0.7)) for n in range(40)]

    def run_rule(self) -> list[RuleFinding]:
        """Returns the findings of a new rule over all observations and its end."""
        rule = self.make_rule()
        seen = self.observations()
        findings = [finding for frame in seen for finding in rule.update(frame)]
        return [*findings, *rule.close(seen[-1].time_ns)]

    def test_the_same_observations_give_the_same_findings(self) -> None:
        """Live or replayed."""
        assert self.run_rule() == self.run_rule()

    def test_frames_without_tracks_are_taken(self) -> None:
        """Rules see every analysed frame, empty ones too."""
        rule = self.make_rule()
        for number in range(3):
            rule.update(observation(number / 10))

    def test_closing_ends_everything_and_the_rule_starts_afresh(self) -> None:
        """After `close` the rule behaves like a new one."""
        rule = self.make_rule()
        seen = self.observations()
        first = [finding for frame in seen for finding in rule.update(frame)] + list(rule.close(seen[-1].time_ns))
        again = [finding for frame in seen for finding in rule.update(frame)] + list(rule.close(seen[-1].time_ns))
        assert first == again
