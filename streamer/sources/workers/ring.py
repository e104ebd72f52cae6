"""Rings of shared memory for the pictures of one source, and the leases under which another process reads them.

The worker writes a picture into a free slot and sends its number; the slot is the reader's until it is given back:
when the pixels have been converted, or when the last holder of the picture has let go of it.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from streamer.sources.planes import PictureLayout

ReleaseSlot = Callable[[int, int], None]
"""Gives back a slot: ring number, slot. From any thread, also while the interpreter collects garbage."""

_PAGE = mmap.PAGESIZE


def open_memory(byte_count: int) -> int:
    """A descriptor of new shared memory without a name, `byte_count` long. Raises `OSError`."""
    if hasattr(os, "memfd_create"):  # Linux; not bounded by /dev/shm, which has 64 MB in containers
        descriptor = os.memfd_create("groundstream-frames", os.MFD_CLOEXEC)
    else:
        descriptor = _open_named(byte_count)
    try:
        os.ftruncate(descriptor, byte_count)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_named(byte_count: int) -> int:
    """POSIX shared memory whose name is removed at once: it lives as long as a descriptor or a mapping of it."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=byte_count)
    try:
        return os.dup(memory._fd)  # type: ignore[attr-defined]  # there is no public way to the descriptor
    finally:
        memory.unlink()
        memory.close()


def round_to_pages(byte_count: int) -> int:
    return -(-byte_count // _PAGE) * _PAGE


class WritingRing:
    """The worker's end of a ring. Thread-safe. The slot that was given back last is used first: it is in the cache."""

    def __init__(self, slot_bytes: int, slots: int) -> None:
        self.slot_bytes = round_to_pages(slot_bytes)
        self.slots = slots
        self.descriptor = open_memory(self.slot_bytes * slots)
        self._view = memoryview(mmap.mmap(self.descriptor, self.slot_bytes * slots))
        self._lock = threading.Lock()
        self._free = list(range(slots))

    def take(self) -> int | None:
        """A free slot, None where the reader holds all of them."""
        with self._lock:
            return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        with self._lock:
            self._free.append(slot)

    def buffer(self, slot: int) -> memoryview:
        return self._view[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]


class ReadingRing:
    """The reader's end of a ring; takes over `descriptor`. Slots are leased in the event loop, given back anywhere."""

    def __init__(self, number: int, descriptor: int, slot_bytes: int, slots: int, release: ReleaseSlot) -> None:
        self.slots = slots
        self._number = number
        self._slot_bytes = slot_bytes
        self._release = release
        self._leases: dict[int, weakref.ref[LeasedPicture]] = {}  # the oldest first
        try:
            self._view = memoryview(mmap.mmap(descriptor, slot_bytes * slots, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    @property
    def leased(self) -> int:
        """How many slots the reader holds."""
        return len(self._leases)

    def lease(self, slot: int, layout: PictureLayout) -> LeasedPicture:
        """The picture in `slot`, which the reader has just been sent."""
        begin = slot * self._slot_bytes
        picture = LeasedPicture(self, slot, layout, self._view[begin : begin + layout.byte_count])
        self._leases[slot] = weakref.ref(picture)
        return picture

    def give_back(self, slot: int) -> None:
        self._leases.pop(slot, None)
        self._release(self._number, slot)

    def detach_oldest(self, count: int = 2) -> None:
        """Copy the pictures that have been held longest out of the ring, so that their slots become free."""
        for reference in list(self._leases.values())[:count]:
            picture = reference()
            if picture is not None:
                picture.detach()


class LeasedPicture:
    """One picture in a ring. Calling it gives its pixels: BGR, (height, width, 3), uint8, upright, in memory of their
    own; converted at the first call, from any thread, which also gives the slot back."""

    __slots__ = ("__weakref__", "_buffer", "_layout", "_lock", "_pixels", "_ring", "_slot")

    def __init__(self, ring: ReadingRing, slot: int, layout: PictureLayout, buffer: memoryview) -> None:
        self._ring: ReadingRing | None = ring
        self._slot = slot
        self._layout = layout
        self._buffer: memoryview | None = buffer
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> npt.NDArray[np.uint8]:
        from streamer.sources.planes import from_planes

        with self._lock:
            if self._pixels is None:
                assert self._buffer is not None
                self._pixels = from_planes(self._layout, self._buffer)
                self._buffer = None
                self._give_back()
            return self._pixels

    def detach(self) -> None:
        """Keep the picture in memory of its own, in the decoder's format, and give its slot back."""
        with self._lock:
            if self._ring is not None and self._buffer is not None:
                self._buffer = memoryview(bytes(self._buffer))
                self._give_back()

    def __del__(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.give_back(self._slot)
