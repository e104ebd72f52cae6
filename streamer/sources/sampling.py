"""Sampling of frames: which ones the detector analyses; between them tracks are carried on by their motion."""

from __future__ import annotations

from dataclasses import dataclass

from streamer.errors import ConfigError
from streamer.frame import Frame

_MOST_SLACK_NS = 20_000_000


@dataclass(slots=True)
class FrameSampling:
    """Every `every`-th frame, or at most `fps` frames per second of capture time. One per stream: it remembers."""

    every: int = 1
    fps: float | None = None
    _next_ns: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"sampling takes every {self.every}-th frame: give 1 or more")
        if self.fps is not None and self.fps <= 0:
            raise ConfigError(f"sampling at {self.fps} frames per second: give a rate above 0")

    @property
    def due_ns(self) -> int | None:
        """The capture time before which no frame is wanted; None where that is not known."""
        if self.fps is None or self._next_ns is None or self.every > 1:
            return None
        return self._next_ns - self._slack_ns(int(1e9 / self.fps))

    def wants(self, frame: Frame) -> bool:
        if frame.index % self.every:
            return False
        if self.fps is None:
            return True
        period_ns = int(1e9 / self.fps)
        if self._next_ns is not None and frame.time_ns < self._next_ns - self._slack_ns(period_ns):
            return False
        due = frame.time_ns if self._next_ns is None else self._next_ns
        self._next_ns = due + period_ns * max(1, (frame.time_ns - due) // period_ns + 1)
        return True

    @staticmethod
    def _slack_ns(period_ns: int) -> int:
        """How early a frame may be: at 25 frames a second, 5 a second is every fifth frame in spite of jitter."""
        return min(period_ns // 10, _MOST_SLACK_NS)
