"""Units of H.265 (ITU-T H.265, 7.4.2) sorted by what they mean to the picture.

FFmpeg's H.265 decoder reports damage only when it is asked to fail (`err_detect=explode`), and then it refuses a whole
picture for a flaw in any unit beside it: a user message with a wrong length, a short mastering display message, a
parameter set that no slice uses. None of them changes a pixel, so they never reach that decoder together with a slice.
"""

from __future__ import annotations

from streamer.sources.nal_units import Unit, UnitLayout

_SETS = range(32, 35)  # video, sequence and picture parameter sets
_ENDS = range(36, 38)  # end of sequence, end of bitstream
_SLICES = range(32)


class PictureUnits:
    """Takes packets of one H.265 stream apart. With `start_codes`, what it returns is packed that way."""

    def __init__(self, extradata: bytes | None = None, *, start_codes: bool = False) -> None:
        self._layout = UnitLayout("hevc", extradata)
        self._start_codes = start_codes

    def without_messages(self, packet: bytes) -> bytes:
        """The packet without what is not needed to decode: messages (SEI), delimiters, filler, unknown units."""
        units = self._layout.units(packet)
        kept = [unit for unit in units if self._layout.kind(packet[unit[0]]) in (*_SLICES, *_SETS, *_ENDS)]
        if not units or (len(kept) == len(units) and not self._start_codes):
            return packet  # where no unit is found, FFmpeg decides
        return self._layout.join(packet, kept, start_codes=self._start_codes)

    def sets_and_slices(self, packet: bytes) -> tuple[list[bytes], bytes]:
        """Each parameter set of the packet as a packet of its own, and the packet without them."""
        units = self._layout.units(packet)
        sets = [unit for unit in units if self._layout.kind(packet[unit[0]]) in _SETS]
        rest = [unit for unit in units if self._layout.kind(packet[unit[0]]) in (*_SLICES, *_ENDS)]
        return [self._join(packet, [unit]) for unit in sets], self._join(packet, rest)

    def _join(self, packet: bytes, units: list[Unit]) -> bytes:
        return self._layout.join(packet, units, start_codes=self._start_codes)
