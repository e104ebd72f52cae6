"""Just enough of H.264's syntax (ITU-T H.264, 7.3) to notice a picture that never came.

FFmpeg decodes on when a whole picture is missing and tells nobody; what builds on it looks smeared. Reference pictures
are numbered, though, so a gap in the numbers gives the loss away. Damage within a picture FFmpeg reports itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SLICE, _IDR, _PARAMETERS = 1, 5, 7
_HEAD = 48  # bytes that hold all that is read here of a unit, many times over
_CHROMA_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


@dataclass(frozen=True, slots=True)
class _FrameNumbering:
    """How a stream numbers its pictures, from its sequence parameter set."""

    bits: int
    gaps_allowed: bool
    separate_planes: bool


class FrameNumbers:
    """Follows the frame numbers of one stream, packet by packet in decoding order."""

    def __init__(self) -> None:
        self._numbering: _FrameNumbering | None = None
        self._reference: int | None = None  # number of the last reference picture

    def gap(self, packet: bytes) -> bool:
        """Whether a reference picture is missing right before this one. `packet` is Annex B: NAL units after 0 0 1."""
        for unit in _units(packet):
            kind = unit[0] & 31
            if kind == _PARAMETERS:
                self._numbering = _numbering(unit)
            elif kind in (_SLICE, _IDR) and self._numbering is not None:
                return self._follow(unit, self._numbering, kind == _IDR)
        return False

    def _follow(self, unit: bytes, numbering: _FrameNumbering, is_idr: bool) -> bool:
        bits = _BitReader(unit[1:])
        for _ in ("first macroblock", "slice type", "picture parameter set"):
            bits.exponential()
        if numbering.separate_planes:
            bits.read(2)
        number = bits.read(numbering.bits)
        before, is_reference = self._reference, bool(unit[0] >> 5 & 3)
        if is_reference:
            self._reference = number
        if is_idr or before is None or numbering.gaps_allowed:
            return False
        return number not in (before, (before + 1) % 2**numbering.bits)


class _BitReader:
    """Reads an H.264 bit stream, most significant bit first, without its emulation prevention bytes."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError
        return self._value >> self._left & ((1 << count) - 1)

    def exponential(self) -> int:
        """An unsigned Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_exponential(self) -> int:
        code = self.exponential()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _units(packet: bytes) -> Iterator[bytes]:
    """The first bytes of each NAL unit."""
    start = packet.find(b"\0\0\1")
    while 0 <= start < len(packet) - 3:
        yield packet[start + 3 : start + 3 + (_HEAD if packet[start + 3] & 31 != _PARAMETERS else 8 * _HEAD)]
        start = packet.find(b"\0\0\1", start + 3)


def _numbering(unit: bytes) -> _FrameNumbering | None:
    """Read a sequence parameter set as far as its frame numbers; None where it is damaged."""
    bits = _BitReader(unit[1:])
    try:
        profile = bits.read(8)
        bits.read(16)  # constraints and level
        bits.exponential()  # its id
        separate_planes = False
        if profile in _CHROMA_PROFILES:
            chroma = bits.exponential()
            separate_planes = chroma == 3 and bool(bits.read(1))
            bits.exponential()  # luma and
            bits.exponential()  # chroma depth
            bits.read(1)
            if bits.read(1):
                for n in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        _skip_scaling_list(bits, 16 if n < 6 else 64)
        number_bits = bits.exponential() + 4
        order = bits.exponential()
        if order == 0:
            bits.exponential()
        elif order == 1:
            bits.read(1)
            bits.signed_exponential()
            bits.signed_exponential()
            for _ in range(bits.exponential()):
                bits.signed_exponential()
        bits.exponential()  # how many reference pictures are kept
        return _FrameNumbering(number_bits, bool(bits.read(1)), separate_planes) if number_bits <= 16 else None
    except ValueError:
        return None


def _skip_scaling_list(bits: _BitReader, size: int) -> None:
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_exponential()) % 256
        last = following or last
