"""Capture times: from a container's clock to UTC nanoseconds that rise whatever the container does."""

from __future__ import annotations

_SECOND = 1_000_000_000
_TICK = 1_000  # what a time is moved on by where the container says that none has passed: 1 microsecond


class FileClock:
    """Capture times of a recording, from its presentation times.

    A clock that steps back by more than a second has been reset (joined recordings, a wrapped counter), as has one
    that leaps by more than ten in a format whose clock may do so: time goes on from there at the last pace. A smaller
    step back is a muxer's rounding.
    """

    def __init__(self, start_ns: int, may_jump: bool = False) -> None:
        """`start_ns` is the time of the first frame, UTC."""
        self._start_ns = start_ns
        self._may_jump = may_jump
        self._offset_ns: int | None = None  # capture time minus presentation time
        self._last_ns: int | None = None
        self._pace_ns = _SECOND // 25

    def time_ns(self, pts_ns: int | None) -> int:
        """Capture time of the next frame, later than that of the one before."""
        if self._last_ns is None or self._offset_ns is None:
            time_ns = self._start_ns
        elif pts_ns is None:
            time_ns = self._last_ns + self._pace_ns
        else:
            step = pts_ns + self._offset_ns - self._last_ns
            if step < -_SECOND or (self._may_jump and step > 10 * _SECOND):
                time_ns = self._last_ns + self._pace_ns
                self._offset_ns = None
            else:
                time_ns = self._last_ns + max(step, _TICK)
                if step > _TICK:
                    self._pace_ns = step
        if self._offset_ns is None and pts_ns is not None:
            self._offset_ns = time_ns - pts_ns
        self._last_ns = time_ns
        return time_ns
