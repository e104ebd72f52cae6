"""Choice of the pictures of a live stream that are decoded, where its sampling wants only some of them.

A picture that sampling does not want is left undecoded where no wanted one builds on it: because no other picture does
at all, or because the next wanted picture is expected to be the next key picture. When that key picture comes late,
what was held back is decoded after all, so that a wrong expectation costs time and no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

_SAME_GROUP = 0.02
"""Two groups of pictures count as equally long where they differ by less than this share."""


class PacketUse(Enum):
    """What to do with a packet."""

    DECODE = auto()
    HOLD = auto()
    """Keep it: only pictures before the next key picture build on it."""
    DROP = auto()


class PictureChoice:
    """Decides, packet by packet in decoding order, for one connection.

    `due_ns` returns the presentation time from which on the next picture is wanted, None where every picture is.
    """

    def __init__(self, due_ns: Callable[[], int | None]) -> None:
        self._due_ns = due_ns
        self._awaited_ns: int | None = None  # a picture due at this time has gone to the decoder
        self._key_ns: int | None = None
        self._pictures = 0  # since that key picture, with it
        self._group_ns = 0  # the length of the last groups, 0 while they differ
        self._last_group_ns = 0
        self._step_ns = 0
        self._has_leading = False  # pictures that are shown before the key picture they come after

    def note_key(self, time_ns: int | None) -> None:
        """A key picture came, with this presentation time."""
        if time_ns is None or self._key_ns is None or time_ns <= self._key_ns:
            self._group_ns = self._last_group_ns = 0
        else:
            group_ns = time_ns - self._key_ns
            is_steady = abs(group_ns - self._last_group_ns) <= _SAME_GROUP * group_ns
            self._group_ns = group_ns if is_steady else 0
            self._last_group_ns = group_ns
            self._step_ns = group_ns // self._pictures
        self._key_ns, self._pictures = time_ns, 1

    def use(self, time_ns: int | None, *, is_reference: Callable[[], bool]) -> PacketUse:
        """What to do with a packet that holds another picture than a key picture. `time_ns` is its presentation time,
        `is_reference` says whether other pictures build on it."""
        self._pictures += 1
        if time_ns is not None and self._key_ns is not None and time_ns < self._key_ns:
            self._has_leading = True
        due_ns = self._due_ns()
        if due_ns is None or time_ns is None or self._key_ns is None:
            return PacketUse.DECODE
        if time_ns >= due_ns:
            self._awaited_ns = due_ns
            return PacketUse.DECODE
        if due_ns == self._awaited_ns:  # the decoder gives a picture out of order only after those that follow it
            return PacketUse.DECODE
        if not is_reference():
            return PacketUse.DROP
        return PacketUse.HOLD if self._is_cut_off(time_ns, due_ns) else PacketUse.DECODE

    def note_skipped(self, time_ns: int | None) -> bool:
        """A picture was skipped for another reason; returns whether it was wanted."""
        self._pictures += 1
        due_ns = self._due_ns()
        return due_ns is None or time_ns is None or time_ns >= due_ns

    def _is_cut_off(self, time_ns: int, due_ns: int) -> bool:
        """Whether no wanted picture is expected before the next key picture."""
        if not self._group_ns or self._has_leading or self._key_ns is None:
            return False
        next_key_ns = self._key_ns + self._group_ns
        is_late = time_ns > next_key_ns + self._step_ns
        return not is_late and next_key_ns - due_ns < self._step_ns * 7 // 8
