"""Capture times: from a container's clock to UTC nanoseconds that rise whatever the container does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_SECOND = 1_000_000_000
_EARLY_NS = 50_000_000  # how far ahead of ours a sender's clock may be and still be believed
_SYNCHRONISED_NS = 50_000_000
_LEAST_RESET_NS = 100_000_000
_TICK = 1_000  # what a time is moved on by where the container says that none has passed: 1 microsecond


class FileClock:
    """Capture times of a recording, from its presentation times.

    A clock that steps back by more than a second, or some frames, has been reset (joined recordings): time goes on from
    there at the last pace. A smaller step back is a muxer's rounding. A leap forward is time that passed, unless the
    stream says that its clock was set (`leaps` and `gap_ns`).
    """

    def __init__(self, start_ns: int, frame_ns: int = _SECOND // 25, may_jump: bool = False) -> None:
        """`start_ns` is the time of the first frame, UTC; `frame_ns` how long one lasts where nothing else is known."""
        self._start_ns = start_ns
        self._may_jump = may_jump
        self._offset_ns: int | None = None  # capture time minus presentation time
        self._last_ns: int | None = None
        self._pace_ns = frame_ns

    def leaps(self, pts_ns: int | None) -> bool:
        """Whether the next frame lies so far ahead that the stream should be asked how much time passed."""
        if not self._may_jump or pts_ns is None or self._offset_ns is None or self._last_ns is None:
            return False
        return pts_ns + self._offset_ns - self._last_ns > max(_SECOND, 4 * self._pace_ns)

    def time_ns(self, pts_ns: int | None, gap_ns: int | None = None) -> int:
        """Capture time of the next frame, later than that of the one before.

        `gap_ns` is the time that passed by another clock of the stream, 0 where its clock was set.
        """
        if self._last_ns is None:
            time_ns = self._start_ns
        elif pts_ns is None or self._offset_ns is None:
            time_ns = self._last_ns + self._pace_ns
        else:
            step = pts_ns + self._offset_ns - self._last_ns
            if gap_ns is not None and abs(gap_ns - step) > _SECOND:
                time_ns = self._last_ns + max(self._pace_ns, gap_ns if gap_ns < step else 0)
                self._offset_ns = None
            elif step < -min(_SECOND, max(4 * self._pace_ns, _LEAST_RESET_NS)):
                time_ns = self._last_ns + self._pace_ns
                self._offset_ns = None
            else:
                time_ns = self._last_ns + max(step, _TICK)
                if _TICK < step < 10 * _SECOND:  # a pause is no pace
                    self._pace_ns = step
        if self._offset_ns is None and pts_ns is not None:
            self._offset_ns = time_ns - pts_ns
        self._last_ns = time_ns
        return time_ns


@dataclass(frozen=True, slots=True)
class ClockLimits:
    """What is known of a camera's times in advance.

    `latency_s`: the longest time from capture to arrival here that counts as normal: camera, encoder and network.
    `synchronised`: the camera's clock is kept right (NTP, PTP), so that its sender reports hold to within 50 ms.
    """

    latency_s: float = 1.0
    synchronised: bool = False


class LiveClock:
    """Capture times of a live stream.

    The sender's own clock (RTCP sender reports) is believed while it agrees with ours to within the delay that a
    camera can have. Otherwise time is that of arrival, with the network's jitter taken out: presentation times say how
    far frames are apart, and the frame that came through fastest of late says where they lie.

    A frame was captured before it arrived, and at most `latency_s` before the fastest ones arrive: the stated
    uncertainty reaches to both ends of that interval. The difference of two clocks proves nothing more: it vanishes
    where offset and latency cancel.

    Where the two clocks drift, or the basis changes, time runs a little faster or slower until it is right again,
    rather than jump. It never stands still or runs back, across reconnects either.
    """

    _BUCKET_NS = 5 * _SECOND  # the fastest frame of this one and the one before counts

    def __init__(self, limits: ClockLimits | None = None) -> None:
        self._limits = limits or ClockLimits()
        self._last_ns: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what is known of the sender's clock: after a reconnect it no longer holds."""
        self._last_pts_ns: int | None = None
        self._last_arrival_ns = 0
        self._bucket_began_ns = 0
        self._offset_ns: int | None = None  # smallest arrival minus presentation time in this bucket
        self._previous_offset_ns: int | None = None

    def read(
        self, pts_ns: int | None, sender_ns: int | None, arrival_ns: int
    ) -> tuple[int, Literal["rtcp_sr", "arrival"], float]:
        """Capture time (UTC, nanoseconds), its basis, and how far it may be off (milliseconds).

        `pts_ns` is the presentation time, `sender_ns` the sender's wall clock at capture, `arrival_ns` ours now.
        """
        if pts_ns is not None and self._last_pts_ns is not None:
            step_ns = pts_ns - self._last_pts_ns
            ahead_ns = step_ns - (arrival_ns - self._last_arrival_ns)
            if step_ns <= -_SECOND or abs(ahead_ns) > 10 * _SECOND:  # the camera has set its timestamps
                self.reset()
        basis: Literal["rtcp_sr", "arrival"] = "arrival"
        fastest_ns = arrival_ns if pts_ns is None else pts_ns + self._fastest(pts_ns, arrival_ns)
        target_ns = fastest_ns
        latency_ns = round(self._limits.latency_s * _SECOND)
        if sender_ns is not None:
            delay_ns = fastest_ns - sender_ns
            if -_EARLY_NS <= delay_ns <= 2 * latency_ns:
                basis, target_ns = "rtcp_sr", sender_ns
        # A frame is not captured after it arrived, but its time has to be later than all before.
        time_ns = max(min(self._rising(pts_ns, target_ns), arrival_ns), (self._last_ns or 0) + _TICK)
        self._last_ns, self._last_arrival_ns = time_ns, arrival_ns
        self._last_pts_ns = pts_ns
        if basis == "rtcp_sr" and self._limits.synchronised:
            uncertainty_ns = _SYNCHRONISED_NS + abs(time_ns - target_ns)
        else:
            uncertainty_ns = max(arrival_ns - time_ns, time_ns - (fastest_ns - latency_ns))
        return time_ns, basis, round(uncertainty_ns / 1e6, 1)

    def _fastest(self, pts_ns: int, arrival_ns: int) -> int:
        offset_ns = arrival_ns - pts_ns
        if arrival_ns - self._bucket_began_ns > self._BUCKET_NS:
            self._bucket_began_ns = arrival_ns
            self._previous_offset_ns, self._offset_ns = self._offset_ns, offset_ns
        known = [o for o in (self._offset_ns, self._previous_offset_ns, offset_ns) if o is not None]
        self._offset_ns = min(offset_ns, self._offset_ns if self._offset_ns is not None else offset_ns)
        return min(known)

    def _rising(self, pts_ns: int | None, target_ns: int) -> int:
        if self._last_ns is None:
            return target_ns
        wanted_ns = target_ns - self._last_ns
        if pts_ns is not None and self._last_pts_ns is not None:
            step_ns = pts_ns - self._last_pts_ns
            if step_ns > 0 and wanted_ns < step_ns + _SECOND:
                wanted_ns = min(max(wanted_ns, step_ns // 2), step_ns * 3 // 2)
        return self._last_ns + wanted_ns
