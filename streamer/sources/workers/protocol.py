"""Messages between the analysing process and a decode worker, over a Unix stream socket.

A message is a list of items, pickled, with its length before it; both ends are started by the same program. Memory
descriptors travel beside the message whose `RingOpened` items they belong to, in the same order.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from streamer.sources.packet_clips import PacketLimits
    from streamer.sources.planes import PictureLayout
    from streamer.sources.sampling import FrameSampling
    from streamer.sources.source import SourceRecipe

_LENGTH = struct.Struct("!I")


# To the worker. `source` is the number under which the pool knows a source that it has open.


class OpenSource(NamedTuple):
    """Read a source. Frames with an index below `first` were delivered by an earlier worker: they are not sent. Rings
    are numbered from `rings` + 1, so that no number comes twice. A recording is decoded by up to `threads`."""

    source: int
    recipe: SourceRecipe
    live: bool
    first: int
    rings: int
    sampling: FrameSampling | None
    packets: PacketLimits | None = None
    threads: int = 1


class CloseSource(NamedTuple):
    """Stop reading; `SourceEnded` is the answer."""

    source: int


class FreeSlots(NamedTuple):
    """Slots that the reader has let go of: (ring, slot)."""

    source: int
    slots: Sequence[tuple[int, int]]


class SampleSource(NamedTuple):
    """Send only the frames of a live source that `sampling` wants, all where it is None."""

    source: int
    sampling: FrameSampling | None


class CutClip(NamedTuple):
    """Write a clip of these capture times to `path`, also after the source has ended; `ClipCut` is the answer."""

    source: int
    clip: int
    from_ns: int
    until_ns: int
    path: str


class ForgetPackets(NamedTuple):
    """No more clips of the source are wanted."""

    source: int


# From the worker.


class RingOpened(NamedTuple):
    """Pictures of the source come through a new ring from now on; its descriptor comes with the message."""

    source: int
    ring: int
    slot_bytes: int
    slots: int


class FrameDecoded(NamedTuple):
    """One frame. `clock` holds the fields of a `FrameClock`; `size` is (width, height) upright."""

    source: int
    frame_index: int
    time_ns: int
    clock: tuple[Any, ...]
    size: tuple[int, int]
    ring: int
    slot: int
    layout: PictureLayout
    pixel_aspect: float = 1.0


class FramesCounted(NamedTuple):
    """The worker's whole account of a source since it was opened there."""

    source: int
    received: int
    dropped: Mapping[str, int]
    expected_frames: int | None


class StateChanged(NamedTuple):
    """The fields of a `StateChange`."""

    source: int
    state: str
    time_ns: int
    cause: str


class WorkerLogged(NamedTuple):
    """A record of the worker's log, with its traceback. One that `is_said_once` is wanted once from all workers."""

    logger: str
    level: int
    text: str
    is_said_once: bool


class PacketsKept(NamedTuple):
    """Whether the packets of the present connection are kept for clips."""

    source: int
    kept: bool


class ClipCut(NamedTuple):
    """The fields of a `CutResult`."""

    source: int
    clip: int
    begin_ns: int
    end_ns: int
    error: str


class SourceEnded(NamedTuple):
    """Nothing more comes from this source. `is_fault` marks an error that is a defect, not a `SourceError`."""

    source: int
    error: str | None
    is_fault: bool = False


def encode_message(items: Sequence[object]) -> bytes:
    body = pickle.dumps(items, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class MessageDecoder:
    """Cuts a stream of bytes into the items of its messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The items that are complete with `data`, in order."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                return
            # our own process wrote it, over a pipe that no other has
            items = pickle.loads(bytes(self._bytes[_LENGTH.size : end]))  # nosec B301
            del self._bytes[:end]
            yield from items
