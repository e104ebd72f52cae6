"""Packets in the place of lost ones: where they stand, to which picture they belong, and when none are made."""

from __future__ import annotations

import struct

import pytest

from streamer.sources.rtp_relay import LossFiller

WAIT_S = 0.1


def packet(number: int, timestamp: int, *, last: bool = False, source: int = 7) -> bytes:
    return struct.pack(">BBHII", 0x80, 96 | (0x80 if last else 0), number & 0xFFFF, timestamp, source) + b"payload"


def filled(filler: LossFiller, now_s: float) -> list[tuple[int, int]]:
    """Sequence number and timestamp of each packet that is made."""
    return [struct.unpack_from(">HI", made, 2) for made in filler.fill(now_s)]


def noted(*packets: bytes) -> LossFiller:
    filler = LossFiller()
    for one in packets:
        filler.note(one, 0.0)
    return filler


@pytest.mark.parametrize("first", [10, 65_534])
def test_a_picture_without_its_end_gets_packets_that_cannot_be_decoded(first: int) -> None:
    filler = noted(packet(first, 900), packet(first + 3, 1800, last=True))
    assert filled(filler, 0.01) == []
    assert filler.is_waiting
    assert filled(filler, WAIT_S) == [((first + 1) & 0xFFFF, 900), ((first + 2) & 0xFFFF, 900)]
    assert filled(filler, 2 * WAIT_S) == []
    assert not filler.is_waiting


def test_nothing_is_made_for_packets_that_come_late_or_twice() -> None:
    filler = noted(packet(1, 900), packet(3, 900), packet(2, 900), packet(2, 900), packet(4, 900, last=True))
    assert filled(filler, WAIT_S) == []
    assert filler.lost == 0


def test_a_picture_that_was_whole_before_the_loss_stays_whole() -> None:
    filler = noted(packet(1, 900), packet(2, 900, last=True), packet(5, 1800))
    assert filled(filler, WAIT_S) == []
    assert filler.lost == 2


def test_a_new_source_and_a_leap_are_new_beginnings() -> None:
    filler = noted(packet(1, 900), packet(3, 900, source=8), packet(5000, 1800, source=8), packet(5001, 1800, source=8))
    assert filled(filler, WAIT_S) == []


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x00" * 40, b"\xff" * 12])
def test_what_is_no_rtp_changes_nothing(data: bytes) -> None:
    filler = noted(packet(1, 900), data, packet(2, 900), data)
    assert not filler.is_waiting
    assert filled(filler, WAIT_S) == []
