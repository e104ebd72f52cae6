"""NAL units of H.264 and H.265: where they lie in a packet, for both ways of packing them.

Transport streams, RTP and raw files put a start code (0 0 1) before each unit (ITU-T H.264 annex B); MP4, Matroska and
FLV put its length there, in as many bytes as the decoder configuration record says (ISO/IEC 14496-15).
"""

from __future__ import annotations

from collections.abc import Iterator

_START_CODE = b"\0\0\1"
Unit = tuple[int, int]
"""First byte of a unit, its header included, and the byte after its last."""


class UnitLayout:
    """How the units of one stream are packed, from its `extradata`; `codec` is `h264` or `hevc`."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.codec = codec
        self._length_bytes = _length_bytes(codec, extradata or b"")

    def units(self, packet: bytes) -> list[Unit]:
        """The units of a packet, in order; damaged lengths end the list, empty units are left out."""
        size = self._prefix(packet)
        return list(_annex_b(packet) if size is None else _length_prefixed(packet, size))

    def _prefix(self, packet: bytes) -> int | None:
        """Size in bytes of a unit's length in this packet; None where start codes part the units."""
        size = self._length_bytes
        if size is None or not packet.startswith((_START_CODE, b"\0" + _START_CODE)):
            return size
        # The length of a short unit looks like a start code; then the lengths add up to the packet.
        at = 0
        while at + size <= len(packet):
            at += size + int.from_bytes(packet[at : at + size], "big")
        return size if at == len(packet) else None

    def kind(self, first_byte: int) -> int:
        """The type of a unit, nal_unit_type, from its first byte."""
        return first_byte & 31 if self.codec == "h264" else first_byte >> 1 & 63

    def holds_slice(self, packet: bytes) -> bool:
        """Whether part of a picture is in the packet; True where no unit can be found in it at all."""
        found = self.units(packet)
        slices = range(1, 6) if self.codec == "h264" else range(32)
        return not found or any(self.kind(packet[start]) in slices for start, _ in found)

    def is_reference(self, packet: bytes) -> bool:
        """Whether other pictures may build on the one in the packet; True where its first slice does not show it."""
        for start, _ in self.units(packet):
            first = packet[start]
            kind = self.kind(first)
            if self.codec == "h264" and kind in range(1, 6):
                return bool(first & 0x60)  # nal_ref_idc
            if self.codec == "hevc" and kind < 32:
                return kind >= 16 or kind % 2 == 1  # below 16, even types are sub-layer non-reference pictures
        return True

    def join(self, packet: bytes, units: list[Unit], *, start_codes: bool = False) -> bytes:
        """A packet of only these `units` of `packet`, packed the same way, or with start codes."""
        size = None if start_codes else self._prefix(packet)
        if size is None:
            return b"".join(b"\0" + _START_CODE + packet[start:end] for start, end in units)
        return b"".join((end - start).to_bytes(size, "big") + packet[start:end] for start, end in units)


def parameter_sets(codec: str, extradata: bytes | None) -> list[bytes]:
    """The parameter sets in `extradata`: start codes, or a decoder configuration record; [] where it is damaged."""
    data = extradata or b""
    if _length_bytes(codec, data) is None:
        return [data[start:end] for start, end in _annex_b(data)]
    sets: list[bytes] = []
    if codec == "h264":  # AVCDecoderConfigurationRecord: five bytes, then the counted SPSs and PPSs
        at = 5
        for mask in (31, 255):
            count, at = (data[at] & mask if at < len(data) else 0), at + 1
            at = _read_sets(data, at, count, sets)
    else:  # HEVCDecoderConfigurationRecord: 22 bytes, then arrays of one unit type each
        arrays, at = (data[22] if len(data) > 22 else 0), 23
        for _ in range(arrays):
            at = _read_sets(data, at + 3, int.from_bytes(data[at + 1 : at + 3], "big"), sets)
    return sets


def _read_sets(data: bytes, at: int, count: int, sets: list[bytes]) -> int:
    for _ in range(count):
        if at + 2 > len(data):
            break
        size = int.from_bytes(data[at : at + 2], "big")
        if size:
            sets.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return at


def _length_bytes(codec: str, extradata: bytes) -> int | None:
    """Size in bytes of a unit's length; None where start codes part the units."""
    place = 4 if codec == "h264" else 21
    if len(extradata) <= place or extradata[0] != 1:  # the record's version; start codes begin with 0
        return None
    return (extradata[place] & 3) + 1


def _annex_b(packet: bytes) -> Iterator[Unit]:
    start = packet.find(_START_CODE)
    while start >= 0:
        begin = start + 3
        start = packet.find(_START_CODE, begin)
        end = len(packet) if start < 0 else start
        while end > begin and packet[end - 1] == 0:  # the zero byte of a long start code, and trailing zeros
            end -= 1
        if end > begin:
            yield begin, end


def _length_prefixed(packet: bytes, size: int) -> Iterator[Unit]:
    at = 0
    while at + size < len(packet):
        begin = at + size
        at = begin + int.from_bytes(packet[at:begin], "big")
        if at > len(packet):  # cut off, or no length at all
            at = len(packet)
        if at > begin:
            yield begin, at
