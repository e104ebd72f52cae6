"""Segments of a recording, cut at key pictures, so that parts of one file can be decoded at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamer.errors import SourceError
from streamer.frame import Frame, FrameClock
from streamer.sources.clock import FileClock
from streamer.sources.decode import DecodedPicture, DecodeError, LostPictures, NoVideo, VideoReader, reason
from streamer.sources.file import FileSource
from streamer.sources.sampling import FrameSampling


class SegmentError(SourceError):
    """A part of a recording gives other pictures when it is decoded on its own, or cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Pictures `first` to before `end` of a recording, counted from 0 in the order in which they are shown.

    They have presentation times from `begin_ns` to before `end_ns` (None: to the end) of the container's clock.
    Decoding begins at the key picture at `seek_to`, for `VideoReader.seek_key` (None: at the start of the file).
    `wanted` holds the numbers of those that sampling takes.
    """

    first: int
    end: int
    begin_ns: int
    end_ns: int | None
    seek_to: int | None
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _PictureIndex:
    """Times of the pictures of a file in the order shown, and of each key picture its number and the place from which
    decoding gives it and all that are shown after it."""

    times_ns: list[int]
    entries: list[tuple[int, int]]


def find_segments(
    source: FileSource, sampling: FrameSampling, *, batch: int, length_s: float, most: int
) -> list[Segment]:
    """Divides a recording into segments of at least `length_s` seconds, `most` of them, without decoding it.

    Each begins at a multiple of `batch` pictures, so that the batches of its pictures are those of the whole recording.
    Empty where the recording cannot be divided: too short, no times of its own, too few key pictures, or a clock that
    leaps. Raises `SourceError`.
    """
    try:
        with source.open_reader() as video:
            index = _index_pictures(video)
            clock = FileClock(0, video.frame_ns, video.may_jump)
    except (DecodeError, NoVideo) as error:
        cause = reason(error) if isinstance(error, DecodeError) else "it holds no pictures"
        raise SegmentError(f"{source!r} cannot be divided: {cause}") from error
    if index is None or any(clock.leaps(time_ns) or clock.time_ns(time_ns) is None for time_ns in index.times_ns):
        return []
    length_ns = max(int(length_s * 1e9), (index.times_ns[-1] - index.times_ns[0]) // most)
    cuts = _choose_cuts(index, batch, length_ns)
    if len(cuts) < 2:
        return []
    wanted = _sample(index, sampling)
    ends = [*(cut[0] for cut in cuts[1:]), len(index.times_ns)]
    return [
        Segment(
            first,
            end,
            index.times_ns[first],
            index.times_ns[end] if end < len(index.times_ns) else None,
            seek_to,
            tuple(number for number in range(first, end) if wanted[number]),
        )
        for (first, seek_to), end in zip(cuts, ends, strict=True)
    ]


def read_segment(source: FileSource, segment: Segment) -> Iterator[tuple[int, DecodedPicture]]:
    """Decodes a segment: each picture with its number. Raises `SegmentError` where not exactly its pictures come."""
    number = segment.first
    try:
        with source.open_reader() as video:
            if segment.seek_to is not None:
                video.seek_key(segment.seek_to)
            for picture in video.pictures():
                if picture.pts_ns is None:
                    break
                if picture.pts_ns < segment.begin_ns:
                    continue
                is_behind = segment.end_ns is not None and picture.pts_ns >= segment.end_ns
                if is_behind or isinstance(picture, LostPictures):
                    break
                yield number, picture
                number += 1
    except DecodeError as error:
        raise SegmentError(f"{source!r} cannot be decoded from its middle: {reason(error)}") from error
    if number != segment.end:
        raise SegmentError(
            f"{source!r} gives {number - segment.first} of {segment.end - segment.first} pictures when it is decoded "
            f"from {segment.begin_ns / 1e9:.1f} s"
        )


def _index_pictures(video: VideoReader) -> _PictureIndex | None:
    """The pictures of a file; None where the order of decoding does not say which are shown when."""
    if video.times != "own":
        return None
    found: list[tuple[int, int, bool]] = []
    for time_ns, place, is_key in video.index_pictures():
        if time_ns is None or place is None:
            return None
        found.append((time_ns, place, is_key))
    times_ns = sorted(time_ns for time_ns, _, _ in found)
    if len(set(times_ns)) < len(times_ns):
        return None
    numbers = {time_ns: number for number, time_ns in enumerate(times_ns)}
    entries: list[tuple[int, int]] = []
    before: int | None = None  # the key pictures of the present group and of the one before
    present: int | None = None
    for time_ns, place, is_key in found:
        if is_key:
            before, present = present, place
            entries.append((numbers[time_ns], place))
        elif entries and numbers[time_ns] < entries[-1][0]:
            # Shown before its key picture, it builds on the group before, too: decoding begins there.
            if before is None:
                return None
            entries[-1] = entries[-1][0], before
    return _PictureIndex(times_ns, entries) if entries and entries[0][0] == 0 else None


def _choose_cuts(index: _PictureIndex, batch: int, length_ns: int) -> list[tuple[int, int | None]]:
    """The first picture of each segment, and the key picture from which decoding reaches it."""
    times_ns = index.times_ns
    cuts: list[tuple[int, int | None]] = [(0, None)]
    for number, place in index.entries:
        first = -(-number // batch) * batch
        if first < len(times_ns) and times_ns[first] - times_ns[cuts[-1][0]] >= length_ns:
            cuts.append((first, place))
    if len(cuts) > 1 and times_ns[-1] - times_ns[cuts[-1][0]] < length_ns // 2:
        cuts.pop()  # a short rest is not worth a part
    return cuts


def _sample(index: _PictureIndex, sampling: FrameSampling) -> list[bool]:
    """Whether sampling takes each picture of a recording."""
    if sampling.every == 1 and sampling.fps is None:
        return [True] * len(index.times_ns)
    clock = FrameClock("file_pts")
    return [
        sampling.wants(Frame("", number, time_ns, clock, np.empty((0, 0, 3), np.uint8), (0, 0)))
        for number, time_ns in enumerate(index.times_ns)
    ]
