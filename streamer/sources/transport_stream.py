"""Clock of an MPEG transport stream file (ISO/IEC 13818-1, 2.4): whether a leap of its times is time that passed.

Presentation times leap for two reasons: nothing was recorded for a while, or the sender's clock was set. A stream
marks the second with a discontinuity flag, or its program clock reference (PCR) does not leap with the times.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

_SYNC = 0x47
_SIZE = 188
_AROUND = 2**20  # bytes before and after in which a clock reference is looked for; they come every 0.1 s
_MOST = 2**24
_CLOCK_RANGE = 2**33  # in units of 1/90000 s; about a day


def clock_gap_ns(path: Path, start: int, end: int) -> int | None:
    """How much time passes between two places (bytes) of a file by the stream's own clock; 0 where it was set.

    None where the stream says nothing about it.
    """
    if end <= start or end - start > _MOST:
        return None
    begin = max(0, start - _AROUND)
    try:
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin + _AROUND)
    except OSError:
        return None
    clocks: list[tuple[int, int, int]] = []  # place, PID, time
    stride = _stride(data)
    if stride is None:
        return None
    at, step = stride
    while at + _SIZE <= len(data):
        if data[at] != _SYNC:
            at = data.find(b"\x47", at + 1)
            if at < 0:
                break
            continue
        if data[at + 3] & 0x20 and data[at + 4]:  # an adaptation field that is not empty
            flags, place = data[at + 5], begin + at
            if flags & 0x80 and start < place <= end:
                return 0
            if flags & 0x10 and data[at + 4] >= 7:
                base = int.from_bytes(data[at + 6 : at + 11], "big") >> 7
                clocks.append((place, int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF, base))
        at += step
    if not clocks:
        return None
    program = Counter(pid for _, pid, _ in clocks).most_common(1)[0][0]
    before = [base for place, pid, base in clocks if pid == program and place <= start]
    after = [base for place, pid, base in clocks if pid == program and place >= end]
    if not before or not after:
        return None
    gap = (after[0] - before[-1]) % _CLOCK_RANGE
    # A step back looks like a leap over nearly the whole range.
    return gap * 1_000_000_000 // 90_000 if gap < _CLOCK_RANGE // 2 else 0


def _stride(data: bytes) -> tuple[int, int] | None:
    """Where the first packet begins, and how far packets are apart: 188 bytes, or 192 on discs."""
    for step in (_SIZE, _SIZE + 4):
        for first in range(min(step, len(data))):
            places = range(first, min(len(data), first + 5 * step), step)
            if len(places) > 1 and all(data[place] == _SYNC for place in places):
                return first, step
    return None
