"""Completeness of recordings: whether the bytes that a container says it has are all there.

A container's duration alone proves nothing: a last frame may be shown for a minute, and times may begin anywhere. Its
structure does: MP4 and AVI say how long each of their parts is, Matroska and ASF how long the whole is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_UNKNOWN_SIZES = frozenset((1 << 7 * n) - 1 for n in range(1, 9))


def is_cut_off(path: Path) -> bool | None:
    """Whether the end of the file is missing; None where its structure does not show it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            file.seek(0)
            if head[:4] == b"\x1a\x45\xdf\xa3":
                return _matroska(file, size)
            if head[:4] == b"RIFF":
                return _riff(file, size)
            if head == _ASF_HEADER[: len(head)]:
                return _asf(file, size)
            if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _boxes(file, size)
    except OSError:
        return None
    return None


def _matroska(file: BinaryIO, size: int) -> bool | None:
    """EBML header and segment (RFC 8794, RFC 9559): each an id and a size."""
    for _ in range(2):
        first = file.read(1)
        if not first or not first[0]:
            return None
        file.read(8 - first[0].bit_length())  # the rest of the id
        length = file.read(1)
        if not length or not length[0]:
            return None
        extra = 8 - length[0].bit_length()
        value = int.from_bytes(bytes([length[0] & ((1 << 7 - extra) - 1)]) + file.read(extra), "big")
        if value in _UNKNOWN_SIZES and value == (1 << 7 * (extra + 1)) - 1:
            return None  # written as it was recorded, and never finished
        end = file.tell() + value
        if first[0] != 0x1A or end > size:
            return end > size
        file.seek(end)
    return None


def _riff(file: BinaryIO, size: int) -> bool | None:
    """Chunks of AVI, of which large files have several."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return None if at == 0 else False
        at += 8 + length + length % 2
        if at - 1 > size:
            return True
    return False


def _asf(file: BinaryIO, size: int) -> bool | None:
    """The file's size in the header of ASF and WMV (Advanced Systems Format, 3.2); 0 where it was never finished."""
    head = file.read(2**16)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or at + 92 > len(head) or head[at + 88] & 1:  # sent as it was recorded
        return None
    stated = int.from_bytes(head[at + 40 : at + 48], "little")
    return size < stated if stated else None


def _boxes(file: BinaryIO, size: int) -> bool | None:
    """Boxes of MP4 (ISO/IEC 14496-12, 4.2): the last one ends where the file does."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            return None
        if length < 8:
            return None
        at += length
    return at > size
