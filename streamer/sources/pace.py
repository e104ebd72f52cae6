"""Pace of a camera: how long its silence may last, learned from the camera itself."""

from __future__ import annotations

import time
from collections.abc import Callable

_START_S = 60.0  # for a camera that has shown too little: one may send a frame every half a minute
_LEAST_S = 4.0
_MOST_S = 180.0
_TIMES = 3.0  # its slowest interval so many times
_ENOUGH = 25  # intervals that show a pace; fewer could be a burst of old frames at the start
_MEMORY_S = 600.0
_DAMAGED_S = 20.0  # whole groups of pictures pass in this time; where none is whole by then, a new connection may help
_KEY_START_S = 90.0  # until the first key picture


class CameraPace:
    """Intervals between the pictures of one camera, across its connections. `stall_s` sets the limit by hand."""

    def __init__(self, stall_s: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stall_s = stall_s
        self._now = now
        self._newest_at: float | None = None
        self._count = 0
        self._slowest_s = self._slowest_before_s = 0.0  # of the current and the previous span of memory
        self._span_began_at = now()
        self._key_at: float | None = None
        self._slowest_key_s = 0.0

    @property
    def stall_s(self) -> float:
        """Seconds without a picture after which the camera counts as stalled."""
        if self._stall_s is not None:
            return self._stall_s
        slowest_s = max(self._slowest_s, self._slowest_before_s)
        if self._count < _ENOUGH and slowest_s < 1:
            return _START_S
        return min(_MOST_S, max(_LEAST_S if self._count >= _ENOUGH else _START_S, _TIMES * slowest_s))

    @property
    def key_s(self) -> float:
        """Seconds that may pass until a key picture comes."""
        if not self._slowest_key_s:
            return max(_KEY_START_S, self.stall_s)
        return max(_TIMES * self._slowest_key_s, self.stall_s)

    @property
    def longest_group_s(self) -> float:
        """The longest time between two key pictures so far; 0 before there were two."""
        return self._slowest_key_s

    def connected(self) -> None:
        """A new connection begins: the time before it is no interval."""
        self._newest_at = self._key_at = None

    def note(self, *, is_key: bool = False) -> None:
        """A picture came."""
        now = self._now()
        if is_key:
            if self._key_at is not None:
                self._slowest_key_s = max(self._slowest_key_s, now - self._key_at)
            self._key_at = now
        if self._newest_at is not None:
            self._note_interval(now - self._newest_at, now)
            self._count += 1
        self._newest_at = now

    def note_silence(self, seconds: float) -> None:
        """A silence ended the connection: should it have been the camera's own pace, the next one may last longer."""
        self._note_interval(min(seconds, _START_S / _TIMES), self._now())

    def _note_interval(self, seconds: float, now: float) -> None:
        if now - self._span_began_at > _MEMORY_S:
            self._slowest_before_s, self._slowest_s, self._span_began_at = self._slowest_s, 0.0, now
        self._slowest_s = max(self._slowest_s, seconds)


class StallWatchdog:
    """Whether the pictures of one connection still move, and whether there is anything whole to see.

    Raises `Stalled` where a limit has passed.
    """

    def __init__(self, pace: CameraPace, now: Callable[[], float] = time.monotonic) -> None:
        self._pace = pace
        self._now = now
        self._newest_ns: int | None = None
        self._sample = b""
        self._came_at = self._moved_at = self._seen_at = now()
        self._awaits_key = True
        pace.connected()

    def check_silence(self) -> None:
        """Called while nothing comes."""
        limit_s = self._pace.stall_s
        if self._now() - self._came_at > limit_s:
            self._pace.note_silence(limit_s)
            raise Stalled(f"no picture came for {limit_s:g} s")

    def moves(self, pts_ns: int | None, sample: Callable[[], bytes]) -> bool:
        """Whether a picture with this timestamp is a new one; `sample` gives some of its pixels."""
        now = self._now()
        limit_s = self._pace.stall_s
        waited_s, self._came_at = now - self._came_at, now
        newest_ns = self._newest_ns
        # A camera that sets its clock back starts a new count.
        moved = pts_ns is None or newest_ns is None or pts_ns > newest_ns or pts_ns < newest_ns - 1_000_000_000
        if not moved:  # one that repeats its pictures, too, is frozen
            before, self._sample = self._sample, sample()
            moved = bool(before) and before != self._sample
        elif waited_s >= limit_s:  # the end of the connection made FFmpeg give out its last picture
            raise Stalled(f"no picture came for {limit_s:g} s")
        else:
            self._sample = b""
        if moved:
            self._newest_ns, self._moved_at = pts_ns, now
        elif now - self._moved_at > limit_s:
            raise Stalled(f"the same picture came for {limit_s:g} s: the camera is frozen")
        return moved

    def sees(self, *, is_key: bool) -> None:
        """A whole picture came."""
        self._pace.note(is_key=is_key)
        self._seen_at = self._now()
        self._awaits_key = False

    def skips(self) -> None:
        """A picture came that was not decoded, because decoding is behind."""
        self._came_at = self._seen_at = self._now()

    def leaves_out(self) -> None:
        """A picture came that was not decoded, because it is not wanted."""
        self._came_at = self._now()

    def misses(self, *, awaits_key: bool) -> bool:
        """A picture came that cannot be shown; whether that has lasted too long for an intact stream."""
        self._came_at = self._now()
        blind_s = self._came_at - self._seen_at
        if awaits_key and self._awaits_key:
            if blind_s > self._pace.key_s:
                raise Stalled(f"no key picture came for {blind_s:.0f} s")
            return False
        if blind_s > max(_DAMAGED_S, self._pace.key_s if self._awaits_key else 1.5 * self._pace.longest_group_s):
            raise Stalled(f"only damaged pictures came for {blind_s:.0f} s")
        return blind_s > max(min(self._pace.stall_s, _LEAST_S), self._pace.longest_group_s)


class Stalled(Exception):
    """A camera that is connected and shows nothing new; the message says what is missing."""
