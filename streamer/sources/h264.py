"""Frame numbers of H.264 (ITU-T H.264, 7.3): notice a reference picture that never came.

FFmpeg decodes on without a report when a whole picture is missing, and what builds on it looks smeared. Reference
pictures are numbered, so a gap in the numbers shows the loss. FFmpeg reports damage within a picture itself.
Whatever cannot be read counts as unknown: nothing in a stream raises an error here.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.sources.nal_units import UnitLayout, parameter_sets

_SLICE, _IDR, _MESSAGES, _SEQUENCE_SET, _PICTURE_SET = 1, 5, 6, 7, 8
_RECOVERY_POINT = 6  # a message (annex D)
_SLICE_HEAD = 48  # bytes that hold all that is read of a slice, many times over
_SET_HEAD = 512
_CHROMA_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


class OutOfBits(Exception):
    """A unit ended before its syntax did."""


@dataclass(frozen=True, slots=True)
class FrameNumbering:
    """How a stream numbers its pictures, from one sequence parameter set."""

    bits: int
    gaps_allowed: bool
    separate_planes: bool
    fields_possible: bool


class FrameNumbers:
    """Follows the frame numbers of one stream, packet by packet in decoding order.

    A slice names a picture parameter set, that names a sequence parameter set: sets that no slice uses change nothing.
    """

    def __init__(self, extradata: bytes | None = None) -> None:
        self._layout = UnitLayout("h264", extradata)
        self._numberings: dict[int, FrameNumbering | None] = {}  # by the sequence parameter set's id
        self._sequences: dict[int, int] = {}  # a picture parameter set's sequence parameter set
        self._reference: int | None = None  # number of the last reference picture
        for unit in parameter_sets("h264", extradata):
            self._note_set(unit)

    def has_gap(self, packet: bytes) -> bool:
        """Whether a reference picture is missing right before the one in this packet; False where unknown."""
        for start, end in self._layout.units(packet):
            kind = packet[start] & 31
            if kind in (_SEQUENCE_SET, _PICTURE_SET):
                self._note_set(packet[start : min(end, start + _SET_HEAD)])
            elif kind in (_SLICE, _IDR):
                try:
                    return self._follow(packet[start : min(end, start + _SLICE_HEAD)], kind == _IDR)
                except OutOfBits:
                    return False
        return False

    def _note_set(self, unit: bytes) -> None:
        bits = BitReader(unit[1:])
        try:
            if unit[0] & 31 == _PICTURE_SET:
                picture_set = bits.exponential()
                self._sequences[picture_set] = bits.exponential()
            elif unit[0] & 31 == _SEQUENCE_SET:
                number, numbering = _read_sequence_set(bits)
                self._numberings[number] = numbering
        except OutOfBits:
            return

    def _follow(self, unit: bytes, is_idr: bool) -> bool:
        bits = BitReader(unit[1:])
        bits.exponential()  # first macroblock
        bits.exponential()  # slice type
        numbering = self._numberings.get(self._sequences.get(bits.exponential(), -1))
        if numbering is None:
            self._reference = None
            return False
        if numbering.separate_planes:
            bits.read(2)
        number = bits.read(numbering.bits)
        before, is_reference = self._reference, bool(unit[0] >> 5 & 3)
        if is_reference:
            self._reference = number
        if is_idr or before is None or numbering.gaps_allowed:
            return False
        return number not in (before, (before + 1) % 2**numbering.bits)

    def recovery_count(self, packet: bytes) -> int:
        """How many reference pictures, from the one in the packet on, are not whole where decoding begins with it.

        0 for a picture that builds on no other, and where nothing is said.
        """
        for start, end in self._layout.units(packet):
            kind = packet[start] & 31
            if kind in (_SLICE, _IDR):
                break
            if kind == _MESSAGES:
                count = _read_recovery_point(packet[start + 1 : min(end, start + _SET_HEAD)])
                if count is not None:
                    return count
        return 0

    def is_field(self, packet: bytes) -> bool:
        """Whether the packet holds one field of a picture: two such packets make one picture; False where unknown."""
        for start, end in self._layout.units(packet):
            if packet[start] & 31 not in (_SLICE, _IDR):
                continue
            bits = BitReader(packet[start + 1 : min(end, start + _SLICE_HEAD)])
            try:
                bits.exponential()
                bits.exponential()
                numbering = self._numberings.get(self._sequences.get(bits.exponential(), -1))
                if numbering is None or not numbering.fields_possible:
                    return False
                bits.read(2 * numbering.separate_planes + numbering.bits)
                return bool(bits.read(1))
            except OutOfBits:
                return False
        return False

    def learn(self, packet: bytes) -> None:
        """Note the parameter sets of a packet without following its frame number."""
        for start, end in self._layout.units(packet):
            if packet[start] & 31 in (_SEQUENCE_SET, _PICTURE_SET):
                self._note_set(packet[start : min(end, start + _SET_HEAD)])


class BitReader:
    """Reads an H.264 bit stream, most significant bit first, without its emulation prevention bytes."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Returns the next `count` bits. Raises `OutOfBits`."""
        self._left -= count
        if self._left < 0:
            raise OutOfBits
        return self._value >> self._left & ((1 << count) - 1)

    def exponential(self) -> int:
        """Returns an unsigned Exp-Golomb code, ue(v). Raises `OutOfBits`."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_exponential(self) -> int:
        """Returns a signed Exp-Golomb code, se(v). Raises `OutOfBits`."""
        code = self.exponential()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _read_recovery_point(messages: bytes) -> int | None:
    """The recovery_frame_cnt of a recovery point among messages (annex D.1); None where there is none."""
    data, at = messages.replace(b"\0\0\3", b"\0\0"), 0
    while at + 2 < len(data):
        values = []
        for _ in range(2):  # type and size: each as many bytes of 255 as needed, and the rest
            value = 0
            while at < len(data) and data[at] == 0xFF:
                value, at = value + 255, at + 1
            values.append(value + (data[at] if at < len(data) else 0))
            at += 1
        if values[0] == _RECOVERY_POINT:
            try:
                return BitReader(data[at : at + values[1]]).exponential()
            except OutOfBits:
                return None
        at += values[1]
    return None


def _read_sequence_set(bits: BitReader) -> tuple[int, FrameNumbering | None]:
    """Reads a sequence parameter set as far as its frame numbers: its id, and None where they make no sense."""
    profile = bits.read(8)
    bits.read(16)  # constraints and level
    set_number = bits.exponential()
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
        for _ in range(min(bits.exponential(), 256)):
            bits.signed_exponential()
    bits.exponential()  # how many reference pictures are kept
    gaps_allowed = bool(bits.read(1))
    bits.exponential()  # width and
    bits.exponential()  # height in macroblocks
    fields_possible = not bits.read(1)
    if number_bits > 16:
        return set_number, None
    return set_number, FrameNumbering(number_bits, gaps_allowed, separate_planes, fields_possible)


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_exponential()) % 256
        last = following or last
