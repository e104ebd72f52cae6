"""Frame accounts: received = analysed + dropped (by reason) + pending, exactly, per stream."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameTally:
    """An account at one moment."""

    received: int
    analysed: int
    dropped: dict[str, int]

    def __add__(self, other: FrameTally) -> FrameTally:
        """The counts of two sources of one stream together."""
        dropped = Counter(self.dropped) + Counter(other.dropped)
        return FrameTally(self.received + other.received, self.analysed + other.analysed, dict(dropped))

    @property
    def pending(self) -> int:
        """Received, but neither analysed nor dropped yet."""
        return self.received - self.analysed - sum(self.dropped.values())


class FrameCounter:
    """Counts the frames of one stream. Thread-safe: decoders, the batcher and the reporter share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._analysed = 0
        self._dropped: Counter[str] = Counter()

    def receive(self) -> int:
        """Count one frame received; returns its index, from 0."""
        with self._lock:
            self._received += 1
            return self._received - 1

    def analyse(self, count: int = 1) -> None:
        with self._lock:
            self._analysed += count

    def drop(self, reason: str, count: int = 1) -> None:
        """Count frames that will not be analysed: `stale`, `corrupt`, `not_sampled`, `overload`, `detector_error`,
        `worker_died`, `shutdown`."""
        if count:  # a reason that never happened is not listed
            with self._lock:
                self._dropped[reason] += count

    def add(self, received: int, dropped: Mapping[str, int]) -> None:
        """Count frames that another process received and dropped."""
        with self._lock:
            self._received += received
            self._dropped.update({reason: count for reason, count in dropped.items() if count})

    def tally(self) -> FrameTally:
        with self._lock:
            return FrameTally(self._received, self._analysed, dict(self._dropped))
