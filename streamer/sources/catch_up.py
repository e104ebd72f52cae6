"""Catching up with a live stream: which pictures are skipped before they are decoded when decoding falls behind.

The lag of a stream is how much later a picture is handled than the fastest one of late was, by the stream's own clock.
Lag first costs the pictures that no other picture builds on; twice that lag costs all pictures up to the next key
picture. Each stream follows its own lag alone, so that streams on a machine that is too slow share the loss.
"""

from __future__ import annotations

from collections.abc import Callable

_SECOND = 1_000_000_000
_LEAST_LAG_NS = 80_000_000  # below this, skipping would answer a moment's delay of the machine
_LONGEST_GROUP_NS = 10 * _SECOND
"""Where key pictures are further apart, waiting for the next one would blind the stream: it is left to lag."""
_STILL_NS = 1_000_000  # FFmpeg moves repeated times on by a tick
_FIRST_DRIFT = 1e-3  # how fast the clocks of camera and machine may part, seconds a second
_MOST_DRIFT = 0.5  # for cameras that count their times at a wrong rate


class CatchUp:
    """Decides, packet by packet in decoding order, for one connection."""

    def __init__(self) -> None:
        self._drift = _FIRST_DRIFT
        self._restart()

    def _restart(self) -> None:
        self._last_ns: int | None = None
        self._now_ns = 0
        self._step_ns = 0
        self._offset_ns: int | None = None  # the smallest of late: what the fastest packet needed to get here
        self._set_ns = 0  # when it was so
        self._lag_ns = 0
        self._key_ns: int | None = None
        self._group_ns: int | None = None  # between the last two key pictures
        self._is_skipping = False
        self._skip_ns = self._skip_began_ns = 0  # where and when skipping began

    @property
    def lag_ns(self) -> int:
        """How late the last packet was handled, nanoseconds."""
        return self._lag_ns

    def skips(self, time_ns: int | None, now_ns: int, *, is_key: bool, is_reference: Callable[[], bool]) -> bool:
        """Whether to leave a packet undecoded. `time_ns` is its decoding time by the stream's clock, `now_ns` the
        monotonic clock; `is_reference` says whether other pictures build on it."""
        if time_ns is None:
            return self._is_skipping and not is_key
        if self._last_ns is not None and 0 <= time_ns - self._last_ns < _STILL_NS:
            self._restart()  # times that stand still say nothing about lag
            self._last_ns = time_ns
            return False
        self._note_time(time_ns, now_ns)
        if is_key:
            self._note_key(time_ns, now_ns)
            return False
        if self._is_skipping:
            return True
        least_ns = max(_LEAST_LAG_NS, 2 * self._step_ns)
        if self._lag_ns > 2 * least_ns and self._group_ns is not None and self._group_ns <= _LONGEST_GROUP_NS:
            self._is_skipping, self._skip_ns, self._skip_began_ns = True, time_ns, now_ns
            return True
        return self._lag_ns > least_ns and not is_reference()

    def _note_time(self, time_ns: int, now_ns: int) -> None:
        if self._last_ns is not None and not -_SECOND < time_ns - self._last_ns < 10 * _SECOND:
            self._restart()  # the camera has set its clock
        elif self._last_ns is not None and time_ns > self._last_ns:
            step_ns = time_ns - self._last_ns
            self._step_ns = self._step_ns + (step_ns - self._step_ns) // 8 if self._step_ns else step_ns
        offset_ns = now_ns - time_ns
        if self._offset_ns is None:
            self._offset_ns, self._set_ns = offset_ns, now_ns
        else:
            self._offset_ns += int((now_ns - self._now_ns) * self._drift)
            if offset_ns <= self._offset_ns:
                self._offset_ns, self._set_ns = offset_ns, now_ns
        self._lag_ns = offset_ns - self._offset_ns
        self._last_ns, self._now_ns = time_ns, now_ns

    def _note_key(self, time_ns: int, now_ns: int) -> None:
        if self._key_ns is not None:
            self._group_ns = time_ns - self._key_ns
        self._key_ns = time_ns
        if self._is_skipping and self._offset_ns is not None:
            # Skipping passes what waits faster than it was captured. Where it took just as long as the pictures last,
            # nothing was waiting, and the lag that is left comes from the clocks.
            took_ns, media_ns = now_ns - self._skip_began_ns, time_ns - self._skip_ns
            if abs(took_ns - media_ns) < media_ns // 8:
                apart = self._lag_ns / max(1, now_ns - self._set_ns)
                self._drift = max(self._drift, min(_MOST_DRIFT, self._drift + apart))
                self._offset_ns, self._set_ns, self._lag_ns = self._offset_ns + self._lag_ns, now_ns, 0
        self._is_skipping = False
